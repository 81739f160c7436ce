//! Limits on connections.
//!
//! libp2p's own connection limits do not fit: connections that bypass the
//! limit still count against it, and the table of peers keeps an entry for
//! every peer that ever connected.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    fmt,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm, dummy,
    },
};

use crate::node::ConnectionCounts;

/// Most connections at once, established and being set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of all peers that are not trusted.
    pub max_untrusted: u32,
    /// Of all trusted peers.
    pub max_trusted: u32,
    /// With one peer.
    pub max_per_peer: u32,
    /// Being set up from outside.
    pub max_pending_in: u32,
    /// Being dialled; dials of trusted peers are not counted.
    pub max_pending_out: u32,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { max_untrusted: 100, max_trusted: 1000, max_per_peer: 8, max_pending_in: 64, max_pending_out: 64 }
    }
}

/// A connection was refused by a limit of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exceeded {
    what: &'static str,
    max: u32,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this node's limit of {} {} is reached", self.max, self.what)
    }
}

impl std::error::Error for Exceeded {}

/// Enforces [`ConnectionLimits`].
#[derive(Debug)]
pub(super) struct Behaviour {
    limits: ConnectionLimits,
    /// Peers counted as trusted.
    trusted: HashSet<PeerId>,
    /// Nodes that the settings name: counted among the trusted, too.
    own: HashSet<PeerId>,
    /// Established connections by peer; no entry for none.
    peers: HashMap<PeerId, u32>,
    established: u32,
    untrusted: u32,
    pending_in: HashSet<ConnectionId>,
    pending_out: HashSet<ConnectionId>,
    refused: u64,
}

impl Behaviour {
    pub(super) fn new(limits: ConnectionLimits, own: impl IntoIterator<Item = PeerId>) -> Self {
        Self {
            limits,
            trusted: HashSet::new(),
            own: own.into_iter().collect(),
            peers: HashMap::new(),
            established: 0,
            untrusted: 0,
            pending_in: HashSet::new(),
            pending_out: HashSet::new(),
            refused: 0,
        }
    }

    /// Counts a peer among the trusted or not, with its connections.
    pub(super) fn set_trusted(&mut self, peer: PeerId, trusted: bool) {
        let connections = if self.own.contains(&peer) { 0 } else { self.peers.get(&peer).copied().unwrap_or(0) };
        let changed = if trusted { self.trusted.insert(peer) } else { self.trusted.remove(&peer) };
        if changed && trusted {
            self.untrusted = self.untrusted.saturating_sub(connections);
        } else if changed {
            self.untrusted += connections;
        }
    }

    fn is_favoured(&self, peer: &PeerId) -> bool {
        self.trusted.contains(peer) || self.own.contains(peer)
    }

    /// Used and largest numbers.
    pub(super) fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            established: self.established,
            untrusted: self.untrusted,
            max_untrusted: self.limits.max_untrusted,
            max_per_peer: self.limits.max_per_peer,
            refused: self.refused,
        }
    }

    fn check(&mut self, what: &'static str, used: u32, max: u32) -> Result<(), ConnectionDenied> {
        if used < max {
            return Ok(());
        }
        self.refused += 1;
        Err(ConnectionDenied::new(Exceeded { what, max }))
    }

    fn check_peer(&mut self, peer: &PeerId) -> Result<(), ConnectionDenied> {
        let with_peer = self.peers.get(peer).copied().unwrap_or(0);
        self.check("connections with one peer", with_peer, self.limits.max_per_peer)?;
        if self.is_favoured(peer) {
            let trusted = self.established.saturating_sub(self.untrusted);
            self.check("connections with trusted peers", trusted, self.limits.max_trusted)
        } else {
            self.check("connections with peers that are not trusted", self.untrusted, self.limits.max_untrusted)
        }
    }

    fn opened(&mut self, peer: PeerId) {
        *self.peers.entry(peer).or_default() += 1;
        self.established += 1;
        if !self.is_favoured(&peer) {
            self.untrusted += 1;
        }
    }

    fn closed(&mut self, peer: &PeerId) {
        let Some(connections) = self.peers.get_mut(peer) else { return };
        *connections -= 1;
        if *connections == 0 {
            self.peers.remove(peer);
        }
        self.established = self.established.saturating_sub(1);
        if !self.is_favoured(peer) {
            self.untrusted = self.untrusted.saturating_sub(1);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.check("connections being accepted", self.pending_in.len() as u32, self.limits.max_pending_in)?;
        self.pending_in.insert(id);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending_in.remove(&id);
        self.check_peer(&peer).map(|()| dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if let Some(peer) = peer {
            self.check_peer(&peer)?;
        }
        if !peer.is_some_and(|peer| self.is_favoured(&peer)) {
            self.check("connections being dialled", self.pending_out.len() as u32, self.limits.max_pending_out)?;
            self.pending_out.insert(id);
        }
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending_out.remove(&id);
        self.check_peer(&peer).map(|()| dummy::ConnectionHandler)
    }

    /// Counts here rather than above, for another behaviour may still refuse a
    /// connection that this one lets pass.
    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.opened(event.peer_id),
            FromSwarm::ConnectionClosed(event) => self.closed(&event.peer_id),
            FromSwarm::DialFailure(event) => {
                self.pending_out.remove(&event.connection_id);
            }
            FromSwarm::ListenFailure(event) => {
                self.pending_in.remove(&event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ConnectionLimits {
        ConnectionLimits { max_untrusted: 2, max_trusted: 3, max_per_peer: 2, max_pending_in: 1, max_pending_out: 1 }
    }

    #[test]
    fn each_limit_is_named() {
        let mut behaviour = Behaviour::new(limits(), []);
        let (friend, stranger) = (PeerId::random(), PeerId::random());
        behaviour.set_trusted(friend, true);
        for _ in 0..2 {
            behaviour.check_peer(&stranger).unwrap();
            behaviour.opened(stranger);
        }
        let text =
            |result: Result<(), ConnectionDenied>| result.unwrap_err().downcast::<Exceeded>().unwrap().to_string();
        assert_eq!(
            text(behaviour.check_peer(&stranger)),
            "this node's limit of 2 connections with one peer is reached"
        );
        assert_eq!(
            text(behaviour.check_peer(&PeerId::random())),
            "this node's limit of 2 connections with peers that are not trusted is reached"
        );
        behaviour.check_peer(&friend).unwrap();
        assert_eq!(behaviour.counts().refused, 2);
    }

    #[test]
    fn nodes_of_the_settings_are_not_counted_as_strangers() {
        let own = PeerId::random();
        let mut behaviour = Behaviour::new(ConnectionLimits { max_untrusted: 0, ..limits() }, [own]);
        behaviour.check_peer(&PeerId::random()).unwrap_err();
        behaviour.check_peer(&own).unwrap();
        behaviour.opened(own);
        for trusted in [true, false] {
            behaviour.set_trusted(own, trusted);
            assert_eq!((behaviour.counts().untrusted, behaviour.counts().established), (0, 1));
        }
        behaviour.closed(&own);
        assert_eq!(behaviour.counts().untrusted, 0);
    }

    #[test]
    fn counts_follow_trust_and_end_at_nothing() {
        let mut behaviour = Behaviour::new(limits(), []);
        let peer = PeerId::random();
        behaviour.opened(peer);
        behaviour.opened(peer);
        assert_eq!(behaviour.counts().untrusted, 2);
        behaviour.set_trusted(peer, true);
        behaviour.set_trusted(peer, true);
        assert_eq!(behaviour.counts().untrusted, 0);
        behaviour.closed(&peer);
        behaviour.set_trusted(peer, false);
        assert_eq!(behaviour.counts().untrusted, 1);
        behaviour.closed(&peer);
        assert_eq!((behaviour.counts().untrusted, behaviour.counts().established), (0, 0));
        assert!(behaviour.peers.is_empty());
    }
}
