//! Messages between two real daemons.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use p2p_node::proto::{self, MessageState, Reason};
use support::{message, pair, receive, send_to};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_stored_and_received() {
    let (a, b) = pair().await;
    let (mut from, mut to) = (a.client().await, b.client().await);
    let peer = b.peer_id().await;
    let sent = from.send(send_to(&peer, message("", "one", "hello"))).await.unwrap().into_inner();
    assert_eq!((sent.id.as_str(), sent.state()), ("one", MessageState::Stored));
    let got = receive(&mut to, "", 1).await;
    let got = got[0].message.clone().unwrap();
    assert_eq!((got.payload.as_ref(), got.from, got.sequence), (&b"hello"[..], a.peer_id().await, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_again_is_a_duplicate_and_other_content_is_refused() {
    let (a, b) = pair().await;
    let mut from = a.client().await;
    let peer = b.peer_id().await;
    let first = from.send(send_to(&peer, message("", "one", "hello"))).await.unwrap().into_inner();
    let again = from.send(send_to(&peer, message("", "one", "hello"))).await.unwrap().into_inner();
    assert!(!first.duplicate && again.duplicate);
    assert_eq!(again.state(), MessageState::Stored);
    let other = from.send(send_to(&peer, message("", "one", "bye"))).await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::AlreadyExists);
    assert_eq!(receive(&mut b.client().await, "", 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_sender_waits_until_it_is_trusted() {
    let (a, b) = (support::Daemon::start().await, support::Daemon::start().await);
    a.add(&b).await;
    let mut from = a.client().await;
    let peer = b.peer_id().await;
    let request = proto::SendRequest { timeout_ms: 1500, ..send_to(&peer, message("", "one", "hello")) };
    let sent = from.send(request).await.unwrap().into_inner();
    assert_ne!(sent.state(), MessageState::Stored);
    support::eventually("the reason", || async {
        let peers = a.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
        peers.peers.into_iter().find(|row| row.peer_id == peer && row.reason() == Reason::Untrusted)
    })
    .await;
    b.add(&a).await;
    assert_eq!(receive(&mut b.client().await, "", 1).await[0].attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_message_needs_a_listener() {
    let (a, b) = pair().await;
    let mut from = a.client().await;
    let peer = b.peer_id().await;
    let request = proto::SendRequest { ephemeral: true, ..send_to(&peer, message("live", "", "x")) };
    let sent = from.send(request.clone()).await.unwrap().into_inner();
    assert_eq!((sent.state(), sent.reason()), (MessageState::Rejected, Reason::NoConsumer));
    let listen = proto::ListenRequest { channel: "live".to_owned(), ..proto::ListenRequest::default() };
    let mut stream = b.client().await.listen(listen).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let sent = from.send(request).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored);
    let frame = stream.message().await.unwrap().unwrap().frame.unwrap();
    let proto::listen_response::Frame::Deliveries(batch) = frame else { panic!("{frame:?}") };
    assert_eq!((batch.deliveries.len(), batch.deliveries[0].cursor), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_oneself_arrives() {
    let a = support::Daemon::start().await;
    let own = a.peer_id().await;
    for id in ["one", "two"] {
        let sent = a.client().await.send(send_to(&own, message("me", id, id))).await.unwrap().into_inner();
        assert_eq!(sent.state(), MessageState::Stored);
    }
    let got = receive(&mut a.client().await, "me", 2).await;
    assert_eq!(got[1].message.as_ref().unwrap().id, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_acknowledged_comes_again_with_a_higher_attempt() {
    let (a, b) = pair().await;
    let peer = b.peer_id().await;
    a.client().await.send(send_to(&peer, message("", "one", "hello"))).await.unwrap();
    let listen = proto::ListenRequest { ack_mode: proto::AckMode::Manual.into(), ..proto::ListenRequest::default() };
    let mut stream = b.client().await.listen(listen.clone()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    stream.message().await.unwrap();
    let taken = b.client().await.listen(listen).await.unwrap_err();
    assert_eq!(taken.code(), tonic::Code::AlreadyExists);
    assert!(taken.message().contains(&std::process::id().to_string()), "{}", taken.message());
    drop(stream);
    let second = support::eventually("the consumer to be free", || async {
        let mut client = b.client().await;
        let listen =
            proto::ListenRequest { ack_mode: proto::AckMode::Manual.into(), ..proto::ListenRequest::default() };
        let mut stream = client.listen(listen).await.ok()?.into_inner();
        stream.message().await.unwrap();
        let proto::listen_response::Frame::Deliveries(batch) = stream.message().await.unwrap()?.frame? else {
            return None;
        };
        Some(batch.deliveries[0].attempt)
    })
    .await;
    assert_eq!(second, 2);
}
