//! Messages through relays, between real daemons on hosts that reach nothing
//! but the relays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod skip;
mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use p2p_node::proto::{self, MessageState, Reason};
use support::{Client, Daemon, Options, eventually, message, receive, send_to};

/// The port of every daemon.
const PORT: u16 = 4001;

#[tokio::test(flavor = "multi_thread")]
async fn peers_known_by_id_alone_meet_at_their_relay_also_after_it_was_away() {
    let Some(star) = star("relay", 1, 2) else { return };
    let mut relay = star.relay(0, &["--serve", "on"]).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;

    relay.kill();
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    for (one, other) in [(&a, &b_id), (&b, &a_id)] {
        eventually("offline", || async {
            (route(&one.client().await, other).await == proto::Route::None).then_some(())
        })
        .await;
    }
    relay.restart().await;
    let back = Instant::now();
    talk(&a, &b, "second").await;
    // The relay is looked for every second or so.
    assert!(back.elapsed() < Duration::from_secs(4), "{:?}", back.elapsed());
    eprintln!("messages flow {:?} after the relay is back", back.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_moves_to_the_second_relay_when_the_first_is_gone() {
    let Some(star) = star("relay", 2, 2) else { return };
    let mut relays = [star.relay(0, &["--serve", "on"]).await, star.relay(1, &["--serve", "on"]).await];
    let [one, two] = &relays;
    let a = star.host(0, &star.at(&[one, two], 0, BOTH).await).await;
    let b = star.host(1, &star.at(&[one, two], 1, BOTH).await).await;
    for host in [&a, &b] {
        eventually("two reservations", || async { (count(host, "reachable through a relay") == 2).then_some(()) })
            .await;
    }
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
    let carries = if route_address(&a, &b).await.contains(&one.peer_id().await) { 0 } else { 1 };
    relays[carries].kill();
    let gone = Instant::now();
    talk(&a, &b, "second").await;
    eprintln!("messages flow {:?} after the relay is gone", gone.elapsed());
    assert!(gone.elapsed() < Duration::from_secs(9), "{:?}", gone.elapsed());
    let other = relays[1 - carries].peer_id().await;
    eventually("the dead connection gone", || async { route_address(&a, &b).await.contains(&other).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_leads_through_the_relay() {
    let Some(star) = star("relay", 1, 2) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    // Right after the start: the ticket waits for the relay.
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let b = star.host(1, &[]).await;
    let invitation = a.client().await.invite(proto::InviteRequest::default()).await.unwrap().into_inner();
    assert!(!invitation.lan_only, "{invitation:?}");
    let through = format!("/p2p/{}/p2p-circuit/p2p/{}", relay.peer_id().await, a.peer_id().await);
    let circuits: Vec<_> = invitation.addresses.iter().filter(|address| address.ends_with(&through)).collect();
    assert!(invitation.addresses.len() == 3 && circuits.len() == 2, "{invitation:?}");
    let request = proto::JoinRequest { ticket: invitation.ticket, ..proto::JoinRequest::default() };
    let joined = b.client().await.join(request).await.unwrap().into_inner();
    assert_eq!((joined.route(), joined.peer_id), (proto::Route::Relayed, a.peer_id().await));
    talk(&a, &b, "joined").await;
    // And by the same address by hand.
    b.client().await.disconnect(proto::DisconnectRequest { peer: a.peer_id().await }).await.unwrap();
    let target = Some(proto::connect_request::Target::Address(circuits[1].clone()));
    let request = proto::ConnectRequest { target };
    let connected = b.client().await.connect(request).await.unwrap().into_inner();
    assert_eq!(connected.route(), proto::Route::Relayed, "{connected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_through_one_relay_are_few() {
    let Some(star) = star("relay", 1, 2) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    let invitation = a.client().await.invite(proto::InviteRequest::default()).await.unwrap().into_inner();
    let good = p2p_node::ticket::Ticket::decode(&invitation.ticket).unwrap();
    let bad = p2p_node::types::Secret([7; 16]);
    let (_, forged) = p2p_node::ticket::Ticket::write(good.inviter, bad, good.expires, good.addresses).unwrap();
    let mut errors = Vec::new();
    for _ in 0..6 {
        let request = proto::JoinRequest { ticket: forged.clone(), ..proto::JoinRequest::default() };
        errors.push(b.client().await.join(request).await.unwrap_err());
    }
    assert!(errors[..5].iter().all(|error| error.code() == errors[0].code()), "{errors:?}");
    assert_eq!(errors[5].code(), tonic::Code::ResourceExhausted, "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_for_friends_refuses_strangers_but_lets_them_call() {
    let Some(star) = star("relay", 1, 2) else { return };
    let external = format!("/ip4/{}/tcp/{PORT}", star.address(0, 0));
    let relay = star.relay(0, &["--external", &external]).await;
    let mut a = star.host_with(0, &star.at(&[&relay], 0, BOTH).await);
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    a.restart().await;
    trust(&relay, &a).await;
    for (host, line) in [(&a, "reachable through a relay"), (&b, "a relay gives no reservation")] {
        eventually(line, || async { (count(host, line) > 0).then_some(()) }).await;
    }
    assert_eq!(count(&b, "reachable through a relay"), 0);
    assert!(!cause(&b, "RELAY_REFUSES").await.is_empty());
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_relay_says_so_and_others_go_on() {
    let Some(star) = star("relay", 1, 2) else { return };
    let mut options = star.relay_options(0, &["--serve", "on"]);
    options.config = "limits.relay_reservations = 1\n".to_owned();
    let relay = Daemon::start_with(options).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    eventually("a reservation", || async { (count(&a, "reachable through a relay") > 0).then_some(()) }).await;
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    eventually("a refusal", || async { (count(&b, "a relay gives no reservation") > 0).then_some(()) }).await;
    assert!(cause(&b, "RELAY_REFUSES").await.contains("is full"));
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_off_is_told_by_its_relay() {
    let Some(star) = star("relay", 1, 2) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let mut b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
    let peer = b.peer_id().await;
    b.kill();
    eventually("the cause", || async {
        let target = Some(proto::connect_request::Target::Peer(peer.clone()));
        let _ = a.client().await.connect(proto::ConnectRequest { target }).await;
        let path = a.client().await.explain_path(proto::ExplainPathRequest { peer: peer.clone() }).await.unwrap();
        path.into_inner().advice.iter().any(|advice| advice.code == "PEER_OFFLINE").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_outlives_the_limits_of_circuits() {
    let Some(star) = star("relay", 1, 2) else { return };
    for limit in ["relay_circuit_bytes = \"4 MiB\"", "relay_circuit_duration = \"5s\""] {
        let mut options = star.relay_options(0, &["--serve", "on"]);
        options.config = format!("limits.{limit}\n");
        let relay = Daemon::start_with(options).await;
        let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
        let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
        trust(&a, &b).await;
        trust(&b, &a).await;
        talk(&a, &b, "first").await;
        let (mut sender, peer) = (a.client().await, b.peer_id().await);
        let begun = Instant::now();
        let mut sent = 0;
        while sent < 256 || begun.elapsed() < Duration::from_secs(12) && limit.contains("duration") {
            sender.send(send_to(&peer, message("", &sent.to_string(), vec![7; 64 * 1024]))).await.unwrap();
            sent += 1;
        }
        let ids = receive(&mut b.client().await, "", sent).await.into_iter().map(|got| got.message.unwrap().id);
        assert!(ids.eq((0..sent).map(|n| n.to_string())), "{limit}");
        for host in [&a, &b] {
            assert_eq!(count(host, "peer disconnected"), 0, "{limit}");
        }
        assert!(count(&a, "opening another one") + count(&b, "opening another one") > 1, "{limit}");
    }
}

/// They are never sent again, so that a link must not take them with it.
#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_messages_move_from_circuit_to_circuit() {
    let Some(star) = star("relay", 1, 2) else { return };
    let mut options = star.relay_options(0, &["--serve", "on"]);
    // They are left when a fifth of it is left, which a slow machine needs.
    options.config = "limits.relay_circuit_duration = \"10s\"\n".to_owned();
    let relay = Daemon::start_with(options).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
    let begun = Instant::now();
    let mut senders = Vec::new();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let request = proto::ListenRequest {
            channel: "live".to_owned(),
            ack_mode: proto::AckMode::Auto.into(),
            ..proto::ListenRequest::default()
        };
        let mut heard = to.client().await.listen(request).await.unwrap().into_inner();
        heard.message().await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = heard.message().await {} });
        let peer = to.peer_id().await;
        for _ in 0..4 {
            let (mut client, peer) = (from.client().await, peer.clone());
            senders.push(tokio::spawn(async move {
                let mut sent = 0;
                while begun.elapsed() < Duration::from_secs(26) {
                    let request = send_to(&peer, message("live", "", "x"));
                    let request = proto::SendRequest { ephemeral: true, ..request };
                    let end = client.send(request).await.unwrap().into_inner();
                    assert_eq!(end.state(), MessageState::Stored, "after {sent}: {end:?}");
                    sent += 1;
                }
                sent
            }));
        }
    }
    let mut sent = 0;
    for sender in senders {
        sent += sender.await.unwrap();
    }
    let circuits = count(&a, "opening another one") + count(&b, "opening another one");
    assert!(circuits > 2, "{circuits}");
    eprintln!("{sent} ephemeral messages over {circuits} circuits, none lost");
}

/// Which networks a host is in is nothing to a relay on the internet.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_hears_of_a_hosts_networks_only_if_it_is_trusted() {
    let Some(star) = star("relay", 1, 1) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    // It believes all that it hears.
    trust(&relay, &a).await;
    let id = a.peer_id().await;
    let told = || async {
        let all = proto::ListPeersRequest::default();
        let peers = relay.client().await.list_peers(all).await.unwrap().into_inner().peers;
        peers.into_iter().find(|peer| peer.peer_id == id).map(|peer| peer.addresses).unwrap_or_default()
    };
    let has = |addresses: &Vec<String>, part: &str| addresses.iter().any(|address| address.contains(part));
    let first = eventually("its circuit", || async { Some(told().await).filter(|all| has(all, "/p2p-circuit")) }).await;
    assert!(!has(&first, "/192.168.") && !has(&first, "/127."), "{first:?}");
    trust(&a, &relay).await;
    eventually("its networks", || async { Some(told().await).filter(|all| has(all, "/192.168.0.2/")) }).await;
}

/// As where no UDP gets through.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_on_tcp_only_is_used_at_once() {
    let Some(star) = star("relay", 1, 1) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    let flags = star.at(&[&relay], 0, BOTH).await;
    star.block_udp(0);
    let a = star.host(0, &flags).await;
    // It waits for the reservation, and not for the dial over UDP to fail.
    let invitation = a.client().await.invite(proto::InviteRequest::default()).await.unwrap().into_inner();
    assert_eq!(count(&a, "Handshake with the remote timed out"), 0);
    assert!(invitation.addresses.iter().any(|address| address.contains("/p2p-circuit/")), "{invitation:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_direct_paths_stays_off_the_relay_and_holds_its_channel_only() {
    let Some(star) = star("relay", 1, 2) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
    let (mut client, peer) = (a.client().await, b.peer_id().await);
    let send = |channel: &str, id: &str, path: proto::PathPolicy, wait| proto::SendRequest {
        path: path.into(),
        prefer_direct_wait_ms: wait,
        timeout_ms: 1_000,
        ..send_to(&peer, message(channel, id, "x"))
    };
    let held = client.send(send("held", "1", proto::PathPolicy::DirectOnly, 0)).await.unwrap().into_inner();
    assert_eq!((held.state(), held.reason()), (MessageState::Queued, Reason::Path), "{held:?}");
    let behind = client.send(send("held", "2", proto::PathPolicy::Any, 0)).await.unwrap().into_inner();
    assert_eq!((behind.state(), behind.reason()), (MessageState::Queued, Reason::Path), "{behind:?}");
    let other = client.send(send("other", "3", proto::PathPolicy::Any, 0)).await.unwrap().into_inner();
    assert_eq!(other.state(), MessageState::Stored, "{other:?}");
    let begun = Instant::now();
    let late = send("late", "4", proto::PathPolicy::PreferDirect, 700);
    let late = client.send(proto::SendRequest { timeout_ms: 10_000, ..late }).await.unwrap().into_inner();
    assert_eq!(late.state(), MessageState::Stored, "{late:?}");
    assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
    let ephemeral = send("", "5", proto::PathPolicy::DirectOnly, 0);
    let ephemeral = client.send(proto::SendRequest { ephemeral: true, ..ephemeral }).await.unwrap().into_inner();
    assert_eq!((ephemeral.state(), ephemeral.reason()), (MessageState::Rejected, Reason::Path), "{ephemeral:?}");
    let request = proto::GetMessageRequest { id: "1".to_owned(), ..proto::GetMessageRequest::default() };
    let found = client.get_message(request).await.unwrap().into_inner().message.unwrap();
    assert_eq!((found.state(), found.reason()), (MessageState::Queued, Reason::Path), "{found:?}");
    // Taken back, it is in nobody's way.
    let request = proto::CancelRequest { id: "1".to_owned(), ..proto::CancelRequest::default() };
    let cancelled = client.cancel(request).await.unwrap().into_inner().message.unwrap();
    assert_eq!(cancelled.state(), MessageState::Cancelled, "{cancelled:?}");
    assert_eq!(receive(&mut b.client().await, "held", 1).await[0].message.as_ref().unwrap().id, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_through_a_relay_is_told() {
    let Some(star) = star("relay", 1, 2) else { return };
    let relay = star.relay(0, &["--serve", "on"]).await;
    let relay_id = relay.peer_id().await;
    let a = star.host(0, &star.at(&[&relay], 0, BOTH).await).await;
    let b = star.host(1, &star.at(&[&relay], 1, BOTH).await).await;
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
    let (mut client, peer) = (a.client().await, b.peer_id().await);
    assert_eq!(row(&client, &peer).await.unwrap().relay_id, relay_id);
    let request = proto::ExplainPathRequest { peer: peer.clone() };
    let path = client.explain_path(request).await.unwrap().into_inner();
    assert_eq!((path.route(), &path.relay_id), (proto::Route::Relayed, &relay_id), "{path:?}");
    assert!(path.verdict.contains(&relay_id) && !path.advice.is_empty(), "{path:?}");
    let check = client.net_check(proto::NetCheckRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (&check.relays[0].peer_id, check.relays[0].state()),
        (&relay_id, proto::RelayState::Reserved),
        "{check:?}"
    );
    let status = a.status().await;
    assert!(status.states.contains(&proto::NodeState::Reserved.into()), "{status:?}");
    let serving = relay.status().await.serving.unwrap();
    assert_eq!((serving.mode(), serving.active, serving.reservations), (proto::ServeMode::On, true, 2), "{serving:?}");
    assert!(serving.circuits > 0 && serving.max_circuits > 0, "{serving:?}");
}

const BOTH: [&str; 2] = ["udp/4001/quic-v1", "tcp/4001"];

/// The cause that NetCheck tells under a code.
async fn cause(daemon: &Daemon, code: &str) -> String {
    let check = daemon.client().await.net_check(proto::NetCheckRequest {}).await.unwrap().into_inner();
    let advice = check.advice.iter().find(|advice| advice.code == code);
    advice.unwrap_or_else(|| panic!("no {code}: {check:?}")).cause.clone()
}

/// Trusts a peer of which nothing is known but its id.
async fn trust(one: &Daemon, other: &Daemon) {
    let request = proto::AddPeerRequest { peer: other.peer_id().await, ..proto::AddPeerRequest::default() };
    one.client().await.add_peer(request).await.unwrap();
}

async fn row(client: &Client, peer: &str) -> Option<proto::Peer> {
    let request = proto::ListPeersRequest::default();
    let peers = client.clone().list_peers(request).await.unwrap().into_inner().peers;
    peers.into_iter().find(|row| row.peer_id == peer)
}

async fn route(client: &Client, peer: &str) -> proto::Route {
    row(client, peer).await.map_or(proto::Route::None, |row| row.route())
}

/// The address over which messages go.
async fn route_address(one: &Daemon, other: &Daemon) -> String {
    let request = proto::PingRequest { peer: other.peer_id().await };
    one.client().await.ping(request).await.unwrap().into_inner().address
}

/// Sends both ways, and checks that it went through a relay.
async fn talk(a: &Daemon, b: &Daemon, id: &str) {
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let (mut a, mut b) = (a.client().await, b.client().await);
    a.send(send_to(&b_id, message("", &format!("{id}-there"), "hello"))).await.unwrap();
    b.send(send_to(&a_id, message("", &format!("{id}-back"), "hello"))).await.unwrap();
    let there = receive(&mut b, "", 1).await;
    let back = receive(&mut a, "", 1).await;
    assert_eq!(there[0].message.as_ref().unwrap().id, format!("{id}-there"));
    assert_eq!(back[0].message.as_ref().unwrap().id, format!("{id}-back"));
    assert_eq!(route(&a, &b_id).await, proto::Route::Relayed);
    assert_eq!(route(&b, &a_id).await, proto::Route::Relayed);
}

fn count(daemon: &Daemon, line: &str) -> usize {
    daemon.log().matches(line).count()
}

fn star(test: &str, relays: u8, hosts: u8) -> Option<Star> {
    Star::new(relays, hosts).inspect_err(|why| skip::skip(test, why)).ok()
}

/// Hosts with a line to each relay, and none to each other.
struct Star {
    relays: Vec<String>,
    hosts: Vec<String>,
}

impl Star {
    /// `Err` says why that is not possible here.
    fn new(relays: u8, hosts: u8) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("network namespaces are made as root only".to_owned());
        }
        let tag: u32 = rand::random();
        let names = |kind: &str, count: u8| (0..count).map(|n| format!("p2pn{kind}{n}{tag:x}")).collect();
        let star = Self { relays: names("r", relays), hosts: names("h", hosts) };
        for name in star.relays.iter().chain(&star.hosts) {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            run("ip", &["netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=0"])?;
        }
        for r in 0..relays {
            for h in 0..hosts {
                star.line(r, h)?;
            }
        }
        Ok(star)
    }

    fn line(&self, relay: u8, host: u8) -> Result<(), String> {
        let (r, h) = (&self.relays[usize::from(relay)], &self.hosts[usize::from(host)]);
        let (to_host, to_relay) = (format!("h{host}"), format!("r{relay}"));
        ip(&["link", "add", &to_host, "netns", r, "type", "veth", "peer", "name", &to_relay, "netns", h])?;
        let (public, private) = (self.address(relay, host), format!("192.168.{}.2", 16 * relay + host));
        for (name, device, own) in [(r, &to_host, &public), (h, &to_relay, &private)] {
            ip(&["-n", name, "address", "add", &format!("{own}/32"), "dev", device])?;
            ip(&["-n", name, "link", "set", device, "up"])?;
        }
        ip(&["-n", r, "route", "add", &private, "dev", &to_host])?;
        // With the relay's addresses on its other lines.
        ip(&["-n", h, "route", "add", &format!("128.66.{}.0/20", 16 * relay), "dev", &to_relay])
    }

    /// Public, as far as anyone can tell: of the relay, on the line to the host.
    fn address(&self, relay: u8, host: u8) -> String {
        format!("128.66.{}.1", 16 * relay + host)
    }

    fn block_udp(&self, host: usize) {
        let rules = "table inet p2pn { chain out { type filter hook output priority 0; meta l4proto udp drop; }; }";
        run("ip", &["netns", "exec", &self.hosts[host], "nft", rules]).unwrap();
    }

    fn relay_options(&self, relay: usize, more: &[&str]) -> Options {
        options(&self.relays[relay], more)
    }

    async fn relay(&self, relay: usize, more: &[&str]) -> Daemon {
        Daemon::start_with(self.relay_options(relay, more)).await
    }

    /// Flags of a host that name these relays, the first one first.
    async fn at(&self, relays: &[&Daemon], host: u8, transports: [&str; 2]) -> Vec<String> {
        let mut flags = Vec::new();
        for (relay, daemon) in (0..).zip(relays) {
            let id = daemon.peer_id().await;
            for transport in transports {
                let address = format!("/ip4/{}/{transport}/p2p/{id}", self.address(relay, host));
                flags.extend(["--relay".to_owned(), address]);
            }
        }
        flags
    }

    fn host_with(&self, host: usize, flags: &[String]) -> Daemon {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Daemon::new(options(&self.hosts[host], &flags))
    }

    async fn host(&self, host: usize, flags: &[String]) -> Daemon {
        let mut daemon = self.host_with(host, flags);
        daemon.restart().await;
        daemon
    }
}

impl Drop for Star {
    fn drop(&mut self) {
        for name in self.relays.iter().chain(&self.hosts) {
            // One that was never made cannot be removed.
            drop(ip(&["netns", "delete", name]));
        }
    }
}

fn options(host: &str, more: &[&str]) -> Options {
    let prefix = ["ip", "netns", "exec", host].map(ToOwned::to_owned).to_vec();
    let args = ["--no-mdns", "--log", "info,p2p_node::swarm=debug"];
    let args = args.iter().chain(more).map(|word| (*word).to_owned()).collect();
    Options { prefix, args, ..Options::default() }
}

fn ip(args: &[&str]) -> Result<(), String> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(program).args(args).output() {
        Err(error) => Err(format!("no {program} command: {error}")),
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim())),
    }
}
