//! This node as a relay: whom it serves, and how much.
//!
//! Decides only; [`super::hop`] asks, and [`super::carry`] moves the bytes. Time
//! is passed in.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{RelayLimits, rates::Rates};
use crate::{
    node::{Serve, ServingView},
    swarm::reach::server::origin,
    wire::circuit::{CircuitLimit, serve::Refusal},
};

/// Reservations that one peer may ask for at once, and then one in the
/// interval: a program in trouble asks again and again, one in order asks twice
/// an hour.
const RESERVATIONS_PER_PEER: (u32, Duration) = (60, Duration::from_secs(10));
/// Reservations from one IP address at once: 60 nodes of one household, twice
/// on two transports, after a power cut.
const RESERVATIONS_PER_IP: (u32, Duration) = (256, Duration::from_secs(1));
/// Circuits that one peer may ask for at once: a node with a long address book
/// that starts.
const CIRCUITS_PER_PEER: (u32, Duration) = (256, Duration::from_secs(1));
/// Circuits from one IP address at once: 60 nodes of one household, each to
/// each other.
const CIRCUITS_PER_IP: (u32, Duration) = (4096, Duration::from_millis(125));
/// The relay protocol has one reservation per connection. A peer whose
/// connection died unnoticed makes the next one elsewhere; past this the oldest
/// makes room.
const RESERVATIONS_OF_A_PEER: usize = 4;
/// The part of a limit, at most, that is kept for trusted peers, so that many
/// who are not cannot use it up together: one in this many.
const KEPT: usize = 4;

/// Which circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::swarm) struct CircuitId(u64);

/// Whoever asks.
#[derive(Debug, Clone, Copy)]
pub(in crate::swarm) struct Asker {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) connection: ConnectionId,
    /// Where it was seen.
    pub(in crate::swarm) ip: Option<IpAddr>,
    /// It is itself reached through a relay.
    pub(in crate::swarm) relayed: bool,
}

/// Whether this node relays, for whom, and how much of that it does.
#[derive(Debug)]
pub(in crate::swarm) struct Server {
    mode: Serve,
    limits: RelayLimits,
    /// Others can connect to this node.
    public: bool,
    trusted: HashSet<PeerId>,
    /// Who holds reservations, the youngest last.
    guests: HashMap<PeerId, Vec<Reservation>>,
    circuits: HashMap<CircuitId, Circuit>,
    last: u64,
    rates: AllRates,
    refused: u64,
}

/// Ends with its connection, or when its time has passed.
#[derive(Debug)]
struct Reservation {
    connection: ConnectionId,
    until: Instant,
}

/// Counts from when it was asked for.
#[derive(Debug)]
struct Circuit {
    from: (PeerId, ConnectionId),
    to: (PeerId, ConnectionId),
    /// The other end has accepted.
    up: bool,
    /// What moves its bytes ends with it.
    _carried: DropGuard,
}

#[derive(Debug)]
struct AllRates {
    reservations_of_peer: Rates<PeerId>,
    reservations_of_ip: Rates<IpAddr>,
    circuits_of_peer: Rates<PeerId>,
    circuits_of_ip: Rates<IpAddr>,
}

impl Server {
    pub(in crate::swarm) fn new(mode: Serve, limits: RelayLimits) -> Self {
        Self {
            mode,
            limits,
            public: false,
            trusted: HashSet::new(),
            guests: HashMap::new(),
            circuits: HashMap::new(),
            last: 0,
            rates: AllRates::new(),
            refused: 0,
        }
    }

    /// Whether others can connect to this node, as far as is known.
    pub(in crate::swarm) fn set_public(&mut self, public: bool) {
        self.public = public;
    }

    /// Whether this node relays now.
    pub(in crate::swarm) fn is_active(&self) -> bool {
        match self.mode {
            Serve::On => true,
            Serve::Auto => self.public,
            Serve::Off => false,
        }
    }

    /// Whether a peer is trusted. What it holds already it keeps until it has
    /// to renew it.
    pub(in crate::swarm) fn set_trusted(&mut self, peer: PeerId, trusted: bool) {
        if trusted {
            self.trusted.insert(peer);
        } else {
            self.trusted.remove(&peer);
        }
    }

    /// As told last.
    pub(in crate::swarm) fn is_trusted(&self, peer: &PeerId) -> bool {
        self.trusted.contains(peer)
    }

    /// Whether a peer holds a reservation here.
    pub(in crate::swarm) fn is_guest(&self, peer: &PeerId) -> bool {
        self.guests.contains_key(peer)
    }

    /// What circuits may carry.
    pub(in crate::swarm) fn circuit_limit(&self) -> CircuitLimit {
        let RelayLimits { max_circuit_bytes: bytes, max_circuit_duration, .. } = self.limits;
        CircuitLimit { duration: Some(max_circuit_duration), bytes: (bytes > 0).then_some(bytes) }
    }

    /// Makes or renews a reservation, and tells how long it is good.
    pub(in crate::swarm) fn reserve(&mut self, asker: &Asker, now: Instant) -> Result<Duration, Refusal> {
        let granted = self.grant(asker, now);
        self.refused += u64::from(granted.is_err());
        granted?;
        let until = now + self.limits.reservation_duration;
        let full = self.has_no_room(asker);
        let held = self.guests.entry(asker.peer).or_default();
        let before = held.len();
        held.retain(|other| other.connection != asker.connection);
        let is_new = held.len() == before;
        if is_new && !held.is_empty() && (full || held.len() >= RESERVATIONS_OF_A_PEER) {
            held.remove(0);
        }
        held.push(Reservation { connection: asker.connection, until });
        Ok(self.limits.reservation_duration)
    }

    /// Those who are not let in use up nothing. Whoever holds a reservation is
    /// not turned away by a limit: the connection it is on may be dead, which
    /// shows later, and then it makes room for the new one.
    fn grant(&mut self, asker: &Asker, now: Instant) -> Result<(), Refusal> {
        self.check(asker)?;
        if self.mode != Serve::On && !self.trusted.contains(&asker.peer) {
            return Err(Refusal::ReservationRefused);
        }
        let turned_away = self.has_no_room(asker) && !self.is_guest(&asker.peer);
        if turned_away || !self.rates.may_reserve(asker, now) {
            return Err(Refusal::LimitExceeded);
        }
        Ok(())
    }

    /// Counts a circuit to a peer, of which the caller tells where it leads and
    /// what becomes of it. Until then it is one to no connection.
    pub(in crate::swarm) fn connect(
        &mut self,
        asker: &Asker,
        to: PeerId,
        now: Instant,
    ) -> Result<(CircuitId, CancellationToken), Refusal> {
        let allowed = self.allow(asker, now);
        self.refused += u64::from(allowed.is_err());
        allowed?;
        let to = match self.guests.get(&to).and_then(|held| held.last()) {
            Some(youngest) => (to, youngest.connection),
            // Nothing that a limit of this node is to blame for.
            None => return Err(Refusal::NoReservation),
        };
        self.last += 1;
        let (id, token) = (CircuitId(self.last), CancellationToken::new());
        let from = (asker.peer, asker.connection);
        self.circuits.insert(id, Circuit { from, to, up: false, _carried: token.clone().drop_guard() });
        Ok((id, token))
    }

    /// Anyone may call those who are let in.
    fn allow(&mut self, asker: &Asker, now: Instant) -> Result<(), Refusal> {
        self.check(asker)?;
        let count = |fits: &dyn Fn(&PeerId) -> bool| self.circuits.values().filter(|one| fits(&one.from.0)).count();
        let opened = count(&|peer| *peer == asker.peer);
        let of_strangers = count(&|peer| !self.trusted.contains(peer));
        let (max, each) = (self.limits.max_circuits as usize, self.limits.max_circuits_per_peer as usize);
        if opened >= each
            || self.is_full(asker, max, each, self.circuits.len(), of_strangers)
            || !self.rates.may_connect(asker, now)
        {
            return Err(Refusal::LimitExceeded);
        }
        Ok(())
    }

    /// Whether there is no room for one more of what there may be `max` of in
    /// all and `each` of one peer.
    fn is_full(&self, asker: &Asker, max: usize, each: usize, all: usize, of_strangers: usize) -> bool {
        let kept = self.trusted.len().saturating_mul(each).min(max / KEPT);
        all >= max || !self.trusted.contains(&asker.peer) && of_strangers >= max - kept
    }

    /// A client may have asked a moment before this node ceased to serve.
    fn check(&self, asker: &Asker) -> Result<(), Refusal> {
        if asker.relayed || !self.is_active() { Err(Refusal::PermissionDenied) } else { Ok(()) }
    }

    /// Connections on which a peer can be asked to accept a circuit, the
    /// youngest first.
    pub(in crate::swarm) fn ways_to(&self, peer: &PeerId) -> Vec<ConnectionId> {
        self.guests.get(peer).into_iter().flatten().rev().map(|held| held.connection).collect()
    }

    /// Over which connection a circuit leads; `false` if there is no such
    /// circuit any more.
    pub(in crate::swarm) fn lead(&mut self, id: CircuitId, connection: ConnectionId) -> bool {
        let circuit = self.circuits.get_mut(&id);
        circuit.map(|circuit| circuit.to.1 = connection).is_some()
    }

    /// A circuit was accepted at its other end.
    pub(in crate::swarm) fn up(&mut self, id: CircuitId) {
        if let Some(circuit) = self.circuits.get_mut(&id) {
            circuit.up = true;
        }
    }

    /// A circuit has ended, or did not come about.
    pub(in crate::swarm) fn ended(&mut self, id: CircuitId) {
        self.circuits.remove(&id);
    }

    /// A connection is gone, and with it what was on it. Tells whether the peer
    /// is no guest any more.
    pub(in crate::swarm) fn closed(&mut self, peer: PeerId, connection: ConnectionId) -> bool {
        let gone = (peer, connection);
        self.circuits.retain(|_, circuit| circuit.from != gone && circuit.to != gone);
        let Some(held) = self.guests.get_mut(&peer) else { return false };
        held.retain(|other| other.connection != connection);
        let left = held.is_empty();
        if left {
            self.guests.remove(&peer);
        }
        left
    }

    /// When [`Self::expire`] has something next.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        self.guests.values().flatten().map(|held| held.until).min()
    }

    /// Ends reservations whose time has passed; tells who is no guest any more.
    pub(in crate::swarm) fn expire(&mut self, now: Instant) -> Vec<PeerId> {
        let over = |held: &mut Vec<Reservation>| {
            held.retain(|held| held.until > now);
            held.is_empty()
        };
        self.guests.extract_if(|_, held| over(held)).map(|(peer, _)| peer).collect()
    }

    /// For a caller.
    pub(in crate::swarm) fn view(&self) -> ServingView {
        let limits = &self.limits;
        ServingView {
            mode: self.mode,
            active: self.is_active(),
            reservations: self.reservations() as u32,
            max_reservations: limits.max_reservations,
            circuits: self.circuits.values().filter(|circuit| circuit.up).count() as u32,
            max_circuits: limits.max_circuits,
            max_circuits_per_peer: limits.max_circuits_per_peer,
            max_circuit_bytes: limits.max_circuit_bytes,
            max_circuit_duration: limits.max_circuit_duration,
            refused: self.refused,
        }
    }

    /// Whether there is no room for another reservation of this peer.
    fn has_no_room(&self, asker: &Asker) -> bool {
        let strangers = self.guests.iter().filter(|(peer, _)| !self.trusted.contains(peer));
        let of_strangers = strangers.map(|(_, held)| held.len()).sum();
        let max = self.limits.max_reservations as usize;
        self.is_full(asker, max, RESERVATIONS_OF_A_PEER, self.reservations(), of_strangers)
    }

    fn reservations(&self) -> usize {
        self.guests.values().map(Vec::len).sum()
    }
}

impl AllRates {
    fn new() -> Self {
        Self {
            reservations_of_peer: Rates::new(RESERVATIONS_PER_PEER.0, RESERVATIONS_PER_PEER.1),
            reservations_of_ip: Rates::new(RESERVATIONS_PER_IP.0, RESERVATIONS_PER_IP.1),
            circuits_of_peer: Rates::new(CIRCUITS_PER_PEER.0, CIRCUITS_PER_PEER.1),
            circuits_of_ip: Rates::new(CIRCUITS_PER_IP.0, CIRCUITS_PER_IP.1),
        }
    }

    fn may_reserve(&mut self, asker: &Asker, now: Instant) -> bool {
        self.reservations_of_peer.take(asker.peer, now)
            && asker.ip.is_none_or(|ip| self.reservations_of_ip.take(origin(ip), now))
    }

    fn may_connect(&mut self, asker: &Asker, now: Instant) -> bool {
        self.circuits_of_peer.take(asker.peer, now)
            && asker.ip.is_none_or(|ip| self.circuits_of_ip.take(origin(ip), now))
    }
}

#[cfg(test)]
mod tests;
