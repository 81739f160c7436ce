//! On which connection the outbound link to a peer runs.
//!
//! Connection ids are local, so two sides that chose separately could flap.
//! Therefore the side with the lower peer id is the *chooser*: it opens its
//! link on the best connection, and the other, the *follower*, on the
//! connection on which the chooser's link came in. A follower that has no link
//! opens one at once, for its first message should not wait for the chooser's;
//! it moves there when that comes. One that sees no such link for a while (the
//! chooser may not trust it) chooses by itself.
//!
//! Neither moves from one connection of a route to another of it before what it
//! sent first has had time to arrive.

use std::time::Duration;

use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use crate::{node::LinkId, types::Route};

/// How long a follower waits for the chooser's link before it moves its own.
const GRACE: Duration = Duration::from_millis(500);
/// How long a young link stays rather than move to a connection of the same
/// route: a few slow round trips. What is under way on a link that moves has to
/// be sent again.
const SETTLE: Duration = Duration::from_secs(2);
/// First wait after a link ended or could not be opened: most end because the
/// peer has just begun to trust this node, and wants them anew.
const FIRST_WAIT: Duration = Duration::from_millis(25);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Doublings of the first wait until the longest.
const MAX_DOUBLINGS: u32 = 11;
/// A link that lived this long was a good one: its end counts as the first
/// failure.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// Decides where the outbound link to one peer runs. Time and chance are
/// passed in: `jitter` is between 0 and 1.
#[derive(Debug)]
pub(in crate::swarm) struct Steer {
    chooser: bool,
    allowed: bool,
    connections: Vec<Candidate>,
    /// The connection the newest inbound link came in on.
    followed: Option<ConnectionId>,
    /// Until when a follower waits for an inbound link before it moves its own.
    grace: Instant,
    opening: Option<ConnectionId>,
    open: Option<Open>,
    retry: Option<Retry>,
    failures: u32,
}

#[derive(Debug)]
struct Candidate {
    id: ConnectionId,
    route: Route,
    quic: bool,
    /// It may be dead.
    doubted: bool,
    /// It ends soon.
    worn: bool,
}

impl Candidate {
    /// Smaller is better. Of two equals the one in use stays; otherwise the
    /// older one comes first in the list, and `min_by_key` keeps the first.
    fn rank(&self, used: Option<ConnectionId>) -> (bool, Route, bool, bool, bool) {
        (self.doubted, self.route, self.worn, !self.quic, used != Some(self.id))
    }
}

#[derive(Debug)]
struct Open {
    connection: ConnectionId,
    link: LinkId,
    since: Instant,
}

#[derive(Debug)]
struct Retry {
    connection: ConnectionId,
    at: Instant,
}

/// What is to be done for a peer's outbound link.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::swarm) enum Step {
    /// Open a link here, and answer with [`Steer::opened`] or
    /// [`Steer::failed`].
    Open(ConnectionId),
    /// Nothing before this time.
    Wait(Instant),
    /// Nothing until something happens.
    Rest,
}

impl Steer {
    /// `chooser`: this node's id is lower than the peer's.
    pub(in crate::swarm) fn new(chooser: bool, now: Instant) -> Self {
        Self {
            chooser,
            allowed: false,
            connections: Vec::new(),
            followed: None,
            grace: now,
            opening: None,
            open: None,
            retry: None,
            failures: 0,
        }
    }

    /// Whether links may be opened to the peer.
    pub(in crate::swarm) fn allow(&mut self, allowed: bool) {
        if allowed && !self.allowed {
            self.retry = None;
            self.failures = 0;
        }
        self.allowed = allowed;
    }

    /// As told last.
    pub(in crate::swarm) fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// The best connection, whoever chooses.
    pub(in crate::swarm) fn best(&self) -> Option<ConnectionId> {
        let used = self.open.as_ref().map(|open| open.connection);
        self.connections.iter().min_by_key(|c| c.rank(used)).map(|c| c.id)
    }

    /// The connection on which this side's link runs or is to run.
    pub(in crate::swarm) fn preferred(&self) -> Option<ConnectionId> {
        if self.chooser {
            return self.best();
        }
        // The chooser may not have noticed: it sends nothing now.
        self.followed.filter(|id| !self.is_doubted(*id)).or_else(|| self.best())
    }

    /// A connection is up.
    pub(in crate::swarm) fn connected(&mut self, id: ConnectionId, route: Route, quic: bool, now: Instant) {
        if self.connections.is_empty() {
            self.grace = now + GRACE;
        }
        self.connections.push(Candidate { id, route, quic, doubted: false, worn: false });
    }

    /// A connection is gone.
    pub(in crate::swarm) fn disconnected(&mut self, id: ConnectionId, now: Instant) {
        self.connections.retain(|c| c.id != id);
        self.opening.take_if(|opening| *opening == id);
        self.open.take_if(|open| open.connection == id);
        // The link ended because the connection did: nothing to be patient
        // about on another one.
        if self.retry.take_if(|retry| retry.connection == id).is_some() {
            self.failures = 0;
        }
        if self.followed.take_if(|followed| *followed == id).is_some() {
            self.grace = now + GRACE;
        }
    }

    /// A connection ends soon: others of its kind are better.
    pub(in crate::swarm) fn wear(&mut self, id: ConnectionId) {
        if let Some(candidate) = self.connections.iter_mut().find(|c| c.id == id) {
            candidate.worn = true;
        }
    }

    /// Whether there is a connection that neither may be dead nor ends soon.
    pub(in crate::swarm) fn has_fresh(&self) -> bool {
        self.connections.iter().any(|c| !c.worn && !c.doubted)
    }

    /// Whether a connection may be dead; others are better then, and a link
    /// being opened there is not waited for. Tells whether that is new.
    pub(in crate::swarm) fn doubt(&mut self, id: ConnectionId, doubted: bool) -> bool {
        if doubted {
            self.opening.take_if(|opening| *opening == id);
        }
        let Some(candidate) = self.connections.iter_mut().find(|c| c.id == id) else { return false };
        std::mem::replace(&mut candidate.doubted, doubted) != doubted
    }

    /// Whether a connection may be dead.
    pub(in crate::swarm) fn is_doubted(&self, id: ConnectionId) -> bool {
        self.connections.iter().any(|c| c.id == id && c.doubted)
    }

    /// Whether there are connections, and each of them may be dead.
    pub(in crate::swarm) fn all_doubted(&self) -> bool {
        !self.connections.is_empty() && self.connections.iter().all(|c| c.doubted)
    }

    /// The peer opened a link on this connection.
    pub(in crate::swarm) fn inbound(&mut self, id: ConnectionId) {
        self.followed = Some(id);
    }

    /// The link asked for is open.
    pub(in crate::swarm) fn opened(&mut self, connection: ConnectionId, link: LinkId, now: Instant) {
        self.opening.take_if(|opening| *opening == connection);
        self.retry = None;
        if self.connections.iter().any(|c| c.id == connection) {
            self.open = Some(Open { connection, link, since: now });
        }
    }

    /// The link asked for could not be opened. `hopeless`: the peer speaks no
    /// such protocol.
    pub(in crate::swarm) fn failed(&mut self, connection: ConnectionId, hopeless: bool, now: Instant, jitter: f64) {
        if self.opening.take_if(|opening| *opening == connection).is_none() {
            return; // Not waited for any more.
        }
        if hopeless {
            self.failures = MAX_DOUBLINGS;
        }
        self.back_off(connection, now, jitter);
    }

    /// A link that this side opened has ended.
    pub(in crate::swarm) fn ended(&mut self, link: LinkId, now: Instant, jitter: f64) {
        let Some(open) = self.open.take_if(|open| open.link == link) else { return };
        if now.saturating_duration_since(open.since) >= GOOD_LIFE {
            self.failures = 0;
        }
        self.back_off(open.connection, now, jitter);
    }

    /// What is to be done now.
    pub(in crate::swarm) fn step(&mut self, now: Instant) -> Step {
        if !self.allowed || self.opening.is_some() {
            return Step::Rest;
        }
        let Some(target) = self.preferred() else { return Step::Rest };
        if self.open.as_ref().is_some_and(|open| open.connection == target) {
            return Step::Rest;
        }
        if !self.chooser && self.followed.is_none() && self.open.is_some() && now < self.grace {
            return Step::Wait(self.grace);
        }
        if let Some(settled) = self.settles(target).filter(|settled| now < *settled) {
            return Step::Wait(settled);
        }
        if let Some(retry) = &self.retry
            && retry.connection == target
            && now < retry.at
        {
            return Step::Wait(retry.at);
        }
        self.opening = Some(target);
        Step::Open(target)
    }

    /// Until when a link stays where it is, if it moves there of no need.
    fn settles(&self, target: ConnectionId) -> Option<Instant> {
        let find = |id| self.connections.iter().find(|c| c.id == id);
        let open = self.open.as_ref()?;
        let (from, to) = (find(open.connection)?, find(target)?);
        (from.route == to.route && !from.doubted && !from.worn).then(|| open.since + SETTLE)
    }

    fn back_off(&mut self, connection: ConnectionId, now: Instant, jitter: f64) {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(MAX_DOUBLINGS)).min(LONGEST_WAIT);
        self.retry = Some(Retry { connection, at: now + wait.mul_f64(0.75 + jitter / 2.0) });
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests;
