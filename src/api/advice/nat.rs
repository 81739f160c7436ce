//! A NAT in words.

use std::net::IpAddr;

use super::{
    Own,
    address::{Scope, ip, scope},
};
use crate::{
    node::{NatClass, NatView},
    ports::PortView,
};

/// A NAT in a line.
pub(in crate::api) fn summary(nat: &NatView) -> String {
    let seen = nat.public_ip.map_or_else(String::new, |ip| format!(", seen as {ip}"));
    let udp = if nat.udp_blocked { "; UDP does not get out, TCP does" } else { "" };
    let kind = match nat.class {
        NatClass::Unknown if nat.udp_blocked => {
            return format!("not known: UDP, by which it is measured, does not get out{seen}");
        }
        NatClass::Unknown => match nat.observers {
            // How many told a peer, it does not say.
            0 if nat.public_ip.is_none() => "not known: no server has told yet what it sees".to_owned(),
            _ => "not known: one server has told what it sees, two are needed; a second relay would do".to_owned(),
        },
        NatClass::None => "none: others see an address of this host itself".to_owned(),
        NatClass::EndpointIndependent => format!("a NAT that can be passed{}", port(nat)),
        NatClass::EndpointDependent => format!("a symmetric NAT: another port for each destination{}", step(nat)),
    };
    format!("{kind}{seen}{udp}")
}

/// What is before this node's IPv6, in a line.
pub(in crate::api) fn summary_v6(own: &Own<'_>) -> String {
    let nat = &own.reach.nat_v6;
    let public = |ip: IpAddr| ip.is_ipv6() && scope(ip) == Scope::Public;
    if nat.class == NatClass::Unknown && nat.observers == 0 && !own.listen.iter().filter_map(ip).any(public) {
        return "this host has no public IPv6 address".to_owned();
    }
    summary(nat)
}

fn port(nat: &NatView) -> &'static str {
    match nat.port_kept {
        Some(true) => ", it keeps the port",
        Some(false) => ", it changes the port",
        None => "",
    }
}

fn step(nat: &NatView) -> String {
    match nat.port_step {
        Some(step) => format!(", {step} apart"),
        None => ", without a pattern".to_owned(),
    }
}

/// What stands before the router of this node, if something does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    /// Nothing that is known.
    Nothing,
    /// A NAT of the provider, which nobody can set.
    Carrier,
    /// Another router.
    Router,
}

/// Whether the router is itself behind a NAT: what it gets from its own router
/// is no public address, or not the one that others see.
pub(super) fn beyond(own: &Own<'_>) -> Beyond {
    let nat = &own.reach.nat_v4;
    let ports = || own.reach.mappings.iter().flat_map(|mappings| &mappings.ports);
    let first = ports().find_map(|port| port.mapped.as_ref()).map(|mapped| IpAddr::from(*mapped.external.ip()));
    let in_carrier = own.listen.iter().filter_map(ip).any(|ip| scope(ip) == Scope::Carrier);
    // A router that forwards nothing may say so too.
    let told = ports().any(PortView::is_behind_nat);
    match first.map(scope) {
        _ if in_carrier || nat.public_ip.map(scope) == Some(Scope::Carrier) => Beyond::Carrier,
        Some(Scope::Carrier) => Beyond::Carrier,
        Some(Scope::Private) => Beyond::Router,
        Some(Scope::Public) if nat.public_ip.is_some_and(|seen| seen.is_ipv4() && Some(seen) != first) => {
            Beyond::Router
        }
        _ if told => Beyond::Router,
        _ => Beyond::Nothing,
    }
}
