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
