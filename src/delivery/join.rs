//! The joiner's side of a ticket.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use tokio::time::Instant;

use super::{Delivery, DeliveryError};
use crate::{
    clock,
    node::{Connected, DialAttempt, DialCause, DialTarget, Joined, NodeError},
    store::{Changed, Db, Friend, Trust},
    ticket::Ticket,
    wire::join::{JoinAnswer, JoinRequest},
};

/// What this node says it runs.
const AGENT: &str = concat!("p2p-node/", env!("CARGO_PKG_VERSION"));
/// How often a ticket is presented: over the connection that there is, then
/// over new ones.
const MAX_TRIES: u32 = 3;
/// Characters shown of what an inviter says that it cannot do.
const MAX_WORDS: usize = 200;

/// This node joined another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// What the book calls the inviter.
    pub alias: Option<String>,
    /// How it is connected.
    pub connected: Connected,
    /// The ticket had been redeemed from here before, or the inviter was
    /// trusted already.
    pub already: bool,
}

/// Why a ticket did not help.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It was made here.
    #[error("this ticket was made by this very node; use it on another one")]
    Own,
    /// The inviter is blocked here.
    #[error("the ticket is of peer {0}, which is blocked here; unblock it with `p2p-node peer add {0}`, then join")]
    Blocked(PeerId),
    /// Another peer has the name.
    #[error("alias {alias:?} belongs to peer {holder}; choose another, or remove that peer first")]
    AliasTaken {
        /// As asked.
        alias: String,
        /// Who has it.
        holder: PeerId,
    },
    /// It is too late.
    #[error("the ticket has expired{}; ask for a new one: over there, run `p2p-node invite`", ago(*.0))]
    Expired(u64),
    /// Another node was first.
    #[error(
        "the ticket was used by another node, and each is good for one; ask for a new one: over there, run `p2p-node invite`"
    )]
    Used,
    /// The inviter does not have it.
    #[error("the inviter does not know this ticket (any more); ask for a new one: over there, run `p2p-node invite`")]
    Unknown,
    /// Too many tries.
    #[error("too many tries with tickets from this network; wait a minute, then join again")]
    TooMany,
    /// The inviter cannot.
    #[error("the inviter cannot take this node in now: {0}")]
    Unable(String),
    /// The inviter was not reached.
    #[error(
        "the inviter is not reachable: {}; is p2p-node running over there, on a network that this one reaches?{}",
        tried(.attempts), late(*.expires)
    )]
    Unreachable {
        /// What was tried; empty if nothing could be.
        attempts: Vec<DialAttempt>,
        /// Of the ticket.
        expires: u64,
    },
    /// The book of this node has no room.
    #[error("{limit}: at most {max}; remove some first")]
    Full {
        /// Of what there is no more.
        limit: &'static str,
        /// Allowed.
        max: u64,
    },
    /// The network failed otherwise.
    #[error(transparent)]
    Node(NodeError),
    /// Something below failed.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
}

impl Delivery {
    /// Redeems a ticket: both nodes trust each other afterwards.
    ///
    /// # Errors
    /// See [`JoinError`]. After [`JoinError::Node`] the inviter may trust this
    /// node already; joining again completes it.
    pub async fn join(
        &self,
        ticket: Ticket,
        alias: Option<String>,
        deadline: Duration,
    ) -> Result<Membership, JoinError> {
        let inviter = ticket.inviter;
        let trusted = self.check_joinable(&ticket, alias.as_deref())?;
        let own = self.inner.reachable(false).await?.into_iter().map(|reachable| reachable.address.to_vec()).collect();
        let request = JoinRequest::new(ticket.secret, self.inner.options.name.clone(), AGENT.to_owned(), own);
        let joined = self.present(&ticket, request, deadline).await.map_err(|error| not_joined(error, &ticket))?;
        let (name, again) = match joined.answer {
            JoinAnswer::Welcome { name, again } => (name, again),
            // The inviter forgets in time.
            JoinAnswer::Unknown if is_past(ticket.expires) => return Err(JoinError::Expired(ticket.expires)),
            JoinAnswer::Unknown => return Err(JoinError::Unknown),
            JoinAnswer::Used => return Err(JoinError::Used),
            JoinAnswer::Expired => return Err(JoinError::Expired(ticket.expires)),
            JoinAnswer::TooMany => return Err(JoinError::TooMany),
            JoinAnswer::Unable(why) => {
                return Err(JoinError::Unable(why.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()));
            }
        };
        let mut addresses = ticket.addresses;
        if !joined.connected.already && !addresses.contains(&joined.connected.address) {
            addresses.push(joined.connected.address.clone());
        }
        let friend = Friend { peer: inviter, alias, name, addresses };
        let alias = self.welcome_inviter(friend).await?;
        tracing::info!(peer = %inviter, alias, route = %joined.connected.route, "joined a node by its ticket");
        Ok(Membership { alias, connected: joined.connected, already: again || trusted })
    }

    /// A connection may be dead without this side knowing yet, when the inviter
    /// was just restarted; asking again over a new one does no harm.
    async fn present(&self, ticket: &Ticket, request: JoinRequest, deadline: Duration) -> Result<Joined, NodeError> {
        let end = Instant::now() + deadline;
        let mut tries = 0;
        loop {
            tries += 1;
            let (peer, addresses) = (ticket.inviter, ticket.addresses.clone());
            let target = DialTarget::Addresses { peer, addresses, anew: tries > 1 };
            let left = end.saturating_duration_since(Instant::now());
            match self.inner.node.join(target, request.clone(), left).await {
                Err(NodeError::NotJoined { again: true, peer, cause }) if tries < MAX_TRIES => {
                    tracing::debug!(%peer, cause, "presenting the ticket again");
                }
                outcome => return outcome,
            }
        }
    }

    /// What can be said without asking anybody; tells whether the inviter is
    /// trusted already.
    fn check_joinable(&self, ticket: &Ticket, alias: Option<&str>) -> Result<bool, JoinError> {
        let inviter = ticket.inviter;
        if inviter == self.inner.local {
            return Err(JoinError::Own);
        }
        let trust = self.inner.trust(&inviter);
        if trust == Some(Trust::Blocked) {
            return Err(JoinError::Blocked(inviter));
        }
        // Before the ticket is spent.
        if let Some(alias) = alias
            && let Some(holder) = self.peer_by_alias(alias)
            && holder != inviter
        {
            return Err(JoinError::AliasTaken { alias: alias.to_owned(), holder });
        }
        Ok(trust == Some(Trust::Trusted))
    }

    async fn welcome_inviter(&self, friend: Friend) -> Result<Option<String>, JoinError> {
        let (alias, inviter) = (friend.alias.clone().unwrap_or_default(), friend.peer);
        let delivery = self.clone();
        let kept = self.in_turn(async move {
            // Meanwhile someone may have blocked it here.
            let keep = move |db: &mut Db| match db.peer(&friend.peer)? {
                Some(entry) if entry.trust == Trust::Blocked => Ok(None),
                _ => db.befriend(&friend, clock::wall_ms()).map(Some),
            };
            let kept = delivery.inner.store.write(keep).await?;
            if let Some(Ok(entry)) = &kept {
                delivery.adopt(entry).await?;
            }
            Ok(kept)
        });
        let Some(kept) = kept.await? else { return Err(JoinError::Blocked(inviter)) };
        match kept {
            Ok(entry) => Ok(entry.alias),
            Err(Changed::AliasTaken(holder)) => Err(JoinError::AliasTaken { alias, holder }),
            Err(Changed::Full { limit, max }) => Err(JoinError::Full { limit, max }),
            Err(Changed::Done { .. }) => Err(JoinError::Unable("the address book did not keep it".to_owned())),
        }
    }
}

fn not_joined(error: NodeError, ticket: &Ticket) -> JoinError {
    let expires = ticket.expires;
    let unreachable = |attempts| JoinError::Unreachable { attempts, expires };
    match error {
        NodeError::Blocked(peer) => JoinError::Blocked(peer),
        NodeError::Myself(_) => JoinError::Own,
        NodeError::Unreachable { attempts, .. } => unreachable(attempts),
        NodeError::NoAddress(_) | NodeError::NotFound { .. } => unreachable(Vec::new()),
        NodeError::Timeout(_) => {
            let cause = DialCause::Other("no answer in time".to_owned());
            let attempt = |address| DialAttempt { address: Some(address), cause: cause.clone() };
            unreachable(ticket.addresses.iter().cloned().map(attempt).collect())
        }
        other => JoinError::Node(other),
    }
}

fn tried(attempts: &[DialAttempt]) -> String {
    if attempts.is_empty() {
        return "its ticket names no address, and it is not seen on the local network".to_owned();
    }
    let all: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    all.join("; ")
}

fn late(expires: u64) -> String {
    if is_past(expires) { format!(" Also, the ticket has expired{}", ago(expires)) } else { String::new() }
}

/// By this machine's clock.
fn is_past(seconds: u64) -> bool {
    seconds_since(seconds).is_some()
}

fn seconds_since(seconds: u64) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    now.checked_sub(seconds).filter(|past| *past > 0).map(Duration::from_secs)
}

fn ago(seconds: u64) -> String {
    seconds_since(seconds).map_or_else(String::new, |past| format!(" {} ago", humantime::format_duration(past)))
}
