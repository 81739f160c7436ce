//! Peers that are relayed, and what is done to change that. Time is passed in.
//!
//! The side that dialled the relayed connection leads: it opens an exchange as
//! soon as that is up. The other side leads only if it hears nothing, or if
//! something changed there. A round that failed is followed by another, and
//! after a few of them by one from time to time, for as long as the peer is
//! relayed.

use std::{collections::HashMap, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::{
    attempt::Attempt,
    entry::{Circuit, Do, Entry, Interest, Speech},
    exchange::What,
    plan::Act,
};
use crate::{
    node::PunchView,
    swarm::{link::bucket::Bucket, timers::Timers},
    wire::punch::{Candidate, Offer},
};

/// Peers that are kept here; connected ones are bounded by their connections.
const MAX_PEERS: usize = 1024;
/// Dials of all rounds together.
const MAX_DIALS: usize = 512;
/// Rounds under way, together, with peers that this node has no interest in.
pub(super) const MAX_STRANGERS: usize = 4;
/// Rounds with those at once, and then one in the interval: they name the
/// addresses that packets are sent to, and may name anybody's.
pub(super) const STRANGERS_BURST: u32 = 8;
const STRANGERS_INTERVAL: Duration = Duration::from_secs(5);

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

    /// A relayed connection is up; `direct`: the others that there are, which
    /// are only told of here once there was a relayed one.
    pub(super) fn circuit_up(
        &mut self,
        peer: PeerId,
        circuit: Circuit,
        direct: impl IntoIterator<Item = ConnectionId>,
        interest: Interest,
        now: Instant,
    ) {
        self.make_room();
        let entry = self.peers.entry(peer).or_insert_with(|| Entry::new(direct, now));
        entry.circuit_up(circuit, interest, now);
        self.rearm(peer);
    }

    /// Another connection is up.
    pub(super) fn direct_up(&mut self, peer: PeerId, id: ConnectionId, address: &Multiaddr, near: bool, now: Instant) {
        self.update(peer, |entry| entry.direct_up(id, address, near, now));
    }

    /// A connection is gone.
    pub(in crate::swarm) fn down(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        self.update(peer, |entry| entry.down(id, now));
    }

    /// A connection may be dead, or is alive after all.
    pub(in crate::swarm) fn doubt(&mut self, peer: PeerId, id: ConnectionId, doubted: bool, now: Instant) {
        self.update(peer, |entry| entry.doubt(id, doubted, now));
    }

    /// What the peer is to this node became different.
    pub(super) fn set_interest(&mut self, peer: &PeerId, interest: Interest, now: Instant) {
        self.update(*peer, |entry| entry.set_interest(interest, now));
    }

    /// What the peer says that it speaks.
    pub(super) fn speaks(&mut self, peer: &PeerId, speech: Speech, now: Instant) {
        self.update(*peer, |entry| entry.speaks(speech, now));
    }

    /// This node's own addresses, its NAT or its network became different.
    pub(in crate::swarm) fn changed(&mut self, now: Instant) {
        for (peer, entry) in &mut self.peers {
            entry.changed(now);
            rearm(&mut self.timers, *peer, entry);
        }
    }

    /// Whether to answer an exchange that the peer began, and under which
    /// number.
    pub(super) fn accept(&mut self, peer: PeerId, on: ConnectionId, stock: bool, now: Instant) -> Option<u64> {
        let busy = self.peers.values().filter(|entry| !entry.interest.wanted && entry.attempt().is_some()).count();
        // Of two that begin at once, the lower id leads.
        let first = self.local.to_bytes() < peer.to_bytes();
        let entry = self.peers.get_mut(&peer)?;
        let stranger = !entry.interest.wanted;
        if !entry.may_follow(on, stock, first, now)
            || stranger && (busy >= MAX_STRANGERS || !self.strangers.take(now.into_std()))
        {
            return None;
        }
        self.last_attempt += 1;
        entry.follow(self.last_attempt, stock, now);
        self.rearm(peer);
        Some(self.last_attempt)
    }

    /// Whether an exchange has not been replaced by another.
    pub(super) fn is_running(&self, peer: &PeerId, attempt: u64) -> bool {
        self.attempt(peer).is_some_and(|running| running.id == attempt)
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
        self.update(*peer, |entry| entry.refused(attempt, unsupported, cause, now));
    }

    /// An exchange came further.
    pub(super) fn heard(&mut self, peer: PeerId, attempt: u64, what: What, now: Instant) {
        self.update(peer, |entry| entry.heard(peer, attempt, what, now));
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
        self.attempt(peer).map(|attempt| attempt.round)
    }

    pub(super) fn interest(&self, peer: &PeerId) -> Interest {
        self.peers.get(peer).map_or_else(Interest::default, |entry| entry.interest)
    }

    /// Rounds with a peer, oldest first.
    pub(super) fn rounds(&self, peer: &PeerId, now: Instant) -> Vec<PunchView> {
        self.peers.get(peer).map(|entry| entry.rounds(now)).unwrap_or_default()
    }

    /// How long until the next round.
    pub(super) fn next_try(&self, peer: &PeerId, now: Instant) -> Option<Duration> {
        self.peers.get(peer)?.next_round().map(|at| at.saturating_duration_since(now))
    }

    fn attempt(&self, peer: &PeerId) -> Option<&Attempt> {
        self.peers.get(peer)?.attempt()
    }

    fn running(&mut self, peer: &PeerId, attempt: u64) -> Option<&mut Attempt> {
        self.peers.get_mut(peer)?.running(attempt)
    }

    /// Tells a peer's entry of something, if there is one.
    fn update(&mut self, peer: PeerId, tell: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            tell(entry);
            rearm(&mut self.timers, peer, entry);
        }
    }

    fn rearm(&mut self, peer: PeerId) {
        self.update(peer, |_| ());
    }

    /// Forgets one peer that is not connected, if there are too many.
    fn make_room(&mut self) {
        if self.peers.len() < MAX_PEERS {
            return;
        }
        let idle = self.peers.iter().filter(|(_, entry)| entry.is_idle());
        if let Some(oldest) = idle.min_by_key(|(_, entry)| entry.last_begun()).map(|(peer, _)| *peer) {
            self.timers.clear(&oldest);
            self.peers.remove(&oldest);
        }
    }
}

fn rearm(timers: &mut Timers<PeerId>, peer: PeerId, entry: &Entry) {
    match entry.next() {
        Some(at) => timers.set(peer, at),
        None => timers.clear(&peer),
    }
}
