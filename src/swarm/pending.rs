//! What was begun and has no answer yet.

use std::{collections::HashMap, io, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::{sync::oneshot, time::Instant};

use super::{
    circuit,
    join::JoinJob,
    link::behaviour::Token,
    ping::Job,
    reach::{server::Reply, verdicts::Question},
    relay::hop::StopJob,
    route::{is_circuit, relay_of},
    timers::Timers,
};
use crate::node::{Connected, DIAL_DEADLINE, DialAttempt, DialCause, NodeError, Pong};

/// Dials at once; past this a command is refused and a redial waits.
const MAX_DIALS: usize = 256;
/// For so long others may wait for a dial that began.
const YOUNG: Duration = Duration::from_secs(1);
/// Commands that wait for a dial or a ping.
const MAX_WAITERS: usize = 1024;

/// Dials and streams under way.
#[derive(Debug)]
pub(super) struct Pending {
    dials: HashMap<ConnectionId, Dial>,
    deadlines: Timers<ConnectionId>,
    streams: HashMap<Token, Opening>,
    last_token: u64,
    last_group: u64,
}

/// A dial under way.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) waiters: Vec<Waiter>,
    /// What came of other ways to the same peer, tried at the same time.
    pub(super) attempts: Vec<DialAttempt>,
    /// The same for all ways of one dial.
    pub(super) group: u64,
    /// If none of them leads to the peer, it is looked for elsewhere.
    pub(super) elsewhere: bool,
}

/// A dial that took too long.
#[derive(Debug)]
pub(super) struct Overdue {
    pub(super) id: ConnectionId,
    pub(super) peer: PeerId,
    /// All ways of the same dial.
    pub(super) tried: Vec<Multiaddr>,
    /// Those that waited.
    pub(super) waiters: Vec<Waiter>,
}

impl Dial {
    /// Nobody waits for it.
    pub(super) fn without_caller(peer: PeerId, addresses: Vec<Multiaddr>, group: u64) -> Self {
        Self { peer, addresses, waiters: Vec::new(), attempts: Vec::new(), group, elsewhere: false }
    }
}

/// A caller that waits for a connection.
#[derive(Debug)]
pub(super) enum Waiter {
    /// That is all it wants.
    Connect(oneshot::Sender<Result<Connected, NodeError>>),
    /// It wants to measure the round trip then.
    Ping(oneshot::Sender<Result<Pong, NodeError>>),
    /// It wants to present the secret of a ticket then.
    Join(Box<JoinJob>),
}

/// A stream being opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) purpose: Purpose,
}

/// What a stream is opened for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The outbound link.
    Link,
    /// A ping.
    Ping(Job),
    /// The secret of a ticket.
    Join(Box<JoinJob>),
    /// A circuit through a relay.
    Circuit(oneshot::Sender<io::Result<circuit::Opened>>),
    /// A circuit of others, to whom it leads.
    Stop(Box<StopJob>),
    /// A question whether an address of this node works.
    Verify(Box<Question>),
    /// The nonce of a peer that asked to be connected to.
    DialBack(Reply),
    /// An exchange for a direct connection.
    Punch {
        /// Which.
        attempt: u64,
        /// In libp2p's own protocol.
        stock: bool,
    },
    /// A server is told where this node can be reached.
    Announce,
}

/// A ping that was asked for.
#[derive(Debug)]
pub(super) struct PingJob {
    pub(super) reply: oneshot::Sender<Result<Pong, NodeError>>,
    /// What it goes over.
    pub(super) connected: Connected,
    /// Streams that broke before.
    pub(super) broken: u32,
}

impl PingJob {
    /// Tells the caller that there is no measurement.
    pub(super) fn fail(self, cause: impl ToString) {
        let error = NodeError::NoPong(self.connected.peer, cause.to_string());
        let _ = self.reply.send(Err(error));
    }
}

impl Waiter {
    /// Tells the caller that it failed. It may have gone away.
    pub(super) fn fail(self, error: NodeError) {
        match self {
            Self::Connect(reply) => drop(reply.send(Err(error))),
            Self::Ping(reply) => drop(reply.send(Err(error))),
            Self::Join(job) => drop(job.reply.send(Err(error))),
        }
    }

    /// Whether the caller went away.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Connect(reply) => reply.is_closed(),
            Self::Ping(reply) => reply.is_closed(),
            Self::Join(job) => job.reply.is_closed(),
        }
    }
}

impl Pending {
    pub(super) fn new() -> Self {
        Self { dials: HashMap::new(), deadlines: Timers::new(), streams: HashMap::new(), last_token: 0, last_group: 0 }
    }

    /// Lets a caller wait for a dial of the peer that is under way. The waiter
    /// comes back if there is none.
    pub(super) fn join(&mut self, peer: PeerId, waiter: Waiter) -> Result<(), Waiter> {
        self.join_where(waiter, |_, dial| dial.peer == peer)
    }

    /// The same of a dial that began a moment ago, of any address of the peer or
    /// of the one given: one that has hung for long may have begun before the
    /// peer was there, and sends ever less often.
    pub(super) fn join_young(
        &mut self,
        peer: PeerId,
        address: Option<&Multiaddr>,
        waiter: Waiter,
        now: Instant,
    ) -> Result<(), Waiter> {
        self.join_where(waiter, |deadline, dial| {
            let is_young = deadline.is_some_and(|deadline| deadline + YOUNG >= now + DIAL_DEADLINE);
            is_young && dial.peer == peer && address.is_none_or(|a| dial.addresses.contains(a))
        })
    }

    fn join_where(&mut self, waiter: Waiter, fits: impl Fn(Option<Instant>, &Dial) -> bool) -> Result<(), Waiter> {
        let deadlines = &self.deadlines;
        let Some((_, dial)) = self.dials.iter_mut().find(|(id, dial)| fits(deadlines.get(id), dial)) else {
            return Err(waiter);
        };
        dial.waiters.push(waiter);
        Ok(())
    }

    /// Whether a dial of the peer is under way.
    pub(super) fn is_dialling(&self, peer: &PeerId) -> bool {
        self.dials.values().any(|dial| dial.peer == *peer)
    }

    /// Whether a dial of the peer through a relay is under way.
    pub(super) fn is_dialling_circuit(&self, peer: &PeerId) -> bool {
        self.dials.values().any(|dial| dial.peer == *peer && dial.addresses.iter().any(is_circuit))
    }

    /// Whether this address of the peer is being dialled, or another one through
    /// the same relay.
    pub(super) fn is_trying(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        let relay = |address: &Multiaddr| relay_of(address).map(|(relay, _)| relay);
        let wanted = relay(address);
        let same = |tried: &Multiaddr| tried == address || wanted.is_some() && relay(tried) == wanted;
        self.dials.values().any(|dial| dial.peer == *peer && dial.addresses.iter().any(same))
    }

    /// Whether there is room for one more waiting caller. Those that went away
    /// are forgotten first.
    pub(super) fn has_room_for_waiter(&mut self) -> bool {
        let waiting = |dials: &HashMap<_, Dial>| dials.values().map(|dial| dial.waiters.len()).sum::<usize>();
        if waiting(&self.dials) + self.streams.len() < MAX_WAITERS {
            return true;
        }
        self.dials.values_mut().for_each(|dial| dial.waiters.retain(|waiter| !waiter.is_gone()));
        waiting(&self.dials) + self.streams.len() < MAX_WAITERS
    }

    /// Whether there is room for one more dial.
    pub(super) fn has_room_for_dial(&self) -> bool {
        self.dials.len() < MAX_DIALS
    }

    /// A dial was begun.
    pub(super) fn dialling(&mut self, id: ConnectionId, dial: Dial, now: Instant) {
        self.deadlines.set(id, now + DIAL_DEADLINE);
        self.dials.insert(id, dial);
    }

    /// A dial ended.
    pub(super) fn dialled(&mut self, id: ConnectionId) -> Option<Dial> {
        self.deadlines.clear(&id);
        self.dials.remove(&id)
    }

    /// A number for the ways of one dial.
    pub(super) fn new_group(&mut self) -> u64 {
        self.last_group += 1;
        self.last_group
    }

    /// One way failed: whoever waits goes on waiting for another way of the
    /// same dial. Without one, they come back with all that was tried.
    pub(super) fn pass_on(&mut self, dial: Dial, failure: NodeError) -> Option<(Vec<Waiter>, NodeError)> {
        let Dial { peer, waiters, mut attempts, group, .. } = dial;
        let failure = match failure {
            NodeError::Unreachable { attempts: more, .. } => {
                attempts.extend(more);
                NodeError::Unreachable { peer, attempts: attempts.clone() }
            }
            other if attempts.is_empty() => other,
            other => {
                attempts.push(DialAttempt { address: None, cause: DialCause::Other(other.to_string()) });
                NodeError::Unreachable { peer, attempts: attempts.clone() }
            }
        };
        let Some(other) = self.dials.values_mut().find(|other| other.group == group) else {
            return Some((waiters, failure));
        };
        other.waiters.extend(waiters);
        other.attempts.extend(attempts);
        None
    }

    /// Takes all callers that wait for a peer, whichever way it is reached.
    pub(super) fn take_waiters(&mut self, peer: &PeerId) -> Vec<Waiter> {
        let dials = self.dials.values_mut().filter(|dial| dial.peer == *peer);
        dials.flat_map(|dial| std::mem::take(&mut dial.waiters)).collect()
    }

    /// When a dial has taken too long.
    pub(super) fn next(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// A dial that took too long. The dial itself stays until libp2p ends it.
    pub(super) fn pop_overdue(&mut self, now: Instant) -> Option<Overdue> {
        let id = self.deadlines.pop_due(now)?;
        let dial = self.dials.get_mut(&id)?;
        let (peer, group, waiters) = (dial.peer, dial.group, std::mem::take(&mut dial.waiters));
        let ways = self.dials.values().filter(|other| other.group == group);
        let tried = ways.flat_map(|other| other.addresses.clone()).collect();
        Some(Overdue { id, peer, tried, waiters })
    }

    /// A stream is being opened.
    pub(super) fn opening(&mut self, opening: Opening) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        self.streams.insert(token, opening);
        token
    }

    /// A stream was opened, or could not be.
    pub(super) fn opened(&mut self, token: Token) -> Option<Opening> {
        self.streams.remove(&token)
    }

    /// Streams that were being opened on a connection that is gone.
    pub(super) fn lost(&mut self, connection: ConnectionId) -> Vec<Opening> {
        self.streams.extract_if(|_, opening| opening.connection == connection).map(|(_, opening)| opening).collect()
    }
}
