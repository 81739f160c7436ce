//! Why a port is not mapped, or its mapping is of no use.

use std::{fmt, net::Ipv4Addr, num::NonZeroU16};

use super::{
    router::Router,
    slot::Wanted,
    view::{Method, Transport},
};

/// Why a port is not mapped. As text it is for a person, with what to do about
/// it; printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// There is nobody to ask, or nothing to ask for; says which.
    NoRouter(String),
    /// The router knows none of the protocols.
    Silent {
        /// The router.
        router: Ipv4Addr,
        /// What a person can do.
        by_hand: Forward,
    },
    /// The router answers, and gives no port.
    Refused {
        /// The router.
        router: Ipv4Addr,
        /// Its own address, where that explains it.
        address: Option<BadAddress>,
        /// What each way said.
        refusals: Vec<(Method, String)>,
        /// What a person can do.
        by_hand: Forward,
    },
}

/// Why nobody on the internet reaches a router's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// It is of a private network, or of a carrier's.
    #[error("the router itself is behind another NAT (its address there is {0})")]
    Shared(Ipv4Addr),
    /// Peers see another one.
    #[error("the router itself is behind another NAT: it tells {told} as its address, but peers see {seen}")]
    NotSeen {
        /// By the router.
        told: Ipv4Addr,
        /// By peers.
        seen: Ipv4Addr,
    },
    /// The router tells none although it was asked.
    #[error("the router has no address of the internet: it is itself behind another NAT, or not connected")]
    Untold,
    /// The router has none.
    #[error("the router knows no address of its own yet; is it connected?")]
    Missing,
    /// It is of no network at all.
    #[error("the router tells {0} as its address, which is none of the internet")]
    Odd(Ipv4Addr),
}

/// What a person has to set in the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Of this transport.
    pub transport: Transport,
    /// This port.
    pub port: NonZeroU16,
    /// To this host.
    pub to: Ipv4Addr,
}

/// What the router said its address is.
#[derive(Debug, Default)]
pub(super) struct Told {
    asked: bool,
    external: Option<Ipv4Addr>,
}

/// What each way of asking for a port said.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<(Method, String)>);

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Public,
    /// Private, or of a carrier's NAT.
    Shared,
    Unknown,
    Odd,
}

impl Trouble {
    /// The cause alone, without what to do about it.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::NoRouter(why) => why.clone(),
            Self::Silent { router, .. } => format!("the router at {router} answers neither PCP, NAT-PMP nor UPnP"),
            Self::Refused { address: Some(address), .. } => address.to_string(),
            Self::Refused { router, refusals, .. } => refuses(*router, refusals.get(..1).unwrap_or_default()),
        }
    }

    /// Whether it is that the router is behind another NAT.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        matches!(self, Self::Refused { address: Some(address), .. } if address.is_behind_nat())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.cause();
        match self {
            Self::NoRouter(_) => f.write_str(&cause),
            Self::Silent { by_hand, .. } => {
                write!(f, "{cause}; switch one of them on in its settings, or {by_hand}")
            }
            Self::Refused { router, address: Some(_), refusals, .. } => {
                write!(f, "{cause}; {}", refuses(*router, refusals))
            }
            Self::Refused { router, address: None, refusals, by_hand } => {
                write!(f, "{}; {by_hand}", refuses(*router, refusals))
            }
        }
    }
}

impl BadAddress {
    /// Why peers on the internet cannot reach `external`, as far as that is
    /// known.
    pub(super) fn of(external: Ipv4Addr, observed: Option<Ipv4Addr>) -> Option<Self> {
        match kind(external) {
            Kind::Shared => Some(Self::Shared(external)),
            Kind::Odd => Some(Self::Odd(external)),
            Kind::Unknown => Some(Self::Missing),
            Kind::Public => {
                observed.filter(|seen| *seen != external).map(|seen| Self::NotSeen { told: external, seen })
            }
        }
    }

    /// Whether it is that of a router behind another NAT.
    #[must_use]
    pub fn is_behind_nat(self) -> bool {
        match self {
            Self::Shared(_) | Self::NotSeen { .. } | Self::Untold => true,
            Self::Missing | Self::Odd(_) => false,
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forward {} port {} to {} there by hand", self.transport, self.port, self.to)
    }
}

impl Told {
    pub(super) fn hear(&mut self, external: Option<Ipv4Addr>) {
        self.asked = true;
        self.external = external.or(self.external);
    }

    /// Why a router with that address refuses, if the address explains it.
    fn cause(&self) -> Option<BadAddress> {
        match self.external {
            // Many keep a private one for themselves.
            None => self.asked.then_some(BadAddress::Untold),
            Some(ip) => (kind(ip) == Kind::Shared).then_some(BadAddress::Shared(ip)),
        }
    }
}

impl Refusals {
    pub(super) fn add(&mut self, method: Method, why: String) {
        self.0.push((method, why));
    }

    pub(super) fn explain(&self, router: &Router, told: &Told, wanted: &Wanted) -> Trouble {
        let by_hand = Forward { transport: wanted.transport, port: wanted.internal, to: router.local };
        let (router, refusals) = (router.ip, self.0.clone());
        if refusals.is_empty() {
            return Trouble::Silent { router, by_hand };
        }
        Trouble::Refused { router, address: told.cause(), refusals, by_hand }
    }
}

fn refuses(router: Ipv4Addr, refusals: &[(Method, String)]) -> String {
    let words: Vec<String> = refusals.iter().map(|(method, why)| format!("{method}: {why}")).collect();
    format!("the router at {router} refuses: {}", words.join("; "))
}

/// Whether an address is one of the internet.
pub(super) fn is_public(ip: Ipv4Addr) -> bool {
    kind(ip) == Kind::Public
}

fn kind(ip: Ipv4Addr) -> Kind {
    let [a, b, ..] = ip.octets();
    match () {
        () if ip.is_unspecified() => Kind::Unknown,
        () if ip.is_private()
            || (a == 100 && (64..128).contains(&b))
            || (a == 192 && b == 0 && ip.octets()[2] == 0) =>
        {
            Kind::Shared
        }
        () if a == 0 || a >= 224 || ip.is_loopback() || ip.is_link_local() || ip.is_documentation() => Kind::Odd,
        // Measuring of devices, RFC 2544.
        () if a == 198 && (18..20).contains(&b) => Kind::Odd,
        () => Kind::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Router =
        Router { ip: Ipv4Addr::new(192, 168, 1, 1), local: Ipv4Addr::new(192, 168, 1, 7), prefix: 24 };

    fn explain(refusals: Vec<(Method, String)>, external: Option<&str>) -> Trouble {
        let port = NonZeroU16::new(4001).unwrap();
        let wanted = Wanted { transport: Transport::Udp, internal: port, external: port };
        let told = Told { asked: true, external: external.map(|ip| ip.parse().unwrap()) };
        Refusals(refusals).explain(&ROUTER, &told, &wanted)
    }

    fn reason(external: &str, observed: Option<&str>) -> Option<BadAddress> {
        BadAddress::of(external.parse().unwrap(), observed.map(|ip| ip.parse().unwrap()))
    }

    #[test]
    fn addresses_of_the_internet_are_usable() {
        for ip in ["128.66.0.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1"] {
            assert_eq!(reason(ip, None), None, "{ip}");
            assert_eq!(reason(ip, Some(ip)), None, "{ip}");
        }
    }

    #[test]
    fn a_router_behind_another_nat_is_told() {
        for ip in ["10.0.0.2", "172.16.0.1", "192.168.178.2", "100.64.0.1", "100.127.255.254", "192.0.0.4"] {
            let reason = reason(ip, None).unwrap();
            assert!(reason.is_behind_nat() && reason.to_string().contains(ip), "{reason}");
        }
        let reason = reason("128.66.0.1", Some("128.66.0.9")).unwrap();
        assert!(reason.is_behind_nat() && reason.to_string().contains("128.66.0.9"), "{reason}");
    }

    #[test]
    fn what_is_no_address_is_not_usable() {
        for ip in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "203.0.113.1", "198.18.0.1"] {
            assert!(reason(ip, None).is_some_and(|reason| !reason.is_behind_nat()), "{ip}");
        }
    }

    #[test]
    fn a_silent_router_is_told_with_the_cure() {
        let trouble = explain(Vec::new(), None);
        assert_eq!(trouble.cause(), "the router at 192.168.1.1 answers neither PCP, NAT-PMP nor UPnP");
        let text = trouble.to_string();
        assert!(text.starts_with(&trouble.cause()), "{text}");
        assert!(text.ends_with("forward UDP port 4001 to 192.168.1.7 there by hand"), "{text}");
    }

    #[test]
    fn a_refusal_says_who_refused_and_why() {
        let refused = vec![(Method::Pcp, "not allowed".to_owned()), (Method::Upnp, "error 606".to_owned())];
        let trouble = explain(refused.clone(), Some("128.66.0.1"));
        let text = trouble.to_string();
        assert!(text.contains("192.168.1.1 refuses: PCP: not allowed; UPnP: error 606; forward UDP port"), "{text}");
        assert_eq!(trouble.cause(), "the router at 192.168.1.1 refuses: PCP: not allowed");
        assert!(!trouble.is_behind_nat());
        let trouble = explain(refused, Some("10.0.0.2"));
        let text = trouble.to_string();
        assert!(
            text.starts_with("the router itself is behind another NAT (its address there is 10.0.0.2); "),
            "{text}"
        );
        assert!(text.ends_with("refuses: PCP: not allowed; UPnP: error 606") && trouble.is_behind_nat(), "{text}");
        let text = explain(vec![(Method::Upnp, "error 501".to_owned())], None).to_string();
        assert!(text.contains("itself behind another NAT, or not connected; the router at"), "{text}");
    }
}
