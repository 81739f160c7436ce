//! Relays: this node as one, and those through which it is reached.
//!
//! ```text
//! server.rs    whom this node relays for, and how much
//! rates.rs     how often others may ask
//! hop.rs       what they ask, and the answers
//! carry.rs     one circuit of theirs
//! client.rs    keeps reservations at two relays, over two transports each
//! candidate.rs one relay as that sees it
//! patience.rs  how long to wait after a failure
//! meter.rs     what circuits carry, against what they may
//! errands.rs   circuits to be dialled once their relay is connected
//! ```

pub(super) mod candidate;
mod carry;
pub(super) mod client;
pub(super) mod errands;
pub(super) mod hop;
pub(super) mod meter;
mod patience;
mod rates;
pub(super) mod server;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::{sync::oneshot, time::Instant};

use self::{
    client::Client,
    errands::Errands,
    meter::{Meter, Meters},
    server::Server,
};
use crate::{
    node::{PeerAddresses, Reachable},
    wire::circuit::CircuitLimit,
};

/// Callers that wait for a reservation.
pub(super) const MAX_WAITING: usize = 64;
/// Relays whose limits are remembered; circuits through others end without
/// another one being there.
const MAX_LIMITS: usize = 256;
/// How long they wait.
pub(super) const RESERVATION_WAIT: Duration = Duration::from_secs(10);

/// All that the task knows of relays.
#[derive(Debug)]
pub(super) struct Relays {
    pub(super) server: Server,
    pub(super) client: Client,
    pub(super) errands: Errands,
    /// Who wants to know where this node is reached, once it is reserved or
    /// this time is there.
    pub(super) waiting: Vec<(Instant, oneshot::Sender<Vec<Reachable>>)>,
    pub(super) meters: Meters,
    /// What relays let circuits carry, as each told last.
    pub(super) limits: HashMap<PeerId, CircuitLimit>,
    /// Connections that are circuits.
    pub(super) circuits: HashMap<ConnectionId, LiveCircuit>,
}

/// A connection that is a circuit.
#[derive(Debug)]
pub(super) struct LiveCircuit {
    pub(super) peer: PeerId,
    pub(super) meter: Arc<Meter>,
    /// When another one is opened at the latest.
    pub(super) until: Option<Instant>,
    /// This side opened it, and opens the next one.
    pub(super) dialled: bool,
    /// It is nearly used up, as was noticed.
    pub(super) worn: bool,
}

impl Relays {
    pub(super) fn new(local: PeerId, server: Server, meters: Meters, configured: &[PeerAddresses]) -> Self {
        let client = Client::new(local, configured);
        Self {
            server,
            client,
            errands: Errands::default(),
            waiting: Vec::new(),
            meters,
            limits: HashMap::new(),
            circuits: HashMap::new(),
        }
    }

    /// Whether the connections with a peer stay although nothing runs on them.
    pub(super) fn keep(&self, peer: &PeerId) -> bool {
        self.client.keeps(peer) || self.server.is_guest(peer)
    }

    /// A relay told what it lets circuits carry.
    pub(super) fn set_limit(&mut self, relay: PeerId, limit: CircuitLimit) {
        if self.limits.len() < MAX_LIMITS || self.limits.contains_key(&relay) {
            self.limits.insert(relay, limit);
        }
    }

    /// When something is due, if nothing happens before.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|(until, _)| *until).min();
        let circuits = self.circuits.values().filter_map(|circuit| circuit.until).min();
        [self.client.next(now), self.server.next(), waiting, circuits].into_iter().flatten().min()
    }
}

/// Limits of this node as a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Reservations at once.
    pub max_reservations: u32,
    /// How long a reservation is good; it is renewed before.
    pub reservation_duration: Duration,
    /// Circuits at once.
    pub max_circuits: u32,
    /// Circuits at once that one peer opened.
    pub max_circuits_per_peer: u32,
    /// Bytes that a circuit may carry, both ways together; 0: no limit.
    pub max_circuit_bytes: u64,
    /// Longest that a circuit may live.
    pub max_circuit_duration: Duration,
}

impl Default for RelayLimits {
    /// Room for a fleet. A circuit ends some time, so that one that is
    /// forgotten costs nothing for ever; until then it carries what a fleet
    /// sends while no direct way is found.
    fn default() -> Self {
        Self {
            max_reservations: 1024,
            reservation_duration: Duration::from_secs(60 * 60),
            max_circuits: 2048,
            max_circuits_per_peer: 128,
            max_circuit_bytes: 1024 * 1024 * 1024,
            max_circuit_duration: Duration::from_secs(6 * 60 * 60),
        }
    }
}
