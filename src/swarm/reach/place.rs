//! Transport, address and port: what NATs change.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::swarm::route::is_circuit;

/// What runs over an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::swarm) enum Transport {
    /// QUIC, over UDP.
    Quic,
    /// TCP.
    Tcp,
}

/// A socket address and what runs over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::swarm) struct Place {
    pub(in crate::swarm) transport: Transport,
    pub(in crate::swarm) at: SocketAddr,
}

impl Place {
    /// Of an address that is exactly that, with or without the peer at its end:
    /// no name, no circuit, nothing on top.
    pub(in crate::swarm) fn of(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => IpAddr::from(ip),
            Protocol::Ip6(ip) => IpAddr::from(ip).to_canonical(),
            _ => return None,
        };
        let (transport, port) = match parts.next()? {
            Protocol::Tcp(port) => (Transport::Tcp, port),
            Protocol::Udp(port) if parts.next() == Some(Protocol::QuicV1) => (Transport::Quic, port),
            _ => return None,
        };
        let nothing_more = match parts.next() {
            None => true,
            Some(Protocol::P2p(_)) => parts.next().is_none(),
            Some(_) => false,
        };
        (nothing_more && port != 0).then_some(Self { transport, at: SocketAddr::new(ip, port) })
    }

    /// The address, without a peer.
    pub(in crate::swarm) fn address(&self) -> Multiaddr {
        let address = Multiaddr::from(self.at.ip());
        match self.transport {
            Transport::Quic => address.with(Protocol::Udp(self.at.port())).with(Protocol::QuicV1),
            Transport::Tcp => address.with(Protocol::Tcp(self.at.port())),
        }
    }

    pub(in crate::swarm) fn ip(&self) -> IpAddr {
        self.at.ip()
    }

    pub(in crate::swarm) fn is_v6(&self) -> bool {
        self.at.is_ipv6()
    }
}

/// Whoever is at the other end of a connection, as far as the address tells: a
/// name may stand for any number of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::swarm) enum Host {
    /// Known by its address.
    Ip(IpAddr),
    /// Known by a name.
    Name(String),
}

impl Host {
    /// Of the address of a connection; `None` for circuits.
    pub(in crate::swarm) fn of(address: &Multiaddr) -> Option<Self> {
        if is_circuit(address) {
            return None;
        }
        match address.iter().next()? {
            Protocol::Ip4(ip) => Some(Self::Ip(ip.into())),
            Protocol::Ip6(ip) => Some(Self::Ip(IpAddr::from(ip).to_canonical())),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                Some(Self::Name(name.trim_end_matches('.').to_ascii_lowercase()))
            }
            _ => None,
        }
    }

    /// Whether this may be the same host: who has one IPv6 address has the
    /// whole /64.
    pub(in crate::swarm) fn may_be(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip(IpAddr::V6(one)), Self::Ip(IpAddr::V6(other))) => one.octets()[..8] == other.octets()[..8],
            (one, other) => one == other,
        }
    }
}

/// The transport of an address, whatever names its host.
pub(in crate::swarm) fn transport(address: &Multiaddr) -> Option<Transport> {
    let mut parts = address.iter().skip(1);
    match (parts.next()?, parts.next()) {
        (Protocol::Tcp(_), _) => Some(Transport::Tcp),
        (Protocol::Udp(_), Some(Protocol::QuicV1)) => Some(Transport::Quic),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_are_places() {
        let peer = "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        for text in ["/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/1/quic-v1", "/ip6/2001:db8::1/udp/1/quic-v1"] {
            for full in [text.to_owned(), format!("{text}{peer}")] {
                let place = Place::of(&full.parse().unwrap()).unwrap();
                assert_eq!(place.address().to_string(), text);
            }
            let circuit = format!("{text}{peer}/p2p-circuit{peer}").parse().unwrap();
            assert_eq!((Place::of(&circuit), Host::of(&circuit)), (None, None));
        }
        for text in
            ["/ip4/1.2.3.4/tcp/0", "/ip4/1.2.3.4/udp/1", "/dns4/a.b/tcp/1", "/ip4/1.2.3.4/tcp/1/ws", "/ip4/1.2.3.4"]
        {
            assert_eq!(Place::of(&text.parse().unwrap()), None, "{text}");
        }
        let mapped = Place::of(&"/ip6/::ffff:1.2.3.4/tcp/1".parse().unwrap()).unwrap();
        assert_eq!(mapped.at, "1.2.3.4:1".parse().unwrap());
    }

    #[test]
    fn a_name_is_a_host_and_has_a_transport() {
        let named: Multiaddr = "/dns4/Relay.example./udp/1/quic-v1".parse().unwrap();
        assert_eq!(Host::of(&named), Some(Host::Name("relay.example".to_owned())));
        assert_eq!(transport(&named), Some(Transport::Quic));
        assert_eq!(transport(&"/dnsaddr/relay.example".parse().unwrap()), None);
    }
}
