//! Where others can reach this node, best first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{
    node::Reachable,
    swarm::route::{is_dialable, is_loopback, is_quic, relay_of, route},
    types::Route,
};

/// Some host beyond the next router, of the blocks kept for documentation.
const FAR_V4: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
const FAR_V6: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9);

/// All addresses that may work for others: public ones first, then those of
/// the local network; of each, the interface of the default route before
/// bridges and tunnels, and QUIC before TCP. This host's own loopback only if
/// there is nothing else.
///
/// `external` are addresses that the settings name or that were confirmed from
/// outside, and come before all others; `circuits` are those at relays, in
/// their own order after all others.
pub(in crate::swarm) fn best_first(
    listen: &[Multiaddr],
    external: &[Multiaddr],
    circuits: &[Multiaddr],
) -> Vec<Reachable> {
    let own = sorted(listen, &[own_address(IpAddr::V4(FAR_V4.0)), own_address(IpAddr::V6(FAR_V6.0))]);
    let mut all: Vec<Reachable> = external.iter().map(reachable).collect();
    all.sort_by_key(|one| (one.route != Route::Direct, !is_quic(&one.address)));
    for one in own.into_iter().chain(circuits.iter().map(reachable)) {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn reachable(address: &Multiaddr) -> Reachable {
    let beyond = relay_of(address).map_or_else(|| route(address), |(_, relay)| route(&relay)) != Route::Lan;
    Reachable { address: address.clone(), route: route(address), beyond_lan: beyond }
}

fn sorted(listen: &[Multiaddr], preferred: &[Option<IpAddr>]) -> Vec<Reachable> {
    let mut all: Vec<&Multiaddr> = listen.iter().filter(|address| is_dialable(address)).collect();
    if all.iter().any(|address| !is_loopback(address)) {
        all.retain(|address| !is_loopback(address));
    }
    all.sort_by_key(|address| {
        let main = ip(address).is_some_and(|ip| preferred.contains(&Some(ip)));
        (route(address) != Route::Direct, !main, !is_quic(address), address.to_string())
    });
    all.into_iter().map(reachable).collect()
}

/// The address of this host on its way out. Nothing is sent: connecting a UDP
/// socket only asks the system for the route.
fn own_address(far: IpAddr) -> Option<IpAddr> {
    let (any, port): (IpAddr, u16) = match far {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), FAR_V4.1),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), FAR_V6.1),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, port)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The IP address that it begins with.
pub(in crate::swarm) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(listen: &[&str], main: &str) -> Vec<String> {
        let listen: Vec<Multiaddr> = listen.iter().map(|address| address.parse().unwrap()).collect();
        sorted(&listen, &[main.parse().ok()]).into_iter().map(|reachable| reachable.address.to_string()).collect()
    }

    #[test]
    fn public_then_main_then_quic() {
        let listen = [
            "/ip4/127.0.0.1/udp/4001/quic-v1",
            "/ip4/172.17.0.1/udp/4001/quic-v1",
            "/ip4/192.168.1.2/tcp/4001",
            "/ip4/192.168.1.2/udp/4001/quic-v1",
            "/ip6/::1/tcp/4001",
            "/ip6/fe80::1/tcp/4001",
            "/ip6/2606:4700::1/tcp/4001",
        ];
        let expected = [
            "/ip6/2606:4700::1/tcp/4001",
            "/ip4/192.168.1.2/udp/4001/quic-v1",
            "/ip4/192.168.1.2/tcp/4001",
            "/ip4/172.17.0.1/udp/4001/quic-v1",
        ];
        assert_eq!(best(&listen, "192.168.1.2"), expected);
    }

    #[test]
    fn loopback_is_better_than_nothing() {
        let listen = ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip6/fe80::1/tcp/1"];
        assert_eq!(best(&listen, ""), ["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"]);
        assert!(best(&[], "").is_empty());
    }
}
