//! One port: what the router granted for it, and when to do what. No clock
//! and no socket of its own.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use crab_nat::pcp::Nonce;

use super::{
    router::Router,
    trouble::{BadAddress, Trouble},
    upnp::Igd,
    view::{Mapped, Method, PortView, Transport},
};

/// Asked for. A router that was replaced or lost its memory in silence is
/// noticed at half of it at the latest, and a daemon that was killed leaves
/// its mapping behind for no longer.
pub(super) const LIFETIME: Duration = Duration::from_secs(3600);
/// A router that grants less is asked every half of this nevertheless.
const SHORTEST: Duration = Duration::from_secs(60);
/// What a router grants beyond is not relied on.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The next try after one that failed, and after many.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(30 * 60);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) transport: Transport,
    pub(super) internal: NonZeroU16,
    /// The external port that would be best: the one had before.
    pub(super) external: NonZeroU16,
}

/// What a router gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) external: SocketAddrV4,
    /// For this long.
    pub(super) lifetime: Duration,
}

impl Granted {
    pub(super) fn new(external: SocketAddrV4, lifetime: Duration) -> Self {
        Self { external, lifetime: lifetime.clamp(SHORTEST, LONGEST) }
    }
}

/// A way to ask for mappings that the router offers.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Pcp,
    NatPmp,
    Upnp(Igd),
}

impl Way {
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Pcp => Method::Pcp,
            Self::NatPmp => Method::NatPmp,
            Self::Upnp(_) => Method::Upnp,
        }
    }
}

/// A mapping that is held.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) way: Way,
    pub(super) router: Router,
    pub(super) external: SocketAddrV4,
    pub(super) expires: Instant,
    renew_at: Instant,
}

/// One port.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) transport: Transport,
    pub(super) internal: NonZeroU16,
    /// Names the mapping to a PCP server, which knows it again by this.
    pub(super) nonce: Nonce,
    pub(super) held: Option<Held>,
    pub(super) tried: bool,
    external: NonZeroU16,
    error: Option<Trouble>,
    failures: u32,
    retry_at: Instant,
}

impl Slot {
    pub(super) fn new(transport: Transport, internal: NonZeroU16, nonce: Nonce, now: Instant) -> Self {
        Self {
            transport,
            internal,
            nonce,
            held: None,
            tried: false,
            external: internal,
            error: None,
            failures: 0,
            retry_at: now,
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted { transport: self.transport, internal: self.internal, external: self.external }
    }

    /// The router granted a mapping.
    pub(super) fn granted(&mut self, way: Way, router: Router, granted: Granted, now: Instant) {
        let Granted { external, lifetime } = granted;
        if self.held.as_ref().is_none_or(|held| held.external != external) {
            tracing::info!(
                transport = %self.transport, port = self.internal.get(), %external, method = %way.method(), router = %router.ip,
                "the router forwards a port"
            );
        }
        self.external = NonZeroU16::new(external.port()).unwrap_or(self.external);
        self.held = Some(Held { way, router, external, expires: now + lifetime, renew_at: now + lifetime / 2 });
        (self.tried, self.error, self.failures) = (true, None, 0);
    }

    /// Nobody granted one. What is held stays until it expires: the router may
    /// only be busy.
    pub(super) fn failed(&mut self, why: Trouble, now: Instant) {
        if self.error.as_ref() != Some(&why) {
            tracing::info!(
                transport = %self.transport, port = self.internal.get(), %why,
                "no port is mapped; peers reach this node by other ways"
            );
        }
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + wait;
        (self.tried, self.error) = (true, Some(why));
        if let Some(held) = &mut self.held {
            held.renew_at = self.retry_at;
        }
        self.expire(now);
    }

    /// Forgets a mapping that the router has forgotten, too.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.held.as_ref().is_some_and(|held| held.expires <= now) {
            self.held = None;
        }
    }

    /// Another router, or another address of this host: what was held is of no
    /// use, and old failures say nothing.
    pub(super) fn forget(&mut self, now: Instant) {
        (self.held, self.error, self.failures, self.retry_at) = (None, None, 0, now);
    }

    /// When this port needs attention.
    pub(super) fn due(&self) -> Instant {
        match &self.held {
            Some(held) => held.renew_at.min(held.expires),
            None => self.retry_at,
        }
    }

    pub(super) fn view(&self, observed: Option<Ipv4Addr>) -> PortView {
        let mapped = self.held.as_ref().map(|held| {
            let reason = BadAddress::of(*held.external.ip(), observed);
            Mapped {
                method: held.way.method(),
                router: held.router.ip,
                external: held.external,
                expires: held.expires,
                usable: reason.is_none(),
                reason,
            }
        });
        PortView { transport: self.transport, internal_port: self.internal.get(), mapped, error: self.error.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(now: Instant) -> Slot {
        Slot::new(Transport::Udp, NonZeroU16::new(4001).unwrap(), [1, 2, 3], now)
    }

    fn silent() -> Trouble {
        Trouble::NoRouter("no answer".to_owned())
    }

    fn grant(slot: &mut Slot, seconds: u64, now: Instant) {
        let router = Router { ip: [192, 168, 1, 1].into(), local: [192, 168, 1, 7].into(), prefix: 24 };
        let external = "128.66.0.1:5001".parse().unwrap();
        slot.granted(Way::Pcp, router, Granted::new(external, Duration::from_secs(seconds)), now);
    }

    #[test]
    fn a_mapping_is_renewed_at_half_its_time_and_asks_for_the_same_port() {
        let now = Instant::now();
        let mut slot = slot(now);
        assert_eq!((slot.due(), slot.wanted().external.get()), (now, 4001));
        grant(&mut slot, 3600, now);
        assert_eq!(slot.due(), now + Duration::from_secs(1800));
        assert_eq!(slot.wanted().external.get(), 5001);
    }

    #[test]
    fn a_router_cannot_make_us_ask_all_the_time_or_never() {
        let now = Instant::now();
        let mut slot = slot(now);
        grant(&mut slot, 1, now);
        assert_eq!(slot.due(), now + SHORTEST / 2);
        grant(&mut slot, u64::from(u32::MAX), now);
        assert_eq!(slot.due(), now + LONGEST / 2);
    }

    #[test]
    fn failures_are_retried_ever_less_often() {
        let now = Instant::now();
        let mut slot = slot(now);
        let mut waits = Vec::new();
        for _ in 0..40 {
            slot.failed(silent(), now);
            waits.push(slot.due() - now);
        }
        assert_eq!(waits[..3], [30, 60, 120].map(Duration::from_secs));
        assert_eq!(waits[39], LAST_RETRY);
        grant(&mut slot, 3600, now);
        slot.failed(silent(), now);
        assert_eq!(slot.due() - now, FIRST_RETRY, "it worked in between");
    }

    #[test]
    fn a_mapping_that_is_not_renewed_is_held_until_it_expires() {
        let now = Instant::now();
        let mut slot = slot(now);
        grant(&mut slot, 100, now);
        let later = now + Duration::from_secs(50);
        slot.failed(silent(), later);
        let view = slot.view(None);
        assert!(view.mapped.is_some_and(|mapped| mapped.usable) && view.error.is_some());
        slot.failed(silent(), now + Duration::from_secs(100));
        assert!(slot.view(None).mapped.is_none());
    }

    #[test]
    fn the_view_says_why_a_mapping_is_of_no_use() {
        let now = Instant::now();
        let mut slot = slot(now);
        grant(&mut slot, 3600, now);
        let mapped = slot.view(Some([128, 66, 0, 9].into())).mapped.unwrap();
        assert!(!mapped.usable && mapped.reason.is_some_and(|reason| reason.is_behind_nat()));
    }
}
