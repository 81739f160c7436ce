//! Tickets are presented, here and elsewhere.

use std::io;

use libp2p::{
    PeerId, Stream,
    request_response::{Message, ResponseChannel},
    swarm::ConnectionId,
};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    node::{JoinAttempt, NodeError, NodeEvent},
    swarm::{
        join::{Answered, Event, JoinJob, exchange},
        link::behaviour::OpenError,
        route::{is_circuit, is_loopback},
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
            Event::InboundFailure { peer, error, .. } => debug!(%peer, %error, "a ticket was not answered"),
            // Requests of this node go another way.
            Event::ResponseSent { .. } | Event::Message { .. } | Event::OutboundFailure { .. } => {}
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
        let same_host = address.is_some_and(|address| is_loopback(address) && !is_circuit(address));
        let behaviour = &mut self.swarm.behaviour_mut().join;
        let Some(reply) = self.joins.admit(behaviour, address, channel, now) else {
            return debug!(%peer, "a ticket was not looked at: too many tries");
        };
        if !self.sink.offer(NodeEvent::Join(JoinAttempt { peer, same_host, request, reply })) {
            debug!(%peer, "a ticket is not taken now");
        }
    }

    /// Presents a secret elsewhere; the caller hears what comes of it.
    pub(super) fn present(&mut self, peer: PeerId, stream: Stream, job: JoinJob) {
        let Ok(slot) = self.joins.sending.clone().try_acquire_owned() else {
            let error = NodeError::Limit("too many joins are under way; try again later".to_owned());
            return drop(job.reply.send(Err(error)));
        };
        tokio::spawn(async move {
            let answer = exchange(stream, &job.request).await;
            job.finish(peer, answer);
            drop(slot);
        });
    }

    pub(in crate::swarm) fn on_join_answered(&mut self, answered: Answered) {
        self.joins.answer(&mut self.swarm.behaviour_mut().join, answered);
    }
}

/// Why a stream for a secret could not be opened.
pub(super) fn open_error(error: &OpenError) -> io::Error {
    match error {
        OpenError::Unsupported(_) => {
            io::Error::new(io::ErrorKind::Unsupported, format!("{error}; update p2p-node over there"))
        }
        OpenError::Timeout => io::Error::new(io::ErrorKind::TimedOut, error.to_string()),
        OpenError::Io(error) => io::Error::new(error.kind(), error.to_string()),
    }
}
