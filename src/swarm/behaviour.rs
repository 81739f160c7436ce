//! The parts of the swarm.

use libp2p::{
    allow_block_list::{self, BlockedPeers},
    mdns, memory_connection_limits, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{find, introduce, join, limits, link};

/// What the node does on its connections. Those that refuse connections come
/// first.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// Refuses and closes connections of blocked peers.
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    /// Refuses connections beyond the limits.
    pub(super) limits: limits::Behaviour,
    /// Refuses connections while the process uses too much memory.
    pub(super) memory: Toggle<memory_connection_limits::Behaviour>,
    /// Tells peers what this node is, and where, as far as that concerns them.
    pub(super) identify: introduce::Behaviour,
    /// Measures round trips and notices dead connections.
    pub(super) ping: ping::Behaviour,
    /// Finds peers on the local network.
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    /// Finds peers by their id, and lets this node be found.
    pub(super) find: find::behaviour::Behaviour,
    /// Reaches peers, and is reached, through relays.
    pub(super) relay_client: relay::client::Behaviour,
    /// Opens and accepts the substreams of links.
    pub(super) link: link::behaviour::Behaviour,
    /// Carries tickets and the answers to them.
    pub(super) join: join::Behaviour,
}
