//! The parts together: connections and what peers tell go in, addresses come
//! out.

use std::time::Duration;

use bytes::Bytes;
use futures::AsyncWriteExt as _;
use libp2p::{core::Endpoint, identity::Keypair, swarm::ConnectionId};

use super::{
    client::{ask, take_nonce},
    server::{MAX_SERVED, reject, serve},
    target::Change,
    *,
};
use crate::{
    swarm::{ConnectionLimits, RelayLimits, pipe::pipe},
    wire::autonat::{Body, Data, DialRequest, DialStatus, Envelope, Status, read, write},
};

const QUIC: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";

/// A node at 10.0.0.2, behind a NAT.
struct Node {
    reach: Reach,
    connections: usize,
    now: Instant,
}

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn config(serve: Serve) -> SwarmConfig {
    SwarmConfig {
        listen: Vec::new(),
        external: Vec::new(),
        bootstrap: Vec::new(),
        relays: Vec::new(),
        serve,
        relay_limits: RelayLimits::default(),
        mdns: false,
        port_mapping: false,
        network: crate::node::Overlay::Private,
        trust_open: false,
        max_message_bytes: 1,
        limits: ConnectionLimits::default(),
        max_memory_bytes: None,
    }
}

impl Node {
    fn new(config: &SwarmConfig) -> Self {
        let mut reach = Reach::new(config, mpsc::channel(1).0);
        reach.set_listen(
            ["/ip4/10.0.0.2/udp/4001/quic-v1", "/ip4/10.0.0.2/tcp/4001", "/ip4/127.0.0.1/tcp/4001"]
                .map(address)
                .to_vec(),
        );
        Self { reach, connections: 0, now: Instant::now() }
    }

    /// Dials a peer, which sees this.
    fn dial(&mut self, to: &str, seen: &str, protocols: &[StreamProtocol]) -> ConnectionId {
        self.dial_as(to, seen, protocols, PortUse::Reuse)
    }

    fn dial_as(&mut self, to: &str, seen: &str, protocols: &[StreamProtocol], port_use: PortUse) -> ConnectionId {
        let endpoint = ConnectedPoint::Dialer { address: address(to), role_override: Endpoint::Dialer, port_use };
        self.connect(&endpoint, seen, protocols)
    }

    fn connect(&mut self, endpoint: &ConnectedPoint, seen: &str, protocols: &[StreamProtocol]) -> ConnectionId {
        self.connections += 1;
        let id = ConnectionId::new_unchecked(self.connections);
        let public_key = Keypair::generate_ed25519().public();
        self.reach.connected(id, public_key.to_peer_id(), endpoint, true, self.now);
        let info = identify::Info {
            public_key,
            protocol_version: String::new(),
            agent_version: String::new(),
            listen_addrs: Vec::new(),
            protocols: protocols.to_vec(),
            observed_addr: address(seen),
            signed_peer_record: None,
        };
        self.reach.identified(id, &info, false, self.now);
        self.reach.refresh(self.now);
        id
    }

    fn candidates(&self) -> Vec<(String, Confidence)> {
        let all = self.reach.candidates(self.now).into_iter();
        all.map(|candidate| (candidate.address.to_string(), candidate.confidence)).collect()
    }

    /// Puts all questions that are due within a while.
    fn answer(&mut self, answer: Answer) -> Vec<(String, Change)> {
        let mut changes = Vec::new();
        let end = self.now + Duration::from_secs(100);
        while let Some(at) = self.reach.verdicts.next().filter(|at| *at < end) {
            self.now = at.max(self.now);
            let Some(question) = self.reach.verdicts.due(self.now) else { continue };
            let change = self.reach.verdicts.answered(&question, answer, self.now, 0.5);
            changes.extend(change.map(|change| (question.place.address().to_string(), change)));
        }
        changes
    }
}

#[test]
fn the_mapped_address_that_two_servers_see_is_a_candidate_and_asked_about() {
    let mut node = Node::new(&config(Serve::Auto));
    node.dial("/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/1.2.3.4/udp/7777/quic-v1", &[DIAL_REQUEST]);
    assert!(node.candidates().iter().all(|(address, _)| address.starts_with("/ip4/10.0.0.2/")));
    node.dial("/ip4/9.9.9.9/udp/1/quic-v1", "/ip4/1.2.3.4/udp/7777/quic-v1", &[DIAL_REQUEST]);
    let nat = node.reach.nat(false, node.now);
    assert_eq!((nat.class, nat.port_kept), (NatClass::EndpointIndependent, Some(false)));
    let expected = [
        ("/ip4/1.2.3.4/udp/7777/quic-v1", Confidence::Likely),
        // Nobody saw TCP yet.
        ("/ip4/1.2.3.4/tcp/4001", Confidence::Guess),
        ("/ip4/10.0.0.2/udp/4001/quic-v1", Confidence::Likely),
        ("/ip4/10.0.0.2/tcp/4001", Confidence::Likely),
    ];
    assert_eq!(node.candidates(), expected.map(|(address, confidence)| (address.to_owned(), confidence)));

    let changes = node.answer(Answer::Reachable);
    assert_eq!(changes, [("/ip4/1.2.3.4/udp/7777/quic-v1".to_owned(), Change::Confirmed)]);
    assert_eq!(node.candidates()[0].1, Confidence::Confirmed);
    assert_eq!(node.reach.confirmed(), [address("/ip4/1.2.3.4/udp/7777/quic-v1")]);
    let view = &node.reach.addresses(node.now)[0];
    assert_eq!((view.verdict, view.source, view.verified_by.len()), (Verdict::Reachable, AddressSource::Observed, 2));
    // Both had been contacted from the socket that the NAT lets them in to.
    assert!(view.detail.contains("contacted") && !node.reach.is_public());
}

#[test]
fn a_mapping_that_works_makes_a_node_public() {
    let mut node = Node::new(&config(Serve::Auto));
    node.dial("/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/1.2.3.4/udp/4001/quic-v1", &[DIAL_REQUEST]);
    node.reach.set_mapped(&[address("/ip4/1.2.3.4/udp/5001/quic-v1")]);
    node.reach.refresh(node.now);
    assert!(node.candidates().contains(&("/ip4/1.2.3.4/udp/5001/quic-v1".to_owned(), Confidence::Likely)));
    node.answer(Answer::Reachable);
    assert!(node.reach.is_public());
    node.reach.set_mapped(&[]);
    node.reach.refresh(node.now);
    assert!(!node.reach.is_public() && node.reach.confirmed().is_empty());
}

#[test]
fn what_the_settings_name_is_public_at_once() {
    let external = vec![address("/dns4/home.example/tcp/4001"), address("/ip4/1.2.3.4/tcp/4001")];
    let mut node = Node::new(&SwarmConfig { external: external.clone(), ..config(Serve::Auto) });
    node.reach.refresh(node.now);
    assert!(node.reach.is_public());
    assert_eq!(node.reach.confirmed().len(), 2);
    let views = node.reach.addresses(node.now);
    assert!(views.iter().all(|view| view.verdict == Verdict::Assumed && view.advertised), "{views:?}");
}

#[test]
fn a_lone_server_assumes_that_its_global_addresses_work() {
    let listen = ["/ip4/5.6.7.8/tcp/4001", "/ip4/10.0.0.2/tcp/4001"].map(address).to_vec();
    for (serve, public) in [(Serve::On, true), (Serve::Auto, false)] {
        let mut node = Node::new(&config(serve));
        node.reach.set_listen(listen.clone());
        node.reach.refresh(node.now);
        assert_eq!(node.reach.is_public(), public);
        assert_eq!(node.reach.confirmed().len(), usize::from(public));
    }
}

#[test]
fn only_connections_of_the_listening_socket_and_of_outsiders_count() {
    let mut node = Node::new(&config(Serve::Auto));
    let seen = "/ip4/1.2.3.4/udp/7777/quic-v1";
    let relay = "/ip4/8.8.8.8/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit";
    for n in 1..=3 {
        node.dial_as(&format!("/ip4/8.8.8.{n}/udp/1/quic-v1"), seen, &[], PortUse::New);
        node.dial(&format!("/ip4/192.168.0.{n}/udp/1/quic-v1"), seen, &[DIAL_REQUEST]);
        node.dial(&format!("/ip4/8.8.8.{n}/udp/1/quic-v1"), "/ip4/1.2.3.4/tcp/7777", &[DIAL_REQUEST]);
        node.dial(relay, seen, &[DIAL_REQUEST]);
    }
    assert_eq!(node.reach.nat(false, node.now), NatView::default());
    assert_eq!(node.reach.verdicts.next(), None);
    assert!(node.candidates().iter().all(|(address, _)| address.starts_with("/ip4/10.0.0.2/")));
    // Two QUIC sockets: which of them a dial takes cannot be told.
    node.reach.set_listen([QUIC, "/ip4/0.0.0.0/udp/4002/quic-v1"].map(address).to_vec());
    for n in 1..=3 {
        node.dial(&format!("/ip4/8.8.8.{n}/udp/1/quic-v1"), seen, &[]);
    }
    assert_eq!(node.reach.nat(false, node.now), NatView::default());
}

#[test]
fn where_two_peers_came_in_is_a_candidate_and_says_nothing_of_the_nat() {
    let mut node = Node::new(&config(Serve::Auto));
    let came_in = |from: &str| ConnectedPoint::Listener {
        local_addr: address("/ip4/10.0.0.2/udp/4001/quic-v1"),
        send_back_addr: address(&format!("/ip4/{from}/udp/9/quic-v1")),
    };
    let seen = "/ip4/1.2.3.4/udp/5001/quic-v1";
    node.connect(&came_in("8.8.8.8"), seen, &[]);
    assert_eq!(node.candidates().len(), 2);
    node.connect(&came_in("9.9.9.9"), seen, &[]);
    assert_eq!(node.candidates()[0], (seen.to_owned(), Confidence::Likely));
    assert_eq!(node.reach.nat(false, node.now).class, NatClass::Unknown);
}

#[test]
fn each_port_of_a_dependent_nat_is_a_guess_and_not_asked_about() {
    let mut node = Node::new(&config(Serve::Auto));
    for (server, port) in [(1, 20_000), (2, 20_002), (3, 20_004)] {
        let seen = format!("/ip4/1.2.3.4/udp/{port}/quic-v1");
        node.dial(&format!("/ip4/8.8.8.{server}/udp/1/quic-v1"), &seen, &[DIAL_REQUEST]);
    }
    let nat = node.reach.nat(false, node.now);
    assert_eq!((nat.class, nat.port_step, nat.observers), (NatClass::EndpointDependent, Some(2), 3));
    assert!(node.candidates().contains(&("/ip4/1.2.3.4/udp/20006/quic-v1".to_owned(), Confidence::Guess)));
    assert!(node.reach.addresses(node.now).is_empty());
    assert_eq!(node.reach.verdicts.next(), None);
}

#[test]
fn candidates_are_few_and_keep_room_for_the_local_network() {
    let mut node = Node::new(&config(Serve::Auto));
    let many =
        |prefix: &str| (1..100).map(|n| address(&format!("/ip4/{prefix}.{n}/udp/4001/quic-v1"))).collect::<Vec<_>>();
    node.reach.set_listen([many("10.0.0"), many("5.6.7")].concat());
    let candidates = node.candidates();
    assert_eq!(candidates.len(), 16);
    assert_eq!(candidates.iter().filter(|(address, _)| address.starts_with("/ip4/10.")).count(), 4);
}

#[test]
fn after_a_change_of_the_network_everything_is_asked_again() {
    let mut node = Node::new(&config(Serve::Auto));
    let seen = "/ip4/1.2.3.4/udp/7777/quic-v1";
    let connections =
        ["8.8.8.8", "9.9.9.9"].map(|server| node.dial(&format!("/ip4/{server}/udp/1/quic-v1"), seen, &[DIAL_REQUEST]));
    node.answer(Answer::Reachable);
    node.reach.network_changed(node.now);
    assert_eq!(node.reach.verdicts.next(), Some(node.now));
    assert_eq!(node.reach.confirmed().len(), 1, "until it fails");
    for connection in connections {
        node.reach.closed(connection, node.now);
    }
    node.reach.refresh(node.now);
    assert!(node.reach.confirmed().is_empty());
    assert_eq!(node.reach.nat(false, node.now), NatView::default());
}

// Questions over a stream.

fn asker() -> Client {
    let own_ips = ["5.6.7.8", "10.0.0.2", "2606:4700::9"].map(|ip| ip.parse().unwrap()).to_vec();
    Client { peer: PeerId::random(), ip: "1.2.3.4".parse().unwrap(), own_ips }
}

fn request(addresses: &[&str]) -> Envelope {
    let addresses = addresses.iter().map(|text| Bytes::from(address(text).to_vec())).collect();
    Body::Request(DialRequest { addresses, nonce: 7 }).into()
}

/// What the server answers to this question, and where it would connect.
async fn served(client: Client, question: Envelope) -> (Body, Option<Multiaddr>) {
    let (mut here, there) = pipe();
    let (reports, mut reported) = mpsc::channel(1);
    let server = tokio::spawn(async move { serve(there, client, &reports).await });
    write(&mut here, &question).await.unwrap();
    let answer = async {
        loop {
            match read::<Envelope>(&mut here).await.unwrap().body.unwrap() {
                Body::DataRequest(wanted) => {
                    let mut left = wanted.bytes as usize;
                    assert!((30_000..=100_000).contains(&left));
                    while left > 0 {
                        let data = Bytes::from(vec![0; left.min(4096)]);
                        left -= data.len();
                        write(&mut here, &Envelope::from(Body::Data(Data { data }))).await.unwrap();
                    }
                }
                body => return body,
            }
        }
    };
    let dial = async {
        let Some(Report::DialBack(job)) = reported.recv().await else { return None };
        job.reply.send(Err(Some(DialStatus::DialError))).unwrap();
        Some(job.address)
    };
    let (answer, dialled) = tokio::join!(answer, dial);
    assert_eq!(server.await.unwrap(), None);
    (answer, dialled)
}

fn status(body: &Body) -> (Status, DialStatus, u32) {
    match body {
        Body::Response(response) => (response.status(), response.dial(), response.address),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_makes_this_node_connect_to_what_is_not_public() {
    let client = asker();
    let other = PeerId::random();
    let hostile = [
        "/ip4/127.0.0.1/tcp/22".to_owned(),
        "/ip4/10.0.0.1/tcp/80".to_owned(),
        "/ip4/192.168.1.1/udp/53/quic-v1".to_owned(),
        "/ip4/100.64.0.1/tcp/80".to_owned(),
        "/ip4/169.254.169.254/tcp/80".to_owned(),
        "/ip4/5.6.7.8/tcp/22".to_owned(),
        "/ip4/0.0.0.0/tcp/80".to_owned(),
        "/ip4/0.1.2.3/tcp/80".to_owned(),
        "/ip4/240.0.0.1/tcp/80".to_owned(),
        "/ip6/ff0e::1/udp/80/quic-v1".to_owned(),
        "/ip4/224.0.0.1/udp/80/quic-v1".to_owned(),
        "/ip4/255.255.255.255/udp/80/quic-v1".to_owned(),
        "/ip6/::ffff:10.0.0.1/tcp/80".to_owned(),
        "/ip6/64:ff9b::a00:1/tcp/80".to_owned(),
        "/ip6/2002:a00:1::1/tcp/80".to_owned(),
        "/ip6/fd00::1/tcp/80".to_owned(),
        "/ip6/2606:4700::9/tcp/80".to_owned(),
        "/dns4/router.example/tcp/80".to_owned(),
        "/ip4/1.2.3.4/tcp/80/ws".to_owned(),
        format!("/ip4/1.2.3.4/tcp/80/p2p/{other}"),
        format!("/ip4/1.2.3.4/tcp/80/p2p/{other}/p2p-circuit"),
    ];
    for text in &hostile {
        let (answer, dialled) = served(client.clone(), request(&[text])).await;
        assert_eq!((status(&answer), dialled), ((Status::Refused, DialStatus::Unused, 0), None), "{text}");
    }
    // A failure would be this node's own without any IPv6.
    let six = request(&["/ip6/2606:4700::1/tcp/80"]);
    assert!(served(client.clone(), six.clone()).await.1.is_some());
    let without = Client { own_ips: vec!["5.6.7.8".parse().unwrap()], ..client.clone() };
    assert_eq!(status(&served(without, six).await.0).0, Status::Refused);
    // The first one that can be tried is.
    let good = format!("/ip4/1.2.3.4/tcp/80/p2p/{}", client.peer);
    let (answer, dialled) = served(client, request(&[&hostile[0], &good])).await;
    assert_eq!(status(&answer), (Status::Ok, DialStatus::DialError, 1));
    assert_eq!(dialled, Some(address("/ip4/1.2.3.4/tcp/80")));
}

#[tokio::test]
async fn another_host_is_paid_for() {
    let (answer, dialled) = served(asker(), request(&["/ip4/6.6.6.6/tcp/80"])).await;
    assert_eq!(status(&answer), (Status::Ok, DialStatus::DialError, 0));
    assert!(dialled.is_some());
    // Without the data, or with something else, nothing happens.
    for instead in [Body::Data(Data { data: Bytes::new() }).into(), request(&["/ip4/6.6.6.6/tcp/80"])] {
        let (mut here, there) = pipe();
        let (reports, mut reported) = mpsc::channel(1);
        let server = tokio::spawn(async move { serve(there, asker(), &reports).await });
        write(&mut here, &request(&["/ip4/6.6.6.6/tcp/80"])).await.unwrap();
        for _ in 0..2000 {
            if write(&mut here, &instead).await.is_err() {
                break;
            }
        }
        drop(here);
        assert_eq!(server.await.unwrap(), None);
        assert!(reported.recv().await.is_none());
    }
}

#[tokio::test]
async fn no_question_is_rejected() {
    let answer = served(asker(), Body::Data(Data { data: Bytes::new() }).into()).await.0;
    assert_eq!(status(&answer).0, Status::Rejected);
    let (mut here, there) = pipe();
    let rejecting = tokio::spawn(reject(there));
    write(&mut here, &request(&["/ip4/1.2.3.4/tcp/80"])).await.unwrap();
    let answer = read::<Envelope>(&mut here).await.unwrap().body.unwrap();
    assert_eq!(status(&answer).0, Status::Rejected);
    rejecting.await.unwrap();
}

#[tokio::test]
async fn one_host_cannot_use_up_what_is_served() {
    let now = Instant::now();
    let mut serving = Serving::new(now);
    let (one, other) = ("1.2.3.4".parse().unwrap(), "1.2.3.5".parse().unwrap());
    assert_eq!((0..1000).filter(|_| serving.admit(one, now).is_some()).count(), 24);
    let held: Vec<_> = (0..24).filter_map(|_| serving.admit(other, now)).collect();
    assert_eq!(held.len(), MAX_SERVED);
    drop(held);
    let many = (0..100_000_u32).filter(|n| serving.admit(std::net::Ipv4Addr::from(*n).into(), now).is_some());
    assert!(many.count() < 100, "all of them together");
    let six = |n: u128| IpAddr::V6(std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) | n));
    let later = now + Duration::from_secs(60);
    assert_eq!((0..1000).filter(|n| serving.admit(six(*n), later).is_some()).count(), 24);
}

/// What the asker takes this for.
async fn verdict(answer: Body, nonce_comes: bool) -> Answer {
    let (here, mut there) = pipe();
    let nonces = Nonces::default();
    let place = address("/ip4/1.2.3.4/tcp/4001");
    let asking = ask(here, &place, &nonces);
    let server = async {
        let Some(Body::Request(request)) = read::<Envelope>(&mut there).await.unwrap().body else { panic!() };
        assert_eq!(request.addresses, [place.to_vec()]);
        if nonce_comes {
            let (here, there) = pipe();
            tokio::join!(take_nonce(here, nonces.clone()), async {
                let mut there = there;
                write(&mut there, &crate::wire::autonat::DialBack { nonce: request.nonce }).await.unwrap();
                read::<crate::wire::autonat::DialBackResponse>(&mut there).await.unwrap();
            });
        }
        // The other side may have enough already.
        let _ = write(&mut there, &Envelope::from(answer)).await;
        let _ = there.close().await;
    };
    let (answer, ()) = tokio::join!(asking, server);
    assert!(!nonces.any());
    answer
}

#[tokio::test]
async fn only_the_nonce_proves_anything() {
    use crate::wire::autonat::{DataRequest, DialResponse};
    let said = |status: Status, dial: DialStatus| {
        Body::Response(DialResponse { status: status.into(), address: 0, dial: dial.into() })
    };
    let ok = said(Status::Ok, DialStatus::Ok);
    assert_eq!(verdict(ok.clone(), true).await, Answer::Reachable);
    assert_eq!(verdict(said(Status::InternalError, DialStatus::Unused), true).await, Answer::Reachable);
    assert_eq!(verdict(ok, false).await, Answer::NoVerdict);
    assert_eq!(verdict(said(Status::Ok, DialStatus::DialError), false).await, Answer::Unreachable);
    for silent in [
        said(Status::Ok, DialStatus::DialBackError),
        said(Status::Rejected, DialStatus::Unused),
        said(Status::Refused, DialStatus::DialError),
        Body::DataRequest(DataRequest { address: 0, bytes: u64::MAX }),
        Body::Data(Data { data: Bytes::new() }),
    ] {
        assert_eq!(verdict(silent, false).await, Answer::NoVerdict);
    }
}

#[tokio::test]
async fn a_nonce_that_nobody_waits_for_has_no_answer() {
    let (here, mut there) = pipe();
    let taking = tokio::spawn(take_nonce(here, Nonces::default()));
    write(&mut there, &crate::wire::autonat::DialBack { nonce: 1 }).await.unwrap();
    assert!(read::<crate::wire::autonat::DialBackResponse>(&mut there).await.is_err());
    taking.await.unwrap();
}
