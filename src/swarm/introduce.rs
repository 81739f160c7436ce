//! Tells peers what this node is: libp2p's identify, but each peer hears of
//! those addresses only that mean something to it.
//!
//! It would tell everyone all addresses listened on, and with them which local
//! networks this host is in.

use std::{
    collections::{HashMap, HashSet},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify::{self, Config, Event},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionId, ExternalAddresses, FromSwarm, ListenAddresses,
        NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};

use super::audience::Audience;

type Handler = <identify::Behaviour as NetworkBehaviour>::ConnectionHandler;
type ToHandler = <Handler as ConnectionHandler>::FromBehaviour;

/// See the module.
pub(super) struct Behaviour {
    identify: identify::Behaviour,
    listen: ListenAddresses,
    external: ExternalAddresses,
    trusted: HashSet<PeerId>,
    /// Bounded by the limits on connections.
    connections: HashMap<ConnectionId, (PeerId, Audience)>,
    /// Connections on which something else is to be told, filled while the task
    /// does one thing and emptied before the next.
    changed: Vec<ConnectionId>,
}

impl Behaviour {
    pub(super) fn new(config: Config) -> Self {
        Self {
            identify: identify::Behaviour::new(config),
            listen: ListenAddresses::default(),
            external: ExternalAddresses::default(),
            trusted: HashSet::new(),
            connections: HashMap::new(),
            changed: Vec::new(),
        }
    }

    /// Whether a peer is trusted; if it is connected, it is told at once what
    /// it may know now.
    pub(super) fn set_trusted(&mut self, peer: PeerId, trusted: bool) {
        let new = if trusted { self.trusted.insert(peer) } else { self.trusted.remove(&peer) };
        if new {
            self.changed.extend(self.connections.iter().filter(|(_, (of, _))| *of == peer).map(|(id, _)| *id));
            self.identify.push([peer]);
        }
    }

    fn told(&self, peer: &PeerId, audience: Audience) -> HashSet<Multiaddr> {
        let trusted = self.trusted.contains(peer);
        let all = self.listen.iter().chain(self.external.iter());
        all.filter(|address| audience.has_use_for(address, trusted)).cloned().collect()
    }

    fn met(&mut self, id: ConnectionId, peer: PeerId, audience: Audience, mut handler: Handler) -> Handler {
        self.connections.insert(id, (peer, audience));
        handler.on_behaviour_event(ToHandler::AddressesChanged(self.told(&peer, audience)));
        handler
    }

    /// The same event with what the peer may know.
    fn censored(&self, event: ToSwarm<Event, ToHandler>) -> Option<ToSwarm<Event, ToHandler>> {
        let ToSwarm::NotifyHandler { handler: NotifyHandler::One(id), event: ToHandler::AddressesChanged(_), .. } =
            event
        else {
            return Some(event);
        };
        self.change(id)
    }

    fn change(&self, id: ConnectionId) -> Option<ToSwarm<Event, ToHandler>> {
        let (peer_id, audience) = *self.connections.get(&id)?;
        let event = ToHandler::AddressesChanged(self.told(&peer_id, audience));
        Some(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(id), event })
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let handler = self.identify.handle_established_inbound_connection(id, peer, local, remote)?;
        // Of one that came through a relay only this side has an address.
        let through = if super::route::is_circuit(local) { local } else { remote };
        Ok(self.met(id, peer, Audience::of(through), handler))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let handler = self.identify.handle_established_outbound_connection(id, peer, address, role, port)?;
        Ok(self.met(id, peer, Audience::of(address), handler))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.identify.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.listen.on_swarm_event(&event);
        self.external.on_swarm_event(&event);
        match &event {
            FromSwarm::ConnectionClosed(closed) => drop(self.connections.remove(&closed.connection_id)),
            // Another behaviour refused it.
            FromSwarm::ListenFailure(failure) => drop(self.connections.remove(&failure.connection_id)),
            FromSwarm::DialFailure(failure) => drop(self.connections.remove(&failure.connection_id)),
            _ => {}
        }
        self.identify.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.identify.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        // Before it is told.
        while let Some(id) = self.changed.pop() {
            if let Some(event) = self.change(id) {
                return Poll::Ready(event);
            }
        }
        while let Poll::Ready(event) = self.identify.poll(cx) {
            if let Some(event) = self.censored(event) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt as _;
    use libp2p::{
        Swarm, Transport as _,
        core::{transport::MemoryTransport, upgrade::Version},
        identity::Keypair,
        noise, swarm, yamux,
    };
    use tokio::time::timeout;

    use super::*;

    const LAN: &str = "/ip4/192.168.1.2/tcp/4001";
    const HOST: &str = "/ip4/127.0.0.1/tcp/4001";
    const PUBLIC: &str = "/ip4/8.8.8.8/tcp/4001";

    fn node() -> Swarm<Behaviour> {
        let key = Keypair::generate_ed25519();
        let transport = MemoryTransport::default().upgrade(Version::V1Lazy);
        let transport = transport.authenticate(noise::Config::new(&key).unwrap());
        let transport = transport.multiplex(yamux::Config::default()).boxed();
        let config = Config::new("/test/1".to_owned(), key.public()).with_push_listen_addr_updates(true);
        let behaviour = Behaviour::new(config.with_cache_size(0));
        Swarm::new(transport, behaviour, key.public().to_peer_id(), swarm::Config::with_tokio_executor())
    }

    /// What the first hears of the second next.
    async fn hears(one: &mut Swarm<Behaviour>, other: &mut Swarm<Behaviour>) -> Vec<String> {
        let listen = async {
            loop {
                tokio::select! {
                    event = one.select_next_some() => {
                        if let swarm::SwarmEvent::Behaviour(Event::Received { info, .. }) = event {
                            return info.listen_addrs;
                        }
                    }
                    _ = other.select_next_some() => {}
                }
            }
        };
        let mut all: Vec<_> = timeout(Duration::from_secs(20), listen).await.unwrap();
        all.retain(|address| !address.to_string().starts_with("/memory"));
        let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn a_stranger_hears_of_no_local_network_until_it_is_trusted() {
        let (mut stranger, mut node) = (node(), node());
        for address in [LAN, HOST, PUBLIC] {
            node.add_external_address(address.parse().unwrap());
        }
        node.listen_on("/memory/0".parse().unwrap()).unwrap();
        let address = loop {
            if let swarm::SwarmEvent::NewListenAddr { address, .. } = node.select_next_some().await {
                break address;
            }
        };
        stranger.dial(address).unwrap();
        assert_eq!(hears(&mut stranger, &mut node).await, [PUBLIC]);
        let peer = *stranger.local_peer_id();
        node.behaviour_mut().set_trusted(peer, true);
        assert_eq!(hears(&mut stranger, &mut node).await, [LAN, PUBLIC]);
        node.behaviour_mut().set_trusted(peer, false);
        assert_eq!(hears(&mut stranger, &mut node).await, [PUBLIC]);
        // Also with what is new.
        node.add_external_address("/ip4/10.0.0.1/tcp/1".parse().unwrap());
        node.listen_on("/memory/0".parse().unwrap()).unwrap();
        assert_eq!(hears(&mut stranger, &mut node).await, [PUBLIC]);
    }
}
