//! One relay as it may be used: its connections and its reservation.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::patience::Patience;
use crate::{
    node::{RelayState, RelayTrouble, RelayView},
    swarm::route::{circuit, is_circuit, is_dialable, is_loopback, is_near, is_quic},
    wire::circuit::CircuitLimit,
};

/// Addresses kept of one relay from each source that others fill.
pub(super) const MAX_TOLD: usize = 8;
/// Circuits of one relay that others are told.
pub(super) const MAX_CIRCUITS: usize = 4;
/// A relay that is not connected after this is not waited for: the next one
/// known has its turn, too.
pub(super) const SLOW: Duration = Duration::from_millis(1500);
/// A relay that does not answer within this is not there any more, though its
/// connection may be.
const ANSWER: Duration = Duration::from_secs(2);
/// Time for one dial of a relay that was connected: it takes four round trips.
const HURRY: Duration = Duration::from_millis(2500);
/// After this the relay may have become slower.
const HURRY_FOR: Duration = Duration::from_secs(120);
/// A reservation may have ended because its connection did, of which this node
/// hears in a moment.
pub(super) const GAP: Duration = Duration::from_millis(50);
/// A connection that ends sooner was refused.
pub(super) const SHORT_LIFE: Duration = Duration::from_secs(5);

/// The transports, and the place of each in [`Relay::legs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) enum Kind {
    Quic,
    Tcp,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Step {
    /// Dial, for no longer than this if it says so, and tell of it by
    /// [`Client::dialling`].
    Dial { relay: PeerId, kind: Kind, addresses: Vec<Multiaddr>, within: Option<Duration> },
    /// Listen at this circuit, and tell of it by [`Client::asked`].
    Reserve { relay: PeerId, at: Multiaddr },
    /// Keep the connections with a relay although nothing runs on them, or no
    /// more.
    Keep { relay: PeerId, keep: bool },
    /// Close a connection that does not answer, or is of no use.
    Close(ConnectionId),
}

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) peer: PeerId,
    pub(super) configured: bool,
    pub(super) addresses: Vec<Multiaddr>,
    /// Addresses that it told of itself.
    pub(super) told: Vec<Multiaddr>,
    /// Addresses that it told with the last reservation.
    pub(super) told_with: Vec<Multiaddr>,
    /// Oldest first, as libp2p has them; without those through relays.
    pub(super) connections: Vec<Contact>,
    pub(super) legs: [Leg; 2],
    pub(super) reservation: Reservation,
    /// Of asking for a reservation.
    pub(super) patience: Patience,
    /// It was connected before.
    pub(super) known: bool,
    /// It is to be used.
    pub(super) engaged: bool,
    /// Since when it is to be used and not connected.
    pub(super) waiting_since: Option<Instant>,
    /// It gave no reservation when asked last, or ended the one it gave.
    pub(super) doubtful: bool,
    /// It is no node of this kind. Such as go-libp2p's asks for circuits on any
    /// connection, and libp2p grants them only on that with the reservation;
    /// so it gets no other.
    pub(super) foreign: bool,
    /// The last trouble since the last reservation.
    pub(super) trouble: Option<RelayTrouble>,
}

#[derive(Debug)]
pub(super) struct Contact {
    pub(super) id: ConnectionId,
    pub(super) address: Multiaddr,
    pub(super) since: Instant,
    pub(super) health: Health,
    /// There was a reservation with the relay while it was up.
    pub(super) useful: bool,
}

/// Whether a connection works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) enum Health {
    /// As far as is known.
    Fine,
    /// Its answer is awaited.
    Asked,
    /// No answer came.
    Silent,
    /// It is being closed.
    Given,
}

/// The way over one transport.
#[derive(Debug, Default)]
pub(super) struct Leg {
    pub(super) dialling: Option<ConnectionId>,
    /// Of dialling.
    pub(super) patience: Patience,
    /// Of connections that came to nothing: a relay that is overloaded, or
    /// broken, takes them and then drops them or says nothing.
    pub(super) conduct: Patience,
}

#[derive(Debug)]
pub(super) enum Reservation {
    None,
    /// Asked for.
    Asked {
        listener: Option<ListenerId>,
        on: ConnectionId,
        since: Instant,
    },
    Held(Held),
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) listener: Option<ListenerId>,
    pub(super) on: ConnectionId,
    /// Of the connection.
    pub(super) address: Multiaddr,
    pub(super) limit: CircuitLimit,
}

impl Kind {
    pub(super) fn of(address: &Multiaddr) -> Self {
        if is_quic(address) { Self::Quic } else { Self::Tcp }
    }
}

impl Leg {
    /// When it may be dialled, if that is later.
    pub(super) fn until(&self) -> Option<Instant> {
        self.patience.until().max(self.conduct.until())
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.patience.is_over(now) && self.conduct.is_over(now)
    }

    /// There is a new reason to believe that it works.
    pub(super) fn hint(&mut self) {
        self.patience.hint();
        self.conduct.hint();
    }
}

impl Contact {
    /// Whether it was what it is for.
    pub(super) fn was_good(&self, now: Instant) -> bool {
        self.useful && now.saturating_duration_since(self.since) >= SHORT_LIFE
    }

    /// Whether it works, as far as is known.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.health, Health::Fine | Health::Asked)
    }
}

impl Relay {
    pub(super) fn new(peer: PeerId, configured: bool, addresses: Vec<Multiaddr>) -> Self {
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
            known: false,
            engaged: false,
            waiting_since: None,
            doubtful: false,
            foreign: false,
            trouble: None,
        }
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.reservation, Reservation::Held(_))
    }

    pub(super) fn is_dialling(&self) -> bool {
        self.legs.iter().any(|leg| leg.dialling.is_some())
    }

    /// Whether it is likely to give a reservation soon.
    pub(super) fn is_promising(&self, now: Instant) -> bool {
        !self.doubtful && self.waiting_since.is_none_or(|since| now.saturating_duration_since(since) < SLOW)
    }

    pub(super) fn wants_reservation(&self) -> bool {
        matches!(self.reservation, Reservation::None) && self.connections.first().is_some_and(Contact::is_usable)
    }

    /// Whether a transport is to be dialled.
    pub(super) fn lacks(&self, kind: Kind) -> bool {
        self.legs[kind as usize].dialling.is_none()
            && !(self.foreign && self.connections.iter().any(Contact::is_usable))
            && !self.connections.iter().any(|contact| Kind::of(&contact.address) == kind && contact.is_usable())
            && self.all_addresses().iter().any(|address| Kind::of(address) == kind)
    }

    /// Those of the settings, or that it was offered with, first.
    pub(super) fn all_addresses(&self) -> Vec<Multiaddr> {
        let mut all = self.addresses.clone();
        for address in self.told_with.iter().chain(&self.told) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    pub(super) fn step(&mut self, engaged: bool, now: Instant) -> Option<Step> {
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
        if let Some(useless) = self.silent(now).or_else(|| self.replaced()).or_else(|| self.surplus()) {
            return Some(Step::Close(useless));
        }
        for kind in [Kind::Quic, Kind::Tcp] {
            if self.lacks(kind) && self.legs[kind as usize].is_ready(now) {
                let addresses = self.all_addresses().into_iter().filter(|address| Kind::of(address) == kind).collect();
                return Some(Step::Dial { relay, kind, addresses, within: self.hurry(kind, now) });
            }
        }
        if !self.wants_reservation() || !self.patience.is_over(now) {
            return None;
        }
        let first = self.connections.first()?;
        let at = circuit(relay, &self.address_of(first));
        self.told_with.clear();
        self.reservation = Reservation::Asked { listener: None, on: first.id, since: now };
        Some(Step::Reserve { relay, at })
    }

    /// Whether to believe the relay that it is there: on a local network only
    /// if it was reached, or is said by the settings to be, on one, too.
    pub(super) fn may_be_at(&self, told: &Multiaddr) -> bool {
        let reached = self.connections.iter().map(|contact| &contact.address);
        let mut known = self.addresses.iter().chain(reached);
        !is_near(told) || known.any(|known| is_near(known) && (is_loopback(known) || !is_loopback(told)))
    }

    /// How long one dial of a relay may take that was there a while ago: the
    /// pauses of one that gets no answer grow longer than those between dials.
    fn hurry(&self, kind: Kind, now: Instant) -> Option<Duration> {
        let hurry = self.known && self.legs[kind as usize].patience.lasts(now) < HURRY_FOR;
        hurry.then_some(HURRY)
    }

    /// A connection on which nothing came back: libp2p would wait for a minute,
    /// and asks on no other while it is there.
    fn silent(&mut self, now: Instant) -> Option<ConnectionId> {
        let Reservation::Asked { on, since, .. } = self.reservation else { return None };
        if now.saturating_duration_since(since) < ANSWER {
            return None;
        }
        self.reservation = Reservation::None;
        self.doubtful = true;
        self.trouble = Some(RelayTrouble::NoAnswer);
        self.patience.ended(now, GAP);
        if let Some(at) = self.connections.iter().position(|contact| contact.id == on) {
            let contact = self.connections.remove(at);
            if !contact.was_good(now) {
                self.legs[Kind::of(&contact.address) as usize].conduct.failed(now, 0.5);
            }
        }
        Some(on)
    }

    /// A silent connection beside another one that is not: libp2p reserves, and
    /// is asked, on the oldest.
    fn replaced(&mut self) -> Option<ConnectionId> {
        if !self.connections.iter().any(|contact| contact.health == Health::Fine) {
            return None;
        }
        let silent = self.connections.iter_mut().find(|contact| contact.health == Health::Silent)?;
        silent.health = Health::Given;
        Some(silent.id)
    }

    /// A connection with a foreign relay beside that with the reservation.
    fn surplus(&mut self) -> Option<ConnectionId> {
        let held = self.reservation.on().filter(|_| self.foreign)?;
        let surplus = self.connections.iter_mut().find(|other| other.id != held && other.health != Health::Given)?;
        surplus.health = Health::Given;
        Some(surplus.id)
    }

    /// When [`Self::silent`] is to be looked at.
    pub(super) fn answer_due(&self) -> Option<Instant> {
        match self.reservation {
            Reservation::Asked { since, .. } => Some(since + ANSWER),
            Reservation::None | Reservation::Held(_) => None,
        }
    }

    /// Where the relay listens, as far as that is known of a connection that
    /// may have come from there.
    pub(super) fn address_of(&self, contact: &Contact) -> Multiaddr {
        let all = self.all_addresses();
        if all.contains(&contact.address) {
            return contact.address.clone();
        }
        let same = all.iter().find(|address| Kind::of(address) == Kind::of(&contact.address));
        same.or(all.first()).cloned().unwrap_or_else(|| contact.address.clone())
    }

    pub(super) fn failed(&mut self, kind: Kind, trouble: &RelayTrouble, now: Instant, jitter: f64) {
        let leg = &mut self.legs[kind as usize];
        leg.dialling = None;
        leg.patience.failed(now, jitter);
        if self.connections.is_empty() {
            self.doubtful |= !self.is_dialling();
            self.trouble = Some(trouble.clone());
        }
    }

    pub(super) fn circuits(&self) -> Vec<Multiaddr> {
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

    pub(super) fn view(&self, rtt: Option<Duration>) -> RelayView {
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
            max_circuit_duration: limit.duration,
            max_circuit_bytes: limit.bytes,
            trouble: self.trouble.clone(),
        }
    }
}

impl Reservation {
    pub(super) fn listener(&self) -> Option<ListenerId> {
        match self {
            Self::None => None,
            Self::Asked { listener, .. } => *listener,
            Self::Held(held) => held.listener,
        }
    }

    pub(super) fn on(&self) -> Option<ConnectionId> {
        match self {
            Self::None => None,
            Self::Asked { on, .. } => Some(*on),
            Self::Held(held) => Some(held.on),
        }
    }
}

pub(super) fn is_usable(address: &Multiaddr) -> bool {
    is_dialable(address) && !is_circuit(address)
}
