//! Peers are found and tell of themselves.

use libp2p::{Multiaddr, PeerId, identify, mdns};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    swarm::{
        route::{is_loopback, without_peer},
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

    /// Strangers are listed and never dialled for having been seen; trusted
    /// peers are, if that makes for a better connection.
    fn on_seen(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        let Some(entry) = self.peers.seen(peer, address, now) else {
            return debug!(%peer, "too many strangers on the local network; not listed");
        };
        let near = entry.best().is_some_and(|best| best.route == Route::Lan);
        let (trusted, lan) = (entry.is_trusted(), entry.lan.clone());
        self.redial.hint(peer, now);
        if trusted && !near && !self.draining && !self.pending.is_dialling(&peer) && self.pending.has_room_for_dial() {
            // Without a caller; a failure is logged where it is noticed.
            let _ = self.dial(peer, lan, None, now);
        }
    }

    fn on_unseen(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            let address = without_peer(address);
            entry.lan.retain(|other| *other != address);
            self.attend(peer, now);
        }
    }

    pub(super) fn on_identify(&mut self, event: identify::Event, now: Instant) {
        let identify::Event::Received { peer_id: peer, info, .. } = event else { return };
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.set_agent(&info.agent_version);
        // A loopback address of another host leads to this one.
        let here = entry.connections.iter().any(|connection| is_loopback(&connection.address));
        let usable = info.listen_addrs.into_iter().filter(|address| here || !is_loopback(address));
        if entry.learn(usable) {
            self.redial.hint(peer, now);
        }
    }
}
