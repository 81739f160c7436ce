//! Mappings by PCP and NAT-PMP.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp,
    pcp::{self, BaseMapRequest, DropMappingRange, Nonce},
};

use super::{
    router::Router,
    slot::{Granted, LIFETIME, Wanted},
    view::Transport,
};

/// A router on the same link answers within milliseconds: 250 ms, doubled
/// twice, is patience enough.
const TIMEOUTS: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_secs(1)),
};
/// When mappings are removed at the end, one answer is waited for.
const AT_THE_END: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(300), max_retries: 1, max_retry_timeout: None };

/// Maps or renews by PCP. `Err` says why not, for a person.
pub(super) async fn map_pcp(router: &Router, wanted: &Wanted, nonce: Nonce) -> Result<Granted, String> {
    let request = BaseMapRequest::new(
        IpAddr::V4(router.ip).into(),
        IpAddr::V4(router.local),
        protocol(wanted.transport),
        wanted.internal,
    );
    // Not the library's own `renew`: it asks for the time granted before, and
    // asserts that a router granted some.
    let mapping = pcp::port_mapping(request, Some(nonce), None, options(wanted.external)).await.map_err(of_pcp)?;
    let PortMappingType::Pcp { external_ip: IpAddr::V4(ip), .. } = mapping.mapping_type() else {
        return Err("it maps to an IPv6 address".to_owned());
    };
    granted(&mapping, ip)
}

/// Maps or renews by NAT-PMP.
pub(super) async fn map_nat_pmp(router: &Router, wanted: &Wanted) -> Result<Granted, String> {
    let gateway = IpAddr::V4(router.ip).into();
    let mapping = natpmp::port_mapping(gateway, protocol(wanted.transport), wanted.internal, options(wanted.external))
        .await
        .map_err(of_nat_pmp)?;
    let ip = natpmp::external_address(gateway, Some(TIMEOUTS)).await.map_err(of_nat_pmp)?;
    granted(&mapping, ip)
}

/// Removes a mapping, if the router still answers.
pub(super) async fn remove_pcp(router: &Router, wanted: &Wanted, nonce: Nonce) -> Result<(), String> {
    let range = DropMappingRange::Single { protocol: protocol(wanted.transport), internal_port: wanted.internal };
    let (gateway, local) = (IpAddr::V4(router.ip).into(), IpAddr::V4(router.local));
    pcp::try_drop_mapping(gateway, local, nonce, range, Some(AT_THE_END)).await.map_err(of_pcp)
}

/// Removes a mapping, if the router still answers.
pub(super) async fn remove_nat_pmp(router: &Router, wanted: &Wanted) -> Result<(), String> {
    let gateway = IpAddr::V4(router.ip).into();
    natpmp::try_drop_mapping(gateway, protocol(wanted.transport), Some(wanted.internal), Some(AT_THE_END))
        .await
        .map_err(of_nat_pmp)
}

fn granted(mapping: &PortMapping, ip: Ipv4Addr) -> Result<Granted, String> {
    if mapping.lifetime() == 0 {
        return Err("it grants a mapping of no duration".to_owned());
    }
    let external = SocketAddrV4::new(ip, mapping.external_port().get());
    Ok(Granted::new(external, Duration::from_secs(mapping.lifetime().into())))
}

fn options(external: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        // A wish: the router chooses another one if this is taken.
        external_port: Some(external),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(TIMEOUTS),
    }
}

fn protocol(transport: Transport) -> InternetProtocol {
    match transport {
        Transport::Udp => InternetProtocol::Udp,
        Transport::Tcp => InternetProtocol::Tcp,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "maps an error")]
fn of_pcp(failure: pcp::Failure) -> String {
    match failure {
        pcp::Failure::Timeout => "no answer".to_owned(),
        pcp::Failure::Socket(error) => error.to_string(),
        pcp::Failure::NotAuthorized(_) => "not allowed".to_owned(),
        pcp::Failure::NetworkFailure(_) => "its own connection does not work".to_owned(),
        pcp::Failure::NoResources(_) => "it has no room for one more".to_owned(),
        pcp::Failure::UserExceededQuota(_) => "this host has too many mappings there".to_owned(),
        pcp::Failure::CannotProvideExternal(_) => "no external port is free".to_owned(),
        pcp::Failure::AddressMismatch => "there is another NAT between it and this host".to_owned(),
        other => plain(&other.to_string()),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "maps an error")]
fn of_nat_pmp(failure: natpmp::Failure) -> String {
    match failure {
        natpmp::Failure::Timeout => "no answer".to_owned(),
        natpmp::Failure::Socket(error) => error.to_string(),
        natpmp::Failure::NotAuthorized => "not allowed".to_owned(),
        natpmp::Failure::NetworkFailure => "its own connection does not work".to_owned(),
        natpmp::Failure::OutOfResources => "it has no room for one more".to_owned(),
        other => plain(&other.to_string()),
    }
}

fn plain(text: &str) -> String {
    text.trim_start_matches("Server responded with code: ").to_lowercase()
}
