//! Which addresses a site has. Its number, 1 to 254, is in all of them.
//!
//! IPv4: 128.66.0.0/16, which the libraries take for public (203.0.113.0/24
//! they do not). IPv6: 3fff::/20, kept for documentation since 2024, which
//! the libraries take for global (2001:db8::/32 they do not). Neither ever
//! leaves the namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port that daemons and probes use behind a router.
pub(crate) const PORT: u16 = 4001;
/// Routers that change ports give this one to their first host's `PORT`, the
/// next to the second.
pub(crate) const CHANGED_PORT: u16 = 24001;

/// The internet's end of a site's line.
pub(crate) fn gateway(site: u8) -> Ipv4Addr {
    Ipv4Addr::new(128, 66, site, 1)
}

/// The public address of a site; `nth` counts the changes of it.
pub(crate) fn public(site: u8, nth: u8) -> Ipv4Addr {
    Ipv4Addr::new(128, 66, site, 2 + nth)
}

/// The router's address on its LAN, and the LAN's prefix.
pub(crate) fn lan_router(site: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, site, 1)
}

pub(crate) fn lan_host(site: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, site, 10 + host)
}

pub(crate) fn lan_net(site: u8) -> String {
    format!("192.168.{site}.0/24")
}

/// Between a carrier's router and the home router behind it: the shared
/// address space of RFC 6598.
pub(crate) fn carrier_router(site: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, site, 1)
}

pub(crate) fn carrier_customer(site: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, site, 2)
}

pub(crate) fn carrier_net(site: u8) -> String {
    format!("100.64.{site}.0/24")
}

/// The site's /48.
pub(crate) fn v6_net(site: u8) -> String {
    format!("3fff:0:{site:x}::/48")
}

/// The internet's end of the line.
pub(crate) fn v6_gateway(site: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x3fff, 0, site.into(), 0, 0, 0, 0, 1)
}

/// The site's end of it: a router, or a host without one.
pub(crate) fn v6_wan(site: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x3fff, 0, site.into(), 0, 0, 0, 0, 2)
}

pub(crate) fn v6_lan_router(site: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x3fff, 0, site.into(), 1, 0, 0, 0, 1)
}

pub(crate) fn v6_lan_host(site: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x3fff, 0, site.into(), 1, 0, 0, 0, 10 + u16::from(host))
}

/// The site of an address that crosses the internet.
pub(crate) fn site_of(address: IpAddr) -> Option<u8> {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [128, 66, site, _] => Some(site),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0x3fff, 0, site, ..] => u8::try_from(site).ok(),
            _ => None,
        },
    }
}
