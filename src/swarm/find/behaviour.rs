//! libp2p's Kademlia, told only what this node wants it to know.
//!
//! It would publish every address that anything confirmed, dial whatever
//! another server names, and keep servers that are gone.

use std::{
    collections::{HashMap, HashSet},
    task::{Context, Poll, Waker},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    kad,
    swarm::{
        ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{DialFailure, ExternalAddrConfirmed, ExternalAddrExpired},
        dial_opts::DialOpts,
    },
};

use super::{
    MAX_ADDRESSES, REPLICATION, config, ipfs_bootstrap, key,
    own::Own,
    store::{Origin, Store},
    told_address,
};
use crate::{
    node::{Overlay, PeerAddresses},
    swarm::{
        addresses::may_come_from_anybody,
        route::{is_loopback, is_near},
    },
};

/// Addresses of one server in the table: two transports over IPv4 and IPv6, of
/// a host with two interfaces.
const MAX_SERVER_ADDRESSES: usize = 8;

/// See the module.
pub(in crate::swarm) struct Behaviour {
    kad: kad::Behaviour<Store>,
    local: PeerId,
    own: Own,
    /// What Kademlia publishes now.
    told: Vec<Multiaddr>,
    /// What is to be told may be another since it was asked for.
    changed: bool,
    /// Servers that stay in the table even if they are gone.
    fixed: HashSet<PeerId>,
    /// A server runs on this host.
    here: bool,
    /// One runs elsewhere.
    elsewhere: bool,
    /// Peers that may be on the local network because others say so.
    trusted: HashSet<PeerId>,
    /// All of them may.
    trust_open: bool,
    /// The search for servers that was begun last.
    bootstrap: Option<kad::QueryId>,
    /// Whom each search is for.
    sought: HashMap<kad::QueryId, PeerId>,
    /// Who sent the last answer. The swarm takes all that comes of one before
    /// it hands over the next, but while a connection is overloaded.
    source: Option<PeerId>,
    waker: Option<Waker>,
}

/// What happened.
#[derive(Debug)]
pub(in crate::swarm) enum Event {
    /// Of Kademlia, with the peer that had a part in it, if one had.
    Kad(Box<kad::Event>, Option<PeerId>),
    /// This node may be reached elsewhere.
    Changed,
}

impl Behaviour {
    pub(in crate::swarm) fn new<'a>(
        local: PeerId,
        network: Overlay,
        trust_open: bool,
        named: impl Iterator<Item = &'a PeerAddresses>,
    ) -> Self {
        let kad = kad::Behaviour::with_config(local, Store::new(local), config(network));
        let mut behaviour = Self {
            kad,
            local,
            own: Own::new(network),
            told: Vec::new(),
            changed: false,
            fixed: HashSet::new(),
            here: false,
            elsewhere: false,
            trusted: HashSet::new(),
            trust_open,
            bootstrap: None,
            sought: HashMap::new(),
            source: None,
            waker: None,
        };
        behaviour.set_server(false);
        let named = named.flat_map(|node| node.addresses.iter().map(|address| (node.peer, address.clone())));
        for (peer, address) in named.chain(ipfs_bootstrap(network)) {
            behaviour.here |= is_loopback(&address);
            behaviour.elsewhere |= !is_loopback(&address);
            behaviour.fixed.insert(peer);
            behaviour.kad.add_address(&peer, address);
        }
        behaviour
    }

    /// Whether questions of others are answered.
    pub(in crate::swarm) fn set_server(&mut self, server: bool) {
        let mode = if server { kad::Mode::Server } else { kad::Mode::Client };
        self.kad.set_mode(Some(mode));
    }

    /// There is a server on this host, or elsewhere. As long as all are here,
    /// loopback addresses that they tell lead somewhere.
    pub(in crate::swarm) fn met_server(&mut self, here: bool) {
        self.here |= here;
        self.elsewhere |= !here;
        if here && self.own.set_here() {
            self.notice_change();
        }
    }

    /// Whether a peer is trusted.
    pub(in crate::swarm) fn set_trusted(&mut self, peer: PeerId, trusted: bool) {
        if trusted {
            self.trusted.insert(peer)
        } else {
            self.trusted.remove(&peer)
        };
    }

    fn all_here(&self) -> bool {
        self.here && !self.elsewhere
    }

    /// Others see this node there.
    pub(in crate::swarm) fn set_seen(&mut self, seen: Vec<Multiaddr>) {
        if self.own.set_seen(seen) {
            self.notice_change();
        }
    }

    /// Where others can reach this node, best first.
    pub(in crate::swarm) fn to_tell(&self) -> Vec<Multiaddr> {
        self.own.to_tell()
    }

    /// From now on others are told these addresses of this node; begins to
    /// look for the servers nearest to its id, which are to be told.
    pub(in crate::swarm) fn publish(&mut self, addresses: Vec<Multiaddr>) -> kad::QueryId {
        // Those that it tells when this node itself is asked, by anybody.
        let here = self.all_here();
        let far = |address: &&Multiaddr| !is_near(address) || here && is_loopback(address);
        for addr in &self.told {
            self.kad.on_swarm_event(FromSwarm::ExternalAddrExpired(ExternalAddrExpired { addr }));
        }
        // Each goes before those that are there.
        for addr in addresses.iter().filter(far).rev() {
            self.kad.on_swarm_event(FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr }));
        }
        self.told = addresses;
        self.kad.store_mut().set_own();
        self.kad.get_n_closest_peers(self.local, REPLICATION)
    }

    /// What servers were told last, as far as it meant something to them.
    pub(in crate::swarm) fn told(&self) -> &[Multiaddr] {
        &self.told
    }

    /// Asks the servers nearest to a peer's id for its addresses.
    pub(in crate::swarm) fn search(&mut self, peer: &PeerId) -> kad::QueryId {
        let query = self.kad.get_providers(key(peer));
        self.sought.insert(query, *peer);
        query
    }

    /// Looks for servers near to this node, unless that is under way: anybody
    /// who says that it is a server makes this be called.
    pub(in crate::swarm) fn bootstrap(&mut self) {
        if self.bootstrap.is_none_or(|running| self.kad.query(&running).is_none()) {
            self.bootstrap = self.kad.bootstrap().ok();
        }
    }

    /// Ends a search with what it has.
    pub(in crate::swarm) fn end(&mut self, query: kad::QueryId) {
        if let Some(mut query) = self.kad.query_mut(&query) {
            query.finish();
        }
        self.wake();
    }

    /// Addresses of a peer that are in the table, or came up in a search under
    /// way; hostile.
    pub(in crate::swarm) fn addresses(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        let id = ConnectionId::new_unchecked(0);
        // The only way to what came with an answer.
        let all = self.kad.handle_pending_outbound_connection(id, Some(*peer), &[], Endpoint::Dialer);
        let kept = self.kad.store_mut().addresses(peer).to_vec();
        let here = self.all_here() || kept.iter().any(is_loopback);
        only_usable(peer, kept.iter().chain(&all.unwrap_or_default()), here)
    }

    /// Where Kademlia dials a server. What others tell of it, it may have from
    /// anybody; in the table is where it was reached.
    fn ways_to(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        let believed = self.trust_open || self.trusted.contains(peer);
        let mut told = self.addresses(peer);
        told.retain(|address| believed || may_come_from_anybody(address));
        only_usable(peer, self.in_table(peer).iter().chain(&told), true)
    }

    /// A server is known by what it is reached at; replaces what was known.
    pub(in crate::swarm) fn set_server_addresses(&mut self, peer: &PeerId, addresses: &[Multiaddr]) {
        let before = self.in_table(peer);
        let told = |address: &Multiaddr| address.clone().with_p2p(*peer).unwrap_or_else(|address| address);
        let after: Vec<Multiaddr> = addresses.iter().take(MAX_SERVER_ADDRESSES).map(told).collect();
        for address in &after {
            self.kad.add_address(peer, address.clone());
        }
        if !after.is_empty() && !self.fixed.contains(peer) {
            for gone in before.iter().filter(|address| !after.contains(address)) {
                self.kad.remove_address(peer, gone);
            }
        }
    }

    /// It serves no more, or cannot be reached.
    pub(in crate::swarm) fn remove_server(&mut self, peer: &PeerId) {
        if !self.fixed.contains(peer) {
            self.kad.remove_peer(peer);
        }
    }

    /// Servers known.
    pub(in crate::swarm) fn servers(&mut self) -> Vec<PeerId> {
        self.kad
            .kbuckets()
            .flat_map(|bucket| bucket.iter().map(|entry| *entry.node.key.preimage()).collect::<Vec<_>>())
            .collect()
    }

    /// Keeps the record of a peer; whether there is room.
    /// `here`: the peer runs on this host.
    pub(in crate::swarm) fn keep(&mut self, mut record: kad::ProviderRecord, origin: Origin, here: bool) -> bool {
        record.addresses = only_usable(&record.provider, &record.addresses, here);
        self.kad.store_mut().keep(record, origin, std::time::Instant::now())
    }

    /// Records of others.
    pub(in crate::swarm) fn store(&mut self) -> &mut Store {
        self.kad.store_mut()
    }

    fn in_table(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        let Some(bucket) = self.kad.kbucket(*peer) else { return Vec::new() };
        let entry = bucket.iter().find(|entry| entry.node.key.preimage() == peer);
        entry.map(|entry| entry.node.value.iter().cloned().collect()).unwrap_or_default()
    }

    /// A server that cannot be reached is a burden to every search.
    fn on_dial_failure(&mut self, failure: &DialFailure<'_>) {
        let real = matches!(failure.error, DialError::Transport(_) | DialError::WrongPeerId { .. });
        if let Some(peer) = failure.peer_id.filter(|_| real)
            && !self.fixed.contains(&peer)
            && !self.is_connected(&peer)
        {
            self.kad.remove_peer(&peer);
        }
    }

    fn is_connected(&mut self, peer: &PeerId) -> bool {
        let Some(bucket) = self.kad.kbucket(*peer) else { return false };
        bucket.iter().any(|entry| entry.node.key.preimage() == peer && entry.status == kad::NodeStatus::Connected)
    }

    fn is_sought(&self, peer: &PeerId) -> bool {
        self.sought.values().any(|sought| sought == peer)
    }

    /// Kademlia would ask the peer it looks for where that peer is, and dial it
    /// to do so. Whether it is dialled, and where, is for the task to say.
    fn refuse_dial(&mut self, opts: &DialOpts) {
        let failure = DialFailure {
            peer_id: opts.get_peer_id(),
            error: &DialError::Aborted,
            connection_id: opts.connection_id(),
        };
        self.kad.on_swarm_event(FromSwarm::DialFailure(failure));
    }

    fn note_end(&mut self, event: &kad::Event) {
        if let kad::Event::OutboundQueryProgressed { id, result: kad::QueryResult::GetProviders(result), .. } = event
            && !matches!(result, Ok(kad::GetProvidersOk::FoundProviders { .. }))
        {
            self.sought.remove(id);
        }
    }

    fn notice_change(&mut self) {
        self.changed = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <kad::Behaviour<Store> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer.map(|peer| self.ways_to(&peer)).unwrap_or_default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if self.own.on_swarm_event(&event) {
            self.notice_change();
        }
        match event {
            FromSwarm::ConnectionEstablished(_)
            | FromSwarm::ConnectionClosed(_)
            | FromSwarm::AddressChange(_)
            | FromSwarm::ListenFailure(_) => self.kad.on_swarm_event(event),
            FromSwarm::DialFailure(failure) => {
                self.kad.on_swarm_event(event);
                self.on_dial_failure(&failure);
            }
            // It learns what it is to tell in `publish`.
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.source = Some(peer);
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if std::mem::take(&mut self.changed) {
            return Poll::Ready(ToSwarm::GenerateEvent(Event::Changed));
        }
        while let Poll::Ready(event) = self.kad.poll(cx) {
            match event {
                ToSwarm::Dial { opts } if opts.get_peer_id().is_some_and(|peer| self.is_sought(&peer)) => {
                    self.refuse_dial(&opts);
                }
                ToSwarm::GenerateEvent(event) => {
                    self.note_end(&event);
                    return Poll::Ready(ToSwarm::GenerateEvent(Event::Kad(Box::new(event), self.source)));
                }
                other => return Poll::Ready(other.map_out(|event| Event::Kad(Box::new(event), None))),
            }
        }
        self.source = None;
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn only_usable<'a>(peer: &PeerId, addresses: impl IntoIterator<Item = &'a Multiaddr>, here: bool) -> Vec<Multiaddr> {
    let mut usable: Vec<Multiaddr> = Vec::new();
    for address in addresses.into_iter().filter_map(|address| told_address(peer, address, here)) {
        if usable.len() < MAX_ADDRESSES && !usable.contains(&address) {
            usable.push(address);
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_looked_for_once_at_a_time_whoever_says_that_it_is_one() {
        let named =
            PeerAddresses { peer: PeerId::random(), addresses: vec!["/ip4/192.0.2.1/tcp/4001".parse().unwrap()] };
        let mut behaviour = Behaviour::new(PeerId::random(), Overlay::Private, false, std::iter::once(&named));
        for _ in 0..100 {
            behaviour.bootstrap();
        }
        assert_eq!(behaviour.kad.iter_queries().count(), 1);
        let running = behaviour.bootstrap.unwrap();
        let mut context = Context::from_waker(Waker::noop());
        // It goes on with one part of the table after the other.
        while let Some(mut query) = behaviour.kad.query_mut(&running) {
            query.finish();
            while behaviour.poll(&mut context).is_ready() {}
        }
        behaviour.bootstrap();
        assert_ne!(behaviour.bootstrap, Some(running));
    }

    #[test]
    fn a_server_on_a_local_network_is_asked_if_it_is_believed() {
        let (server, lan) = (PeerId::random(), "/ip4/192.168.1.9/tcp/4001");
        let record = kad::ProviderRecord {
            key: key(&server),
            provider: server,
            expires: None,
            addresses: vec![lan.parse().unwrap()],
        };
        let ways = |trust_open: bool, trusted: bool| {
            let mut behaviour = Behaviour::new(PeerId::random(), Overlay::Private, trust_open, std::iter::empty());
            behaviour.set_trusted(server, trusted);
            assert!(behaviour.keep(record.clone(), Origin::Trusted, false));
            behaviour.ways_to(&server).len()
        };
        assert_eq!([ways(false, false), ways(false, true), ways(true, false)], [0, 1, 1]);
    }
}
