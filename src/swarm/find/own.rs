//! What others are told of where this node can be reached.

use libp2p::{Multiaddr, swarm::FromSwarm};

use super::MAX_ADDRESSES;
use crate::{
    node::Overlay,
    swarm::{
        reach,
        route::{is_dialable, is_loopback, relay_of, route, without_peer},
    },
    types::Route,
};

/// Addresses confirmed from outside, at relays, and listened on, as far as they
/// are remembered here.
const MAX_KNOWN: usize = 64;
/// Addresses at which others see this node and that nobody has confirmed.
const MAX_CANDIDATES: usize = 3;
/// Of each kind that is told, so that one leaves room for the others.
const MAX_DIRECT: usize = 6;
/// The same of addresses at relays: two relays with two transports each.
const MAX_CIRCUITS: usize = 4;

/// This node's addresses as the swarm tells them.
#[derive(Debug)]
pub(super) struct Own {
    network: Overlay,
    confirmed: Vec<Multiaddr>,
    candidates: Vec<Multiaddr>,
    listen: Vec<Multiaddr>,
    /// A server runs on this host, so that loopback addresses are of use.
    here: bool,
}

impl Own {
    pub(super) fn new(network: Overlay) -> Self {
        Self { network, confirmed: Vec::new(), candidates: Vec::new(), listen: Vec::new(), here: false }
    }

    /// Takes note of what the swarm tells; whether anything changed.
    pub(super) fn on_swarm_event(&mut self, event: &FromSwarm<'_>) -> bool {
        match event {
            FromSwarm::ExternalAddrConfirmed(event) => add(&mut self.confirmed, without_peer(event.addr)),
            FromSwarm::ExternalAddrExpired(event) => remove(&mut self.confirmed, event.addr),
            FromSwarm::NewListenAddr(event) => add(&mut self.listen, without_peer(event.addr)),
            FromSwarm::ExpiredListenAddr(event) => remove(&mut self.listen, event.addr),
            _ => false,
        }
    }

    /// A server runs on this host.
    pub(super) fn set_here(&mut self) -> bool {
        !std::mem::replace(&mut self.here, true)
    }

    /// Others see this node there, as far as that is believed; whether anything
    /// changed. Not what the swarm calls candidates: anybody who connects can
    /// make it tell any address.
    pub(super) fn set_seen(&mut self, mut seen: Vec<Multiaddr>) -> bool {
        // Those of the local network are told with those listened on.
        seen.retain(|address| is_dialable(address) && route(address) == Route::Direct);
        seen.truncate(MAX_CANDIDATES);
        std::mem::replace(&mut self.candidates, seen.clone()) != seen
    }

    /// What to tell, best first.
    pub(super) fn to_tell(&self) -> Vec<Multiaddr> {
        let is_circuit = |address: &&Multiaddr| route(address) == Route::Relayed;
        let usable = |address: &&Multiaddr| is_dialable(address) && (self.here || !is_loopback(address));
        let direct = self.confirmed.iter().filter(usable).filter(|address| !is_circuit(address)).take(MAX_DIRECT);
        let circuits = self.confirmed.iter().chain(&self.listen).filter(usable).filter(is_circuit);
        let circuits = by_turns(circuits).into_iter().take(MAX_CIRCUITS);
        let listen = reach::best_first(&self.listen, &[], &[]).into_iter().filter(|reachable| match reachable.route {
            Route::Direct => true,
            // Nobody in the public network needs them.
            Route::Lan => self.network == Overlay::Private && usable(&&reachable.address),
            _ => false,
        });
        let mut all: Vec<Multiaddr> = Vec::new();
        let listen: Vec<Multiaddr> = listen.map(|reachable| reachable.address).collect();
        for address in direct.chain(circuits).chain(&self.candidates).chain(&listen) {
            if all.len() < MAX_ADDRESSES && !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }
}

/// The first of each relay before the second ones: a relay may tell any number
/// of addresses, and one of the others may be all that is left.
fn by_turns<'a>(circuits: impl Iterator<Item = &'a Multiaddr>) -> Vec<&'a Multiaddr> {
    let mut turns: Vec<(usize, &Multiaddr)> = Vec::new();
    for address in circuits {
        if turns.iter().all(|(_, other)| *other != address) {
            let relay = relay_of(address).map(|(relay, _)| relay);
            let same = |(_, other): &&(usize, &Multiaddr)| relay_of(other).map(|(relay, _)| relay) == relay;
            turns.push((turns.iter().filter(same).count(), address));
        }
    }
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, address)| address).collect()
}

fn add(all: &mut Vec<Multiaddr>, address: Multiaddr) -> bool {
    let new = all.len() < MAX_KNOWN && !all.contains(&address);
    if new {
        all.push(address);
    }
    new
}

fn remove(all: &mut Vec<Multiaddr>, address: &Multiaddr) -> bool {
    let (before, address) = (all.len(), without_peer(address));
    all.retain(|other| *other != address);
    all.len() != before
}

#[cfg(test)]
mod tests {
    use libp2p::{
        PeerId,
        swarm::{
            behaviour::{ExternalAddrConfirmed, ExternalAddrExpired, NewExternalAddrCandidate, NewListenAddr},
            derive_prelude::ListenerId,
        },
    };

    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn listening(own: &mut Own, text: &str) {
        let event = NewListenAddr { listener_id: ListenerId::next(), addr: &addr(text) };
        own.on_swarm_event(&FromSwarm::NewListenAddr(event));
    }

    fn confirmed(own: &mut Own, text: &str) -> bool {
        own.on_swarm_event(&FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr: &addr(text) }))
    }

    fn told(own: &Own) -> Vec<String> {
        own.to_tell().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn confirmed_then_circuits_then_candidates_then_the_local_network() {
        let mut own = Own::new(Overlay::Private);
        let circuit = format!("/ip4/8.8.8.8/udp/1/quic-v1/p2p/{}/p2p-circuit", PeerId::random());
        listening(&mut own, "/ip4/192.168.1.2/tcp/4001");
        listening(&mut own, "/ip4/127.0.0.1/tcp/4001");
        let seen: Vec<_> = (0..5).map(|n| addr(&format!("/ip4/9.9.9.{n}/udp/7/quic-v1"))).collect();
        assert!(own.set_seen(seen.clone()) && !own.set_seen(seen));
        assert!(confirmed(&mut own, &format!("{circuit}/p2p/{}", PeerId::random())));
        assert!(confirmed(&mut own, "/ip4/7.7.7.7/tcp/4001"));
        assert!(!confirmed(&mut own, "/ip4/7.7.7.7/tcp/4001"));
        let expected = [
            "/ip4/7.7.7.7/tcp/4001",
            &circuit,
            "/ip4/9.9.9.0/udp/7/quic-v1",
            "/ip4/9.9.9.1/udp/7/quic-v1",
            "/ip4/9.9.9.2/udp/7/quic-v1",
            "/ip4/192.168.1.2/tcp/4001",
        ];
        assert_eq!(told(&own), expected);
        let gone = addr("/ip4/7.7.7.7/tcp/4001");
        assert!(own.on_swarm_event(&FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr: &gone })));
        assert_eq!(told(&own), expected[1..]);
    }

    #[test]
    fn a_relay_with_many_addresses_leaves_room_for_the_other() {
        let mut own = Own::new(Overlay::Private);
        let [one, two] = [PeerId::random(), PeerId::random()];
        let circuit = |relay, n: u8| format!("/ip4/8.8.8.{n}/tcp/1/p2p/{relay}/p2p-circuit");
        confirmed(&mut own, &circuit(one, 1));
        (1..20).for_each(|n| listening(&mut own, &circuit(one, n)));
        (20..22).for_each(|n| listening(&mut own, &circuit(two, n)));
        assert_eq!(told(&own), [circuit(one, 1), circuit(two, 20), circuit(one, 2), circuit(two, 21)]);
    }

    #[test]
    fn what_one_stranger_claims_to_see_is_not_told() {
        let mut own = Own::new(Overlay::Private);
        let claimed = addr("/ip4/9.9.9.9/tcp/80");
        let event = NewExternalAddrCandidate { addr: &claimed };
        assert!(!own.on_swarm_event(&FromSwarm::NewExternalAddrCandidate(event)));
        assert!(told(&own).is_empty());
    }

    #[test]
    fn loopback_is_told_only_to_a_server_on_this_host() {
        let mut own = Own::new(Overlay::Private);
        listening(&mut own, "/ip4/127.0.0.1/tcp/4001");
        assert!(told(&own).is_empty());
        assert!(own.set_here() && !own.set_here());
        assert_eq!(told(&own), ["/ip4/127.0.0.1/tcp/4001"]);
    }

    #[test]
    fn the_public_network_hears_nothing_of_the_local_one() {
        let mut own = Own::new(Overlay::Ipfs);
        listening(&mut own, "/ip4/192.168.1.2/tcp/4001");
        listening(&mut own, "/ip4/8.8.8.8/tcp/4001");
        assert_eq!(told(&own), ["/ip4/8.8.8.8/tcp/4001"]);
    }
}
