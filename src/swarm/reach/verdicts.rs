//! Which addresses of this node work, by servers that connected back to them;
//! and when to ask again.
//!
//! An address is asked about when it appears, again from time to time, and
//! soon after a server could not reach it. One that others were told of is
//! withdrawn when two hosts say so, or one three times where there is no other.
//! Anybody can say so: where there is a server that the user confided in, it is
//! asked before strangers are believed.

use std::{collections::HashMap, time::Duration};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::{
    place::{Host, Place, Transport},
    target::{Change, Said, Target, different_hosts},
};
use crate::node::AddressSource;

/// Addresses that are asked about: two transports, two families, an interface,
/// a mapping and what is observed of each.
const MAX_TARGETS: usize = 16;
/// Servers known at once.
const MAX_SERVERS: usize = 64;
/// Questions under way at once, so that a network change makes no storm.
pub(super) const MAX_ASKING: usize = 2;
/// An address that works is asked about again after about so long.
const CANARY: Duration = Duration::from_secs(600);
/// One that does not.
const HOPELESS: Duration = Duration::from_secs(1800);
/// After a first verdict another server is asked.
const SECOND_OPINION: Duration = Duration::from_secs(5);
/// First wait after a server gave no verdict; it doubles up to [`CANARY`].
const NO_VERDICT: Duration = Duration::from_secs(5);

/// See the module. Time and chance are passed in.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Verdicts {
    targets: HashMap<Place, Target>,
    servers: HashMap<ConnectionId, Server>,
}

/// A connection with a peer that answers such questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Server {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) host: Host,
    pub(in crate::swarm) transport: Transport,
    /// The connection is IPv6.
    pub(in crate::swarm) v6: bool,
    /// The user named it, or trusts it.
    pub(in crate::swarm) confided: bool,
}

/// An address to ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) struct Wanted {
    pub(in crate::swarm) place: Place,
    pub(in crate::swarm) source: AddressSource,
    /// The settings say that it works: others are told of it whatever servers
    /// say.
    pub(in crate::swarm) assumed: bool,
}

/// A question to put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Question {
    pub(in crate::swarm) place: Place,
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) connection: ConnectionId,
    pub(in crate::swarm) host: Host,
    pub(in crate::swarm) contacted: bool,
    pub(in crate::swarm) confided: bool,
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) enum Answer {
    /// The server connected.
    Reachable,
    /// It could not.
    Unreachable,
    /// It did not try, or did not answer.
    NoVerdict,
}

impl Verdicts {
    /// The addresses to ask about, the most promising first. Those that are not
    /// among them any more are forgotten.
    pub(in crate::swarm) fn retarget(&mut self, wanted: &[Wanted], now: Instant) {
        let wanted = &wanted[..wanted.len().min(MAX_TARGETS)];
        self.targets.retain(|place, _| wanted.iter().any(|other| other.place == *place));
        for Wanted { place, source, assumed } in wanted {
            let target = self.targets.entry(*place).or_insert_with(|| Target::new(*source, now));
            (target.source, target.assumed) = (*source, *assumed);
            // Whoever confirms it.
            target.advertised |= assumed;
        }
    }

    /// A connection with a server; whoever waited for one is asked about.
    pub(in crate::swarm) fn server(&mut self, connection: ConnectionId, server: Server, now: Instant) {
        if self.servers.len() >= MAX_SERVERS && !self.servers.contains_key(&connection) && !self.make_room(&server) {
            return;
        }
        if self.servers.insert(connection, server).is_none() {
            for target in self.targets.values_mut().filter(|target| target.asking.is_none()) {
                target.next.get_or_insert(now);
            }
        }
    }

    /// Forgets a stranger for a server that the user confided in.
    fn make_room(&mut self, newcomer: &Server) -> bool {
        let stranger = self.servers.iter().find(|(_, server)| newcomer.confided && !server.confided);
        let Some(id) = stranger.map(|(id, _)| *id) else { return false };
        self.servers.remove(&id).is_some()
    }

    /// A connection is gone.
    pub(in crate::swarm) fn closed(&mut self, connection: ConnectionId) {
        self.servers.remove(&connection);
    }

    /// Forgets all verdicts and asks about every address again: the network is
    /// another one.
    pub(in crate::swarm) fn clear(&mut self, now: Instant) {
        self.targets.values_mut().for_each(|target| target.clear(now));
    }

    /// When there is something to ask.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        if self.asking() >= MAX_ASKING {
            return None;
        }
        self.targets.values().filter_map(|target| target.next).min()
    }

    /// A question that is due. The caller puts it and comes back with
    /// [`Self::answered`].
    pub(in crate::swarm) fn due(&mut self, now: Instant) -> Option<Question> {
        while self.asking() < MAX_ASKING {
            let due = self.targets.iter().filter(|(_, target)| target.next.is_some_and(|at| at <= now));
            let place = *due.min_by_key(|(place, target)| (target.next, **place))?.0;
            let server = self.server_for(&place);
            let target = self.targets.get_mut(&place)?;
            target.next = None;
            let Some(connection) = server else { continue };
            let server = self.servers.get(&connection)?;
            target.asking = Some(server.peer);
            let contacted = contacted(self.servers.values(), server, &place);
            let Server { peer, ref host, confided, .. } = *server;
            return Some(Question { place, peer, connection, host: host.clone(), contacted, confided });
        }
        None
    }

    /// The server to ask: of the same family, one that said nothing of this
    /// address yet, or longest ago; rather one that this node did not contact
    /// from the same socket. After a failure one that the user confided in
    /// comes first, unless the last one asked gave no verdict.
    fn server_for(&self, place: &Place) -> Option<ConnectionId> {
        let target = self.targets.get(place)?;
        let busy: Vec<PeerId> = self.targets.values().filter_map(|target| target.asking).collect();
        let fits = |server: &Server| server.v6 == place.is_v6() && !busy.contains(&server.peer);
        let said = |server: &Server| {
            let same = |said: &&Said| said.peer == server.peer || said.host.may_be(&server.host);
            target.verdicts.iter().filter(same).map(|said| said.at).max()
        };
        let failed = |server: &Server| target.failing().any(|said| said.peer == server.peer);
        let settle = target.failures > 0 && target.silent == 0;
        let rank = |(id, server): &(&ConnectionId, &Server)| {
            let settles = settle && server.confided && !failed(server);
            (!settles, said(server), contacted(self.servers.values(), server, place), **id)
        };
        self.servers.iter().filter(|(_, server)| fits(server)).min_by_key(rank).map(|(id, _)| *id)
    }

    /// A question was answered, or not. `jitter` is between 0 and 1.
    pub(in crate::swarm) fn answered(
        &mut self,
        question: &Question,
        answer: Answer,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        let (others, confidants) = (self.has_other(question), self.has_confidant(question));
        let Some(target) = self.targets.get_mut(&question.place) else {
            self.wake(now);
            return None;
        };
        target.asking = None;
        let said = Said {
            peer: question.peer,
            host: question.host.clone(),
            reachable: answer == Answer::Reachable,
            contacted: question.contacted,
            confided: question.confided,
            at: now,
        };
        let (wait, change) = match answer {
            Answer::Reachable => {
                target.take(said);
                let change = (!std::mem::replace(&mut target.advertised, true)).then_some(Change::Confirmed);
                let enough = !others || different_hosts(target.verdicts.iter()) >= 2;
                (if enough { CANARY } else { SECOND_OPINION }, change)
            }
            Answer::Unreachable => {
                target.take(said);
                let believed = target.is_refuted(others, confidants);
                let change = believed.then(|| target.fail()).flatten();
                (if believed { HOPELESS } else { SECOND_OPINION }, change)
            }
            Answer::NoVerdict => {
                target.silent += 1;
                (NO_VERDICT.saturating_mul(1 << target.silent.min(8)).min(CANARY), None)
            }
        };
        target.next = Some(now + wait.mul_f64(0.8 + 0.4 * jitter));
        self.wake(now);
        change
    }

    /// Addresses that found every server busy.
    fn wake(&mut self, now: Instant) {
        for target in self.targets.values_mut().filter(|target| target.asking.is_none()) {
            target.next.get_or_insert(now);
        }
    }

    /// All addresses that are asked about.
    pub(in crate::swarm) fn targets(&self) -> impl Iterator<Item = (&Place, &Target)> {
        self.targets.iter()
    }

    /// One of them.
    pub(in crate::swarm) fn get(&self, place: &Place) -> Option<&Target> {
        self.targets.get(place)
    }

    fn asking(&self) -> usize {
        self.targets.values().filter(|target| target.asking.is_some()).count()
    }

    /// Whether another host could be asked.
    fn has_other(&self, question: &Question) -> bool {
        self.servers.values().any(|server| server.v6 == question.place.is_v6() && !server.host.may_be(&question.host))
    }

    /// Whether someone could be asked that the user confided in.
    fn has_confidant(&self, question: &Question) -> bool {
        self.servers.values().any(|server| server.v6 == question.place.is_v6() && server.confided)
    }
}

/// Whether packets go to the server's host from the socket of the address, so
/// that a NAT may let it in for that.
fn contacted<'a>(mut all: impl Iterator<Item = &'a Server>, server: &Server, place: &Place) -> bool {
    all.any(|other| other.transport == place.transport && other.host.may_be(&server.host))
}

#[cfg(test)]
mod tests;
