//! The table of peers.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    addresses::Addresses,
    link::{io, steer::Steer},
    route::{is_circuit, is_dialable, without_peer},
};
use crate::{
    node::{ConnectionInfo, KnownSource, PeerPolicy, PeerView, Standing},
    types::Route,
};

/// Addresses kept of those that a peer tells.
const MAX_ADDRESSES: usize = 16;
/// Addresses at relays among those that a peer told: two relays, two transports
/// and two families.
const MAX_TOLD_CIRCUITS: usize = 8;
/// Peers that are neither connected nor in the book, but were seen on the local
/// network.
const MAX_SEEN: usize = 512;
/// Characters kept of what a peer says it runs.
const MAX_AGENT_CHARS: usize = 64;

/// All peers that matter now: connected, in the book, wanted, or seen on the
/// local network.
#[derive(Debug)]
pub(super) struct Peers {
    local: PeerId,
    max_message_bytes: u64,
    trust_open: bool,
    table: HashMap<PeerId, Peer>,
}

/// What is known of one peer.
#[derive(Debug)]
pub(super) struct Peer {
    /// This node trusts everyone.
    trust_open: bool,
    /// From the address book.
    pub(super) policy: Option<PeerPolicy>,
    /// Messages wait for it.
    pub(super) wanted: bool,
    /// Where it may be.
    pub(super) known: Addresses,
    /// It is one of those asked for others, to be kept connected.
    pub(super) anchor: bool,
    /// It left its record here, and its connection is kept so that both notice
    /// when the other is gone.
    pub(super) served: bool,
    /// Its connections, oldest first; bounded by the limit per peer.
    pub(super) connections: Vec<Connection>,
    /// Where the outbound link runs.
    pub(super) steer: Steer,
    /// The connection that is kept although nothing may run on it.
    pub(super) kept: Option<ConnectionId>,
    /// Last measured.
    pub(super) rtt: Option<Duration>,
    /// What it says it runs.
    pub(super) agent: String,
    /// Bytes come in on links that this side opened.
    pub(super) outbound_budget: Arc<Semaphore>,
    /// Bytes come in on links that the peer opened.
    pub(super) inbound_budget: Arc<Semaphore>,
    /// Silent connections of it that answered after all, of late.
    pub(super) false_alarms: u32,
    /// When it was last complained about.
    pub(super) warned: Option<Instant>,
    /// What others were told of it last.
    pub(super) told: Told,
}

/// What others are told of a peer when it becomes different.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Of the best connection, if there is one.
    pub(super) route: Option<Route>,
    /// Seen on the local network.
    pub(super) on_lan: bool,
}

/// One connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) route: Route,
    pub(super) address: Multiaddr,
    /// Over QUIC, of a relay if it is relayed.
    pub(super) quic: bool,
    /// This side dialled.
    pub(super) dialled: bool,
    /// The shortest round trip measured.
    pub(super) rtt: Option<Duration>,
    /// When it was established.
    pub(super) since: Instant,
    /// Pings in a row without an answer.
    pub(super) missed_pings: u32,
    /// Ends with it.
    pub(super) closed: CancellationToken,
}

impl Peers {
    pub(super) fn new(local: PeerId, max_message_bytes: u64, trust_open: bool) -> Self {
        Self { local, max_message_bytes, trust_open, table: HashMap::new() }
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&Peer> {
        self.table.get(peer)
    }

    pub(super) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Peer> {
        self.table.get_mut(peer)
    }

    /// The peer's entry, made if there is none. Only for peers that are
    /// connected or that this side named.
    pub(super) fn entry(&mut self, peer: PeerId, now: Instant) -> &mut Peer {
        let (local, bytes, open) = (self.local, self.max_message_bytes, self.trust_open);
        self.table.entry(peer).or_insert_with(|| Peer::new(local.to_bytes() < peer.to_bytes(), bytes, open, now))
    }

    /// A peer was seen on the local network; `None` if it is one too many.
    pub(super) fn seen(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) -> Option<&mut Peer> {
        let known = self.table.contains_key(&peer);
        if !known && self.table.values().filter(|peer| peer.only_seen()).count() >= MAX_SEEN {
            return None;
        }
        let entry = self.entry(peer, now);
        entry.known.add(KnownSource::Lan, address, now);
        Some(entry)
    }

    /// Forgets a peer that does not matter any more.
    pub(super) fn tidy(&mut self, peer: PeerId) {
        if let Entry::Occupied(entry) = self.table.entry(peer)
            && !entry.get().matters()
        {
            entry.remove();
        }
    }

    /// Peers whose connection is kept for their record.
    pub(super) fn all_served(&self) -> impl Iterator<Item = PeerId> {
        self.table.iter().filter(|(_, peer)| peer.served).map(|(id, _)| *id)
    }

    /// How many of them are connected.
    pub(super) fn served(&self) -> usize {
        self.table.values().filter(|peer| peer.served && !peer.connections.is_empty()).count()
    }

    pub(super) fn ids(&self) -> Vec<PeerId> {
        self.table.keys().copied().collect()
    }

    /// All connections.
    pub(super) fn connections(&self) -> impl Iterator<Item = (PeerId, &Connection)> {
        self.table.iter().flat_map(|(id, peer)| peer.connections.iter().map(|connection| (*id, connection)))
    }

    /// All peers, for a view.
    pub(super) fn views(&self) -> Vec<PeerView> {
        self.table.iter().map(|(id, peer)| peer.view(*id)).collect()
    }
}

impl Peer {
    fn new(chooser: bool, max_message_bytes: u64, trust_open: bool, now: Instant) -> Self {
        Self {
            trust_open,
            policy: None,
            wanted: false,
            known: Addresses::default(),
            anchor: false,
            served: false,
            connections: Vec::new(),
            steer: Steer::new(chooser, now),
            kept: None,
            rtt: None,
            agent: String::new(),
            outbound_budget: io::budget(max_message_bytes),
            inbound_budget: io::budget(max_message_bytes),
            false_alarms: 0,
            warned: None,
            told: Told::default(),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        self.policy.as_ref().map_or(Standing::Stranger, |policy| policy.standing)
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.standing() == Standing::Trusted
    }

    /// Whether it is looked for wherever it or others say that it is, on the
    /// local network too.
    pub(super) fn is_believed(&self) -> bool {
        self.is_trusted() || self.trust_open
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.standing() == Standing::Blocked
    }

    fn is_pinned(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.pinned)
    }

    /// Whether it is to be connected all the time.
    pub(super) fn should_be_connected(&self) -> bool {
        (self.is_pinned() || self.wanted || self.anchor) && !self.is_blocked()
    }

    /// Whether to look for it where no address leads to it. Those asked for
    /// others are where the settings say.
    pub(super) fn is_sought(&self) -> bool {
        (self.is_pinned() || self.wanted) && !self.is_blocked()
    }

    /// The connection to keep although nothing may run on it.
    pub(super) fn to_keep(&self) -> Option<ConnectionId> {
        if self.is_trusted() || self.should_be_connected() || self.served { self.steer.preferred() } else { None }
    }

    /// The best connection there is.
    pub(super) fn best(&self) -> Option<&Connection> {
        self.steer.best().and_then(|id| self.connection(id))
    }

    /// Connections that are not relayed and work as far as is known.
    pub(super) fn working_direct(&self) -> impl Iterator<Item = ConnectionId> {
        let direct = self.connections.iter().filter(|known| known.route != Route::Relayed);
        direct.map(|known| known.id).filter(|id| !self.steer.is_doubted(*id))
    }

    /// The best connection that is not relayed.
    pub(super) fn direct(&self) -> Option<ConnectionId> {
        let best = self.best().filter(|best| best.route != Route::Relayed);
        let any = || self.connections.iter().find(|connection| connection.route != Route::Relayed);
        best.or_else(any).map(|connection| connection.id)
    }

    pub(super) fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.iter().find(|connection| connection.id == id)
    }

    /// The best connection, as others know it.
    pub(super) fn info(&self, peer: PeerId) -> Option<ConnectionInfo> {
        self.best().map(|best| ConnectionInfo { peer, route: best.route, address: best.address.clone() })
    }

    /// Addresses to dial, best first.
    pub(super) fn addresses(&self) -> Vec<Multiaddr> {
        self.known.to_dial(self.is_believed())
    }

    /// The peer told its addresses; tells whether there is a new one. Anyone
    /// can tell any address: they are dialled only if this side wants to reach
    /// the peer, those of local networks only if it is believed, and kept no
    /// longer than the peer matters.
    pub(super) fn learn(&mut self, addresses: impl Iterator<Item = Multiaddr>, now: Instant) -> bool {
        let (mut circuits, mut told): (Vec<_>, Vec<_>) =
            addresses.map(|a| without_peer(&a)).filter(is_dialable).partition(is_circuit);
        // A host with many interfaces must not crowd them out.
        circuits.truncate(MAX_TOLD_CIRCUITS);
        told.truncate(MAX_ADDRESSES - circuits.len());
        told.append(&mut circuits);
        self.known.set(KnownSource::Peer, &told, now)
    }

    /// Keeps what the peer says it runs, as far as it can be shown.
    pub(super) fn set_agent(&mut self, agent: &str) {
        self.agent = agent.chars().filter(|c| matches!(c, ' '..='~')).take(MAX_AGENT_CHARS).collect();
    }

    pub(super) fn view(&self, peer: PeerId) -> PeerView {
        let lan = self.known.lan();
        PeerView {
            peer,
            best: self.best().map(|best| (best.route, best.address.clone())),
            connections: self.connections.len() as u32,
            rtt: self.rtt,
            addresses: self.addresses().into_iter().filter(|address| !lan.contains(address)).collect(),
            lan,
            agent: self.agent.clone(),
        }
    }

    fn only_seen(&self) -> bool {
        self.connections.is_empty() && self.policy.is_none() && !self.wanted && !self.anchor
    }

    fn matters(&self) -> bool {
        !self.only_seen() || self.known.on_lan()
    }
}
