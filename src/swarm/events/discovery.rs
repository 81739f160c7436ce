//! Peers are found and tell of themselves.

use std::collections::HashSet;

use libp2p::{Multiaddr, PeerId, identify, mdns};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    node::KnownSource,
    swarm::{
        circuit, link,
        peers::Connection,
        route::{is_loopback, relay_of},
        task::Task,
    },
    types::Route,
};

impl Task {
    pub(super) fn on_mdns(&mut self, event: mdns::Event, now: Instant) {
        match event {
            mdns::Event::Discovered(found) => {
                for (peer, address) in found {
                    self.on_seen(peer, &address, now);
                }
            }
            mdns::Event::Expired(gone) => {
                for (peer, address) in gone {
                    self.on_unseen(peer, &address, now);
                }
            }
        }
    }

    fn on_seen(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        if self.peers.seen(peer, address, now).is_none() {
            self.forget_seen(&peer);
            return debug!(%peer, "too many strangers on the local network; not listed");
        }
        self.tell_changes(peer);
        self.redial.hint(peer, now);
        self.dial_seen(peer, now);
    }

    /// The list that mDNS keeps itself has no limit, and whoever announces a
    /// peer says for how long: what is not listed here is not to stay there.
    fn forget_seen(&mut self, peer: &PeerId) {
        if let Some(mdns) = self.swarm.behaviour_mut().mdns.as_mut() {
            #[expect(deprecated, reason = "there is no other way to remove one")]
            mdns.expire_node(peer);
        }
    }

    /// Dials a peer seen on the local network. Strangers are listed and never
    /// dialled for having been seen; trusted peers are, if that makes for a
    /// better connection.
    pub(in crate::swarm) fn dial_seen(&mut self, peer: PeerId, now: Instant) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let near = entry.best().is_some_and(|best| best.route == Route::Lan);
        if !entry.is_trusted() || near || !entry.known.on_lan() || self.draining {
            return;
        }
        if !self.pending.is_dialling(&peer) && self.pending.has_room_for_dial() {
            // Without a caller; a failure is logged where it is noticed.
            let _ = self.dial(peer, entry.known.lan(), None, true, now);
        }
    }

    fn on_unseen(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.known.remove(KnownSource::Lan, address);
            self.attend(peer, now);
        }
    }

    pub(super) fn on_identify(&mut self, event: identify::Event, now: Instant) {
        let identify::Event::Received { connection_id, peer_id: peer, info } = event else { return };
        self.punch_identified(peer, &info, now);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        self.reach.identified(connection_id, &info, entry.is_trusted(), now);
        entry.set_agent(&info.agent_version);
        if info.protocols.contains(&circuit::HOP) && entry.direct().is_some() {
            self.relays_connected.set(peer, true);
        }
        let ours = info.protocols.contains(&link::PROTOCOL);
        // A loopback address of another host leads to this one.
        // So does that of a relay, unless the relay is here.
        let here = entry.connections.iter().any(is_here);
        let relays_here = self.peers_here();
        let usable = info.listen_addrs.into_iter().filter(|address| {
            let here = relay_of(address).map_or(here, |(relay, _)| relays_here.contains(&relay));
            here || !is_loopback(address)
        });
        let usable: Vec<_> = usable.collect();
        if self.relays.client.learned(&peer, &usable, ours) {
            self.tend_relays(now);
        }
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        if entry.learn(usable.iter().cloned(), now) {
            self.redial.hint(peer, now);
        }
        self.on_reach_changed(now);
        self.on_server_identified(peer, &info.protocols, &usable, now);
    }

    /// Peers connected over this host's loopback.
    fn peers_here(&self) -> HashSet<PeerId> {
        self.peers.connections().filter(|(_, connection)| is_here(connection)).map(|(peer, _)| peer).collect()
    }
}

fn is_here(connection: &Connection) -> bool {
    connection.route == Route::Lan && is_loopback(&connection.address)
}
