//! Clients ask this node for what it does as a relay.

use libp2p::{PeerId, Stream, multiaddr::Protocol, swarm::ConnectionId};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    swarm::{
        pending::{Opening, Purpose},
        reach,
        relay::{
            Relays,
            hop::{Client, Granted, Reply, Report, STOP, StopJob, Way},
            server::Asker,
        },
        route::is_circuit,
        task::Task,
    },
    types::Route,
    wire::circuit::serve::Refusal,
};

impl Task {
    pub(super) fn on_hop_stream(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        stream: Stream,
        place: OwnedSemaphorePermit,
    ) {
        let Relays { server, .. } = &self.relays;
        let (trusted, limit) = (server.is_trusted(&peer), server.circuit_limit());
        self.hops.attend(Client { peer, connection }, trusted, stream, place, limit);
    }

    pub(in crate::swarm) fn on_hop(&mut self, report: Report, now: Instant) {
        match report {
            Report::Reserve(client, reply) => {
                // The client may be gone.
                drop(reply.send(self.reserve(client, now)));
            }
            Report::Connect(client, to, reply) => self.relay(client, to, reply, now),
            Report::Up(circuit) => self.relays.server.up(circuit),
            Report::Ended(circuit) => self.relays.server.ended(circuit),
        }
    }

    fn reserve(&mut self, client: Client, now: Instant) -> Result<Granted, Refusal> {
        let asker = self.asker(client)?;
        let duration = self.relays.server.reserve(&asker, now)?;
        self.keep_all(client.peer, true);
        let id = Protocol::P2p(*self.swarm.local_peer_id());
        let own = self.swarm.external_addresses().filter(|address| !is_circuit(address));
        let named = own.map(|address| match address.iter().last() {
            Some(Protocol::P2p(_)) => address.to_vec(),
            _ => address.clone().with(id.clone()).to_vec(),
        });
        Ok(Granted { duration, addresses: named.collect() })
    }

    fn relay(&mut self, client: Client, to: PeerId, reply: Reply, now: Instant) {
        let begun = self.asker(client).and_then(|asker| self.relays.server.connect(&asker, to, now));
        match begun {
            Ok((id, cancel)) => {
                let mut untried = self.relays.server.ways_to(&to);
                if let Some(entry) = self.peers.get(&to) {
                    untried.sort_by_key(|connection| entry.steer.is_doubted(*connection));
                }
                self.open_stop(to, StopJob { id, untried, cancel, reply });
            }
            // The client may be gone.
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// Asks whoever a circuit leads to on the next connection with it.
    pub(super) fn open_stop(&mut self, peer: PeerId, mut job: StopJob) {
        let entry = self.peers.get(&peer);
        // Nothing comes back from one that is gone meanwhile, not even its end.
        job.untried.retain(|id| entry.is_some_and(|entry| entry.connection(*id).is_some()));
        if job.untried.is_empty() || job.reply.is_closed() || self.draining {
            self.relays.server.ended(job.id);
            return drop(job.reply.send(Err(Refusal::ConnectionFailed)));
        }
        let connection = job.untried.remove(0);
        if !self.relays.server.lead(job.id, connection) {
            return drop(job.reply.send(Err(Refusal::ConnectionFailed)));
        }
        let token = self.pending.opening(Opening { peer, connection, purpose: Purpose::Stop(Box::new(job)) });
        self.swarm.behaviour_mut().link.open(peer, connection, STOP, token);
    }

    pub(super) fn stop_opened(&mut self, job: StopJob, stream: Stream) {
        let StopJob { id, cancel, reply, .. } = job;
        if reply.send(Ok(Way { id, stream, cancel })).is_err() {
            self.relays.server.ended(id);
        }
    }

    /// Who asks, if that connection is still there.
    fn asker(&self, Client { peer, connection }: Client) -> Result<Asker, Refusal> {
        let known = self.peers.get(&peer).and_then(|entry| entry.connection(connection));
        let known = known.ok_or(Refusal::ConnectionFailed)?;
        Ok(Asker { peer, connection, ip: reach::ip(&known.address), relayed: known.route == Route::Relayed })
    }
}
