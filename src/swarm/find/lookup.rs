//! Searches under way, and what came of those just ended.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{QueryId, QueryStats},
};
use tokio::{sync::oneshot, time::Instant};

use super::MAX_ADDRESSES;
use crate::{
    node::{Found, NodeError},
    swarm::{pending::Waiter, timers::Timers},
};

/// Searches at once: each asks a few servers at a time.
const MAX_LOOKUPS: usize = 32;
/// Addresses taken in one search, of so many answers: whoever answers first, and
/// may lie, leaves room for the others.
const MAX_FOUND: usize = 8 * MAX_ADDRESSES;
/// Callers that wait for one search.
const MAX_CALLERS: usize = 64;
/// Longest that a search may take. Most end after one or two round trips; what
/// is not found by then is with servers that do not answer.
const DEADLINE: Duration = Duration::from_secs(6);
/// A peer is not looked for again sooner than this after a search that ended.
const REST: Duration = Duration::from_secs(1);
/// How long addresses found are good without another search.
const FRESH: Duration = Duration::from_secs(20);
/// Results kept; the oldest goes.
const MAX_RESULTS: usize = 256;

/// Time is passed in.
#[derive(Debug)]
pub(in crate::swarm) struct Lookups {
    running: HashMap<PeerId, Lookup>,
    queries: HashMap<QueryId, PeerId>,
    deadlines: Timers<PeerId>,
    results: HashMap<PeerId, Ended>,
}

/// A search.
#[derive(Debug)]
pub(in crate::swarm) struct Lookup {
    query: QueryId,
    begun: Instant,
    /// Servers known at the beginning.
    known: HashSet<PeerId>,
    /// Round trips, one after the other, up to the latest answer.
    level: u32,
    /// Servers asked, and those that answered.
    pub(in crate::swarm) asked: u32,
    /// See [`Self::asked`].
    pub(in crate::swarm) answered: u32,
    /// The same when the first address came.
    hops: u32,
    /// Addresses found so far.
    pub(in crate::swarm) found: Vec<Multiaddr>,
    /// Callers that want the addresses.
    pub(in crate::swarm) finders: Vec<oneshot::Sender<Result<Found, NodeError>>>,
    /// Callers that want a connection.
    pub(in crate::swarm) waiters: Vec<Waiter>,
    /// Why the addresses known before did not do.
    pub(in crate::swarm) failure: Option<NodeError>,
}

#[derive(Debug)]
struct Ended {
    at: Instant,
    asked: u32,
    answered: u32,
    found: Vec<Multiaddr>,
}

/// Whether to search for a peer.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Verdict {
    /// Search.
    Begin,
    /// A search is under way.
    Running,
    /// One ended a moment ago; the numbers are those of its servers that were
    /// asked and that answered.
    Recent(u32, u32),
    /// Too many are under way.
    Full,
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self { running: HashMap::new(), queries: HashMap::new(), deadlines: Timers::new(), results: HashMap::new() }
    }

    /// Whether to begin a search now.
    pub(in crate::swarm) fn verdict(&self, peer: &PeerId, now: Instant) -> Verdict {
        if self.running.contains_key(peer) {
            return Verdict::Running;
        }
        match self.results.get(peer) {
            Some(ended) if now.saturating_duration_since(ended.at) < REST => {
                Verdict::Recent(ended.asked, ended.answered)
            }
            _ if self.running.len() >= MAX_LOOKUPS => Verdict::Full,
            _ => Verdict::Begin,
        }
    }

    /// A search has begun.
    pub(in crate::swarm) fn begin(&mut self, peer: PeerId, query: QueryId, known: Vec<PeerId>, now: Instant) {
        let lookup = Lookup {
            query,
            begun: now,
            known: known.into_iter().collect(),
            level: 0,
            asked: 0,
            answered: 0,
            hops: 0,
            found: Vec::new(),
            finders: Vec::new(),
            waiters: Vec::new(),
            failure: None,
        };
        self.running.insert(peer, lookup);
        self.queries.insert(query, peer);
        self.deadlines.set(peer, now + DEADLINE);
    }

    /// The search for a peer, if one is under way.
    pub(in crate::swarm) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Lookup> {
        self.running.get_mut(peer)
    }

    /// The peer that a query looks for.
    pub(in crate::swarm) fn peer(&self, query: QueryId) -> Option<PeerId> {
        self.queries.get(&query).copied()
    }

    /// Addresses found a moment ago.
    pub(in crate::swarm) fn fresh(&self, peer: &PeerId, now: Instant) -> Vec<Multiaddr> {
        let running = self.running.get(peer).map(|lookup| &lookup.found);
        let ended = self.results.get(peer).filter(|ended| now.saturating_duration_since(ended.at) < FRESH);
        running.or(ended.map(|ended| &ended.found)).cloned().unwrap_or_default()
    }

    /// Callers that wait for a connection to the peer, taken away.
    pub(in crate::swarm) fn take_waiters(&mut self, peer: &PeerId) -> Vec<Waiter> {
        self.running.get_mut(peer).map(|lookup| std::mem::take(&mut lookup.waiters)).unwrap_or_default()
    }

    /// A search ended.
    pub(in crate::swarm) fn end(&mut self, query: QueryId, now: Instant) -> Option<(PeerId, Lookup)> {
        let peer = self.queries.remove(&query)?;
        self.deadlines.clear(&peer);
        let lookup = self.running.remove(&peer)?;
        if self.results.len() >= MAX_RESULTS
            && let Some(oldest) = self.results.iter().min_by_key(|(_, ended)| ended.at).map(|(peer, _)| *peer)
        {
            self.results.remove(&oldest);
        }
        let Lookup { asked, answered, ref found, .. } = lookup;
        self.results.insert(peer, Ended { at: now, asked, answered, found: found.clone() });
        Some((peer, lookup))
    }

    /// When a search has taken too long.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// A search that has taken too long. It ends when its query does.
    pub(in crate::swarm) fn pop_overdue(&mut self, now: Instant) -> Option<QueryId> {
        let peer = self.deadlines.pop_due(now)?;
        self.running.get(&peer).map(|lookup| lookup.query)
    }
}

impl Lookup {
    /// Whether one more caller may wait.
    pub(in crate::swarm) fn has_room(&self) -> bool {
        let finders = self.finders.iter().filter(|finder| !finder.is_closed()).count();
        finders + self.waiters.iter().filter(|waiter| !waiter.is_gone()).count() < MAX_CALLERS
    }

    /// Forgets callers that went away.
    pub(in crate::swarm) fn tidy(&mut self) {
        self.finders.retain(|finder| !finder.is_closed());
        self.waiters.retain(|waiter| !waiter.is_gone());
    }

    /// A server answered; returns the addresses that are new.
    pub(in crate::swarm) fn answer(
        &mut self,
        source: Option<PeerId>,
        stats: &QueryStats,
        addresses: Vec<Multiaddr>,
    ) -> Vec<Multiaddr> {
        let level = if source.is_none_or(|source| self.known.contains(&source)) { 1 } else { self.level + 1 };
        self.level = self.level.max(level);
        self.count(stats);
        let room = MAX_FOUND.saturating_sub(self.found.len()).min(MAX_ADDRESSES);
        let new: Vec<_> = addresses.into_iter().filter(|address| !self.found.contains(address)).take(room).collect();
        if self.found.is_empty() && !new.is_empty() {
            self.hops = level;
        }
        self.found.extend(new.iter().cloned());
        new
    }

    /// Takes over the counters of the query.
    pub(in crate::swarm) fn count(&mut self, stats: &QueryStats) {
        self.asked = self.asked.max(stats.num_requests());
        self.answered = self.answered.max(stats.num_successes());
    }

    /// The result so far; `known` are addresses that are known anyway.
    pub(in crate::swarm) fn result(&self, peer: PeerId, now: Instant) -> Found {
        Found {
            peer,
            addresses: Vec::new(),
            asked: self.asked,
            answered: self.answered,
            hops: self.hops,
            took: now.saturating_duration_since(self.begun),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::find::tests::queries;

    fn addr(n: usize) -> Multiaddr {
        format!("/ip4/1.2.3.4/tcp/{}", n + 1).parse().unwrap()
    }

    #[test]
    fn a_peer_is_searched_once_at_a_time_and_not_again_at_once() {
        let (mut query, now, peer) = (queries(), Instant::now(), PeerId::random());
        let mut lookups = Lookups::new();
        assert_eq!(lookups.verdict(&peer, now), Verdict::Begin);
        let id = query();
        lookups.begin(peer, id, Vec::new(), now);
        assert_eq!(lookups.verdict(&peer, now), Verdict::Running);
        assert_eq!((lookups.next(), lookups.pop_overdue(now)), (Some(now + DEADLINE), None));
        assert_eq!(lookups.pop_overdue(now + DEADLINE), Some(id));
        assert!(lookups.end(id, now).is_some() && lookups.end(id, now).is_none());
        assert_eq!(lookups.verdict(&peer, now), Verdict::Recent(0, 0));
        assert_eq!(lookups.verdict(&peer, now + REST), Verdict::Begin);
    }

    #[test]
    fn searches_results_and_addresses_are_bounded() {
        let (mut query, now) = (queries(), Instant::now());
        let mut lookups = Lookups::new();
        for _ in 0..MAX_LOOKUPS {
            lookups.begin(PeerId::random(), query(), Vec::new(), now);
        }
        assert_eq!(lookups.verdict(&PeerId::random(), now), Verdict::Full);
        for _ in 0..2 * MAX_RESULTS {
            let id = query();
            lookups.begin(PeerId::random(), id, Vec::new(), now);
            lookups.end(id, now);
        }
        assert_eq!(lookups.results.len(), MAX_RESULTS);
        let (id, peer) = (query(), PeerId::random());
        lookups.begin(peer, id, Vec::new(), now);
        let lookup = lookups.get_mut(&peer).unwrap();
        let mut answer = |from: usize| {
            let all = (from..from + 50).map(addr).collect();
            lookup.answer(None, &QueryStats::empty(), all).len()
        };
        for liar in 0..MAX_FOUND / MAX_ADDRESSES {
            assert_eq!(answer(50 * liar), MAX_ADDRESSES);
        }
        assert_eq!(answer(10_000), 0);
    }

    #[test]
    fn hops_are_round_trips_one_after_the_other() {
        let (mut query, now, peer) = (queries(), Instant::now(), PeerId::random());
        let (near, far) = (PeerId::random(), PeerId::random());
        let mut lookups = Lookups::new();
        lookups.begin(peer, query(), vec![near], now);
        let lookup = lookups.get_mut(&peer).unwrap();
        assert!(lookup.answer(Some(near), &QueryStats::empty(), Vec::new()).is_empty());
        assert_eq!(lookup.answer(Some(far), &QueryStats::empty(), vec![addr(1)]), [addr(1)]);
        assert!(lookup.answer(Some(near), &QueryStats::empty(), vec![addr(1)]).is_empty());
        assert_eq!(lookup.result(peer, now).hops, 2);
    }
}
