//! Circuits are left for others before their relay ends them.

use std::time::Duration;

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::debug;

use crate::swarm::{
    relay::{LiveCircuit, meter::Way},
    route::{is_circuit, relay_of},
    task::Task,
};

/// From one try to open another circuit to the next; the side that did not open
/// the first one waits so long for the other.
const AGAIN: Duration = Duration::from_millis(500);

impl Task {
    /// A circuit is up.
    pub(super) fn on_circuit(&mut self, peer: PeerId, id: ConnectionId, now: Instant) {
        let Some(connection) = self.peers.get(&peer).and_then(|entry| entry.connection(id)) else { return };
        let relay = relay_of(&connection.address).map(|(relay, _)| relay);
        let Some(meter) = self.relays.meters.take(Way { peer, relay, dialled: connection.dialled }) else { return };
        let limit = relay.and_then(|relay| self.relays.limits.get(&relay));
        // Unless it knows already.
        meter.set_limit(limit.copied().unwrap_or_default());
        let until = meter.use_for().map(|time| now + time);
        let circuit = LiveCircuit { peer, meter, until, dialled: connection.dialled, worn: false };
        self.relays.circuits.insert(id, circuit);
    }

    /// Looks for circuits that are nearly used up.
    pub(in crate::swarm) fn on_circuits_due(&mut self, now: Instant) {
        let is_due = |circuit: &LiveCircuit| {
            circuit.until.is_some_and(|until| until <= now) || !circuit.worn && circuit.meter.is_used_up()
        };
        let due: Vec<_> =
            self.relays.circuits.iter().filter(|(_, circuit)| is_due(circuit)).map(|(id, _)| *id).collect();
        for id in due {
            self.leave_circuit(id, now);
        }
    }

    fn leave_circuit(&mut self, id: ConnectionId, now: Instant) {
        let Some(peer) = self.relays.circuits.get(&id).map(|circuit| circuit.peer) else { return };
        // Of two that crossed, one may have been left for the other.
        let dialled = self.relays.circuits.values().any(|circuit| circuit.peer == peer && circuit.dialled);
        let Some(circuit) = self.relays.circuits.get_mut(&id) else { return };
        let first = !std::mem::replace(&mut circuit.worn, true);
        circuit.until = Some(now + AGAIN);
        let mine = dialled || !first;
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.steer.wear(id);
        let needed = entry.is_trusted() || entry.should_be_connected();
        if entry.steer.has_fresh() || !needed {
            // It ends by itself.
            circuit.until = None;
        } else if mine && !self.draining && !self.pending.is_dialling_circuit(&peer) {
            debug!(%peer, "a circuit is nearly used up; opening another one");
            let mut addresses = self.ways_to(&peer);
            addresses.retain(is_circuit);
            // Without a caller; tried again if it fails.
            let _ = self.dial(peer, addresses, None, false, now);
        }
        self.attend(peer, now);
    }
}
