//! What watchers are told, and what waits until they look.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use libp2p::PeerId;
use tokio::sync::Notify;

/// Peers whose changes wait for one watcher. Past that it is told that it
/// lagged, and looks at all of them.
pub(super) const MAX_WAITING: usize = 1024;
/// Tickets of one peer that wait to be told.
const MAX_JOINED: usize = 8;

/// Why a watcher is told of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Connected.
    Online,
    /// Not connected any more.
    Offline,
    /// Reached another way.
    Route,
    /// What it tells of itself.
    Presence,
    /// Its entry in the address book.
    Book,
    /// It redeemed a ticket of this node.
    Joined,
    /// Seen on the local network, or not any more.
    Lan,
}

/// Something changed about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub cause: Cause,
    /// Of [`Cause::Joined`]: the ticket.
    pub invite_id: String,
    /// For a person; may be empty.
    pub detail: String,
}

/// What a watcher is told.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// These peers changed, each with its causes, oldest first.
    Changes(Vec<(PeerId, Vec<Change>)>),
    /// It was too slow: so many changes were left out, and anything may have
    /// changed.
    Lagged(u64),
}

/// What one watcher has not been told yet.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) order: VecDeque<PeerId>,
    pub(super) changes: HashMap<PeerId, Vec<Change>>,
    left_out: u64,
    news: Arc<Notify>,
}

impl Change {
    pub(super) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, invite_id: String::new(), detail: detail.into() }
    }

    /// Whether this one tells all that the other does, and later.
    fn replaces(&self, other: &Self) -> bool {
        let comes_or_goes = |cause| matches!(cause, Cause::Online | Cause::Offline);
        (self.cause == other.cause && self.invite_id == other.invite_id)
            || (comes_or_goes(self.cause) && comes_or_goes(other.cause))
    }
}

impl Waiting {
    /// Nothing yet; `news` is notified when there is something.
    pub(super) fn new(news: Arc<Notify>) -> Self {
        Self { news, ..Self::default() }
    }

    pub(super) fn add(&mut self, peer: PeerId, change: &Change) {
        if self.left_out > 0 {
            self.left_out += 1;
            return;
        }
        if let Some(changes) = self.changes.get_mut(&peer) {
            changes.retain(|other| !change.replaces(other));
            let joined = changes.iter().filter(|other| other.cause == Cause::Joined).count();
            if change.cause != Cause::Joined || joined < MAX_JOINED {
                changes.push(change.clone());
            }
        } else if self.changes.len() < MAX_WAITING {
            self.order.push_back(peer);
            self.changes.insert(peer, vec![change.clone()]);
        } else {
            return self.leave_out();
        }
        self.news.notify_one();
    }

    /// Gives up what waits, and what has no room.
    pub(super) fn leave_out(&mut self) {
        self.left_out += 1 + self.changes.values().map(|changes| changes.len() as u64).sum::<u64>();
        self.order = VecDeque::new();
        self.changes = HashMap::new();
        self.news.notify_one();
    }

    pub(super) fn take(&mut self, most: usize) -> Option<News> {
        if self.left_out > 0 {
            return Some(News::Lagged(std::mem::take(&mut self.left_out)));
        }
        let count = most.min(self.order.len());
        let peers: Vec<PeerId> = self.order.drain(..count).collect();
        let changes = peers.into_iter().filter_map(|peer| self.changes.remove(&peer).map(|changes| (peer, changes)));
        let changes: Vec<_> = changes.collect();
        (!changes.is_empty()).then_some(News::Changes(changes))
    }
}
