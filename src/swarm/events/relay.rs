//! Relays come and go, and this node is one.

use std::{io, time::Duration};

use libp2p::{PeerId, core::transport::ListenerId, relay, swarm::ConnectionId};
use tokio::{sync::oneshot, time::Instant};
use tracing::{debug, info};

use crate::{
    node::Reachable,
    swarm::{
        cause, reach,
        relay::{
            MAX_WAITING, RESERVATION_WAIT,
            candidate::{Kind, Step},
            client::Change,
        },
        task::{Task, is_time},
    },
    types::Route,
    wire::circuit::CircuitLimit,
};

impl Task {
    /// Begins to serve, and to look for relays. Listeners must exist: a
    /// connection that a NAT is to map as it maps them starts from their port.
    pub(in crate::swarm) fn start_relays(&mut self, now: Instant) {
        self.tell_external();
        if self.external.is_configured() {
            self.relays.server.set_public(true);
        }
        self.serve_or_not();
        self.tend_relays(now);
    }

    /// Tells whether others can connect to this node, as far as is known.
    pub(in crate::swarm) fn set_public(&mut self, public: bool) {
        self.relays.server.set_public(public || self.external.is_configured());
        self.serve_or_not();
    }

    fn serve_or_not(&mut self) {
        let active = self.relays.server.is_active();
        let connections = self.peers.connections().map(|(peer, connection)| (peer, connection.id));
        self.swarm.behaviour_mut().link.serve(active, connections);
        self.answer_or_not(active);
    }

    /// Does what the state of the relays asks for.
    pub(in crate::swarm) fn tend_relays(&mut self, now: Instant) {
        while let Some(step) = self.relays.client.step(now) {
            match step {
                Step::Dial { relay, kind, addresses, within } => {
                    self.dial_relay(relay, kind, addresses, within, now);
                }
                Step::Reserve { relay, at } => {
                    let listener =
                        self.swarm.listen_on(at).inspect_err(|error| debug!(%relay, %error, "no reservation"));
                    self.relays.client.asked(relay, listener.ok(), now, rand::random());
                }
                Step::Keep { relay, keep } => self.keep_all(relay, keep),
                Step::Close(connection) => drop(self.swarm.close_connection(connection)),
            }
        }
    }

    fn dial_relay(
        &mut self,
        relay: PeerId,
        kind: Kind,
        addresses: Vec<libp2p::Multiaddr>,
        within: Option<Duration>,
        now: Instant,
    ) {
        self.scope.show_port(&addresses);
        match self.dial_alone(relay, &addresses, within, now) {
            Ok(id) => {
                self.reach.dial_begun(addresses.iter(), now);
                self.relays.client.dialling(relay, kind, id);
            }
            Err(failure) => {
                let trouble = cause::not_reached(&failure);
                self.relays.client.not_dialled(relay, kind, &trouble, now, rand::random());
            }
        }
    }

    /// Keeps all connections with a peer, or no more than any peer's.
    pub(super) fn keep_all(&mut self, peer: PeerId, keep: bool) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let keep = keep || self.relays.keep(&peer);
        for id in entry.connections.iter().filter(|other| other.route != Route::Relayed).map(|other| other.id) {
            self.swarm.behaviour_mut().link.keep_alive(peer, id, keep || entry.kept == Some(id));
        }
    }

    pub(in crate::swarm) fn on_connected_relays(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        let Some(connection) = self.peers.get(&peer).and_then(|entry| entry.connection(id)) else { return };
        if connection.route == Route::Relayed {
            self.on_circuit(peer, id, now);
            self.check_errands(peer, now);
        } else {
            self.relays.client.connected(peer, id, &connection.address, now);
            if self.relays.keep(&peer) {
                self.swarm.behaviour_mut().link.keep_alive(peer, id, true);
            }
            self.run_errands(peer, now);
            if self.relays.client.keeps(&peer) {
                self.rescue_all(now);
            }
        }
        if let Some(relay) = self.relays.errands.ended(id) {
            self.run_errands(relay, now);
        }
        self.tend_relays(now);
    }

    pub(in crate::swarm) fn on_closed_relays(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        self.relays.circuits.remove(&id);
        if self.relays.server.closed(peer, id) {
            self.keep_all(peer, false);
        }
        if let Some(change) = self.relays.client.closed(peer, id, now, rand::random()) {
            self.on_reservation(peer, &change);
        }
        self.tend_relays(now);
    }

    /// Tells whether the listener was one at a relay.
    pub(in crate::swarm) fn on_reservation_ended(
        &mut self,
        id: ListenerId,
        error: Option<&io::Error>,
        now: Instant,
    ) -> bool {
        if self.listeners.has(id) {
            return false;
        }
        let trouble = error.map(cause::reservation_ended);
        match self.relays.client.listener_closed(id, trouble.clone(), now, rand::random()) {
            Some((relay, Some(change))) => self.on_reservation(relay, &change),
            Some((relay, None)) if is_time(&mut self.warned.reservation, now) => {
                info!(%relay, cause = trouble.map(tracing::field::display), "a relay gives no reservation");
            }
            _ => {}
        }
        self.tend_relays(now);
        true
    }

    pub(in crate::swarm) fn on_relay_client(&mut self, event: relay::client::Event, now: Instant) {
        use relay::client::Event;
        let (relay, limit, reserved) = match event {
            Event::ReservationReqAccepted { relay_peer_id, limit, .. } => (relay_peer_id, limit, true),
            Event::OutboundCircuitEstablished { relay_peer_id, limit } => (relay_peer_id, limit, false),
            Event::InboundCircuitEstablished { .. } => return,
        };
        let limit = CircuitLimit {
            duration: limit.and_then(|limit| limit.duration()),
            bytes: limit.and_then(|limit| limit.data_in_bytes()),
        };
        self.relays.set_limit(relay, limit);
        if reserved {
            self.on_reserved(relay, limit, now);
        }
    }

    fn on_reserved(&mut self, relay: PeerId, limit: CircuitLimit, now: Instant) {
        if let Some(change) = self.relays.client.reserved(relay, limit) {
            self.on_reservation(relay, &change);
            self.tell_waiting(now);
            // Others may be there as well again.
            self.redial.network_changed(now, rand::random);
            self.rescue_all(now);
        }
        self.tend_relays(now);
    }

    fn on_reservation(&self, relay: PeerId, change: &Change) {
        match change {
            Change::Reserved => info!(%relay, "reachable through a relay"),
            Change::Lost => info!(%relay, "a relay is lost; looking for it, or for another"),
        }
    }

    pub(in crate::swarm) fn on_relays_due(&mut self, now: Instant) {
        for peer in self.relays.server.expire(now) {
            self.keep_all(peer, false);
        }
        self.tend_relays(now);
        self.tell_waiting(now);
    }

    /// Where others can reach this node, best first.
    fn addresses_told(&self) -> Vec<Reachable> {
        let external: Vec<_> = self.external.told().cloned().collect();
        reach::best_first(&self.listeners.addresses(), &external, &self.relays.client.circuits())
    }

    /// Answers where this node is reached: at once, or if that is to be
    /// settled, once it is reserved at a relay that it needs.
    pub(in crate::swarm) fn reachable(&mut self, settled: bool, reply: oneshot::Sender<Vec<Reachable>>, now: Instant) {
        let client = &self.relays.client;
        let needed = client.has_configured() && !client.is_reserved() && !self.reach.is_public();
        if settled && needed && self.relays.waiting.len() < MAX_WAITING {
            return self.relays.waiting.push((now + RESERVATION_WAIT, reply));
        }
        // The caller may have gone away.
        drop(reply.send(self.addresses_told()));
    }

    fn tell_waiting(&mut self, now: Instant) {
        let reserved = self.relays.client.is_reserved();
        let due: Vec<_> = self.relays.waiting.extract_if(.., |(until, _)| reserved || *until <= now).collect();
        for (_, reply) in due {
            drop(reply.send(self.addresses_told()));
        }
    }
}
