//! What the network is told at the start.

use libp2p::Multiaddr;

use super::{ConnectionLimits, RelayLimits};
use crate::node::{Overlay, PeerAddresses, Serve};

/// Settings of the network.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Addresses to bind.
    pub listen: Vec<ListenAddress>,
    /// Addresses at which this node is known to be reachable.
    pub external: Vec<Multiaddr>,
    /// Nodes that are asked for others.
    pub bootstrap: Vec<PeerAddresses>,
    /// Nodes through which others are to reach this one.
    pub relays: Vec<PeerAddresses>,
    /// Whom this node serves.
    pub serve: Serve,
    /// How much it serves them as a relay.
    pub relay_limits: RelayLimits,
    /// Where peers are looked for by their id.
    pub network: Overlay,
    /// Look for peers on the local network.
    pub mdns: bool,
    /// Have the router forward the ports that are bound.
    pub port_mapping: bool,
    /// Treat every peer as trusted as far as links go.
    pub trust_open: bool,
    /// Largest payload of a message, in bytes.
    pub max_message_bytes: u64,
    /// Limits on connections.
    pub limits: ConnectionLimits,
    /// Refuse new connections while the process uses more memory than this, in
    /// bytes.
    pub max_memory_bytes: Option<usize>,
}

/// An address to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// For example `/ip4/0.0.0.0/udp/4001/quic-v1`; port 0 lets the system
    /// choose.
    pub addr: Multiaddr,
    /// The user named it, so that it is an error if this host lacks its kind of
    /// address. An address whose port is in use is an error either way.
    pub required: bool,
}

/// An address that was bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundAddress {
    /// As in [`ListenAddress::addr`].
    pub asked: Multiaddr,
    /// The same with the port that it got.
    pub bound: Multiaddr,
}
