//! Opens substreams on a connection of the caller's choice and passes on those
//! that peers open for links.
//!
//! libp2p-stream would open on any connection of the peer, so that traffic
//! could stay on a relay after a direct connection is there.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};
use tokio::sync::OwnedSemaphorePermit;

use super::handler::{FromHandler, Handler, ToHandler};

/// Matches an opened stream with what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::swarm) struct Token(pub(in crate::swarm) u64);

/// See the module.
#[derive(Debug)]
pub(in crate::swarm) struct Behaviour {
    /// To handlers and to the task. Filled only while the task or the swarm
    /// handles one thing and emptied before the next.
    queue: VecDeque<ToSwarm<Event, ToHandler>>,
    serving: Arc<AtomicBool>,
}

/// What happened on a connection.
#[derive(Debug)]
pub(in crate::swarm) struct Event {
    /// The other side.
    pub(in crate::swarm) peer: PeerId,
    /// Where.
    pub(in crate::swarm) connection: ConnectionId,
    /// What.
    pub(in crate::swarm) kind: EventKind,
}

/// See [`Event`].
#[derive(Debug)]
pub(in crate::swarm) enum EventKind {
    /// The peer opened a link. The permit is its place among the connection's
    /// links; it is held as long as the stream.
    Inbound(Stream, OwnedSemaphorePermit),
    /// The peer opened a stream of another protocol of [`super::ACCEPTED`].
    Accepted(StreamProtocol, Stream, OwnedSemaphorePermit),
    /// The peer tried to open more streams, or faster, than is allowed.
    Refused,
    /// A stream asked for is open.
    Opened(Token, Stream),
    /// A stream asked for could not be opened.
    Failed(Token, OpenError),
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(in crate::swarm) enum OpenError {
    /// It does not speak the protocol.
    #[error("the peer does not speak {0}")]
    Unsupported(StreamProtocol),
    /// No answer.
    #[error("opening a stream timed out")]
    Timeout,
    /// Something broke.
    #[error("opening a stream failed: {0}")]
    Io(std::io::Error),
}

impl Behaviour {
    pub(in crate::swarm) fn new() -> Self {
        Self { queue: VecDeque::new(), serving: Arc::default() }
    }

    /// Opens a stream on exactly this connection. The answer is
    /// [`EventKind::Opened`] or [`EventKind::Failed`], or the end of the
    /// connection.
    pub(in crate::swarm) fn open(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: StreamProtocol,
        token: Token,
    ) {
        self.notify(peer, connection, ToHandler::Open(protocol, token));
    }

    /// Whether the connection stays although nothing runs on it.
    pub(in crate::swarm) fn keep_alive(&mut self, peer: PeerId, connection: ConnectionId, keep: bool) {
        self.notify(peer, connection, ToHandler::KeepAlive(keep));
    }

    /// Whether streams of [`super::SERVED`] are accepted, also on these
    /// connections that are there.
    pub(in crate::swarm) fn serve(&mut self, serving: bool, all: impl Iterator<Item = (PeerId, ConnectionId)>) {
        if self.serving.swap(serving, Ordering::Relaxed) != serving {
            all.for_each(|(peer, connection)| self.notify(peer, connection, ToHandler::Look));
        }
    }

    fn notify(&mut self, peer_id: PeerId, connection: ConnectionId, event: ToHandler) {
        self.queue.push_back(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.serving.clone()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.serving.clone()))
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        let kind = match event {
            FromHandler::Inbound(stream, place) => EventKind::Inbound(stream, place),
            FromHandler::Accepted(protocol, stream, place) => EventKind::Accepted(protocol, stream, place),
            FromHandler::Refused => EventKind::Refused,
            FromHandler::Opened(token, stream) => EventKind::Opened(token, stream),
            FromHandler::Failed(token, error) => EventKind::Failed(token, error),
        };
        self.queue.push_back(ToSwarm::GenerateEvent(Event { peer, connection, kind }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.queue.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
