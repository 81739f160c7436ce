//! Connections that may be dead.
//!
//! A peer that was restarted or moved to another network does not close what it
//! had, and a NAT that forgot a mapping says nothing. So a connection is
//! pinged when a younger one comes up beside it, and all those of a peer and of
//! the relays in use when a link is silent although an answer is due: what
//! broke one may have broken all. While nothing comes back, links go over
//! other connections; if there is none, the peer is dialled anew. Closing those
//! that are dead is left to the transports: an answer may only wait behind
//! megabytes on a slow line. Those with relays are closed once another one
//! answers, because a reservation must not stay on them.

use std::time::Duration;

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::debug;

use super::{
    peers::{Connection, Peer},
    pending::{Opening, Purpose},
    ping::{self, Job},
    relay::candidate::Health,
    task::Task,
};
use crate::{node::LinkId, types::Route};

/// Least and most time for the answer: an error is harmless, and makes the next
/// time longer.
const DOUBT: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(1200));
/// The least on TCP, where a ping waits behind all that is under way.
const TCP_DOUBT: Duration = Duration::from_secs(1);
/// The most for what is left where the peer has left a connection, too.
const AGREED_DOUBT: Duration = Duration::from_millis(150);
/// Round trips that the answer may take, so that a packet or two may get lost.
const ROUND_TRIPS: u32 = 4;
/// A deadline noticed so late was missed by this process (it was stopped, say),
/// and the answer may be here unread.
const LATE: Duration = Duration::from_secs(1);
/// From one dial in place of silent connections to the next, which tries only
/// what is not being tried any more.
const RESCUE_INTERVAL: Duration = Duration::from_secs(1);
/// Connections with one peer beyond which silent ones are closed: half of what
/// the default limit allows, so that both sides may dial anew.
const MANY: usize = 4;
/// Suspicions that proved wrong, each of which doubles the time for an answer.
const MAX_FALSE_ALARMS: u32 = 4;

impl Task {
    /// Pings the connections of a trusted peer, or of one that is relayed for,
    /// that are older than this one.
    pub(super) fn probe_older(&mut self, peer: PeerId, newest: ConnectionId, now: Instant) {
        let matters = self.trust_open || self.relays.server.is_guest(&peer);
        let Some(entry) = self.peers.get(&peer).filter(|entry| matters || entry.is_trusted()) else { return };
        let older: Vec<_> = entry.connections.iter().filter(|known| known.id != newest).collect();
        let older: Vec<_> = older.into_iter().map(|known| (known.id, patience(entry, known))).collect();
        for (connection, doubt) in older {
            self.probe(peer, connection, doubt, now);
        }
    }

    /// The peer opened its link on this connection. If that is not the one that
    /// this side prefers, the peer may know something.
    pub(super) fn on_peer_moved(&mut self, peer: PeerId, to: ConnectionId, now: Instant) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let Some(preferred) = entry.steer.best().filter(|best| *best != to) else { return };
        match self.probes.get(&(peer, preferred)) {
            Some(at) => self.probes.set((peer, preferred), at.min(now + AGREED_DOUBT)),
            None => self.suspect_peer(peer, now),
        }
    }

    /// A link is silent although the peer owes an answer.
    pub(super) fn suspect(&mut self, link: LinkId, now: Instant) {
        let Some(peer) = self.links.live.get(&link).map(|live| live.peer) else { return };
        self.suspect_peer(peer, now);
        self.suspect_relays(now);
        self.rescue(peer, now);
    }

    /// All that is in use may have broken.
    pub(super) fn suspect_all(&mut self, now: Instant) {
        let mut peers: Vec<_> = self.links.live.values().map(|live| live.peer).collect();
        peers.sort();
        peers.dedup();
        peers.into_iter().for_each(|peer| self.suspect_peer(peer, now));
        self.suspect_relays(now);
        self.rescue_all(now);
    }

    /// The connections with relays may have broken.
    pub(super) fn suspect_relays(&mut self, now: Instant) {
        self.relays.client.engaged_relays().into_iter().for_each(|relay| self.suspect_peer(relay, now));
    }

    /// Pings all connections of a peer that are not doubted already.
    pub(super) fn suspect_peer(&mut self, peer: PeerId, now: Instant) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let suspected = entry.connections.iter().filter(|known| !entry.steer.is_doubted(known.id));
        let suspected = suspected.map(|known| (known.id, patience(entry, known)));
        for (connection, doubt) in suspected.collect::<Vec<_>>() {
            self.probe(peer, connection, doubt, now);
        }
    }

    fn probe(&mut self, peer: PeerId, connection: ConnectionId, doubt: Duration, now: Instant) {
        if self.probes.get(&(peer, connection)).is_some() {
            return;
        }
        self.probes.set((peer, connection), now + doubt);
        self.relays.client.health(&peer, connection, Health::Asked);
        self.ask(peer, connection);
    }

    /// Nothing came back for long. A connection that works again is noticed by
    /// its answer, so that one is always awaited.
    pub(super) fn probe_again(&mut self, peer: PeerId, connection: ConnectionId) {
        let is_there = self.peers.get(&peer).is_some_and(|entry| entry.connection(connection).is_some());
        if is_there && !self.draining {
            self.ask(peer, connection);
        }
    }

    fn ask(&mut self, peer: PeerId, connection: ConnectionId) {
        let purpose = Purpose::Ping(Job::Probe(peer, connection));
        let token = self.pending.opening(Opening { peer, connection, purpose });
        self.swarm.behaviour_mut().link.open(peer, connection, ping::PROTOCOL, token);
    }

    /// Something came back: a refusal is a sign of life too.
    pub(super) fn probe_answered(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        self.probes.clear(&(peer, connection));
        self.relays.client.health(&peer, connection, Health::Fine);
        if let Some(entry) = self.peers.get_mut(&peer) {
            if entry.steer.doubt(connection, false) {
                entry.false_alarms = (entry.false_alarms + 1).min(MAX_FALSE_ALARMS);
                self.punches.doubt(peer, connection, false, now);
            }
            self.attend(peer, now);
        }
        self.tend_relays(now);
    }

    /// Turns away from connections on which nothing came back, until something
    /// does.
    pub(super) fn on_silence(&mut self, now: Instant) {
        let mut silent = Vec::new();
        while let Some(at) = self.probes.next().filter(|at| *at <= now)
            && let Some((peer, connection)) = self.probes.pop_due(now)
        {
            if now.saturating_duration_since(at) > LATE {
                self.probes.set((peer, connection), now + DOUBT.1);
            } else if let Some(entry) = self.peers.get_mut(&peer)
                && entry.steer.doubt(connection, true)
            {
                debug!(%peer, %connection, "a connection is silent");
                self.relays.client.health(&peer, connection, Health::Silent);
                silent.push((peer, connection));
            }
        }
        if silent.is_empty() {
            return;
        }
        // Relays first: others may be reached through them.
        self.tend_relays(now);
        for (peer, connection) in silent {
            self.close_of_guest(peer, connection);
            self.punches.doubt(peer, connection, true, now);
            self.attend(peer, now);
            self.rescue(peer, now);
        }
        self.punch_due(now);
    }

    /// A peer that holds a reservation here made another connection of the same
    /// kind, and the older one is silent: it must not be asked there.
    fn close_of_guest(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(entry) = self.peers.get(&peer).filter(|_| self.relays.server.is_guest(&peer)) else { return };
        let Some(silent) = entry.connection(connection) else { return };
        let replaces = |other: &Connection| {
            other.since > silent.since
                && (other.route, other.quic, other.dialled) == (silent.route, silent.quic, silent.dialled)
                && !entry.steer.is_doubted(other.id)
        };
        if entry.connections.iter().any(replaces) {
            self.swarm.close_connection(connection);
        }
    }

    /// Makes room among the connections with a peer: those that are silent go
    /// first.
    pub(super) fn close_silent(&mut self, peer: PeerId) {
        let Some(entry) = self.peers.get(&peer).filter(|entry| entry.connections.len() > MANY) else { return };
        let silent = entry.connections.iter().map(|known| known.id).filter(|id| entry.steer.is_doubted(*id));
        for connection in silent.take(entry.connections.len() - MANY).collect::<Vec<_>>() {
            self.swarm.close_connection(connection);
        }
    }

    /// Dials peers anew whose connections are still all silent.
    pub(super) fn rescue_due(&mut self, now: Instant) {
        while let Some(peer) = self.rescues.pop_due(now) {
            self.rescue(peer, now);
        }
    }

    /// There is a new reason to believe that silent peers can be reached.
    pub(super) fn rescue_all(&mut self, now: Instant) {
        for peer in self.rescues.keys() {
            self.rescues.clear(&peer);
            self.rescue(peer, now);
        }
    }

    /// Dials a peer anew whose connections are all silent, unless that was done
    /// a moment ago.
    fn rescue(&mut self, peer: PeerId, now: Instant) {
        let Some(entry) = self.peers.get(&peer) else { return };
        if !entry.steer.all_doubted() || !entry.steer.is_allowed() || self.draining {
            return self.rescues.clear(&peer);
        }
        if self.rescues.get(&peer).is_some() {
            return;
        }
        self.rescues.set(peer, now + RESCUE_INTERVAL);
        let mut addresses = self.ways_to(&peer);
        addresses.retain(|address| !self.pending.is_trying(&peer, address));
        if self.pending.has_room_for_dial() && !addresses.is_empty() {
            debug!(%peer, "dialling a silent peer anew");
            // Without a caller; a failure is logged where it is noticed.
            let _ = self.dial(peer, addresses, None, true, now);
        }
    }
}

/// How long to wait for the answer on a connection.
fn patience(entry: &Peer, connection: &Connection) -> Duration {
    let (least, most) = DOUBT;
    let least = if connection.quic || connection.route == Route::Relayed { least } else { TCP_DOUBT };
    // A way may be slower than that.
    let most = connection.rtt.map_or(most, |rtt| most.max(rtt * 2));
    let doubt = connection.rtt.map_or(least, |rtt| rtt * ROUND_TRIPS).clamp(least, most);
    // On QUIC an answer waits for nothing else.
    let free = connection.quic && connection.route != Route::Relayed;
    let alarms = if free { entry.false_alarms / MAX_FALSE_ALARMS } else { entry.false_alarms };
    doubt.saturating_mul(1 << alarms)
}
