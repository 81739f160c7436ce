//! The views that callers ask for, put together from all parts.

use libp2p::PeerId;
use tokio::time::Instant;

use super::{punch, task::Task};
use crate::node::{ConnectionView, PathView, ReachView};

impl Task {
    /// How this node can be reached.
    pub(super) fn reach_view(&mut self, now: Instant) -> ReachView {
        let finding = self.find_view(now);
        let rtt = |peer: &PeerId| self.peers.get(peer).and_then(|entry| entry.rtt);
        ReachView {
            nat_v4: self.reach.nat(false, now),
            nat_v6: self.reach.nat(true, now),
            addresses: self.reach.addresses(now),
            mappings: self.mappings.as_ref().map(|view| view.borrow().clone()),
            relays: self.relays.client.views(rtt),
            serving: self.relays.server.view(),
            finding,
        }
    }

    /// How a peer is reached, and what was tried.
    pub(super) fn path_view(&self, peer: PeerId, now: Instant) -> Option<PathView> {
        let entry = self.peers.get(&peer)?;
        let in_use = entry.steer.preferred();
        let mut connections: Vec<ConnectionView> = entry
            .connections
            .iter()
            .map(|connection| ConnectionView {
                route: connection.route,
                address: connection.address.clone(),
                dialled: connection.dialled,
                age: now.saturating_duration_since(connection.since),
                in_use: in_use == Some(connection.id),
            })
            .collect();
        let punch::Seen { punches, peer_nat, next_try } = self.punch_view(&peer, now);
        connections.sort_by_key(|connection| (!connection.in_use, connection.route));
        Some(PathView {
            peer,
            connections,
            rtt: entry.rtt,
            addresses: entry.known.views(now),
            punches,
            peer_nat,
            next_try,
            dialling: self.pending.is_dialling(&peer),
        })
    }
}
