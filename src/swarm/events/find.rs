//! Peers are looked for by their id.

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        self, GetClosestPeersError, GetClosestPeersOk, GetProvidersOk, InboundRequest, QueryId, QueryResult, QueryStats,
    },
};
use tokio::{sync::oneshot, time::Instant};
use tracing::{debug, info};

use crate::{
    node::{DialAttempt, DialCause, FindView, Found, KnownAddressView, KnownSource, NodeError},
    swarm::{
        addresses::{MAX_DIAL_ADDRESSES, may_come_from_anybody},
        find::{
            behaviour::Event,
            lookup::{Lookup, Verdict},
            publish::Step,
            store::MAX_RECORDS,
        },
        peers::Peer,
        pending::Waiter,
        task::Task,
    },
};

impl Task {
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
                Err(error @ (NodeError::NoAddress(_) | NodeError::NotFound { .. })) => {
                    let known: Vec<_> = self.known_views(peer, now).into_iter().map(|view| view.address).collect();
                    waiter.fail(self.not_dialled(peer, &known).unwrap_or(error));
                }
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
            let known = addresses.contains(&address);
            if addresses.len() < MAX_DIAL_ADDRESSES && !known && self.may_be_dialled(&peer, &address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Whether to dial an address of a peer that was found: anybody may have
    /// told it.
    fn may_be_dialled(&self, peer: &PeerId, address: &Multiaddr) -> bool {
        let believed = self.peers.get(peer).map_or(self.trust_open, Peer::is_believed);
        believed || may_come_from_anybody(address)
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
        new.retain(|address| self.may_be_dialled(&peer, address));
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
        let error = failure.or_else(|| self.not_dialled(peer, &found)).unwrap_or(error);
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

    /// What to say if a peer is known only to be where it is not looked for.
    fn not_dialled(&self, peer: PeerId, known: &[Multiaddr]) -> Option<NodeError> {
        let refused = known.iter().filter(|address| !self.may_be_dialled(&peer, address));
        let cause = DialCause::NotBelieved;
        let attempt = |address: &Multiaddr| DialAttempt { address: Some(address.clone()), cause: cause.clone() };
        let attempts: Vec<_> = refused.map(attempt).collect();
        (!attempts.is_empty()).then_some(NodeError::Unreachable { peer, attempts })
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
