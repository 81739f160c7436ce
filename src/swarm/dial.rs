//! Dials of peers: the ways that are direct in one, and one for each relay.
//!
//! All ways are tried at once. A direct one goes on being tried when a relay
//! was faster, so that the link can move there.

use std::{io, time::Duration};

use libp2p::{
    Multiaddr, PeerId, TransportError,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::Instant;
use tracing::debug;

use super::{
    cause,
    pending::{Dial, Overdue, Waiter},
    route::{is_circuit, relay_of},
    task::Task,
};
use crate::{
    node::{DialAttempt, DialCause, NodeError},
    types::Route,
};

/// Relays tried in one dial; each may have to be connected first.
const MAX_RELAYS: usize = 4;

impl Task {
    /// Dials; the waiter hears of it either way. `elsewhere`: if nothing leads
    /// to the peer, it may be looked for.
    pub(super) fn dial(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        waiter: Option<Waiter>,
        elsewhere: bool,
        now: Instant,
    ) -> Result<(), NodeError> {
        let group = self.pending.new_group();
        let (circuits, direct): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_circuit);
        let relays = self.by_relay(peer, circuits);
        let mut waiters: Vec<Waiter> = waiter.into_iter().collect();
        let mut error = NodeError::NoAddress(peer);
        let mut begun = false;
        if !direct.is_empty() {
            let options = options(peer, direct.clone());
            let id = options.connection_id();
            match self.swarm.dial(options) {
                Ok(()) => {
                    let waiters = std::mem::take(&mut waiters);
                    let dial = Dial { peer, addresses: direct, waiters, attempts: Vec::new(), group, elsewhere };
                    self.pending.dialling(id, dial, now);
                    begun = true;
                }
                Err(failure) => error = cause::dial_failure(peer, &direct, &failure),
            }
        }
        for (relay, addresses) in &relays {
            // Where the relay is does not matter once it is connected.
            let address: Vec<_> = addresses.iter().take(1).cloned().collect();
            let options = options(peer, address.clone());
            let waiters = std::mem::take(&mut waiters);
            let dial = Dial { peer, addresses: address, waiters, attempts: Vec::new(), group, elsewhere };
            self.pending.dialling(options.connection_id(), dial, now);
            self.relays.errands.add(*relay, options);
            begun = true;
        }
        if !begun {
            waiters.into_iter().for_each(|waiter| waiter.fail(error.clone()));
            return Err(error);
        }
        for (relay, addresses) in relays {
            self.get_ready(relay, &addresses, now);
        }
        Ok(())
    }

    /// Addresses of circuits, those of one relay together.
    fn by_relay(&self, peer: PeerId, circuits: Vec<Multiaddr>) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let local = *self.swarm.local_peer_id();
        let mut relays: Vec<(PeerId, Vec<Multiaddr>)> = Vec::new();
        for address in circuits {
            let Some((relay, _)) = relay_of(&address).filter(|(relay, _)| *relay != peer && *relay != local) else {
                continue;
            };
            match relays.iter().position(|(other, _)| *other == relay) {
                Some(at) => relays[at].1.push(address),
                None if relays.len() < MAX_RELAYS => relays.push((relay, vec![address])),
                None => {}
            }
        }
        relays
    }

    /// Connects a relay that circuits wait for.
    fn get_ready(&mut self, relay: PeerId, circuits: &[Multiaddr], now: Instant) {
        if self.is_near(&relay) {
            return self.run_errands(relay, now);
        }
        if self.pending.is_dialling(&relay) {
            return;
        }
        let mut addresses = self.relays.client.addresses(&relay);
        for (_, address) in circuits.iter().filter_map(relay_of) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if let Err(failure) = self.dial_alone(relay, &addresses, None, now) {
            self.give_up_errands(relay, &failure, now);
        }
    }

    /// Dials for no caller, for no longer than this if it is said.
    pub(super) fn dial_alone(
        &mut self,
        peer: PeerId,
        addresses: &[Multiaddr],
        within: Option<Duration>,
        now: Instant,
    ) -> Result<ConnectionId, NodeError> {
        let options = options(peer, addresses.to_vec());
        let id = options.connection_id();
        let begun = match within {
            Some(time) => self.scope.within_time(time, || self.swarm.dial(options)),
            None => self.swarm.dial(options),
        };
        begun.map_err(|error| cause::dial_failure(peer, addresses, &error))?;
        let group = self.pending.new_group();
        self.pending.dialling(id, Dial::without_caller(peer, addresses.to_vec(), group), now);
        Ok(id)
    }

    /// Whether there is a connection with a peer that is not relayed itself, and
    /// not silent.
    fn is_near(&self, peer: &PeerId) -> bool {
        let near = |entry: &super::peers::Peer| {
            let mut all = entry.connections.iter();
            all.any(|other| other.route != Route::Relayed && !entry.steer.is_doubted(other.id))
        };
        self.peers.get(peer).is_some_and(near)
    }

    /// Opens circuits over a relay that is connected.
    pub(super) fn run_errands(&mut self, relay: PeerId, now: Instant) {
        while let Some(options) = self.relays.errands.pop(&relay) {
            let id = options.connection_id();
            if let Err(error) = self.swarm.dial(options) {
                self.relays.errands.ended(id);
                self.dial_failed(id, &error, now);
            }
        }
    }

    fn give_up_errands(&mut self, relay: PeerId, why: &NodeError, now: Instant) {
        for id in self.relays.errands.give_up(&relay) {
            let Some(dial) = self.pending.dialled(id) else { continue };
            let cause = DialCause::Other(format!("its relay was not reached: {why}"));
            let attempts = dial.addresses.iter().cloned().map(Some);
            let attempts = attempts.map(|address| DialAttempt { address, cause: cause.clone() }).collect();
            self.after_failure(dial, NodeError::Unreachable { peer: relay, attempts }, now);
        }
    }

    pub(super) fn on_dial_error(&mut self, id: ConnectionId, error: &DialError, now: Instant) {
        if self.punch_dial_failed(id, now) {
            return debug!(%error, "direct connection");
        }
        if self.on_dial_back_failed(id, error) {
            return;
        }
        let relay = self.relays.errands.ended(id);
        self.dial_failed(id, error, now);
        if let Some(relay) = relay {
            self.run_errands(relay, now);
        }
        self.tend_relays(now);
    }

    fn dial_failed(&mut self, id: ConnectionId, error: &DialError, now: Instant) {
        if let DialError::Transport(tried) = error {
            self.reach.dial_failed(tried.iter().map(|(address, _)| address), now);
        }
        if let Some(dial) = self.pending.dialled(id) {
            let failure = cause::dial_failure(dial.peer, &dial.addresses, error);
            if matches!(error, DialError::Transport(_) | DialError::WrongPeerId { .. }) {
                self.note_outcome(dial.peer, &failure, now);
            }
            self.relays.client.dial_failed(dial.peer, id, &cause::not_reached(&failure), now, rand::random());
            self.after_failure(dial, failure, now);
        }
    }

    fn after_failure(&mut self, dial: Dial, failure: NodeError, now: Instant) {
        let (peer, elsewhere) = (dial.peer, dial.elsewhere);
        debug!(%peer, %failure, "dial failed");
        let Some((waiters, failure)) = self.pending.pass_on(dial, failure) else {
            return self.retry_meanwhile(peer, now);
        };
        if self.pending.is_dialling(&peer) {
            self.retry_meanwhile(peer, now);
            return self.wait_for_others(peer, waiters, elsewhere, &failure);
        }
        let connections = self.peers.get(&peer).map_or(0, |entry| entry.connections.len());
        if connections == 0 {
            self.look_elsewhere(peer, waiters, elsewhere, failure, now);
        } else {
            waiters.into_iter().for_each(|waiter| waiter.fail(failure.clone()));
        }
        self.check_errands(peer, now);
    }

    /// Circuits wait in vain for a relay that is not being dialled any more and
    /// is not connected, or through another relay only.
    pub(super) fn check_errands(&mut self, relay: PeerId, now: Instant) {
        if self.relays.errands.wait_for(&relay) && !self.is_near(&relay) && !self.pending.is_dialling(&relay) {
            let failure = NodeError::NoAddress(relay);
            self.give_up_errands(relay, &failure, now);
        }
    }

    /// A dial took too long. What libp2p was asked to do it will end; what still
    /// waits for a relay ends here.
    pub(super) fn on_overdue(&mut self, Overdue { id, peer, tried, waiters }: Overdue, now: Instant) {
        let error = cause::dial_timeout(peer, &tried);
        waiters.into_iter().for_each(|waiter| waiter.fail(error.clone()));
        if self.relays.errands.cancel(id)
            && let Some(dial) = self.pending.dialled(id)
        {
            self.after_failure(dial, error, now);
        }
    }

    /// A direct way may take long to fail; a relay is asked again meanwhile.
    fn retry_meanwhile(&mut self, peer: PeerId, now: Instant) {
        let connected = self.peers.get(&peer).is_some_and(|entry| !entry.connections.is_empty());
        if !connected && !self.pending.is_dialling_circuit(&peer) && !self.redial.is_waiting(&peer) {
            self.redial.failed(peer, now, rand::random());
        }
    }

    /// Another dial of the same peer may still lead to it.
    fn wait_for_others(&mut self, peer: PeerId, waiters: Vec<Waiter>, elsewhere: bool, failure: &NodeError) {
        for waiter in waiters {
            let left = if elsewhere { self.pending.join(peer, waiter).err() } else { Some(waiter) };
            if let Some(waiter) = left {
                waiter.fail(failure.clone());
            }
        }
    }

    /// Addresses were tried on the way to one that worked.
    pub(super) fn note_failures(
        &mut self,
        peer: PeerId,
        failures: &[(Multiaddr, TransportError<io::Error>)],
        now: Instant,
    ) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        for (address, error) in failures {
            entry.known.failed(address, &cause::transport_cause(error), now);
        }
    }

    /// What came of each address of a dial that failed.
    fn note_outcome(&mut self, peer: PeerId, failure: &NodeError, now: Instant) {
        let NodeError::Unreachable { attempts, .. } = failure else { return };
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        for attempt in attempts {
            if let Some(address) = &attempt.address {
                entry.known.failed(address, &attempt.cause, now);
            }
        }
    }

    /// Addresses to dial a peer at: those known of it and those just found, and
    /// this node's own relays, at which it may be as well.
    pub(super) fn ways_to(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let mut all = self.known_addresses(*peer);
        let own = self.relays.client.meeting_points();
        all.extend(own.into_iter().filter(|address| relay_of(address).is_some_and(|(relay, _)| relay != *peer)));
        all
    }
}

fn options(peer: PeerId, addresses: Vec<Multiaddr>) -> DialOpts {
    DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses).build()
}
