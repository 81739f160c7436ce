//! What this node brings to an exchange.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use libp2p::PeerId;
use tokio::time::Instant;

use super::entry::Interest;
use crate::{
    node::{AddressSource, NatClass, NatView},
    swarm::{
        reach::{self, Confidence},
        route::is_local,
        task::Task,
    },
    wire::punch::{Candidate, CandidateKind, MAX_CANDIDATES, Mapping, Nat, Offer},
};

/// What of this node's own addresses makes it worth while to try again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::swarm) struct Own {
    nat_v4: Nat,
    nat_v6: Nat,
    udp_blocked: bool,
    candidates: BTreeSet<Candidate>,
    /// Of those whose port is a guess.
    ips: BTreeSet<IpAddr>,
}

impl Task {
    /// What servers see of this node may have become different.
    pub(in crate::swarm) fn punch_own_changed(&mut self, now: Instant) {
        let (v4, v6) = (self.reach.nat(false, now), self.reach.nat(true, now));
        let mut own = Own { nat_v4: nat(&v4), nat_v6: nat(&v6), udp_blocked: v4.udp_blocked, ..Own::default() };
        for known in self.reach.candidates(now) {
            let Some(candidate) = candidate(&known) else { continue };
            if known.confidence == Confidence::Guess {
                own.ips.insert(candidate.socket.ip());
            } else {
                own.candidates.insert(candidate);
            }
        }
        if own != self.punch_own {
            self.punch_own = own;
            self.punches.changed(now);
        }
    }

    /// What this node brings to an exchange with a peer. Addresses of the local
    /// network are told to trusted peers only, those of this host only through
    /// a relay on it.
    pub(super) fn own_offer(&self, peer: &PeerId, now: Instant) -> Offer {
        let loopback = self.punches.is_loopback(peer);
        let Interest { trusted, .. } = self.punches.interest(peer);
        let (nat_v4, nat_v6) = (self.reach.nat(false, now), self.reach.nat(true, now));
        let candidates = self.reach.candidates(now).iter().filter_map(candidate).collect();
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

fn candidate(known: &reach::Candidate) -> Option<Candidate> {
    let kind = match (known.confidence, known.source) {
        (Confidence::Confirmed, _) | (_, AddressSource::Configured | AddressSource::Mapped) => CandidateKind::Confirmed,
        (_, AddressSource::Interface) => CandidateKind::Local,
        (_, AddressSource::Observed | AddressSource::Relay) => CandidateKind::Observed,
    };
    Candidate::of(&known.address, kind)
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
}
