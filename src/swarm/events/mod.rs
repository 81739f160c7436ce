//! What the task does when something happens.

mod circuit;
mod connection;
mod discovery;
mod find;
mod hop;
mod join;
mod link;
mod publish;
mod reach;
mod relay;

use libp2p::swarm::SwarmEvent;
use tokio::time::Instant;

use super::{
    behaviour::{Behaviour, BehaviourEvent},
    task::Task,
};

impl Task {
    /// Handles an event of the swarm.
    pub(super) fn on_swarm_event(
        &mut self,
        event: SwarmEvent<<Behaviour as libp2p::swarm::NetworkBehaviour>::ToSwarm>,
    ) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Link(event)) => self.on_stream(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Join(event)) => self.on_join(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => self.on_identify(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.on_mdns(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::RelayClient(event)) => self.on_relay_client(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Find(event)) => self.on_find(event, now),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, concurrent_dial_errors, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint, now);
                self.note_failures(peer_id, &concurrent_dial_errors.unwrap_or_default(), now);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.on_closed(peer_id, connection_id, cause, now);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_error(connection_id, &error, now);
            }
            SwarmEvent::IncomingConnectionError { error, .. } => self.on_incoming_error(&error, now),
            SwarmEvent::NewListenAddr { listener_id, address } => self.on_listening(listener_id, address, now),
            SwarmEvent::ExpiredListenAddr { listener_id, address } => self.on_expired(listener_id, &address, now),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => self.on_listener_closed(listener_id, reason, now),
            SwarmEvent::ListenerError { error, .. } => self.on_listener_error(&error, now),
            _ => {}
        }
    }
}
