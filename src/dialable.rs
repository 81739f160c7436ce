//! Which addresses can be dialled at all, and why others cannot.

use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Why an address cannot be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undialable {
    /// Nothing that is a host.
    #[error("it does not begin with an IP address or a DNS name")]
    NoHost,
    /// Such as 0.0.0.0.
    #[error("it stands for all addresses of a host, not for one")]
    Unspecified,
    /// Multicast or broadcast.
    #[error("it is the address of a group, not of one host")]
    Group,
    /// It would have to name the interface.
    #[error("it is link-local, and means something on one interface only")]
    LinkLocal,
    /// Port 0.
    #[error("its port is 0")]
    NoPort,
    /// Neither TCP nor QUIC.
    #[error("it is neither of TCP nor of UDP with quic-v1")]
    Transport,
    /// A circuit that names no relay, or goes on behind it.
    #[error("a way through a relay is its address, then /p2p/RELAY_ID/p2p-circuit, and nothing else")]
    Circuit,
}

/// Looks at an address without the /p2p part of whom it leads to; returns the
/// relay that it leads through.
///
/// # Errors
/// It cannot be dialled.
pub fn check(address: &Multiaddr) -> Result<Option<PeerId>, Undialable> {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    match parts.as_slice() {
        [place @ .., Protocol::P2p(relay), Protocol::P2pCircuit] if !is_circuit(place) => {
            check_place(place).map(|()| Some(*relay))
        }
        all if is_circuit(all) => Err(Undialable::Circuit),
        place => check_place(place).map(|()| None),
    }
}

fn is_circuit(parts: &[Protocol<'_>]) -> bool {
    parts.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

fn check_place(parts: &[Protocol<'_>]) -> Result<(), Undialable> {
    let (host, rest) = parts.split_first().ok_or(Undialable::NoHost)?;
    match host {
        Protocol::Ip4(ip) => check_v4(*ip)?,
        Protocol::Ip6(ip) => check_v6(*ip)?,
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) | Protocol::Dnsaddr(name)
            if !name.is_empty() => {}
        _ => return Err(Undialable::NoHost),
    }
    match rest {
        [Protocol::Tcp(0)] | [Protocol::Udp(0), ..] => Err(Undialable::NoPort),
        [Protocol::Tcp(_)] | [Protocol::Udp(_), Protocol::QuicV1] => Ok(()),
        // It leads to whole addresses.
        [] if matches!(host, Protocol::Dnsaddr(_)) => Ok(()),
        _ => Err(Undialable::Transport),
    }
}

fn check_v4(ip: Ipv4Addr) -> Result<(), Undialable> {
    match ip {
        ip if ip.octets()[0] == 0 => Err(Undialable::Unspecified),
        ip if ip.is_multicast() || ip.is_broadcast() => Err(Undialable::Group),
        _ => Ok(()),
    }
}

fn check_v6(ip: Ipv6Addr) -> Result<(), Undialable> {
    match ip {
        ip if ip.is_unspecified() => Err(Undialable::Unspecified),
        ip if ip.is_multicast() => Err(Undialable::Group),
        ip if ip.is_unicast_link_local() => Err(Undialable::LinkLocal),
        ip => ip.to_ipv4_mapped().map_or(Ok(()), check_v4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";

    #[test]
    fn each_kind_has_its_cause() {
        let relay: PeerId = RELAY.parse().unwrap();
        let through = |place: &str| format!("{place}/p2p/{RELAY}/p2p-circuit");
        for (text, expected) in [
            ("/ip4/192.0.2.1/tcp/1".to_owned(), Ok(None)),
            ("/ip6/2001:db8::1/udp/1/quic-v1".to_owned(), Ok(None)),
            ("/dns4/example.org/tcp/1".to_owned(), Ok(None)),
            ("/dnsaddr/example.org".to_owned(), Ok(None)),
            (through("/ip4/192.0.2.1/tcp/1"), Ok(Some(relay))),
            (through("/dns/example.org/udp/1/quic-v1"), Ok(Some(relay))),
            ("/unix/x".to_owned(), Err(Undialable::NoHost)),
            ("/dns4//tcp/1".to_owned(), Err(Undialable::NoHost)),
            ("/tcp/1".to_owned(), Err(Undialable::NoHost)),
            ("/ip4/0.0.0.0/tcp/1".to_owned(), Err(Undialable::Unspecified)),
            ("/ip6/::/tcp/1".to_owned(), Err(Undialable::Unspecified)),
            ("/ip6/::ffff:0.0.0.0/tcp/1".to_owned(), Err(Undialable::Unspecified)),
            ("/ip4/224.0.0.1/tcp/1".to_owned(), Err(Undialable::Group)),
            ("/ip4/255.255.255.255/tcp/1".to_owned(), Err(Undialable::Group)),
            ("/ip6/ff02::1/tcp/1".to_owned(), Err(Undialable::Group)),
            ("/ip6/fe80::1/tcp/1".to_owned(), Err(Undialable::LinkLocal)),
            ("/ip4/192.0.2.1/tcp/0".to_owned(), Err(Undialable::NoPort)),
            ("/ip4/192.0.2.1/udp/0/quic-v1".to_owned(), Err(Undialable::NoPort)),
            ("/ip4/192.0.2.1".to_owned(), Err(Undialable::Transport)),
            ("/ip4/192.0.2.1/udp/1".to_owned(), Err(Undialable::Transport)),
            ("/ip4/192.0.2.1/tcp/1/ws".to_owned(), Err(Undialable::Transport)),
            ("/p2p-circuit".to_owned(), Err(Undialable::Circuit)),
            ("/ip4/192.0.2.1/tcp/1/p2p-circuit".to_owned(), Err(Undialable::Circuit)),
            (through(&through("/ip4/192.0.2.1/tcp/1")), Err(Undialable::Circuit)),
            (format!("{}/ip4/192.0.2.1/tcp/1", through("/ip4/192.0.2.1/tcp/1")), Err(Undialable::Circuit)),
            (format!("/p2p/{RELAY}/p2p-circuit"), Err(Undialable::NoHost)),
            (through("/ip4/0.0.0.0/tcp/1"), Err(Undialable::Unspecified)),
        ] {
            assert_eq!(check(&text.parse().unwrap()), expected, "{text}");
        }
    }
}
