//! Why the network cannot start.

use std::io;

use libp2p::Multiaddr;

/// Why the network cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {cause}; {remedy}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the system says.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The encrypted transport cannot be set up.
    #[error("cannot set up the encryption of connections: {0}")]
    Noise(#[from] libp2p::noise::Error),
}

/// What to do about an address that cannot be bound.
pub(super) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "port in use: another daemon? choose another with --listen",
        io::ErrorKind::AddrNotAvailable => "no interface of this host has that address; choose another with --listen",
        io::ErrorKind::PermissionDenied => "the system does not allow it; choose a port from 1024 on with --listen",
        io::ErrorKind::Unsupported => {
            "give --listen as /ip4/ADDRESS/udp/PORT/quic-v1 or /ip4/ADDRESS/tcp/PORT, or with /ip6"
        }
        _ => "choose another with --listen",
    }
}
