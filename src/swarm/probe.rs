//! Connections that may be dead.
//!
//! A peer that was restarted or moved to another network does not close what it
//! had, and a NAT that forgot a mapping says nothing. So a connection is
//! pinged when a younger one comes up beside it, or when a link on it is
//! silent although an answer is due. While nothing comes back, links go over
//! other connections; if there is none, the peer is dialled anew. Closing those
//! that are dead is left to the transports: an answer may only wait behind
//! megabytes on a slow line.

use std::time::Duration;

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::debug;

use super::{
    pending::{Opening, Purpose},
    ping::{self, Job},
    task::Task,
};
use crate::node::LinkId;

/// After this without an answer an older connection is left: much longer than a
/// round trip, and an error is harmless.
const DOUBT: Duration = Duration::from_secs(1);
/// Least and most time for the answer on a connection that is suspected: it was
/// silent for a while already. Also for one whose round trip was not measured.
const SUSPECT_DOUBT: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(3));
/// Round trips that the answer may take, so that a packet or two may get lost.
const ROUND_TRIPS: u32 = 4;
/// A deadline noticed so late was missed by this process (it was stopped, say),
/// and the answer may be here unread.
const LATE: Duration = Duration::from_secs(1);
/// From one dial in place of a silent connection to the next.
const RESCUE_INTERVAL: Duration = Duration::from_secs(2);
/// Suspicions that proved wrong, each of which doubles the time for an answer.
const MAX_FALSE_ALARMS: u32 = 4;

impl Task {
    /// Pings the connections of a trusted peer that are older than this one.
    pub(super) fn probe_older(&mut self, peer: PeerId, newest: ConnectionId, now: Instant) {
        let Some(entry) = self.peers.get(&peer).filter(|entry| self.trust_open || entry.is_trusted()) else { return };
        let older: Vec<_> =
            entry.connections.iter().map(|connection| connection.id).filter(|id| *id != newest).collect();
        for connection in older {
            self.probe(peer, connection, DOUBT, now);
        }
    }

    /// A link is silent although the peer owes an answer.
    pub(super) fn suspect(&mut self, link: LinkId, now: Instant) {
        let Some(live) = self.links.live.get(&link) else { return };
        let (peer, connection) = (live.peer, live.connection);
        let Some(entry) = self.peers.get(&peer) else { return };
        let Some(found) = entry.connection(connection) else { return };
        // A ping on TCP waits behind all that is under way; on QUIC it does not.
        let (least, most) = SUSPECT_DOUBT;
        let fast = found.quic || found.route == crate::types::Route::Relayed;
        let doubt = if fast { entry.rtt.map_or(least, |rtt| rtt * ROUND_TRIPS).clamp(least, most) } else { most };
        let doubt = doubt.saturating_mul(1 << entry.false_alarms);
        if entry.steer.is_doubted(connection) {
            return self.rescue(peer, now);
        }
        self.probe(peer, connection, doubt, now);
    }

    fn probe(&mut self, peer: PeerId, connection: ConnectionId, doubt: Duration, now: Instant) {
        if self.probes.get(&(peer, connection)).is_some() {
            return;
        }
        self.probes.set((peer, connection), now + doubt);
        let purpose = Purpose::Ping(Job::Probe(peer, connection));
        let token = self.pending.opening(Opening { peer, connection, purpose });
        self.swarm.behaviour_mut().link.open(peer, connection, ping::PROTOCOL, token);
    }

    /// Something came back: a refusal is a sign of life too.
    pub(super) fn probe_answered(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        self.probes.clear(&(peer, connection));
        if let Some(entry) = self.peers.get_mut(&peer) {
            if entry.steer.doubt(connection, false) {
                entry.false_alarms = (entry.false_alarms + 1).min(MAX_FALSE_ALARMS);
            }
            self.attend(peer, now);
        }
    }

    /// Turns away from connections on which nothing came back, until something
    /// does.
    pub(super) fn on_silence(&mut self, now: Instant) {
        while let Some(at) = self.probes.next().filter(|at| *at <= now)
            && let Some((peer, connection)) = self.probes.pop_due(now)
        {
            if now.saturating_duration_since(at) > LATE {
                self.probes.set((peer, connection), now + DOUBT);
            } else if let Some(entry) = self.peers.get_mut(&peer)
                && entry.steer.doubt(connection, true)
            {
                debug!(%peer, "a connection is silent");
                self.attend(peer, now);
                self.rescue(peer, now);
            }
        }
    }

    /// Dials a peer anew whose connections are all silent.
    fn rescue(&mut self, peer: PeerId, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let recently = entry.rescued.is_some_and(|at| now.saturating_duration_since(at) < RESCUE_INTERVAL);
        if recently || !entry.steer.all_doubted() || !entry.steer.is_allowed() || self.draining {
            return;
        }
        entry.rescued = Some(now);
        if self.pending.has_room_for_dial() {
            debug!(%peer, "dialling a silent peer anew");
            let addresses = entry.addresses();
            // Without a caller; a failure is logged where it is noticed.
            let _ = self.dial(peer, addresses, None, true, now);
        }
    }
}
