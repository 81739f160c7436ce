//! Of the way to a peer: why it is as it is, and what would make it better.

use libp2p::PeerId;

use super::{
    Advice, Own,
    address::{is_circuit, is_public, port},
    node::{NEEDS_RELAY, Reachability, mapping_cures, reachability},
};
use crate::{
    node::{DialCause, KnownAddressView, NatClass, NatView, PathView, PunchView, RelayState, relay_of},
    types::Route,
};

/// A peer, as far as the words need it.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Peer<'a> {
    /// Its id.
    pub(in crate::api) id: PeerId,
    /// How it is reached; `None` if the network knows nothing of it.
    pub(in crate::api) path: Option<&'a PathView>,
    /// The address book refuses it.
    pub(in crate::api) blocked: bool,
    /// Messages to and from it are accepted here.
    pub(in crate::api) trusted: bool,
    /// It is connected and refuses messages of this node.
    pub(in crate::api) refuses: bool,
}

/// An address that did not lead to the peer, and why.
type Failed<'a> = (&'a KnownAddressView, &'a DialCause);

/// The sum of it in a line, and what is wrong, the most important first.
pub(in crate::api) fn peer(peer: &Peer<'_>, own: &Own<'_>) -> (String, Vec<Advice>) {
    let best = peer.path.and_then(|path| path.connections.first());
    let (verdict, mut advice) = match best {
        _ if peer.blocked => ("not connected: this node blocks it".to_owned(), vec![blocked(peer)]),
        None => away(peer, own),
        Some(best) => match best.route {
            Route::Lan => ("connected on the local network".to_owned(), Vec::new()),
            Route::Direct => ("connected directly".to_owned(), Vec::new()),
            Route::Relayed => relayed(peer, own),
        },
    };
    if peer.refuses {
        let cure = format!("over there, run `p2p-node peer add {}`", own.local);
        advice
            .insert(0, Advice::new("UNTRUSTED", "the peer does not trust this node: it takes no messages", vec![cure]));
    }
    if !peer.trusted && !peer.blocked {
        let cause = "the peer is not trusted here: no messages pass, and it is not dialled by itself";
        let cures = vec![
            format!("run `p2p-node peer add {}`", peer.id),
            "use a ticket: `p2p-node invite` and `p2p-node join`".to_owned(),
        ];
        advice.push(Advice::new("NOT_IN_BOOK", cause, cures));
    }
    (verdict, advice)
}

/// Why a search found nothing.
pub(in crate::api) fn not_found(id: PeerId, own: &Own<'_>, servers_asked: u32) -> Advice {
    if servers_asked > 0 {
        let cause = format!(
            "none of the {servers_asked} servers asked knows where peer {id} is: it is off, or has not reached this network"
        );
        let cures = vec![
            "over there, see that `p2p-node status` says published: it needs the same relay or bootstrap node as this one".to_owned(),
            give_address(id),
        ];
        return Advice::new("PEER_OFFLINE", cause, cures);
    }
    let cause = if own.has_servers {
        format!(
            "no address of peer {id} is known, and no server could be asked: this node reaches no relay or bootstrap node now"
        )
    } else {
        format!("no address of peer {id} is known, and this node knows no server to ask")
    };
    let name = if own.has_servers {
        "see with `p2p-node netcheck` why its relays and bootstrap nodes cannot be reached"
    } else {
        "name the relay or bootstrap node that the peer uses too: `--relay` or `--bootstrap`, or in the settings"
    };
    Advice::new("NO_ADDRESS", cause, vec![name.to_owned(), give_address(id)])
}

fn give_address(id: PeerId) -> String {
    format!("give an address of it: `p2p-node peer add {id} --address MULTIADDR`")
}

fn blocked(peer: &Peer<'_>) -> Advice {
    let cure = format!("run `p2p-node peer add {}`, which trusts it again", peer.id);
    Advice::new("BLOCKED", "the address book blocks this peer: connections with it are refused", vec![cure])
}

// Not connected

fn away(peer: &Peer<'_>, own: &Own<'_>) -> (String, Vec<Advice>) {
    let Some(path) = peer.path else {
        if peer.trusted {
            return ("not connected: no address of it is known".to_owned(), vec![not_found(peer.id, own, 0)]);
        }
        let cause = "nothing is known of this peer";
        let cures = vec![
            format!("check that the id is right, and look for it: `p2p-node find {}`", peer.id),
            give_address(peer.id),
        ];
        return ("not connected: nothing is known of it".to_owned(), vec![Advice::new("UNKNOWN_PEER", cause, cures)]);
    };
    let failed: Vec<Failed<'_>> = path.addresses.iter().filter_map(failure).collect();
    let untried = path.addresses.len() - failed.len();
    let advice = match () {
        () if path.addresses.is_empty() => vec![not_found(peer.id, own, u32::from(own.reach.finding.bootstrapped))],
        () if failed.is_empty() => Vec::new(),
        () => failures(peer.id, &failed, own),
    };
    let verdict = match () {
        () if path.dialling => "not connected: it is being dialled now".to_owned(),
        () if path.addresses.is_empty() => "not connected: no address of it is known".to_owned(),
        () if untried > 0 && failed.is_empty() => {
            "not connected: it was not dialled; `p2p-node connect` does that".to_owned()
        }
        () => format!("not connected: {}", advice.first().map_or("no address of it worked", |first| short(first.code))),
    };
    (verdict, advice)
}

fn short(code: &str) -> &'static str {
    match code {
        "PEER_OFFLINE" => "it seems to be off",
        "PORT_BLOCKED" => "this network seems to let nothing out to its port",
        _ => "no address of it worked",
    }
}

fn failure(view: &KnownAddressView) -> Option<Failed<'_>> {
    match &view.outcome {
        Some(Err(cause)) => Some((view, cause)),
        _ => None,
    }
}

fn failures(id: PeerId, failed: &[Failed<'_>], own: &Own<'_>) -> Vec<Advice> {
    let not_there = failed.iter().find(|(_, cause)| **cause == DialCause::NotAtRelay);
    let relay = not_there.and_then(|(view, _)| relay_of(&view.address));
    if let Some(relay) = relay {
        let cause = format!(
            "relay {relay} answers, and says that the peer is not connected to it: the peer is off, or has no network"
        );
        let cures = vec![
            "over there, see that the daemon runs (`p2p-node status`) and that the relay is the same (`p2p-node netcheck`)".to_owned(),
            "wait: messages stay queued and go when it is back".to_owned(),
        ];
        return vec![Advice::new("PEER_OFFLINE", cause, cures)];
    }
    let direct: Vec<Failed<'_>> = failed.iter().filter(|(view, _)| is_public(&view.address)).copied().collect();
    let mut all = Vec::new();
    all.extend(port_blocked(&direct, own));
    all.extend(all.is_empty().then(|| dials_failed(id, failed, own)));
    // The peer may be behind a NAT: then only a relay leads to it.
    if own.reach.relays.is_empty() && !failed.iter().any(|(view, _)| is_circuit(&view.address)) {
        all.extend(no_way_around(own));
    }
    all
}

fn dials_failed(id: PeerId, failed: &[Failed<'_>], own: &Own<'_>) -> Advice {
    /// The rest is in the list of addresses.
    const TOLD: usize = 3;
    let told: Vec<String> =
        failed.iter().take(TOLD).map(|(view, cause)| format!("{}: {cause}", view.address)).collect();
    let more = failed.len().saturating_sub(TOLD);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let any = |fits: fn(&DialCause) -> bool| failed.iter().any(|(_, cause)| fits(cause));
    let mut cures = Vec::new();
    if any(|cause| *cause == DialCause::Refused) {
        cures.push("over there, start the daemon: the host answers, and nothing listens on that port".to_owned());
    }
    if any(|cause| matches!(cause, DialCause::WrongPeer { .. })) {
        cures.push(format!(
            "give its present address (`p2p-node peer add {id} --address MULTIADDR`): another node lives at the old one"
        ));
    }
    if any(|cause| matches!(cause, DialCause::TimedOut | DialCause::NoRoute)) {
        cures.push("over there, see that the host is on, that the address is still its own, and that its firewall lets the port in".to_owned());
    }
    if any(|cause| matches!(cause, DialCause::NetworkUnreachable | DialCause::NoOwnAddress)) {
        cures.push("see that this host has a network of that kind: IPv6 addresses need IPv6 on both sides".to_owned());
    }
    if any(|cause| *cause == DialCause::NameNotFound) {
        cures.push("correct the host name in the address".to_owned());
    }
    if cures.is_empty() || !own.reach.finding.bootstrapped {
        cures.push(format!("give another address: `p2p-node peer add {id} --address MULTIADDR`"));
    }
    Advice::new("DIALS_FAILED", format!("no address of the peer worked: {}{more}", told.join("; ")), cures)
}

/// Nothing outside answers at all, on one port: a network that lets only the
/// web out.
fn port_blocked(direct: &[Failed<'_>], own: &Own<'_>) -> Option<Advice> {
    let silent =
        |cause: &DialCause| matches!(cause, DialCause::TimedOut | DialCause::NetworkUnreachable | DialCause::NoRoute);
    let mut ports: Vec<u16> = direct.iter().filter_map(|(view, _)| port(&view.address)).map(|(port, _)| port).collect();
    ports.sort_unstable();
    ports.dedup();
    let [port] = ports[..] else { return None };
    let relays_silent = !own.reach.relays.is_empty()
        && own.reach.relays.iter().all(|relay| relay.state == RelayState::Waiting && relay.connections == 0);
    let both = direct.iter().any(|(view, _)| super::address::port(&view.address).is_some_and(|(_, udp)| udp))
        && direct.iter().any(|(view, _)| super::address::port(&view.address).is_some_and(|(_, udp)| !udp));
    let blocked =
        both && relays_silent && own.reach.nat_v4.observers == 0 && direct.iter().all(|(_, cause)| silent(cause));
    blocked.then(|| {
        let cause = format!("nothing outside answers on port {port}, neither the peer nor any relay: the firewall of this network seems to let nothing out to it");
        let cures = vec![
            format!("let UDP and TCP to port {port} out in the firewall of this network"),
            "have the relay listen on a port that gets out: `p2p-node run --serve on --listen /ip4/0.0.0.0/udp/443/quic-v1 --listen /ip4/0.0.0.0/tcp/443`".to_owned(),
        ];
        Advice::new("PORT_BLOCKED", cause, cures)
    })
}

fn no_way_around(own: &Own<'_>) -> Option<Advice> {
    let own_side = reachability(own) == Reachability::NeedsRelay;
    own_side.then(|| {
        let cause = "no relay is configured: a peer behind a NAT cannot be reached without one, nor can this node";
        super::node::node(own).into_iter().find(|advice| advice.code == NEEDS_RELAY).map_or_else(
            || Advice::new(NEEDS_RELAY, cause, Vec::new()),
            |known| Advice { cause: cause.to_owned(), ..known },
        )
    })
}

// Relayed

fn relayed(peer: &Peer<'_>, own: &Own<'_>) -> (String, Vec<Advice>) {
    let Some(path) = peer.path else { return (String::new(), Vec::new()) };
    let relay = path.connections.first().and_then(|best| relay_of(&best.address));
    let through = relay.map_or_else(|| "through a relay".to_owned(), |relay| format!("through relay {relay}"));
    let (why, advice) = why_relayed(path, own);
    (format!("connected {through}: {why}"), advice)
}

fn why_relayed(path: &PathView, own: &Own<'_>) -> (&'static str, Vec<Advice>) {
    if let Some(round) = path.punches.last().filter(|round| round.outcome.is_none()) {
        let cause = format!("a direct connection is being tried: {}", round.plan);
        return ("a direct connection is being tried now", vec![Advice::new("PUNCH_RUNNING", cause, Vec::new())]);
    }
    let (ours, theirs) = (&own.reach.nat_v4, path.peer_nat.as_ref());
    let last = path.punches.iter().rev().find_map(punch_failure);
    let tried = match last {
        Some(cause) => format!("; {} tried, the last failed: {cause}", attempts(path.punches.len())),
        None => String::new(),
    };
    let advise = |code, cause: String, cures| vec![Advice::new(code, format!("{cause}{tried}"), cures)];
    let symmetric = |nat: &NatView| nat.class == NatClass::EndpointDependent;
    let maps = |nat: &NatView| nat.class == NatClass::EndpointIndependent;
    match theirs {
        Some(theirs) if ours.public_ip.is_some() && ours.public_ip == theirs.public_ip => {
            ("both are behind the same router", advise("SAME_NAT", same_nat(ours), same_nat_cures(path.peer)))
        }
        Some(theirs) if symmetric(ours) && symmetric(theirs) => {
            let cause = "both sides are behind symmetric NATs, which give each destination another port: neither can tell the other where to send";
            ("both sides are behind symmetric NATs", advise("BOTH_SYMMETRIC", cause.to_owned(), either_side(own)))
        }
        // One that lets in every port can be met: only trying shows which it is.
        Some(theirs) if last.is_some() && (symmetric(ours) && maps(theirs) || maps(ours) && symmetric(theirs)) => {
            let (here, there) = if symmetric(ours) { ("this node", "the peer") } else { ("the peer", "this node") };
            let cause = format!(
                "{here} is behind a symmetric NAT, and the NAT of {there} lets in only the ports that it has sent to: the two cannot meet"
            );
            (
                "a symmetric NAT meets one that looks at ports",
                advise("SYMMETRIC_AND_RESTRICTED", cause, either_side(own)),
            )
        }
        _ if ours.udp_blocked || theirs.is_some_and(|nat| nat.udp_blocked) => {
            let place = if ours.udp_blocked { "this network" } else { "the peer's network" };
            let mut cures = either_side(own);
            let cause = if symmetric(ours) || theirs.is_some_and(symmetric) {
                // UDP would be stopped there as well.
                format!("UDP does not get out of {place}, and the other side's NAT gives each destination another port")
            } else {
                cures.insert(0, format!("let UDP out in the firewall of {place}"));
                format!(
                    "UDP does not get out of {place}: a direct connection has to be made over TCP, which passes fewer NATs"
                )
            };
            ("UDP is blocked", advise("UDP_BLOCKED", cause, cures))
        }
        _ if path.punches.is_empty() => {
            let cause =
                "no direct connection was tried yet: it is, as soon as both sides know how they look from outside"
                    .to_owned();
            ("a direct connection was not tried yet", advise("PUNCH_NOT_TRIED", cause, Vec::new()))
        }
        _ => {
            let cause = "the attempts at a direct connection failed".to_owned();
            ("no direct connection could be made", advise("PUNCH_FAILED", cause, either_side(own)))
        }
    }
}

fn attempts(count: usize) -> String {
    if count == 1 { "one attempt was".to_owned() } else { format!("{count} attempts were") }
}

fn punch_failure(round: &PunchView) -> Option<&str> {
    match &round.outcome {
        Some(Err(cause)) => Some(cause),
        _ => None,
    }
}

fn same_nat(ours: &NatView) -> String {
    let ip = ours.public_ip.map_or_else(String::new, |ip| format!(" ({ip})"));
    format!(
        "both are behind the same router{ip}, or the same NAT of a provider, which does not lead back in what goes to its own outer address (no hairpinning), and neither sees the other on its local network"
    )
}

fn same_nat_cures(peer: PeerId) -> Vec<String> {
    vec![
        "let the two see each other on the local network: one subnet, no guest network or client isolation, mDNS on"
            .to_owned(),
        format!("give its local address: `p2p-node peer add {peer} --address /ip4/192.168.X.Y/udp/4001/quic-v1`"),
    ]
}

/// What lets a direct connection through; on one side is enough.
fn either_side(own: &Own<'_>) -> Vec<String> {
    let mut cures = mapping_cures(own);
    cures.push(match cures.len() {
        0 => "have the router on the peer's side forward its port: that is enough for both".to_owned(),
        _ => "the same on the peer's side: one of the two is enough".to_owned(),
    });
    if own.reach.nat_v6.public_ip.is_none() {
        cures.push("IPv6 on both sides".to_owned());
    }
    cures
}
