//! Connections and listeners come and go.

use std::io;

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, transport::ListenerId},
    ping,
    swarm::{ConnectionError, ConnectionId, ListenError},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    node::{ConnectionInfo, NodeEvent},
    swarm::{
        cause, circuit,
        peers::Connection,
        pending::{Opening, Purpose},
        ping::Job,
        reach::verdicts::Answer,
        route::{is_quic, route, without_peer},
        task::{Task, is_time},
    },
    types::Route,
    wire::autonat::DialStatus,
};

/// Pings in a row without an answer after which a connection is dead: TCP
/// alone takes a quarter of an hour to notice.
const MAX_MISSED_PINGS: u32 = 2;

impl Task {
    pub(super) fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let own_port = self.scope.shows_port(endpoint.get_remote_address());
        self.reach.connected(id, peer, endpoint, own_port, now);
        self.on_dialled_back(peer, id);
        let address = address_of(endpoint);
        let route = if endpoint.is_relayed() { Route::Relayed } else { route(&address) };
        let entry = self.peers.entry(peer, now);
        let first = entry.connections.is_empty();
        let dialled = endpoint.is_dialer();
        entry.connections.push(Connection {
            id,
            route,
            address: address.clone(),
            quic: is_quic(&address),
            dialled,
            rtt: None,
            since: now,
            missed_pings: 0,
            closed: CancellationToken::new(),
        });
        entry.steer.connected(id, route, is_quic(&address), now);
        let leads_there = self.punch_connected(peer, id, endpoint, route, now);
        if dialled && leads_there {
            self.peers.entry(peer, now).known.worked(&address, now);
            self.sink.push(NodeEvent::AddressWorked(peer, address.clone()));
        }
        debug!(%peer, %id, %route, %address, dialled, "connection up");
        let info = ConnectionInfo { peer, route, address };
        let trusted = self.peers.get(&peer).is_some_and(|entry| entry.is_trusted());
        if first {
            log_connected(&info, trusted);
            self.sink.push(NodeEvent::Connected(info.clone()));
        }
        let mut waiters = self.pending.take_waiters(&peer);
        waiters.extend(self.find.lookups.take_waiters(&peer));
        waiters.extend(self.pending.dialled(id).into_iter().flat_map(|dial| dial.waiters));
        for waiter in waiters {
            self.serve(waiter, info.clone(), false);
        }
        self.redial.connected(&peer, now);
        self.on_connected_relays(peer, id, now);
        self.probe_older(peer, id, now);
        self.close_silent(peer);
        self.attend(peer, now);
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: ConnectionId, cause: Option<ConnectionError>, now: Instant) {
        debug!(%peer, %id, cause = cause.as_ref().map(ToString::to_string), "connection gone");
        self.reach.closed(id, now);
        for Opening { purpose, .. } in self.pending.lost(id) {
            match purpose {
                Purpose::Link | Purpose::Ping(Job::Probe(..)) => {}
                Purpose::Ping(Job::Asked(job)) => job.fail("the connection broke"),
                Purpose::Join(job) => job.finish(peer, Err(io::ErrorKind::ConnectionReset.into())),
                Purpose::Circuit(reply) => drop(reply.send(Err(circuit::gone()))),
                Purpose::Stop(job) => self.open_stop(peer, *job),
                Purpose::Verify(question) => self.on_answer(&question, Answer::NoVerdict, now),
                Purpose::DialBack(reply) => drop(reply.send(Err(Some(DialStatus::DialBackError)))),
                Purpose::Punch { attempt, .. } => self.punch_refused(peer, attempt, None, now),
                Purpose::Announce => self.find.publisher.told(false, now, rand::random()),
            }
        }
        self.punches.down(peer, id, now);
        self.end_links(id);
        self.probes.clear(&(peer, id));
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        for gone in entry.connections.extract_if(.., |connection| connection.id == id) {
            gone.closed.cancel();
        }
        if entry.steer.is_doubted(id) {
            // Rightly so.
            entry.false_alarms /= 2;
        }
        entry.steer.disconnected(id, now);
        entry.kept.take_if(|kept| *kept == id);
        if entry.connections.iter().all(|connection| connection.route == Route::Relayed) {
            self.relays_connected.set(peer, false);
        }
        let last = entry.connections.is_empty();
        let trusted = entry.is_trusted();
        if cause.is_some() && self.relays.client.keeps(&peer) {
            // A NAT that refuses one connection may have forgotten all.
            self.suspect_relays(now);
        }
        self.on_closed_relays(peer, id, now);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        if last {
            entry.rtt = None;
            let cause = cause.map_or_else(|| "closed here".to_owned(), |cause| cause.to_string());
            log_disconnected(peer, trusted, &cause);
            self.redial.lost(peer, now, rand::random());
            self.find.servers.remove(&peer);
            self.sink.push(NodeEvent::Disconnected(peer, cause));
        }
        self.attend(peer, now);
    }

    /// A yamux stream of a connection that this side closed never ends by
    /// itself.
    fn end_links(&mut self, connection: ConnectionId) {
        for link in self.links.live.values().filter(|link| link.connection == connection) {
            link.cancel.cancel();
        }
    }

    /// Strangers fail all the time; only what a limit of this node refused is
    /// worth a line.
    pub(super) fn on_incoming_error(&mut self, error: &ListenError, now: Instant) {
        let ListenError::Denied { cause } = error else {
            return debug!(%error, "an incoming connection failed");
        };
        let Some(limit) = cause::exceeded(cause) else { return };
        if is_time(&mut self.warned.limit, now) {
            let refused = self.swarm.behaviour().limits.counts().refused;
            warn!(refused, "an incoming connection was refused: {limit}");
        }
    }

    pub(super) fn on_ping(&mut self, event: ping::Event) {
        let ping::Event { peer, connection: id, result } = event;
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let best = entry.steer.best() == Some(id);
        let Some(connection) = entry.connections.iter_mut().find(|connection| connection.id == id) else { return };
        match result {
            Ok(rtt) => {
                connection.missed_pings = 0;
                connection.rtt = Some(connection.rtt.map_or(rtt, |least| least.min(rtt)));
                if best {
                    entry.rtt = Some(rtt);
                }
            }
            Err(ping::Failure::Timeout) => {
                connection.missed_pings += 1;
                if connection.missed_pings >= MAX_MISSED_PINGS {
                    debug!(%peer, address = %connection.address, "closing a connection that answers no ping");
                    self.swarm.close_connection(id);
                }
            }
            Err(error) => debug!(%peer, %error, "ping failed"),
        }
    }

    pub(super) fn on_listening(&mut self, id: ListenerId, address: Multiaddr, now: Instant) {
        if self.relays.client.told(id, &address) {
            return;
        }
        if self.listeners.reported(id, address.clone()) {
            info!(%address, "listening");
            self.redial.network_changed(now, rand::random);
            self.relays.client.network_changed();
            self.on_reach_changed(now);
        }
    }

    pub(super) fn on_expired(&mut self, id: ListenerId, address: &Multiaddr, now: Instant) {
        if !self.listeners.expired(id, address) {
            return;
        }
        info!(%address, "no longer listening");
        self.redial.network_changed(now, rand::random);
        self.relays.client.network_changed();
        self.on_reach_changed(now);
    }

    /// The listener goes on. Too many open files, for example.
    pub(super) fn on_listener_error(&mut self, error: &io::Error, now: Instant) {
        if is_time(&mut self.warned.listener, now) {
            warn!(%error, "a listener has trouble");
        }
    }

    /// Listeners are never closed on purpose; those at relays end with their
    /// reservation.
    pub(super) fn on_listener_closed(&mut self, id: ListenerId, reason: Result<(), io::Error>, now: Instant) {
        if self.on_reservation_ended(id, reason.as_ref().err(), now) {
            return;
        }
        let Some(error) = self.listeners.closed(id, reason) else { return };
        warn!(%error, "a listener is gone");
        self.sink.push(NodeEvent::Fatal(error.to_string()));
        self.failed.get_or_insert(error);
    }
}

/// The peer's address, or that of the circuit that it came through.
fn address_of(endpoint: &ConnectedPoint) -> Multiaddr {
    match endpoint {
        ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => without_peer(local_addr),
        _ => without_peer(endpoint.get_remote_address()),
    }
}

fn log_connected(info: &ConnectionInfo, trusted: bool) {
    let ConnectionInfo { peer, route, address } = info;
    if trusted {
        info!(%peer, %route, %address, "peer connected");
    } else {
        debug!(%peer, %route, %address, "stranger connected");
    }
}

fn log_disconnected(peer: PeerId, trusted: bool, cause: &str) {
    if trusted {
        info!(%peer, %cause, "peer disconnected");
    } else {
        debug!(%peer, %cause, "stranger disconnected");
    }
}
