//! Who is there, what they tell of themselves, and who wants to know.
//!
//! A peer is online from its first connection until it has had none for
//! [`SETTLE`]: one that comes back sooner was never away. A watcher is told
//! which peers changed and why; it looks at the rest itself, after it was told.
//! Whoever changes something makes the change first and tells of it then, so a
//! watcher that looks after it was told sees the change, or one after it.

mod changes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use libp2p::PeerId;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use self::changes::Waiting;
pub use self::changes::{Cause, Change, News};
use super::{Delivery, progress::lock};
use crate::{
    clock,
    node::{ConnectionInfo, PeerView},
    types::{Presence, Route},
};

/// How long a peer without a connection still counts as online, and what it
/// told of itself still holds without a link: longer than a restart of its
/// daemon or a change of the route takes.
const SETTLE: Duration = Duration::from_secs(2);
/// Peers that are waited for. Past that strangers are not.
const MAX_SETTLING: usize = 1024;
/// How often a peer may tell what it is at once, and then once in each
/// interval; frames that are read together are one time, so that none of a link
/// that was held up are too many. Peers tell at most four times a second.
const PRESENCE_BURST: u32 = 64;
const PRESENCE_INTERVAL: Duration = Duration::from_millis(100);

/// How a peer stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// It is, or was a moment ago, connected.
    pub online: bool,
    /// How, while online.
    pub route: Option<Route>,
    /// Since when, in Unix milliseconds; 0 if it was never online.
    pub since: i64,
    /// What it tells of itself, while online and trusted.
    pub presence: Presence,
}

/// All peers that are or were online, and all watchers.
#[derive(Debug, Default)]
pub(super) struct Roster {
    state: Mutex<State>,
    /// Something is due earlier than before.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Bounded by the limits on connections and the size of the book.
    peers: HashMap<PeerId, Peer>,
    /// Bounded by `max_streams`.
    watchers: HashMap<u64, Waiting>,
    last_watcher: u64,
    due: BTreeSet<(Instant, PeerId, Due)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Offline,
    Silence,
}

#[derive(Debug)]
struct Peer {
    status: PeerStatus,
    /// While it has no connection: since when, and why.
    lost: Option<(i64, String)>,
    offline_at: Option<Instant>,
    silent_at: Option<Instant>,
    /// How often it may tell what it is.
    allowance: u32,
    refilled: Instant,
}

/// Hears of changes until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    roster: Arc<Roster>,
    number: u64,
    news: Arc<Notify>,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            status: PeerStatus::default(),
            lost: None,
            offline_at: None,
            silent_at: None,
            allowance: PRESENCE_BURST,
            refilled: now,
        }
    }

    /// Whether telling now what it is, is within the pace.
    fn may_tell(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.refilled).as_millis() / PRESENCE_INTERVAL.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        self.refilled = if passed >= PRESENCE_BURST { now } else { self.refilled + PRESENCE_INTERVAL * passed };
        self.allowance = self.allowance.saturating_add(passed).min(PRESENCE_BURST);
        let left = self.allowance.checked_sub(1);
        self.allowance = left.unwrap_or(0);
        left.is_some()
    }
}

impl State {
    fn tell(&mut self, peer: PeerId, change: &Change) {
        self.watchers.values_mut().for_each(|watcher| watcher.add(peer, change));
    }

    /// Sets, moves or clears (`None`) when something is due for a peer.
    fn schedule(&mut self, id: PeerId, due: Due, at: Option<Instant>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let slot = match due {
            Due::Offline => &mut peer.offline_at,
            Due::Silence => &mut peer.silent_at,
        };
        if let Some(before) = std::mem::replace(slot, at) {
            self.due.remove(&(before, id, due));
        }
        if let Some(at) = at {
            self.due.insert((at, id, due));
        }
    }

    fn connected(&mut self, info: &ConnectionInfo) {
        self.peers.entry(info.peer).or_insert_with(|| Peer::new(Instant::now()));
        self.schedule(info.peer, Due::Offline, None);
        let Some(peer) = self.peers.get_mut(&info.peer) else { return };
        peer.lost = None;
        let before = peer.status.route.replace(info.route);
        let change = if !std::mem::replace(&mut peer.status.online, true) {
            peer.status.since = clock::wall_ms();
            Change::new(Cause::Online, format!("{} at {}", info.route, info.address))
        } else if before != Some(info.route) {
            Change::new(Cause::Route, format!("now {}", info.route))
        } else {
            return;
        };
        self.tell(info.peer, &change);
    }

    /// Waits for a peer that has no connection any more.
    fn lost(&mut self, id: PeerId, why: String) {
        if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.status.online) {
            peer.lost = Some((clock::wall_ms(), why));
            self.schedule(id, Due::Offline, Some(Instant::now() + SETTLE));
        }
    }

    fn offline(&mut self, id: PeerId, in_book: bool) {
        self.schedule(id, Due::Offline, None);
        self.schedule(id, Due::Silence, None);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((since, why)) = peer.lost.take() else { return };
        peer.status = PeerStatus { since, ..PeerStatus::default() };
        self.tell(id, &Change::new(Cause::Offline, why));
        if !in_book {
            self.peers.remove(&id);
        }
    }

    fn set_presence(&mut self, id: PeerId, mut presence: Presence) {
        presence.roles.sort_unstable();
        presence.roles.dedup();
        self.schedule(id, Due::Silence, None);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.status.presence != presence {
            peer.status.presence = presence;
            self.tell(id, &Change::new(Cause::Presence, ""));
        }
    }
}

impl Roster {
    /// The first connection is up.
    pub(super) fn connected(&self, info: &ConnectionInfo) {
        lock(&self.state).connected(info);
    }

    /// Events were missed; this is how things are. Events that are older than
    /// the view and come after this do no harm: the youngest comes last.
    pub(super) fn catch_up(&self, view: &[PeerView]) {
        let mut state = lock(&self.state);
        let connected = |view: &PeerView| {
            let (route, address) = view.best.clone()?;
            Some((view.peer, ConnectionInfo { peer: view.peer, route, address }))
        };
        let connected: HashMap<PeerId, ConnectionInfo> = view.iter().filter_map(connected).collect();
        let there = |peer: &Peer| peer.status.online && peer.lost.is_none();
        let gone = state.peers.iter().filter(|(id, peer)| there(peer) && !connected.contains_key(id));
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            state.lost(id, "not connected any more".to_owned());
        }
        connected.values().for_each(|info| state.connected(info));
        state.watchers.values_mut().for_each(Waiting::leave_out);
        self.sooner.notify_one();
    }

    /// The last connection is gone. `at_once`: it is not to come back.
    pub(super) fn disconnected(&self, id: PeerId, why: String, at_once: bool, in_book: bool) {
        let mut state = lock(&self.state);
        state.lost(id, why);
        if at_once || (!in_book && state.due.len() > MAX_SETTLING) {
            state.offline(id, in_book);
        }
        self.sooner.notify_one();
    }

    /// A connected peer is reached another way.
    pub(super) fn rerouted(&self, id: PeerId, route: Route) {
        let mut state = lock(&self.state);
        let Some(peer) = state.peers.get_mut(&id).filter(|peer| peer.status.online) else { return };
        if peer.status.route.replace(route) != Some(route) {
            state.tell(id, &Change::new(Cause::Route, format!("now {route}")));
        }
    }

    /// Seen on the local network, or not any more.
    pub(super) fn on_lan(&self, id: PeerId, there: bool) {
        let detail = if there { "seen on the local network" } else { "gone from the local network" };
        lock(&self.state).tell(id, &Change::new(Cause::Lan, detail));
    }

    /// A peer told what it is. False: it does so too often. `trusted` is asked
    /// under the lock that [`Roster::book_changed`] takes after a change. A link
    /// comes after its connection and ends before; what is left of it then is
    /// for nothing.
    pub(super) fn told(&self, id: PeerId, presence: Presence, trusted: impl FnOnce() -> bool) -> bool {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let Some(peer) = state.peers.get_mut(&id).filter(|peer| peer.status.online) else { return true };
        let within = peer.may_tell(now);
        if within && trusted() {
            state.set_presence(id, presence);
        }
        within
    }

    /// The link on which a peer tells what it is, is gone.
    pub(super) fn unlinked(&self, id: PeerId) {
        let mut state = lock(&self.state);
        if state.peers.get(&id).is_some_and(|peer| peer.status.presence != Presence::default()) {
            state.schedule(id, Due::Silence, Some(Instant::now() + SETTLE));
            self.sooner.notify_one();
        }
    }

    /// The book's entry of a peer is another one, or gone.
    pub(super) fn book_changed(&self, id: PeerId, trusted: bool, in_book: bool) {
        let mut state = lock(&self.state);
        if !trusted {
            state.set_presence(id, Presence::default());
        }
        if !in_book && state.peers.get(&id).is_some_and(|peer| !peer.status.online) {
            state.peers.remove(&id);
        }
        state.tell(id, &Change::new(Cause::Book, ""));
    }

    /// A peer redeemed a ticket.
    pub(super) fn joined(&self, id: PeerId, invite_id: &str) {
        let change = Change { invite_id: invite_id.to_owned(), ..Change::new(Cause::Joined, "") };
        lock(&self.state).tell(id, &change);
    }

    fn status(&self, id: &PeerId) -> PeerStatus {
        lock(&self.state).peers.get(id).map(|peer| peer.status.clone()).unwrap_or_default()
    }

    fn online(&self) -> Vec<PeerId> {
        let state = lock(&self.state);
        state.peers.iter().filter(|(_, peer)| peer.status.online).map(|(id, _)| *id).collect()
    }

    fn watch(self: &Arc<Self>) -> Watcher {
        let mut state = lock(&self.state);
        state.last_watcher += 1;
        let (number, news) = (state.last_watcher, Arc::new(Notify::new()));
        state.watchers.insert(number, Waiting::new(news.clone()));
        Watcher { roster: self.clone(), number, news }
    }

    /// Does what is due; returns when something is next.
    fn expire(&self, now: Instant, in_book: impl Fn(&PeerId) -> bool) -> Option<Instant> {
        let mut state = lock(&self.state);
        while let Some(&(at, id, due)) = state.due.first() {
            if at > now {
                return Some(at);
            }
            state.due.pop_first();
            match due {
                Due::Offline => state.offline(id, in_book(&id)),
                Due::Silence => state.set_presence(id, Presence::default()),
            }
        }
        None
    }

    /// Does what is due, for ever.
    pub(super) async fn run(&self, in_book: impl Fn(&PeerId) -> bool) {
        loop {
            match self.expire(Instant::now(), &in_book) {
                Some(next) => tokio::select! {
                    () = sleep_until(next) => {}
                    () = self.sooner.notified() => {}
                },
                None => self.sooner.notified().await,
            }
        }
    }
}

impl Watcher {
    /// Waits for news of at most so many peers. Nothing is lost when this is
    /// dropped before it is done.
    pub async fn next(&mut self, most: usize) -> News {
        loop {
            // A change after this look leaves its mark in `news`.
            let news = lock(&self.roster.state).watchers.get_mut(&self.number).and_then(|waiting| waiting.take(most));
            match news {
                Some(news) => return news,
                None => self.news.notified().await,
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.roster.state).watchers.remove(&self.number);
    }
}

impl Delivery {
    /// Hears of changes from now on.
    #[must_use]
    pub fn watch_peers(&self) -> Watcher {
        self.inner.roster.watch()
    }

    /// How a peer stands.
    #[must_use]
    pub fn peer_status(&self, peer: &PeerId) -> PeerStatus {
        self.inner.roster.status(peer)
    }

    /// Peers that are online.
    #[must_use]
    pub fn online_peers(&self) -> Vec<PeerId> {
        self.inner.roster.online()
    }
}
