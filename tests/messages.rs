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
    let listen = proto::ListenRequest {
        channel: "live".to_owned(),
        ack_mode: proto::AckMode::Auto.into(),
        ..proto::ListenRequest::default()
    };
    let mut stream = b.client().await.listen(listen).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let sent = from.send(request).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored);
    let frame = stream.message().await.unwrap().unwrap().frame.unwrap();
    let proto::listen_response::Frame::Deliveries(batch) = frame else { panic!("{frame:?}") };
    assert_eq!((batch.deliveries.len(), batch.deliveries[0].cursor), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peek_sees_ephemeral_messages_and_is_no_consumer() {
    let (a, b) = pair().await;
    let mut from = a.client().await;
    let peer = b.peer_id().await;
    let request =
        |id: &str| proto::SendRequest { ephemeral: true, ..send_to(&peer, message("live", id, id.as_bytes())) };
    let listen = proto::ListenRequest { channel: "live".to_owned(), peek: true, ..proto::ListenRequest::default() };
    let mut peek = b.client().await.listen(listen.clone()).await.unwrap().into_inner();
    peek.message().await.unwrap();
    let sent = from.send(request("one")).await.unwrap().into_inner();
    assert_eq!((sent.state(), sent.reason()), (MessageState::Rejected, Reason::NoConsumer));
    let listen = proto::ListenRequest { ack_mode: proto::AckMode::Auto.into(), peek: false, ..listen };
    let mut consumer = b.client().await.listen(listen).await.unwrap().into_inner();
    consumer.message().await.unwrap();
    let sent = from.send(request("two")).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored);
    for (stream, ids) in [(&mut peek, &["one", "two"][..]), (&mut consumer, &["two"])] {
        for id in ids {
            let frame = tokio::time::timeout(support::DEADLINE, stream.message()).await.unwrap().unwrap();
            let Some(proto::listen_response::Frame::Deliveries(batch)) = frame.unwrap().frame else { panic!("{id}") };
            assert_eq!(batch.deliveries[0].message.as_ref().unwrap().id, *id);
        }
    }
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

/// Puts items of one message each on a stream; the answers are its receipts.
async fn stream_of(
    client: &mut support::Client,
    peer: &str,
) -> (tokio::sync::mpsc::Sender<proto::SendStreamRequest>, tonic::Streaming<proto::SendStreamResponse>, proto::SendItem)
{
    let (frames, outgoing) = tokio::sync::mpsc::channel(1);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let answers = client.send_stream(outgoing).await.unwrap().into_inner();
    (frames, answers, proto::SendItem { r#ref: 0, request: Some(send_to(peer, message("", "", "hello"))) })
}

/// The receipts until the stream ends.
async fn receipts(mut answers: tonic::Streaming<proto::SendStreamResponse>) -> Vec<proto::Receipt> {
    let mut all = Vec::new();
    while let Some(answer) = tokio::time::timeout(support::DEADLINE, answers.message()).await.unwrap().unwrap() {
        if let Some(proto::send_stream_response::Frame::Receipts(receipts)) = answer.frame {
            all.extend(receipts.receipts);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn small_frames_of_a_stream_keep_their_order() {
    const COUNT: u64 = 500;
    let (a, b) = pair().await;
    let (frames, answers, item) = stream_of(&mut a.client().await, &b.peer_id().await).await;
    let told = tokio::spawn(receipts(answers));
    for at in 1..=COUNT {
        frames
            .send(proto::SendStreamRequest { items: vec![proto::SendItem { r#ref: at, ..item.clone() }] })
            .await
            .unwrap();
    }
    drop(frames);
    let told = told.await.unwrap();
    let sequences = told.iter().map(|receipt| (receipt.r#ref, receipt.response.as_ref().unwrap().sequence));
    assert_eq!(sequences.collect::<Vec<_>>(), (1..=COUNT).map(|at| (at, at)).collect::<Vec<_>>());
    assert_eq!(receive(&mut b.client().await, "", COUNT as usize).await.len(), COUNT as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_not_lost_while_messages_of_the_stream_are_taken_back() {
    const COUNT: u64 = 200;
    let (a, mut b) = pair().await;
    let peer = b.peer_id().await;
    b.kill();
    let mut client = a.client().await;
    let (frames, answers, item) = stream_of(&mut client, &peer).await;
    let told = tokio::spawn(receipts(answers));
    let mut taken_back = 0;
    for at in 1..=COUNT {
        let mut item = proto::SendItem { r#ref: at, ..item.clone() };
        item.request.as_mut().unwrap().message.as_mut().unwrap().id = at.to_string();
        frames.send(proto::SendStreamRequest { items: vec![item] }).await.unwrap();
        let id = (at / 2).to_string();
        taken_back += u64::from(client.cancel(proto::CancelRequest { id, ..Default::default() }).await.is_ok());
    }
    drop(frames);
    b.restart().await;
    let told = told.await.unwrap();
    assert!(taken_back > 0);
    assert_eq!(told.len() as u64, COUNT);
}
