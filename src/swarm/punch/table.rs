//! Peers that are relayed, and what is done to change that. Time is passed in.
//!
//! The side that dialled the relayed connection leads: it opens an exchange as
//! soon as that is up. The other side leads only if it hears nothing, or if
//! something changed there. A round that failed is followed by another, and
//! after a few of them by one from time to time, for as long as the peer is
//! relayed.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::debug;

use super::{
    attempt::{Attempt, Dials, Record},
    exchange::{What, is_unsupported},
    plan::{Act, QUICK_ROUNDS, Terms},
};
use crate::{
    node::PunchView,
    swarm::{link::bucket::Bucket, timers::Timers},
    wire::punch::{Candidate, Offer},
};

/// Peers that are kept here; connected ones are bounded by their connections.
const MAX_PEERS: usize = 1024;
/// Rounds kept of a peer.
const MAX_HISTORY: usize = 16;
/// Dials of all rounds together.
const MAX_DIALS: usize = 512;
/// Rounds under way, together, with peers that this node has no interest in.
const MAX_STRANGERS: usize = 4;
/// Rounds with those at once, and then one in the interval: they name the
/// addresses that packets are sent to, and may name anybody's.
const STRANGERS_BURST: u32 = 8;
const STRANGERS_INTERVAL: Duration = Duration::from_secs(5);
/// Waits between rounds after the quick ones.
const WAITS: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
];
/// The first of those where only a change can help.
const HOPELESS_WAIT: usize = 3;
/// How long the side that did not dial waits for the other to lead. Twice a
/// slow relay's round trip.
const GRACE: Duration = Duration::from_millis(1500);
/// So long after an exchange began here, one of the peer's may have begun
/// before it heard of that. Twice a slow relay's round trip.
const CROSSING: Duration = Duration::from_millis(1500);
/// Between the rounds of one peer, whatever happens.
const LEAST_WAIT: Duration = Duration::from_millis(50);
/// From one change that starts rounds over to the next.
const CHANGE_WAIT: Duration = Duration::from_secs(1);
/// The same where a direct connection was lost: one that is lost again at once
/// is no reason to hurry.
const LOSS_WAIT: Duration = Duration::from_secs(5);
/// A direct connection is known to both sides after this.
const KNOWN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(in crate::swarm) struct Punches {
    local: PeerId,
    peers: HashMap<PeerId, Entry>,
    timers: Timers<PeerId>,
    dials: HashMap<ConnectionId, Dialled>,
    last_attempt: u64,
    /// Rounds with peers that this node has no interest in.
    strangers: Bucket,
}

#[derive(Debug)]
struct Dialled {
    peer: PeerId,
    attempt: u64,
    act: Act,
    /// One of those dialled.
    target: Candidate,
}

#[derive(Debug)]
struct Entry {
    /// Bounded by the limit per peer, as the next.
    circuits: Vec<Circuit>,
    direct: Vec<Direct>,
    /// Connections of either kind that may be dead.
    doubted: Vec<ConnectionId>,
    interest: Interest,
    speech: Speech,
    /// The next one led here.
    round: u32,
    /// Waits since the last change.
    waits: usize,
    /// When the next round is to be led.
    next: Option<Instant>,
    /// Something changed while a round was under way.
    changed: bool,
    /// A round led here was given up, and the next one follows at once.
    restarts: bool,
    attempt: Option<Attempt>,
    last_begun: Option<Instant>,
    theirs: Option<Offer>,
    history: VecDeque<Record>,
}

/// A relayed connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circuit {
    pub(super) id: ConnectionId,
    /// This side dialled.
    pub(super) dialled: bool,
    /// The relay is on this host.
    pub(super) loopback: bool,
}

/// A connection that is not relayed.
#[derive(Debug, Clone, Copy)]
struct Direct {
    id: ConnectionId,
    since: Instant,
}

/// What the peer is to this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// It may be told of, and dialled within, the local network.
    pub(super) trusted: bool,
    /// A direct connection is wanted.
    pub(super) wanted: bool,
}

/// What the peer speaks, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Unknown,
    Ours,
    Stock,
    Neither,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Do {
    /// Open a stream there and begin an exchange.
    Lead { peer: PeerId, connection: ConnectionId, attempt: u64, stock: bool },
    /// Begin dials.
    Dial { peer: PeerId, attempt: u64, dials: Dials },
}

impl Punches {
    pub(in crate::swarm) fn new(local: PeerId, now: Instant) -> Self {
        Self {
            local,
            peers: HashMap::new(),
            timers: Timers::new(),
            dials: HashMap::new(),
            last_attempt: 0,
            strangers: Bucket::new(STRANGERS_BURST, STRANGERS_INTERVAL, now.into_std()),
        }
    }

    /// A relayed connection is up.
    pub(super) fn circuit_up(&mut self, peer: PeerId, circuit: Circuit, interest: Interest, now: Instant) {
        self.make_room();
        let entry = self.peers.entry(peer).or_insert_with(Entry::new);
        if entry.circuits.is_empty() && entry.direct.is_empty() {
            // It may have been changed for another version.
            entry.speech = Speech::Unknown;
        }
        entry.circuits.push(circuit);
        entry.interest = interest;
        entry.start(now);
        self.rearm(peer);
    }

    /// Another connection is up.
    pub(super) fn direct_up(&mut self, peer: PeerId, id: ConnectionId, address: &Multiaddr, near: bool, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.direct.push(Direct { id, since: now });
        entry.next = None;
        if let Some(attempt) = entry.attempt.take() {
            entry.remember(attempt.end(Ok(address.clone()), near, now));
        }
        self.rearm(peer);
    }

    /// A connection is gone.
    pub(in crate::swarm) fn down(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let before = entry.is_relayed();
        entry.circuits.retain(|circuit| circuit.id != id);
        entry.direct.retain(|direct| direct.id != id);
        entry.doubted.retain(|doubted| *doubted != id);
        if entry.circuits.is_empty() {
            entry.next = None;
        } else if !before {
            entry.lost(now);
        }
        self.rearm(peer);
    }

    /// A connection may be dead, or is alive after all.
    pub(in crate::swarm) fn doubt(&mut self, peer: PeerId, id: ConnectionId, doubted: bool, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let before = entry.is_relayed();
        entry.doubted.retain(|other| *other != id);
        if doubted && entry.has(id) {
            entry.doubted.push(id);
        }
        match (before, entry.is_relayed()) {
            (false, true) => entry.lost(now),
            (true, false) => entry.next = None,
            _ => {}
        }
        self.rearm(peer);
    }

    /// What the peer is to this node became different.
    pub(super) fn set_interest(&mut self, peer: &PeerId, interest: Interest, now: Instant) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        let before = std::mem::replace(&mut entry.interest, interest);
        if interest.wanted && !before.wanted {
            entry.start(now);
        } else if !interest.wanted {
            entry.next = None;
        }
        self.rearm(*peer);
    }

    /// What the peer says that it speaks.
    pub(super) fn speaks(&mut self, peer: &PeerId, speech: Speech, now: Instant) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        if std::mem::replace(&mut entry.speech, speech) == Speech::Unknown
            && speech == Speech::Stock
            && entry.attempt.is_none()
        {
            entry.start(now);
            self.rearm(*peer);
        }
    }

    /// This node's own addresses, its NAT or its network became different.
    pub(in crate::swarm) fn changed(&mut self, now: Instant) {
        for (peer, entry) in &mut self.peers {
            entry.changed(now);
            entry.rearm(*peer, &mut self.timers);
        }
    }

    /// Whether to answer an exchange that the peer began, and under which
    /// number.
    pub(super) fn accept(&mut self, peer: PeerId, on: ConnectionId, stock: bool, now: Instant) -> Option<u64> {
        let strangers = self.peers.values().filter(|entry| !entry.interest.wanted && entry.attempt.is_some()).count();
        let first = self.local.to_bytes() < peer.to_bytes();
        let entry = self.peers.get_mut(&peer)?;
        let relayed = entry.circuits.iter().any(|circuit| circuit.id == on);
        if !relayed || !entry.is_direct_lost(now) || (!entry.interest.wanted && strangers >= MAX_STRANGERS) {
            return None;
        }
        // Both began at once: the lower id leads. Were it to follow, too, both
        // would wait for the other to dial.
        if first && !stock && entry.is_crossed(now) {
            return None;
        }
        if !entry.interest.wanted && !self.strangers.take(now.into_std()) {
            return None;
        }
        entry.speech = if stock { Speech::Stock } else { Speech::Ours };
        if let Some(replaced) = entry.attempt.take()
            && replaced.plan.is_some()
        {
            entry.remember(replaced.end(Err("the peer began anew".to_owned()), false, now));
        }
        self.last_attempt += 1;
        let round = entry.round;
        entry.begin(Attempt::new(self.last_attempt, false, stock, round, now), now);
        self.rearm(peer);
        Some(self.last_attempt)
    }

    /// Whether an exchange has not been replaced by another.
    pub(super) fn is_running(&self, peer: &PeerId, attempt: u64) -> bool {
        self.peers.get(peer).and_then(|entry| entry.attempt.as_ref()).is_some_and(|running| running.id == attempt)
    }

    /// The exchange begins: what this side brings, and where the peer was found
    /// before.
    pub(super) fn begin(&mut self, peer: &PeerId, attempt: u64, mine: Offer, known: &[Candidate], now: Instant) {
        let Some(running) = self.running(peer, attempt) else { return };
        running.begin(mine, known, now);
        self.rearm(*peer);
    }

    /// The exchange could not begin.
    pub(super) fn refused(&mut self, peer: &PeerId, attempt: u64, unsupported: bool, cause: String, now: Instant) {
        let Some(stock) = self.running(peer, attempt).map(|running| running.stock) else { return };
        let Some(entry) = self.peers.get_mut(peer) else { return };
        if !unsupported {
            entry.fail(cause, now);
        } else if entry.dislikes(stock) {
            entry.attempt = None;
            entry.next = Some(now);
        } else {
            entry.attempt = None;
        }
        self.rearm(*peer);
    }

    /// An exchange came further.
    pub(super) fn heard(&mut self, peer: PeerId, attempt: u64, what: What, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let (interest, loopback) = (entry.interest, entry.is_loopback());
        let Some(running) = entry.attempt.as_mut().filter(|running| running.id == attempt) else { return };
        match what {
            What::Offer(theirs, rtt) => {
                let Interest { trusted, wanted } = interest;
                let terms = Terms { leader: running.leader, round: running.round, trusted, wanted, loopback, rtt };
                entry.theirs = Some(theirs.clone());
                if running.leader && !running.stock {
                    entry.speech = Speech::Ours;
                }
                running.heard(theirs, terms, now);
            }
            What::Synced => running.synced(now),
            What::Broken(error) if running.plan.is_some() => {
                // What was agreed on goes on without.
                debug!(%peer, %error, "an exchange broke off");
            }
            What::Broken(error) => return self.refused(&peer, attempt, is_unsupported(&error), error.to_string(), now),
        }
        self.rearm(peer);
    }

    /// Whether there is room for another dial.
    pub(super) fn has_room(&self) -> bool {
        self.dials.len() < MAX_DIALS
    }

    /// A dial was begun.
    pub(super) fn dialling(&mut self, id: ConnectionId, peer: PeerId, attempt: u64, act: Act, target: Candidate) {
        self.dials.insert(id, Dialled { peer, attempt, act, target });
    }

    /// A dial ended with a connection; tells how it was made, if it was one of
    /// these.
    pub(super) fn dialled(&mut self, id: ConnectionId) -> Option<Act> {
        self.dials.remove(&id).map(|dialled| dialled.act)
    }

    /// A dial failed; `false` if it is none of these.
    pub(super) fn dial_failed(&mut self, id: ConnectionId, now: Instant) -> bool {
        let Some(Dialled { peer, attempt, act, target }) = self.dials.remove(&id) else { return false };
        if let Some(running) = self.running(&peer, attempt) {
            running.failed(act, target, now);
            self.rearm(peer);
        }
        true
    }

    /// When [`Self::pop_due`] has something next.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Something to do now.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Do> {
        while let Some(peer) = self.timers.pop_due(now) {
            self.last_attempt += 1;
            let id = self.last_attempt;
            let due = self.peers.get_mut(&peer).and_then(|entry| entry.due(peer, id, now));
            self.rearm(peer);
            if due.is_some() {
                return due;
            }
        }
        None
    }

    /// Forgets everybody: nothing more is to be dialled.
    pub(in crate::swarm) fn clear(&mut self) {
        (self.peers, self.timers, self.dials) = (HashMap::new(), Timers::new(), HashMap::new());
    }

    /// What the peer brought last.
    pub(super) fn theirs(&self, peer: &PeerId) -> Option<&Offer> {
        self.peers.get(peer)?.theirs.as_ref()
    }

    /// Whether the peer is relayed by this host.
    pub(super) fn is_loopback(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(Entry::is_loopback)
    }

    /// The number of the round that is under way.
    pub(super) fn round(&self, peer: &PeerId) -> Option<u32> {
        self.peers.get(peer)?.attempt.as_ref().map(|attempt| attempt.round)
    }

    pub(super) fn interest(&self, peer: &PeerId) -> Interest {
        self.peers.get(peer).map_or_else(Interest::default, |entry| entry.interest)
    }

    /// Rounds with a peer, oldest first.
    pub(super) fn rounds(&self, peer: &PeerId, now: Instant) -> Vec<PunchView> {
        let Some(entry) = self.peers.get(peer) else { return Vec::new() };
        let running = entry.attempt.iter().map(Attempt::record);
        entry.history.iter().map(|record| record.view(now)).chain(running.map(|record| record.view(now))).collect()
    }

    /// How long until the next round.
    pub(super) fn next_try(&self, peer: &PeerId, now: Instant) -> Option<Duration> {
        self.peers.get(peer)?.next.map(|at| at.saturating_duration_since(now))
    }

    fn running(&mut self, peer: &PeerId, attempt: u64) -> Option<&mut Attempt> {
        self.peers.get_mut(peer)?.attempt.as_mut().filter(|running| running.id == attempt)
    }

    fn rearm(&mut self, peer: PeerId) {
        if let Some(entry) = self.peers.get(&peer) {
            entry.rearm(peer, &mut self.timers);
        }
    }

    /// Forgets one peer that is not connected, if there are too many.
    fn make_room(&mut self) {
        if self.peers.len() < MAX_PEERS {
            return;
        }
        let idle = self.peers.iter().filter(|(_, entry)| entry.circuits.is_empty() && entry.direct.is_empty());
        if let Some(oldest) = idle.min_by_key(|(_, entry)| entry.last_begun).map(|(peer, _)| *peer) {
            self.timers.clear(&oldest);
            self.peers.remove(&oldest);
        }
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            circuits: Vec::new(),
            direct: Vec::new(),
            doubted: Vec::new(),
            interest: Interest::default(),
            speech: Speech::Unknown,
            round: 1,
            waits: 0,
            next: None,
            changed: false,
            restarts: false,
            attempt: None,
            last_begun: None,
            theirs: None,
            history: VecDeque::new(),
        }
    }

    /// The youngest first, for the peer was alive when it was made; then each
    /// in turn. In libp2p's protocol the side leads that did not dial.
    fn circuit(&self) -> Option<&Circuit> {
        let stock = self.speech == Speech::Stock;
        let doubted = self.circuits.iter().all(|circuit| self.is_doubted(circuit.id));
        let works = |circuit: &&Circuit| doubted || !self.is_doubted(circuit.id);
        let fitting = || self.circuits.iter().rev().filter(works).filter(|circuit| !stock || !circuit.dialled);
        fitting().cycle().nth(self.round.saturating_sub(1) as usize % fitting().count().max(1))
    }

    fn is_loopback(&self) -> bool {
        self.circuits.iter().any(|circuit| circuit.loopback)
    }

    fn has_dialled(&self) -> bool {
        self.circuits.iter().any(|circuit| circuit.dialled)
    }

    /// Whether there is a relayed connection, and no direct one that works as
    /// far as is known.
    fn is_relayed(&self) -> bool {
        !self.circuits.is_empty() && self.direct.iter().all(|direct| self.is_doubted(direct.id))
    }

    fn is_doubted(&self, id: ConnectionId) -> bool {
        self.doubted.contains(&id)
    }

    fn has(&self, id: ConnectionId) -> bool {
        self.circuits.iter().any(|circuit| circuit.id == id) || self.direct.iter().any(|direct| direct.id == id)
    }

    /// Whether a peer that begins an exchange may have lost all direct
    /// connections, which this side may not have noticed yet. One that is young
    /// may not yet be known there.
    fn is_direct_lost(&self, now: Instant) -> bool {
        let known = |direct: &Direct| now.saturating_duration_since(direct.since) >= KNOWN;
        self.direct.iter().all(|direct| self.is_doubted(direct.id) || known(direct))
    }

    /// The last direct connection was lost, or may be.
    fn lost(&mut self, now: Instant) {
        self.start(now);
        let earliest = self.last_begun.map_or(now, |begun| begun + LOSS_WAIT);
        self.next = self.next.map(|next| next.max(earliest));
    }

    /// Whether an exchange of the peer's may have begun before it heard of one
    /// of this side's.
    fn is_crossed(&self, now: Instant) -> bool {
        match &self.attempt {
            // One that had nothing to say begins anew when it has.
            Some(attempt) => {
                let fresh = now < attempt.begun + CROSSING && !attempt.is_peer_blind();
                attempt.leader && (attempt.plan.is_none() || fresh)
            }
            // The peer follows the one that was given up for the next.
            None => self.restarts && self.next.is_some(),
        }
    }

    /// Rounds begin anew.
    fn start(&mut self, now: Instant) {
        if !self.is_relayed() || !self.interest.wanted {
            return;
        }
        (self.round, self.waits) = (1, 0);
        if self.attempt.is_none() {
            let leads = match self.speech {
                Speech::Unknown | Speech::Ours => self.has_dialled(),
                Speech::Stock => true,
                Speech::Neither => return,
            };
            self.next = Some(if leads { now } else { now + GRACE });
        }
    }

    fn changed(&mut self, now: Instant) {
        if !self.is_relayed() || !self.interest.wanted {
            return;
        }
        match &self.attempt {
            Some(attempt) if attempt.is_blind() && !attempt.stock => {
                self.changed = true;
                self.restarts = attempt.leader;
                self.fail("this node has just learnt its own address".to_owned(), now);
            }
            Some(_) => self.changed = true,
            None => {
                (self.round, self.waits) = (1, 0);
                let earliest = self.last_begun.map_or(now, |begun| begun + CHANGE_WAIT).max(now);
                self.next = Some(self.next.map_or(earliest, |next| next.min(earliest)));
            }
        }
    }

    fn begin(&mut self, attempt: Attempt, now: Instant) {
        self.attempt = Some(attempt);
        self.last_begun = Some(now);
        self.next = None;
        self.restarts = false;
    }

    /// The peer does not speak one of the protocols. Tells whether the other
    /// one is worth a try: in libp2p's, the side leads that did not dial.
    fn dislikes(&mut self, stock: bool) -> bool {
        self.speech = if stock { Speech::Neither } else { Speech::Stock };
        !stock && self.circuit().is_some()
    }

    fn due(&mut self, peer: PeerId, id: u64, now: Instant) -> Option<Do> {
        if let Some(attempt) = &mut self.attempt {
            if attempt.ends <= now {
                let cause = attempt.cause();
                self.fail(cause, now);
            } else {
                let dials = attempt.pop_due(now)?;
                return Some(Do::Dial { peer, attempt: attempt.id, dials });
            }
        }
        self.next.filter(|at| *at <= now)?;
        self.next = None;
        let stock = self.speech == Speech::Stock;
        let circuit = *self.circuit()?;
        if !self.is_relayed() || self.speech == Speech::Neither {
            return None;
        }
        self.begin(Attempt::new(id, true, stock, self.round, now), now);
        Some(Do::Lead { peer, connection: circuit.id, attempt: id, stock })
    }

    /// The round that is under way came to nothing.
    fn fail(&mut self, cause: String, now: Instant) {
        let Some(attempt) = self.attempt.take() else { return };
        let (leader, hopeless, round) = (attempt.leader, attempt.is_hopeless(), attempt.round);
        self.remember(attempt.end(Err(cause), false, now));
        if !self.is_relayed() || !self.interest.wanted {
            return;
        }
        self.round = round.saturating_add(1);
        if std::mem::take(&mut self.changed) {
            (self.round, self.waits) = (1, 0);
            self.next = Some(now + LEAST_WAIT);
            return;
        }
        if round < QUICK_ROUNDS && !hopeless {
            self.next = Some(if leader { now + LEAST_WAIT } else { now + GRACE });
            return;
        }
        let first = if hopeless { HOPELESS_WAIT } else { 0 };
        let wait = WAITS[(first + self.waits).min(WAITS.len() - 1)];
        self.waits += 1;
        // The side that led comes first.
        self.next = Some(now + if leader { wait } else { wait + wait / 2 });
    }

    fn remember(&mut self, record: Record) {
        if self.history.len() >= MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(record);
    }

    fn rearm(&self, peer: PeerId, timers: &mut Timers<PeerId>) {
        match self.attempt.as_ref().map(Attempt::next).or(self.next) {
            Some(at) => timers.set(peer, at),
            None => timers.clear(&peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        swarm::punch::plan::ROUND,
        wire::punch::{CandidateKind, Mapping, Nat, Transport},
    };

    const WANTED: Interest = Interest { trusted: true, wanted: true };

    fn offer(last: u8, mapping: Mapping) -> Offer {
        let at = format!("192.0.2.{last}:4001").parse().unwrap();
        Offer {
            round: 1,
            candidates: vec![Candidate::new(CandidateKind::Observed, Transport::Quic, at).unwrap()],
            nat_v4: Nat { mapping, ..Nat::default() },
            ..Offer::default()
        }
    }

    fn circuit(id: usize, dialled: bool) -> Circuit {
        Circuit { id: ConnectionId::new_unchecked(id), dialled, loopback: false }
    }

    struct Side {
        punches: Punches,
        peer: PeerId,
        now: Instant,
    }

    impl Side {
        fn new(dialled: bool) -> Self {
            let (peer, now) = (PeerId::random(), Instant::now());
            let mut punches = Punches::new(PeerId::random(), now);
            punches.circuit_up(peer, circuit(1, dialled), WANTED, now);
            Self { punches, peer, now }
        }

        /// The number of the next exchange that this side leads, and whether it
        /// is in libp2p's protocol; time passes until then. Dials are let pass.
        fn led(&mut self, within: Duration) -> Option<(u64, bool)> {
            let end = self.now + within;
            while let Some(at) = self.punches.next().filter(|at| *at <= end) {
                self.now = self.now.max(at);
                if let Some(Do::Lead { attempt, stock, .. }) = self.punches.pop_due(self.now) {
                    return Some((attempt, stock));
                }
            }
            None
        }

        fn agree(&mut self, attempt: u64, mapping: Mapping) {
            self.punches.begin(&self.peer, attempt, offer(1, mapping), &[], self.now);
            let what = What::Offer(offer(2, mapping), Some(Duration::from_millis(60)));
            self.punches.heard(self.peer, attempt, what, self.now);
        }

        fn rounds(&self) -> Vec<PunchView> {
            self.punches.rounds(&self.peer, self.now)
        }
    }

    #[test]
    fn of_two_that_begin_at_once_the_lower_id_leads() {
        let side = |first: bool| loop {
            let side = Side::new(true);
            if (side.punches.local.to_bytes() < side.peer.to_bytes()) == first {
                return side;
            }
        };
        for first in [true, false] {
            let mut side = side(first);
            let (attempt, _) = side.led(Duration::ZERO).unwrap();
            assert!(side.punches.is_running(&side.peer, attempt));
            // The peer answered, and had begun itself before it did.
            side.agree(attempt, Mapping::EndpointIndependent);
            let on = ConnectionId::new_unchecked(1);
            let other = side.punches.accept(side.peer, on, false, side.now);
            assert_eq!(other.is_none(), first);
            assert_eq!(side.punches.is_running(&side.peer, attempt), first);
        }
        let mut side = side(true);
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        side.agree(attempt, Mapping::EndpointIndependent);
        side.now += CROSSING;
        let on = ConnectionId::new_unchecked(1);
        assert!(side.punches.accept(side.peer, on, false, side.now).is_some(), "it began anew");
    }

    #[test]
    fn the_side_that_dialled_leads_at_once_and_the_other_after_a_while() {
        let mut dialled = Side::new(true);
        assert!(dialled.led(Duration::ZERO).is_some());
        let mut other = Side::new(false);
        assert!(other.led(GRACE / 2).is_none());
        assert!(other.led(GRACE).is_some());
    }

    #[test]
    fn rounds_follow_and_never_end_while_relayed() {
        let mut side = Side::new(true);
        let mut begun = Vec::new();
        for _ in 0..10 {
            let (attempt, _) = side.led(Duration::from_secs(600)).unwrap();
            begun.push(side.now);
            side.agree(attempt, Mapping::EndpointIndependent);
        }
        let waits: Vec<_> = begun.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64().round() as u64).collect();
        assert_eq!(waits, [3, 3, 13, 33, 63, 123, 303, 303, 303]);
        let rounds = side.rounds();
        assert_eq!(rounds.iter().map(|round| round.round).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
        assert!(rounds[0].outcome.as_ref().unwrap().is_err() && rounds[9].outcome.is_none());
    }

    #[test]
    fn what_cannot_work_is_tried_once_and_then_rarely() {
        let mut side = Side::new(true);
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        side.agree(attempt, Mapping::EndpointDependent);
        let begun = side.now;
        side.led(Duration::from_secs(600)).unwrap();
        assert_eq!((side.now - begun).as_secs(), (WAITS[HOPELESS_WAIT] + ROUND).as_secs());
        let Some(Err(cause)) = side.rounds()[0].outcome.clone() else { panic!("no cause") };
        assert!(cause.contains("port mapping"), "{cause}");
    }

    #[test]
    fn a_direct_connection_ends_it_and_its_loss_begins_it_anew() {
        let mut side = Side::new(true);
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        side.agree(attempt, Mapping::Unknown);
        let Some(Do::Dial { dials, .. }) = side.punches.pop_due(side.now) else { panic!("no dial") };
        let direct = ConnectionId::new_unchecked(2);
        let address: Multiaddr = "/ip4/192.0.2.2/udp/4001/quic-v1".parse().unwrap();
        side.punches.direct_up(side.peer, direct, &address, false, side.now);
        assert!(dials.token.is_cancelled());
        assert_eq!(side.punches.next(), None);
        assert_eq!(side.rounds()[0].outcome, Some(Ok(address)));
        side.punches.down(side.peer, direct, side.now);
        assert!(side.led(LOSS_WAIT / 2).is_none());
        assert!(side.led(LOSS_WAIT).is_some());
        side.punches.down(side.peer, ConnectionId::new_unchecked(1), side.now);
        assert!(side.led(Duration::from_secs(600)).is_none());
    }

    #[test]
    fn a_direct_connection_that_is_doubted_is_none() {
        let mut side = Side::new(false);
        let (circuit, direct) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        let address: Multiaddr = "/ip4/192.0.2.2/udp/4001/quic-v1".parse().unwrap();
        side.punches.direct_up(side.peer, direct, &address, false, side.now);
        assert!(side.punches.accept(side.peer, circuit, false, side.now).is_none(), "the peer may not know of it yet");
        side.punches.doubt(side.peer, direct, true, side.now);
        assert!(side.punches.next().is_some(), "begins anew");
        side.punches.doubt(side.peer, direct, false, side.now);
        assert_eq!(side.punches.next(), None);
        side.now += KNOWN;
        assert!(side.punches.accept(side.peer, circuit, false, side.now).is_some(), "the peer lost it");
    }

    #[test]
    fn a_change_starts_over() {
        let mut side = Side::new(true);
        for _ in 0..5 {
            let (attempt, _) = side.led(Duration::from_secs(600)).unwrap();
            side.agree(attempt, Mapping::Unknown);
        }
        side.led(Duration::ZERO);
        side.now += ROUND;
        assert!(side.led(CHANGE_WAIT).is_none());
        side.punches.changed(side.now);
        let (attempt, _) = side.led(CHANGE_WAIT).unwrap();
        side.agree(attempt, Mapping::Unknown);
        assert_eq!(side.rounds().last().unwrap().round, 1);
        // While a round is under way.
        side.punches.changed(side.now);
        let begun = side.now;
        side.led(ROUND * 2).unwrap();
        assert!(side.now - begun < ROUND + CHANGE_WAIT);
        assert_eq!(side.rounds().last().unwrap().round, 1);
    }

    #[test]
    fn a_side_that_learns_its_address_says_so_at_once() {
        let mut side = Side::new(true);
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        side.punches.begin(&side.peer, attempt, Offer::default(), &[], side.now);
        side.punches.changed(side.now);
        assert!(side.led(LEAST_WAIT).is_some());
    }

    #[test]
    fn the_lead_is_kept_over_a_restart() {
        for lower in [true, false] {
            let mut side = Side::new(true);
            while (side.punches.local.to_bytes() < side.peer.to_bytes()) != lower {
                side = Side::new(true);
            }
            let (attempt, _) = side.led(Duration::ZERO).unwrap();
            side.punches.begin(&side.peer, attempt, Offer::default(), &[], side.now);
            side.punches.changed(side.now);
            // The peer follows what was given up, so nobody would dial.
            let answered = side.punches.accept(side.peer, ConnectionId::new_unchecked(1), false, side.now);
            assert_eq!(answered.is_none(), lower);
            assert_eq!(side.led(LEAST_WAIT).is_some(), lower);
        }
    }

    #[test]
    fn a_follower_that_learns_its_address_leads() {
        for lower in [true, false] {
            let mut side = Side::new(false);
            let mut other = Side::new(true);
            while (side.punches.local.to_bytes() < side.peer.to_bytes()) != lower {
                side = Side::new(false);
            }
            let on = ConnectionId::new_unchecked(1);
            let attempt = side.punches.accept(side.peer, on, false, side.now).unwrap();
            side.punches.begin(&side.peer, attempt, Offer::default(), &[], side.now);
            side.punches.heard(side.peer, attempt, What::Offer(offer(2, Mapping::None), None), side.now);
            side.punches.changed(side.now);
            assert!(side.led(LEAST_WAIT).is_some());
            // The other side leads a round that cannot come to anything.
            let (attempt, _) = other.led(Duration::ZERO).unwrap();
            other.punches.begin(&other.peer, attempt, offer(2, Mapping::None), &[], other.now);
            other.punches.heard(other.peer, attempt, What::Offer(Offer::default(), None), other.now);
            assert!(other.punches.accept(other.peer, on, false, other.now).is_some());
        }
    }

    #[test]
    fn of_two_that_began_at_once_the_lower_leads() {
        for lower in [true, false] {
            let mut side = Side::new(true);
            while (side.punches.local.to_bytes() < side.peer.to_bytes()) != lower {
                side = Side::new(true);
            }
            let (attempt, _) = side.led(Duration::ZERO).unwrap();
            side.punches.begin(&side.peer, attempt, offer(1, Mapping::Unknown), &[], side.now);
            let answered = side.punches.accept(side.peer, ConnectionId::new_unchecked(1), false, side.now);
            assert_eq!(answered.is_none(), lower);
        }
    }

    #[test]
    fn libp2p_alone_is_asked_by_the_side_that_did_not_dial() {
        for dialled in [true, false] {
            let mut side = Side::new(dialled);
            let (attempt, stock) = side.led(GRACE).unwrap();
            assert!(!stock);
            side.punches.refused(&side.peer, attempt, true, String::new(), side.now);
            assert_eq!(side.led(Duration::from_secs(600)).map(|(_, stock)| stock), (!dialled).then_some(true));
            let mut side = Side::new(dialled);
            side.punches.speaks(&side.peer, Speech::Stock, side.now);
            assert_eq!(side.led(Duration::ZERO).map(|(_, stock)| stock), (!dialled).then_some(true));
        }
    }

    #[test]
    fn strangers_are_answered_but_few_at_once_and_never_asked() {
        let now = Instant::now();
        let mut punches = Punches::new(PeerId::random(), now);
        let mut answered = 0;
        for n in 0..2 * MAX_STRANGERS {
            let peer = PeerId::random();
            punches.circuit_up(peer, circuit(n, false), Interest::default(), now);
            answered += usize::from(punches.accept(peer, ConnectionId::new_unchecked(n), false, now).is_some());
        }
        assert_eq!(answered, MAX_STRANGERS);
        // Not on a connection that is not relayed.
        assert!(punches.accept(PeerId::random(), ConnectionId::new_unchecked(99), false, now).is_none());
        let mut later = now;
        while let Some(at) = punches.next() {
            later = later.max(at);
            assert!(!matches!(punches.pop_due(later), Some(Do::Lead { .. })));
        }
        assert!(later < now + Duration::from_secs(60));
    }

    #[test]
    fn a_stranger_that_begins_again_and_again_is_answered_at_a_rate() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut punches = Punches::new(PeerId::random(), now);
        punches.circuit_up(peer, circuit(1, false), Interest::default(), now);
        let mut answered = |seconds: u64, times: u32| {
            let at = now + Duration::from_secs(seconds);
            (0..times).filter(|_| punches.accept(peer, ConnectionId::new_unchecked(1), false, at).is_some()).count()
        };
        assert_eq!(answered(0, 100), STRANGERS_BURST as usize);
        assert_eq!(answered(60, 100), 8);
        let mut side = Side::new(false);
        for _ in 0..100 {
            assert!(side.punches.accept(side.peer, ConnectionId::new_unchecked(1), false, side.now).is_some());
        }
    }
}
