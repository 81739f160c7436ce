//! Who dials, who punches, where and when: made of what both sides brought, so
//! that both make the same plan. Nothing here waits or dials.
//!
//! One side dials over QUIC and the other punches: it sends packets from its
//! listening socket, which opens its own NAT for the dial. Were both to dial,
//! there would be two connections. A side whose NAT gives each destination
//! another port dials, for its port is known only to whom it sends; otherwise
//! the side dials that opened the exchange, because the other one punches
//! already when the answer arrives, and they change places each round.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    swarm::route::is_local,
    wire::punch::{Candidate, CandidateKind, Mapping, Nat, Offer, Transport},
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
/// Addresses dialled or punched at once.
const MAX_TARGETS: usize = 12;
/// The same for a peer that this node has no interest of its own in.
const MAX_STRANGER_TARGETS: usize = 4;
/// Ports ahead of the last one seen that a NAT with a step is expected to use.
const PREDICTED: i32 = 12;

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

/// Where the peer may be, sorted by what is done there.
struct Targets {
    /// QUIC on this host or a local network.
    near: Vec<Candidate>,
    /// TCP there.
    near_tcp: Vec<Candidate>,
    /// QUIC elsewhere.
    quic: Vec<Candidate>,
    /// TCP that anybody can connect to, and that of the local network.
    open_tcp: Vec<Candidate>,
    /// TCP that has to be opened from both sides.
    tcp: Vec<Candidate>,
}

impl Targets {
    fn of(mine: &Offer, theirs: &Offer, terms: Terms) -> Self {
        let near_allowed = terms.trusted && may_be_near(mine, theirs);
        let most = if terms.wanted { MAX_TARGETS } else { MAX_STRANGER_TARGETS };
        let mut sorted = theirs.candidates.clone();
        sorted.sort();
        let is = |transport| move |known: &&Candidate| known.transport == transport;
        let (near, far): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|known| is_near(known.socket.ip()));
        let mut near = near;
        near.retain(|known| if known.socket.ip().is_loopback() { terms.loopback } else { near_allowed });
        let pick = |from: &[Candidate], transport| -> Vec<Candidate> {
            from.iter().filter(is(transport)).take(most).copied().collect()
        };
        let mut quic = pick(&far, Transport::Quic);
        if terms.wanted {
            quic.extend(predicted(&quic, theirs.nat_v4));
        }
        let mut tcp = pick(&far, Transport::Tcp);
        let near_tcp = pick(&near, Transport::Tcp);
        let no_nat = theirs.nat_v4.mapping == Mapping::None;
        let open = |known: &&Candidate| known.kind == CandidateKind::Confirmed || (no_nat && known.socket.is_ipv4());
        let open_tcp = tcp.iter().filter(open).chain(&near_tcp);
        let open_tcp = open_tcp.take(most).copied().collect();
        tcp.extend(guessed_tcp(theirs).filter(|guess| !tcp.iter().any(|known| known.socket == guess.socket)));
        Self { near: pick(&near, Transport::Quic), near_tcp, quic, open_tcp, tcp }
    }

    fn is_empty(&self) -> bool {
        self.near.is_empty() && self.quic.is_empty() && self.open_tcp.is_empty() && self.tcp.is_empty()
    }
}

/// The next ports of a NAT that counts.
fn predicted(seen: &[Candidate], nat: Nat) -> Vec<Candidate> {
    let (Mapping::EndpointDependent, Some(step)) = (nat.mapping, nat.port_step.filter(|step| *step != 0)) else {
        return Vec::new();
    };
    let last = |known: &&Candidate| known.socket.is_ipv4() && known.kind == CandidateKind::Observed;
    let ports = |port: u16| i64::from(port) * i64::from(step.signum());
    // The one furthest on.
    let Some(from) = seen.iter().filter(last).max_by_key(|known| ports(known.socket.port())) else { return Vec::new() };
    let ahead = |times: i32| {
        let port = i64::from(from.socket.port()) + i64::from(step) * i64::from(times);
        let socket = SocketAddr::new(from.socket.ip(), u16::try_from(port).ok().filter(|port| *port >= 1024)?);
        Candidate::new(CandidateKind::Observed, Transport::Quic, socket)
    };
    (1..=PREDICTED).filter_map(ahead).collect()
}

/// The port that the peer listens on, from which it will dial, at the address
/// that servers see. What they see of its TCP may come from another port: a
/// second connection to a server cannot have that one.
fn guessed_tcp(theirs: &Offer) -> Option<Candidate> {
    if theirs.nat_v4.port_kept == Some(false) {
        return None;
    }
    let listens = |known: &&Candidate| {
        known.transport == Transport::Tcp && known.kind == CandidateKind::Local && known.socket.is_ipv4()
    };
    let port = theirs.candidates.iter().find(listens)?.socket.port();
    let ip = public_v4(theirs).next()?;
    Candidate::new(CandidateKind::Observed, Transport::Tcp, SocketAddr::new(ip, port))
}

/// Two nodes behind one router see the same address from outside. One that
/// nobody outside has seen may be anywhere.
fn may_be_near(mine: &Offer, theirs: &Offer) -> bool {
    let own: HashSet<_> = public_v4(mine).collect();
    let mut others = public_v4(theirs).peekable();
    own.is_empty() || others.peek().is_none() || others.any(|ip| own.contains(&ip))
}

fn public_v4(side: &Offer) -> impl Iterator<Item = IpAddr> {
    let outside = |known: &&Candidate| {
        known.kind != CandidateKind::Local && known.socket.is_ipv4() && !is_local(known.socket.ip())
    };
    side.candidates.iter().filter(outside).map(|known| known.socket.ip())
}

fn is_near(ip: IpAddr) -> bool {
    is_local(ip)
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RTT: Duration = Duration::from_millis(60);

    fn quic(kind: CandidateKind, socket: &str) -> Candidate {
        Candidate::new(kind, Transport::Quic, socket.parse().unwrap()).unwrap()
    }

    fn tcp(kind: CandidateKind, socket: &str) -> Candidate {
        Candidate::new(kind, Transport::Tcp, socket.parse().unwrap()).unwrap()
    }

    fn side(mapping: Mapping, candidates: &[Candidate]) -> Offer {
        Offer {
            round: 1,
            candidates: candidates.to_vec(),
            nat_v4: Nat { mapping, ..Nat::default() },
            ..Offer::default()
        }
    }

    fn behind(mapping: Mapping, last: u8) -> Offer {
        let at = format!("192.0.2.{last}:4001");
        let local = format!("192.168.{last}.2:4001");
        use CandidateKind::{Local, Observed};
        side(mapping, &[quic(Observed, &at), tcp(Observed, &at), quic(Local, &local), tcp(Local, &local)])
    }

    fn terms(leader: bool, round: u32) -> Terms {
        Terms { leader, round, trusted: true, wanted: true, loopback: false, rtt: leader.then_some(RTT) }
    }

    /// The plans of the side that leads and of the other one.
    fn both(leader: &Offer, other: &Offer, round: u32) -> (Plan, Plan) {
        (plan(leader, other, terms(true, round)), plan(other, leader, terms(false, round)))
    }

    fn acts(plan: &Plan, transport: Transport) -> HashSet<Act> {
        let here = |step: &&Step| step.targets.iter().any(|known| known.transport == transport);
        plan.steps.iter().filter(here).map(|step| step.act).collect()
    }

    #[track_caller]
    fn dials_and_punches(dials: &Plan, punches: &Plan) {
        assert_eq!(acts(dials, Transport::Quic), HashSet::from([Act::Dial]));
        assert_eq!(acts(punches, Transport::Quic), HashSet::from([Act::Punch]));
    }

    #[test]
    fn equals_take_turns() {
        let (one, two) = (behind(Mapping::EndpointIndependent, 1), behind(Mapping::Unknown, 2));
        let (leader, other) = both(&one, &two, 1);
        dials_and_punches(&leader, &other);
        let (leader, other) = both(&one, &two, 2);
        dials_and_punches(&other, &leader);
        let (leader, other) = both(&one, &two, 3);
        dials_and_punches(&leader, &other);
    }

    #[test]
    fn whose_port_nobody_knows_dials() {
        let (hard, easy) = (behind(Mapping::EndpointDependent, 1), behind(Mapping::EndpointIndependent, 2));
        for round in 1..7 {
            let (leader, other) = both(&hard, &easy, round);
            dials_and_punches(&leader, &other);
            let (leader, other) = both(&easy, &hard, round);
            dials_and_punches(&other, &leader);
            assert!(!leader.hopeless && !other.hopeless);
        }
    }

    #[test]
    fn who_can_be_reached_is_dialled_first() {
        let mut open = behind(Mapping::EndpointIndependent, 1);
        open.candidates.push(quic(CandidateKind::Confirmed, "192.0.2.1:5000"));
        open.candidates.push(tcp(CandidateKind::Confirmed, "192.0.2.1:5000"));
        let other = behind(Mapping::EndpointIndependent, 2);
        let (leader, follower) = both(&open, &other, 1);
        dials_and_punches(&follower, &leader);
        let first = follower.steps.iter().find(|step| step.after == Duration::ZERO).unwrap();
        assert_eq!(first.targets[0], quic(CandidateKind::Confirmed, "192.0.2.1:5000"));
        assert!(acts(&follower, Transport::Tcp).contains(&Act::Dial));
        // It could not be reached after all.
        let (leader, follower) = both(&open, &other, 3);
        dials_and_punches(&leader, &follower);
        let public = behind(Mapping::None, 1);
        let (leader, follower) = both(&public, &other, 1);
        dials_and_punches(&follower, &leader);
    }

    #[test]
    fn tcp_comes_later_or_at_once_where_udp_is_blocked() {
        let (mut one, two) = (behind(Mapping::Unknown, 1), behind(Mapping::Unknown, 2));
        let (leader, other) = both(&one, &two, 1);
        for (plan, act) in [(&leader, Act::Open), (&other, Act::Accept)] {
            let step = plan.steps.iter().find(|step| step.act == act).unwrap();
            assert_eq!((step.clock, step.after), (Clock::Synced, TCP_AFTER));
        }
        one.udp_blocked = true;
        let (leader, other) = both(&one, &two, 1);
        for (plan, act) in [(&leader, Act::Open), (&other, Act::Accept)] {
            assert!(acts(plan, Transport::Quic).is_empty());
            let step = plan.steps.iter().find(|step| step.act == act).unwrap();
            assert_eq!((step.clock, step.after), (Clock::Synced, Duration::ZERO));
            assert_eq!(step.targets.len(), 1);
            assert!(plan.words.contains("UDP is blocked"));
        }
    }

    #[test]
    fn a_local_network_is_tried_where_it_may_be_the_same() {
        let here =
            |plan: &Plan| plan.steps.iter().any(|step| step.targets.iter().any(|known| is_local(known.socket.ip())));
        let (one, two) = (behind(Mapping::Unknown, 1), behind(Mapping::Unknown, 2));
        assert!(!here(&both(&one, &two, 1).0));
        let mut same = behind(Mapping::Unknown, 1);
        same.candidates[2] = quic(CandidateKind::Local, "192.168.1.3:4001");
        let (leader, other) = both(&one, &same, 1);
        assert!(here(&leader) && here(&other));
        // The way round by the router is tried at the same time.
        let hairpin = quic(CandidateKind::Observed, "192.0.2.1:4001");
        assert!(leader.steps.iter().any(|step| step.after.is_zero() && step.targets.contains(&hairpin)));
        assert!(!here(&plan(&one, &same, Terms { trusted: false, ..terms(true, 1) })));
        let host = side(Mapping::Unknown, &[quic(CandidateKind::Local, "127.0.0.1:4001")]);
        assert!(plan(&one, &host, terms(true, 1)).steps.is_empty());
        assert!(here(&plan(&one, &host, Terms { loopback: true, trusted: false, ..terms(true, 1) })));
    }

    #[test]
    fn tcp_from_another_port_than_servers_saw_is_expected() {
        let mut theirs = behind(Mapping::Unknown, 2);
        theirs.candidates[1] = tcp(CandidateKind::Observed, "192.0.2.2:50580");
        let plan = |theirs: &Offer| plan(&behind(Mapping::Unknown, 1), theirs, terms(true, 1));
        let ports = |plan: &Plan| -> Vec<_> {
            let open = plan.steps.iter().find(|step| step.act == Act::Open).unwrap();
            open.targets.iter().map(|known| known.socket.port()).collect()
        };
        assert_eq!(ports(&plan(&theirs)), [50580, 4001]);
        theirs.nat_v4.port_kept = Some(false);
        assert_eq!(ports(&plan(&theirs)), [50580]);
    }

    #[test]
    fn ports_ahead_are_expected_of_a_nat_that_counts() {
        let mut counting = behind(Mapping::EndpointDependent, 1);
        counting.nat_v4.port_step = Some(2);
        counting.candidates.push(quic(CandidateKind::Observed, "192.0.2.1:4003"));
        let other = behind(Mapping::EndpointIndependent, 2);
        let punches = plan(&other, &counting, terms(true, 1));
        let ports: Vec<_> = punches.steps[0].targets.iter().map(|known| known.socket.port()).collect();
        assert_eq!(ports[..4], [4001, 4003, 4005, 4007]);
        assert_eq!(ports.len(), 2 + PREDICTED as usize);
        counting.nat_v4.port_step = Some(i32::MIN);
        plan(&other, &counting, terms(true, 1));
    }

    #[test]
    fn a_person_is_told_what_helps() {
        let (hard, other) = (behind(Mapping::EndpointDependent, 1), behind(Mapping::EndpointDependent, 2));
        let plan = plan(&hard, &other, terms(true, 1));
        assert!(plan.hopeless && !plan.steps.is_empty());
        assert!(cause(&hard, &other).contains("port mapping"));
        let easy = behind(Mapping::EndpointIndependent, 3);
        assert!(cause(&hard, &easy).starts_with("this node's NAT"));
        assert!(cause(&easy, &hard).starts_with("the peer's NAT"));
        assert!(cause(&easy, &Offer::default()).contains("no address"));
    }

    #[test]
    fn a_stranger_gets_less() {
        let many: Vec<_> = (1..30).map(|n| quic(CandidateKind::Observed, &format!("192.0.2.{n}:1"))).collect();
        let (one, many) = (behind(Mapping::Unknown, 1), side(Mapping::Unknown, &many));
        let most = |terms| plan(&one, &many, terms).steps.iter().map(|step| step.targets.len()).max();
        assert_eq!(most(terms(true, 1)), Some(MAX_TARGETS));
        assert_eq!(most(Terms { wanted: false, ..terms(true, 1) }), Some(MAX_STRANGER_TARGETS));
        for (leader, round) in [(true, 1), (false, 2)] {
            let terms = Terms { wanted: false, ..terms(leader, round) };
            for plan in [plan(&one, &many, terms), stock(&one, &many, terms)] {
                let dials = plan.steps.iter().filter(|step| step.act == Act::Dial).map(|step| step.targets.len());
                assert!(dials.sum::<usize>() <= 3 * MAX_STRANGER_TARGETS, "{plan:?}");
            }
        }
    }

    fn any_side() -> impl Strategy<Value = Offer> {
        let mapping = prop_oneof![
            Just(Mapping::Unknown),
            Just(Mapping::None),
            Just(Mapping::EndpointIndependent),
            Just(Mapping::EndpointDependent)
        ];
        let kind =
            prop_oneof![Just(CandidateKind::Confirmed), Just(CandidateKind::Observed), Just(CandidateKind::Local)];
        let transport = prop_oneof![Just(Transport::Quic), Just(Transport::Tcp)];
        let candidate = (kind, transport, any::<SocketAddr>())
            .prop_filter_map("usable", |(kind, transport, at)| Candidate::new(kind, transport, at));
        (mapping, any::<Option<i32>>(), prop::collection::vec(candidate, 0..32), any::<bool>()).prop_map(
            |(mapping, port_step, candidates, udp_blocked)| Offer {
                candidates,
                nat_v4: Nat { mapping, port_kept: None, port_step },
                udp_blocked,
                ..Offer::default()
            },
        )
    }

    proptest! {
        /// Both sides never do the same, and never more than a little.
        #[test]
        fn one_dials_and_the_other_does_not(one in any_side(), two in any_side(), round in any::<u32>()) {
            let dials = |mine, theirs, leader| super::dials(mine, theirs, terms(leader, round));
            prop_assert_ne!(dials(&one, &two, true), dials(&two, &one, false));
            let (leader, other) = both(&one, &two, round);
            for step in leader.steps.iter().chain(&other.steps) {
                prop_assert!(step.after < ROUND && !step.targets.is_empty());
                prop_assert!(step.targets.len() <= 2 * MAX_TARGETS + PREDICTED as usize);
                prop_assert!(step.targets.iter().all(|known| !known.socket.ip().is_loopback()));
            }
            prop_assert!(!(acts(&leader, Transport::Tcp).contains(&Act::Open)
                && acts(&other, Transport::Tcp).contains(&Act::Open)));
        }
    }
}
