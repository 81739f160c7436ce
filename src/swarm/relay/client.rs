//! Keeps this node reachable through relays.
//!
//! Two different relays are wanted, those of the settings before those found.
//! With each there are two connections, QUIC and TCP: whoever is asked to punch
//! needs to know what a NAT makes of both. The reservation is made on whichever
//! is up first; libp2p takes one per relay only, and always on the oldest
//! connection.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::candidate::{
    Contact, GAP, Health, Held, Kind, Leg, MAX_TOLD, Relay, Reservation, SHORT_LIFE, SLOW, Step, is_usable,
};
use crate::{
    node::{PeerAddresses, RelayTrouble, RelayView},
    swarm::route::{circuit, relay_of, without_peer},
    wire::circuit::CircuitLimit,
};

/// Relays at which this node has a reservation.
const WANTED: usize = 2;
/// Relays known that the settings do not name.
const MAX_FOUND: usize = 16;

/// What others should know.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Change {
    /// Others reach this node there now.
    Reserved,
    /// Not any more.
    Lost,
}

/// See the module. Time and chance are passed in: `jitter` is between 0 and 1.
#[derive(Debug)]
pub(in crate::swarm) struct Client {
    local: PeerId,
    /// Those of the settings first.
    relays: Vec<Relay>,
    stopped: bool,
}

impl Client {
    pub(in crate::swarm) fn new(local: PeerId, configured: &[PeerAddresses]) -> Self {
        let others = configured.iter().filter(|relay| relay.peer != local);
        let relays = others.map(|relay| Relay::new(relay.peer, true, relay.addresses.clone())).collect();
        Self { local, relays, stopped: false }
    }

    /// A relay was found that may be used where those of the settings do not
    /// suffice. Its addresses replace those it was offered with before.
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever finds relays"))]
    pub(in crate::swarm) fn offer(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let mut addresses: Vec<_> = addresses.iter().map(without_peer).filter(is_usable).collect();
        addresses.truncate(MAX_TOLD);
        if peer == self.local || addresses.is_empty() {
            return;
        }
        match self.relays.iter_mut().find(|relay| relay.peer == peer) {
            Some(relay) if relay.configured => {}
            Some(relay) => relay.addresses = addresses,
            None => {
                self.forget_one();
                self.relays.push(Relay::new(peer, false, addresses));
            }
        }
    }

    /// Makes room among those found: an idle one that was found first goes.
    fn forget_one(&mut self) {
        let found = self.relays.iter().filter(|relay| !relay.configured).count();
        let idle = |relay: &Relay| !relay.configured && relay.connections.is_empty() && !relay.is_dialling();
        if found >= MAX_FOUND
            && let Some(at) = self.relays.iter().position(idle)
        {
            self.relays.remove(at);
        }
    }

    /// Nothing more is to be begun.
    pub(in crate::swarm) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether the settings name any relay.
    pub(in crate::swarm) fn has_configured(&self) -> bool {
        self.relays.iter().any(|relay| relay.configured)
    }

    /// Whether the connections with a peer are to be kept.
    pub(in crate::swarm) fn keeps(&self, peer: &PeerId) -> bool {
        self.get(peer).is_some_and(|relay| relay.engaged)
    }

    /// Addresses of a relay.
    pub(in crate::swarm) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.get(peer).map(Relay::all_addresses).unwrap_or_default()
    }

    /// Circuits by which others reach this node, without /p2p part at their
    /// end; of each relay the address in use first, then such of the other
    /// transport.
    pub(in crate::swarm) fn circuits(&self) -> Vec<Multiaddr> {
        self.relays.iter().flat_map(Relay::circuits).collect()
    }

    /// Whether there is a reservation.
    pub(in crate::swarm) fn is_reserved(&self) -> bool {
        self.relays.iter().any(Relay::is_held)
    }

    /// One circuit for each relay in use, by which this node may reach others
    /// that use the same.
    pub(in crate::swarm) fn meeting_points(&self) -> Vec<Multiaddr> {
        let used = self.relays.iter().filter(|relay| relay.engaged);
        let point = |relay: &Relay| {
            let connected = relay.connections.first().map(|contact| relay.address_of(contact));
            Some(circuit(relay.peer, &connected.or_else(|| relay.addresses.first().cloned())?))
        };
        used.filter_map(point).take(2 * WANTED).collect()
    }

    /// A connection is up. Not to be told of those through relays.
    pub(in crate::swarm) fn connected(&mut self, peer: PeerId, id: ConnectionId, address: &Multiaddr, now: Instant) {
        let Some(relay) = self.get_mut(&peer) else { return };
        let useful = relay.is_held();
        relay.connections.push(Contact { id, address: address.clone(), since: now, health: Health::Fine, useful });
        relay.waiting_since = None;
        relay.known = true;
        for leg in &mut relay.legs {
            leg.dialling.take_if(|dialling| *dialling == id);
            // What answers on one transport is likely there on the other.
            leg.patience.hint();
        }
    }

    /// Relays in use.
    pub(in crate::swarm) fn engaged_relays(&self) -> Vec<PeerId> {
        self.relays.iter().filter(|relay| relay.engaged).map(|relay| relay.peer).collect()
    }

    /// Whether a connection answers became different.
    pub(in crate::swarm) fn health(&mut self, peer: &PeerId, id: ConnectionId, health: Health) {
        let Some(relay) = self.get_mut(peer) else { return };
        let mut contacts = relay.connections.iter_mut();
        if let Some(contact) = contacts.find(|contact| contact.id == id && contact.health != Health::Given) {
            contact.health = health;
        }
    }

    /// A connection is gone.
    pub(in crate::swarm) fn closed(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        let relay = self.get_mut(&peer)?;
        let at = relay.connections.iter().position(|contact| contact.id == id)?;
        let contact = relay.connections.remove(at);
        let kind = Kind::of(&contact.address);
        let replaced = relay.connections.iter().any(|other| Kind::of(&other.address) == kind && other.is_usable());
        let surplus = relay.foreign && contact.health == Health::Given;
        let leg = &mut relay.legs[kind as usize];
        if contact.was_good(now) || surplus || !relay.engaged {
            leg.conduct.worked();
        } else {
            leg.conduct.failed(now, jitter);
        }
        if replaced || surplus {
            // Nothing to be patient about.
        } else if now.saturating_duration_since(contact.since) < SHORT_LIFE {
            leg.patience.failed(now, jitter);
        } else {
            leg.patience.ended(now, Duration::ZERO);
        }
        relay.doubtful |= relay.connections.is_empty();
        if relay.reservation.on() != Some(id) {
            return None;
        }
        let held = relay.is_held();
        relay.reservation = Reservation::None;
        relay.patience.hint();
        relay.trouble = Some(RelayTrouble::Broke);
        held.then_some(Change::Lost)
    }

    /// A dial that was asked for began.
    pub(in crate::swarm) fn dialling(&mut self, relay: PeerId, kind: Kind, id: ConnectionId) {
        if let Some(relay) = self.get_mut(&relay) {
            relay.legs[kind as usize].dialling = Some(id);
        }
    }

    /// A dial could not begin.
    pub(in crate::swarm) fn not_dialled(
        &mut self,
        relay: PeerId,
        kind: Kind,
        trouble: &RelayTrouble,
        now: Instant,
        jitter: f64,
    ) {
        if let Some(relay) = self.get_mut(&relay) {
            relay.failed(kind, trouble, now, jitter);
        }
    }

    /// A dial failed; one of these or another.
    pub(in crate::swarm) fn dial_failed(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        trouble: &RelayTrouble,
        now: Instant,
        jitter: f64,
    ) {
        let Some(relay) = self.get_mut(&peer) else { return };
        for kind in [Kind::Quic, Kind::Tcp] {
            if relay.legs[kind as usize].dialling == Some(id) {
                relay.failed(kind, trouble, now, jitter);
            }
        }
    }

    /// A reservation was asked for.
    pub(in crate::swarm) fn asked(&mut self, peer: PeerId, id: Option<ListenerId>, now: Instant, jitter: f64) {
        let Some(relay) = self.get_mut(&peer) else { return };
        match (&mut relay.reservation, id) {
            (Reservation::Asked { listener, .. }, Some(id)) => *listener = Some(id),
            (reservation, None) => {
                *reservation = Reservation::None;
                relay.doubtful = true;
                relay.patience.failed(now, jitter);
            }
            (Reservation::None | Reservation::Held(_), Some(_)) => {}
        }
    }

    /// The relay granted a reservation, or renewed it.
    pub(in crate::swarm) fn reserved(&mut self, peer: PeerId, limit: CircuitLimit) -> Option<Change> {
        let relay = self.get_mut(&peer)?;
        relay.patience.worked();
        relay.doubtful = false;
        relay.trouble = None;
        relay.connections.iter_mut().for_each(|contact| contact.useful = true);
        match &mut relay.reservation {
            Reservation::Held(held) => held.limit = limit,
            Reservation::Asked { listener, on, .. } => {
                let (listener, on) = (*listener, *on);
                let contact = relay.connections.iter().find(|contact| contact.id == on)?;
                let address = relay.address_of(contact);
                relay.reservation = Reservation::Held(Held { listener, on, address, limit });
                return Some(Change::Reserved);
            }
            Reservation::None => {}
        }
        None
    }

    /// The relay told an address at which it forwards to this node. Tells
    /// whether the listener is one of these.
    pub(in crate::swarm) fn told(&mut self, listener: ListenerId, address: &Multiaddr) -> bool {
        let Some(relay) = self.relays.iter_mut().find(|relay| relay.reservation.listener() == Some(listener)) else {
            return false;
        };
        if let Some((peer, at)) = relay_of(address)
            && peer == relay.peer
            && is_usable(&at)
            && relay.may_be_at(&at)
            && !relay.told_with.contains(&at)
            && relay.told_with.len() < MAX_TOLD
        {
            relay.told_with.push(at);
        }
        true
    }

    /// A listener ended: its relay, if it was one of these, and whether that
    /// was a loss.
    pub(in crate::swarm) fn listener_closed(
        &mut self,
        listener: ListenerId,
        trouble: Option<RelayTrouble>,
        now: Instant,
        jitter: f64,
    ) -> Option<(PeerId, Option<Change>)> {
        let relay = self.relays.iter_mut().find(|relay| relay.reservation.listener() == Some(listener))?;
        let held = relay.is_held();
        relay.reservation = Reservation::None;
        relay.doubtful |= !held;
        match trouble {
            Some(trouble) => {
                relay.patience.failed(now, jitter);
                relay.trouble = Some(trouble);
            }
            None if held => relay.patience.ended(now, GAP),
            None => relay.patience.failed(now, jitter),
        }
        Some((relay.peer, held.then_some(Change::Lost)))
    }

    /// A relay told addresses of itself: it may have transports that the
    /// settings do not name. `ours`: it is a node of this kind.
    pub(in crate::swarm) fn learned(&mut self, peer: &PeerId, addresses: &[Multiaddr], ours: bool) -> bool {
        let Some(relay) = self.get_mut(peer) else { return false };
        relay.foreign = !ours;
        let told = addresses.iter().map(without_peer).filter(|address| is_usable(address) && relay.may_be_at(address));
        relay.told = told.take(MAX_TOLD).collect();
        true
    }

    /// What was out of reach may be within now.
    pub(in crate::swarm) fn network_changed(&mut self) {
        for relay in &mut self.relays {
            relay.patience.hint();
            relay.doubtful = false;
            relay.waiting_since = None;
            relay.legs.iter_mut().for_each(Leg::hint);
        }
    }

    /// What is to be done now; `None` when nothing is until
    /// [`Self::next`] or until something happens.
    pub(in crate::swarm) fn step(&mut self, now: Instant) -> Option<Step> {
        if self.stopped {
            return None;
        }
        let engaged = self.engaged(now);
        self.relays.iter_mut().zip(engaged).find_map(|(relay, engaged)| relay.step(engaged, now))
    }

    /// When [`Self::step`] has something next, if nothing happens before.
    pub(in crate::swarm) fn next(&self, now: Instant) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let engaged = self.engaged(now);
        let spare = engaged.contains(&false);
        let of_relay = |relay: &Relay| {
            let slow = relay.waiting_since.map(|since| since + SLOW).filter(|at| spare && *at > now);
            let legs = [Kind::Quic, Kind::Tcp].into_iter().filter(|kind| relay.lacks(*kind));
            let legs = legs.filter_map(|kind| relay.legs[kind as usize].until());
            let ask = relay.wants_reservation().then(|| relay.patience.until()).flatten();
            legs.chain(ask).chain(slow).chain(relay.answer_due()).min()
        };
        self.relays.iter().zip(&engaged).filter(|(_, engaged)| **engaged).filter_map(|(relay, _)| of_relay(relay)).min()
    }

    /// Which relays are to be used: those that are, and as many more as are
    /// likely to work. Those that are not are tried on beside. Those found
    /// stand in for those of the settings, not the other way round.
    fn engaged(&self, now: Instant) -> Vec<bool> {
        let mut hopeful = self.relays.iter().filter(|relay| relay.is_held()).count();
        let mut own = self.relays.iter().filter(|relay| relay.configured && relay.is_held()).count();
        let decide = |relay: &Relay| {
            let rivals = if relay.configured { own } else { hopeful };
            let engaged = relay.is_held() || rivals < WANTED;
            if engaged && !relay.is_held() && relay.is_promising(now) {
                hopeful += 1;
                own += usize::from(relay.configured);
            }
            engaged
        };
        self.relays.iter().map(decide).collect()
    }

    fn get(&self, peer: &PeerId) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.peer == *peer)
    }

    fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Relay> {
        self.relays.iter_mut().find(|relay| relay.peer == *peer)
    }

    /// For a caller; round trips are measured elsewhere.
    pub(in crate::swarm) fn views(&self, rtt: impl Fn(&PeerId) -> Option<Duration>) -> Vec<RelayView> {
        self.relays.iter().map(|relay| relay.view(rtt(&relay.peer))).collect()
    }
}
