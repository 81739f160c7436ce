//! Power cuts: what was acknowledged is there afterwards.
//!
//! The same rounds with a store that does not sync each commit must find
//! losses, which shows that they would be noticed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "mod.rs"]
mod cutter;
#[path = "../skip/mod.rs"]
mod skip;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use cutter::PowerCut;
use p2p_node::{
    config::Flags,
    daemon,
    proto::{self, AckMode, MessageState, NodeState, Wait, listen_response::Frame, send_stream_response},
    store::Synchronous,
};
use support::{Client, DEADLINE, Daemon, Options, eventually, message};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;

/// Cuts of a test.
const ROUNDS: usize = 10;
/// Set for the process that plays a daemon with an unsafe store.
const UNSAFE: &str = "TEST_POWERCUT_UNSAFE";
const CHANNELS: [&str; 3] = ["", "one", "two"];
/// Items of a stream without a receipt.
const WINDOW: usize = 128;
/// How long a message may take to show up that must be on the disk.
const PATIENCE: Duration = Duration::from_secs(15);

/// Not a test by itself: the daemon with the bug, which the executable cannot
/// have. Its arguments follow as if they were names of tests.
#[test]
fn daemon_child() {
    if std::env::var_os(UNSAFE).is_none() {
        return;
    }
    let words: Vec<String> = std::env::args().collect();
    let after = |flag: &str| words.iter().position(|word| word == flag).map(|at| words[at + 1].clone());
    let flags = Flags {
        state_dir: after("--state-dir").map(Into::into),
        socket: after("--socket").map(Into::into),
        config: after("--config").map(Into::into),
        listen: after("--listen").into_iter().collect(),
        mdns: Some(false),
        ..Flags::default()
    };
    daemon::run_with(&flags, Synchronous::Normal).unwrap();
}

/// TCP on loopback: the other side notices at once that a process is gone.
fn tcp() -> Options {
    let address = format!("/ip4/{}/tcp/0", support::own_ip());
    let args = ["--listen", &address, "--no-mdns"];
    Options { args: args.map(ToOwned::to_owned).to_vec(), ..Options::default() }
}

/// A daemon whose power can be cut.
struct Victim {
    daemon: Daemon,
    cut: PowerCut,
}

impl Victim {
    async fn start(cut: PowerCut, synchronous: Synchronous) -> Self {
        let mut options = tcp();
        if synchronous == Synchronous::Normal {
            let test = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
            let words = ["--exact", "daemon_child", "--nocapture", "--"].map(ToOwned::to_owned);
            options.prefix = std::iter::once(test).chain(words).collect();
            options.env.push((UNSAFE.to_owned(), "1".to_owned()));
        }
        let mut daemon = Daemon::new(options);
        std::fs::create_dir(daemon.state_dir()).unwrap();
        let mut command = std::process::Command::new("none");
        cut.follow(&mut command, &daemon.state_dir());
        let text = |os: &std::ffi::OsStr| os.to_str().unwrap().to_owned();
        let env = command.get_envs().filter_map(|(key, value)| Some((text(key), text(value?))));
        daemon.options.env.extend(env);
        daemon.restart().await;
        Self { daemon, cut }
    }

    /// So that even an unsafe store has on its disk what it has now.
    async fn settle(&mut self) {
        assert!(self.daemon.stop().success());
        self.daemon.restart().await;
    }

    /// Cuts the power, and starts again.
    async fn cut(&mut self) {
        self.cut.cut(&mut self.daemon.take_child());
        self.daemon.restart().await;
    }

    /// The check after a stop out of order finds no damage.
    async fn is_sound(&self) {
        eventually("the store is checked", || async {
            let status = self.daemon.status().await;
            let degraded = status.states.contains(&NodeState::Degraded.into());
            (!degraded).then(|| assert!(status.problems.is_empty(), "{:?}", status.problems))
        })
        .await;
    }
}

fn shim(test: &str) -> Option<PowerCut> {
    PowerCut::new().map_err(|why| skip::skip(test, &why)).ok()
}

/// Tells the number of a message.
fn number(id: &str) -> u64 {
    id.rsplit('-').next().unwrap().parse().unwrap()
}

/// A payload that says whose it is, of a size that varies over pages.
fn payload(id: &str) -> Vec<u8> {
    id.as_bytes().iter().copied().cycle().take(1 + (number(id) as usize * 997) % 9000).collect()
}

// The sender

type Ids = Arc<Mutex<BTreeSet<String>>>;

/// Sends one after the other until the daemon is gone.
async fn send_until_cut(mut client: Client, peer: String, channel: &'static str, prefix: String, acknowledged: Ids) {
    for n in 0.. {
        let id = format!("{prefix}-{n}");
        let request = proto::SendRequest {
            peer: peer.clone(),
            message: Some(message(channel, &id, payload(&id))),
            wait: Wait::Queued.into(),
            ..proto::SendRequest::default()
        };
        let Ok(sent) = client.send(request).await else { return };
        assert_eq!(sent.into_inner().state(), MessageState::Queued);
        acknowledged.lock().unwrap().insert(id);
    }
}

/// All that waits in the outbox, with the position of each.
async fn waiting(daemon: &Daemon) -> BTreeMap<String, (String, u64)> {
    let mut client = daemon.client().await;
    let mut all = BTreeMap::new();
    let mut request = proto::ListMessagesRequest { page_size: 1000, ..proto::ListMessagesRequest::default() };
    loop {
        let page = client.list_messages(request.clone()).await.unwrap().into_inner();
        for row in page.messages {
            assert_eq!(row.payload_bytes, payload(&row.id).len() as u64, "{}", row.id);
            let twice = all.insert(row.id.clone(), (row.channel, row.sequence));
            assert!(twice.is_none(), "{} is there twice", row.id);
        }
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

/// Cuts the sender's power in mid-stream, again and again. The error says
/// which acknowledged messages are gone.
async fn cut_sender(victim: &mut Victim, peer: &str) -> Result<usize, String> {
    let acknowledged: Ids = Ids::default();
    for round in 0..ROUNDS {
        let before = acknowledged.lock().unwrap().len();
        let mut senders = JoinSet::new();
        for (index, channel) in CHANNELS.iter().chain(&CHANNELS).enumerate() {
            let prefix = format!("r{round}s{index}");
            let client = victim.daemon.client().await;
            senders.spawn(send_until_cut(client, peer.to_owned(), channel, prefix, acknowledged.clone()));
        }
        let enough = before + 20 + 17 * round;
        eventually("messages taken", || async { (acknowledged.lock().unwrap().len() >= enough).then_some(()) }).await;
        victim.cut().await;
        while let Some(ended) = senders.join_next().await {
            ended.unwrap();
        }
        let kept = waiting(&victim.daemon).await;
        let lost: Vec<String> =
            acknowledged.lock().unwrap().iter().filter(|id| !kept.contains_key(*id)).cloned().collect();
        if !lost.is_empty() {
            return Err(format!("round {round}: {} of {} lost: {lost:?}", lost.len(), enough));
        }
        victim.is_sound().await;
        // Each has a position of its own, and none is missing.
        for channel in CHANNELS {
            let taken: BTreeSet<u64> = kept.values().filter(|(of, _)| of == channel).map(|(_, at)| *at).collect();
            assert!(taken.iter().copied().eq(1..=taken.len() as u64), "positions of {channel:?}: {taken:?}");
        }
    }
    Ok(acknowledged.lock().unwrap().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_took_survives_a_power_cut() {
    let Some(cut) = shim("what_a_sender_took_survives_a_power_cut") else { return };
    let mut receiver = Daemon::start_with(tcp()).await;
    let mut victim = Victim::start(cut, Synchronous::Full).await;
    victim.daemon.add(&receiver).await;
    receiver.add(&victim.daemon).await;
    let peer = receiver.peer_id().await;
    receiver.stop();
    let acknowledged = cut_sender(&mut victim, &peer).await.unwrap();
    // More can be there than was answered: the cut took the answer away.
    let kept = waiting(&victim.daemon).await;
    assert!(kept.len() >= acknowledged);
    receiver.restart().await;
    for channel in CHANNELS {
        let expected: BTreeMap<u64, &String> =
            kept.iter().filter(|(_, (of, _))| of == channel).map(|(id, (_, at))| (*at, id)).collect();
        let got = support::receive(&mut receiver.client().await, channel, expected.len()).await;
        for (delivery, (at, id)) in got.into_iter().zip(expected) {
            let message = delivery.message.unwrap();
            assert_eq!((message.sequence, &message.id), (at, id));
            assert!(message.payload == payload(id), "{id} has another payload");
        }
    }
    eventually("the outbox is empty", || async { waiting(&victim.daemon).await.is_empty().then_some(()) }).await;
    assert_eq!(victim.daemon.status().await.lost_by_restore, 0);
}

/// Proves that the rounds bite.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_does_not_sync_is_caught() {
    let Some(cut) = shim("a_sender_that_does_not_sync_is_caught") else { return };
    let receiver = Daemon::start().await;
    let mut victim = Victim::start(cut, Synchronous::Normal).await;
    let peer = receiver.peer_id().await;
    let entry = proto::AddPeerRequest { peer: peer.clone(), ..proto::AddPeerRequest::default() };
    victim.daemon.client().await.add_peer(entry).await.unwrap();
    drop(receiver);
    victim.settle().await;
    let caught = cut_sender(&mut victim, &peer).await.unwrap_err();
    assert!(caught.contains("lost"), "{caught}");
}

// The receiver

/// Whether more is to be sent.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Pace {
    #[default]
    Go,
    /// Not while the inbox is read: on a slow machine it would fill up.
    Pause,
    Enough,
}

/// What the sender knows.
#[derive(Default)]
struct Known {
    /// Numbers of messages that the peer stored, it says.
    stored: Mutex<BTreeMap<&'static str, BTreeSet<u64>>>,
    pace: watch::Sender<Pace>,
}

impl Known {
    fn count(&self) -> usize {
        self.stored.lock().unwrap().values().map(BTreeSet::len).sum()
    }
}

fn id(channel: &str, number: u64) -> String {
    format!("m{channel}-{number}")
}

/// Streams messages with one window, until it is enough and all have ended;
/// returns how many.
async fn stream(mut client: Client, peer: String, channel: &'static str, known: Arc<Known>) -> u64 {
    let (items, requests) = mpsc::channel(1);
    let mut receipts = client.send_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let (mut sent, mut open) = (0, 0);
    let mut items = Some(items);
    let mut paces = known.pace.subscribe();
    loop {
        let pace = *paces.borrow_and_update();
        if pace == Pace::Enough {
            items = None;
        }
        if let Some(items) = &items
            && open < WINDOW
            && pace == Pace::Go
        {
            let batch = (sent + 1..=sent + 16).map(|n| proto::SendItem {
                r#ref: n,
                request: Some(support::send_to(&peer, message(channel, &id(channel, n), payload(&id(channel, n))))),
            });
            items.send(proto::SendStreamRequest { items: batch.collect() }).await.unwrap();
            (sent, open) = (sent + 16, open + 16);
            continue;
        }
        let frame = tokio::select! {
            frame = timeout(DEADLINE, receipts.message()) => frame.expect("receipts in time").unwrap(),
            _ = paces.changed() => continue,
        };
        let Some(frame) = frame else { return sent };
        let Some(send_stream_response::Frame::Receipts(batch)) = frame.frame else { continue };
        for receipt in batch.receipts {
            let state = receipt.response.as_ref().map(proto::SendResponse::state);
            assert_eq!(state, Some(MessageState::Stored), "{receipt:?}");
            assert!(known.stored.lock().unwrap().entry(channel).or_default().insert(receipt.r#ref), "told twice");
            open -= 1;
        }
    }
}

/// Peeks into an inbox until all that is expected was seen. Panics at what is
/// out of order, twice or broken; the error says what is not there.
async fn peek(daemon: &Daemon, channel: &str, expected: &BTreeSet<u64>) -> Result<(), String> {
    let request = proto::ListenRequest {
        channel: channel.to_owned(),
        peek: true,
        max_batch: 1000,
        ..proto::ListenRequest::default()
    };
    let mut frames = daemon.client().await.listen(request).await.unwrap().into_inner();
    let (mut next, mut cursor) = (1, 0);
    let last = expected.last().copied().unwrap_or(0);
    let deadline = Instant::now() + PATIENCE;
    while next <= last {
        let Ok(frame) = timeout_at(deadline, frames.message()).await else {
            let mut lost = format!("channel {channel:?}:");
            let missing = expected.range(next..).count();
            write!(lost, " {missing} of {} lost, from {next}", expected.len()).unwrap();
            return Err(lost);
        };
        let Some(Frame::Deliveries(batch)) = frame.unwrap().unwrap().frame else { continue };
        for delivery in batch.deliveries {
            let message = delivery.message.unwrap();
            if number(&message.id) > next && expected.contains(&next) {
                return Err(format!("channel {channel:?}: {next} is lost, {} follows", message.id));
            }
            assert_eq!((message.id.as_str(), message.sequence), (id(channel, next).as_str(), next));
            assert!(message.payload == payload(&message.id), "{} has another payload", message.id);
            assert!(delivery.cursor > cursor);
            (next, cursor) = (next + 1, delivery.cursor);
        }
    }
    Ok(())
}

/// Where a consumer stands; makes it if it is new.
async fn standing(daemon: &Daemon, channel: &str, consumer: &str) -> u64 {
    let request = proto::ListenRequest {
        channel: channel.to_owned(),
        consumer: consumer.to_owned(),
        ack_mode: AckMode::Manual.into(),
        ..proto::ListenRequest::default()
    };
    let mut frames = daemon.client().await.listen(request).await.unwrap().into_inner();
    match frames.message().await.unwrap().unwrap().frame {
        Some(Frame::Ready(ready)) => ready.cursor,
        other => panic!("{other:?}"),
    }
}

async fn cut_receiver(victim: &mut Victim, sender: &Daemon) -> Result<(), String> {
    for channel in CHANNELS {
        // Keeps all in the inbox, whatever the other one acknowledges.
        standing(&victim.daemon, channel, "keeper").await;
        standing(&victim.daemon, channel, "reader").await;
    }
    victim.settle().await;
    let known = Arc::new(Known::default());
    let peer = victim.daemon.peer_id().await;
    let mut streams = JoinSet::new();
    for channel in CHANNELS {
        let (client, peer, known) = (sender.client().await, peer.clone(), known.clone());
        streams.spawn(async move { (channel, stream(client, peer, channel, known).await) });
    }
    for round in 0..ROUNDS {
        let enough = known.count() + 100 + 37 * round;
        let read = eventually("messages stored", || async {
            let first = known.stored.lock().unwrap().get("").and_then(|stored| stored.last().copied());
            first.filter(|_| known.count() >= enough)
        })
        .await;
        let ack = proto::AckRequest { consumer: "reader".to_owned(), cursor: read, ..proto::AckRequest::default() };
        let read = victim.daemon.client().await.ack(ack).await.unwrap().into_inner().cursor;
        victim.cut.cut(&mut victim.daemon.take_child());
        known.pace.send_replace(Pace::Pause);
        // Nothing is stored from here to the restart.
        let stored = known.stored.lock().unwrap().clone();
        victim.daemon.restart().await;
        for (channel, expected) in &stored {
            peek(&victim.daemon, channel, expected).await.map_err(|lost| format!("round {round}: {lost}"))?;
        }
        assert_eq!(standing(&victim.daemon, "", "reader").await, read, "an Ack was lost");
        victim.is_sound().await;
        sender_dials(sender, &peer).await;
        known.pace.send_replace(Pace::Go);
    }
    known.pace.send_replace(Pace::Enough);
    while let Some(ended) = streams.join_next().await {
        let (channel, sent) = ended.unwrap();
        peek(&victim.daemon, channel, &(1..=sent).collect()).await?;
        let got = keeper(&victim.daemon, channel, sent).await;
        assert!(got.iter().map(|delivery| delivery.message.as_ref().unwrap().sequence).eq(1..=sent));
    }
    assert_eq!(victim.daemon.status().await.lost_by_restore, 0);
    assert_eq!(sender.status().await.lost_by_restore, 0);
    assert!(waiting(sender).await.is_empty());
    Ok(())
}

/// Now rather than after its backoff.
async fn sender_dials(sender: &Daemon, peer: &str) {
    let target = Some(proto::connect_request::Target::Peer(peer.to_owned()));
    sender.client().await.connect(proto::ConnectRequest { target }).await.unwrap();
}

/// Exactly what a consumer gets: so many, and no more.
async fn keeper(daemon: &Daemon, channel: &str, count: u64) -> Vec<proto::Delivery> {
    let request = proto::ListenRequest {
        channel: channel.to_owned(),
        consumer: "keeper".to_owned(),
        ack_mode: AckMode::Manual.into(),
        max_batch: 1000,
        ..proto::ListenRequest::default()
    };
    let mut frames = daemon.client().await.listen(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while (all.len() as u64) < count {
        let frame = timeout(DEADLINE, frames.message()).await.expect("deliveries in time").unwrap().unwrap();
        if let Some(Frame::Deliveries(batch)) = frame.frame {
            all.extend(batch.deliveries);
        }
    }
    let more = timeout(Duration::from_millis(300), frames.message()).await;
    assert!(more.is_err(), "more came: {more:?}");
    all
}

async fn linked(sender: &Daemon, victim: &Victim) {
    sender.add(&victim.daemon).await;
    victim.daemon.add(sender).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_stored_survives_a_power_cut() {
    let Some(cut) = shim("what_a_receiver_stored_survives_a_power_cut") else { return };
    let sender = Daemon::start_with(tcp()).await;
    let mut victim = Victim::start(cut, Synchronous::Full).await;
    linked(&sender, &victim).await;
    cut_receiver(&mut victim, &sender).await.unwrap();
}

/// Proves that the rounds bite.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_sync_is_caught() {
    let Some(cut) = shim("a_receiver_that_does_not_sync_is_caught") else { return };
    let sender = Daemon::start_with(tcp()).await;
    let mut victim = Victim::start(cut, Synchronous::Normal).await;
    linked(&sender, &victim).await;
    let caught = cut_receiver(&mut victim, &sender).await.unwrap_err();
    assert!(caught.contains("lost"), "{caught}");
}
