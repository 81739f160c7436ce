//! What this node brings to an exchange.

use std::collections::{HashSet, VecDeque};

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::table::Interest;
use crate::{
    node::{AddressSource, NatClass, NatView},
    swarm::{
        reach::{self, Confidence},
        route::{is_local, route},
        task::Task,
    },
    types::Route,
    wire::punch::{Candidate, CandidateKind, MAX_CANDIDATES, Mapping, Nat, Offer},
};

/// Observations kept.
const MAX_OBSERVED: usize = 16;

/// Where others see this node's connections come from.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Observed {
    /// The youngest first.
    seen: VecDeque<(PeerId, Candidate)>,
}

impl Observed {
    /// A peer told where it sees this node; tells whether that is new.
    pub(in crate::swarm) fn saw(&mut self, by: PeerId, address: &Multiaddr) -> bool {
        let Some(candidate) = Candidate::of(address, CandidateKind::Observed) else { return false };
        let new = !self.seen.iter().any(|(_, known)| *known == candidate);
        let same = |known: &Candidate| {
            known.transport == candidate.transport && known.socket.is_ipv4() == candidate.socket.is_ipv4()
        };
        self.seen.retain(|(other, known)| *other != by || !same(known));
        self.seen.push_front((by, candidate));
        self.seen.truncate(MAX_OBSERVED);
        new
    }
}

impl Task {
    /// Where this node may be reached, and the NATs before it (IPv4, IPv6).
    fn own_addresses(&self, now: Instant) -> (Vec<Candidate>, NatView, NatView) {
        let known = self.reach.candidates(now);
        let known = known.iter().filter_map(|known| Candidate::of(&known.address, kind(known)));
        // What one stranger says may be wrong, and is better than nothing.
        let observed = self.observed.seen.iter().map(|(_, known)| *known);
        (known.chain(observed).collect(), self.reach.nat(false, now), self.reach.nat(true, now))
    }

    /// What this node brings to an exchange with a peer. Addresses of the local
    /// network are told to trusted peers only, those of this host only through
    /// a relay on it.
    pub(super) fn own_offer(&self, peer: &PeerId, now: Instant) -> Offer {
        let loopback = self.punches.is_loopback(peer);
        let Interest { trusted, .. } = self.punches.interest(peer);
        let (candidates, nat_v4, nat_v6) = self.own_addresses(now);
        let rtt = self.peers.get(peer).and_then(|entry| entry.rtt);
        Offer {
            round: self.punches.round(peer).unwrap_or(1),
            rtt,
            candidates: told(candidates, trusted, loopback),
            nat_v4: nat(&nat_v4),
            nat_v6: nat(&nat_v6),
            udp_blocked: nat_v4.udp_blocked,
        }
    }
}

/// The best of each address, as far as it is to be told.
fn told(mut candidates: Vec<Candidate>, trusted: bool, loopback: bool) -> Vec<Candidate> {
    candidates.sort();
    let mut seen = HashSet::new();
    candidates.retain(|known| seen.insert((known.transport, known.socket)));
    candidates.retain(|known| match known.socket.ip() {
        ip if ip.is_loopback() => loopback,
        ip if is_local(ip) => trusted,
        _ => true,
    });
    candidates.truncate(MAX_CANDIDATES);
    candidates
}

fn kind(known: &reach::Candidate) -> CandidateKind {
    match known.source {
        AddressSource::Mapped | AddressSource::Configured => CandidateKind::Confirmed,
        _ if known.confidence == Confidence::Confirmed => CandidateKind::Confirmed,
        AddressSource::Interface if route(&known.address) == Route::Lan => CandidateKind::Local,
        AddressSource::Interface | AddressSource::Observed | AddressSource::Relay => CandidateKind::Observed,
    }
}

fn nat(view: &NatView) -> Nat {
    let mapping = match view.class {
        NatClass::Unknown => Mapping::Unknown,
        NatClass::None => Mapping::None,
        NatClass::EndpointIndependent => Mapping::EndpointIndependent,
        NatClass::EndpointDependent => Mapping::EndpointDependent,
    };
    Nat { mapping, port_kept: view.port_kept, port_step: view.port_step }
}

/// What a peer says of its NAT (IPv4).
pub(super) fn nat_view(offer: &Offer) -> NatView {
    let class = match offer.nat_v4.mapping {
        Mapping::Unknown => NatClass::Unknown,
        Mapping::None => NatClass::None,
        Mapping::EndpointIndependent => NatClass::EndpointIndependent,
        Mapping::EndpointDependent => NatClass::EndpointDependent,
    };
    let seen = |known: &&Candidate| known.kind != CandidateKind::Local && known.socket.is_ipv4();
    NatView {
        class,
        public_ip: offer.candidates.iter().find(seen).map(|known| known.socket.ip()),
        port_kept: offer.nat_v4.port_kept,
        port_step: offer.nat_v4.port_step,
        observers: 0,
        udp_blocked: offer.udp_blocked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(text: &str, kind: CandidateKind) -> Candidate {
        Candidate::of(&text.parse().unwrap(), kind).unwrap()
    }

    #[test]
    fn each_address_is_told_once_and_only_where_it_means_something() {
        let (host, lan) = ("/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/192.168.1.2/udp/1/quic-v1");
        let public = "/ip4/192.0.2.1/udp/1/quic-v1";
        let all = || {
            [
                candidate(host, CandidateKind::Local),
                candidate(lan, CandidateKind::Local),
                candidate(public, CandidateKind::Observed),
                candidate(public, CandidateKind::Confirmed),
            ]
            .to_vec()
        };
        assert_eq!(told(all(), false, false), [candidate(public, CandidateKind::Confirmed)]);
        assert_eq!(told(all(), true, false).len(), 2);
        assert_eq!(told(all(), false, true).len(), 2);
        let many = (1..100).map(|port| candidate(&format!("/ip4/192.0.2.1/tcp/{port}"), CandidateKind::Local));
        assert_eq!(told(many.collect(), true, true).len(), MAX_CANDIDATES);
    }

    #[test]
    fn an_observer_says_one_thing_of_each_transport() {
        let (one, other) = (PeerId::random(), PeerId::random());
        let mut observed = Observed::default();
        assert!(observed.saw(one, &"/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap()));
        assert!(!observed.saw(other, &"/ip4/192.0.2.1/udp/1/quic-v1".parse().unwrap()));
        assert!(observed.saw(one, &"/ip4/192.0.2.1/udp/2/quic-v1".parse().unwrap()));
        assert!(observed.saw(one, &"/ip4/192.0.2.1/tcp/2".parse().unwrap()));
        assert_eq!(observed.seen.len(), 3);
        assert!(!observed.saw(one, &"/p2p-circuit".parse().unwrap()));
    }
}
