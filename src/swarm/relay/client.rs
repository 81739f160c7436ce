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

use super::patience::Patience;
use crate::{
    node::{PeerAddresses, RelayState, RelayView},
    swarm::route::{circuit, is_circuit, is_dialable, is_quic, relay_of, without_peer},
};

/// Relays at which this node has a reservation.
const WANTED: usize = 2;
/// Relays known that the settings do not name.
const MAX_FOUND: usize = 16;
/// Addresses kept of one relay from each source that others fill.
const MAX_TOLD: usize = 8;
/// Circuits of one relay that others are told.
const MAX_CIRCUITS: usize = 4;
/// A relay that is not connected after this is not waited for: the next one
/// known has its turn, too.
const SLOW: Duration = Duration::from_millis(1500);
/// A reservation may have ended because its connection did, of which this node
/// hears in a moment.
const GAP: Duration = Duration::from_millis(50);
/// A connection that ends sooner was refused.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Characters kept of a trouble.
const MAX_TROUBLE_CHARS: usize = 200;

/// The transports, and the place of each in [`Relay::legs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) enum Kind {
    Quic,
    Tcp,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Step {
    /// Dial, and tell of it by [`Client::dialling`].
    Dial { relay: PeerId, kind: Kind, addresses: Vec<Multiaddr> },
    /// Listen at this circuit, and tell of it by [`Client::asked`].
    Reserve { relay: PeerId, at: Multiaddr },
    /// Keep the connections with a relay although nothing runs on them, or no
    /// more.
    Keep { relay: PeerId, keep: bool },
}

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

#[derive(Debug)]
struct Relay {
    peer: PeerId,
    configured: bool,
    addresses: Vec<Multiaddr>,
    /// Addresses that it told of itself.
    told: Vec<Multiaddr>,
    /// Addresses that it told with the last reservation.
    told_with: Vec<Multiaddr>,
    /// Oldest first, as libp2p has them; without those through relays.
    connections: Vec<Contact>,
    legs: [Leg; 2],
    reservation: Reservation,
    /// Of asking for a reservation.
    patience: Patience,
    /// It is to be used.
    engaged: bool,
    /// Since when it is to be used and not connected.
    waiting_since: Option<Instant>,
    /// It gave no reservation when asked last, or ended the one it gave.
    doubtful: bool,
    /// The last trouble.
    trouble: String,
}

#[derive(Debug)]
struct Contact {
    id: ConnectionId,
    address: Multiaddr,
    since: Instant,
}

/// The way over one transport.
#[derive(Debug, Default)]
struct Leg {
    dialling: Option<ConnectionId>,
    patience: Patience,
}

#[derive(Debug)]
enum Reservation {
    None,
    /// Asked for.
    Asked { listener: Option<ListenerId>, on: ConnectionId },
    Held(Held),
}

#[derive(Debug)]
struct Held {
    listener: Option<ListenerId>,
    on: ConnectionId,
    /// Of the connection.
    address: Multiaddr,
    limit: CircuitLimit,
}

/// What a relay lets a circuit carry; `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::swarm) struct CircuitLimit {
    pub(in crate::swarm) duration: Option<Duration>,
    pub(in crate::swarm) bytes: Option<u64>,
}

impl Kind {
    fn of(address: &Multiaddr) -> Self {
        if is_quic(address) { Self::Quic } else { Self::Tcp }
    }
}

impl Client {
    pub(in crate::swarm) fn new(local: PeerId, configured: &[PeerAddresses]) -> Self {
        let others = configured.iter().filter(|relay| relay.peer != local);
        let relays = others.map(|relay| Relay::new(relay.peer, true, relay.addresses.clone())).collect();
        Self { local, relays, stopped: false }
    }

    /// A relay was found that may be used where those of the settings do not
    /// suffice. Its addresses replace those it was offered with before.
    #[expect(dead_code, reason = "for whoever finds relays")]
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
        relay.connections.push(Contact { id, address: address.clone(), since: now });
        relay.waiting_since = None;
        for leg in &mut relay.legs {
            leg.dialling.take_if(|dialling| *dialling == id);
            // What answers on one transport is likely there on the other.
            leg.patience.hint();
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
        let leg = &mut relay.legs[Kind::of(&contact.address) as usize];
        if now.saturating_duration_since(contact.since) < SHORT_LIFE {
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
        relay.set_trouble("the connection broke");
        held.then_some(Change::Lost)
    }

    /// A dial that was asked for began.
    pub(in crate::swarm) fn dialling(&mut self, relay: PeerId, kind: Kind, id: ConnectionId) {
        if let Some(relay) = self.get_mut(&relay) {
            relay.legs[kind as usize].dialling = Some(id);
        }
    }

    /// A dial could not begin.
    pub(in crate::swarm) fn not_dialled(&mut self, relay: PeerId, kind: Kind, cause: &str, now: Instant, jitter: f64) {
        if let Some(relay) = self.get_mut(&relay) {
            relay.failed(kind, cause, now, jitter);
        }
    }

    /// A dial failed; one of these or another.
    pub(in crate::swarm) fn dial_failed(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        cause: &str,
        now: Instant,
        jitter: f64,
    ) {
        let Some(relay) = self.get_mut(&peer) else { return };
        for kind in [Kind::Quic, Kind::Tcp] {
            if relay.legs[kind as usize].dialling == Some(id) {
                relay.failed(kind, cause, now, jitter);
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
        relay.trouble.clear();
        match &mut relay.reservation {
            Reservation::Held(held) => held.limit = limit,
            Reservation::Asked { listener, on } => {
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
            && !relay.told_with.contains(&at)
            && relay.told_with.len() < MAX_TOLD
        {
            relay.told_with.push(at);
        }
        true
    }

    /// A listener ended: its relay, if it was one of these.
    pub(in crate::swarm) fn listener_closed(
        &mut self,
        listener: ListenerId,
        cause: Option<&str>,
        now: Instant,
        jitter: f64,
    ) -> Option<(PeerId, Change)> {
        let relay = self.relays.iter_mut().find(|relay| relay.reservation.listener() == Some(listener))?;
        let held = relay.is_held();
        relay.reservation = Reservation::None;
        relay.doubtful |= !held;
        match cause {
            Some(cause) => {
                relay.patience.failed(now, jitter);
                relay.set_trouble(cause);
            }
            None if held => relay.patience.ended(now, GAP),
            None => relay.patience.failed(now, jitter),
        }
        held.then_some((relay.peer, Change::Lost))
    }

    /// A relay told addresses of itself: it may have transports that the
    /// settings do not name.
    pub(in crate::swarm) fn learned(&mut self, peer: &PeerId, addresses: &[Multiaddr]) -> bool {
        let Some(relay) = self.get_mut(peer) else { return false };
        relay.told = addresses.iter().map(without_peer).filter(is_usable).take(MAX_TOLD).collect();
        true
    }

    /// What was out of reach may be within now.
    pub(in crate::swarm) fn network_changed(&mut self) {
        for relay in &mut self.relays {
            relay.patience.hint();
            relay.doubtful = false;
            relay.waiting_since = None;
            relay.legs.iter_mut().for_each(|leg| leg.patience.hint());
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
            let legs = legs.filter_map(|kind| relay.legs[kind as usize].patience.until());
            let ask = relay.wants_reservation().then(|| relay.patience.until()).flatten();
            legs.chain(ask).chain(slow).min()
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

impl Relay {
    fn new(peer: PeerId, configured: bool, addresses: Vec<Multiaddr>) -> Self {
        Self {
            peer,
            configured,
            addresses,
            told: Vec::new(),
            told_with: Vec::new(),
            connections: Vec::new(),
            legs: [Leg::default(), Leg::default()],
            reservation: Reservation::None,
            patience: Patience::default(),
            engaged: false,
            waiting_since: None,
            doubtful: false,
            trouble: String::new(),
        }
    }

    fn is_held(&self) -> bool {
        matches!(self.reservation, Reservation::Held(_))
    }

    fn is_dialling(&self) -> bool {
        self.legs.iter().any(|leg| leg.dialling.is_some())
    }

    /// Whether it is likely to give a reservation soon.
    fn is_promising(&self, now: Instant) -> bool {
        !self.doubtful && self.waiting_since.is_none_or(|since| now.saturating_duration_since(since) < SLOW)
    }

    fn wants_reservation(&self) -> bool {
        matches!(self.reservation, Reservation::None) && !self.connections.is_empty()
    }

    /// Whether a transport is to be dialled.
    fn lacks(&self, kind: Kind) -> bool {
        self.legs[kind as usize].dialling.is_none()
            && !self.connections.iter().any(|contact| Kind::of(&contact.address) == kind)
            && self.all_addresses().iter().any(|address| Kind::of(address) == kind)
    }

    /// Those of the settings, or that it was offered with, first.
    fn all_addresses(&self) -> Vec<Multiaddr> {
        let mut all = self.addresses.clone();
        for address in self.told_with.iter().chain(&self.told) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    fn step(&mut self, engaged: bool, now: Instant) -> Option<Step> {
        let relay = self.peer;
        if std::mem::replace(&mut self.engaged, engaged) != engaged && !self.connections.is_empty() {
            return Some(Step::Keep { relay, keep: engaged });
        }
        if !engaged {
            self.waiting_since = None;
            return None;
        }
        if self.connections.is_empty() {
            self.waiting_since.get_or_insert(now);
        }
        for kind in [Kind::Quic, Kind::Tcp] {
            if self.lacks(kind) && self.legs[kind as usize].patience.is_over(now) {
                let addresses = self.all_addresses().into_iter().filter(|address| Kind::of(address) == kind).collect();
                return Some(Step::Dial { relay, kind, addresses });
            }
        }
        if !self.wants_reservation() || !self.patience.is_over(now) {
            return None;
        }
        let first = self.connections.first()?;
        let at = circuit(relay, &self.address_of(first));
        self.told_with.clear();
        self.reservation = Reservation::Asked { listener: None, on: first.id };
        Some(Step::Reserve { relay, at })
    }

    /// Where the relay listens, as far as that is known of a connection that
    /// may have come from there.
    fn address_of(&self, contact: &Contact) -> Multiaddr {
        let all = self.all_addresses();
        if all.contains(&contact.address) {
            return contact.address.clone();
        }
        let same = all.iter().find(|address| Kind::of(address) == Kind::of(&contact.address));
        same.or(all.first()).cloned().unwrap_or_else(|| contact.address.clone())
    }

    fn failed(&mut self, kind: Kind, cause: &str, now: Instant, jitter: f64) {
        let leg = &mut self.legs[kind as usize];
        leg.dialling = None;
        leg.patience.failed(now, jitter);
        if self.connections.is_empty() {
            self.doubtful |= !self.is_dialling();
            self.set_trouble(cause);
        }
    }

    fn set_trouble(&mut self, cause: &str) {
        self.trouble = cause.chars().filter(|c| !c.is_control()).take(MAX_TROUBLE_CHARS).collect();
    }

    fn circuits(&self) -> Vec<Multiaddr> {
        let Reservation::Held(held) = &self.reservation else { return Vec::new() };
        let (same, other): (Vec<_>, Vec<_>) =
            self.all_addresses().into_iter().partition(|address| Kind::of(address) == Kind::of(&held.address));
        let mut all = vec![circuit(self.peer, &held.address)];
        for address in other.iter().chain(&same) {
            let at = circuit(self.peer, address);
            if all.len() < MAX_CIRCUITS && !all.contains(&at) {
                all.push(at);
            }
        }
        all
    }

    fn view(&self, rtt: Option<Duration>) -> RelayView {
        let limit = match &self.reservation {
            Reservation::Held(held) => held.limit,
            Reservation::None | Reservation::Asked { .. } => CircuitLimit::default(),
        };
        RelayView {
            peer: self.peer,
            configured: self.configured,
            addresses: self.all_addresses(),
            state: match &self.reservation {
                Reservation::Held(_) => RelayState::Reserved,
                Reservation::Asked { .. } => RelayState::Reserving,
                Reservation::None if !self.engaged => RelayState::Spare,
                Reservation::None if self.connections.is_empty() && self.is_dialling() => RelayState::Connecting,
                Reservation::None => RelayState::Waiting,
            },
            connections: self.connections.len() as u32,
            rtt,
            // libp2p renews it in time and does not tell how long it is good.
            reserved_for: None,
            max_circuit_duration: limit.duration,
            max_circuit_bytes: limit.bytes,
            detail: self.trouble.clone(),
        }
    }
}

impl Reservation {
    fn listener(&self) -> Option<ListenerId> {
        match self {
            Self::None => None,
            Self::Asked { listener, .. } => *listener,
            Self::Held(held) => held.listener,
        }
    }

    fn on(&self) -> Option<ConnectionId> {
        match self {
            Self::None => None,
            Self::Asked { on, .. } => Some(*on),
            Self::Held(held) => Some(held.on),
        }
    }
}

fn is_usable(address: &Multiaddr) -> bool {
    is_dialable(address) && !is_circuit(address)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
