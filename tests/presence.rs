//! Who is there: WatchPeers and SetPresence between real daemons.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{
    collections::HashMap,
    io::BufRead as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use p2p_node::proto::{self, ChangeCause, Peer, PeerChange, watch_peers_response::Frame};
use support::{Client, DEADLINE, Daemon, Options, eventually, loopback, pair, signal};
use tokio::time::timeout;
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

/// How soon a watcher knows of what happened next door, on a machine that does
/// other things too.
const SOON: Duration = Duration::from_secs(1);

/// A watcher's stream, and the table that its frames make.
struct Watch {
    stream: Streaming<proto::WatchPeersResponse>,
    rows: HashMap<String, Peer>,
    seen: Vec<PeerChange>,
    lagged: u64,
}

impl Watch {
    async fn open(client: &mut Client, book_only: bool) -> Self {
        let mut stream = client.watch_peers(proto::WatchPeersRequest { book_only }).await.unwrap().into_inner();
        let first = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
        assert!(matches!(first.frame, Some(Frame::Ready(ready)) if !ready.instance_id.is_empty()));
        let mut watch = Self { stream, rows: HashMap::new(), seen: Vec::new(), lagged: 0 };
        while !watch.next().await {}
        watch
    }

    async fn of(daemon: &Daemon) -> Self {
        Self::open(&mut daemon.client().await, false).await
    }

    /// Takes a frame; true when it ended a snapshot.
    async fn next(&mut self) -> bool {
        let message = timeout(DEADLINE, self.stream.message()).await.expect("a frame in time");
        match message.unwrap().expect("an open stream").frame.unwrap() {
            Frame::Ready(_) => panic!("ready twice"),
            Frame::Lagged(lagged) => {
                self.lagged += lagged.changes;
                self.rows.clear();
            }
            Frame::Snapshot(part) => {
                self.rows.extend(part.peers.into_iter().map(|peer| (peer.peer_id.clone(), peer)));
                return part.last;
            }
            Frame::Changes(changes) => {
                for change in changes.changes {
                    let row = change.peer.clone().expect("a row");
                    if change.cause() == ChangeCause::Removed {
                        assert!(self.rows.remove(&row.peer_id).is_some(), "removed what was not there: {row:?}");
                    } else {
                        self.rows.insert(row.peer_id.clone(), row);
                    }
                    self.seen.push(change);
                }
            }
        }
        false
    }

    /// Reads until a change of this cause; returns it.
    async fn until(&mut self, cause: ChangeCause) -> PeerChange {
        self.find(&format!("{cause:?}"), |change| change.cause() == cause).await
    }

    /// Reads until a change that fits, and drops those up to it.
    async fn find(&mut self, what: &str, fits: impl Fn(&PeerChange) -> bool) -> PeerChange {
        loop {
            if let Some(at) = self.seen.iter().position(&fits) {
                return self.seen.drain(..=at).next_back().unwrap();
            }
            let read = timeout(DEADLINE, self.next()).await;
            assert!(read.is_ok(), "waiting for {what}: {:?}", self.seen);
        }
    }
}

async fn set_presence(
    client: &mut Client,
    roles: &[&str],
    text: &str,
) -> Result<Streaming<proto::SetPresenceResponse>, tonic::Status> {
    let roles = roles.iter().map(ToString::to_string).collect();
    let mut stream =
        client.set_presence(proto::SetPresenceRequest { roles, text: text.to_owned() }).await?.into_inner();
    stream.message().await?.expect("ready");
    Ok(stream)
}

async fn row(daemon: &Daemon, peer: &str) -> Option<Peer> {
    let peers = daemon.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
    peers.peers.into_iter().find(|row| row.peer_id == peer)
}

async fn is_online(daemon: &Daemon, peer: &str) -> Peer {
    eventually("the peer online", || async { row(daemon, peer).await.filter(|row| row.online) }).await
}

fn named(name: &str) -> Options {
    let mut options = loopback();
    options.config = format!("name = \"{name}\"\n");
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_first_and_each_change_has_its_cause() {
    let (a, b) = (Daemon::start().await, Daemon::start_with(named("berry")).await);
    let id = b.peer_id().await;
    let mut watch = Watch::of(&a).await;
    assert!(watch.rows.is_empty(), "{:?}", watch.rows);
    b.add(&a).await;
    a.add(&b).await;
    let added = watch.until(ChangeCause::Book).await.peer.unwrap();
    assert_eq!((added.peer_id.as_str(), added.in_book, added.trust()), (id.as_str(), true, proto::Trust::Trusted));
    let row = watch.find("online", |change| change.peer.as_ref().unwrap().online).await.peer.unwrap();
    assert!(row.route() == proto::Route::Lan && row.online_since > 0, "{row:?}");
    let told = watch.find("the name", |change| change.peer.as_ref().unwrap().name == "berry").await;
    assert_eq!(told.cause(), ChangeCause::Presence);
    assert_eq!(is_online(&a, &id).await.name, "berry");

    // A second watcher begins with what is there.
    let second = Watch::open(&mut a.client().await, true).await;
    assert_eq!(second.rows.keys().collect::<Vec<_>>(), [&id]);
    assert_eq!(second.rows[&id].name, "berry");

    let request = proto::AddPeerRequest { peer: id.clone(), alias: "b".into(), ..Default::default() };
    a.client().await.add_peer(request).await.unwrap();
    let renamed = watch.until(ChangeCause::Book).await.peer.unwrap();
    assert!(renamed.alias == "b" && renamed.online && renamed.name == "berry", "{renamed:?}");

    a.client().await.remove_peer(proto::RemovePeerRequest { peer: id.clone() }).await.unwrap();
    let left = watch.find("no entry", |change| !change.peer.as_ref().unwrap().in_book).await;
    let left = left.peer.unwrap();
    assert!(left.name.is_empty() && left.roles.is_empty(), "{left:?}");
    // b, which trusts a, may come back as a stranger; once it is gone too,
    // nothing is known of it.
    drop(b);
    let gone = watch.until(ChangeCause::Removed).await;
    assert_eq!(gone.peer.unwrap(), Peer { peer_id: id, ..Peer::default() });
    assert!(watch.rows.is_empty(), "{:?}", watch.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn online_is_told_within_a_second_of_connecting() {
    let (a, b) = (Daemon::start().await, Daemon::start().await);
    let status = b.status().await;
    let mut watch = Watch::of(&a).await;
    let address = status.listen_addresses[0].clone();
    let target = Some(proto::connect_request::Target::Address(address));
    a.client().await.connect(proto::ConnectRequest { target }).await.unwrap();
    let connected = Instant::now();
    let change = watch.until(ChangeCause::Online).await;
    assert!(connected.elapsed() < SOON, "{:?}", connected.elapsed());
    let row = change.peer.unwrap();
    assert!(row.online && !row.in_book && row.trust() == proto::Trust::Unspecified, "{row:?}");
    assert!(change.detail.contains("LAN"), "{}", change.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_appear_at_the_peer_and_vanish_with_the_stream() {
    let (a, b) = pair().await;
    let id = b.peer_id().await;
    is_online(&a, &id).await;
    let mut watch = Watch::of(&a).await;
    let mut app = b.client().await;
    let has = |change: &PeerChange, roles: &[&str], text: &str| {
        let row = change.peer.as_ref().unwrap();
        row.roles == roles && row.presence == text
    };
    let started = Instant::now();
    let first = set_presence(&mut app, &["server"], "one").await.unwrap();
    let change = watch.find("the role", |change| has(change, &["server"], "one")).await;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(change.cause(), ChangeCause::Presence);

    let second = set_presence(&mut b.client().await, &["cam", "server"], "two").await.unwrap();
    watch.find("both", |change| has(change, &["cam", "server"], "two")).await;
    assert_eq!(row(&a, &id).await.unwrap().roles, ["cam", "server"]);
    let ended = Instant::now();
    drop(second);
    watch.find("the first again", |change| has(change, &["server"], "one")).await;
    assert!(ended.elapsed() < SOON, "{:?}", ended.elapsed());
    drop((first, app));
    watch.find("nothing", |change| has(change, &[], "")).await;
}

/// A process of its own that announces roles: this very test, run again.
#[test]
fn announcing_app() {
    let Some(socket) = std::env::var_os("ANNOUNCE_AT") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = support::connect(socket.as_ref()).await.unwrap();
        let mut stream = set_presence(&mut client, &["server"], "alive").await.unwrap();
        println!("announced");
        drop(stream.message().await);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_vanish_when_the_app_is_killed() {
    let (a, b) = pair().await;
    is_online(&a, &b.peer_id().await).await;
    let mut watch = Watch::of(&a).await;
    let mut app = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "announcing_app", "--nocapture"])
        .env("ANNOUNCE_AT", b.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = watch.find("the role", |change| change.peer.as_ref().unwrap().roles == ["server"]).await;
    assert_eq!(told.peer.unwrap().presence, "alive");
    let killed = Instant::now();
    app.kill().unwrap();
    app.wait().unwrap();
    watch.find("no role", |change| change.peer.as_ref().unwrap().roles.is_empty()).await;
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_goes_offline_with_its_roles() {
    let (a, mut b) = pair().await;
    let id = b.peer_id().await;
    is_online(&a, &id).await;
    let mut watch = Watch::of(&a).await;
    let _announced = set_presence(&mut b.client().await, &["server"], "").await.unwrap();
    watch.find("the role", |change| change.peer.as_ref().unwrap().roles == ["server"]).await;
    b.kill();
    let change = watch.until(ChangeCause::Offline).await;
    let told = change.peer.unwrap();
    assert!(!told.online && told.roles.is_empty() && told.name.is_empty(), "{told:?}");
    assert!(told.route() == proto::Route::None && told.online_since > 0 && told.in_book, "{told:?}");
    assert!(!change.detail.is_empty());
    assert!(!row(&a, &id).await.unwrap().online);
    b.restart().await;
    let target = Some(proto::connect_request::Target::Peer(id));
    a.client().await.connect(proto::ConnectRequest { target }).await.unwrap();
    let back = watch.until(ChangeCause::Online).await.peer.unwrap();
    assert!(back.online_since >= told.online_since, "{back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_comes_back_at_once_is_no_absence() {
    let (a, b) = pair().await;
    let id = b.peer_id().await;
    is_online(&a, &id).await;
    let mut watch = Watch::of(&a).await;
    let _announced = set_presence(&mut b.client().await, &["server"], "").await.unwrap();
    watch.find("the role", |change| change.peer.as_ref().unwrap().roles == ["server"]).await;
    let mut client = a.client().await;
    for round in 1..=3 {
        client.disconnect(proto::DisconnectRequest { peer: id.clone() }).await.unwrap();
        // `online` never wavers while it is away.
        eventually("the end of the connection", || async {
            let row = row(&a, &id).await.unwrap();
            assert!(row.online && row.roles == ["server"] && row.route() == proto::Route::Lan, "{row:?}");
            (a.log().matches("peer disconnected").count() >= round).then_some(())
        })
        .await;
        let target = Some(proto::connect_request::Target::Peer(id.clone()));
        client.connect(proto::ConnectRequest { target }).await.unwrap();
    }
    // Longer than an absence takes to be told, and something to end the wait.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let request = proto::AddPeerRequest { peer: id.clone(), alias: "b".into(), ..Default::default() };
    client.add_peer(request).await.unwrap();
    loop {
        let change = watch.find("anything", |_| true).await;
        let row = change.peer.as_ref().unwrap();
        assert!(!matches!(change.cause(), ChangeCause::Offline | ChangeCause::Online), "{change:?}");
        assert_eq!(row.roles, ["server"]);
        if row.alias == "b" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_are_not_trusted_see_and_tell_nothing() {
    let (a, b) = (Daemon::start_with(named("anna")).await, Daemon::start_with(named("bob")).await);
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    // a trusts b, b does not trust a.
    a.add(&b).await;
    is_online(&b, &a_id).await;
    let _a = set_presence(&mut a.client().await, &["secret-a"], "a").await.unwrap();
    let _b = set_presence(&mut b.client().await, &["secret-b"], "b").await.unwrap();
    // The link is refused: whatever would have been told was told by then.
    eventually("the refusal", || async {
        let request = support::send_to(&b_id, support::message("", "probe", "x"));
        let request = proto::SendRequest { timeout_ms: 500, ..request };
        let sent = a.client().await.send(request).await.unwrap().into_inner();
        (sent.reason() == proto::Reason::Untrusted).then_some(())
    })
    .await;
    for (daemon, peer) in [(&a, &b_id), (&b, &a_id)] {
        let row = row(daemon, peer).await.unwrap();
        assert!(row.online && row.roles.is_empty() && row.presence.is_empty() && row.name.is_empty(), "{row:?}");
    }
    // Trust on both sides shows it, and taking it back hides it at once.
    let mut watch = Watch::of(&b).await;
    b.add(&a).await;
    let told = watch.find("the role", |change| change.peer.as_ref().unwrap().roles == ["secret-a"]).await;
    assert_eq!(told.peer.unwrap().name, "anna");
    eventually("b's at a", || async { row(&a, &b_id).await.filter(|row| row.roles == ["secret-b"]) }).await;
    let known = proto::AddPeerRequest { peer: a_id.clone(), trust: proto::Trust::Known.into(), ..Default::default() };
    b.client().await.add_peer(known).await.unwrap();
    let row_at_b = row(&b, &a_id).await.unwrap();
    assert!(row_at_b.roles.is_empty() && row_at_b.name.is_empty(), "{row_at_b:?}");
    eventually("nothing of b at a", || async { row(&a, &b_id).await.filter(|row| row.roles.is_empty()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_peer_is_offline_at_once() {
    let (a, b) = pair().await;
    let id = b.peer_id().await;
    is_online(&a, &id).await;
    let mut watch = Watch::of(&a).await;
    let _announced = set_presence(&mut b.client().await, &["server"], "").await.unwrap();
    watch.find("the role", |change| change.peer.as_ref().unwrap().roles == ["server"]).await;
    let blocked = Instant::now();
    a.client().await.block(proto::BlockRequest { peer: id.clone() }).await.unwrap();
    let change = watch.until(ChangeCause::Offline).await;
    assert!(blocked.elapsed() < SOON, "{:?}", blocked.elapsed());
    let told = change.peer.unwrap();
    assert!(told.trust() == proto::Trust::Blocked && !told.online && told.roles.is_empty(), "{told:?}");
    assert_eq!(watch.rows[&id].trust(), proto::Trust::Blocked);
}

/// Whatever comes between the snapshot and the changes is in one of the two.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_snapshot_and_changes() {
    const PEERS: usize = 40;
    let a = Daemon::start().await;
    let ids: Vec<String> = (0..PEERS).map(|_| libp2p::PeerId::random().to_string()).collect();
    let churn = {
        let (ids, client) = (ids.clone(), a.client().await);
        tokio::spawn(async move {
            let change = |id: String, round: usize| {
                let mut client = client.clone();
                async move {
                    let alias = format!("r{round}-{}", &id[id.len() - 8..]);
                    let request = proto::AddPeerRequest { peer: id, alias, ..Default::default() };
                    client.add_peer(request).await.unwrap();
                }
            };
            for round in 0..25 {
                futures::future::join_all(ids.iter().map(|id| change(id.clone(), round))).await;
                let mut client = client.clone();
                let gone = ids[round].clone();
                client.remove_peer(proto::RemovePeerRequest { peer: gone }).await.unwrap();
            }
        })
    };
    let mut watches = Vec::new();
    // Fewer than the streams that the daemon allows.
    while !churn.is_finished() && watches.len() < 100 {
        watches.push(Watch::of(&a).await);
    }
    churn.await.unwrap();
    assert!(watches.len() > 5, "{}", watches.len());
    let end = libp2p::PeerId::random().to_string();
    a.client().await.add_peer(proto::AddPeerRequest { peer: end.clone(), ..Default::default() }).await.unwrap();
    let listed = a.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
    let expected: HashMap<_, _> = listed.peers.iter().map(|row| (row.peer_id.clone(), row.alias.clone())).collect();
    assert_eq!(expected.len(), PEERS + 1 - 1);
    for mut watch in watches {
        while !watch.rows.contains_key(&end) {
            watch.next().await;
        }
        let seen: HashMap<_, _> = watch.rows.iter().map(|(id, row)| (id.clone(), row.alias.clone())).collect();
        assert_eq!(seen, expected);
    }
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let process = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = process.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Puts peers into the book, and changes them again and again.
async fn stir(daemon: &Daemon, ids: &[String], round: usize) {
    let client = daemon.client().await;
    for part in ids.chunks(200) {
        let calls = part.iter().map(|id| {
            let mut client = client.clone();
            let addresses = vec![format!("/ip4/192.0.2.{}/tcp/{}", round % 200 + 1, 1000 + round)];
            let request = proto::AddPeerRequest {
                peer: id.clone(),
                addresses: if round < 8 { addresses } else { Vec::new() },
                trust: proto::Trust::Known.into(),
                ..Default::default()
            };
            async move { drop(client.add_peer(request).await.unwrap()) }
        });
        futures::future::join_all(calls).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_do_not_read_cost_little_and_are_told_that_they_lagged() {
    const PEERS: usize = 1_500;
    const WATCHERS: usize = 50;
    let a = Daemon::start().await;
    let ids: Vec<String> = (0..PEERS).map(|_| libp2p::PeerId::random().to_string()).collect();
    stir(&a, &ids, 0).await;
    let mut lazy = Vec::new();
    for _ in 0..WATCHERS {
        // A connection each, and a window that does not hold the snapshot.
        let mut client = support::connect_with_window(&a.socket(), 65_535).await;
        lazy.push(client.watch_peers(proto::WatchPeersRequest::default()).await.unwrap().into_inner());
    }
    let before = resident_kib(&a);
    for round in 1..4 {
        stir(&a, &ids, round).await;
    }
    let grown = resident_kib(&a).saturating_sub(before);
    assert!(grown < 150 * 1024, "{grown} KiB for {WATCHERS} watchers");
    // Read at last, it says so and becomes right again.
    let mut watch = Watch { stream: lazy.pop().unwrap(), rows: HashMap::new(), seen: Vec::new(), lagged: 0 };
    watch.stream.message().await.unwrap();
    while watch.lagged == 0 {
        watch.next().await;
    }
    while !watch.next().await {}
    assert!(watch.lagged as usize > PEERS / 2 && watch.rows.len() == PEERS, "{} {}", watch.lagged, watch.rows.len());
    // The others hold nobody up.
    let end = libp2p::PeerId::random().to_string();
    a.client().await.add_peer(proto::AddPeerRequest { peer: end.clone(), ..Default::default() }).await.unwrap();
    while !watch.rows.contains_key(&end) {
        watch.next().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_changes_its_text_without_end_floods_nobody() {
    let (a, b) = pair().await;
    let id = b.peer_id().await;
    is_online(&a, &id).await;
    let mut watch = Watch::of(&a).await;
    let mut app = b.client().await;
    let mut held = set_presence(&mut app, &["x"], "0").await.unwrap();
    for n in 1..=1000 {
        held = set_presence(&mut app, &["x"], &n.to_string()).await.unwrap();
    }
    let done = Instant::now();
    let is_last = |change: &PeerChange| change.peer.as_ref().unwrap().presence == "1000";
    let mut changes = 0;
    while !is_last(&watch.find("the last text", |_| true).await) {
        changes += 1;
    }
    assert!(done.elapsed() < SOON, "{:?}", done.elapsed());
    assert!(changes < 200, "{changes}");
    drop(held);
    // The link was never cut for it.
    let sent = a.client().await.send(support::send_to(&id, support::message("", "", "x"))).await.unwrap().into_inner();
    assert_eq!(sent.state(), proto::MessageState::Stored);
    assert!(!a.log().contains("too often"), "{}", a.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_presence_is_refused_with_field_value_limit_and_remedy() {
    let a = Daemon::start().await;
    let mut client = a.client().await;
    let long = "r".repeat(33);
    let nine = ["r"; 9];
    let text = "é".repeat(129);
    for (roles, text, field, says) in [
        (&nine[..], "", "roles", &["9 entries", "limit is 8", "announce fewer"][..]),
        (&["no space"], "", "roles", &["\"no space\"", "1 to 32", "letters, digits"]),
        (&[""], "", "roles", &["\"\"", "1 to 32"]),
        (&["rôle"], "", "roles", &["\"rôle\"", "letters"]),
        (&[long.as_str()], "", "roles", &["rrr", "1 to 32"]),
        (&[], text.as_str(), "text", &["258 bytes", "limit is 256", "shorter"]),
        (&[], "a\u{1b}[2J", "text", &["\\u{1b}", "no control characters", "leave them out"]),
        (&[], "two\nlines", "text", &["\\n", "control characters"]),
    ] {
        let error = set_presence(&mut client, roles, text).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        let details = error.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field);
        assert!(says.iter().all(|part| error.message().contains(part)), "{}: {says:?}", error.message());
        assert!(!error.message().contains(char::is_control), "{:?}", error.message());
    }
    let mut open = Vec::new();
    for n in 0..4 {
        let roles: Vec<String> = (0..8).map(|role| format!("{n}.{role}")).collect();
        let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
        open.push(set_presence(&mut client, &roles, "x").await.unwrap());
    }
    let error = set_presence(&mut client, &["more"], "").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(error.message().contains("32") && error.message().contains("fewer"), "{}", error.message());
    drop(open);
    eventually("room again", || async { set_presence(&mut a.client().await, &["more"], "").await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_daemon() {
    let mut a = Daemon::start().await;
    let mut watch = Watch::of(&a).await;
    let mut announced = set_presence(&mut a.client().await, &["x"], "").await.unwrap();
    assert!(a.stop().success());
    let end = timeout(DEADLINE, watch.stream.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    let end = timeout(DEADLINE, announced.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_prints_each_change() {
    let (a, b) = (Daemon::start().await, Daemon::start_with(named("berry")).await);
    let id = b.peer_id().await;
    let watch = |json: bool| {
        let mut command = Command::new(support::P2P_NODE);
        support::scrub(&mut command);
        command.arg("--socket").arg(a.socket()).args(["peers", "--watch"]).args(json.then_some("--json"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let (mut plain, mut json) = (watch(false), watch(true));
    let mut lines = std::io::BufReader::new(plain.stdout.take().unwrap()).lines();
    let mut objects = std::io::BufReader::new(json.stdout.take().unwrap()).lines();
    b.add(&a).await;
    a.add(&b).await;
    let _announced = set_presence(&mut b.client().await, &["server"], "ready\u{202e}").await.unwrap();
    tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        while !said.contains("server") {
            said.push_str(&lines.next().unwrap().unwrap());
            said.push('\n');
        }
        assert!(said.contains("online, LAN") && said.contains("berry"), "{said}");
        assert!(said.contains("ready\\u{202e}"), "{said:?}");
        loop {
            let value: serde_json::Value = serde_json::from_str(&objects.next().unwrap().unwrap()).unwrap();
            assert_eq!(value["peer"]["peer_id"], id);
            if value["peer"]["roles"] == serde_json::json!(["server"]) {
                assert!(value["cause"].as_str().unwrap().starts_with("CHANGE_CAUSE_"));
                break;
            }
        }
    })
    .await
    .unwrap();
    let listed = a.cli(&["peers"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains("berry, server, \"ready"), "{text}");
    for mut child in [plain, json] {
        signal(child.id(), nix::sys::signal::Signal::SIGTERM);
        support::wait_exit(&mut child);
    }
}
