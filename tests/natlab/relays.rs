//! The relays of a lab.

use std::time::Duration;

use crate::{
    crowd,
    kind::Kind,
    lab::Lab,
    node::{Node, end},
    site::{Site, Spec},
};

/// How long traffic is counted to find the relay in use.
const SAMPLE: Duration = Duration::from_secs(1);

/// Daemons on public hosts that serve everyone.
pub(crate) struct Relays {
    relays: Vec<(Node, Site)>,
    /// Of all, QUIC and TCP.
    pub(crate) addresses: Vec<String>,
}

impl Relays {
    /// `dual`: with IPv6 beside IPv4.
    pub(crate) async fn start(lab: &Lab, count: usize, delay: Duration, dual: bool) -> Self {
        Self::start_logged(lab, count, delay, dual, "info").await
    }

    /// The same, and what they are to log.
    pub(crate) async fn start_logged(lab: &Lab, count: usize, delay: Duration, dual: bool, log: &str) -> Self {
        let (mut relays, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let site = lab.site(Spec { delay, dual, ..Spec::new(Kind::None) });
            let node = Node::start_relay(&site, log).await;
            addresses.extend(node.addresses_on(&site));
            relays.push((node, site));
        }
        Self { relays, addresses }
    }

    /// Their daemons.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.relays.iter().map(|(node, _)| node)
    }

    /// The one that carries most now, by its line.
    pub(crate) async fn busiest(&self) -> usize {
        let before: Vec<u64> = self.relays.iter().map(|(_, site)| site.received()).collect();
        tokio::time::sleep(SAMPLE).await;
        let carried = self.relays.iter().zip(before).map(|((_, site), before)| site.received() - before);
        carried.enumerate().max_by_key(|(_, bytes)| *bytes).expect("a lab has relays").0
    }

    /// Starts them anew, so that they know nothing of daemons that were at the
    /// same addresses before: nodes would be sent there.
    pub(crate) async fn forget(&mut self) {
        for (node, _) in &mut self.relays {
            node.daemon.kill();
        }
        futures::future::join_all(self.relays.iter_mut().map(|(node, _)| node.restart())).await;
    }

    /// Power off: silent from one moment to the next.
    pub(crate) fn power_off(&mut self, relay: usize) {
        let (node, site) = &mut self.relays[relay];
        site.outage(true);
        node.daemon.kill();
    }

    /// Power on; returns once it serves.
    pub(crate) async fn power_on(&mut self, relay: usize) {
        let (node, site) = &mut self.relays[relay];
        site.outage(false);
        node.restart().await;
    }

    /// What they hold in memory, for people.
    pub(crate) fn memory(&self) -> String {
        let each = self.relays.iter().map(|(node, _)| format!("{} MiB", crowd::memory(node.daemon.pid())));
        each.collect::<Vec<_>>().join(", ")
    }

    pub(crate) async fn end(self) {
        // The sites stay until the daemons have ended.
        let (nodes, sites): (Vec<_>, Vec<_>) = self.relays.into_iter().unzip();
        end(nodes).await;
        drop(sites);
    }
}
