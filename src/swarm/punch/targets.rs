//! Where a peer may be, made of what both sides brought.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use super::plan::Terms;
use crate::{
    swarm::route::{is_local, is_special},
    wire::punch::{Candidate, CandidateKind, Mapping, Nat, Offer, Transport},
};

/// Addresses dialled or punched at once.
pub(super) const MAX_TARGETS: usize = 12;
/// The same for a peer that this node has no interest of its own in.
pub(super) const MAX_STRANGER_TARGETS: usize = 4;
/// Ports ahead of the last one seen that a NAT with a step is expected to use.
pub(super) const PREDICTED: i32 = 12;

/// Where the peer may be, sorted by what is done there.
pub(super) struct Targets {
    /// QUIC on this host or a local network.
    pub(super) near: Vec<Candidate>,
    /// TCP there.
    pub(super) near_tcp: Vec<Candidate>,
    /// QUIC elsewhere.
    pub(super) quic: Vec<Candidate>,
    /// TCP that anybody can connect to, and that of the local network.
    pub(super) open_tcp: Vec<Candidate>,
    /// TCP that has to be opened from both sides.
    pub(super) tcp: Vec<Candidate>,
}

impl Targets {
    pub(super) fn of(mine: &Offer, theirs: &Offer, terms: Terms) -> Self {
        let near_allowed = terms.trusted && may_be_near(mine, theirs);
        let most = if terms.wanted { MAX_TARGETS } else { MAX_STRANGER_TARGETS };
        let mut sorted = theirs.candidates.clone();
        sorted.sort();
        let is = |transport| move |known: &&Candidate| known.transport == transport;
        let (mut near, mut far): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|known| is_local(known.socket.ip()));
        near.retain(|known| if known.socket.ip().is_loopback() { terms.loopback } else { near_allowed });
        // A translator on the way may turn one into a local address.
        far.retain(|known| terms.trusted || !is_special(known.socket.ip()));
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

    /// There is nowhere to try.
    pub(super) fn is_empty(&self) -> bool {
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
