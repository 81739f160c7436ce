//! Durable delivery: between the API and the network, with the store below.
//!
//! ```text
//! send → outbox row committed → outbound task → link → … peer's inbox, ack → receipt
//! link → inbound task → inbox row committed → ack;  Listen reads the inbox by cursor
//! ```
//!
//! [`Delivery`] is the handle. A task per peer and direction drives the
//! protocol's machine for it (`outbound`, `inbound`); `router` starts
//! them and brings links to them; `upkeep` does what time demands.

mod announce;
mod attempts;
mod book;
mod care;
pub mod effects;
mod error;
mod hub;
mod inbound;
mod invite;
mod join;
mod link;
mod listen;
mod notes;
mod outbound;
mod outbox;
mod progress;
mod receipts;
mod roster;
mod router;
mod send;
mod silence;
mod task;
mod upkeep;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::upkeep::{read_mark, write_mark};
pub use self::{
    announce::Announcement,
    book::BookEntry,
    error::DeliveryError,
    invite::{Invitation, InviteError},
    join::{JoinError, Membership},
    listen::{Delivered, ListenSpec, Listener},
    receipts::Receipts,
    roster::{Cause, Change, News, PeerStatus, Watcher},
    send::{Ephemeral, Outcome, Pending, SendSpec, Sent, State},
};
use crate::{clock::StoreClock, node::Node, store::Store};

/// Peers whose messages are counted: with trust open to all, anyone could make
/// the table grow.
const MAX_COUNTED: usize = 20_000;
/// A peer is complained about once in this time.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// Peers complained about in that time; nobody reads more.
const MAX_WARNED: usize = 256;
/// Background dials to peers that were just added.
const MAX_GREETINGS: usize = 64;

/// What the delivery layer runs on.
#[derive(Debug, Clone)]
pub struct DeliveryOptions {
    /// Largest payload, in bytes.
    pub max_message_bytes: u64,
    /// Trust everyone who is not blocked.
    pub trust_open: bool,
    /// What this node calls itself to others.
    pub name: String,
}

/// A handle to the delivery layer; clones share it.
#[derive(Debug, Clone)]
pub struct Delivery {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    local: PeerId,
    inbox_id: String,
    store: Store,
    node: Node,
    clock: Arc<StoreClock>,
    options: DeliveryOptions,
    hub: Arc<hub::Hub>,
    roster: Arc<roster::Roster>,
    announced: Arc<announce::Announcements>,
    book: RwLock<book::BookCache>,
    /// Held during a change of the book.
    book_turn: Arc<tokio::sync::Mutex<()>>,
    /// Grows with every change of the book.
    book_version: watch::Sender<u64>,
    /// Grows when the inbox has more room.
    room: watch::Sender<u64>,
    peers: Mutex<HashMap<PeerId, Arc<outbox::Outbox>>>,
    inbound: Mutex<HashMap<PeerId, inbound::Door>>,
    counters: Mutex<HashMap<PeerId, Counters>>,
    /// When peers were last complained about.
    warned: Mutex<HashMap<PeerId, Instant>>,
    /// When the next message expires, as far as known.
    next_expiry: AtomicU64,
    expiry_moved: Notify,
    greetings: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Tasks are started from the store's thread too.
    runtime: tokio::runtime::Handle,
    /// No new work; tasks flush and end.
    stop: CancellationToken,
    degraded: watch::Sender<Option<String>>,
}

/// Messages since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Stored by the peer.
    pub sent: u64,
    /// Stored here.
    pub received: u64,
}

impl Delivery {
    /// Sets up the layer; [`Delivery::start`] makes it run.
    ///
    /// # Errors
    /// When the book cannot be read.
    pub async fn new(
        store: Store,
        node: Node,
        clock: Arc<StoreClock>,
        options: DeliveryOptions,
    ) -> Result<Self, DeliveryError> {
        let (book, inbox_id) = store.write(|db| Ok((db.book()?, db.inbox_id()?))).await?;
        let inner = Inner {
            local: node.local_peer_id(),
            inbox_id,
            store,
            node,
            clock,
            announced: announce::Announcements::new(options.name.clone()),
            options,
            hub: Arc::default(),
            roster: Arc::default(),
            book: RwLock::new(book::BookCache::new(&book)),
            book_turn: Arc::default(),
            book_version: watch::Sender::new(0),
            room: watch::Sender::new(0),
            peers: Mutex::default(),
            inbound: Mutex::default(),
            counters: Mutex::default(),
            warned: Mutex::default(),
            next_expiry: AtomicU64::new(0),
            expiry_moved: Notify::new(),
            greetings: Arc::new(Semaphore::new(MAX_GREETINGS)),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            stop: CancellationToken::new(),
            degraded: watch::Sender::new(None),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Names the inbox; another one when the store was lost and begun anew.
    #[must_use]
    pub fn inbox_id(&self) -> &str {
        &self.inner.inbox_id
    }

    /// The network below.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.inner.node
    }

    /// The options it was set up with.
    #[must_use]
    pub fn options(&self) -> &DeliveryOptions {
        &self.inner.options
    }

    /// Messages since the start, to and from a peer.
    #[must_use]
    pub fn counters(&self, peer: &PeerId) -> Counters {
        progress::lock(&self.inner.counters).get(peer).copied().unwrap_or_default()
    }

    /// What is wrong with the store, if something is.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        self.inner.degraded.borrow().clone()
    }

    /// Notes that the store is, or is no more, in a bad state.
    pub fn set_degraded(&self, problem: Option<String>) {
        self.inner.degraded.send_replace(problem);
    }

    /// Store time, in milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.inner.clock.now()
    }

    /// The clock at this moment, to be kept in the store.
    #[must_use]
    pub fn clock_mark(&self) -> crate::clock::ClockMark {
        self.inner.clock.mark()
    }

    /// Number of peers with a working link both ways.
    #[must_use]
    pub fn linked_peers(&self) -> u32 {
        let inbound = progress::lock(&self.inner.inbound);
        let up = |peer: &PeerId| inbound.get(peer).is_some_and(inbound::Door::is_up);
        let peers = progress::lock(&self.inner.peers);
        let both = peers.iter().filter(|(peer, outbox)| outbox.is_up() && up(peer)).count();
        u32::try_from(both).unwrap_or(u32::MAX)
    }

    /// Takes no new work, lets links flush, and waits for the tasks to end.
    pub async fn drain(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn count(&self, peer: &PeerId, change: impl FnOnce(&mut Counters)) {
        let mut counters = progress::lock(&self.counters);
        if counters.len() < MAX_COUNTED || counters.contains_key(peer) {
            change(counters.entry(*peer).or_default());
        }
    }

    /// Whether to log something that a peer can bring about as often as it
    /// likes.
    fn may_warn(&self, peer: &PeerId) -> bool {
        let now = Instant::now();
        let mut warned = progress::lock(&self.warned);
        warned.retain(|_, at| now.saturating_duration_since(*at) < WARN_INTERVAL);
        let may = !warned.contains_key(peer) && warned.len() < MAX_WARNED;
        if may {
            warned.insert(*peer, now);
        }
        may
    }

    /// Lets the upkeep know of a message that expires.
    fn expires(&self, at: u64) {
        if self.next_expiry.fetch_min(at, Ordering::AcqRel) > at {
            self.expiry_moved.notify_one();
        }
    }
}
