//! Which addresses mean something to a peer, by where it is.

use libp2p::Multiaddr;

use super::route::{is_circuit, is_loopback, is_near};

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Audience {
    /// It is on a local network of this host.
    near: bool,
    /// It is on this host, or uses a relay there.
    here: bool,
}

impl Audience {
    /// By the address of a connection: the peer's, or that of the circuit that
    /// it came through, of which nothing but its relay is known.
    pub(super) fn of(address: &Multiaddr) -> Self {
        Self { near: is_near(address) && !is_circuit(address), here: is_loopback(address) }
    }

    /// Whether it has a use for an address. Trusted peers may come into this
    /// network, and have to find this node then.
    pub(super) fn has_use_for(self, address: &Multiaddr, trusted: bool) -> bool {
        if is_loopback(address) { self.here } else { !is_near(address) || self.near || trusted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 6] = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/192.168.1.2/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/127.0.0.1/tcp/2/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit",
        "/ip4/8.8.8.8/tcp/2/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit",
    ];

    fn heard(by: &str, trusted: bool) -> Vec<usize> {
        let audience = Audience::of(&by.parse().unwrap());
        (0..ALL.len()).filter(|n| audience.has_use_for(&ALL[*n].parse().unwrap(), trusted)).collect()
    }

    #[test]
    fn each_peer_hears_what_means_something_to_it() {
        for (by, stranger, friend) in [
            ("/ip4/9.9.9.9/tcp/7", vec![3, 5], vec![1, 2, 3, 5]),
            (ALL[5], vec![3, 5], vec![1, 2, 3, 5]),
            ("/ip4/10.0.0.1/tcp/7", vec![1, 2, 3, 5], vec![1, 2, 3, 5]),
            ("/ip4/127.0.0.1/tcp/7", vec![0, 1, 2, 3, 4, 5], vec![0, 1, 2, 3, 4, 5]),
            (ALL[4], vec![0, 3, 4, 5], vec![0, 1, 2, 3, 4, 5]),
        ] {
            assert_eq!((heard(by, false), heard(by, true)), (stranger, friend), "{by}");
        }
    }
}
