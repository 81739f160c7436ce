//! When to tell the servers where this node can be reached.

use std::{collections::HashSet, time::Duration};

use libp2p::{PeerId, kad::QueryId};
use tokio::time::Instant;

/// Changes come in swarms: an interface has several addresses, a relay several
/// transports.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// The first time, and after a server came back, waiting would only cost.
const SOON: Duration = Duration::from_millis(50);
/// How often it is told again: servers come, go and forget.
const RENEW: Duration = Duration::from_secs(10 * 60);
/// When servers that were asked who is nearest are not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// First and longest wait after nobody took it.
const RETRY: Duration = Duration::from_secs(2);
/// See [`RETRY`].
const LONGEST_RETRY: Duration = Duration::from_secs(120);

/// Time and chance are passed in: `jitter` is between 0 and 1.
#[derive(Debug)]
pub(in crate::swarm) struct Publisher {
    due: Option<Instant>,
    running: Option<Running>,
    failures: u32,
    /// When servers took it last, and how many.
    done: Option<(Instant, u32)>,
}

/// A round: the nearest servers are looked for, and each that is found is told.
#[derive(Debug)]
struct Running {
    /// None once it ended.
    query: Option<QueryId>,
    /// When to stop looking for servers; none once that was said.
    until: Option<Instant>,
    /// What is told changed meanwhile.
    stale: bool,
    /// Servers told, or being told.
    servers: HashSet<PeerId>,
    /// Those being told.
    open: u32,
    /// Those that took it.
    took: u32,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Step {
    /// Tell it.
    Publish,
    /// Tell it those found so far.
    Hurry(QueryId),
}

impl Publisher {
    pub(super) fn new() -> Self {
        Self { due: None, running: None, failures: 0, done: None }
    }

    /// This node may be reached elsewhere now.
    pub(in crate::swarm) fn changed(&mut self, now: Instant) {
        let wait = if self.done.is_some() { DEBOUNCE } else { SOON };
        match &mut self.running {
            Some(running) => running.stale = true,
            None => self.no_later(now + wait),
        }
    }

    /// There is a server that may not know it.
    pub(in crate::swarm) fn server_came(&mut self, now: Instant) {
        self.failures = 0;
        match &mut self.running {
            Some(running) => running.stale = true,
            None => self.no_later(now + SOON),
        }
    }

    /// The nearest servers are being looked for.
    pub(in crate::swarm) fn started(&mut self, query: QueryId, now: Instant) {
        self.due = None;
        let (query, until) = (Some(query), Some(now + PATIENCE));
        self.running = Some(Running { query, until, stale: false, servers: HashSet::new(), open: 0, took: 0 });
    }

    /// Whether to tell this server: not one that was told in this round.
    pub(in crate::swarm) fn telling(&mut self, server: PeerId) -> bool {
        let Some(running) = &mut self.running else { return false };
        let new = running.servers.insert(server);
        running.open += u32::from(new);
        new
    }

    /// A server took it, or did not.
    pub(in crate::swarm) fn told(&mut self, took: bool, now: Instant, jitter: f64) {
        let Some(running) = &mut self.running else { return };
        running.open = running.open.saturating_sub(1);
        if took {
            running.took += 1;
            self.done = Some((now, running.took));
        }
        self.end_round(now, jitter);
    }

    /// The nearest servers are known; whether that was asked for here. Call it
    /// after [`Self::telling`] those.
    pub(in crate::swarm) fn searched(&mut self, query: QueryId, now: Instant, jitter: f64) {
        let Some(running) = self.running.as_mut().filter(|running| running.query == Some(query)) else { return };
        (running.query, running.until) = (None, None);
        self.end_round(now, jitter);
    }

    /// Whether this search was begun here.
    pub(in crate::swarm) fn is_mine(&self, query: QueryId) -> bool {
        self.running.as_ref().is_some_and(|running| running.query == Some(query))
    }

    fn end_round(&mut self, now: Instant, jitter: f64) {
        let over = |running: &mut Running| running.query.is_none() && running.open == 0;
        let Some(Running { took, stale, .. }) = self.running.take_if(over) else { return };
        let wait = if stale {
            DEBOUNCE
        } else if took > 0 {
            RENEW.mul_f64(0.9 + jitter / 5.0)
        } else {
            RETRY.saturating_mul(1 << self.failures.min(6)).min(LONGEST_RETRY).mul_f64(0.75 + jitter / 2.0)
        };
        self.failures = if took > 0 { 0 } else { self.failures.saturating_add(1) };
        self.due = Some(now + wait);
    }

    /// There is nothing to tell, or nobody to tell it.
    pub(in crate::swarm) fn nothing_to_do(&mut self) {
        self.due = None;
    }

    /// When servers took it last, and how many.
    pub(in crate::swarm) fn done(&self) -> Option<(Instant, u32)> {
        self.done
    }

    /// When [`Self::step`] has something next.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        match &self.running {
            Some(running) => running.until,
            None => self.due,
        }
    }

    /// What to do, if anything.
    pub(in crate::swarm) fn step(&mut self, now: Instant) -> Option<Step> {
        if let Some(running) = &mut self.running {
            return running.until.take_if(|until| *until <= now).and(running.query).map(Step::Hurry);
        }
        self.due.take_if(|due| *due <= now).map(|_| Step::Publish)
    }

    fn no_later(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::find::tests::queries;

    /// A round in which so many servers take it.
    fn round(publisher: &mut Publisher, query: QueryId, servers: u32, now: Instant) {
        publisher.started(query, now);
        assert!(publisher.is_mine(query));
        for _ in 0..servers {
            assert!(publisher.telling(PeerId::random()));
        }
        publisher.searched(query, now, 0.5);
        (0..servers).for_each(|_| publisher.told(true, now, 0.5));
    }

    #[test]
    fn the_first_time_is_soon_and_later_changes_are_gathered() {
        let (mut query, now) = (queries(), Instant::now());
        let mut publisher = Publisher::new();
        publisher.changed(now);
        assert_eq!(publisher.next(), Some(now + SOON));
        assert_eq!(publisher.step(now), None);
        assert_eq!(publisher.step(now + SOON), Some(Step::Publish));
        round(&mut publisher, query(), 2, now);
        assert_eq!(publisher.next(), Some(now + RENEW));
        publisher.changed(now);
        publisher.changed(now + DEBOUNCE / 2);
        assert_eq!(publisher.next(), Some(now + DEBOUNCE));
        assert_eq!(publisher.done(), Some((now, 2)));
    }

    #[test]
    fn slow_servers_are_not_waited_for() {
        let (mut query, now) = (queries(), Instant::now());
        let mut publisher = Publisher::new();
        let running = query();
        publisher.started(running, now);
        assert_eq!(publisher.step(now + PATIENCE), Some(Step::Hurry(running)));
        assert_eq!((publisher.step(now + PATIENCE), publisher.next()), (None, None));
    }

    #[test]
    fn failures_wait_longer_and_a_server_that_comes_starts_over() {
        let (mut query, now) = (queries(), Instant::now());
        let mut publisher = Publisher::new();
        for wait in [2, 4, 8, 16, 32, 64, 120, 120] {
            let running = query();
            publisher.started(running, now);
            assert!(publisher.telling(PeerId::random()));
            publisher.searched(running, now, 0.5);
            assert_eq!(publisher.next(), None);
            publisher.told(false, now, 0.5);
            assert_eq!(publisher.next(), Some(now + Duration::from_secs(wait)));
        }
        publisher.server_came(now);
        assert_eq!(publisher.next(), Some(now + SOON));
    }

    #[test]
    fn a_change_while_it_is_told_is_told_after_that() {
        let (mut query, now) = (queries(), Instant::now());
        let mut publisher = Publisher::new();
        let (running, server) = (query(), PeerId::random());
        publisher.started(running, now);
        assert!(publisher.telling(server) && !publisher.telling(server));
        publisher.changed(now);
        publisher.searched(query(), now, 0.5);
        publisher.searched(running, now, 0.5);
        publisher.told(true, now, 0.5);
        assert_eq!(publisher.next(), Some(now + DEBOUNCE));
    }
}
