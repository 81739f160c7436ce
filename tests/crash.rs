//! Daemons that are killed, set back to older copies of their store, and told
//! to end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod flow;
mod support;

use std::{
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use flow::{Receipts, ids, ids_to_marker, listen, mark, numbered, queue_all, read_to_marker, store_all};
use nix::sys::signal::Signal::SIGTERM;
use p2p_node::proto::{self, MessageState};
use support::{Client, Daemon, Options, eventually, loopback, message, pair, send_to, signal};
use tempfile::TempDir;
use tokio::time::timeout;

const CHANNELS: [&str; 3] = ["", "b", "c"];
/// Places of the messages that end early, in the middle of different lanes.
const CANCELLED: usize = 500;
const EXPIRED: usize = 601;
const COUNT: usize = 1002;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_survive_the_death_of_both() {
    let (mut a, mut b) = pair().await;
    let peer = b.peer_id().await;
    b.kill();
    offline(&a, &peer).await;
    let mut requests: Vec<_> = (0..COUNT).map(|at| numbered_mixed(&peer, at)).collect();
    requests[EXPIRED].ttl_ms = 1000;
    let expected: Vec<_> = CHANNELS.map(|channel| ids_of(&requests, channel)).into();
    let from = a.client().await;
    queue_all(&from, requests).await;
    let cancel = proto::CancelRequest { id: id(CANCELLED), ..Default::default() };
    let cancelled = from.clone().cancel(cancel).await.unwrap().into_inner().message.unwrap();
    assert_eq!((cancelled.state(), cancelled.pending_outcome()), (MessageState::Cancelled, MessageState::Unspecified));
    becomes(&from, &id(EXPIRED), MessageState::Expired).await;
    assert_eq!(a.status().await.outbox.unwrap().messages, 1000);

    a.kill();
    a.restart().await;
    b.restart().await;
    let (from, to) = (a.client().await, b.client().await);
    let mut readers = Vec::new();
    for channel in CHANNELS {
        let to = to.clone();
        readers.push(tokio::spawn(async move {
            let mut stream = listen(&to, channel).await;
            read_to_marker(&to, &mut stream).await
        }));
        mark(&from, &peer, channel).await;
    }
    for (reader, expected) in readers.into_iter().zip(expected) {
        let read = reader.await.unwrap();
        assert_eq!(read.iter().map(|message| message.id.clone()).collect::<Vec<_>>(), expected);
        for message in read {
            let at = message.id.parse().unwrap();
            assert!(message.payload == payload(at), "payload of {at}");
        }
    }
    eventually("empty queues", || async {
        let (outbox, inbox) = (a.status().await.outbox.unwrap(), b.status().await.inbox.unwrap());
        (outbox.messages == 0 && inbox.messages == 0).then_some(())
    })
    .await;
    for (at, state) in [(CANCELLED, MessageState::Cancelled), (EXPIRED, MessageState::Expired)] {
        assert_eq!(outcome(&from, &id(at)).await.state(), state);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_cancelled_on_a_dead_link_is_never_delivered() {
    let (a, mut b) = pair().await;
    let (from, peer) = (a.client().await, b.peer_id().await);
    store_all(&from, numbered(&peer, "", "before", 0..1)).await;
    b.kill();
    queue_all(&from, numbered(&peer, "", "lost", 0..3)).await;
    becomes(&from, "lost1", MessageState::Sent).await;
    let cancel = proto::CancelRequest { id: "lost1".to_owned(), ..Default::default() };
    for _ in 0..2 {
        let cancelled = from.clone().cancel(cancel.clone()).await.unwrap().into_inner().message.unwrap();
        assert_eq!((cancelled.state(), cancelled.pending_outcome()), (MessageState::Sent, MessageState::Cancelled));
        assert_eq!(a.status().await.outbox.unwrap().messages, 2);
    }
    b.restart().await;
    becomes(&from, "lost1", MessageState::Cancelled).await;
    mark(&from, &peer, "").await;
    assert_eq!(ids_to_marker(&b.client().await, "").await, ["before0", "lost0", "lost2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_killed_in_the_flow_gets_each_message_once() {
    const COUNT: usize = 5000;
    let (a, mut b) = pair().await;
    let (from, peer) = (a.client().await, b.peer_id().await);
    let requests = numbered(&peer, "", "", 0..COUNT);
    let expected = ids(&requests);
    let mut receipts = Receipts::of(&from, requests).await;
    for stored in [500, 2500] {
        receipts.read(stored).await;
        b.kill();
        b.restart().await;
    }
    receipts.all(COUNT, MessageState::Stored).await;
    mark(&from, &peer, "").await;
    assert_eq!(ids_to_marker(&b.client().await, "").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_set_back_goes_on_and_both_count_the_loss() {
    let (a, mut b) = pair().await;
    let (from, peer) = (a.client().await, b.peer_id().await);
    store_all(&from, numbered(&peer, "", "kept", 0..10)).await;
    assert!(b.stop().success());
    let copy = Copy::of(&b);
    b.restart().await;
    store_all(&from, numbered(&peer, "", "lost", 0..20)).await;
    assert!(b.stop().success());
    copy.put_back(&b);
    b.restart().await;
    store_all(&from, numbered(&peer, "", "new", 0..5)).await;
    mark(&from, &peer, "").await;
    let expected = [numbered(&peer, "", "kept", 0..10), numbered(&peer, "", "new", 0..5)].concat();
    assert_eq!(ids_to_marker(&b.client().await, "").await, ids(&expected));
    assert_eq!((a.status().await.lost_by_restore, b.status().await.lost_by_restore), (20, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_set_back_loses_and_doubles_nothing() {
    let (mut a, mut b) = pair().await;
    let peer = b.peer_id().await;
    store_all(&a.client().await, numbered(&peer, "", "first", 0..10)).await;
    // The copy has messages in its queue that were delivered since.
    assert!(b.stop().success());
    queue_all(&a.client().await, numbered(&peer, "", "queued", 0..3)).await;
    assert!(a.stop().success());
    let copy = Copy::of(&a);
    a.restart().await;
    b.restart().await;
    store_all(&a.client().await, numbered(&peer, "", "forgotten", 0..20)).await;
    assert!(a.stop().success());
    copy.put_back(&a);
    a.restart().await;
    let from = a.client().await;
    store_all(&from, numbered(&peer, "", "new", 0..5)).await;
    mark(&from, &peer, "").await;
    let sent = [("first", 10), ("queued", 3), ("forgotten", 20), ("new", 5)];
    let expected: Vec<_> = sent.iter().flat_map(|(name, count)| numbered(&peer, "", name, 0..*count)).collect();
    assert_eq!(ids_to_marker(&b.client().await, "").await, ids(&expected));
    assert_eq!((a.status().await.lost_by_restore, b.status().await.lost_by_restore), (0, 0));
    becomes(&from, "queued1", MessageState::Stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_started_over_and_over_loses_nothing() {
    const STARTS: usize = 10;
    let (mut a, mut b) = pair().await;
    let peer = b.peer_id().await;
    store_all(&a.client().await, numbered(&peer, "", "first", 0..3)).await;
    b.kill();
    for at in 0..STARTS {
        queue_all(&a.client().await, numbered(&peer, "", "start", at..at + 1)).await;
        a.kill();
        a.restart().await;
    }
    b.restart().await;
    mark(&a.client().await, &peer, "").await;
    let expected = [numbered(&peer, "", "first", 0..3), numbered(&peer, "", "start", 0..STARTS)].concat();
    assert_eq!(ids_to_marker(&b.client().await, "").await, ids(&expected));
    assert_eq!((a.status().await.lost_by_restore, b.status().await.lost_by_restore), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gets_its_receipts_after_the_peer_was_away() {
    let (a, mut b) = pair().await;
    let (mut from, peer) = (a.client().await, b.peer_id().await);
    let (frames, outgoing) = tokio::sync::mpsc::channel(1);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut answers = from.send_stream(outgoing).await.unwrap().into_inner();
    for (at, request) in numbered(&peer, "", "", 0..2).into_iter().enumerate() {
        let item = proto::SendItem { r#ref: at as u64, request: Some(request) };
        frames.send(proto::SendStreamRequest { items: vec![item] }).await.unwrap();
        if at > 0 {
            // It is taken while nothing drives messages to the peer.
            becomes_known(&from, &at.to_string()).await;
            b.restart().await;
        }
        let receipt = loop {
            let frame = timeout(support::DEADLINE, answers.message()).await.expect("a receipt in time");
            let frame = frame.unwrap().unwrap().frame;
            if let Some(proto::send_stream_response::Frame::Receipts(mut receipts)) = frame {
                break receipts.receipts.remove(0);
            }
        };
        assert_eq!((receipt.r#ref, receipt.response.unwrap().state()), (at as u64, MessageState::Stored));
        if at == 0 {
            assert!(b.stop().success());
            offline(&a, &peer).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_within_the_grace_whatever_is_open() {
    let config = "shutdown_grace = \"3s\"".to_owned();
    let mut daemon = Daemon::start_with(Options { config, ..loopback() }).await;
    let client = daemon.client().await;
    let mut stream = listen(&client, "").await;
    let _idle = daemon.client().await;
    let _silent = UnixStream::connect(daemon.socket()).unwrap();
    let begun = Instant::now();
    let status = daemon.stop();
    assert_eq!(status.code(), Some(0), "{status}");
    // The grace, and as much again for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(6), "took {:?}", begun.elapsed());
    let ended = timeout(support::DEADLINE, stream.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended}");
    assert!(!daemon.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_while_nothing_is_open_ends_in_order() {
    let mut daemon = Daemon::start().await;
    // The API is over at once, and may be noticed before the signal is.
    for _ in 0..10 {
        let status = daemon.stop();
        assert_eq!(status.code(), Some(0), "{status}");
        daemon.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_at_once() {
    let config = "shutdown_grace = \"5m\"".to_owned();
    let mut daemon = Daemon::start_with(Options { config, ..loopback() }).await;
    // A connection that never says a word holds the drain up, once it is
    // accepted: which it is before a later one is served.
    let _silent = UnixStream::connect(daemon.socket()).unwrap();
    daemon.status().await;
    signal(daemon.pid(), SIGTERM);
    eventually("the drain", || async { daemon.log().contains("shutting down").then_some(()) }).await;
    let status = daemon.stop();
    assert_eq!(status.code(), Some(143), "{status}");
}

/// A copy of a stopped daemon's store.
struct Copy(TempDir);

impl Copy {
    fn of(daemon: &Daemon) -> Self {
        let copy = Self(TempDir::new().unwrap());
        assert!(copy_store(&daemon.state_dir(), copy.0.path()) > 0);
        copy
    }

    fn put_back(&self, daemon: &Daemon) {
        for file in store_files(&daemon.state_dir()) {
            std::fs::remove_file(file).unwrap();
        }
        assert!(copy_store(self.0.path(), &daemon.state_dir()) > 0);
    }
}

fn copy_store(from: &Path, to: &Path) -> usize {
    let files = store_files(from);
    for file in &files {
        std::fs::copy(file, to.join(file.file_name().unwrap())).unwrap();
    }
    files.len()
}

fn store_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("store.db")).collect()
}

fn id(at: usize) -> String {
    format!("{at:04}")
}

fn numbered_mixed(peer: &str, at: usize) -> proto::SendRequest {
    send_to(peer, message(CHANNELS[at % CHANNELS.len()], &id(at), payload(at)))
}

/// Ids of a channel's messages that are to arrive.
fn ids_of(requests: &[proto::SendRequest], channel: &str) -> Vec<String> {
    let arrive = |at: &usize| ![CANCELLED, EXPIRED].contains(at) && CHANNELS[at % CHANNELS.len()] == channel;
    (0..requests.len()).filter(arrive).map(id).collect()
}

/// From 1 byte to 200 KiB, about 26 MB for all; no two alike.
fn payload(at: usize) -> Vec<u8> {
    let at = u32::try_from(at).unwrap();
    let size = match at % 10 {
        0 => 200 << 10,
        1 => 40 << 10,
        2 => 1,
        3 => 16 << 10,
        more => 100 * more,
    };
    let seed = at.wrapping_mul(2_654_435_761);
    (0..size).map(|place| (seed.wrapping_add(place).wrapping_mul(2_246_822_519) >> 24) as u8).collect()
}

async fn offline(daemon: &Daemon, peer: &str) {
    eventually("the end of the connection", || async {
        let peers = daemon.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
        peers.peers.into_iter().find(|row| row.peer_id == peer && !row.online).map(|_| ())
    })
    .await;
}

async fn outcome(client: &Client, id: &str) -> proto::SentMessage {
    let request = proto::GetMessageRequest { id: id.to_owned(), ..Default::default() };
    client.clone().get_message(request).await.unwrap().into_inner().message.unwrap()
}

async fn becomes_known(client: &Client, id: &str) {
    let request = proto::GetMessageRequest { id: id.to_owned(), ..Default::default() };
    eventually(id, || async { client.clone().get_message(request.clone()).await.ok().map(|_| ()) }).await;
}

async fn becomes(client: &Client, id: &str, state: MessageState) {
    eventually(&format!("{id} to be {state:?}"), || async {
        (outcome(client, id).await.state() == state).then_some(())
    })
    .await;
}
