//! What an address is to others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// The port that a node listens on unless told otherwise.
pub(super) const DEFAULT_PORT: u16 = 4001;

/// From where an IP address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// From everywhere.
    Public,
    /// Within a carrier's network (100.64.0.0/10).
    Carrier,
    /// Within a local network.
    Private,
    /// On the link or the host only.
    Here,
}

pub(super) fn scope(ip: IpAddr) -> Scope {
    match ip {
        IpAddr::V4(ip) => scope_v4(ip),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or_else(|| scope_v6(ip), scope_v4),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Scope {
    let [a, b, ..] = ip.octets();
    match () {
        () if a == 100 && (64..128).contains(&b) => Scope::Carrier,
        () if ip.is_private() => Scope::Private,
        () if ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || a >= 224 => Scope::Here,
        () => Scope::Public,
    }
}

fn scope_v6(ip: Ipv6Addr) -> Scope {
    let first = ip.segments()[0];
    match () {
        () if first & 0xfe00 == 0xfc00 => Scope::Private,
        () if first & 0xe000 == 0x2000 => Scope::Public,
        () => Scope::Here,
    }
}

pub(super) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The port, and whether it is one of UDP.
pub(super) fn port(address: &Multiaddr) -> Option<(u16, bool)> {
    address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some((port, true)),
        Protocol::Tcp(port) => Some((port, false)),
        _ => None,
    })
}

/// Whether it leads to a host that all the internet can reach, by itself and
/// not through a relay.
pub(super) fn is_public(address: &Multiaddr) -> bool {
    if is_circuit(address) {
        return false;
    }
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => scope(ip.into()) == Scope::Public,
        Some(Protocol::Ip6(ip)) => scope(ip.into()) == Scope::Public,
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => {
            name != "localhost" && !name.ends_with(".local")
        }
        Some(Protocol::Dnsaddr(_)) => true,
        _ => false,
    }
}

pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

pub(super) fn is_v6(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(Protocol::Ip6(_)))
}

/// The ports that a router has to forward, for a person.
pub(super) fn ports(listen: &[Multiaddr]) -> String {
    let first = |udp: bool| listen.iter().filter_map(port).find(|(_, of)| *of == udp).map(|(port, _)| port);
    match (first(true), first(false)) {
        (Some(udp), Some(tcp)) if udp == tcp => format!("port {udp} (UDP and TCP)"),
        (Some(udp), Some(tcp)) => format!("UDP port {udp} and TCP port {tcp}"),
        (Some(udp), None) => format!("UDP port {udp}"),
        (None, Some(tcp)) => format!("TCP port {tcp}"),
        (None, None) => format!("port {DEFAULT_PORT} (UDP and TCP)"),
    }
}

/// A line for the settings that names addresses which a router forwards.
pub(super) fn external_setting(listen: &[Multiaddr], public: Option<IpAddr>) -> String {
    let host = match public {
        Some(IpAddr::V6(ip)) => format!("/ip6/{ip}"),
        Some(IpAddr::V4(ip)) => format!("/ip4/{ip}"),
        None => "/ip4/PUBLIC_IP".to_owned(),
    };
    let port = listen.iter().filter_map(port).find(|(_, udp)| *udp).map_or(DEFAULT_PORT, |(port, _)| port);
    format!("external = [\"{host}/udp/{port}/quic-v1\", \"{host}/tcp/{port}\"]")
}
