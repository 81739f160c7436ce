//! Peers are looked for by their id, and this node lets itself be found.

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, TransportError,
    kad::{
        self, GetClosestPeersError, GetClosestPeersOk, GetProvidersOk, InboundRequest, QueryId, QueryResult, QueryStats,
    },
};
use tokio::{sync::oneshot, time::Instant};
use tracing::{debug, info};

use crate::{
    node::{FindView, Found, KnownAddressView, KnownSource, NodeError},
    swarm::{
        addresses::MAX_DIAL_ADDRESSES,
        cause,
        find::{
            self,
            announce::{self, Announced},
            behaviour::Event,
            lookup::{Lookup, Verdict},
            publish::Step,
            store::{MAX_RECORDS, Origin},
        },
        pending::{Opening, Purpose, Waiter},
        reach::ip,
        route::is_loopback,
        task::Task,
    },
    types::Route,
};

impl Task {
    /// Keeps the nodes connected that are asked for others.
    pub(in crate::swarm) fn begin_finding(&mut self, now: Instant) {
        for peer in self.find.anchors.clone() {
            if peer == *self.swarm.local_peer_id() {
                continue;
            }
            let addresses = self.find.named(&peer).to_vec();
            let entry = self.peers.entry(peer, now);
            entry.anchor = true;
            entry.known.set(KnownSource::Book, &addresses, now);
            self.attend(peer, now);
        }
        self.find.publisher.changed(now);
    }

    /// Answers those who look for others, if this node serves.
    pub(in crate::swarm) fn answer_or_not(&mut self, serves: bool) {
        if self.find.set_serves(serves) {
            let server = self.find.is_server();
            self.swarm.behaviour_mut().find.set_server(server);
        }
    }

    pub(super) fn on_find(&mut self, event: Event, now: Instant) {
        let (event, source) = match event {
            Event::Changed => return self.find.publisher.changed(now),
            Event::Kad(event, source) => (*event, source),
        };
        match event {
            kad::Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.on_record(record, now);
            }
            kad::Event::OutboundQueryProgressed { id, result, stats, .. } => {
                self.on_query(id, result, &stats, source, now);
            }
            _ => {}
        }
    }

    fn on_query(&mut self, id: QueryId, result: QueryResult, stats: &QueryStats, source: Option<PeerId>, now: Instant) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { .. })) => {
                self.on_lookup_answer(id, stats, source, now);
            }
            QueryResult::GetProviders(_) => self.on_search_ended(id, stats, now),
            QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { peers, .. })) => self.on_nearest(id, peers, now),
            QueryResult::GetClosestPeers(Err(GetClosestPeersError::Timeout { peers, .. })) => {
                self.on_nearest(id, peers, now);
            }
            QueryResult::Bootstrap(Ok(_)) if stats.num_successes() > 0 && !self.find.bootstrapped => {
                self.find.bootstrapped = true;
                info!("servers answer: peers can be found by their id");
                // Nearer ones may be known now.
                self.find.publisher.changed(now);
            }
            _ => {}
        }
    }

    /// A peer tells where it can be reached.
    fn on_record(&mut self, record: kad::ProviderRecord, now: Instant) {
        let peer = record.provider;
        let Some(entry) = self.peers.get(&peer) else { return };
        let Some(connection) = entry.connections.last() else { return };
        if !self.find.takes_from(entry.is_trusted()) || entry.is_blocked() {
            return debug!(%peer, "a record of a peer that is not served");
        }
        let origin = Origin::of(&connection.address, entry.is_trusted());
        let here = is_loopback(&connection.address);
        if !self.swarm.behaviour_mut().find.keep(record, origin, here) {
            return debug!(%peer, "a record that is not kept");
        }
        self.find.purge_later(now);
        let kept = self.peers.served();
        let room = kept < self.find.max_kept;
        if let Some(entry) = self.peers.get_mut(&peer)
            && !entry.served
            && room
        {
            entry.served = true;
            self.attend(peer, now);
        }
    }

    /// A peer says that it answers questions, or that it does not.
    pub(super) fn on_server_identified(
        &mut self,
        peer: PeerId,
        protocols: &[StreamProtocol],
        told: &[Multiaddr],
        now: Instant,
    ) {
        if !protocols.contains(&find::protocol(self.find.network)) {
            if self.find.servers.remove(&peer) {
                self.swarm.behaviour_mut().find.remove_server(&peer);
            }
            return;
        }
        let Some(entry) = self.peers.get(&peer) else { return };
        let direct = entry.connections.iter().filter(|connection| connection.route != Route::Relayed);
        let ips: Vec<_> = direct.clone().filter_map(|connection| ip(&connection.address)).collect();
        let here = direct.clone().any(|connection| is_loopback(&connection.address));
        let dialled = direct.filter(|connection| connection.dialled).map(|connection| connection.address.clone());
        // What it tells counts where it comes from: it could name anybody's.
        let own = told.iter().filter(|address| ip(address).is_some_and(|ip| ips.contains(&ip))).cloned();
        let mut addresses: Vec<Multiaddr> = Vec::new();
        for address in dialled.chain(own).filter_map(|address| find::told_address(&peer, &address, here)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let behaviour = &mut self.swarm.behaviour_mut().find;
        behaviour.set_server_addresses(&peer, &addresses);
        if here {
            behaviour.set_here();
        }
        let came = self.find.servers.insert(peer);
        if !self.find.bootstrapped {
            self.swarm.behaviour_mut().find.bootstrap();
        }
        let never = self.find.publisher.done().is_none();
        if came && (never || self.find.is_configured(&peer)) {
            self.find.publisher.server_came(now);
        }
    }

    /// The servers nearest to this node are known; they are told.
    fn on_nearest(&mut self, id: QueryId, nearest: Vec<kad::PeerInfo>, now: Instant) {
        if self.find.publisher.is_mine(id) {
            nearest.into_iter().for_each(|server| self.tell(server.peer_id));
            self.find.publisher.searched(id, now, rand::random());
        }
    }

    /// Tells a server where this node can be reached.
    fn tell(&mut self, server: PeerId) {
        let Some(connection) = self.peers.get(&server).and_then(|entry| entry.best()).map(|best| best.id) else {
            return;
        };
        if self.find.publisher.telling(server) {
            let token = self.pending.opening(Opening { peer: server, connection, purpose: Purpose::Announce });
            let protocol = find::protocol(self.find.network);
            self.swarm.behaviour_mut().link.open(server, connection, protocol, token);
        }
    }

    /// Tells it elsewhere; the result comes back as [`Announced`].
    pub(super) fn announce(&mut self, peer: PeerId, stream: Stream) {
        let Ok(slot) = self.announcements.slots.clone().try_acquire_owned() else {
            return self.find.publisher.told(false, Instant::now(), rand::random());
        };
        let message = announce::message(self.swarm.local_peer_id(), self.swarm.behaviour().find.told());
        let announced = self.announcements.announced.clone();
        tokio::spawn(async move {
            let result = announce::send(stream, &message).await;
            // The task may be gone.
            let _ = announced.send(Announced { peer, result }).await;
            drop(slot);
        });
    }

    pub(in crate::swarm) fn on_announced(&mut self, announced: Announced) {
        let Announced { peer, result } = announced;
        let first = self.find.publisher.done().is_none();
        self.find.publisher.told(result.is_ok(), Instant::now(), rand::random());
        match result {
            Ok(()) if first => info!(%peer, "others can find this node by its id: a server was told where it is"),
            Ok(()) => debug!(%peer, "a server was told where this node can be reached"),
            Err(error) => debug!(%peer, %error, "a server was not told where this node can be reached"),
        }
    }

    pub(in crate::swarm) fn on_find_deadline(&mut self, now: Instant) {
        while let Some(query) = self.find.lookups.pop_overdue(now) {
            self.swarm.behaviour_mut().find.end(query);
        }
        match self.find.publisher.step(now) {
            Some(Step::Hurry(query)) => self.swarm.behaviour_mut().find.end(query),
            Some(Step::Publish) => self.publish(now),
            None => {}
        }
        if self.find.is_purge_due(now) {
            self.purge_records(now);
        }
    }

    fn publish(&mut self, now: Instant) {
        let behaviour = &mut self.swarm.behaviour_mut().find;
        let addresses = behaviour.to_tell();
        if addresses.is_empty() || self.draining {
            return self.find.publisher.nothing_to_do();
        }
        let query = behaviour.publish(addresses);
        self.find.publisher.started(query, now);
        // Those of the settings need not be looked for.
        let connected: Vec<PeerId> = self.find.servers.iter().copied().collect();
        for server in connected.into_iter().filter(|server| self.find.is_configured(server)).collect::<Vec<_>>() {
            self.tell(server);
        }
    }

    fn purge_records(&mut self, now: Instant) {
        let store = self.swarm.behaviour_mut().find.store();
        store.purge(now.into_std());
        let gone: Vec<PeerId> = self.peers.all_served().filter(|peer| !store.has(peer)).collect();
        if store.len() > 0 {
            self.find.purge_later(now);
        }
        for peer in gone {
            if let Some(entry) = self.peers.get_mut(&peer) {
                entry.served = false;
            }
            self.attend(peer, now);
        }
    }

    /// Looks for a peer for a caller that wants to know where it is.
    pub(in crate::swarm) fn find_peer(
        &mut self,
        peer: PeerId,
        reply: oneshot::Sender<Result<Found, NodeError>>,
        now: Instant,
    ) {
        let looking = self.check_target(peer).and_then(|()| self.look(peer, now));
        if let Err(error) = looking {
            let known = if matches!(error, NodeError::NoAddress(_) | NodeError::NotFound { .. }) {
                self.known_views(peer, now)
            } else {
                Vec::new()
            };
            let found = Found { peer, addresses: known, asked: 0, answered: 0, hops: 0, took: Default::default() };
            return drop(reply.send(if found.addresses.is_empty() { Err(error) } else { Ok(found) }));
        }
        let Some(lookup) = self.find.lookups.get_mut(&peer) else { return };
        if !lookup.has_room() {
            return drop(reply.send(Err(too_many_callers())));
        }
        lookup.tidy();
        lookup.finders.push(reply);
        if !lookup.found.is_empty() {
            self.tell_finders(peer, now);
        }
    }

    /// Connects for a caller that named only the id: over the addresses known,
    /// and over those found if there are none or if they may be old.
    pub(in crate::swarm) fn reach_out(&mut self, peer: PeerId, waiter: Waiter, now: Instant) {
        let addresses = self.ways_to(&peer);
        if addresses.is_empty() {
            return match self.look(peer, now) {
                Ok(()) => self.park(peer, waiter),
                Err(error) => waiter.fail(error),
            };
        }
        if !self.peers.get(&peer).is_some_and(|entry| entry.known.is_fresh(now)) {
            let _ = self.look(peer, now);
        }
        // The waiter hears of a failure.
        let _ = self.dial(peer, addresses, Some(waiter), true, now);
    }

    /// The same without a caller; `false` if there is nothing to be done.
    pub(in crate::swarm) fn seek(&mut self, peer: PeerId, now: Instant) -> bool {
        let mut addresses = self.ways_to(&peer);
        addresses.retain(|address| !self.pending.is_trying(&peer, address));
        let Some(entry) = self.peers.get(&peer) else { return false };
        let look = entry.is_sought() && !entry.known.is_fresh(now);
        let looked = if look { Some(self.look(peer, now)) } else { None };
        if addresses.is_empty() && matches!(looked, Some(Err(NodeError::NotFound { .. } | NodeError::Limit(_)))) {
            // Not the peer's fault: it was looked for a moment ago.
            self.redial.postpone(peer, now, rand::random());
            return true;
        }
        let looking = matches!(looked, Some(Ok(())));
        let dialled = !addresses.is_empty() && self.dial(peer, addresses, None, true, now).is_ok();
        dialled || looking
    }

    /// All addresses that may lead to a peer, best first.
    pub(in crate::swarm) fn known_addresses(&self, peer: PeerId) -> Vec<Multiaddr> {
        let mut addresses = self.peers.get(&peer).map(|entry| entry.addresses()).unwrap_or_default();
        for address in self.find.lookups.fresh(&peer, Instant::now()) {
            if addresses.len() < MAX_DIAL_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// No address led to the peer: it is looked for, if somebody wants it.
    pub(in crate::swarm) fn look_elsewhere(
        &mut self,
        peer: PeerId,
        waiters: Vec<Waiter>,
        elsewhere: bool,
        failure: NodeError,
        now: Instant,
    ) {
        let sought = self.peers.get(&peer).is_some_and(|entry| entry.is_sought());
        if elsewhere && (sought || !waiters.is_empty()) && self.look(peer, now).is_ok() {
            if let Some(lookup) = self.find.lookups.get_mut(&peer) {
                lookup.failure = Some(failure);
            }
            return waiters.into_iter().for_each(|waiter| self.park(peer, waiter));
        }
        waiters.into_iter().for_each(|waiter| waiter.fail(failure.clone()));
        self.redial.failed(peer, now, rand::random());
    }

    /// Addresses were tried on the way to one that worked.
    pub(super) fn note_failures(
        &mut self,
        peer: PeerId,
        failures: &[(Multiaddr, TransportError<std::io::Error>)],
        now: Instant,
    ) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        for (address, error) in failures {
            entry.known.failed(address, &cause::transport_cause(error), now);
        }
    }

    /// What came of each address of a dial that failed.
    pub(in crate::swarm) fn note_outcome(&mut self, peer: PeerId, failure: &NodeError, now: Instant) {
        let NodeError::Unreachable { attempts, .. } = failure else { return };
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        for attempt in attempts {
            if let Some(address) = &attempt.address {
                entry.known.failed(address, &attempt.cause, now);
            }
        }
    }

    /// Begins to look for a peer, or lets a search under way go on.
    fn look(&mut self, peer: PeerId, now: Instant) -> Result<(), NodeError> {
        if self.draining {
            return Err(NodeError::Closed);
        }
        match self.find.lookups.verdict(&peer, now) {
            Verdict::Running => return Ok(()),
            Verdict::Recent(asked, answered) => return Err(NodeError::NotFound { peer, asked, answered }),
            Verdict::Full => {
                return Err(NodeError::Limit("too many peers are being looked for; try again later".to_owned()));
            }
            Verdict::Begin => {}
        }
        let behaviour = &mut self.swarm.behaviour_mut().find;
        let servers = behaviour.servers();
        if servers.is_empty() && !behaviour.store().has(&peer) {
            return Err(NodeError::NoAddress(peer));
        }
        let query = behaviour.search(&peer);
        self.find.lookups.begin(peer, query, servers, now);
        debug!(%peer, "looking for a peer");
        Ok(())
    }

    /// A server answered, whether it knows the peer or not.
    fn on_lookup_answer(&mut self, id: QueryId, stats: &QueryStats, source: Option<PeerId>, now: Instant) {
        let Some(peer) = self.find.lookups.peer(id) else { return };
        let addresses = self.swarm.behaviour_mut().find.addresses(&peer);
        let Some(lookup) = self.find.lookups.get_mut(&peer) else { return };
        let new = lookup.answer(source, stats, addresses);
        if new.is_empty() {
            return;
        }
        debug!(%peer, addresses = new.len(), "found a peer");
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.known.found(&new, now);
        }
        self.tell_finders(peer, now);
        self.dial_found(peer, new, now);
    }

    /// Dials addresses just found, if somebody wants the peer, unless they are
    /// being tried or just failed.
    fn dial_found(&mut self, peer: PeerId, mut new: Vec<Multiaddr>, now: Instant) {
        let Some(lookup) = self.find.lookups.get_mut(&peer) else { return };
        if let Some(NodeError::Unreachable { attempts, .. }) = &lookup.failure {
            new.retain(|address| attempts.iter().all(|attempt| attempt.address.as_ref() != Some(address)));
        }
        new.retain(|address| !self.pending.is_trying(&peer, address));
        let entry = self.peers.get(&peer);
        let connected = entry.is_some_and(|entry| !entry.connections.is_empty());
        let sought = entry.is_some_and(|entry| entry.is_sought());
        let wanted = sought || !lookup.waiters.is_empty() || self.pending.is_dialling(&peer);
        if connected || !wanted || new.is_empty() || self.draining || !self.pending.has_room_for_dial() {
            return;
        }
        if self.dial(peer, new, None, true, now).is_ok() {
            for waiter in self.find.lookups.take_waiters(&peer) {
                if let Err(waiter) = self.pending.join(peer, waiter) {
                    waiter.fail(NodeError::NoAddress(peer));
                }
            }
        }
    }

    fn on_search_ended(&mut self, id: QueryId, stats: &QueryStats, now: Instant) {
        let Some(peer) = self.find.lookups.peer(id) else { return };
        // What was found counts the peer itself among those asked.
        if let Some(lookup) = self.find.lookups.get_mut(&peer).filter(|lookup| lookup.found.is_empty()) {
            lookup.count(stats);
        }
        self.tell_finders(peer, now);
        let Some((peer, lookup)) = self.find.lookups.end(id, now) else { return };
        let Lookup { asked, answered, found, waiters, finders, failure, .. } = lookup;
        debug!(%peer, asked, answered, found = found.len(), "looked for a peer");
        let error = NodeError::NotFound { peer, asked, answered };
        finders.into_iter().for_each(|finder| drop(finder.send(Err(error.clone()))));
        let error = failure.unwrap_or(error);
        for waiter in waiters {
            if let Err(waiter) = self.pending.join(peer, waiter) {
                waiter.fail(error.clone());
            }
        }
        let connected = self.peers.get(&peer).is_some_and(|entry| !entry.connections.is_empty());
        if !connected && !self.pending.is_dialling(&peer) {
            self.redial.failed(peer, now, rand::random());
        }
    }

    /// Answers those who want the addresses, if there are any.
    fn tell_finders(&mut self, peer: PeerId, now: Instant) {
        let addresses = self.known_views(peer, now);
        let Some(lookup) = self.find.lookups.get_mut(&peer) else { return };
        if addresses.is_empty() {
            return;
        }
        let found = Found { addresses, ..lookup.result(peer, now) };
        lookup.finders.drain(..).for_each(|finder| drop(finder.send(Ok(found.clone()))));
    }

    fn known_views(&self, peer: PeerId, now: Instant) -> Vec<KnownAddressView> {
        let mut views = self.peers.get(&peer).map(|entry| entry.known.views(now)).unwrap_or_default();
        for address in self.find.lookups.fresh(&peer, now) {
            if views.iter().all(|view| view.address != address) {
                let (source, age) = (KnownSource::Found, Default::default());
                views.push(KnownAddressView { address, source, age, tried: None, outcome: None });
            }
        }
        views
    }

    /// Lets a caller wait for a search to bring addresses.
    fn park(&mut self, peer: PeerId, waiter: Waiter) {
        match self.find.lookups.get_mut(&peer).filter(|lookup| lookup.has_room()) {
            Some(lookup) => {
                lookup.tidy();
                lookup.waiters.push(waiter);
            }
            None => waiter.fail(too_many_callers()),
        }
    }

    /// How this node is found and finds others.
    pub(in crate::swarm) fn find_view(&mut self, now: Instant) -> FindView {
        let behaviour = &mut self.swarm.behaviour_mut().find;
        let servers = behaviour.servers().len() as u32;
        let done = self.find.publisher.done();
        FindView {
            network: self.find.network,
            server: self.find.is_server(),
            servers,
            connected: self.find.servers.len() as u32,
            configured: self.find.has_configured(),
            bootstrapped: self.find.bootstrapped,
            published: done.map(|(at, _)| now.saturating_duration_since(at)),
            published_to: done.map_or(0, |(_, servers)| servers),
            addresses: behaviour.told().to_vec(),
            records: behaviour.store().len() as u32,
            max_records: MAX_RECORDS as u32,
        }
    }
}

fn too_many_callers() -> NodeError {
    NodeError::Limit("too many callers wait for this peer to be found; try again later".to_owned())
}
