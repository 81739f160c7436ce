//! A peer that misuses the link protocol against a whole daemon: the daemon
//! goes on, its memory stays bounded, and nothing that it keeps is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, SwarmBuilder, identity::Keypair, noise, tcp, yamux};
use libp2p_stream::{Control, IncomingStreams};
use p2p_node::{
    proto::{self, MessageState, Wait},
    types::{Content, Presence},
    wire::{
        Back, Data, Decoder, Ephemeral, FEATURE_PRESENCE, FRAME_PREFIX_BYTES, Forward, Full, Hello, LaneState, Limit,
        Open, Outcome, Query, Skip, Welcome, encode_back, encode_forward,
    },
};
use support::{Daemon, Options, eventually, message, send_to};
use tokio::{task::JoinHandle, time::timeout};

/// For one step of the hostile peer.
const STEP: Duration = Duration::from_secs(20);
/// A write that takes this long is held up by the daemon, as it may be.
const STALL: Duration = Duration::from_secs(1);
/// Most memory that the daemon ever had resident, in KiB: of a debug build, with the memory of
/// links (48 MiB) and the store's cache.
const MAX_RSS_KIB: u64 = 300 * 1024;
const LINK: StreamProtocol = StreamProtocol::new("/p2p-node/link/1");
const LAST: u64 = i64::MAX as u64;
const CHANNEL: &str = "hostile";
/// Messages that wait for the hostile peer.
const QUEUED: usize = 200;

/// The hostile peer; each of its connections is a new one of the same id.
struct Raw {
    keys: Keypair,
    target: PeerId,
    address: Multiaddr,
}

struct Connection {
    target: PeerId,
    control: Control,
    incoming: IncomingStreams,
    task: JoinHandle<()>,
}

impl Raw {
    async fn new(target: &Daemon) -> Self {
        let address = eventually("a TCP address", || async {
            target.status().await.listen_addresses.into_iter().find(|address| address.contains("/tcp/"))
        })
        .await;
        let target: PeerId = target.peer_id().await.parse().unwrap();
        let address: Multiaddr = address.parse().unwrap();
        let address = address.with_p2p(target).unwrap();
        Self { keys: Keypair::generate_ed25519(), target, address }
    }

    fn id(&self) -> String {
        self.keys.public().to_peer_id().to_string()
    }

    fn connect(&self) -> Connection {
        let mut swarm = SwarmBuilder::with_existing_identity(self.keys.clone())
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| libp2p_stream::Behaviour::new())
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(STEP))
            .build();
        let mut control = swarm.behaviour().new_control();
        let incoming = control.accept(LINK).unwrap();
        swarm.dial(self.address.clone()).unwrap();
        let task = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Connection { target: self.target, control, incoming, task }
    }
}

impl Connection {
    async fn open(&mut self) -> Stream {
        timeout(STEP, self.control.open_stream(self.target, LINK)).await.expect("in time").unwrap()
    }

    /// The link that the daemon opens; one of another connection's is none.
    async fn accept(&mut self) -> Stream {
        timeout(STEP, self.incoming.next()).await.expect("a link in time").expect("a running swarm").1
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What must come of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The link is closed, whoever the peer is.
    Closed,
    /// It is closed for a trusted peer; another one is not listened to.
    ClosedIfTrusted,
    /// Either will do.
    Whatever,
}

/// Something that a hostile sender writes.
struct Entry {
    name: &'static str,
    /// After HELLO, and with lane 1 open.
    greeted: bool,
    /// Whether the answers are read.
    reads: bool,
    bytes: Vec<u8>,
    then: Then,
}

fn content(id: String) -> Content {
    Content {
        id,
        kind: String::new(),
        reply_to: String::new(),
        timestamp: 0,
        metadata: BTreeMap::new(),
        payload: vec![7; 64].into(),
    }
}

fn hello() -> Forward {
    Forward::Hello(Hello { version: 1, features: 0 })
}

fn told(text: &str) -> Forward {
    let roles = vec!["server".to_owned()];
    Forward::Presence(Presence { name: String::new(), roles, text: text.to_owned() })
}

fn open(lane: u32) -> Forward {
    Forward::Open(Open { lane, channel: format!("in-{lane}").into(), epoch: 7, previous: Vec::new() })
}

fn data(lane: u32, seq: u64) -> Forward {
    Forward::Data(Data { lane, seq, tag: seq, ttl_left_ms: 60_000, after: None, content: content(format!("m{seq}")) })
}

fn forward(frames: impl IntoIterator<Item = Forward>) -> Vec<u8> {
    let encode = |frame| encode_forward(&frame).unwrap();
    frames.into_iter().map(encode).flat_map(|frame| [frame.head, frame.payload].concat()).collect()
}

fn back(frames: impl IntoIterator<Item = Back>) -> Vec<u8> {
    frames.into_iter().flat_map(|frame| encode_back(&frame).unwrap().head.to_vec()).collect()
}

fn entries() -> Vec<Entry> {
    let skip = |to| Forward::Skip(Skip { lane: 1, from: 1, to, tag: 1, lost: false, id: None });
    let query = |n: u32| Forward::Query(Query { lane: 1, id: format!("q{n}") });
    let ephemeral = |number| {
        let content = content(format!("e{number}"));
        Forward::Ephemeral(Ephemeral { number, channel: "nobody".into(), content })
    };
    let entry = |name, greeted, bytes, then| Entry { name, greeted, reads: true, bytes, then };
    use Then::{Closed, ClosedIfTrusted, Whatever};
    vec![
        entry("frames before HELLO", false, forward([open(1), data(1, 1)]), Closed),
        entry("HELLO twice", true, forward([hello()]), Closed),
        entry("DATA of an unknown lane", true, forward((1..1000).map(|seq| data(99, seq))), Whatever),
        entry("positions out of turn", true, forward([data(1, 5), data(1, 3)]), ClosedIfTrusted),
        entry("SKIP to the last position", true, forward([skip(LAST), data(1, LAST)]), ClosedIfTrusted),
        entry("5,000 OPENs", true, forward((2..5002).map(open)), Whatever),
        entry("20,000 QUERYs", true, forward((0..20_000).map(query)), Whatever),
        entry("100,000 PRESENCEs", true, forward((0..100_000).map(|n| told(&n.to_string()))), ClosedIfTrusted),
        entry("garbage", false, vec![0xff; 4096], Closed),
        entry("garbage after HELLO", true, (0..4096u32).map(|n| (n * 31 % 251) as u8).collect(), Closed),
        entry("an oversized length", true, (64u32 << 20).to_be_bytes().to_vec(), Closed),
        Entry {
            name: "20,000 frames and no answer read",
            greeted: true,
            reads: false,
            bytes: forward((0..20_000).map(ephemeral)),
            then: Whatever,
        },
    ]
}

async fn read_body(stream: &mut Stream) -> std::io::Result<Vec<u8>> {
    let mut prefix = [0; FRAME_PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let mut body = vec![0; Decoder::new(1 << 20).body_len(prefix).unwrap()];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn read_back(stream: &mut Stream) -> Back {
    let body = timeout(STEP, read_body(stream)).await.expect("a frame in time").unwrap();
    Decoder::new(1 << 20).back(body.into()).unwrap()
}

/// The next OPEN of the daemon; `None` once the link has ended.
async fn read_open(stream: &mut Stream) -> Option<u32> {
    loop {
        let body = timeout(STEP, read_body(stream)).await.expect("a frame in time").ok()?;
        if let Forward::Open(open) = Decoder::new(1 << 20).forward(body.into()).unwrap() {
            return Some(open.lane);
        }
    }
}

/// Writes until the daemon takes no more. Both ends of a link may be closed by
/// then, so an error is as good as the end.
async fn pour(stream: &mut (impl futures::AsyncWrite + Unpin), bytes: &[u8]) {
    for piece in bytes.chunks(64 * 1024) {
        match timeout(STALL, stream.write_all(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
    let _ = timeout(STALL, stream.flush()).await;
}

/// Pours and reads at the same time.
async fn pour_and_read(stream: Stream, bytes: &[u8], closed: bool, name: &str) {
    let (mut reader, mut writer) = stream.split();
    let ends = async move {
        let mut rest = [0; 16 * 1024];
        while reader.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    };
    let reading = tokio::spawn(ends);
    pour(&mut writer, bytes).await;
    if closed {
        timeout(STEP, reading).await.unwrap_or_else(|_| panic!("{name}: the link is not closed")).unwrap();
    } else {
        reading.abort();
    }
}

async fn is_well(daemon: &Daemon, after: &str) {
    let status = timeout(STEP, daemon.status()).await;
    assert!(status.is_ok(), "no Status after {after}");
    let process = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = process.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let rss: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(rss < MAX_RSS_KIB, "{rss} KiB after {after}");
}

fn with_tcp() -> Options {
    let mut options = support::loopback();
    options.args.extend(["--listen", "/ip4/127.0.0.1/tcp/0"].map(ToOwned::to_owned));
    options
}

/// The daemon under attack, a friend of its own and the hostile peer.
async fn attacked() -> (Daemon, Daemon, Raw) {
    let (victim, friend) = (Daemon::start_with(with_tcp()).await, Daemon::start().await);
    victim.add(&friend).await;
    friend.add(&victim).await;
    let raw = Raw::new(&victim).await;
    (victim, friend, raw)
}

async fn trust(victim: &Daemon, raw: &Raw) {
    let request = proto::AddPeerRequest { peer: raw.id(), ..proto::AddPeerRequest::default() };
    victim.client().await.add_peer(request).await.unwrap();
}

/// Messages go both ways between the victim and its friend.
async fn still_work(victim: &Daemon, friend: &Daemon) {
    for (from, to) in [(victim, friend), (friend, victim)] {
        let peer = to.peer_id().await;
        let sent = from.client().await.send(send_to(&peer, message("alive", "", "x"))).await.unwrap().into_inner();
        assert_eq!(sent.state(), MessageState::Stored, "{sent:?}");
    }
}

async fn run_entries(victim: &Daemon, raw: &Raw, trusted: bool) {
    for entry in entries() {
        let mut connection = raw.connect();
        let mut stream = connection.open().await;
        if entry.greeted {
            pour(&mut stream, &forward([hello(), open(1)])).await;
            loop {
                match read_back(&mut stream).await {
                    Back::LaneState(state) => break assert_eq!((trusted, state.high), (true, 0)),
                    Back::Refused(_) => break assert!(!trusted),
                    other => assert!(matches!(other, Back::Welcome(_)), "{other:?}"),
                }
            }
        }
        if entry.reads {
            let closed = entry.then == Then::Closed || (trusted && entry.then == Then::ClosedIfTrusted);
            pour_and_read(stream, &entry.bytes, closed, entry.name).await;
        } else {
            pour(&mut stream, &entry.bytes).await;
        }
        is_well(victim, entry.name).await;
    }
    let mut connection = raw.connect();
    let mut streams = vec![connection.open().await];
    for _ in 0..200 {
        if let Ok(mut stream) = timeout(STEP, connection.control.open_stream(raw.target, LINK)).await.unwrap() {
            pour(&mut stream, &forward([hello()])).await;
            streams.push(stream);
        }
    }
    is_well(victim, "200 links").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_misuses_links_harms_nobody() {
    let (victim, friend, raw) = attacked().await;
    run_entries(&victim, &raw, false).await;
    still_work(&victim, &friend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_peer_that_misuses_links_harms_nobody() {
    let (victim, friend, raw) = attacked().await;
    trust(&victim, &raw).await;
    run_entries(&victim, &raw, true).await;
    still_work(&victim, &friend).await;
}

fn welcome() -> Back {
    Back::Welcome(Welcome { version: 1, features: 0, max_message_bytes: 1 << 20 })
}

fn lane_state(lane: u32, high: u64, inherited: u64) -> Back {
    Back::LaneState(LaneState { lane, high, inherited, floor: inherited, tag: 1, gaps: Vec::new() })
}

/// Name, frames for a lane, and whether the link is closed for it.
type Answer = (&'static str, fn(u32) -> Vec<u8>, bool);

/// Answers to the lane that the daemon opened, and whether it closes the link.
fn answers() -> Vec<Answer> {
    vec![
        ("ACK of something never sent", |lane| back([lane_state(lane, 0, 0), Back::Ack { lane, high: LAST }]), true),
        ("WELCOME twice", |_| back([welcome()]), true),
        ("LANE_STATE twice", |lane| back([lane_state(lane, 0, 0), lane_state(lane, 0, 0)]), true),
        (
            "FULL of nothing",
            |lane| back([lane_state(lane, 0, 0), Back::Full(Full { lane, next: LAST, limit: Limit::Inbox })]),
            true,
        ),
        (
            "100,000 OUTCOMEs",
            |lane| {
                let outcome = |n| Back::Outcome(Outcome { lane, id: format!("{n:0>128}"), stored: true });
                back([lane_state(lane, 0, 0)].into_iter().chain((0..100_000).map(outcome)))
            },
            false,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_peer_that_answers_nonsense_loses_no_message() {
    let (victim, friend, raw) = attacked().await;
    trust(&victim, &raw).await;
    queue(&victim, &raw).await;
    for (name, answer, closed) in answers() {
        let mut connection = raw.connect();
        let mut stream = connection.accept().await;
        pour(&mut stream, &back([welcome()])).await;
        let lane = read_open(&mut stream).await.expect("an OPEN");
        pour_and_read(stream, &answer(lane), closed, name).await;
        is_well(&victim, name).await;
    }
    absurd_states(&victim, &raw).await;
    resends_without_end(&victim, &raw).await;
    still_work(&victim, &friend).await;
    all_queued(&victim, &raw).await;
}

/// Whatever lane is opened, the peer claims to have all of it.
async fn absurd_states(victim: &Daemon, raw: &Raw) {
    for (high, inherited) in [(LAST, 0), (0, LAST), (LAST, LAST)] {
        let mut connection = raw.connect();
        let mut stream = connection.accept().await;
        pour(&mut stream, &back([welcome()])).await;
        for _ in 0..10 {
            // Nothing more is opened once a state was taken.
            let Ok(Some(lane)) = timeout(STALL, read_open(&mut stream)).await else { break };
            pour(&mut stream, &back([lane_state(lane, high, inherited)])).await;
        }
        is_well(victim, &format!("LANE_STATE of {high} and {inherited}")).await;
    }
}

/// Has everything sent again and again, and reads none of it.
async fn resends_without_end(victim: &Daemon, raw: &Raw) {
    let mut connection = raw.connect();
    let mut stream = connection.accept().await;
    pour(&mut stream, &back([welcome()])).await;
    let lane = read_open(&mut stream).await.expect("an OPEN");
    pour(&mut stream, &back([lane_state(lane, 0, 0)])).await;
    // Rows come, so that there is something to refuse.
    timeout(STEP, read_body(&mut stream)).await.expect("a row in time").unwrap();
    let again = [Back::Full(Full { lane, next: 1, limit: Limit::Inbox }), Back::Ready { lane }];
    let frames = (0..10_000).flat_map(|_| again.clone());
    // The last one breaks the rules, so that a new link tells that all of them
    // were taken.
    timeout(STEP, stream.write_all(&back(frames.chain([welcome()])))).await.expect("taken in time").unwrap();
    timeout(STEP, stream.flush()).await.expect("taken in time").unwrap();
    drop(connection.accept().await);
    is_well(victim, "FULL and READY by turns").await;
}

async fn all_queued(victim: &Daemon, raw: &Raw) {
    let request = proto::ListMessagesRequest { peer: raw.id(), page_size: 1000, ..Default::default() };
    let listed = victim.client().await.list_messages(request).await.unwrap().into_inner();
    assert_eq!(listed.messages.len(), QUEUED);
    for message in listed.messages {
        assert!(matches!(message.state(), MessageState::Queued | MessageState::Sent), "{message:?}");
    }
}

/// Messages of 64 KiB on lane 1.
fn flood(seqs: std::ops::Range<u64>) -> Vec<u8> {
    let large = |seq| {
        let content = Content { payload: vec![7; 64 << 10].into(), ..content(format!("m{seq}")) };
        Forward::Data(Data { lane: 1, seq, tag: seq, ttl_left_ms: 60_000, after: None, content })
    };
    forward(seqs.map(large))
}

/// Three times what a link may hold in memory.
const FLOOD: std::ops::Range<u64> = 100..484;

async fn greet(stream: &mut Stream) -> Back {
    pour(stream, &forward([hello()])).await;
    read_back(stream).await
}

/// What is not taken holds no memory.
#[tokio::test(flavor = "multi_thread")]
async fn ignored_messages_of_a_stranger_stop_no_other_stranger() {
    let victim = Daemon::start_with(with_tcp()).await;
    let (flooding, other) = (Raw::new(&victim).await, Raw::new(&victim).await);
    let (mut connection, mut second) = (flooding.connect(), other.connect());
    let mut stream = connection.open().await;
    assert!(matches!(greet(&mut stream).await, Back::Refused(_)));
    timeout(STEP, stream.write_all(&flood(FLOOD))).await.expect("ignored, not held up").unwrap();
    assert!(matches!(greet(&mut second.open().await).await, Back::Refused(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_behind_a_refused_one_do_not_stop_the_link() {
    let mut options = with_tcp();
    options.config = "[limits]\nmax_message_bytes = \"128 KiB\"\nmax_peer_bytes = \"1 MiB\"\n".to_owned();
    let victim = Daemon::start_with(options).await;
    let raw = Raw::new(&victim).await;
    trust(&victim, &raw).await;
    let mut connection = raw.connect();
    let mut stream = connection.open().await;
    assert!(matches!(greet(&mut stream).await, Back::Welcome(_)));
    pour(&mut stream, &forward([open(1)])).await;
    assert!(matches!(read_back(&mut stream).await, Back::LaneState(_)));
    timeout(STEP, flood_until_full(&mut stream)).await.expect("refused in time");
    // All that comes behind the refused one is ignored.
    timeout(STEP, stream.write_all(&flood(FLOOD))).await.expect("ignored, not held up").unwrap();
    pour(&mut stream, &forward([open(2)])).await;
    loop {
        match read_back(&mut stream).await {
            Back::LaneState(state) if state.lane == 2 => break,
            _ => {}
        }
    }
}

/// Fills the inbox.
async fn flood_until_full(stream: &mut Stream) {
    stream.write_all(&flood(1..51)).await.unwrap();
    stream.flush().await.unwrap();
    while !matches!(read_back(stream).await, Back::Full(_)) {}
}

/// Messages that wait for the hostile peer.
async fn queue(victim: &Daemon, raw: &Raw) {
    let mut client = victim.client().await;
    for n in 0..QUEUED {
        let request = send_to(&raw.id(), message(CHANNEL, &format!("kept-{n}"), vec![1; 256]));
        client.send(proto::SendRequest { wait: Wait::Queued.into(), ..request }).await.unwrap();
    }
}

/// Opens the lane that the daemon asks for, as one that has nothing.
async fn take_lane(stream: &mut Stream) -> u32 {
    pour(stream, &back([welcome()])).await;
    let lane = read_open(stream).await.expect("an OPEN");
    pour(stream, &back([lane_state(lane, 0, 0)])).await;
    lane
}

/// What is refused again and again is sent ever more slowly.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_refuses_and_is_ready_by_turns_gets_little() {
    let victim = Daemon::start_with(with_tcp()).await;
    let raw = Raw::new(&victim).await;
    trust(&victim, &raw).await;
    queue(&victim, &raw).await;
    let mut connection = raw.connect();
    let mut stream = connection.accept().await;
    let lane = take_lane(&mut stream).await;
    // Rows come, so that there is something to refuse.
    timeout(STEP, read_body(&mut stream)).await.expect("a row in time").unwrap();
    let (mut reader, mut writer) = stream.split();
    let counting = tokio::spawn(async move {
        let (mut rows, mut prefix) = (0, [0; FRAME_PREFIX_BYTES]);
        while reader.read_exact(&mut prefix).await.is_ok() {
            let mut body = vec![0; Decoder::new(1 << 20).body_len(prefix).unwrap()];
            reader.read_exact(&mut body).await.unwrap();
            rows += usize::from(matches!(Decoder::new(1 << 20).forward(body.into()), Ok(Forward::Data(_))));
        }
        rows
    });
    let again = back([Back::Full(Full { lane, next: 1, limit: Limit::Inbox }), Back::Ready { lane }]);
    let mut refused = 0;
    let end = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < end {
        writer.write_all(&again).await.unwrap();
        writer.flush().await.unwrap();
        refused += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Breaks the rules, so that the link ends.
    writer.write_all(&back([welcome()])).await.unwrap();
    writer.flush().await.unwrap();
    let rows = timeout(STEP, counting).await.expect("the end of the link").unwrap();
    assert!(refused > 100, "{refused}");
    assert!(((QUEUED - 1)..QUEUED + 20).contains(&rows), "{rows} rows sent to a peer that refused {refused} times");
}

/// A peer that says on every link that its store is an older copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_forgets_again_and_again_is_counted_and_told_of_once() {
    const TAKEN: u64 = 3;
    let victim = Daemon::start_with(with_tcp()).await;
    let raw = Raw::new(&victim).await;
    trust(&victim, &raw).await;
    queue(&victim, &raw).await;
    let mut connection = raw.connect();
    let mut stream = connection.accept().await;
    let lane = take_lane(&mut stream).await;
    for _ in 0..TAKEN {
        timeout(STEP, read_body(&mut stream)).await.expect("a row in time").unwrap();
    }
    pour(&mut stream, &back([Back::Ack { lane, high: TAKEN }])).await;
    eventually("the acknowledgement", || async {
        let request = proto::ListPeersRequest::default();
        let peers = victim.client().await.list_peers(request).await.unwrap().into_inner().peers;
        peers.iter().any(|row| row.sent == TAKEN).then_some(())
    })
    .await;
    drop((stream, connection));
    for _ in 0..5 {
        let mut connection = raw.connect();
        let mut stream = connection.accept().await;
        take_lane(&mut stream).await;
        // SKIP or rows: the state was taken.
        timeout(STEP, read_body(&mut stream)).await.expect("a frame in time").unwrap();
    }
    eventually("the loss counted", || async { (victim.status().await.lost_by_restore > 0).then_some(()) }).await;
    assert!(victim.status().await.lost_by_restore <= TAKEN);
    assert_eq!(victim.log().matches("was replaced by an older copy").count(), 1, "told once a minute");
}

/// As a trusted peer of another version, or none that plays by the rules, sees
/// presence and shows it.
#[tokio::test(flavor = "multi_thread")]
async fn presence_goes_only_to_those_who_take_it_and_ends_with_their_links() {
    let (victim, _friend, raw) = attacked().await;
    let row = || async {
        let peers = victim.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
        peers.peers.into_iter().find(|row| row.peer_id == raw.id()).unwrap_or_default()
    };
    let hello = |features| forward([Forward::Hello(Hello { version: 1, features })]);
    let welcome = |features| back([Back::Welcome(Welcome { version: 1, features, max_message_bytes: 1 << 20 })]);

    // A stranger that tells nevertheless is not heard.
    let mut connection = raw.connect();
    let mut stream = connection.open().await;
    pour(&mut stream, &[hello(FEATURE_PRESENCE), forward([told("stranger")])].concat()).await;
    assert!(matches!(read_back(&mut stream).await, Back::Refused(_)));
    assert_eq!(row().await.presence, "");

    trust(&victim, &raw).await;
    let request = proto::SetPresenceRequest { roles: vec!["app".into()], text: "hello".into() };
    let mut announced = victim.client().await.set_presence(request).await.unwrap().into_inner();
    announced.message().await.unwrap();

    // One without the bit is never told.
    let mut stream = connection.accept().await;
    pour(&mut stream, &welcome(0)).await;
    while let Ok(body) = timeout(STALL, read_body(&mut stream)).await {
        let frame = Decoder::new(1 << 20).forward(body.unwrap().into()).unwrap();
        assert!(!matches!(frame, Forward::Presence(_)), "{frame:?}");
    }
    drop((stream, connection));

    // One with it, and bits that nobody knows yet, is told at once.
    let mut connection = raw.connect();
    let mut stream = connection.accept().await;
    pour(&mut stream, &welcome(u64::MAX)).await;
    let presence = loop {
        let body = timeout(STEP, read_body(&mut stream)).await.expect("a frame in time").unwrap();
        if let Forward::Presence(presence) = Decoder::new(1 << 20).forward(body.into()).unwrap() {
            break presence;
        }
    };
    assert_eq!((presence.roles, presence.text), (vec!["app".to_owned()], "hello".to_owned()));

    // What it tells is shown until a link comes that will not tell, or none is
    // left.
    let mut telling = connection.open().await;
    pour(&mut telling, &[hello(FEATURE_PRESENCE), forward([told("one"), told("two")])].concat()).await;
    eventually("what it tells", || async { (row().await.presence == "two").then_some(()) }).await;
    assert_eq!(row().await.roles, ["server"]);
    let mut silent = connection.open().await;
    pour(&mut silent, &hello(0)).await;
    eventually("nothing", || async { row().await.presence.is_empty().then_some(()) }).await;
    let mut telling = connection.open().await;
    pour(&mut telling, &[hello(FEATURE_PRESENCE), forward([told("three")])].concat()).await;
    eventually("what it tells", || async { (row().await.presence == "three").then_some(()) }).await;
    drop((telling, silent));
    eventually("nothing, still online", || async {
        let row = row().await;
        (row.online && row.presence.is_empty() && row.roles.is_empty()).then_some(())
    })
    .await;
}
