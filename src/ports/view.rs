//! What port mapping tells the rest of the daemon.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

use libp2p::{Multiaddr, multiaddr::Protocol};

use super::trouble::{BadAddress, Trouble};

/// All mappings, as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MappingView {
    /// The default gateway; `None` while there is none.
    pub gateway: Option<Ipv4Addr>,
    /// What the router says it is, printable, at most 65 characters; UPnP only.
    pub router: Option<String>,
    /// Each port was tried at least once.
    pub settled: bool,
    /// One for each port.
    pub ports: Vec<PortView>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortView {
    /// Of this transport.
    pub transport: Transport,
    /// That the daemon listens on.
    pub internal_port: u16,
    /// The mapping, if there is one.
    pub mapped: Option<Mapped>,
    /// What went wrong the last time. With `mapped`, the mapping is still held
    /// but the router did not renew it.
    pub error: Option<Trouble>,
}

/// A mapping that the router granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// How it was asked for.
    pub method: Method,
    /// The router that holds it.
    pub router: Ipv4Addr,
    /// What the router forwards to this port; the port may be another one.
    pub external: SocketAddrV4,
    /// When the router forgets it, unless it is renewed before.
    pub expires: Instant,
    /// Peers on the internet can be told `external`.
    pub usable: bool,
    /// Why not.
    pub reason: Option<BadAddress>,
}

/// What a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// QUIC.
    Udp,
    /// TCP.
    Tcp,
}

/// How a mapping is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// Port Control Protocol, RFC 6887.
    Pcp,
    /// NAT Port Mapping Protocol, RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl MappingView {
    /// Addresses to tell peers, those of mappings that work as far as the
    /// router knows.
    #[must_use]
    pub fn addresses(&self) -> Vec<Multiaddr> {
        let usable = |port: &PortView| {
            let mapped = port.mapped.as_ref().filter(|mapped| mapped.usable)?;
            Some(port.transport.multiaddr(mapped.external))
        };
        self.ports.iter().filter_map(usable).collect()
    }
}

impl PortView {
    /// What is wrong, for a person; empty if nothing is.
    #[must_use]
    pub fn detail(&self) -> String {
        match (self.reason(), &self.error) {
            (Some(reason), _) => reason.to_string(),
            (None, Some(error)) => error.to_string(),
            (None, None) => String::new(),
        }
    }

    /// Whether the router is behind another NAT, as far as it tells.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        match self.reason() {
            Some(reason) => reason.is_behind_nat(),
            None => self.error.as_ref().is_some_and(Trouble::is_behind_nat),
        }
    }

    fn reason(&self) -> Option<BadAddress> {
        self.mapped.as_ref()?.reason
    }
}

impl Transport {
    /// The address to dial.
    #[must_use]
    pub fn multiaddr(self, address: SocketAddrV4) -> Multiaddr {
        let ip = Multiaddr::from(*address.ip());
        match self {
            Self::Udp => ip.with(Protocol::Udp(address.port())).with(Protocol::QuicV1),
            Self::Tcp => ip.with(Protocol::Tcp(address.port())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usable_addresses_are_told() {
        let mapped = |transport, external: &str, usable| PortView {
            transport,
            internal_port: 4001,
            mapped: Some(Mapped {
                method: Method::Pcp,
                router: Ipv4Addr::new(192, 168, 1, 1),
                external: external.parse().unwrap(),
                expires: Instant::now(),
                usable,
                reason: None,
            }),
            error: None,
        };
        let ports = vec![
            mapped(Transport::Udp, "128.66.0.1:5001", true),
            mapped(Transport::Tcp, "128.66.0.1:5002", true),
            mapped(Transport::Tcp, "10.0.0.1:5003", false),
        ];
        let view = MappingView { ports, ..MappingView::default() };
        let told: Vec<String> = view.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["/ip4/128.66.0.1/udp/5001/quic-v1", "/ip4/128.66.0.1/tcp/5002"]);
    }
}
