//! Older connections of a peer that connects again.
//!
//! A peer that was restarted or moved to another network does not close what it
//! had. A system that was restarted says on the first packet that it knows no
//! such TCP connection; otherwise only silence tells.

use std::time::Duration;

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::debug;

use super::{
    pending::{Opening, Purpose},
    ping::{self, Job},
    task::Task,
};

/// After this without an answer the link moves to another connection: much
/// longer than a round trip, and an error is harmless.
const DOUBT: Duration = Duration::from_secs(1);
/// A deadline noticed so late was missed by this process (it was stopped, say),
/// and the answer may be here unread.
const LATE: Duration = Duration::from_secs(1);

impl Task {
    /// Pings the connections of a trusted peer that are older than this one.
    pub(super) fn probe_older(&mut self, peer: PeerId, newest: ConnectionId, now: Instant) {
        let Some(entry) = self.peers.get(&peer).filter(|entry| self.trust_open || entry.is_trusted()) else { return };
        let older: Vec<_> =
            entry.connections.iter().map(|connection| connection.id).filter(|id| *id != newest).collect();
        for connection in older {
            if self.probes.get(&(peer, connection)).is_none() {
                self.probes.set((peer, connection), now + DOUBT);
                let purpose = Purpose::Ping(Job::Probe(peer, connection));
                let token = self.pending.opening(Opening { peer, connection, purpose });
                self.swarm.behaviour_mut().link.open(peer, connection, ping::PROTOCOL, token);
            }
        }
    }

    /// Something came back: a refusal is a sign of life too.
    pub(super) fn probe_answered(&mut self, peer: PeerId, connection: ConnectionId, now: Instant) {
        self.probes.clear(&(peer, connection));
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.steer.doubt(connection, false);
            self.attend(peer, now);
        }
    }

    /// Turns away from connections on which nothing came back, until something
    /// does. Closing those that are dead is left to the transports: an answer
    /// may only wait behind megabytes on a slow line.
    pub(super) fn on_silence(&mut self, now: Instant) {
        while let Some(at) = self.probes.next().filter(|at| *at <= now)
            && let Some((peer, connection)) = self.probes.pop_due(now)
        {
            if now.saturating_duration_since(at) > LATE {
                self.probes.set((peer, connection), now + DOUBT);
            } else if let Some(entry) = self.peers.get_mut(&peer)
                && entry.steer.doubt(connection, true)
            {
                debug!(%peer, "a connection is silent since there is a younger one");
                self.attend(peer, now);
            }
        }
    }
}
