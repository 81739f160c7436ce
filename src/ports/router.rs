//! The router to ask: the gateway of the IPv4 default route.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::trouble::is_public;
use crate::netwatch;

/// A router, and this host as it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Router {
    pub(super) ip: Ipv4Addr,
    /// This host's address towards it.
    pub(super) local: Ipv4Addr,
    /// Length of the prefix of the subnet that the two share, in bits.
    pub(super) prefix: u8,
}

impl Router {
    /// The default gateway. `Err` says why there is none, for a person.
    pub(super) async fn find() -> Result<Self, String> {
        let state = netwatch::read().await.map_err(|error| error.to_string())?;
        let gateway = state.gateways_v4.iter().find_map(|gateway| match gateway.ip {
            Some(IpAddr::V4(ip)) => Some((ip, gateway.interface)),
            _ => None,
        });
        let Some((ip, interface)) = gateway else {
            return Err("this host has no IPv4 router: no default route leads to a gateway".to_owned());
        };
        let local = local_towards(ip).await.map_err(|error| format!("the router {ip} cannot be reached: {error}"))?;
        if is_public(local) {
            return Err(format!("this host has an address of the internet itself, {local}: nothing has to be mapped"));
        }
        let interface = state.interfaces.get(&interface);
        let own = interface.and_then(|interface| interface.addresses.iter().find(|own| own.ip == IpAddr::V4(local)));
        // Without a subnet, nobody but the router belongs to it.
        Ok(Self { ip, local, prefix: own.map_or(32, |own| own.prefix.min(32)) })
    }

    /// Whether an address is of the subnet that the router is on.
    pub(super) fn is_near(&self, ip: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        ip == self.ip || (ip.to_bits() & mask == self.local.to_bits() & mask && ip != self.local)
    }
}

/// The kernel's choice of a source address. Sends nothing.
async fn local_towards(gateway: Ipv4Addr) -> std::io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((gateway, crab_nat::GATEWAY_PORT)).await?;
    match socket.local_addr()? {
        SocketAddr::V4(local) => Ok(*local.ip()),
        SocketAddr::V6(_) => Err(std::io::ErrorKind::AddrNotAvailable.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_the_subnet_and_the_router() {
        let at = |prefix| Router { ip: [192, 168, 1, 1].into(), local: [192, 168, 1, 7].into(), prefix };
        assert!(at(24).is_near([192, 168, 1, 254].into()));
        assert!(!at(24).is_near([192, 168, 2, 1].into()));
        assert!(!at(24).is_near([192, 168, 1, 7].into()), "this host itself");
        assert!(at(32).is_near([192, 168, 1, 1].into()) && !at(32).is_near([192, 168, 1, 2].into()));
        assert!(at(0).is_near([8, 8, 8, 8].into()));
    }
}
