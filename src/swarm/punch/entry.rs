//! One peer that is relayed: when to exchange what with it. Time is passed in.

use std::{collections::VecDeque, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::debug;

use super::{
    attempt::{Attempt, Dials, Record},
    exchange::{What, is_unsupported},
    plan::{QUICK_ROUNDS, Terms},
};
use crate::{node::PunchView, wire::punch::Offer};

/// Rounds kept of a peer.
const MAX_HISTORY: usize = 16;
/// Waits between rounds after the quick ones.
pub(super) const WAITS: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
];
/// The first of those where only a change can help.
pub(super) const HOPELESS_WAIT: usize = 3;
/// How long the side that did not dial waits for the other to lead. Twice a
/// slow relay's round trip.
pub(super) const GRACE: Duration = Duration::from_millis(1500);
/// So long after an exchange began here, one of the peer's may have begun
/// before it heard of that. Twice a slow relay's round trip.
pub(super) const CROSSING: Duration = Duration::from_millis(1500);
/// Between the rounds of one peer, whatever happens.
pub(super) const LEAST_WAIT: Duration = Duration::from_millis(50);
/// From one change that starts rounds over to the next.
pub(super) const CHANGE_WAIT: Duration = Duration::from_secs(1);
/// The same where a direct connection was lost: one that is lost again at once
/// is no reason to hurry.
pub(super) const LOSS_WAIT: Duration = Duration::from_secs(5);
/// A direct connection is known to both sides after this.
pub(super) const KNOWN: Duration = Duration::from_secs(2);

/// One peer, and the rounds with it.
#[derive(Debug)]
pub(super) struct Entry {
    /// Bounded by the limit per peer, as the next.
    circuits: Vec<Circuit>,
    direct: Vec<Direct>,
    /// Connections of either kind that may be dead.
    doubted: Vec<ConnectionId>,
    pub(super) interest: Interest,
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
    /// What the peer brought last.
    pub(super) theirs: Option<Offer>,
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

impl Entry {
    /// With the connections that are not relayed.
    pub(super) fn new(direct: impl IntoIterator<Item = ConnectionId>, now: Instant) -> Self {
        Self {
            circuits: Vec::new(),
            direct: direct.into_iter().map(|id| Direct { id, since: now }).collect(),
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

    /// A relayed connection is up.
    pub(super) fn circuit_up(&mut self, circuit: Circuit, interest: Interest, now: Instant) {
        if self.is_idle() {
            // It may have been changed for another version.
            self.speech = Speech::Unknown;
        }
        self.circuits.push(circuit);
        self.interest = interest;
        self.start(now);
    }

    /// Another connection is up.
    pub(super) fn direct_up(&mut self, id: ConnectionId, address: &Multiaddr, near: bool, now: Instant) {
        self.direct.push(Direct { id, since: now });
        self.next = None;
        if let Some(attempt) = self.attempt.take() {
            self.remember(attempt.end(Ok(address.clone()), near, now));
        }
    }

    /// A connection is gone.
    pub(super) fn down(&mut self, id: ConnectionId, now: Instant) {
        let before = self.is_relayed();
        self.circuits.retain(|circuit| circuit.id != id);
        self.direct.retain(|direct| direct.id != id);
        self.doubted.retain(|doubted| *doubted != id);
        if self.circuits.is_empty() {
            self.next = None;
        } else if !before {
            self.lost(now);
        }
    }

    /// A connection may be dead, or is alive after all.
    pub(super) fn doubt(&mut self, id: ConnectionId, doubted: bool, now: Instant) {
        let before = self.is_relayed();
        self.doubted.retain(|other| *other != id);
        if doubted && self.has(id) {
            self.doubted.push(id);
        }
        match (before, self.is_relayed()) {
            (false, true) => self.lost(now),
            (true, false) => self.next = None,
            _ => {}
        }
    }

    /// What the peer is to this node became different.
    pub(super) fn set_interest(&mut self, interest: Interest, now: Instant) {
        let before = std::mem::replace(&mut self.interest, interest);
        // A trusted one is told more than before, and may tell more.
        if interest.wanted && (!before.wanted || interest.trusted && !before.trusted) {
            self.start(now);
        } else if !interest.wanted {
            self.next = None;
        }
    }

    /// What the peer says that it speaks.
    pub(super) fn speaks(&mut self, speech: Speech, now: Instant) {
        let before = std::mem::replace(&mut self.speech, speech);
        // Some begin to speak it when they have learnt their own address.
        let news = matches!(before, Speech::Unknown | Speech::Neither) && speech == Speech::Stock;
        if news && self.attempt.is_none() {
            self.start(now);
            let earliest = self.last_begun.map_or(now, |begun| begun + CHANGE_WAIT);
            self.next = self.next.map(|next| next.max(earliest));
        }
    }

    /// Whether an exchange that the peer begins there may be answered. `first`:
    /// this side leads where both begin at once. Were it to follow, too, both
    /// would wait for the other to dial.
    pub(super) fn may_follow(&self, on: ConnectionId, stock: bool, first: bool, now: Instant) -> bool {
        let relayed = self.circuits.iter().any(|circuit| circuit.id == on);
        relayed && self.is_direct_lost(now) && !(first && !stock && self.is_crossed(now))
    }

    /// Answers an exchange that the peer began.
    pub(super) fn follow(&mut self, id: u64, stock: bool, now: Instant) {
        self.speech = if stock { Speech::Stock } else { Speech::Ours };
        if let Some(replaced) = self.attempt.take()
            && replaced.plan.is_some()
        {
            self.remember(replaced.end(Err("the peer began anew".to_owned()), false, now));
        }
        self.begin(Attempt::new(id, false, stock, self.round, now), now);
    }

    /// An exchange could not begin.
    pub(super) fn refused(&mut self, attempt: u64, unsupported: bool, cause: String, now: Instant) {
        let Some(stock) = self.running(attempt).map(|running| running.stock) else { return };
        if !unsupported {
            return self.fail(cause, now);
        }
        self.attempt = None;
        // One of the two protocols is not spoken; perhaps the other is.
        self.speech = if stock { Speech::Neither } else { Speech::Stock };
        self.start(now);
    }

    /// An exchange with this peer came further.
    pub(super) fn heard(&mut self, peer: PeerId, attempt: u64, what: What, now: Instant) {
        let (Interest { trusted, wanted }, loopback) = (self.interest, self.is_loopback());
        let Some(running) = self.attempt.as_mut().filter(|running| running.id == attempt) else { return };
        match what {
            What::Offer(theirs, rtt) => {
                let terms = Terms { leader: running.leader, round: running.round, trusted, wanted, loopback, rtt };
                self.theirs = Some(theirs.clone());
                if running.leader && !running.stock {
                    self.speech = Speech::Ours;
                }
                running.heard(theirs, terms, now);
            }
            What::Synced => running.synced(now),
            What::Broken(error) if running.plan.is_some() => {
                // What was agreed on goes on without.
                debug!(%peer, %error, "an exchange broke off");
            }
            What::Broken(error) => self.refused(attempt, is_unsupported(&error), error.to_string(), now),
        }
    }

    /// The round that is under way.
    pub(super) fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    /// The same if it has this number.
    pub(super) fn running(&mut self, attempt: u64) -> Option<&mut Attempt> {
        self.attempt.as_mut().filter(|running| running.id == attempt)
    }

    /// When a round began last.
    pub(super) fn last_begun(&self) -> Option<Instant> {
        self.last_begun
    }

    /// When the next round is to be led.
    pub(super) fn next_round(&self) -> Option<Instant> {
        self.next
    }

    /// When [`Self::due`] has something next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.attempt.as_ref().map(Attempt::next).or(self.next)
    }

    /// Rounds, oldest first.
    pub(super) fn rounds(&self, now: Instant) -> Vec<PunchView> {
        let running = self.attempt.iter().map(Attempt::record);
        self.history.iter().map(|record| record.view(now)).chain(running.map(|record| record.view(now))).collect()
    }

    /// Whether it is not connected.
    pub(super) fn is_idle(&self) -> bool {
        self.circuits.is_empty() && self.direct.is_empty()
    }

    /// The youngest first, for the peer was alive when it was made; then each
    /// in turn. In libp2p's protocol the side leads that did not dial, and is
    /// not answered on other connections.
    fn circuit(&self) -> Option<&Circuit> {
        let stock = self.speech == Speech::Stock;
        let doubted = self.circuits.iter().all(|circuit| self.is_doubted(circuit.id));
        let works = |circuit: &&Circuit| doubted || !self.is_doubted(circuit.id);
        let fitting = || self.circuits.iter().rev().filter(works).filter(|circuit| !stock || !circuit.dialled);
        fitting().cycle().nth(self.round.saturating_sub(1) as usize % fitting().count().max(1))
    }

    /// Whether it is relayed by this host.
    pub(super) fn is_loopback(&self) -> bool {
        self.circuits.iter().any(|circuit| circuit.loopback)
    }

    fn has_dialled(&self) -> bool {
        self.circuits.iter().any(|circuit| circuit.dialled)
    }

    fn has_accepted(&self) -> bool {
        self.circuits.iter().any(|circuit| !circuit.dialled)
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
        if self.attempt.is_some() {
            return;
        }
        let wait = match self.speech {
            Speech::Unknown | Speech::Ours if self.has_dialled() => Duration::ZERO,
            Speech::Unknown | Speech::Ours => GRACE,
            Speech::Stock if self.has_accepted() => Duration::ZERO,
            Speech::Stock | Speech::Neither => return,
        };
        self.next = Some(now + wait);
    }

    /// This node's own addresses, its NAT or its network became different.
    pub(super) fn changed(&mut self, now: Instant) {
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

    /// What is to be done with this peer now; an exchange gets this number.
    pub(super) fn due(&mut self, peer: PeerId, id: u64, now: Instant) -> Option<Do> {
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
}
