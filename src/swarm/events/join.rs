//! Tickets are presented, here and elsewhere.

use libp2p::{
    PeerId,
    request_response::{Message, ResponseChannel},
    swarm::ConnectionId,
};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    node::{JoinAttempt, NodeEvent},
    swarm::{
        join::{Answered, Event},
        route::is_loopback,
        task::Task,
    },
    wire::join::{JoinAnswer, JoinRequest},
};

impl Task {
    pub(super) fn on_join(&mut self, event: Event, now: Instant) {
        match event {
            Event::Message { peer, connection_id, message: Message::Request { request, channel, .. } } => {
                self.on_join_request(peer, connection_id, request, channel, now);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.joins.hear(request_id, response);
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                debug!(%peer, %error, "no answer to a ticket");
                self.joins.fail(request_id, &error);
            }
            Event::InboundFailure { peer, error, .. } => debug!(%peer, %error, "a ticket was not answered"),
            Event::ResponseSent { .. } => {}
        }
    }

    fn on_join_request(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        request: JoinRequest,
        channel: ResponseChannel<JoinAnswer>,
        now: Instant,
    ) {
        let address = self.peers.get(&peer).and_then(|entry| entry.connection(connection)).map(|found| &found.address);
        let same_host = address.is_some_and(is_loopback);
        let behaviour = &mut self.swarm.behaviour_mut().join;
        let Some(reply) = self.joins.admit(behaviour, address, channel, now) else {
            return debug!(%peer, "a ticket was not looked at: too many tries");
        };
        if !self.sink.offer(NodeEvent::Join(JoinAttempt { peer, same_host, request, reply })) {
            debug!(%peer, "a ticket is not taken now");
        }
    }

    pub(in crate::swarm) fn on_join_answered(&mut self, answered: Answered) {
        self.joins.answer(&mut self.swarm.behaviour_mut().join, answered);
    }
}
