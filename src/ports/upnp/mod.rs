//! UPnP Internet Gateway Devices: XML over HTTP, found by multicast.

mod device;
mod http;
mod soap;
mod ssdp;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};

use tokio::time::timeout;

use super::{
    router::Router,
    slot::{Granted, LIFETIME, Wanted},
    text::printable,
};
use device::Service;
use soap::{Call, Fault};

/// What the router's own list of mappings shows.
const DESCRIPTION: &str = "p2p-node";
/// Of a router's name that is shown.
const MAX_NAME: usize = 64;
/// From the search to the first answer of the service: a router that needs
/// longer is found at the next try.
const FIND_DEADLINE: Duration = Duration::from_secs(8);
/// Ports tried in place of one that is taken, where the router chooses none.
const OTHER_PORTS: usize = 8;
/// Ports that nothing else is at by custom.
const HIGH_PORTS: std::ops::Range<u16> = 20_000..60_000;

/// A router that speaks UPnP.
#[derive(Debug, Clone)]
pub(super) struct Igd {
    service: Service,
    /// What it says it is.
    pub(super) name: Option<String>,
    /// What it says its address is.
    pub(super) external: Option<Ipv4Addr>,
}

impl Igd {
    /// Searches the link of the router. `None` if nothing there speaks UPnP
    /// and can forward ports.
    pub(super) async fn find(router: &Router) -> Option<Self> {
        let search = async {
            // The gateway itself before anything else that calls itself one.
            for location in ssdp::search(router).await {
                match Self::at(router, &location).await {
                    Ok(igd) => return Some(igd),
                    Err(error) => tracing::debug!(host = %location.host, %error, "no UPnP router"),
                }
            }
            None
        };
        timeout(FIND_DEADLINE, search).await.unwrap_or_default()
    }

    async fn at(router: &Router, location: &ssdp::Location) -> Result<Self, Fault> {
        let text = http::get(router.local, location.host, &location.path).await?;
        let device = device::parse(&text, location.host)?;
        let name = Some(printable(&device.name, MAX_NAME)).filter(|name| !name.is_empty());
        let mut last = Fault::Odd("it forwards no ports");
        let mut spare = None;
        // A router with two lines describes both; one is in use.
        for service in device.services {
            match external(router.local, &service).await {
                Ok(ip @ Some(_)) => return Ok(Self { service, name, external: ip }),
                Ok(None) => spare = spare.or(Some(service)),
                // One behind another NAT may refuse that, and say so later.
                Err(fault @ Fault::Refused { .. }) => {
                    last = fault;
                    spare = spare.or(Some(service));
                }
                Err(fault) => last = fault,
            }
        }
        spare.map(|service| Self { service, name, external: None }).ok_or(last)
    }

    /// Maps or renews.
    pub(super) async fn map(&self, router: &Router, wanted: &Wanted) -> Result<Granted, String> {
        let (port, lifetime) = self.forward(router, wanted).await.map_err(|fault| fault.to_string())?;
        let ip = external(router.local, &self.service).await.map_err(|fault| fault.to_string())?;
        Ok(Granted::new(SocketAddrV4::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port.get()), lifetime))
    }

    async fn forward(&self, router: &Router, wanted: &Wanted) -> Result<(NonZeroU16, Duration), Fault> {
        match self.add(router, wanted, wanted.external).await {
            Err(fault) if fault.is_about_the_port() => {}
            Err(fault) if fault.is(soap::SAME_PORT_ONLY) => return self.add(router, wanted, wanted.internal).await,
            done => return done,
        }
        let mut last = None;
        if self.service.chooses() {
            match self.add_any(router, wanted).await {
                Ok(granted) => return Ok(granted),
                Err(fault) => last = Some(fault),
            }
        }
        for _ in 0..OTHER_PORTS {
            let Some(port) = NonZeroU16::new(rand::random_range(HIGH_PORTS)) else { continue };
            match self.add(router, wanted, port).await {
                Err(fault) if fault.is_about_the_port() => last = Some(fault),
                done => return done,
            }
        }
        Err(last.unwrap_or(Fault::Odd("no external port is free")))
    }

    async fn add(&self, router: &Router, wanted: &Wanted, port: NonZeroU16) -> Result<(NonZeroU16, Duration), Fault> {
        match self.add_for(router, wanted, port, LIFETIME).await {
            // Some know mappings without end only. It is removed at the end.
            Err(fault) if fault.is(soap::WITHOUT_END_ONLY) => {
                self.add_for(router, wanted, port, Duration::ZERO).await?;
            }
            done => done?,
        }
        Ok((port, LIFETIME))
    }

    async fn add_for(
        &self,
        router: &Router,
        wanted: &Wanted,
        port: NonZeroU16,
        lifetime: Duration,
    ) -> Result<(), Fault> {
        self.mapping("AddPortMapping", router, wanted, port, lifetime).send(router.local).await.map(drop)
    }

    async fn add_any(&self, router: &Router, wanted: &Wanted) -> Result<(NonZeroU16, Duration), Fault> {
        let call = self.mapping("AddAnyPortMapping", router, wanted, wanted.external, LIFETIME);
        let answer = call.send(router.local).await?;
        let port = answer.value("NewReservedPort").and_then(|port| port.parse().ok());
        Ok((port.ok_or(Fault::Odd("it does not say which port it forwards"))?, LIFETIME))
    }

    fn mapping<'a>(
        &'a self,
        action: &'static str,
        router: &Router,
        wanted: &Wanted,
        port: NonZeroU16,
        lifetime: Duration,
    ) -> Call<'a> {
        self.about(action, wanted, port)
            .with("NewInternalPort", wanted.internal)
            .with("NewInternalClient", router.local)
            .with("NewEnabled", 1)
            .with("NewPortMappingDescription", DESCRIPTION)
            .with("NewLeaseDuration", lifetime.as_secs())
    }

    fn about<'a>(&'a self, action: &'static str, wanted: &Wanted, port: NonZeroU16) -> Call<'a> {
        Call::new(&self.service, action)
            .with("NewRemoteHost", "")
            .with("NewExternalPort", port)
            .with("NewProtocol", wanted.transport)
    }

    /// Whether the router still forwards `external` to this host, and says so.
    pub(super) async fn holds(&self, router: &Router, wanted: &Wanted, external: SocketAddrV4) -> bool {
        let Some(port) = NonZeroU16::new(external.port()) else { return false };
        match self.about("GetSpecificPortMappingEntry", wanted, port).send(router.local).await {
            Ok(answer) => {
                let is = |name, value: &str| answer.value(name) == Some(value);
                is("NewInternalClient", &router.local.to_string())
                    && is("NewInternalPort", &wanted.internal.to_string())
                    && self.is_at(router, *external.ip()).await
            }
            // It answers, but not this: it is there.
            Err(fault) => matches!(fault, Fault::Refused { .. }) && !fault.is(soap::NO_SUCH_ENTRY),
        }
    }

    /// Whether the router's address is still this.
    async fn is_at(&self, router: &Router, ip: Ipv4Addr) -> bool {
        external(router.local, &self.service).await.is_ok_and(|told| told.is_none_or(|told| told == ip))
    }

    /// Removes a mapping, if the router still answers.
    pub(super) async fn remove(&self, router: &Router, wanted: &Wanted) -> Result<(), String> {
        let call = self.about("DeletePortMapping", wanted, wanted.external);
        call.send(router.local).await.map(drop).map_err(|fault| fault.to_string())
    }
}

/// The router's address on its other side, if it has one.
async fn external(local: Ipv4Addr, service: &Service) -> Result<Option<Ipv4Addr>, Fault> {
    let answer = Call::new(service, "GetExternalIPAddress").send(local).await?;
    let ip = answer.value("NewExternalIPAddress").and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    Ok(ip.filter(|ip| !ip.is_unspecified()))
}
