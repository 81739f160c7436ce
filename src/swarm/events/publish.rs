//! This node lets itself be found, and keeps where those are that it serves.

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    kad::{self, QueryId},
};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::{
    node::KnownSource,
    swarm::{
        audience::Audience,
        find::{
            self,
            announce::{self, Announced},
            store::Origin,
        },
        pending::{Opening, Purpose},
        reach::ip,
        route::{is_loopback, is_near},
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

    /// A peer tells where it can be reached.
    pub(super) fn on_record(&mut self, mut record: kad::ProviderRecord, now: Instant) {
        let peer = record.provider;
        let Some(entry) = self.peers.get(&peer) else { return };
        let Some(connection) = entry.connections.last() else { return };
        if !self.find.takes_from(entry.is_trusted()) || entry.is_blocked() {
            return debug!(%peer, "a record of a peer that is not served");
        }
        let origin = Origin::of(&connection.address, entry.is_trusted());
        let here = is_loopback(&connection.address);
        // Whoever asks is told all of it. On a node that anybody can ask, local
        // networks are not for them; elsewhere, that of the peer.
        let (audience, public) = (Audience::of(&connection.address), self.reach.is_public());
        let lan = |address: &Multiaddr| is_near(address) && !is_loopback(address);
        record.addresses.retain(|address| audience.has_use_for(address, false) && !(public && lan(address)));
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
        // Of one met through a relay only, nobody can tell.
        if !ips.is_empty() {
            behaviour.met_server(here);
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
    pub(super) fn on_nearest(&mut self, id: QueryId, nearest: Vec<kad::PeerInfo>, now: Instant) {
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
        if !self.to_tell(&server).is_empty() && self.find.publisher.telling(server) {
            let token = self.pending.opening(Opening { peer: server, connection, purpose: Purpose::Announce });
            let protocol = find::protocol(self.find.network);
            self.swarm.behaviour_mut().link.open(server, connection, protocol, token);
        }
    }

    /// What a server is told: it tells everyone, so that its own place says
    /// what means something there, whether it is trusted or not.
    fn to_tell(&self, server: &PeerId) -> Vec<Multiaddr> {
        let Some(best) = self.peers.get(server).and_then(|entry| entry.best()) else { return Vec::new() };
        let audience = Audience::of(&best.address);
        let told = self.swarm.behaviour().find.told().iter();
        told.filter(|address| audience.has_use_for(address, false)).cloned().collect()
    }

    /// Tells it elsewhere; the result comes back as [`Announced`].
    pub(super) fn announce(&mut self, peer: PeerId, stream: Stream) {
        let Ok(slot) = self.announcements.slots.clone().try_acquire_owned() else {
            return self.find.publisher.told(false, Instant::now(), rand::random());
        };
        let message = announce::message(self.swarm.local_peer_id(), &self.to_tell(&peer));
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

    pub(super) fn publish(&mut self, now: Instant) {
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

    pub(super) fn purge_records(&mut self, now: Instant) {
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
}
