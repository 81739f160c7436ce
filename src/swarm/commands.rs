//! What the task does on a command.

use std::io;

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;
use tracing::info;

use super::{
    addresses::MAX_DIAL_ADDRESSES,
    circuit,
    join::{self, JoinJob},
    peers::Connection,
    pending::{Opening, PingJob, Purpose, Waiter},
    ping::{self, Job},
    route::{is_dialable, without_peer},
    task::Task,
};
use crate::{
    node::{Command, Connected, ConnectionInfo, DialTarget, KnownSource, NetworkView, NodeError, PeerPolicy, Standing},
    types::Route,
};

impl Task {
    /// Handles a command; `false` once nobody can send one any more.
    pub(super) fn on_command(&mut self, command: Option<Command>) -> bool {
        let Some(command) = command else { return false };
        let now = Instant::now();
        // A caller that went away is nobody's fault.
        match command {
            Command::Connect(target, reply) => self.connect(target, Waiter::Connect(reply), now),
            Command::Ping(peer, reply) => self.connect(DialTarget::Peer(peer), Waiter::Ping(reply), now),
            Command::Join(target, request, reply) => {
                self.connect(target, Waiter::Join(Box::new(JoinJob { request, reply, connected: None })), now);
            }
            Command::Disconnect(peer, reply) => drop(reply.send(self.disconnect(peer))),
            Command::SetPolicy(peer, policy) => self.set_policy(peer, policy, now),
            Command::Want(peer, wanted) => self.want(peer, wanted, now),
            Command::Suspect(link) => self.suspect(link, now),
            Command::Reachable { settled, reply } => self.reachable(settled, reply, now),
            Command::View(reply) => drop(reply.send(self.view())),
            Command::Find(peer, reply) => self.find_peer(peer, reply, now),
            Command::Reach(reply) => drop(reply.send(self.reach_view(now))),
            Command::Path(peer, reply) => drop(reply.send(self.path_view(peer, now))),
            Command::ViewPeers(peers, reply) => {
                let view = |peer| self.peers.get(&peer).map(|entry| entry.view(peer));
                drop(reply.send(peers.into_iter().filter_map(view).collect()));
            }
            Command::Beat(reply) => drop(reply.send(())),
            Command::Drain => self.drain(now),
        }
        true
    }

    fn connect(&mut self, target: DialTarget, waiter: Waiter, now: Instant) {
        let peer = target.peer();
        if let Err(error) = self.check_target(peer) {
            return waiter.fail(error);
        }
        let anew = matches!(target, DialTarget::Addresses { anew: true, .. });
        if let Some(info) = self.peers.get(&peer).and_then(|entry| entry.info(peer)).filter(|_| !anew) {
            return self.serve(waiter, info, true);
        }
        let Some(waiter) = self.share_dial(&target, waiter, now) else { return };
        if !self.pending.has_room_for_dial() {
            return waiter.fail(NodeError::Limit("too many dials are under way; try again later".to_owned()));
        }
        if matches!(target, DialTarget::Peer(_)) {
            return self.reach_out(peer, waiter, now);
        }
        let elsewhere = !matches!(target, DialTarget::Address(..));
        let addresses = self.addresses_of(target);
        // The waiter hears of a failure.
        let _ = self.dial(peer, addresses, Some(waiter), elsewhere, now);
    }

    pub(super) fn check_target(&mut self, peer: PeerId) -> Result<(), NodeError> {
        if peer == *self.swarm.local_peer_id() {
            return Err(NodeError::Myself(peer));
        }
        if self.peers.get(&peer).is_some_and(|entry| entry.is_blocked()) {
            return Err(NodeError::Blocked(peer));
        }
        if self.draining {
            return Err(NodeError::Closed);
        }
        if !self.pending.has_room_for_waiter() {
            return Err(NodeError::Limit("too many callers wait for connections; try again later".to_owned()));
        }
        Ok(())
    }

    /// Lets a caller wait for a dial under way; gives it back if there is none
    /// that tries the same.
    fn share_dial(&mut self, target: &DialTarget, waiter: Waiter, now: Instant) -> Option<Waiter> {
        match target {
            DialTarget::Peer(peer) => self.pending.join_young(*peer, None, waiter, now).err(),
            DialTarget::Address(peer, address) => {
                self.pending.join_young(*peer, Some(&without_peer(address)), waiter, now).err()
            }
            // One under way may not try all of them.
            DialTarget::Addresses { .. } => Some(waiter),
        }
    }

    fn addresses_of(&self, target: DialTarget) -> Vec<Multiaddr> {
        match target {
            DialTarget::Peer(peer) => self.known_addresses(peer),
            DialTarget::Address(_, address) => vec![without_peer(&address)],
            DialTarget::Addresses { peer, addresses: mut all, .. } => {
                all.retain(is_dialable);
                for address in self.known_addresses(peer) {
                    if all.len() < MAX_DIAL_ADDRESSES && !all.contains(&address) {
                        all.push(address);
                    }
                }
                all
            }
        }
    }

    /// Gives a caller what it waits for, now that the peer is connected.
    pub(super) fn serve(&mut self, waiter: Waiter, info: ConnectionInfo, already: bool) {
        let ConnectionInfo { peer, route, address } = info;
        let connected = Connected { peer, route, address, already };
        match waiter {
            Waiter::Connect(reply) => drop(reply.send(Ok(connected))),
            Waiter::Ping(reply) => self.open_ping(PingJob { reply, connected, broken: 0 }),
            Waiter::Join(job) => self.open_join(Box::new(JoinJob { connected: Some(connected), ..*job })),
        }
    }

    /// Opens a stream for a ping on the best connection.
    pub(super) fn open_ping(&mut self, job: PingJob) {
        let peer = job.connected.peer;
        let Some(connection) = self.best_connection(&peer) else { return job.fail("the connection is gone") };
        let token = self.pending.opening(Opening { peer, connection, purpose: Purpose::Ping(Job::Asked(job)) });
        self.swarm.behaviour_mut().link.open(peer, connection, ping::PROTOCOL, token);
    }

    /// Opens a stream to a relay for a circuit, on a connection of its own.
    pub(super) fn open_circuit(&mut self, request: circuit::Request) {
        let circuit::Request { relay: peer, reply } = request;
        let Some(connection) = self.surest(&peer) else { return drop(reply.send(Err(circuit::gone()))) };
        let token = self.pending.opening(Opening { peer, connection, purpose: Purpose::Circuit(reply) });
        self.swarm.behaviour_mut().link.open(peer, connection, circuit::HOP, token);
    }

    /// Opens a stream for the secret of a ticket on the youngest connection:
    /// the peer was alive when that was made.
    fn open_join(&mut self, job: Box<JoinJob>) {
        let Some(peer) = job.connected.as_ref().map(|connected| connected.peer) else { return };
        let youngest = self.peers.get(&peer).and_then(|entry| entry.connections.last()).map(|connection| connection.id);
        let Some(connection) = youngest else { return job.finish(peer, Err(io::ErrorKind::NotConnected.into())) };
        let token = self.pending.opening(Opening { peer, connection, purpose: Purpose::Join(job) });
        self.swarm.behaviour_mut().link.open(peer, connection, join::PROTOCOL, token);
    }

    /// The connection that most likely works of those that are not relayed: one
    /// that is suspected comes after the others, and one that is doubted last.
    fn surest(&self, peer: &PeerId) -> Option<ConnectionId> {
        let entry = self.peers.get(peer)?;
        let direct = entry.connections.iter().filter(|known| known.route != Route::Relayed);
        let trouble = |known: &&Connection| {
            let suspected = self.probes.get(&(*peer, known.id)).is_some();
            (entry.steer.is_doubted(known.id), suspected, known.route, !known.quic)
        };
        direct.min_by_key(trouble).map(|known| known.id)
    }

    fn best_connection(&self, peer: &PeerId) -> Option<ConnectionId> {
        self.peers.get(peer).and_then(|entry| entry.best()).map(|best| best.id)
    }

    fn disconnect(&mut self, peer: PeerId) -> u32 {
        let connections = self.peers.get(&peer).map_or(0, |entry| entry.connections.len() as u32);
        let _ = self.swarm.disconnect_peer_id(peer);
        connections
    }

    fn set_policy(&mut self, peer: PeerId, mut policy: PeerPolicy, now: Instant) {
        if peer == *self.swarm.local_peer_id() {
            return;
        }
        policy.addresses.iter_mut().for_each(|address| *address = without_peer(address));
        let mut addresses = policy.addresses.clone();
        addresses.extend(self.find.named(&peer).iter().cloned());
        let entry = self.peers.entry(peer, now);
        let (was_trusted, was_blocked) = (entry.is_trusted(), entry.is_blocked());
        let standing = policy.standing;
        let nothing = standing == Standing::Stranger && !policy.pinned && policy.addresses.is_empty();
        let new_address = entry.known.set(KnownSource::Book, &addresses, now);
        entry.policy = (!nothing).then_some(policy);

        let trusted = standing == Standing::Trusted;
        if was_trusted != trusted {
            self.swarm.behaviour_mut().limits.set_trusted(peer, trusted);
            self.swarm.behaviour_mut().identify.set_trusted(peer, trusted);
            self.swarm.behaviour_mut().find.set_trusted(peer, trusted);
            self.relays.server.set_trusted(peer, trusted);
            self.close_links(peer, !trusted);
        }
        self.set_blocked(peer, was_blocked, standing == Standing::Blocked);
        if new_address {
            self.redial.hint(peer, now);
        }
        self.dial_seen(peer, now);
        self.attend(peer, now);
    }

    /// Blocking closes the connections too.
    fn set_blocked(&mut self, peer: PeerId, before: bool, after: bool) {
        let blocked = &mut self.swarm.behaviour_mut().blocked;
        if !before && after {
            info!(%peer, "peer blocked");
            blocked.block_peer(peer);
        } else if before && !after {
            blocked.unblock_peer(peer);
        }
    }

    /// Ends the links that a peer opened, so that those that follow get the
    /// budget of their new standing, and those opened to it if it lost trust.
    fn close_links(&mut self, peer: PeerId, outbound_too: bool) {
        for link in self.links.live.values().filter(|link| link.peer == peer) {
            if outbound_too || !link.outbound {
                link.cancel.cancel();
            }
        }
    }

    fn want(&mut self, peer: PeerId, wanted: bool, now: Instant) {
        if peer == *self.swarm.local_peer_id() {
            return;
        }
        let known = self.peers.get(&peer).is_some();
        if known || wanted {
            let before = std::mem::replace(&mut self.peers.entry(peer, now).wanted, wanted);
            self.attend(peer, now);
            if wanted && !before {
                // Somebody waits now.
                self.redial.hint(peer, now);
            }
        }
    }

    fn view(&self) -> NetworkView {
        NetworkView {
            listen: self.listeners.addresses(),
            skipped: self.skipped(),
            peers: self.peers.views(),
            connections: self.swarm.behaviour().limits.counts(),
        }
    }

    fn drain(&mut self, now: Instant) {
        self.draining = true;
        self.redial.clear();
        self.relays.client.stop();
        self.punches.clear();
        for peer in self.peers.ids() {
            self.attend(peer, now);
        }
    }
}
