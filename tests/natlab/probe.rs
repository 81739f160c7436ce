//! What a site's router does, found out with plain sockets: no word of the
//! rules is taken for granted.

mod events;
mod igd;
mod sockets;

pub(crate) use events::events;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    kind::{Filtering, Igd, Kind},
    lab::Lab,
    plan,
    site::{Site, Spec},
};
use sockets::{Peer, tcp_echo};

/// Between a probe's site and the middle, and a server and the middle.
const DELAY: Duration = Duration::from_millis(4);
/// Destinations written to when ports are compared.
const DESTINATIONS: usize = 6;

/// How the outer ports of one socket compare, destination by destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ports {
    /// No answer came.
    Silent,
    /// All are that of the host.
    Kept,
    /// All are the same, but not that of the host.
    Changed,
    /// Each is one more than the one before.
    PlusOne,
    /// All differ, within so many ports.
    Random(u16),
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// By which address the internet knows the host.
    pub(crate) outer: Option<IpAddr>,
    pub(crate) ports: Ports,
    /// Whom the router lets in, once the host has written to someone; `None`
    /// if even the answer of that one does not come.
    pub(crate) filtering: Option<Filtering>,
    /// A packet comes in before any has gone out.
    pub(crate) unsolicited: bool,
    /// A second host reaches the first by the outer address; absent where a
    /// site is one host.
    pub(crate) hairpin: Option<bool>,
    /// A TCP connection passes, and carries data both ways.
    pub(crate) tcp: bool,
    /// A mapping asked for lets everyone in, by protocol.
    pub(crate) mapped: Vec<Igd>,
    /// Round trip of a UDP packet.
    pub(crate) rtt: Option<Duration>,
}

/// The round trip that a probe should see.
pub(crate) const RTT: Duration = Duration::from_millis(16);

/// Builds a site of this kind in the lab and looks at it.
pub(crate) fn probe(lab: &Lab, kind: Kind, hairpin: bool) -> Seen {
    let public = kind.is_public();
    let spec = Spec { hosts: if public { 1 } else { 2 }, hairpin, delay: DELAY, ..Spec::new(kind) };
    let mut site = lab.site(spec);
    let server = if kind.is_v6() { Kind::V6Open } else { Kind::None };
    let servers = [0, 1].map(|_| lab.site(Spec { delay: DELAY, ..Spec::new(server) }));
    let unsolicited = unsolicited(&site, &servers);
    site.flush();
    let (outer, ports, rtt) = ports(&site, &servers);
    site.flush();
    let filtering = filtering(&site, &servers);
    site.flush();
    let hairpin = (!public).then(|| hairpin_works(&site, &servers));
    let tcp = tcp_echo(&site.hosts[0], &servers[0].hosts[0], servers[0].public());
    let mapped = [Igd::Upnp, Igd::Pcp].into_iter().filter(|protocol| mapping_works(&mut site, &servers, *protocol));
    let mapped = if kind.translates() { mapped.collect() } else { Vec::new() };
    Seen { outer, ports, filtering, unsolicited, hairpin, tcp, mapped, rtt }
}

/// Whether a packet for the outer address reaches a host that is silent.
fn unsolicited(site: &Site, servers: &[Site; 2]) -> bool {
    let client = Peer::new(site, 0, plan::PORT);
    let server = Peer::new(&servers[1], 0, 5001);
    server.reaches(SocketAddr::new(site.public(), plan::PORT), &client)
}

/// The outer address, how the outer ports compare, and the round trip.
fn ports(site: &Site, servers: &[Site; 2]) -> (Option<IpAddr>, Ports, Option<Duration>) {
    let client = Peer::new(site, 0, plan::PORT);
    let destinations = (0..DESTINATIONS).map(|n| Peer::new(&servers[n % 2], 0, 5001 + n as u16));
    let destinations: Vec<_> = destinations.collect();
    let seen: Vec<SocketAddr> = destinations.iter().filter_map(|server| client.seen_by(server)).collect();
    if seen.len() < DESTINATIONS {
        return (None, Ports::Silent, None);
    }
    let outer = seen.iter().all(|address| address.ip() == seen[0].ip()).then(|| seen[0].ip());
    let ports: Vec<u16> = seen.iter().map(SocketAddr::port).collect();
    let compared = if ports.iter().all(|port| *port == plan::PORT) {
        Ports::Kept
    } else if ports.iter().all(|port| *port == ports[0]) {
        Ports::Changed
    } else if ports.windows(2).all(|pair| pair[1] == pair[0] + 1) {
        Ports::PlusOne
    } else {
        Ports::Random(ports.iter().max().unwrap() - ports.iter().min().unwrap())
    };
    (outer, compared, client.round_trip(&destinations[0]))
}

/// Whom the router lets in to a mapping that one server's port opened.
fn filtering(site: &Site, servers: &[Site; 2]) -> Option<Filtering> {
    let client = Peer::new(site, 0, plan::PORT);
    let (written_to, same_address) = (Peer::new(&servers[0], 0, 5001), Peer::new(&servers[0], 0, 5002));
    let stranger = Peer::new(&servers[1], 0, 5001);
    let outer = client.seen_by(&written_to)?;
    let by_stranger = stranger.reaches(outer, &client);
    let by_address = same_address.reaches(outer, &client);
    if !written_to.reaches(outer, &client) {
        return None;
    }
    Some(match (by_stranger, by_address) {
        (true, _) => Filtering::None,
        (false, true) => Filtering::Address,
        (false, false) => Filtering::AddressAndPort,
    })
}

/// Whether two hosts reach each other by their outer addresses and ports, each
/// seen at its own.
fn hairpin_works(site: &Site, servers: &[Site; 2]) -> bool {
    let server = Peer::new(&servers[0], 0, 5001);
    let (first, second) = (Peer::new(site, 0, plan::PORT), Peer::new(site, 1, plan::PORT));
    let (Some(of_first), Some(of_second)) = (first.seen_by(&server), second.seen_by(&server)) else { return false };
    first.source_at(of_second, &second) == Some(of_first) && second.source_at(of_first, &first) == Some(of_second)
}

/// Whether a host gets a mapping by this protocol that lets strangers in.
fn mapping_works(site: &mut Site, servers: &[Site; 2], protocol: Igd) -> bool {
    let client = Peer::new(site, 0, plan::PORT);
    let mapped = site.hosts[0].enter(|| match protocol {
        Igd::Upnp => igd::upnp(site.host_ip(0), plan::PORT),
        Igd::Pcp => igd::nat_pmp(plan::lan_router(site.number), plan::PORT),
    });
    let Some(port) = mapped else { return false };
    let works = Peer::new(&servers[1], 0, 5001).reaches(SocketAddr::new(site.public(), port), &client);
    site.restore();
    works
}
