//! Who is there, what they tell of themselves, and who wants to know.
//!
//! A peer is online from its first connection until it has had none for
//! [`SETTLE`]: one that comes back sooner was never away. A watcher is told
//! which peers changed and why; it looks at the rest itself, after it was told.
//! Whoever changes something makes the change first and tells of it then, so a
//! watcher that looks after it was told sees the change, or one after it.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use libp2p::PeerId;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

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
/// Peers whose changes wait for one watcher. Past that it is told that it
/// lagged, and looks at all of them.
const MAX_WAITING: usize = 1024;
/// Tickets of one peer that wait to be told.
const MAX_JOINED: usize = 8;
/// How often a peer may tell what it is at once, and then once in each
/// interval; frames that are read together are one time, so that none of a link
/// that was held up are too many. Peers tell at most four times a second.
const PRESENCE_BURST: u32 = 64;
const PRESENCE_INTERVAL: Duration = Duration::from_millis(100);

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

/// What one watcher has not been told yet.
#[derive(Debug, Default)]
struct Waiting {
    order: VecDeque<PeerId>,
    changes: HashMap<PeerId, Vec<Change>>,
    left_out: u64,
    news: Arc<Notify>,
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

impl Change {
    fn new(cause: Cause, detail: impl Into<String>) -> Self {
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
    fn add(&mut self, peer: PeerId, change: &Change) {
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
    fn leave_out(&mut self) {
        self.left_out += 1 + self.changes.values().map(|changes| changes.len() as u64).sum::<u64>();
        self.order = VecDeque::new();
        self.changes = HashMap::new();
        self.news.notify_one();
    }

    fn take(&mut self, most: usize) -> Option<News> {
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
        state.watchers.insert(number, Waiting { news: news.clone(), ..Waiting::default() });
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn info(peer: PeerId, route: Route) -> ConnectionInfo {
        ConnectionInfo { peer, route, address: "/ip4/127.0.0.1/tcp/1".parse().unwrap() }
    }

    fn causes(watcher: &Watcher) -> Vec<Cause> {
        match lock(&watcher.roster.state).watchers.get_mut(&watcher.number).unwrap().take(usize::MAX) {
            None => Vec::new(),
            Some(News::Changes(all)) => all.into_iter().flat_map(|(_, changes)| changes).map(|c| c.cause).collect(),
            Some(News::Lagged(count)) => panic!("lagged by {count}"),
        }
    }

    fn later(roster: &Roster, wait: Duration) -> Option<Instant> {
        roster.expire(Instant::now() + wait, |_| true)
    }

    fn presence(text: &str) -> Presence {
        Presence { text: text.into(), ..Presence::default() }
    }

    #[test]
    fn a_short_absence_is_none() {
        let (roster, peer) = (Arc::new(Roster::default()), PeerId::random());
        let watcher = roster.watch();
        roster.connected(&info(peer, Route::Lan));
        assert_eq!(causes(&watcher), [Cause::Online]);
        roster.disconnected(peer, "lost".into(), false, true);
        assert!(later(&roster, SETTLE / 2).is_some());
        assert!(roster.status(&peer).online);
        roster.connected(&info(peer, Route::Lan));
        assert_eq!(later(&roster, 2 * SETTLE), None);
        assert_eq!(causes(&watcher), []);
        roster.disconnected(peer, "lost".into(), false, true);
        roster.connected(&info(peer, Route::Relayed));
        assert_eq!(causes(&watcher), [Cause::Route]);
        roster.disconnected(peer, "lost".into(), false, true);
        later(&roster, 2 * SETTLE);
        assert_eq!(causes(&watcher), [Cause::Offline]);
        let status = roster.status(&peer);
        assert!(!status.online && status.since > 0 && status.route.is_none());
    }

    #[test]
    fn what_a_peer_told_ends_with_its_link_its_connection_or_its_trust() {
        let (roster, peer) = (Arc::new(Roster::default()), PeerId::random());
        let watcher = roster.watch();
        roster.connected(&info(peer, Route::Lan));
        let tell = |text: &str| assert!(roster.told(peer, presence(text), || true));
        let text = || roster.status(&peer).presence.text;
        tell("a");
        tell("a");
        assert_eq!(causes(&watcher), [Cause::Online, Cause::Presence]);
        roster.unlinked(peer);
        tell("b");
        assert_eq!(later(&roster, 2 * SETTLE), None);
        assert_eq!(text(), "b");
        roster.unlinked(peer);
        later(&roster, 2 * SETTLE);
        assert_eq!(text(), "");
        tell("c");
        causes(&watcher);
        roster.book_changed(peer, false, true);
        assert_eq!((text().as_str(), causes(&watcher)), ("", vec![Cause::Presence, Cause::Book]));
        assert!(roster.told(peer, presence("d"), || false));
        assert_eq!((text().as_str(), causes(&watcher)), ("", vec![]));
        tell("e");
        roster.disconnected(peer, "blocked".into(), true, true);
        assert_eq!((text().as_str(), causes(&watcher)), ("", vec![Cause::Presence, Cause::Offline]));
    }

    #[test]
    fn a_peer_that_tells_without_end_is_noticed() {
        let (roster, peer) = (Roster::default(), PeerId::random());
        roster.connected(&info(peer, Route::Lan));
        let told = (0..1000).take_while(|n| roster.told(peer, presence(&n.to_string()), || true)).count();
        assert!((64..100).contains(&told), "{told}");
        let mut state = lock(&roster.state);
        let slow = state.peers.get_mut(&peer).unwrap();
        let start = Instant::now();
        assert!((1..1000).all(|n| slow.may_tell(start + PRESENCE_INTERVAL * n)));
        let late = start + Duration::from_secs(10_000);
        assert_eq!((0..1000).filter(|_| slow.may_tell(late)).count(), PRESENCE_BURST as usize);
    }

    #[test]
    fn changes_of_one_peer_fold_and_those_of_too_many_are_left_out() {
        let roster = Arc::new(Roster::default());
        let watcher = roster.watch();
        let peer = PeerId::random();
        for n in 0..100 {
            roster.joined(peer, if n % 2 == 0 { "one" } else { "two" });
            roster.book_changed(peer, true, true);
        }
        assert_eq!(causes(&watcher), [Cause::Joined, Cause::Joined, Cause::Book]);
        let peers: Vec<PeerId> = (0..MAX_WAITING + 10).map(|_| PeerId::random()).collect();
        peers.iter().for_each(|peer| roster.on_lan(*peer, true));
        let mut state = lock(&roster.state);
        let waiting = state.watchers.get_mut(&watcher.number).unwrap();
        assert!(waiting.changes.is_empty() && waiting.order.is_empty());
        assert_eq!(waiting.take(1), Some(News::Lagged(peers.len() as u64)));
        assert_eq!(waiting.take(1), None);
        drop(state);
        drop(watcher);
        assert!(lock(&roster.state).watchers.is_empty());
    }

    #[test]
    fn what_was_missed_is_made_good() {
        let roster = Arc::new(Roster::default());
        let [stays, goes, comes] = [(); 3].map(|()| PeerId::random());
        roster.connected(&info(stays, Route::Lan));
        roster.connected(&info(goes, Route::Lan));
        let mut watcher = roster.watch();
        let view = |peer, best| PeerView {
            peer,
            best,
            connections: 0,
            rtt: None,
            lan: Vec::new(),
            addresses: Vec::new(),
            agent: String::new(),
        };
        let best = |route| Some((route, "/ip4/127.0.0.1/tcp/1".parse().unwrap()));
        roster.catch_up(&[
            view(stays, best(Route::Direct)),
            view(comes, best(Route::Lan)),
            view(PeerId::random(), None),
        ]);
        assert_eq!(watcher.next(1).now_or_never(), Some(News::Lagged(3)));
        later(&roster, 2 * SETTLE);
        assert_eq!(causes(&watcher), [Cause::Offline]);
        let online = |peer| roster.status(&peer).online;
        assert_eq!([stays, goes, comes].map(online), [true, false, true]);
        assert_eq!(roster.status(&stays).route, Some(Route::Direct));
    }

    #[test]
    fn strangers_are_waited_for_in_numbers() {
        let roster = Roster::default();
        for n in 0..MAX_SETTLING + 10 {
            let peer = PeerId::random();
            roster.connected(&info(peer, Route::Lan));
            roster.disconnected(peer, String::new(), false, false);
            assert_eq!(roster.status(&peer).online, n < MAX_SETTLING);
        }
        assert_eq!(lock(&roster.state).peers.len(), MAX_SETTLING);
    }

    #[test]
    fn strangers_are_forgotten() {
        let (roster, peer) = (Roster::default(), PeerId::random());
        roster.connected(&info(peer, Route::Lan));
        roster.disconnected(peer, String::new(), false, false);
        roster.expire(Instant::now() + 2 * SETTLE, |_| false);
        let state = lock(&roster.state);
        assert!(state.peers.is_empty() && state.due.is_empty());
    }
}
