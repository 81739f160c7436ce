//! What an address tells of the way to a peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::types::Route;

/// The route of a connection over this address.
pub(super) fn route(address: &Multiaddr) -> Route {
    let mut direct = Route::Direct;
    for (position, part) in address.iter().enumerate() {
        let local = match part {
            Protocol::P2pCircuit => return Route::Relayed,
            Protocol::Ip4(ip) => is_local(ip.into()),
            Protocol::Ip6(ip) => is_local(ip.into()),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => is_local_name(&name),
            _ => false,
        };
        if position == 0 && local {
            direct = Route::Lan;
        }
    }
    direct
}

/// Whether a connection over this address is QUIC.
pub(super) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::QuicV1))
}

/// Whether the address leads to this host itself; of a circuit, its relay's.
pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip).to_canonical().is_loopback(),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => is_localhost(&name),
        _ => false,
    }
}

/// Whether the address is one of a local network or of this host; of a circuit,
/// its relay's.
pub(super) fn is_near(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => is_local(ip.into()),
        Some(Protocol::Ip6(ip)) => is_local(ip.into()),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => is_local_name(&name),
        _ => false,
    }
}

/// Whether the address, or that of a circuit's relay, is one of the internet
/// for sure. A name may lead anywhere.
pub(super) fn is_far(address: &Multiaddr) -> bool {
    let ip: IpAddr = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return false,
    };
    !is_local(ip) && !is_special(ip)
}

/// Whether the address leads through a relay.
pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

/// The relay that an address leads through, and the relay's own address.
pub(super) fn relay_of(address: &Multiaddr) -> Option<(PeerId, Multiaddr)> {
    let (mut relay, mut before) = (None, Multiaddr::empty());
    for part in address.iter() {
        match part {
            Protocol::P2pCircuit => return relay.map(|relay| (relay, before)),
            _ if relay.is_some() => return None,
            Protocol::P2p(peer) => relay = Some(peer),
            other => before.push(other),
        }
    }
    None
}

/// The address of whoever is reached through a relay at this address.
pub(super) fn circuit(relay: PeerId, address: &Multiaddr) -> Multiaddr {
    without_peer(address).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}

/// Whether the address can be dialled at all; of a circuit, its relay's.
pub(super) fn is_dialable(address: &Multiaddr) -> bool {
    if !is_circuit(address) {
        return is_host(address);
    }
    let first = address.iter().position(|part| matches!(part, Protocol::P2pCircuit));
    first == Some(address.iter().count() - 1) && relay_of(address).is_some_and(|(_, relay)| is_host(&relay))
}

fn is_host(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        // Link-local ones mean something only together with an interface.
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        _ => false,
    };
    host && !matches!(parts.next(), Some(Protocol::Tcp(0) | Protocol::Udp(0)))
}

/// The address without the /p2p part at its end.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut address = address.clone();
    if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.pop();
    }
    address
}

/// Addresses of no single host on the internet: reserved ones, groups, and IPv6
/// addresses that stand for an IPv4 address, which a translator on the way may
/// turn into one of the local network.
pub(super) fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => matches!(ip.octets()[0], 0 | 224..),
        IpAddr::V6(ip) => match ip.segments() {
            // What came before these two: 6to4, NAT64.
            [0, 0, 0, 0, 0, ..] | [0x2002, ..] | [0x64, 0xff9b, ..] => true,
            _ => ip.is_multicast(),
        },
    }
}

/// Whether the address is one of a local network, or of this host.
pub(super) fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_local_v4(ip),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or_else(|| is_local_v6(ip), is_local_v4),
    }
}

fn is_local_v4(ip: Ipv4Addr) -> bool {
    let carrier_grade = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
    ip.is_private() || ip.is_loopback() || ip.is_link_local() || carrier_grade
}

fn is_local_v6(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unique_local()
}

fn is_local_name(name: &str) -> bool {
    is_localhost(name) || name.trim_end_matches('.').to_ascii_lowercase().ends_with(".local")
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_have_their_route() {
        let relay = "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        for (text, expected) in [
            ("/ip4/127.0.0.1/tcp/1", Route::Lan),
            ("/ip4/192.168.1.2/udp/1/quic-v1", Route::Lan),
            ("/ip4/10.0.0.1/tcp/1", Route::Lan),
            ("/ip4/172.31.0.1/tcp/1", Route::Lan),
            ("/ip4/172.32.0.1/tcp/1", Route::Direct),
            ("/ip4/169.254.0.1/tcp/1", Route::Lan),
            ("/ip4/100.64.0.1/tcp/1", Route::Lan),
            ("/ip4/100.127.255.1/tcp/1", Route::Lan),
            ("/ip4/100.128.0.1/tcp/1", Route::Direct),
            ("/ip4/8.8.8.8/tcp/1", Route::Direct),
            ("/ip6/::1/tcp/1", Route::Lan),
            ("/ip6/fe80::1/tcp/1", Route::Lan),
            ("/ip6/fd00::1/tcp/1", Route::Lan),
            ("/ip6/::ffff:10.0.0.1/tcp/1", Route::Lan),
            ("/ip6/2606:4700::1/tcp/1", Route::Direct),
            ("/dns4/example.com/tcp/1", Route::Direct),
            ("/dns4/printer.local/tcp/1", Route::Lan),
        ] {
            assert_eq!(route(&addr(text)), expected, "{text}");
            assert_eq!(route(&addr(&format!("{text}{relay}/p2p-circuit{relay}"))), Route::Relayed, "{text}");
        }
    }

    #[test]
    fn what_is_near_or_far_is_told_of_a_circuit_by_its_relay() {
        let relay = "/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit";
        for (text, near, here, far) in [
            ("/ip4/127.1.2.3/tcp/1", true, true, false),
            ("/ip6/::1/tcp/1", true, true, false),
            ("/ip6/::ffff:127.0.0.1/tcp/1", true, true, false),
            ("/dns4/localhost./tcp/1", true, true, false),
            ("/dns/a.LocalHost/tcp/1", true, true, false),
            ("/ip4/192.168.1.2/udp/1/quic-v1", true, false, false),
            ("/ip6/fd00::1/tcp/1", true, false, false),
            ("/dns4/printer.local/tcp/1", true, false, false),
            ("/dns4/example.com/tcp/1", false, false, false),
            ("/ip6/64:ff9b::c0a8:101/tcp/1", false, false, false),
            ("/ip6/2002:c0a8:101::1/tcp/1", false, false, false),
            ("/ip4/8.8.8.8/tcp/1", false, false, true),
            ("/ip6/2606:4700::1/tcp/1", false, false, true),
        ] {
            for text in [text.to_owned(), format!("{text}{relay}")] {
                let address = addr(&text);
                assert_eq!((is_near(&address), is_loopback(&address), is_far(&address)), (near, here, far), "{text}");
            }
        }
    }

    #[test]
    fn only_the_last_peer_part_goes() {
        let relay = "/ip4/8.8.8.8/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp/p2p-circuit";
        let full = format!("{relay}/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp");
        assert_eq!(without_peer(&addr(&full)), addr(relay));
        assert_eq!(without_peer(&addr(relay)), addr(relay));
    }

    #[test]
    fn a_circuit_names_its_relay_and_ends_there() {
        let relay: PeerId = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp".parse().unwrap();
        let at = addr("/ip4/8.8.8.8/udp/1/quic-v1");
        let through = circuit(relay, &at);
        assert_eq!(relay_of(&through), Some((relay, at.clone())));
        assert_eq!(relay_of(&at), None);
        assert!(is_dialable(&through) && is_circuit(&through) && !is_circuit(&at));
        for text in [
            format!("/p2p/{relay}/p2p-circuit"),
            "/ip4/8.8.8.8/tcp/1/p2p-circuit".to_owned(),
            "/p2p-circuit".to_owned(),
            format!("/ip4/0.0.0.0/tcp/1/p2p/{relay}/p2p-circuit"),
            format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit/ip4/10.0.0.1/tcp/1"),
            format!("{through}/p2p/{relay}/p2p-circuit"),
            format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p/{relay}/p2p-circuit"),
        ] {
            assert!(!is_dialable(&addr(&text)), "{text}");
        }
    }

    #[test]
    fn undialable_addresses_are_told() {
        for text in [
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/1.2.3.4/tcp/0",
            "/ip6/::/tcp/1",
            "/ip4/224.0.0.1/udp/1",
            "/ip6/fe80::1/tcp/1",
            "/unix/x",
        ] {
            assert!(!is_dialable(&addr(text)), "{text}");
        }
        assert!(is_dialable(&addr("/ip4/1.2.3.4/udp/1/quic-v1")));
    }
}
