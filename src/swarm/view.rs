//! The views that callers ask for, put together from all parts.

use libp2p::PeerId;
use tokio::time::Instant;

use super::{punch, task::Task};
use crate::{
    node::{ConnectionView, MappedPortView, MappedView, MappingProtocol, MappingsView, PathView, ReachView},
    ports::{Mapped, MappingView, Method, PortView, Transport},
};

impl Task {
    /// How this node can be reached.
    pub(super) fn reach_view(&mut self, now: Instant) -> ReachView {
        let finding = self.find_view(now);
        let rtt = |peer: &PeerId| self.peers.get(peer).and_then(|entry| entry.rtt);
        ReachView {
            nat_v4: self.reach.nat(false, now),
            nat_v6: self.reach.nat(true, now),
            addresses: self.reach.addresses(now),
            mappings: self.mappings.as_ref().map(|view| mappings(&view.borrow(), now.into_std())),
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

fn mappings(view: &MappingView, now: std::time::Instant) -> MappingsView {
    MappingsView {
        gateway: view.gateway.map(Into::into),
        router: view.router.clone().unwrap_or_default(),
        settled: view.settled,
        ports: view.ports.iter().map(|port| mapped_port(port, now)).collect(),
    }
}

fn mapped_port(port: &PortView, now: std::time::Instant) -> MappedPortView {
    let reason = port.mapped.as_ref().and_then(|mapped| mapped.reason.clone());
    MappedPortView {
        udp: port.transport == Transport::Udp,
        internal_port: port.internal_port,
        mapped: port.mapped.as_ref().map(|mapped| mapped_view(mapped, now)),
        detail: reason.or_else(|| port.error.clone()).unwrap_or_default(),
    }
}

fn mapped_view(mapped: &Mapped, now: std::time::Instant) -> MappedView {
    MappedView {
        protocol: match mapped.method {
            Method::Pcp => MappingProtocol::Pcp,
            Method::NatPmp => MappingProtocol::NatPmp,
            Method::Upnp => MappingProtocol::Upnp,
        },
        external: mapped.external.into(),
        expires_in: mapped.expires.saturating_duration_since(now),
        usable: mapped.usable,
    }
}
