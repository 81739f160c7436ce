//! Where a peer may find this node when both try at the same time.

use libp2p::Multiaddr;
use tokio::time::Instant;

use super::{
    Reach,
    nat::Mapping,
    place::{Place, Transport, transport},
};
use crate::{
    node::{AddressSource, NatClass, Verdict},
    swarm::route::route,
    types::Route,
};

/// More than a peer tries. Of the local network last, and those only if there
/// is room: a host may have any number of bridges.
const MAX_CANDIDATES: usize = 16;
/// Of those, how many may be of the local network at least.
const MAX_LOCAL: usize = 4;

/// An address at which a peer may find this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Candidate {
    /// Without a peer.
    pub(in crate::swarm) address: Multiaddr,
    pub(in crate::swarm) transport: Transport,
    /// How it is known.
    pub(in crate::swarm) source: AddressSource,
    pub(in crate::swarm) confidence: Confidence,
}

/// How likely an address works when both sides try; best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::swarm) enum Confidence {
    /// The NAT may choose another port for a new peer.
    Guess,
    /// Others see it, or a router or an interface has it.
    Likely,
    /// A server connected to it, or the settings say so.
    Confirmed,
}

impl Reach {
    /// Where a peer may find this node, the best first; those of the local
    /// network last.
    pub(in crate::swarm) fn candidates(&self, now: Instant) -> Vec<Candidate> {
        let mut all = Vec::new();
        self.add_known(&mut all);
        self.add_observed(&mut all, now);
        all.sort_by_key(|candidate| (std::cmp::Reverse(candidate.confidence), candidate.transport));
        all.truncate(MAX_CANDIDATES - self.local.len().min(MAX_LOCAL));
        for address in &self.local {
            add(&mut all, address.clone(), AddressSource::Interface, Confidence::Likely);
        }
        all.truncate(MAX_CANDIDATES);
        all
    }

    /// What the settings, the router and the interfaces say.
    fn add_known(&self, all: &mut Vec<Candidate>) {
        for address in &self.configured {
            add(all, address.clone(), AddressSource::Configured, Confidence::Confirmed);
        }
        for (place, target) in self.verdicts.targets() {
            if target.verdict() == Verdict::Reachable {
                add(all, place.address(), target.source, Confidence::Confirmed);
            }
        }
        for address in &self.mapped {
            add(all, address.clone(), AddressSource::Mapped, Confidence::Likely);
        }
        for address in self.listen.iter().filter(|address| route(address) == Route::Direct) {
            add(all, address.clone(), AddressSource::Interface, Confidence::Likely);
        }
    }

    /// What others see, and what they would see of sockets that none saw yet.
    fn add_observed(&self, all: &mut Vec<Candidate>, now: Instant) {
        let own_ips = self.own_ips();
        let mut own_sockets: Vec<_> = self.own_sockets().chain(self.observed.sockets()).collect();
        own_sockets.sort();
        own_sockets.dedup();
        for own in &own_sockets {
            let mapping = Mapping::of(&self.observed, *own, &own_ips, now);
            let confidence = match mapping.class {
                NatClass::EndpointDependent => Confidence::Guess,
                _ => Confidence::Likely,
            };
            let expected = mapping.expected.into_iter().map(|at| (at, confidence));
            let came_in = self.came_in(*own, now).into_iter().map(|at| (at, Confidence::Likely));
            let mut places: Vec<_> = expected.chain(came_in).collect();
            if places.is_empty() {
                // The same router, and the port kept, perhaps.
                let family = own_sockets.iter().filter(|other| other.v6 == own.v6);
                let ips = family.filter_map(|other| Mapping::of(&self.observed, *other, &own_ips, now).public_ip);
                places.extend(ips.map(|ip| ((ip, own.port).into(), Confidence::Guess)));
            }
            for (at, confidence) in places {
                let address = Place { transport: own.transport, at }.address();
                add(all, address, AddressSource::Observed, confidence);
            }
        }
    }

    /// Where peers came in, if two hosts say the same.
    fn came_in(&self, own: super::observed::Own, now: Instant) -> Vec<std::net::SocketAddr> {
        let mut opinions = self.observed.opinions(own, now);
        opinions.retain(|opinion| !opinion.dialled && !opinion.lan);
        let seen = super::observed::agreed(&opinions, |opinion| opinion.seen);
        let by_two = |at: &std::net::SocketAddr| {
            let same: Vec<_> = opinions.iter().copied().filter(|opinion| opinion.seen == *at).collect();
            super::observed::hosts(&same) >= 2
        };
        seen.into_iter().filter(by_two).collect()
    }
}

/// Adds an address unless it is there, as at least as likely.
fn add(all: &mut Vec<Candidate>, address: Multiaddr, source: AddressSource, confidence: Confidence) {
    let Some(transport) = transport(&address) else { return };
    match all.iter_mut().find(|candidate| candidate.address == address) {
        Some(known) => known.confidence = known.confidence.max(confidence),
        None => all.push(Candidate { address, transport, source, confidence }),
    }
}
