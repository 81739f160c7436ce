//! Who dials, who punches, where and when: made of what both sides brought, so
//! that both make the same plan. Nothing here waits or dials.
//!
//! One side dials over QUIC and the other punches: it sends packets from its
//! listening socket, which opens its own NAT for the dial. Were both to dial,
//! there would be two connections. A side whose NAT gives each destination
//! another port dials, for its port is known only to whom it sends; otherwise
//! the side dials that opened the exchange, because the other one punches
//! already when the answer arrives, and they change places each round.

use std::time::Duration;

use super::targets::Targets;
use crate::{
    swarm::route::is_local,
    wire::punch::{Candidate, CandidateKind, Mapping, Offer, Transport},
};

/// Rounds in quick succession; then the peer is looked at again from time to
/// time.
pub(super) const QUICK_ROUNDS: u32 = 3;
/// How long a round takes: some round trips round the world, with losses.
pub(super) const ROUND: Duration = Duration::from_millis(2500);
/// TCP after QUIC had a chance of several round trips.
const TCP_AFTER: Duration = Duration::from_millis(600);
/// TCP to an address that anybody can connect to, after QUIC.
const PLAIN_TCP_AFTER: Duration = Duration::from_millis(250);
/// Dials of a side that does not know when the other's packets go out. A lost
/// first packet is sent again only after a second, so another dial goes out
/// before; the first that gets through ends the others.
const STAGGER_MS: [u64; 9] = [0, 15, 45, 100, 180, 320, 550, 900, 1500];
/// Dials for a peer that this node has no interest of its own in: each may go
/// to a host that never asked for it.
const STRANGER_MS: [u64; 2] = [0, 400];
/// Dials of a side that the other punches for already, in parts of the round
/// trip: the first gets through unless it is lost.
const PATIENT: [f64; 5] = [0.0, 1.3, 2.2, 3.5, 6.0];
/// Least time between two of those.
const PATIENT_LEAST: Duration = Duration::from_millis(60);
/// A round trip that is not known.
const SOME_RTT: Duration = Duration::from_millis(150);
/// Dials of an address known from before, while the exchange is under way. The
/// other side's packets go out when it hears the offer, which takes about as
/// long as the dial's way.
const EARLY_MS: [u64; 4] = [10, 30, 70, 150];
/// What this side makes of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// What to do, in no order.
    pub(super) steps: Vec<Step>,
    /// For a person.
    pub(super) words: String,
    /// Nothing makes this work but a change: one round is enough.
    pub(super) hopeless: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// How long after the clock's start.
    pub(super) after: Duration,
    /// Which clock.
    pub(super) clock: Clock,
    /// What.
    pub(super) act: Act,
    /// Where; not empty.
    pub(super) targets: Vec<Candidate>,
}

/// When a side's time begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// It heard what the other side brings.
    Heard,
    /// The same moment for both: SYNC, of which one half of the round trip
    /// passed for the side that sent it.
    Synced,
}

/// What to do at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Act {
    /// Connect, from the listening socket or port.
    Dial,
    /// Send packets from the listening socket, and expect the peer's dial.
    Punch,
    /// TCP from both sides at once, as the side that dials.
    Open,
    /// TCP from both sides at once, as the side that is dialled.
    Accept,
}

/// What only this side knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// This side opened the exchange.
    pub(super) leader: bool,
    /// From 1.
    pub(super) round: u32,
    /// Addresses of a local network may be tried: the peer is trusted.
    pub(super) trusted: bool,
    /// This side wants the peer; otherwise less is done for it.
    pub(super) wanted: bool,
    /// The relay is on this host, so the peer may be too.
    pub(super) loopback: bool,
    /// Round trip of the exchange.
    pub(super) rtt: Option<Duration>,
}

/// Makes this side's plan for a round between two nodes of this kind.
pub(super) fn plan(mine: &Offer, theirs: &Offer, terms: Terms) -> Plan {
    let dials = dials(mine, theirs, terms);
    let targets = Targets::of(mine, theirs, terms);
    let no_udp = mine.udp_blocked || theirs.udp_blocked;
    let mut steps = Vec::new();
    let mut words = Vec::new();
    if !no_udp {
        quic(&mut steps, &targets, dials, terms);
        words.push(if dials { "this node dials over QUIC, the peer punches" } else { "the peer dials over QUIC" });
    }
    if dials {
        let after = if no_udp { Duration::ZERO } else { PLAIN_TCP_AFTER };
        add(&mut steps, after, Clock::Heard, Act::Dial, &targets.open_tcp);
    }
    let both_tcp = !targets.tcp.is_empty() && has_tcp(mine);
    if both_tcp {
        let after = if no_udp { Duration::ZERO } else { TCP_AFTER };
        if dials {
            // Another dial from the same port to the same address is impossible.
            let rest: Vec<_> = targets.tcp.iter().filter(|known| !targets.open_tcp.contains(known)).copied().collect();
            add(&mut steps, after, Clock::Synced, Act::Open, &rest);
        } else {
            add(&mut steps, after + wait_for_open(terms), Clock::Synced, Act::Accept, &targets.tcp);
        }
        words.push(match no_udp {
            true => "both dial over TCP at once, as UDP is blocked",
            false => "then both dial over TCP at once",
        });
    } else if no_udp && !targets.open_tcp.is_empty() {
        words.push(if dials { "this node dials over TCP" } else { "the peer dials over TCP" });
    }
    let hopeless = is_hopeless(mine, theirs, &targets);
    Plan { steps, words: words.join("; "), hopeless }
}

/// How much later the side begins that is to be dialled over TCP. The round
/// before may have left the NATs open, so that the first packet makes a
/// connection at once; it has to be that of the side that dials then.
fn wait_for_open(terms: Terms) -> Duration {
    match terms.round {
        0 | 1 => Duration::ZERO,
        _ => terms.rtt.unwrap_or(SOME_RTT).min(ROUND / 5) / 2 + PATIENT_LEAST / 2,
    }
}

fn quic(steps: &mut Vec<Step>, targets: &Targets, dials: bool, terms: Terms) {
    if !dials {
        let all = [targets.near.as_slice(), &targets.quic].concat();
        return add(steps, Duration::ZERO, Clock::Heard, Act::Punch, &all);
    }
    // Nothing to punch through on the way; the second is for a loss.
    for after in [Duration::ZERO, ROUND / 5] {
        add(steps, after, Clock::Heard, Act::Dial, &targets.near);
    }
    for after in clocks(terms) {
        add(steps, after, Clock::Heard, Act::Dial, &targets.quic);
    }
}

/// When to dial: whoever led knows that the other punches already.
fn clocks(terms: Terms) -> Vec<Duration> {
    if !terms.wanted {
        return STRANGER_MS.map(Duration::from_millis).to_vec();
    }
    if !terms.leader {
        return STAGGER_MS.map(Duration::from_millis).to_vec();
    }
    let rtt = terms.rtt.unwrap_or(SOME_RTT).max(PATIENT_LEAST);
    PATIENT.iter().map(|times| rtt.mul_f64(*times)).filter(|after| *after < ROUND).collect()
}

/// Makes this side's plan for a round with a peer that speaks `/libp2p/dcutr`
/// only. The side that accepted the relayed connection leads and punches, the
/// other one dials.
pub(super) fn stock(mine: &Offer, theirs: &Offer, terms: Terms) -> Plan {
    let targets = Targets::of(mine, theirs, terms);
    let all = [targets.near.as_slice(), &targets.quic].concat();
    let tcp = [targets.near_tcp.as_slice(), &targets.tcp].concat();
    let mut steps = Vec::new();
    if terms.leader {
        // Before the other side's first packet.
        add(&mut steps, Duration::ZERO, Clock::Heard, Act::Punch, &all);
        add(&mut steps, Duration::ZERO, Clock::Synced, Act::Accept, &tcp);
        // Where the dial of the other side cannot get through: our NAT may give
        // each destination another port.
        let late = terms.rtt.unwrap_or(SOME_RTT) * 2 + PATIENT_LEAST;
        add(&mut steps, late, Clock::Synced, Act::Dial, &all);
    } else {
        let often: &[u64] = if terms.wanted { &[0, 100, 300, 700] } else { &STRANGER_MS };
        for after in often {
            add(&mut steps, Duration::from_millis(*after), Clock::Synced, Act::Dial, &all);
        }
        add(&mut steps, Duration::ZERO, Clock::Synced, Act::Open, &tcp);
    }
    let words = if terms.leader {
        "libp2p's own protocol, this node punches"
    } else {
        "libp2p's own protocol, this node dials"
    };
    Plan { steps, words: words.to_owned(), hopeless: false }
}

/// Dials of addresses known from before, as soon as the offer is sent.
pub(super) fn early(known: &[Candidate]) -> Vec<Step> {
    let quic: Vec<_> = known.iter().copied().filter(|known| known.transport == Transport::Quic).take(4).collect();
    let mut steps = Vec::new();
    for after in EARLY_MS {
        add(&mut steps, Duration::from_millis(after), Clock::Heard, Act::Dial, &quic);
    }
    steps
}

/// Whether this side dials. The other side, with the offers and roles swapped,
/// says the opposite.
fn dials(mine: &Offer, theirs: &Offer, terms: Terms) -> bool {
    // Every third round uses what is sure to work; if that fails it was not.
    if terms.round % QUICK_ROUNDS == 1 && is_open(mine) != is_open(theirs) {
        return is_open(theirs);
    }
    if is_hard(mine) != is_hard(theirs) {
        return is_hard(mine);
    }
    terms.leader == (terms.round % 2 == 1)
}

/// Whether anybody can connect to it, as far as it knows. Without a NAT that is
/// likely; a firewall shows in the first round.
fn is_open(side: &Offer) -> bool {
    let public = |known: &Candidate| known.socket.is_ipv4() && !is_local(known.socket.ip());
    let no_nat = side.nat_v4.mapping == Mapping::None;
    side.candidates.iter().any(|known| known.kind == CandidateKind::Confirmed || (no_nat && public(known)))
}

fn is_hard(side: &Offer) -> bool {
    side.nat_v4.mapping == Mapping::EndpointDependent
}

fn has_tcp(side: &Offer) -> bool {
    side.candidates.iter().any(|known| known.transport == Transport::Tcp)
}

fn add(steps: &mut Vec<Step>, after: Duration, clock: Clock, act: Act, targets: &[Candidate]) {
    if !targets.is_empty() {
        steps.push(Step { after, clock, act, targets: targets.to_vec() });
    }
}

fn is_hopeless(mine: &Offer, theirs: &Offer, targets: &Targets) -> bool {
    let counts = |side: &Offer| side.nat_v4.port_step.is_some();
    let v6 = |known: &Candidate| known.socket.is_ipv6();
    let other_ways = !targets.near.is_empty()
        || is_open(mine)
        || is_open(theirs)
        || (targets.quic.iter().any(v6) && mine.candidates.iter().any(v6));
    targets.is_empty() || (is_hard(mine) && is_hard(theirs) && !counts(mine) && !counts(theirs) && !other_ways)
}

/// Why nothing came through, for a person.
pub(super) fn cause(mine: &Offer, theirs: &Offer) -> &'static str {
    const REMEDY_BOTH: &str = "both NATs give each destination another port: a direct path is not possible; \
                               a port mapping (UPnP, PCP, NAT-PMP) on one side helps";
    const REMEDY_HERE: &str = "this node's NAT gives each destination another port and the peer's lets in answers \
                               only: a port mapping (UPnP, PCP, NAT-PMP) on one side helps";
    const REMEDY_THERE: &str = "the peer's NAT gives each destination another port and this node's lets in answers \
                                only: a port mapping (UPnP, PCP, NAT-PMP) on one side helps";
    match (is_hard(mine), is_hard(theirs)) {
        _ if theirs.candidates.is_empty() => "the peer knows no address of its own yet",
        _ if mine.candidates.is_empty() => "this node knows no address of its own yet",
        (true, true) => REMEDY_BOTH,
        (true, false) => REMEDY_HERE,
        (false, true) => REMEDY_THERE,
        _ if mine.udp_blocked => "UDP does not get out of this node's network, and TCP did not get through",
        _ if theirs.udp_blocked => "UDP does not get out of the peer's network, and TCP did not get through",
        _ => "nothing came through: a firewall on one side, or a NAT that gave this path another port",
    }
}

#[cfg(test)]
mod tests;
