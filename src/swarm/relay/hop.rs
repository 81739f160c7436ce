//! libp2p's relay server, kept from what it cannot take.
//!
//! When its status changes it tells the handlers of all connections, but those
//! of relayed connections are dummies that panic when told anything, which ends
//! the connection's task without anybody noticing.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    relay,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};

/// See the module.
pub(in crate::swarm) struct Hop(relay::Behaviour);

impl Hop {
    pub(super) fn new(inner: relay::Behaviour) -> Self {
        Self(inner)
    }

    /// Whether it relays.
    pub(in crate::swarm) fn set_status(&mut self, status: relay::Status) {
        self.0.set_status(Some(status));
    }
}

impl NetworkBehaviour for Hop {
    type ConnectionHandler = <relay::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = relay::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_outbound_connection(id, peer, address, role, port)
    }

    /// Relayed connections are none of its business.
    fn on_swarm_event(&mut self, event: FromSwarm) {
        let relayed = match &event {
            FromSwarm::ConnectionEstablished(event) => event.endpoint.is_relayed(),
            FromSwarm::ConnectionClosed(event) => event.endpoint.is_relayed(),
            _ => false,
        };
        if !relayed {
            self.0.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.0.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use libp2p::{core::ConnectedPoint, swarm::behaviour::ConnectionEstablished};

    use super::*;

    /// Whether the handler of a connection over this address is told that the
    /// status changed.
    fn is_told(address: &str) -> bool {
        let mut hop = Hop::new(relay::Behaviour::new(PeerId::random(), relay::Config::default()));
        hop.set_status(relay::Status::Disable);
        let (address, port_use) = (address.parse().unwrap(), PortUse::Reuse);
        let endpoint = ConnectedPoint::Dialer { address, role_override: Endpoint::Dialer, port_use };
        hop.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: PeerId::random(),
            connection_id: ConnectionId::new_unchecked(1),
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
        hop.set_status(relay::Status::Enable);
        hop.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_relayed_connection_survives_a_change_of_status() {
        assert!(is_told("/ip4/8.8.8.8/tcp/1"));
        let relay = PeerId::random();
        assert!(!is_told(&format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit")));
    }
}
