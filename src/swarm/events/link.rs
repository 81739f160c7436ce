//! Streams are opened, and links begin and end.

use std::future::Future;

use libp2p::{PeerId, Stream, StreamProtocol, swarm::ConnectionId};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::join::open_error;
use crate::{
    node::{Direction, Link, LinkId, NodeError, NodeEvent, Pong},
    swarm::{
        circuit,
        link::{
            behaviour::{Event, EventKind, OpenError, Token},
            io::{self, LinkEnd, Terms},
        },
        pending::{Opening, Purpose},
        ping::{self, Job, Measured, PingError},
        punch,
        reach::{self, verdicts::Answer},
        task::{Ended, LiveLink, Task},
    },
    wire::{Decoder, autonat::DialStatus},
};

impl Task {
    pub(super) fn on_stream(&mut self, event: Event, now: Instant) {
        let Event { peer, connection, kind } = event;
        match kind {
            EventKind::Inbound(stream, place) => self.on_inbound_link(peer, connection, stream, place, now),
            EventKind::Accepted(protocol, stream, place) => {
                self.on_accepted(peer, connection, &protocol, stream, place, now);
            }
            EventKind::Refused => self.warn_of(peer, &"the peer opens more streams than it may; refusing some"),
            EventKind::Opened(token, stream) => self.on_opened(token, stream, now),
            EventKind::Failed(token, error) => self.on_open_failed(token, &error, now),
        }
    }

    /// A stream of another protocol than that of links.
    fn on_accepted(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        protocol: &StreamProtocol,
        stream: Stream,
        place: OwnedSemaphorePermit,
        now: Instant,
    ) {
        match protocol {
            p if *p == punch::PROTOCOL => self.punch_accepted(peer, connection, false, stream, place, now),
            p if *p == punch::STOCK => self.punch_accepted(peer, connection, true, stream, place, now),
            p if *p == circuit::HOP => self.on_hop_stream(peer, connection, stream, place),
            p if *p == reach::DIAL_BACK => self.take_nonce(connection, stream, place),
            p if *p == reach::DIAL_REQUEST => self.connect_back(connection, stream, place, now),
            _ => debug!(%peer, %protocol, "a stream that nobody takes"),
        }
    }

    fn on_inbound_link(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        stream: Stream,
        place: OwnedSemaphorePermit,
        now: Instant,
    ) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let trusted = self.trust_open || entry.is_trusted();
        let budget = if trusted { &entry.inbound_budget } else { &self.links.untrusted_budget }.clone();
        let (terms, cancel) = self.terms(budget);
        let (direction, moved) = io::inbound(stream, terms);
        let moved = async move {
            let end = moved.await;
            drop(place);
            end
        };
        if self.start_link(peer, connection, direction, cancel, moved).is_some()
            && let Some(entry) = self.peers.get_mut(&peer)
        {
            entry.steer.inbound(connection);
            self.on_peer_moved(peer, connection, now);
            self.attend(peer, now);
        }
    }

    fn on_opened(&mut self, token: Token, stream: Stream, now: Instant) {
        let Some(Opening { peer, connection, purpose }) = self.pending.opened(token) else { return };
        match purpose {
            Purpose::Link => self.on_outbound_link(peer, connection, stream, now),
            Purpose::Ping(job) => self.measure(stream, job, now),
            Purpose::Join(job) => self.present(peer, stream, *job),
            // The dial may have been given up.
            Purpose::Circuit(reply) => {
                let closed = self.peers.get(&peer).and_then(|entry| entry.connection(connection));
                let closed = closed.map(|known| known.closed.clone());
                drop(reply.send(closed.map(|closed| circuit::Opened { stream, closed }).ok_or_else(circuit::gone)));
            }
            Purpose::Stop(job) => self.stop_opened(*job, stream),
            Purpose::Verify(question) => self.put_question(stream, *question),
            Purpose::DialBack(reply) => drop(reply.send(Ok((stream, connection)))),
            Purpose::Punch { attempt, stock } => self.punch_opened(peer, attempt, stock, stream, now),
            Purpose::Announce => self.announce(peer, stream),
        }
    }

    fn on_outbound_link(&mut self, peer: PeerId, connection: ConnectionId, stream: Stream, now: Instant) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let started = if entry.steer.is_allowed() {
            let (terms, cancel) = self.terms(entry.outbound_budget.clone());
            let (direction, moved) = io::outbound(stream, terms);
            self.start_link(peer, connection, direction, cancel, moved)
        } else {
            // Trust was lost meanwhile.
            None
        };
        if let Some(entry) = self.peers.get_mut(&peer) {
            match started {
                Some(link) => entry.steer.opened(connection, link, now),
                None => entry.steer.failed(connection, false, now, rand::random()),
            }
        }
        self.attend(peer, now);
    }

    fn terms(&self, budget: std::sync::Arc<tokio::sync::Semaphore>) -> (Terms, CancellationToken) {
        let cancel = CancellationToken::new();
        let decoder = Decoder::new(self.max_message_bytes);
        (Terms { decoder, budget, cancel: cancel.clone() }, cancel)
    }

    /// Hands a link over and moves its frames. If nobody takes it now, it is
    /// dropped, which resets the stream; whoever opened it tries again.
    fn start_link(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        direction: Direction,
        cancel: CancellationToken,
        moved: impl Future<Output = LinkEnd> + Send + 'static,
    ) -> Option<LinkId> {
        let route = self.peers.get(&peer)?.connection(connection)?.route;
        let outbound = matches!(direction, Direction::Outbound { .. });
        self.links.last += 1;
        let id = LinkId(self.links.last);
        if !self.sink.offer(NodeEvent::Link(Link { id, peer, route, direction })) {
            debug!(%peer, "a link is not taken now");
            return None;
        }
        debug!(%peer, %route, outbound, "link open");
        self.links.live.insert(id, LiveLink { peer, connection, outbound, cancel });
        let ended = self.links.ended.clone();
        self.links.running.spawn(async move {
            let end = moved.await;
            // The task may be gone.
            let _ = ended.send(Ended { link: id, end }).await;
        });
        Some(id)
    }

    pub(in crate::swarm) fn on_link_ended(&mut self, ended: Ended) {
        let Some(LiveLink { peer, outbound, .. }) = self.links.live.remove(&ended.link) else { return };
        debug!(%peer, outbound, end = %ended.end, "link ended");
        if let LinkEnd::Protocol(error) = &ended.end {
            self.warn_of(peer, &format_args!("link closed: {error}"));
        }
        if outbound && let Some(entry) = self.peers.get_mut(&peer) {
            let now = Instant::now();
            entry.steer.ended(ended.link, now, rand::random());
            self.attend(peer, now);
        }
    }

    fn on_open_failed(&mut self, token: Token, error: &OpenError, now: Instant) {
        let Some(Opening { peer, connection, purpose }) = self.pending.opened(token) else { return };
        debug!(%peer, %error, "a stream could not be opened");
        match purpose {
            Purpose::Link => {
                let hopeless = matches!(error, OpenError::Unsupported(_));
                if let Some(entry) = self.peers.get_mut(&peer) {
                    entry.steer.failed(connection, hopeless, now, rand::random());
                    self.attend(peer, now);
                }
            }
            Purpose::Ping(Job::Asked(job)) => job.fail(error),
            Purpose::Ping(Job::Probe(..)) if matches!(error, OpenError::Timeout) => self.probe_again(peer, connection),
            Purpose::Ping(Job::Probe(..)) => self.probe_answered(peer, connection, now),
            Purpose::Join(job) => job.finish(peer, Err(open_error(error))),
            Purpose::Circuit(reply) => drop(reply.send(Err(open_error(error)))),
            Purpose::Stop(job) => self.open_stop(peer, *job),
            Purpose::Verify(question) => self.on_answer(&question, Answer::NoVerdict, now),
            Purpose::DialBack(reply) => drop(reply.send(Err(Some(DialStatus::DialBackError)))),
            Purpose::Punch { attempt, .. } => self.punch_refused(peer, attempt, Some(error), now),
            Purpose::Announce => self.find.publisher.told(false, now, rand::random()),
        }
    }

    /// Measures elsewhere; the result comes back as [`Measured`].
    fn measure(&mut self, stream: Stream, job: Job, now: Instant) {
        let Ok(slot) = self.pings.slots.clone().try_acquire_owned() else { return self.not_measured(job, now) };
        let measured = self.pings.measured.clone();
        tokio::spawn(async move {
            let result = ping::exchange(stream).await;
            // The task may be gone, and the caller with it.
            let _ = measured.send(Measured { job, result }).await;
            drop(slot);
        });
    }

    fn not_measured(&mut self, job: Job, now: Instant) {
        match job {
            Job::Asked(job) => {
                let error = NodeError::Limit("too many pings are under way; try again later".to_owned());
                drop(job.reply.send(Err(error)));
            }
            // That the stream opened is a sign of life too.
            Job::Probe(peer, connection) => self.probe_answered(peer, connection, now),
        }
    }

    pub(in crate::swarm) fn on_measured(&mut self, measured: Measured) {
        let Measured { job, result } = measured;
        let mut job = match job {
            Job::Asked(job) => job,
            Job::Probe(peer, connection) if matches!(result, Err(PingError::Timeout)) => {
                return self.probe_again(peer, connection);
            }
            Job::Probe(peer, connection) => return self.probe_answered(peer, connection, Instant::now()),
        };
        match result {
            Ok(rtt) => drop(job.reply.send(Ok(Pong { rtt, connected: job.connected }))),
            Err(PingError::Broken(_)) if job.broken + 1 < ping::MAX_STREAMS => {
                job.broken += 1;
                self.open_ping(job);
            }
            Err(error) => job.fail(error),
        }
    }
}
