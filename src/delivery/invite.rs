//! The inviter's side of a ticket: giving it out, and taking who brings it.

use std::{fmt, time::Duration};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::{Delivery, DeliveryError, Inner};
use crate::{
    clock,
    node::{JoinAttempt, Reachable},
    store::{Friend, Invited, MAX_OPEN_INVITES, NewInvite, Redeemed},
    ticket::{MAX_TICKET_ADDRESSES, Ticket, TicketError},
    types::{Route, Secret},
    wire::join::{JoinAnswer, JoinRequest},
};

/// Characters kept of what a joiner says it runs, for the log.
const MAX_AGENT_CHARS: usize = 64;

/// A ticket that was given out.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The ticket.
    pub ticket: Ticket,
    /// As it is handed over.
    pub text: String,
    /// Names it without giving it away.
    pub id: String,
    /// None of its addresses leaves the local network.
    pub lan_only: bool,
}

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// Another peer has the name.
    #[error("alias {alias:?} belongs to peer {holder}; choose another, or remove that peer first")]
    AliasTaken {
        /// As asked.
        alias: String,
        /// Who has it.
        holder: PeerId,
    },
    /// Too many tickets are open.
    #[error("{MAX_OPEN_INVITES} tickets are open, which is the limit; wait until some are used or expire")]
    Full,
    /// It cannot be written.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Something below failed.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
}

impl fmt::Debug for Invitation {
    /// Without the text, which holds the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("ticket", &self.ticket).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Makes a ticket that is good for one node within `expires`.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub async fn invite(&self, expires: Duration, alias: Option<String>) -> Result<Invitation, InviteError> {
        let reachable = self.inner.reachable(true).await?;
        let lan_only = !reachable.iter().any(|reachable| reachable.beyond_lan);
        let expires_ms = u64::try_from(expires.as_millis()).unwrap_or(u64::MAX);
        let wall_ms = u64::try_from(clock::wall_ms()).unwrap_or(0);
        let expires_s = wall_ms.saturating_add(expires_ms) / 1000;
        let addresses = reachable.into_iter().map(|reachable| reachable.address).collect();
        let (ticket, text) = Ticket::write(self.inner.local, Secret(rand::random()), expires_s, addresses)?;
        // In store time: on the wall clock, a Raspberry Pi that wakes up in the
        // past would open old tickets again, and one that is set right a
        // minute later would close new ones. Of downtime it counts what a
        // synchronised clock vouches for, so that at worst a ticket lives
        // longer, which the one who made it can see and does not lose by.
        let expires_at = self.inner.clock.now().saturating_add(expires_ms);
        let invite = NewInvite { hash: ticket.secret.hash(), alias: alias.clone(), expires_at };
        let now = self.inner.clock.now();
        let kept = self.inner.store.write(move |db| db.add_invite(&invite, now)).await;
        match kept.map_err(DeliveryError::from)? {
            Invited::Done(id) => {
                tracing::info!(invite_id = id, expires = %humantime::format_duration(expires), "ticket made");
                Ok(Invitation { ticket, text, id, lan_only })
            }
            Invited::AliasTaken(holder) => Err(InviteError::AliasTaken { alias: alias.unwrap_or_default(), holder }),
            Invited::Full => Err(InviteError::Full),
        }
    }

    /// Looks at what a peer presents, and answers when the outcome is on disk.
    pub(super) fn take_in(&self, attempt: JoinAttempt) {
        let delivery = self.clone();
        // As many as the network lets in at once.
        self.inner.tasks.spawn(async move {
            let JoinAttempt { peer, same_host, request, reply } = attempt;
            let answer = delivery.redeem(peer, same_host, request).await.unwrap_or_else(|error| {
                tracing::warn!(%peer, %error, "a ticket could not be looked at");
                JoinAnswer::Unable("its store failed; its log says why".to_owned())
            });
            // The peer may be gone; it asks again.
            drop(reply.send(answer));
        });
    }

    async fn redeem(&self, peer: PeerId, same_host: bool, request: JoinRequest) -> Result<JoinAnswer, DeliveryError> {
        let inner = &self.inner;
        let told = request.addresses().filter_map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok());
        let addresses = told.filter(|address| is_worth_noting(address, same_host)).collect();
        let friend = Friend { peer, alias: None, name: request.name, addresses };
        let (hash, now, wall) = (request.secret.hash(), inner.clock.now(), clock::wall_ms());
        let delivery = self.clone();
        let redeemed = self.in_turn(async move {
            let redeemed = delivery.inner.store.write(move |db| db.redeem(&hash, friend, now, wall)).await?;
            if let Redeemed::Welcome { entry, .. } = &redeemed {
                // Known to the network before the joiner is answered, so that
                // what it sends at once is not refused.
                delivery.adopt(entry).await?;
            }
            Ok(redeemed)
        });
        match redeemed.await? {
            Redeemed::Welcome { entry, invite_id, again } => {
                if !again {
                    log_joined(peer, entry.alias.as_deref(), &invite_id, &request.agent);
                    inner.roster.joined(peer, &invite_id);
                }
                Ok(JoinAnswer::Welcome { name: inner.options.name.clone(), again })
            }
            Redeemed::Unknown => Ok(JoinAnswer::Unknown),
            Redeemed::Used => Ok(JoinAnswer::Used),
            Redeemed::Expired => Ok(JoinAnswer::Expired),
            Redeemed::Full { limit, max } => {
                tracing::warn!(%peer, limit, max, "a node with a good ticket could not join: the address book is full");
                Ok(JoinAnswer::Unable(format!("{limit}: at most {max}; remove some over there")))
            }
        }
    }
}

impl Inner {
    /// Where this node tells others to look for it.
    pub(super) async fn reachable(&self, settled: bool) -> Result<Vec<Reachable>, DeliveryError> {
        let all = self.node.reachable(settled).await.map_err(|_| DeliveryError::Closed)?;
        Ok(for_ticket(all))
    }
}

/// The few of all addresses, best first, that go into a ticket: the best one,
/// one at a relay, and the best of another kind. One that is not public has two
/// circuits, since a network may let no UDP through. The circuit is second:
/// where there is no room, the last one is left out.
fn for_ticket(all: Vec<Reachable>) -> Vec<Reachable> {
    let (circuits, direct): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.route == Route::Relayed);
    let public = direct.first().is_some_and(|best| best.route == Route::Direct);
    let mut chosen: Vec<Reachable> = direct.iter().take(1).cloned().collect();
    chosen.extend(circuits.into_iter().take(if public { 1 } else { 2 }));
    let near = direct.iter().filter(|one| one.route == Route::Lan);
    for one in near.chain(&direct) {
        if chosen.len() < MAX_TICKET_ADDRESSES && !chosen.contains(one) {
            chosen.push(one.clone());
        }
    }
    // Without circuits, the order is that of the whole.
    if chosen.iter().all(|one| one.route != Route::Relayed) {
        chosen = direct;
        chosen.truncate(MAX_TICKET_ADDRESSES);
    }
    chosen
}

fn log_joined(peer: PeerId, alias: Option<&str>, invite_id: &str, agent: &str) {
    let agent: String = agent.chars().filter(|c| matches!(c, ' '..='~')).take(MAX_AGENT_CHARS).collect();
    tracing::info!(%peer, alias, invite_id, agent, "a node joined with a ticket and is trusted");
}

/// Whether to try an address later that a joiner told of itself. Anyone can
/// tell any: only where a node may listen, and loopback only if it is here.
fn is_worth_noting(address: &Multiaddr, same_host: bool) -> bool {
    let loopback = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => return false,
    };
    same_host || !loopback
}
