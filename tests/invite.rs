//! Tickets between whole daemons: what they are for, and every way to misuse
//! one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{Multiaddr, PeerId, StreamProtocol, SwarmBuilder, noise, swarm::SwarmEvent, tcp, yamux};
use p2p_node::{
    proto::{self, MessageState},
    ticket::Ticket,
    types::Secret,
    wire::join::{self, JoinAnswer, JoinRequest},
};
use support::{Daemon, Options, P2P_NODE, eventually, message, scrub, send_to};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const JOIN: StreamProtocol = StreamProtocol::new("/p2p-node/join/1");
/// For one step of a hostile peer.
const STEP: Duration = Duration::from_secs(20);

fn named(name: &str) -> Options {
    let mut options = support::loopback();
    options.env.push(("P2P_NODE_NAME".to_owned(), name.to_owned()));
    options
}

async fn start(name: &str) -> Daemon {
    Daemon::start_with(named(name)).await
}

async fn try_invite(daemon: &Daemon, expires_ms: u64, alias: &str) -> Result<proto::InviteResponse, Status> {
    let request = proto::InviteRequest { expires_ms, alias: alias.to_owned() };
    daemon.client().await.invite(request).await.map(tonic::Response::into_inner)
}

async fn invite(daemon: &Daemon) -> String {
    try_invite(daemon, 0, "").await.unwrap().ticket
}

async fn try_join(daemon: &Daemon, ticket: &str, alias: &str) -> Result<proto::JoinResponse, Status> {
    let request = proto::JoinRequest { ticket: ticket.to_owned(), alias: alias.to_owned() };
    daemon.client().await.join(request).await.map(tonic::Response::into_inner)
}

async fn join(daemon: &Daemon, ticket: &str) -> proto::JoinResponse {
    try_join(daemon, ticket, "").await.unwrap()
}

/// The join is refused: the reason for programs, and the words for people.
#[track_caller]
fn refused(result: Result<proto::JoinResponse, Status>, code: Code, reason: &str, words: &str) {
    let status = result.unwrap_err();
    let told = status.get_details_error_info().map(|info| info.reason);
    assert_eq!((status.code(), told.as_deref()), (code, Some(reason)), "{status:?}");
    assert!(status.message().contains(words), "no {words:?} in: {}", status.message());
}

async fn peers(daemon: &Daemon) -> Vec<proto::Peer> {
    let request = proto::ListPeersRequest::default();
    daemon.client().await.list_peers(request).await.unwrap().into_inner().peers
}

async fn trusted(daemon: &Daemon) -> Vec<String> {
    let trusted = |peer: &proto::Peer| peer.trust() == proto::Trust::Trusted;
    peers(daemon).await.into_iter().filter(trusted).map(|peer| peer.alias).collect()
}

async fn deliver(from: &Daemon, to: &str, at: &Daemon, id: &str) {
    let sent = from.client().await.send(send_to(to, message("", id, id))).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored, "{sent:?}");
    let heard = support::receive(&mut at.client().await, "", 1).await;
    assert_eq!(heard[0].message.as_ref().unwrap().id, id);
}

/// A ticket that looks right, with a secret of one's own.
fn forged(ticket: &str, secret: u8) -> String {
    changed(ticket, |real| real.secret = Secret([secret; 16]))
}

fn changed(ticket: &str, change: impl FnOnce(&mut Ticket)) -> String {
    let mut real = Ticket::decode(ticket).unwrap();
    change(&mut real);
    Ticket::write(real.inviter, real.secret, real.expires, real.addresses).unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_know_and_trust_each_other_by_name() {
    let (mut a, b, c) = (start("anna").await, start("bob").await, start("bob").await);
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let invitation = try_invite(&a, 0, "").await.unwrap();
    assert!(invitation.ticket.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()), "{invitation:?}");
    assert!(invitation.ticket.len() <= 512 && invitation.lan_only, "{invitation:?}");
    assert_eq!(invitation.addresses, a.status().await.listen_addresses);
    let left = invitation.expires_at - i64::try_from(now_ms()).unwrap();
    assert!((3_590_000..=3_600_000).contains(&left), "{left}");

    let watch = proto::WatchPeersRequest { book_only: true };
    let mut changes = a.client().await.watch_peers(watch).await.unwrap().into_inner();
    let joined = join(&b, &invitation.ticket).await;
    let told = async {
        loop {
            let frame = changes.message().await.unwrap().unwrap().frame;
            let Some(proto::watch_peers_response::Frame::Changes(some)) = frame else { continue };
            let all = some.changes.into_iter();
            if let Some(told) = all.into_iter().find(|change| change.cause() == proto::ChangeCause::Joined) {
                return told;
            }
        }
    };
    let told = timeout(STEP, told).await.expect("a change in time");
    assert_eq!((told.invite_id, told.peer.unwrap().alias), (invitation.invite_id.clone(), "bob".to_owned()));
    assert_eq!((joined.peer_id.as_str(), joined.alias.as_str()), (a_id.as_str(), "anna"));
    assert_eq!((joined.route(), joined.already_joined), (proto::Route::Lan, false));
    assert_eq!(joined.address, invitation.addresses[0]);
    deliver(&b, "anna", &a, "there").await;
    deliver(&a, "bob", &b, "back").await;

    // Another of that name.
    join(&c, &invite(&a).await).await;
    assert_eq!(trusted(&a).await, ["bob", "bob-2"]);

    // The connection stays though nothing is said, and the inviter finds the
    // joiner again by itself.
    let row = peers(&a).await.into_iter().find(|row| row.peer_id == b_id).unwrap();
    assert!(row.online && row.in_book, "{row:?}");
    a.kill();
    a.restart().await;
    deliver(&a, "bob", &b, "after a restart").await;

    for daemon in [&a, &b] {
        let log = daemon.log();
        assert!(!log.contains(&invitation.ticket), "the ticket is in the log:\n{log}");
    }
    assert!(a.log().contains(&invitation.invite_id), "{}", a.log());
}

fn now_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_can_be_chosen_and_a_clash_spends_no_ticket() {
    let (a, b, c) = (start("anna").await, start("bob").await, start("carl").await);
    let ticket = try_invite(&a, 0, "attic").await.unwrap().ticket;
    assert_eq!(try_join(&b, &ticket, "boss").await.unwrap().alias, "boss");
    assert_eq!(trusted(&a).await, ["attic"]);

    let taken = try_invite(&a, 0, "attic").await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    let ticket = invite(&c).await;
    let words = "alias \"boss\" belongs to peer";
    refused(try_join(&b, &ticket, "boss").await, Code::AlreadyExists, "ALIAS_TAKEN", words);
    assert!(!join(&b, &ticket).await.already_joined);

    for bad in ["two words", &b.peer_id().await] {
        assert_eq!(try_invite(&a, 0, bad).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(try_join(&a, &ticket, bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let long = try_invite(&a, 31 * 86_400_000, "").await.unwrap_err();
    assert!(long.message().contains("the limit is 2592000000 (30 days)"), "{long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_one_node_as_often_as_that_asks() {
    let (mut a, b, c) = (start("anna").await, start("bob").await, start("carl").await);
    let ticket = invite(&a).await;
    a.stop();
    a.restart().await;
    assert!(!join(&b, &ticket).await.already_joined);
    // Right after the answer: what it said is on disk.
    a.kill();
    a.restart().await;
    assert_eq!(trusted(&a).await, ["bob"]);
    deliver(&a, "bob", &b, "welcome").await;
    assert!(join(&b, &ticket).await.already_joined);
    let words = "the ticket was used by another node, and each is good for one";
    refused(try_join(&c, &ticket, "").await, Code::FailedPrecondition, "TICKET_USED", words);
    assert_eq!(trusted(&a).await, ["bob"]);
    assert!(trusted(&c).await.is_empty());

    // Who was removed does not come back with the old one.
    let remove = proto::RemovePeerRequest { peer: "bob".to_owned() };
    a.client().await.remove_peer(remove).await.unwrap();
    let words = "the inviter does not know this ticket";
    refused(try_join(&b, &ticket, "").await, Code::FailedPrecondition, "TICKET_UNKNOWN", words);
    assert!(trusted(&a).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_or_damaged_ticket_says_what_is_wrong_with_it() {
    let (a, b) = (start("anna").await, start("bob").await);
    let late = try_invite(&a, 1, "").await.unwrap().ticket;
    refused(try_join(&b, &late, "").await, Code::FailedPrecondition, "TICKET_EXPIRED", "the ticket has expired");

    let ticket = invite(&a).await;
    let words = "this ticket was made by this very node";
    refused(try_join(&a, &ticket, "").await, Code::InvalidArgument, "TICKET_OWN", words);
    let mut swapped = ticket.clone();
    swapped.replace_range(20..21, if &ticket[20..21] == "A" { "B" } else { "A" });
    for damaged in [&ticket[..ticket.len() - 1], &ticket[..40], &ticket[8..], &swapped, &forged(&ticket, 1)[1..]] {
        let words = "the ticket is damaged: was it copied whole?";
        refused(try_join(&b, damaged, "").await, Code::InvalidArgument, "TICKET_MALFORMED", words);
    }
    for (text, words) in [("", "the ticket is empty"), ("/ip4/1.2.3.4", "letters and digits only")] {
        refused(try_join(&b, text, "").await, Code::InvalidArgument, "TICKET_MALFORMED", words);
    }
    let newer = data_encoding::BASE32_NOPAD.encode(&sealed(&[2, 0, 0]));
    refused(try_join(&b, &newer, "").await, Code::InvalidArgument, "TICKET_MALFORMED", "a newer version of p2p-node");

    assert!(trusted(&a).await.is_empty() && trusted(&b).await.is_empty());
    let typed = format!(" {}\n {} ", &ticket[..30].to_lowercase(), &ticket[30..]);
    assert_eq!(join(&b, &typed).await.alias, "anna");
}

fn sealed(content: &[u8]) -> Vec<u8> {
    [content, &crc32fast::hash(content).to_be_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inviter_that_is_gone_is_named_with_all_that_was_tried() {
    let mut options = named("anna");
    let tcp = format!("/ip4/{}/tcp/0", support::own_ip());
    options.args.extend(["--listen".to_owned(), tcp]);
    let (mut a, b) = (Daemon::start_with(options).await, start("bob").await);
    let invitation = try_invite(&a, 0, "").await.unwrap();
    assert_eq!(invitation.addresses.len(), 2);
    assert!(invitation.addresses[0].contains("quic-v1"), "QUIC comes first: {invitation:?}");
    a.kill();
    let status = try_join(&b, &invitation.ticket, "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().starts_with("the inviter is not reachable: "), "{status}");
    for address in &invitation.addresses {
        let (address, _) = address.split_once("/p2p/").unwrap();
        assert!(status.message().contains(&format!("{address}: ")), "no {address} in: {}", status.message());
    }
    assert!(status.message().contains("connection refused"), "{status}");
    assert!(status.message().contains("is p2p-node running over there"), "{status}");

    // A caller in a hurry hears the addresses too.
    let mut hurried = tonic::Request::new(proto::JoinRequest { ticket: invitation.ticket, ..Default::default() });
    hurried.set_timeout(Duration::from_secs(2));
    let status = b.client().await.join(hurried).await.unwrap_err();
    assert!(status.message().contains("no answer in time"), "{status}");
    assert!(trusted(&b).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blocked_are_told_and_stay_blocked() {
    let (a, b) = (start("anna").await, start("bob").await);
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let ticket = invite(&a).await;
    b.client().await.block(proto::BlockRequest { peer: a_id.clone() }).await.unwrap();
    let words = format!("the ticket is of peer {a_id}, which is blocked here");
    refused(try_join(&b, &ticket, "").await, Code::FailedPrecondition, "PEER_BLOCKED", &words);

    // The other way round the inviter says nothing.
    let unblock = proto::AddPeerRequest { peer: a_id, trust: proto::Trust::Known.into(), ..Default::default() };
    b.client().await.add_peer(unblock).await.unwrap();
    a.client().await.block(proto::BlockRequest { peer: b_id.clone() }).await.unwrap();
    let status = try_join(&b, &ticket, "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let row = peers(&a).await.into_iter().find(|row| row.peer_id == b_id).unwrap();
    assert_eq!(row.trust(), proto::Trust::Blocked);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_from_one_address_are_few_and_hinder_nobody_else() {
    let mut options = named("anna");
    options.args.extend(["--listen", "/ip4/127.0.0.1/tcp/0"].map(ToOwned::to_owned));
    let (a, b, c) = (Daemon::start_with(options).await, start("bob").await, start("carl").await);
    // Over QUIC, which comes from the address that the joiner listens on.
    let ticket = changed(&invite(&a).await, |ticket| ticket.addresses.truncate(1));
    for secret in 0..5 {
        let words = "the inviter does not know this ticket";
        let tried = try_join(&b, &forged(&ticket, secret), "").await;
        refused(tried, Code::FailedPrecondition, "TICKET_UNKNOWN", words);
    }
    let words = "too many tries with tickets from this network; wait a minute";
    refused(try_join(&b, &forged(&ticket, 5), "").await, Code::ResourceExhausted, "TOO_MANY_TRIES", words);
    refused(try_join(&b, &ticket, "").await, Code::ResourceExhausted, "TOO_MANY_TRIES", words);

    // New identities do not help.
    let mut answers = Vec::new();
    for guess in 0..8 {
        let mut hostile = Hostile::connect(&a).await;
        answers.push(hostile.present(Secret([guess; 16])).await);
    }
    assert_eq!(answers[..5], [const { JoinAnswer::Unknown }; 5]);
    assert_eq!(answers[5..], [const { JoinAnswer::TooMany }; 3]);

    assert_eq!(join(&c, &ticket).await.alias, "anna");
    assert_eq!(trusted(&a).await, ["carl"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_not_answered_and_harms_nobody() {
    let mut options = named("anna");
    options.args.extend(["--listen", "/ip4/127.0.0.1/tcp/0"].map(ToOwned::to_owned));
    let (a, b) = (Daemon::start_with(options).await, start("bob").await);
    let mut hostile = Hostile::connect(&a).await;
    for nonsense in [&[0xff; 2000][..], &[0, 5, 1, 2, 3, 4, 5], &[0, 0], &[0x04, 0x00, 1], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = hostile.open().await;
        drop(stream.write_all(nonsense).await);
        drop(stream.close().await);
        let mut answer = Vec::new();
        drop(timeout(STEP, stream.read_to_end(&mut answer)).await.expect("an end in time"));
        assert!(answer.is_empty(), "{nonsense:?}: {answer:?}");
    }
    // Left open, as many as the connection may have.
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(hostile.open().await);
    }
    let status = a.status().await;
    assert!(!status.listen_addresses.is_empty());
    assert_eq!(join(&b, &invite(&a).await).await.alias, "anna");
    assert!(!a.log().contains("WARN"), "{}", a.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_hands_tickets_over() {
    let (a, b, c) = (start("anna").await, start("bob").await, start("carl").await);
    let made = a.cli(&["--json", "invite", "--expires", "10m"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let object: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let ticket = object["ticket"].as_str().unwrap();
    let fields: Vec<&String> = object.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["addresses", "expires_at", "invite_id", "lan_only", "ticket"]);

    let joined = b.cli(&["join", &ticket[..50], &ticket[50..]]);
    let text = String::from_utf8(joined.stdout).unwrap();
    assert_eq!(joined.status.code(), Some(0), "{text}");
    assert!(text.starts_with(&format!("joined anna ({})\nconnected: LAN, /ip4/127.", a.peer_id().await)), "{text}");
    assert!(text.contains("p2p-node send anna 'hello'"), "{text}");
    assert_eq!(b.cli(&["send", "anna", "hello"]).status.code(), Some(0));

    let again = b.cli(&["--json", "join", ticket, "--alias", "boss"]);
    let object: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&object["already_joined"], &object["alias"]), (&true.into(), &"boss".into()));
    assert_eq!(object["route"], "ROUTE_LAN");

    // Without a terminal: the object too, which goes into a pipe as it is.
    let made = a.cli(&["invite"]).stdout;
    let object: serde_json::Value = serde_json::from_slice(&made).unwrap();
    assert!(object["ticket"].is_string(), "{object}");
    let joined = piped(&c, &["join", "-"], &made);
    assert_eq!(joined.status.code(), Some(0), "{joined:?}");

    let used = b.cli(&["join", std::str::from_utf8(&made).unwrap()]);
    let told = String::from_utf8(used.stderr).unwrap();
    assert_eq!(used.status.code(), Some(1), "{told}");
    assert!(told.contains("FAILED_PRECONDITION: the ticket was used by another node"), "{told}");
    assert!(told.contains("reason: TICKET_USED"), "{told}");
    assert_eq!(b.cli(&["join"]).status.code(), Some(64));
    assert_eq!(b.cli(&["invite", "--expires", "0s"]).status.code(), Some(64));
    assert_eq!(Daemon::new(Options::default()).cli(&["invite"]).status.code(), Some(69));
}

fn piped(daemon: &Daemon, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(P2P_NODE);
    scrub(&mut command);
    command.arg("--socket").arg(daemon.socket()).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// A libp2p peer of the test's own, new each time, always from 127.0.0.1.
struct Hostile {
    target: PeerId,
    control: libp2p_stream::Control,
    task: JoinHandle<()>,
}

impl Hostile {
    async fn connect(daemon: &Daemon) -> Self {
        let address = eventually("a TCP address", || async {
            daemon.status().await.listen_addresses.into_iter().find(|address| address.contains("/tcp/"))
        })
        .await;
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| libp2p_stream::Behaviour::new())
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(STEP))
            .build();
        let control = swarm.behaviour().new_control();
        swarm.dial(address.parse::<Multiaddr>().unwrap()).unwrap();
        // A stream asked for while it dials may never be opened.
        let connected =
            async { while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {} };
        timeout(STEP, connected).await.expect("a connection in time");
        let task = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self { target: daemon.peer_id().await.parse().unwrap(), control, task }
    }

    async fn open(&mut self) -> libp2p::Stream {
        timeout(STEP, self.control.open_stream(self.target, JOIN)).await.expect("an answer in time").unwrap()
    }

    async fn present(&mut self, secret: Secret) -> JoinAnswer {
        let mut stream = self.open().await;
        let request = JoinRequest::new(secret, "hostile".to_owned(), "none".to_owned(), Vec::new());
        join::write(&mut stream, &request).await.unwrap();
        timeout(STEP, join::read(&mut stream)).await.expect("an answer in time").unwrap()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}
