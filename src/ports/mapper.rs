//! The task that keeps ports mapped.

use std::{
    net::Ipv4Addr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use crab_nat::pcp::Nonce;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_PORTS, PortsConfig, Secret,
    announce::Announcements,
    epoch::Epoch,
    pmp,
    probe::{self, Answers},
    router::Router,
    slot::{Granted, Slot, Way},
    trouble::{Refusals, Told, Trouble},
    upnp::Igd,
    view::{MappingView, Transport},
};

/// How often the router is asked whether it still knows its mappings: two
/// datagrams, or two small calls of UPnP a port.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// Checks without an answer until the router is looked for again.
const MAX_SILENT: u32 = 3;
/// UPnP waits this long for the better protocols: one mapping is enough.
const HEAD_START: Duration = Duration::from_millis(250);
/// Announcements that come sooner after one another are one. Anyone on the
/// link can forge them: they cost a renewal.
const ANNOUNCEMENT_GAP: Duration = Duration::from_secs(2);
/// To remove mappings at the end: they expire anyway.
const STOP_GRACE: Duration = Duration::from_millis(1500);

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Look for the router and map every port.
    All,
    /// Renew or retry what is due.
    Due,
    /// Ask whether mappings are still there.
    Check,
}

/// What was found out about the router.
enum Offer {
    Pmp(Answers),
    Upnp(Option<Igd>),
}

/// Keeps ports mapped.
#[derive(Debug)]
pub(super) struct Mapper {
    slots: Vec<Slot>,
    view: watch::Sender<MappingView>,
    observed: watch::Receiver<Option<Ipv4Addr>>,
    announcements: Announcements,
    router: Option<Router>,
    /// What the router says it is.
    name: Option<String>,
    pcp_epoch: Option<Epoch>,
    nat_pmp_epoch: Option<Epoch>,
    /// Checks in a row that were not answered.
    silent: u32,
    check_at: Instant,
    deaf_until: Instant,
}

impl Mapper {
    pub(super) fn new(
        config: &PortsConfig,
        view: watch::Sender<MappingView>,
        observed: watch::Receiver<Option<Ipv4Addr>>,
    ) -> Self {
        let now = Instant::now();
        let wanted = config.udp.iter().map(|port| (Transport::Udp, *port));
        let wanted = wanted.chain(config.tcp.iter().map(|port| (Transport::Tcp, *port)));
        let mut slots: Vec<Slot> = Vec::new();
        for (transport, port) in wanted {
            let Some(port) = NonZeroU16::new(port) else { continue };
            let known = slots.iter().any(|slot| slot.transport == transport && slot.internal == port);
            if !known && slots.len() < MAX_PORTS {
                slots.push(Slot::new(transport, port, nonce(config.secret, transport, port), now));
            }
        }
        Self {
            slots,
            view,
            observed,
            announcements: Announcements::new(),
            router: None,
            name: None,
            pcp_epoch: None,
            nat_pmp_epoch: None,
            silent: 0,
            check_at: now + CHECK_EVERY,
            deaf_until: now,
        }
    }

    /// Keeps them mapped until `stop`, then removes the mappings.
    pub(super) async fn run(mut self, refresh: Arc<Notify>, stop: CancellationToken) {
        let mut work = Some(Work::All);
        loop {
            if let Some(next) = work.take() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    // The router that is being asked may be gone.
                    () = refresh.notified() => work = Some(Work::All),
                    () = self.work(next) => {}
                }
                self.publish();
                if work.is_some() {
                    continue;
                }
            }
            let (at, next) = self.next();
            let Self { announcements, observed, router, deaf_until, .. } = &mut self;
            let hears = *deaf_until <= Instant::now();
            work = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = refresh.notified() => Some(Work::All),
                () = announcements.heard(router.map(|router| router.ip)), if hears => {
                    *deaf_until = Instant::now() + ANNOUNCEMENT_GAP;
                    Some(Work::All)
                }
                Ok(()) = observed.changed() => {
                    self.publish();
                    None
                }
                () = sleep_until(at.into()) => next,
            };
        }
        self.remove_all().await;
        self.publish();
    }

    /// When to do something by itself, and what.
    fn next(&self) -> (Instant, Option<Work>) {
        let now = Instant::now();
        let due = self.slots.iter().map(|slot| (slot.due(), Some(Work::Due)));
        let check = self.holds().then_some((self.check_at, Some(Work::Check)));
        // Time to listen again.
        let deaf = (self.deaf_until > now).then_some((self.deaf_until, None));
        due.chain(check).chain(deaf).min_by_key(|(at, _)| *at).unwrap_or((now + CHECK_EVERY, None))
    }

    async fn work(&mut self, work: Work) {
        match work {
            Work::All => self.map(false).await,
            Work::Due => self.map(true).await,
            Work::Check => self.check().await,
        }
    }

    fn holds(&self) -> bool {
        self.slots.iter().any(|slot| slot.held.is_some())
    }

    /// Maps all ports, or those that are due.
    async fn map(&mut self, only_due: bool) {
        let router = match Router::find().await {
            Ok(router) => router,
            Err(why) => return self.no_router(&why),
        };
        let now = Instant::now();
        let moved = self.router.replace(router) != Some(router);
        if moved {
            (self.name, self.pcp_epoch, self.nat_pmp_epoch) = (None, None, None);
            self.slots.iter_mut().for_each(|slot| slot.forget(now));
        }
        let wants = |slot: &Slot| moved || !only_due || slot.due() <= now;
        let all: Vec<usize> = (0..self.slots.len()).filter(|at| wants(&self.slots[*at])).collect();
        let left = self.renew(&router, all).await;
        if !left.is_empty() {
            self.map_anew(&router, left).await;
        }
        self.check_at = Instant::now() + CHECK_EVERY;
    }

    fn no_router(&mut self, why: &str) {
        let now = Instant::now();
        (self.router, self.name) = (None, None);
        for slot in &mut self.slots {
            slot.held = None;
            slot.failed(Trouble::NoRouter(why.to_owned()), now);
        }
    }

    /// Asks as before. Returns those that have to be asked for in another way.
    async fn renew(&mut self, router: &Router, which: Vec<usize>) -> Vec<usize> {
        let known = |at: &usize| self.slots[*at].held.as_ref().map(|held| (*at, held.way.clone()));
        let asked: Vec<(usize, Way)> = which.iter().filter_map(known).collect();
        let answers = join_all(asked.iter().map(|(at, way)| ask(way, router, &self.slots[*at]))).await;
        let mut left = which;
        for ((at, way), answer) in asked.into_iter().zip(answers) {
            if let Ok(granted) = answer {
                self.slots[at].granted(way, *router, granted, Instant::now());
                left.retain(|other| *other != at);
            }
        }
        left
    }

    /// Finds out what the router offers, all at once, and takes for each port
    /// the first that works.
    async fn map_anew(&mut self, router: &Router, mut left: Vec<usize>) {
        let mut refusals: Vec<Refusals> = self.slots.iter().map(|_| Refusals::default()).collect();
        let mut external = Told::default();
        let mut offers: FuturesUnordered<BoxFuture<'_, Offer>> = FuturesUnordered::new();
        offers.push(probe::ask(router).map(Offer::Pmp).boxed());
        offers.push(async { tokio::join!(Igd::find(router), sleep(HEAD_START)).0 }.map(Offer::Upnp).boxed());
        while let Some(offer) = offers.next().await {
            let mut ways = Vec::new();
            match offer {
                Offer::Pmp(answers) => {
                    self.restarted(&answers);
                    answers.nat_pmp.iter().for_each(|nat_pmp| external.hear(nat_pmp.external));
                    ways.extend(answers.pcp.map(|_| Way::Pcp));
                    ways.extend(answers.nat_pmp.map(|_| Way::NatPmp));
                }
                Offer::Upnp(igd) => {
                    igd.iter().for_each(|igd| external.hear(igd.external));
                    self.name = igd.as_ref().and_then(|igd| igd.name.clone());
                    ways.extend(igd.map(Way::Upnp));
                }
            }
            for way in ways {
                left = self.ask_all(&way, router, left, &mut refusals).await;
            }
            if left.is_empty() {
                return;
            }
        }
        for at in left {
            let slot = &mut self.slots[at];
            slot.failed(refusals[at].explain(router, &external, &slot.wanted()), Instant::now());
        }
    }

    /// Asks for each of these ports in one way. Returns those that it refused.
    async fn ask_all(&mut self, way: &Way, router: &Router, which: Vec<usize>, why: &mut [Refusals]) -> Vec<usize> {
        let answers = join_all(which.iter().map(|at| ask(way, router, &self.slots[*at]))).await;
        let mut left = Vec::new();
        for (at, answer) in which.into_iter().zip(answers) {
            match answer {
                Ok(granted) => self.slots[at].granted(way.clone(), *router, granted, Instant::now()),
                Err(error) => {
                    why[at].add(way.method(), error);
                    left.push(at);
                }
            }
        }
        left
    }

    /// Asks whether mappings are still there, and maps again what is not.
    async fn check(&mut self) {
        self.check_at = Instant::now() + CHECK_EVERY;
        let Some(router) = self.router else { return };
        let (gone, (answers, asked)) = tokio::join!(self.lost_entries(&router), self.ask_router(&router));
        let moved = answers.nat_pmp.and_then(|nat_pmp| nat_pmp.external).is_some_and(|ip| self.is_elsewhere(ip));
        self.silent = if asked && answers.is_silent() { self.silent + 1 } else { 0 };
        if self.restarted(&answers) || gone || moved || self.silent >= MAX_SILENT {
            tracing::info!(router = %router.ip, "the router lost its mappings, or does not answer; mapping again");
            self.silent = 0;
            self.map(false).await;
        }
    }

    /// Whether a mapping by UPnP is gone, as far as can be told: after a restart
    /// many routers serve UPnP at another port.
    async fn lost_entries(&self, router: &Router) -> bool {
        let entries = self.slots.iter().filter_map(|slot| match &slot.held.as_ref()?.way {
            Way::Upnp(igd) => Some((igd, slot.wanted(), slot.held.as_ref()?.external)),
            Way::Pcp | Way::NatPmp => None,
        });
        let there = entries.map(|(igd, wanted, external)| async move { igd.holds(router, &wanted, external).await });
        join_all(there).await.contains(&false)
    }

    /// The answers to a probe, and whether one was needed.
    async fn ask_router(&self, router: &Router) -> (Answers, bool) {
        let by_pmp = |slot: &Slot| slot.held.as_ref().is_some_and(|held| !matches!(held.way, Way::Upnp(_)));
        if self.slots.iter().any(by_pmp) { (probe::ask(router).await, true) } else { (Answers::default(), false) }
    }

    /// Whether a mapping that is held is at another address than the router's.
    fn is_elsewhere(&self, external: Ipv4Addr) -> bool {
        self.slots.iter().any(|slot| slot.held.as_ref().is_some_and(|held| *held.external.ip() != external))
    }

    /// Takes the router's counts; true when it began anew.
    fn restarted(&mut self, answers: &Answers) -> bool {
        let now = Instant::now();
        let take = |known: &mut Option<Epoch>, told: Option<u32>| match (known.as_mut(), told) {
            (Some(known), Some(seconds)) => known.restarted(seconds, now),
            (None, Some(seconds)) => {
                *known = Some(Epoch::new(seconds, now));
                false
            }
            (_, None) => false,
        };
        let pcp = take(&mut self.pcp_epoch, answers.pcp);
        take(&mut self.nat_pmp_epoch, answers.nat_pmp.map(|nat_pmp| nat_pmp.epoch)) || pcp
    }

    async fn remove_all(&mut self) {
        let held = |slot: &Slot| slot.held.clone().map(|held| (held, slot.wanted(), slot.nonce));
        let removals = self.slots.iter().filter_map(held).map(|(held, wanted, nonce)| async move {
            let router = &held.router;
            match &held.way {
                Way::Pcp => pmp::remove_pcp(router, &wanted, nonce).await,
                Way::NatPmp => pmp::remove_nat_pmp(router, &wanted).await,
                Way::Upnp(igd) => igd.remove(router, &wanted).await,
            }
        });
        let removed = timeout(STOP_GRACE, join_all(removals)).await;
        for error in removed.into_iter().flatten().filter_map(Result::err) {
            tracing::debug!(error, "a mapping stays with the router until it expires");
        }
        self.slots.iter_mut().for_each(|slot| slot.held = None);
    }

    fn publish(&mut self) {
        let observed = *self.observed.borrow_and_update();
        let next = MappingView {
            gateway: self.router.map(|router| router.ip),
            router: self.name.clone(),
            settled: self.slots.iter().all(|slot| slot.tried),
            ports: self.slots.iter().map(|slot| slot.view(observed)).collect(),
        };
        self.view.send_if_modified(|view| {
            let differs = *view != next;
            *view = next;
            differs
        });
    }
}

/// The name of a mapping to a PCP server.
fn nonce(secret: Secret, transport: Transport, port: NonZeroU16) -> Nonce {
    let hash = blake3::keyed_hash(&secret.0, format!("{transport} {port}").as_bytes());
    let mut words =
        hash.as_bytes().chunks_exact(4).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    std::array::from_fn(|_| words.next().unwrap_or_default())
}

async fn ask(way: &Way, router: &Router, slot: &Slot) -> Result<Granted, String> {
    let wanted = slot.wanted();
    match way {
        Way::Pcp => pmp::map_pcp(router, &wanted, slot.nonce).await,
        Way::NatPmp => pmp::map_nat_pmp(router, &wanted).await,
        Way::Upnp(igd) => igd.map(router, &wanted).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ports_are_taken_once_and_few() {
        let ports: Vec<u16> = (0..100).flat_map(|port| [port, port]).collect();
        let config = PortsConfig { tcp: ports, udp: vec![4001, 0, 4001], ..PortsConfig::default() };
        let mapper = Mapper::new(&config, watch::channel(MappingView::default()).0, watch::channel(None).1);
        assert_eq!(mapper.slots.len(), MAX_PORTS);
        let udp = mapper.slots.iter().filter(|slot| slot.transport == Transport::Udp).count();
        assert_eq!((udp, mapper.slots[1].internal.get()), (1, 1));
    }

    #[test]
    fn names_of_mappings_last_and_differ() {
        let port = NonZeroU16::new(4001).unwrap();
        let named = |secret: u8, transport| nonce([secret; 32].into(), transport, port);
        assert_eq!(named(1, Transport::Udp), named(1, Transport::Udp));
        assert_ne!(named(1, Transport::Udp), named(2, Transport::Udp));
        assert_ne!(named(1, Transport::Udp), named(1, Transport::Tcp));
    }
}
