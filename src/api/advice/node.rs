//! Of this node: can others reach it, and what stands in the way.

use std::fmt::Display;

use libp2p::PeerId;

use super::{
    Advice, Own,
    address::{Scope, external_setting, ip, is_public, is_v6, ports, scope},
    nat::{Beyond, beyond, summary},
};
use crate::{
    node::{AddressSource, AddressView, NatClass, ReachView, RelayState, RelayTrouble, RelayView, Verdict},
    ports::{MappingView, Trouble},
};

/// Names the advice that Status tells too.
pub(in crate::api) const NEEDS_RELAY: &str = "NEEDS_RELAY";

/// How far a node can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Reachability {
    /// By everyone, directly.
    Direct,
    /// By everyone, through a relay at first.
    Relayed,
    /// Only from the local network, and nothing makes up for that.
    NeedsRelay,
    /// Not known, or not settled.
    Unknown,
    /// It listens on this host only.
    ThisHost,
}

/// How far this node can be reached.
pub(in crate::api) fn reachability(own: &Own<'_>) -> Reachability {
    let reach = own.reach;
    let only_here = !own.listen.is_empty()
        && own.listen.iter().all(|address| ip(address).is_some_and(|ip| ip.is_loopback()))
        && reach.relays.is_empty()
        && reach.addresses.iter().all(|view| view.source == AddressSource::Interface);
    let behind_nat = matches!(reach.nat_v4.class, NatClass::EndpointIndependent | NatClass::EndpointDependent);
    // While one is asked, the answer may be yes.
    let relays_failed = reach.relays.iter().all(|relay| relay.state == RelayState::Waiting);
    match () {
        () if reach.addresses.iter().any(works) => Reachability::Direct,
        () if reserved(reach).next().is_some() => Reachability::Relayed,
        () if only_here => Reachability::ThisHost,
        () if relays_failed && (behind_nat || !has_public_interface(own)) => Reachability::NeedsRelay,
        () => Reachability::Unknown,
    }
}

/// The sum of it in a line.
pub(in crate::api) fn verdict(own: &Own<'_>) -> String {
    let reach = own.reach;
    let through = |count: usize| if count == 1 { "a relay".to_owned() } else { format!("{count} relays") };
    match reachability(own) {
        Reachability::Direct => {
            let assumed =
                reach.addresses.iter().filter(|view| works(view)).all(|view| view.verdict == Verdict::Assumed);
            let but = if assumed { "; nobody has verified that, the settings say so" } else { "" };
            format!("reachable: others connect to this node directly{but}")
        }
        Reachability::Relayed => {
            let relays = through(reserved(reach).count());
            format!("reachable through {relays}: direct connections are made where the networks let them")
        }
        Reachability::NeedsRelay => "not reachable from outside the local network, and it needs a relay".to_owned(),
        Reachability::Unknown if reach.relays.is_empty() => {
            "not known: it has a public address, and nobody outside has tried to connect to it".to_owned()
        }
        Reachability::Unknown => "not settled: a relay is being asked".to_owned(),
        Reachability::ThisHost => "not reachable from outside: it listens on this host only".to_owned(),
    }
}

/// What is wrong, the most important first.
pub(in crate::api) fn node(own: &Own<'_>) -> Vec<Advice> {
    let far = reachability(own);
    if far == Reachability::ThisHost {
        return Vec::new();
    }
    let mut all = Vec::new();
    all.extend((far == Reachability::NeedsRelay).then(|| needs_relay(own)));
    all.extend(own.reach.relays.iter().filter_map(|relay| relay_trouble(relay, own)));
    all.extend(udp_blocked(own));
    all.extend(addresses(own));
    if far != Reachability::Direct {
        all.extend(outer_nat(own));
        all.extend(no_mapping(own));
        all.extend(symmetric(own));
    }
    all.extend(spare_missing(own, far));
    all.extend((far == Reachability::Unknown && !own.has_servers).then(no_servers));
    all
}

/// Whether others can connect to an address, from everywhere.
fn works(view: &AddressView) -> bool {
    let relayed = view.source == AddressSource::Relay;
    !relayed && is_public(&view.address) && matches!(view.verdict, Verdict::Reachable | Verdict::Assumed)
}

fn reserved(reach: &ReachView) -> impl Iterator<Item = &RelayView> {
    reach.relays.iter().filter(|relay| relay.state == RelayState::Reserved)
}

fn has_public_interface(own: &Own<'_>) -> bool {
    let views = own.reach.addresses.iter().filter(|view| view.source == AddressSource::Interface);
    own.listen.iter().chain(views.map(|view| &view.address)).filter_map(ip).any(|ip| scope(ip) == Scope::Public)
}

fn needs_relay(own: &Own<'_>) -> Advice {
    let nat = &own.reach.nat_v4;
    let place = match nat.class {
        NatClass::EndpointIndependent | NatClass::EndpointDependent => format!("it is behind {}", summary(nat)),
        _ => "it has no public address".to_owned(),
    };
    let relay = match own.reach.relays.len() {
        0 => "no relay is configured",
        1 => "its relay does not serve it",
        _ => "none of its relays serves it",
    };
    let mut cures = vec![relay_cure()];
    cures.extend(mapping_cures(own));
    Advice::new(
        NEEDS_RELAY,
        format!("peers outside the local network cannot reach this node: {place}, and {relay}"),
        cures,
    )
}

/// A relay, in the words of the command line.
fn relay_cure() -> String {
    "run `p2p-node run --serve on` on a host with a public address, a small VPS will do, and name it here and on the \
     peers: `--relay /ip4/ITS_IP/udp/4001/quic-v1/p2p/ITS_PEER_ID`, or `relay` in the settings"
        .to_owned()
}

/// How the router may let others in; nothing where that cannot help.
pub(super) fn mapping_cures(own: &Own<'_>) -> Vec<String> {
    if beyond(own) == Beyond::Carrier {
        return Vec::new();
    }
    let (ports, setting) = (ports(own.listen), external_setting(own.listen, own.reach.nat_v4.public_ip));
    let both = if beyond(own) == Beyond::Router { ", and the router before that one too" } else { "" };
    // A router that tells nothing may be behind another one.
    let unless = match &own.reach.mappings {
        Some(mappings) if has_mapping(mappings) => "",
        _ => "; that helps only if the router itself has a public address",
    };
    let by_hand =
        format!("have the router{both} forward {ports} to this host, and say so in the settings: {setting}{unless}");
    let by_itself = "switch on UPnP, NAT-PMP or PCP in the router".to_owned();
    let asked = own.reach.mappings.as_ref().is_some_and(|mappings| mappings.settled && !has_mapping(mappings));
    if asked && both.is_empty() { vec![by_itself, by_hand] } else { vec![by_hand] }
}

fn has_mapping(mappings: &MappingView) -> bool {
    mappings.ports.iter().any(|port| port.mapped.is_some())
}

fn relay_trouble(relay: &RelayView, own: &Own<'_>) -> Option<Advice> {
    if relay.state != RelayState::Waiting {
        return None;
    }
    let (peer, detail) = (relay.peer, because(relay.trouble.as_ref()));
    if relay.trouble == Some(RelayTrouble::Full) {
        let cures = vec!["on the relay, raise `limits.relay_reservations`".to_owned(), "name another relay".to_owned()];
        return Some(Advice::new("RELAY_REFUSES", format!("relay {peer} is full{detail}"), cures));
    }
    if relay.connections > 0 || relay.trouble == Some(RelayTrouble::Refused) {
        let cures = vec![
            format!(
                "on the relay, run `p2p-node peer add {}`: with `serve = \"auto\"` it serves trusted peers only",
                own.local
            ),
            "on the relay, set `serve = \"on\"`: it then serves everyone, within its limits".to_owned(),
            "name another relay".to_owned(),
        ];
        return Some(Advice::new("RELAY_REFUSES", format!("relay {peer} does not serve this node{detail}"), cures));
    }
    let mut cures = vec![
        format!(
            "see on the relay that it runs (`p2p-node status`) and has this peer id and address: {}",
            listed(relay)
        ),
        "let UDP and TCP to its port in: the firewall of that host, and of its provider".to_owned(),
    ];
    if own.reach.nat_v4.udp_blocked
        && !relay.addresses.iter().any(|a| super::address::port(a).is_some_and(|(_, udp)| !udp))
    {
        cures.insert(
            0,
            "name its TCP address too, /ip4/ITS_IP/tcp/4001/p2p/ITS_PEER_ID: UDP does not get out here".to_owned(),
        );
    }
    Some(Advice::new("RELAY_UNREACHABLE", format!("relay {peer} cannot be reached{detail}"), cures))
}

fn because(cause: Option<impl Display>) -> String {
    cause.map_or_else(String::new, |cause| format!(": {cause}"))
}

fn listed(relay: &RelayView) -> String {
    let all: Vec<String> = relay.addresses.iter().map(ToString::to_string).collect();
    if all.is_empty() { "none is known".to_owned() } else { all.join(", ") }
}

fn udp_blocked(own: &Own<'_>) -> Option<Advice> {
    own.reach.nat_v4.udp_blocked.then(|| {
        let cause = "UDP does not get out of this network, TCP does: connections go over TCP, which is slower to set up \
                     and passes fewer NATs";
        Advice::new("UDP_BLOCKED", cause, vec!["let UDP out in the firewall of this network".to_owned()])
    })
}

/// Addresses that should work and do not.
fn addresses(own: &Own<'_>) -> Vec<Advice> {
    let failed =
        own.reach.addresses.iter().filter(|view| view.verdict == Verdict::Unreachable && is_public(&view.address));
    let mut all: Vec<Advice> = Vec::new();
    for view in failed {
        let Some(advice) = address(view, own) else { continue };
        // One word for all ports of a host.
        if all.iter().all(|known| known.code != advice.code) {
            all.push(advice);
        }
    }
    all
}

fn address(view: &AddressView, own: &Own<'_>) -> Option<Advice> {
    let (address, tried, detail) =
        (&view.address, servers(&view.verified_by), because(Some(&view.detail).filter(|detail| !detail.is_empty())));
    let ports = ports(own.listen);
    let host = format!("let {ports} in: the firewall of this host");
    match view.source {
        AddressSource::Mapped => {
            let cause =
                format!("the router says that it forwards {address}, but {tried} could not connect there{detail}");
            let cures = match beyond(own) {
                Beyond::Carrier => vec!["use a relay: the provider's NAT before the router lets nobody in".to_owned()],
                Beyond::Router => {
                    vec![format!("forward {ports} in the router before that one too, or make one of the two a bridge")]
                }
                Beyond::Nothing => vec![
                    host,
                    "restart the router: some forget what they promised".to_owned(),
                    format!("have the router forward {ports} to this host by hand"),
                ],
            };
            Some(Advice::new("MAPPING_UNREACHABLE", cause, cures))
        }
        AddressSource::Interface if is_v6(address) => {
            let cause = format!("a firewall keeps out who connects to {address} by IPv6: {tried} could not{detail}");
            Some(Advice::new(
                "IPV6_FIREWALL",
                cause,
                vec![format!("let {ports} to this host in: the IPv6 firewall of the router"), host],
            ))
        }
        AddressSource::Interface => {
            let cause = format!("this host has {address}, but {tried} could not connect there{detail}");
            Some(Advice::new("ADDRESS_UNREACHABLE", cause, vec![format!("{host}, and of its provider")]))
        }
        AddressSource::Configured => {
            let cause = format!("the setting `external` names {address}, but {tried} could not connect there{detail}");
            let forward = format!("see that the address is right, and that {ports} is forwarded to this host");
            Some(Advice::new("ADDRESS_UNREACHABLE", cause, vec![forward, host]))
        }
        // A NAT that lets in only whom this node has talked to: that is what
        // hole punching is for.
        AddressSource::Observed | AddressSource::Relay => None,
    }
}

fn servers(who: &[PeerId]) -> String {
    match who {
        [] => "others".to_owned(),
        [one] => format!("{one}"),
        [one, rest @ ..] => format!("{one} and {} more", rest.len()),
    }
}

fn outer_nat(own: &Own<'_>) -> Option<Advice> {
    let stays = "it goes on through a relay";
    match beyond(own) {
        Beyond::Nothing => None,
        Beyond::Carrier => Some(Advice::new(
            "CARRIER_NAT",
            format!(
                "the provider has a NAT of its own before this network (carrier-grade NAT): no setting of the router lets others in; {stays}"
            ),
            vec!["ask the provider for a public IPv4 address, or for IPv6".to_owned()],
        )),
        Beyond::Router => Some(Advice::new(
            "DOUBLE_NAT",
            "the router is itself behind another NAT: what it forwards stays between the two".to_owned(),
            vec![
                "make one of the two routers a bridge (\"modem mode\")".to_owned(),
                format!("have both forward {}", ports(own.listen)),
            ],
        )),
    }
}

fn no_mapping(own: &Own<'_>) -> Option<Advice> {
    let mappings = own.reach.mappings.as_ref().filter(|mappings| mappings.settled && !has_mapping(mappings))?;
    let gateway = mappings.gateway?;
    // What to do about it is told here, for all ports at once.
    let cause = match mappings.ports.iter().find_map(|port| port.error.as_ref()) {
        Some(said @ (Trouble::Silent { .. } | Trouble::Refused { address: None, .. })) => {
            format!("no port is forwarded: {}", said.cause())
        }
        error => format!("the router at {gateway} forwards no port{}", because(error.map(Trouble::cause))),
    };
    Some(Advice::new("NO_MAPPING", cause, mapping_cures(own)))
}

fn symmetric(own: &Own<'_>) -> Option<Advice> {
    (own.reach.nat_v4.class == NatClass::EndpointDependent).then(|| {
        let cause = "the NAT gives each destination another port (a symmetric NAT): peers behind a NAT that looks at \
                     ports are reached through a relay only";
        Advice::new("SYMMETRIC_NAT", cause, mapping_cures(own))
    })
}

fn spare_missing(own: &Own<'_>, far: Reachability) -> Option<Advice> {
    let one = own.reach.relays.len() == 1 && far == Reachability::Relayed;
    one.then(|| {
        let cause = "there is one relay only: while that is away, peers cannot reach this node";
        Advice::new("RELAY_SPARE_MISSING", cause, vec!["name a second relay, on another host".to_owned()])
    })
}

fn no_servers() -> Advice {
    let cause = "no other node is known that could tell how this one looks from outside, or where peers are";
    let cure =
        "name a relay or a bootstrap node: `--relay` or `--bootstrap`, or `relay` and `bootstrap` in the settings";
    Advice::new("NO_SERVERS", cause, vec![cure.to_owned()])
}
