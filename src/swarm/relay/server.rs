//! This node as a relay of others.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::{
    PeerId,
    relay::{self, Config, Status, StatusCode},
};
use tokio::time::Instant;

use super::{RelayLimits, hop::Hop};
use crate::node::{Serve, ServingView};

/// Reservations that one peer may ask for at once: a program in trouble asks
/// again and again, one in order asks twice an hour.
const RESERVATIONS_PER_PEER: Rate = Rate { burst: 60, interval: Duration::from_secs(10) };
/// Reservations from one IP address at once: 60 nodes of one household, twice
/// on two transports, after a power cut.
const RESERVATIONS_PER_IP: Rate = Rate { burst: 256, interval: Duration::from_secs(1) };
/// Circuits that one peer may ask for at once: a node with a long address book
/// that starts.
const CIRCUITS_PER_PEER: Rate = Rate { burst: 256, interval: Duration::from_secs(1) };
/// Circuits from one IP address at once: 60 nodes of one household, each to
/// each other.
const CIRCUITS_PER_IP: Rate = Rate { burst: 4096, interval: Duration::from_millis(125) };
/// The relay protocol has one reservation per connection. A peer whose
/// connection died unnoticed makes the next one elsewhere.
const RESERVATIONS_OF_A_PEER: usize = 4;

/// So many at once, and one more after each interval.
struct Rate {
    burst: u32,
    interval: Duration,
}

/// Whether this node relays, for whom, and how much of that it does.
#[derive(Debug)]
pub(in crate::swarm) struct Server {
    mode: Serve,
    limits: RelayLimits,
    /// Others can connect to this node.
    public: bool,
    door: Arc<Door>,
    /// Who holds a reservation, and until when at most. libp2p does not tell
    /// which of a peer's connections a reservation was on, so that one may
    /// stay here until its time has passed.
    guests: HashMap<PeerId, Instant>,
    circuits: u32,
    refused: u64,
}

/// Whom the relay lets in; asked by libp2p.
#[derive(Debug)]
struct Door {
    everyone: bool,
    trusted: Mutex<HashSet<PeerId>>,
}

impl Server {
    /// With the behaviour that it controls, which does nothing yet.
    pub(in crate::swarm) fn new(local: PeerId, mode: Serve, limits: RelayLimits) -> (Self, Hop) {
        let door = Arc::new(Door { everyone: mode == Serve::On, trusted: Mutex::default() });
        let mut behaviour = Hop::new(relay::Behaviour::new(local, config(limits, door.clone())));
        // By itself it would serve on any external address, also one at
        // another relay.
        behaviour.set_status(Status::Disable);
        let server = Self { mode, limits, public: false, door, guests: HashMap::new(), circuits: 0, refused: 0 };
        (server, behaviour)
    }

    /// Whether others can connect to this node, as far as is known.
    pub(in crate::swarm) fn set_public(&mut self, public: bool) {
        self.public = public;
    }

    /// What the behaviour is to do now.
    pub(in crate::swarm) fn status(&self) -> Status {
        if self.is_active() { Status::Enable } else { Status::Disable }
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
        let mut all = self.door.trusted();
        if trusted {
            all.insert(peer);
        } else {
            all.remove(&peer);
        }
    }

    /// Whether a peer holds a reservation here.
    pub(in crate::swarm) fn is_guest(&self, peer: &PeerId) -> bool {
        self.guests.contains_key(peer)
    }

    /// Takes note of an event; tells whose reservation began or ended.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are failures that libp2p tells twice")]
    pub(in crate::swarm) fn on_event(&mut self, event: &relay::Event, now: Instant) -> Option<PeerId> {
        use relay::Event;
        match event {
            Event::ReservationReqAccepted { src_peer_id, .. } => {
                let new = self.guests.insert(*src_peer_id, now + self.limits.reservation_duration).is_none();
                new.then_some(*src_peer_id)
            }
            Event::ReservationTimedOut { src_peer_id } => self.guests.remove(src_peer_id).map(|_| *src_peer_id),
            Event::ReservationReqDenied { .. } => self.refuse(),
            Event::CircuitReqDenied { status: StatusCode::NoReservation, .. } => None,
            Event::CircuitReqDenied { .. } => self.refuse(),
            Event::CircuitReqAccepted { .. } => {
                self.circuits += 1;
                None
            }
            Event::CircuitClosed { .. } => {
                self.circuits = self.circuits.saturating_sub(1);
                None
            }
            _ => None,
        }
    }

    /// The last connection with a peer is gone.
    pub(in crate::swarm) fn disconnected(&mut self, peer: &PeerId) {
        self.guests.remove(peer);
    }

    /// When [`Self::expire`] has something next.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        self.guests.values().min().copied()
    }

    /// Reservations whose time has passed; their holders.
    pub(in crate::swarm) fn expire(&mut self, now: Instant) -> Vec<PeerId> {
        self.guests.extract_if(|_, until| *until <= now).map(|(peer, _)| peer).collect()
    }

    /// For a caller.
    pub(in crate::swarm) fn view(&self) -> ServingView {
        let limits = &self.limits;
        ServingView {
            mode: self.mode,
            active: self.is_active(),
            reservations: self.guests.len() as u32,
            max_reservations: limits.max_reservations,
            circuits: self.circuits,
            max_circuits: limits.max_circuits,
            max_circuits_per_peer: limits.max_circuits_per_peer,
            max_circuit_bytes: limits.max_circuit_bytes,
            max_circuit_duration: limits.max_circuit_duration,
            refused: self.refused,
        }
    }

    fn refuse(&mut self) -> Option<PeerId> {
        self.refused += 1;
        None
    }
}

impl Door {
    fn admits(&self, peer: &PeerId) -> bool {
        self.everyone || self.trusted().contains(peer)
    }

    fn trusted(&self) -> MutexGuard<'_, HashSet<PeerId>> {
        // Nothing panics while it is locked, and a set is whole at any time.
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn config(limits: RelayLimits, door: Arc<Door>) -> Config {
    let mut config = Config {
        max_reservations: limits.max_reservations as usize,
        max_reservations_per_peer: RESERVATIONS_OF_A_PEER,
        reservation_duration: limits.reservation_duration,
        // First, so that those who are not let in use up nothing.
        reservation_rate_limiters: vec![Box::new(move |peer: PeerId, _: &_, _| door.admits(&peer))],
        max_circuits: limits.max_circuits as usize,
        max_circuits_per_peer: limits.max_circuits_per_peer as usize,
        max_circuit_duration: limits.max_circuit_duration,
        max_circuit_bytes: limits.max_circuit_bytes,
        circuit_src_rate_limiters: Vec::new(),
    };
    let rate = |rate: Rate| (NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN), rate.interval);
    let (burst, interval) = rate(RESERVATIONS_PER_PEER);
    config = config.reservation_rate_per_peer(burst, interval);
    let (burst, interval) = rate(RESERVATIONS_PER_IP);
    config = config.reservation_rate_per_ip(burst, interval);
    let (burst, interval) = rate(CIRCUITS_PER_PEER);
    config = config.circuit_src_per_peer(burst, interval);
    let (burst, interval) = rate(CIRCUITS_PER_IP);
    config.circuit_src_per_ip(burst, interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(peer: PeerId) -> relay::Event {
        relay::Event::ReservationReqAccepted { src_peer_id: peer, renewed: false }
    }

    #[test]
    fn the_mode_decides_whom_it_serves() {
        let (friend, stranger) = (PeerId::random(), PeerId::random());
        for (mode, public, active, serves_stranger) in [
            (Serve::On, false, true, true),
            (Serve::Auto, false, false, false),
            (Serve::Auto, true, true, false),
            (Serve::Off, true, false, false),
        ] {
            let (mut server, _) = Server::new(PeerId::random(), mode, RelayLimits::default());
            server.set_public(public);
            server.set_trusted(friend, true);
            assert_eq!(server.is_active(), active, "{mode:?} {public}");
            assert!(server.door.admits(&friend));
            assert_eq!(server.door.admits(&stranger), serves_stranger, "{mode:?}");
            server.set_trusted(friend, false);
            assert_eq!(server.door.admits(&friend), serves_stranger, "{mode:?}");
        }
    }

    #[test]
    fn guests_leave_when_they_are_gone_or_their_time_is_over() {
        let now = Instant::now();
        let limits = RelayLimits::default();
        let (mut server, _) = Server::new(PeerId::random(), Serve::On, limits);
        let (one, two) = (PeerId::random(), PeerId::random());
        assert_eq!(server.on_event(&accepted(one), now), Some(one));
        assert_eq!(server.on_event(&accepted(one), now + Duration::from_secs(9)), None);
        assert_eq!(server.on_event(&accepted(two), now), Some(two));
        assert_eq!(server.view().reservations, 2);
        assert_eq!(server.expire(now + limits.reservation_duration), [two]);
        server.disconnected(&one);
        assert!(!server.is_guest(&one) && !server.is_guest(&two));
    }

    #[test]
    fn what_is_refused_is_counted() {
        let now = Instant::now();
        let (mut server, _) = Server::new(PeerId::random(), Serve::On, RelayLimits::default());
        let (src_peer_id, dst_peer_id) = (PeerId::random(), PeerId::random());
        let status = StatusCode::ResourceLimitExceeded;
        server.on_event(&relay::Event::ReservationReqDenied { src_peer_id, status }, now);
        let status = StatusCode::NoReservation;
        server.on_event(&relay::Event::CircuitReqDenied { src_peer_id, dst_peer_id, status }, now);
        server.on_event(&relay::Event::CircuitReqAccepted { src_peer_id, dst_peer_id }, now);
        assert_eq!((server.view().refused, server.view().circuits), (1, 1));
        server.on_event(&relay::Event::CircuitClosed { src_peer_id, dst_peer_id, error: None }, now);
        assert_eq!(server.view().circuits, 0);
    }
}
