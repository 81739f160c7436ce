//! Daemons on the hosts of a site.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use p2p_node::proto::{self, StatusResponse};

use crate::{
    plan,
    site::Site,
    support::{Client, Daemon, Options, signal},
};

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(10);
/// A daemon that has not ended by itself after this is killed.
const ENDS: Duration = Duration::from_secs(3);

/// A daemon, its client and its peer id.
pub(crate) struct Node {
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    pub(crate) id: String,
    /// When its process was started.
    pub(crate) started: Instant,
}

impl Node {
    /// Starts one on a host, with further arguments of `run`, and waits until
    /// it serves.
    pub(crate) async fn start(site: &Site, host: usize, args: Vec<String>) -> Self {
        let prefix = ["ip", "netns", "exec", site.hosts[host].name()].map(ToOwned::to_owned).to_vec();
        let started = Instant::now();
        let daemon = Daemon::start_with(Options { args, prefix, ..Options::default() }).await;
        let client = daemon.client().await;
        let id = daemon.peer_id().await;
        Self { daemon, client, id, started }
    }

    /// One that takes messages from everybody, and so need not be told of the
    /// node that it will hear from: it would dial that at once.
    pub(crate) async fn start_open(site: &Site, host: usize, relays: &[String]) -> Self {
        let args = words(&["--no-mdns", "--trust", "open", "--log", &filter()]);
        Self::start(site, host, with_relays(args, relays)).await
    }

    /// Starts the process again, on the same state.
    pub(crate) async fn restart(&mut self) {
        self.started = Instant::now();
        self.daemon.restart().await;
        self.client = self.daemon.client().await;
    }

    /// A relay and bootstrap node for everyone, on a public host.
    pub(crate) async fn start_relay(site: &Site, log: &str) -> Self {
        let mut args = words(&["--no-mdns", "--serve", "on", "--log", log]);
        for address in public_addresses(site) {
            args.extend(["--external".to_owned(), address]);
        }
        Self::start(site, 0, args).await
    }

    /// A node that knows these relays; it logs what NATLAB_FILTER says.
    pub(crate) async fn start_peer(site: &Site, host: usize, relays: &[String]) -> Self {
        Self::start_logged(site, host, relays, &filter()).await
    }

    /// The same, and what it is to log.
    pub(crate) async fn start_logged(site: &Site, host: usize, relays: &[String], log: &str) -> Self {
        let args = words(&["--no-mdns", "--log", log]);
        Self::start(site, host, with_relays(args, relays)).await
    }

    /// The addresses of a relay on this site, for others.
    pub(crate) fn addresses_on(&self, site: &Site) -> Vec<String> {
        public_addresses(site).into_iter().map(|address| format!("{address}/p2p/{}", self.id)).collect()
    }

    pub(crate) async fn status(&self) -> StatusResponse {
        self.client.clone().status(proto::StatusRequest {}).await.unwrap().into_inner()
    }

    /// Puts another node into the address book, by its id alone.
    pub(crate) async fn trust(&self, id: &str) {
        let request = proto::AddPeerRequest { peer: id.to_owned(), ..proto::AddPeerRequest::default() };
        self.client.clone().add_peer(request).await.unwrap();
    }

    /// Waits until others can reach it: how long that took since the start, or
    /// its states when it did not come in time.
    pub(crate) async fn reachable(&self, patience: Duration) -> Result<Duration, String> {
        loop {
            let status = self.status().await;
            let states: Vec<_> = status.states().map(|state| state.as_str_name()).collect();
            if states.iter().any(|state| state.ends_with("_RESERVED") || state.ends_with("_VERIFIED")) {
                return Ok(self.started.elapsed());
            }
            if self.started.elapsed() > patience {
                return Err(format!("{states:?} {:?}", status.problems));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it has reserved where it will, and told where it is; not for
    /// longer than that.
    pub(crate) async fn settle(&self, patience: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < patience && !is_settled(&self.status().await) {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Whether a node that others can reach has done what it does at its start.
fn is_settled(status: &StatusResponse) -> bool {
    use proto::{NodeState, RelayState};
    let busy = |relay: &proto::Relay| matches!(relay.state(), RelayState::Connecting | RelayState::Reserving);
    status.states().any(|state| state == NodeState::Published) && !status.relays.iter().any(busy)
}

/// Ends daemons gently, so that others notice at once.
pub(crate) async fn end(nodes: Vec<Node>) {
    let running = nodes.into_iter().filter(|node| node.daemon.is_running());
    let mut children: Vec<_> = running.map(|mut node| (node.daemon.take_child(), node)).collect();
    for (child, _) in &children {
        signal(child.id(), nix::sys::signal::Signal::SIGTERM);
    }
    let deadline = Instant::now() + ENDS;
    for (child, node) in &mut children {
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                eprintln!("natlab: {} had to be killed", node.id);
                child.kill().unwrap();
                child.wait().unwrap();
                break;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// QUIC and TCP at the public addresses.
fn public_addresses(site: &Site) -> Vec<String> {
    let of = |ip: IpAddr| {
        let (kind, port) = (if ip.is_ipv4() { "ip4" } else { "ip6" }, plan::PORT);
        [format!("/{kind}/{ip}/udp/{port}/quic-v1"), format!("/{kind}/{ip}/tcp/{port}")]
    };
    let second = site.spec.dual.then(|| plan::v6_wan(site.number).into());
    [Some(site.public()), second].into_iter().flatten().flat_map(of).collect()
}

fn filter() -> String {
    std::env::var("NATLAB_FILTER").unwrap_or_else(|_| "info".to_owned())
}

fn with_relays(mut args: Vec<String>, relays: &[String]) -> Vec<String> {
    args.extend(relays.iter().flat_map(|relay| ["--relay".to_owned(), relay.clone()]));
    args
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
