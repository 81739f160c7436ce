//! What port mapping tells the rest of the daemon.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    time::Instant,
};

use libp2p::{Multiaddr, multiaddr::Protocol};

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
    /// What went wrong the last time, for a person; printable. With `mapped`,
    /// the mapping is still held but the router did not renew it.
    pub error: Option<String>,
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
    /// Why not, for a person.
    pub reason: Option<String>,
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

/// Why peers on the internet cannot reach `external`, as far as that is known.
pub(super) fn unusable(external: Ipv4Addr, observed: Option<Ipv4Addr>) -> Option<String> {
    match kind(external) {
        Kind::Shared => Some(behind_another(external)),
        Kind::Odd => Some(format!("the router tells {external} as its address, which is none of the internet")),
        Kind::Unknown => Some("the router knows no address of its own yet; is it connected?".to_owned()),
        Kind::Public => observed.filter(|seen| *seen != external).map(|seen| {
            format!("the router itself is behind another NAT: it tells {external} as its address, but peers see {seen}")
        }),
    }
}

/// Whether an address is one of the internet.
pub(super) fn is_public(ip: Ipv4Addr) -> bool {
    kind(ip) == Kind::Public
}

/// What to tell when a router with this address refuses, if that explains it.
pub(super) fn double_nat(external: Ipv4Addr) -> Option<String> {
    (kind(external) == Kind::Shared).then(|| behind_another(external))
}

fn behind_another(external: Ipv4Addr) -> String {
    format!("the router itself is behind another NAT (its address there is {external})")
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Public,
    /// Private, or of a carrier's NAT.
    Shared,
    Unknown,
    Odd,
}

fn kind(ip: Ipv4Addr) -> Kind {
    let [a, b, ..] = ip.octets();
    match () {
        () if ip.is_unspecified() => Kind::Unknown,
        () if ip.is_private()
            || (a == 100 && (64..128).contains(&b))
            || (a == 192 && b == 0 && ip.octets()[2] == 0) =>
        {
            Kind::Shared
        }
        () if a == 0 || a >= 224 || ip.is_loopback() || ip.is_link_local() || ip.is_documentation() => Kind::Odd,
        // Measuring of devices, RFC 2544.
        () if a == 198 && (18..20).contains(&b) => Kind::Odd,
        () => Kind::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(external: &str, observed: Option<&str>) -> Option<String> {
        unusable(external.parse().unwrap(), observed.map(|ip| ip.parse().unwrap()))
    }

    #[test]
    fn addresses_of_the_internet_are_usable() {
        for ip in ["128.66.0.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1"] {
            assert_eq!(reason(ip, None), None, "{ip}");
            assert_eq!(reason(ip, Some(ip)), None, "{ip}");
        }
    }

    #[test]
    fn a_router_behind_another_nat_is_told() {
        for ip in ["10.0.0.2", "172.16.0.1", "192.168.178.2", "100.64.0.1", "100.127.255.254", "192.0.0.4"] {
            let reason = reason(ip, None).unwrap();
            assert!(reason.contains("behind another NAT") && reason.contains(ip), "{reason}");
        }
        let reason = reason("128.66.0.1", Some("128.66.0.9")).unwrap();
        assert!(reason.contains("behind another NAT") && reason.contains("128.66.0.9"), "{reason}");
    }

    #[test]
    fn what_is_no_address_is_not_usable() {
        for ip in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "203.0.113.1", "198.18.0.1"] {
            assert!(reason(ip, None).is_some(), "{ip}");
        }
    }

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
