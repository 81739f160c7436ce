//! The words, case by case.

use std::{
    net::Ipv4Addr,
    num::NonZeroU16,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    node::{
        AddressSource, AddressView, ConnectionView, DialCause, KnownAddressView, KnownSource, NatClass, NatView,
        PathView, PunchView, RelayState, RelayTrouble, RelayView, Verdict,
    },
    ports::{BadAddress, Forward, Mapped, MappingView, Method, PortView, Transport, Trouble},
    types::Route,
};

const HOME: &str = "/ip4/192.168.1.5/udp/4001/quic-v1";

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn nat(class: NatClass) -> NatView {
    let public_ip = Some("128.66.0.7".parse().unwrap());
    NatView { class, public_ip, port_kept: Some(true), observers: 2, ..NatView::default() }
}

fn own_address(text: &str, source: AddressSource, verdict: Verdict) -> AddressView {
    AddressView {
        address: address(text),
        source,
        verdict,
        verified_by: Vec::new(),
        age: None,
        advertised: true,
        detail: String::new(),
    }
}

fn relay(state: RelayState, connections: u32, trouble: Option<RelayTrouble>) -> RelayView {
    RelayView {
        peer: PeerId::random(),
        configured: true,
        addresses: vec![address("/ip4/128.66.0.9/udp/4001/quic-v1")],
        state,
        connections,
        rtt: None,
        max_circuit_duration: None,
        max_circuit_bytes: None,
        trouble,
    }
}

/// What a relay has that no dial led to.
fn away(cause: &str) -> Option<RelayTrouble> {
    Some(RelayTrouble::NotReached(cause.to_owned()))
}

fn mappings(external: Option<&str>) -> Option<MappingView> {
    let gateway = Ipv4Addr::new(192, 168, 1, 1);
    let mapped = external.map(|external| Mapped {
        method: Method::Pcp,
        router: gateway,
        external: external.parse().unwrap(),
        expires: Instant::now() + Duration::from_secs(60),
        usable: true,
        reason: None,
    });
    let (transport, port) = (Transport::Udp, NonZeroU16::new(4001).unwrap());
    let by_hand = Forward { transport, port, to: Ipv4Addr::new(192, 168, 1, 5) };
    let error = mapped.is_none().then_some(Trouble::Silent { router: gateway, by_hand });
    let port = PortView { transport, internal_port: port.get(), mapped, error };
    Some(MappingView { gateway: Some(gateway), router: None, settled: true, ports: vec![port] })
}

/// A node at home, behind a router.
fn home(class: NatClass) -> ReachView {
    ReachView { nat_v4: nat(class), ..ReachView::default() }
}

fn at_home(reach: &ReachView) -> (Reachability, Vec<Advice>) {
    on(reach, &[address(HOME)])
}

fn on(reach: &ReachView, listen: &[Multiaddr]) -> (Reachability, Vec<Advice>) {
    let own = Own { local: PeerId::random(), reach, listen, has_servers: !reach.relays.is_empty() };
    assert!(!verdict(&own).is_empty());
    let advice = node(&own);
    for known in &advice {
        assert!(!known.cause.is_empty() && known.cures.iter().all(|cure| !cure.is_empty()), "{known:?}");
    }
    (reachability(&own), advice)
}

fn codes(advice: &[Advice]) -> Vec<&'static str> {
    advice.iter().map(|known| known.code).collect()
}

/// The advice of this code has these words in its cause and its cures.
#[track_caller]
fn says(advice: &[Advice], code: &str, cause: &[&str], cures: &[&str]) {
    let found = advice.iter().find(|known| known.code == code);
    let found = found.unwrap_or_else(|| panic!("no {code} in {advice:?}"));
    assert!(cause.iter().all(|word| found.cause.contains(word)), "{cause:?}: {}", found.cause);
    let all = found.cures.join("\n");
    assert!(cures.iter().all(|word| all.contains(word)), "{cures:?}: {all}");
}

// This node

#[test]
fn behind_a_nat_without_a_relay() {
    for class in [NatClass::EndpointIndependent, NatClass::Unknown] {
        let (far, advice) = at_home(&home(class));
        assert_eq!(far, Reachability::NeedsRelay);
        let cures = ["--serve on", "--relay", "forward UDP port 4001", "/ip4/128.66.0.7/udp/4001/quic-v1"];
        says(&advice, NEEDS_RELAY, &["no relay is configured"], &cures);
    }
}

#[test]
fn a_relay_that_is_being_asked_is_no_need_of_one() {
    for state in [RelayState::Connecting, RelayState::Reserving] {
        let reach = ReachView { relays: vec![relay(state, 0, None)], ..home(NatClass::EndpointIndependent) };
        assert_eq!(at_home(&reach).0, Reachability::Unknown);
    }
    let reach = ReachView { relays: vec![relay(RelayState::Reserved, 1, None)], ..home(NatClass::EndpointIndependent) };
    let (far, advice) = at_home(&reach);
    assert_eq!((far, codes(&advice)), (Reachability::Relayed, vec!["RELAY_SPARE_MISSING"]));
}

#[test]
fn what_works_needs_no_words() {
    let public = "/ip4/128.66.0.7/udp/4001/quic-v1";
    for (source, verdict) in
        [(AddressSource::Mapped, Verdict::Reachable), (AddressSource::Configured, Verdict::Assumed)]
    {
        let addresses = vec![own_address(public, source, verdict)];
        let reach = ReachView { addresses, ..home(NatClass::EndpointDependent) };
        assert_eq!(at_home(&reach), (Reachability::Direct, Vec::new()));
    }
    // Somebody on the same network reached it: that is not from outside.
    let addresses = vec![own_address(HOME, AddressSource::Interface, Verdict::Reachable)];
    assert_eq!(at_home(&ReachView { addresses, ..ReachView::default() }).0, Reachability::NeedsRelay);
}

#[test]
fn a_node_of_this_host_only_needs_nothing() {
    let listen = [address("/ip4/127.0.0.1/tcp/4001"), address("/ip6/::1/tcp/4001")];
    assert_eq!(on(&ReachView::default(), &listen), (Reachability::ThisHost, Vec::new()));
}

#[test]
fn a_public_host_that_nobody_has_tried() {
    let (far, advice) = on(&ReachView::default(), &[address("/ip4/128.66.0.7/udp/4001/quic-v1")]);
    assert_eq!((far, codes(&advice)), (Reachability::Unknown, vec!["NO_SERVERS"]));
}

#[test]
fn blocked_udp_is_told_with_its_cure() {
    let mut reach = home(NatClass::Unknown);
    reach.nat_v4.udp_blocked = true;
    reach.relays = vec![relay(RelayState::Waiting, 0, away("/ip4/128.66.0.9/udp/4001/quic-v1: timed out"))];
    let (_, advice) = at_home(&reach);
    says(&advice, "UDP_BLOCKED", &["UDP does not get out"], &["let UDP out"]);
    says(&advice, "RELAY_UNREACHABLE", &["timed out"], &["TCP address", "/tcp/4001", "p2p-node status"]);
}

#[test]
fn a_symmetric_nat_is_named() {
    let reach = ReachView { relays: vec![relay(RelayState::Reserved, 1, None)], ..home(NatClass::EndpointDependent) };
    let (_, advice) = at_home(&reach);
    says(&advice, "SYMMETRIC_NAT", &["another port"], &["forward UDP port 4001"]);
}

#[test]
fn nothing_in_the_router_helps_behind_a_carriers_nat() {
    let carrier = ReachView { mappings: mappings(Some("100.64.3.4:4001")), ..home(NatClass::EndpointIndependent) };
    let direct = home(NatClass::EndpointIndependent);
    for (reach, listen) in [(&carrier, HOME), (&direct, "/ip4/100.70.1.2/udp/4001/quic-v1")] {
        let (far, advice) = on(reach, &[address(listen)]);
        assert_eq!(far, Reachability::NeedsRelay);
        says(&advice, "CARRIER_NAT", &["carrier-grade"], &["ask the provider"]);
        let needs = &advice[0];
        assert!(needs.code == NEEDS_RELAY && needs.cures.len() == 1 && needs.cures[0].contains("VPS"), "{needs:?}");
    }
}

#[test]
fn two_routers_in_a_row() {
    for external in ["192.168.178.20:4001", "128.66.5.5:4001"] {
        let reach = ReachView { mappings: mappings(Some(external)), ..home(NatClass::EndpointIndependent) };
        let (_, advice) = at_home(&reach);
        says(&advice, "DOUBLE_NAT", &["behind another NAT"], &["bridge", "both forward UDP port 4001"]);
        says(&advice, NEEDS_RELAY, &[], &["and the router before that one too forward"]);
    }
}

#[test]
fn a_router_that_says_why_it_forwards_nothing() {
    let mut reach = ReachView { mappings: mappings(None), ..home(NatClass::EndpointIndependent) };
    let Some(Trouble::Silent { router, by_hand }) = reach.mappings.as_ref().unwrap().ports[0].error else { panic!() };
    let refused = |address| Trouble::Refused {
        router,
        address,
        refusals: vec![(Method::Pcp, "not allowed".to_owned()), (Method::Upnp, "error 606".to_owned())],
        by_hand,
    };
    for (trouble, cause, double) in [
        (refused(None), "no port is forwarded: the router at 192.168.1.1 refuses: PCP: not allowed", false),
        (refused(Some(BadAddress::Untold)), "the router at 192.168.1.1 forwards no port: the router has no", true),
    ] {
        reach.mappings.as_mut().unwrap().ports[0].error = Some(trouble);
        let (_, advice) = at_home(&reach);
        says(&advice, "NO_MAPPING", &[cause], &[]);
        assert_eq!(codes(&advice).contains(&"DOUBLE_NAT"), double, "{advice:?}");
    }
}

#[test]
fn a_router_that_gives_no_port() {
    let reach = ReachView { mappings: mappings(None), ..home(NatClass::EndpointIndependent) };
    let (_, advice) = at_home(&reach);
    let cures = ["switch on UPnP, NAT-PMP or PCP", "external = ["];
    says(&advice, "NO_MAPPING", &["no port is forwarded: the router at 192.168.1.1 answers neither PCP"], &cures);
}

#[test]
fn a_mapping_that_nobody_can_use() {
    let mapped = own_address("/ip4/128.66.0.7/udp/4001/quic-v1", AddressSource::Mapped, Verdict::Unreachable);
    let reach = ReachView {
        mappings: mappings(Some("128.66.0.7:4001")),
        addresses: vec![mapped],
        ..home(NatClass::EndpointIndependent)
    };
    let (far, advice) = at_home(&reach);
    assert_eq!(far, Reachability::NeedsRelay);
    says(
        &advice,
        "MAPPING_UNREACHABLE",
        &["128.66.0.7/udp/4001", "could not connect"],
        &["firewall of this host", "restart the router"],
    );
}

#[test]
fn firewalls_of_public_hosts() {
    let v6 = "/ip6/2001:db8::7/udp/4001/quic-v1";
    let v4 = "/ip4/128.66.0.7/udp/4001/quic-v1";
    for (text, source, code, cure) in [
        (v6, AddressSource::Interface, "IPV6_FIREWALL", "IPv6 firewall of the router"),
        (v4, AddressSource::Interface, "ADDRESS_UNREACHABLE", "of its provider"),
        (v4, AddressSource::Configured, "ADDRESS_UNREACHABLE", "the address is right"),
    ] {
        let reach =
            ReachView { addresses: vec![own_address(text, source, Verdict::Unreachable)], ..ReachView::default() };
        let (_, advice) = on(&reach, &[address(text)]);
        says(&advice, code, &[text], &[cure]);
    }
    // A NAT that lets in only whom the node has talked to is no fault.
    let addresses = vec![own_address(v4, AddressSource::Observed, Verdict::Unreachable)];
    let (_, advice) = at_home(&ReachView { addresses, ..home(NatClass::EndpointIndependent) });
    assert!(!codes(&advice).contains(&"ADDRESS_UNREACHABLE"), "{advice:?}");
}

#[test]
fn relays_that_are_away_or_say_no() {
    let reach = |relays| ReachView { relays, ..home(NatClass::EndpointIndependent) };
    let (far, advice) = at_home(&reach(vec![relay(RelayState::Waiting, 0, away("connection refused"))]));
    assert_eq!(far, Reachability::NeedsRelay);
    says(&advice, NEEDS_RELAY, &["its relay does not serve it"], &[]);
    says(&advice, "RELAY_UNREACHABLE", &["connection refused"], &["p2p-node status", "128.66.0.9"]);
    let (_, advice) = at_home(&reach(vec![relay(RelayState::Waiting, 1, Some(RelayTrouble::Refused))]));
    says(&advice, "RELAY_REFUSES", &["refused"], &["peer add", "serve = \"on\"", "another relay"]);
    let (_, advice) = at_home(&reach(vec![relay(RelayState::Waiting, 1, Some(RelayTrouble::Full))]));
    says(&advice, "RELAY_REFUSES", &["is full"], &["limits.relay_reservations"]);
}

#[test]
fn nats_in_a_line() {
    let step = NatView { port_step: Some(1), ..nat(NatClass::EndpointDependent) };
    let blocked = NatView { udp_blocked: true, ..NatView::default() };
    for (nat, words) in [
        (NatView::default(), "no server has told"),
        (NatView { observers: 1, ..NatView::default() }, "two are needed"),
        (nat(NatClass::None), "none: others see an address of this host itself, seen as 128.66.0.7"),
        (nat(NatClass::EndpointIndependent), "it keeps the port, seen as"),
        (nat(NatClass::EndpointDependent), "symmetric NAT: another port for each destination, without a pattern"),
        (step, "1 apart"),
        (blocked, "UDP, by which it is measured, does not get out"),
    ] {
        assert!(summary(&nat).contains(words), "{words}: {}", summary(&nat));
    }
}

// A peer

fn known(text: &str, outcome: Option<Result<(), DialCause>>) -> KnownAddressView {
    KnownAddressView { address: address(text), source: KnownSource::Book, age: Duration::ZERO, tried: None, outcome }
}

fn path(addresses: Vec<KnownAddressView>) -> PathView {
    PathView {
        peer: PeerId::random(),
        connections: Vec::new(),
        rtt: None,
        addresses,
        punches: Vec::new(),
        peer_nat: None,
        next_try: None,
        dialling: false,
    }
}

fn through_relay(peer_nat: Option<NatView>, punch: Option<Option<Result<Multiaddr, String>>>) -> PathView {
    let address = address(&format!("/ip4/128.66.0.9/udp/4001/quic-v1/p2p/{}/p2p-circuit", PeerId::random()));
    let age = Duration::from_secs(1);
    let connection = ConnectionView { route: Route::Relayed, address, dialled: true, age, in_use: true };
    let punch = punch.map(|outcome| {
        let (plan, addresses, took) = ("both dial over QUIC".to_owned(), Vec::new(), None);
        PunchView { age, round: 1, plan, addresses, took, outcome }
    });
    PathView { connections: vec![connection], punches: punch.into_iter().collect(), peer_nat, ..path(Vec::new()) }
}

fn of(path: Option<&PathView>, reach: &ReachView) -> (String, Vec<Advice>) {
    let listen = [address(HOME)];
    let own = Own { local: PeerId::random(), reach, listen: &listen, has_servers: true };
    let id = path.map_or_else(PeerId::random, |path| path.peer);
    peer(&Peer { id, path, blocked: false, trusted: true, refuses: false }, &own)
}

fn failed(cause: &str) -> Option<Option<Result<Multiaddr, String>>> {
    Some(Some(Err(cause.to_owned())))
}

#[test]
fn direct_ways_need_no_words() {
    for (route, words) in [(Route::Lan, "local network"), (Route::Direct, "directly")] {
        let mut view = through_relay(None, None);
        view.connections[0].route = route;
        let (verdict, advice) = of(Some(&view), &home(NatClass::EndpointDependent));
        assert!(verdict.contains(words) && advice.is_empty(), "{verdict}: {advice:?}");
    }
}

#[test]
fn trust_on_both_sides() {
    let view = through_relay(None, None);
    let (reach, listen) = (home(NatClass::None), [address(HOME)]);
    let own = Own { local: PeerId::random(), reach: &reach, listen: &listen, has_servers: true };
    let stranger = Peer { id: view.peer, path: Some(&view), blocked: false, trusted: false, refuses: false };
    says(&peer(&stranger, &own).1, "NOT_IN_BOOK", &["not trusted here"], &[&view.peer.to_string(), "p2p-node join"]);
    let refused = Peer { trusted: true, refuses: true, ..stranger };
    says(&peer(&refused, &own).1, "UNTRUSTED", &["does not trust"], &[&own.local.to_string()]);
    let blocked = Peer { blocked: true, path: None, ..stranger };
    says(&peer(&blocked, &own).1, "BLOCKED", &["address book"], &["p2p-node peer add"]);
}

#[test]
fn peers_of_which_nothing_is_known() {
    let reach = home(NatClass::None);
    let (verdict, advice) = of(None, &reach);
    assert!(verdict.contains("no address"), "{verdict}");
    says(&advice, "NO_ADDRESS", &["no server could be asked"], &["netcheck", "--address"]);
    let own = Own { local: PeerId::random(), reach: &reach, listen: &[], has_servers: false };
    let id = PeerId::random();
    let stranger = Peer { id, path: None, blocked: false, trusted: false, refuses: false };
    says(&peer(&stranger, &own).1, "UNKNOWN_PEER", &["nothing is known"], &["p2p-node find"]);
    let advice = [not_found(id, &own, 0)];
    says(&advice, "NO_ADDRESS", &["knows no server"], &["--bootstrap"]);
    let advice = [not_found(id, &own, 3)];
    says(&advice, "PEER_OFFLINE", &["none of the 3 servers"], &["published"]);
}

#[test]
fn each_cause_of_a_failed_dial_has_its_cure() {
    let reach = home(NatClass::None);
    let at = "/ip4/128.66.1.1/udp/4001/quic-v1";
    for (cause, cure) in [
        (DialCause::Refused, "start the daemon"),
        (DialCause::TimedOut, "the host is on"),
        (DialCause::WrongPeer { expected: PeerId::random(), obtained: PeerId::random() }, "another node lives"),
        (DialCause::NetworkUnreachable, "IPv6 on both sides"),
        (DialCause::NoOwnAddress, "IPv6 on both sides"),
        (DialCause::NameNotFound, "host name"),
        (DialCause::Other("a cause that nobody foresaw".to_owned()), "another address"),
    ] {
        let words = cause.to_string();
        let (verdict, advice) = of(Some(&path(vec![known(at, Some(Err(cause)))])), &reach);
        assert_eq!(verdict, "not connected: no address of it worked");
        says(&advice, "DIALS_FAILED", &[at, &words], &[cure]);
    }
}

#[test]
fn a_relay_that_does_not_know_the_peer() {
    let relay = PeerId::random();
    let circuit = format!("/ip4/128.66.0.9/udp/4001/quic-v1/p2p/{relay}/p2p-circuit");
    let view = path(vec![
        known("/ip4/128.66.1.1/udp/4001/quic-v1", Some(Err(DialCause::TimedOut))),
        known(&circuit, Some(Err(DialCause::NotAtRelay))),
    ]);
    let (verdict, advice) = of(Some(&view), &home(NatClass::None));
    assert!(verdict.contains("off"), "{verdict}");
    says(&advice, "PEER_OFFLINE", &[&relay.to_string(), "is off"], &["wait"]);
}

#[test]
fn a_network_that_lets_nothing_out_to_the_port() {
    let mut reach = home(NatClass::Unknown);
    reach.nat_v4.observers = 0;
    reach.relays = vec![relay(RelayState::Waiting, 0, away("timed out"))];
    let silent = |text: &str| known(text, Some(Err(DialCause::TimedOut)));
    let both = vec![silent("/ip4/128.66.1.1/udp/4001/quic-v1"), silent("/ip4/128.66.1.1/tcp/4001")];
    let (_, advice) = of(Some(&path(both.clone())), &reach);
    says(&advice, "PORT_BLOCKED", &["port 4001"], &["let UDP and TCP to port 4001 out", "443"]);
    // One answer, even of another node, and it is not the network.
    let mut one = both;
    one[1].outcome = Some(Err(DialCause::Refused));
    assert!(!codes(&of(Some(&path(one)), &reach).1).contains(&"PORT_BLOCKED"));
}

#[test]
fn a_dial_that_runs_or_was_never_made() {
    let reach = home(NatClass::None);
    let mut view = path(vec![known("/ip4/128.66.1.1/udp/4001/quic-v1", None)]);
    assert!(of(Some(&view), &reach).0.contains("was not dialled"));
    view.dialling = true;
    assert!(of(Some(&view), &reach).0.contains("being dialled"));
}

#[test]
fn why_a_peer_is_relayed() {
    let elsewhere = |class| NatView { public_ip: Some("128.66.8.8".parse().unwrap()), ..nat(class) };
    let (symmetric, mapping) = (NatClass::EndpointDependent, NatClass::EndpointIndependent);
    let blocked = NatView { udp_blocked: true, ..elsewhere(NatClass::Unknown) };
    let late = || failed("no packet came back");
    for (ours, theirs, punch, code, cause, cure) in [
        (symmetric, Some(elsewhere(symmetric)), late(), "BOTH_SYMMETRIC", "both sides", "one of the two is enough"),
        (
            symmetric,
            Some(elsewhere(mapping)),
            late(),
            "SYMMETRIC_AND_RESTRICTED",
            "this node is behind",
            "forward UDP port",
        ),
        (mapping, Some(elsewhere(symmetric)), late(), "SYMMETRIC_AND_RESTRICTED", "the peer is behind", "IPv6 on both"),
        (symmetric, Some(elsewhere(mapping)), None, "PUNCH_NOT_TRIED", "was tried yet", ""),
        (mapping, Some(nat(mapping)), late(), "SAME_NAT", "hairpinning", "local address"),
        (mapping, Some(blocked.clone()), late(), "UDP_BLOCKED", "the peer's network", "let UDP out"),
        (symmetric, Some(blocked), late(), "UDP_BLOCKED", "another port", "forward UDP port"),
        (mapping, Some(elsewhere(mapping)), late(), "PUNCH_FAILED", "no packet came back", "forward"),
        (mapping, None, None, "PUNCH_NOT_TRIED", "was tried yet", ""),
        (mapping, None, Some(None), "PUNCH_RUNNING", "both dial over QUIC", ""),
    ] {
        let view = through_relay(theirs, punch);
        let (verdict, advice) = of(Some(&view), &home(ours));
        assert!(verdict.starts_with("connected through relay "), "{verdict}");
        assert_eq!(codes(&advice), [code]);
        says(&advice, code, &[cause], &[cure]);
    }
}

#[test]
fn behind_a_carriers_nat_the_other_side_has_to_open() {
    let theirs = NatView { public_ip: Some("128.66.8.8".parse().unwrap()), ..nat(NatClass::EndpointDependent) };
    let reach = ReachView { mappings: mappings(Some("100.64.3.4:4001")), ..home(NatClass::EndpointDependent) };
    let (_, advice) = of(Some(&through_relay(Some(theirs), failed("timed out"))), &reach);
    says(&advice, "BOTH_SYMMETRIC", &[], &["router on the peer's side"]);
    assert!(!advice[0].cures.iter().any(|cure| cure.contains("to this host")), "{advice:?}");
}
