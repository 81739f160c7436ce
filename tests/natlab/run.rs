//! One run: two fresh daemons that know each other's id and two relays; one
//! sends a message, and the way it takes is watched.

use std::time::{Duration, Instant};

use p2p_node::proto::{self, MessageState, Route};
use serde::Serialize;

use crate::{
    node::{Node, end},
    site::Site,
    support::message,
    watch::{RouteWatch, is_direct},
};

/// Longest that a daemon takes until others can reach it.
const REACHABLE: Duration = Duration::from_secs(20);
/// Longest that it is busy with its start after that.
const SETTLED: Duration = Duration::from_secs(3);
/// Longest from the dial to a direct connection.
pub(crate) const DIRECT: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(2);

/// What came of a run. Times are milliseconds since the dial, unless said.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Outcome {
    /// The first message was stored by the peer.
    pub(crate) stored: Option<f64>,
    /// The first connection through a relay.
    pub(crate) relayed: Option<f64>,
    /// The first connection without one.
    pub(crate) direct: Option<f64>,
    /// QUIC or TCP, of the direct connection.
    pub(crate) transport: Option<&'static str>,
    /// The direct connection still carried messages at the end.
    pub(crate) held: bool,
    /// From the start of the process until others can reach it, of the dialler
    /// and of the peer.
    pub(crate) online: [Option<f64>; 2],
    /// What went wrong.
    pub(crate) trouble: Vec<String>,
}

impl Outcome {
    pub(crate) fn connected(&self) -> bool {
        self.stored.is_some()
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_some() && self.held
    }

    /// From the relayed to the direct connection.
    pub(crate) fn upgrade(&self) -> Option<f64> {
        Some((self.direct? - self.relayed?).max(0.0))
    }
}

/// Where the two daemons run.
pub(crate) struct Places<'a> {
    pub(crate) dialler: (&'a Site, usize),
    pub(crate) peer: (&'a Site, usize),
}

/// One run between two sites; waits for a direct connection for so long as
/// one may come.
pub(crate) async fn run(places: &Places<'_>, relays: &[String]) -> Outcome {
    let (dialler, peer) = (places.dialler, places.peer);
    // Addresses of a local network are told to those in the address book only.
    let neighbours = std::ptr::eq(dialler.0, peer.0);
    let start = async |(site, host)| match neighbours {
        true => Node::start_peer(site, host, relays).await,
        false => Node::start_open(site, host, relays).await,
    };
    let (from, to) = tokio::join!(start(dialler), start(peer));
    if neighbours {
        tokio::join!(from.trust(&to.id), to.trust(&from.id));
    }
    let outcome = watched(&from, &to).await;
    // "all": not only of runs with trouble.
    let logs = std::env::var("NATLAB_LOGS").is_ok_and(|which| which == "all" || !outcome.trouble.is_empty());
    if logs {
        eprintln!("--- dialler {}\n{}--- peer {}\n{}", from.id, from.daemon.log(), to.id, to.daemon.log());
    }
    end(vec![from, to]).await;
    outcome
}

async fn watched(from: &Node, to: &Node) -> Outcome {
    let mut outcome = Outcome::default();
    let online = tokio::join!(from.reachable(REACHABLE), to.reachable(REACHABLE));
    for (n, online) in [online.0, online.1].into_iter().enumerate() {
        match online {
            Ok(took) => outcome.online[n] = Some(millis(took)),
            Err(why) => outcome.trouble.push(format!("not reachable in time: {why}")),
        }
    }
    // What is measured from here on is the dial, not the rest of the start.
    tokio::join!(from.settle(SETTLED), to.settle(SETTLED));
    let watch = RouteWatch::new(&from.client, &to.id).await;
    let dial = Instant::now();
    outcome.stored = match send(from, &to.id, "first", DIRECT).await {
        Ok(()) => Some(millis(dial.elapsed())),
        Err(why) => {
            outcome.trouble.push(format!("first message: {why}"));
            None
        }
    };
    // A direct way counts once it lasts: the first that comes up may give way
    // to a better one.
    while outcome.connected() && dial.elapsed() < DIRECT {
        if watch.since(is_direct).is_some() && pinged_directly(from, &to.id).await {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let since_dial = |at: Instant| millis(at.saturating_duration_since(dial));
    outcome.relayed = watch.first(|route| route == Route::Relayed).map(since_dial);
    outcome.direct = watch.since(is_direct).map(since_dial);
    if outcome.connected() {
        confirm(from, &to.id, &watch, &mut outcome).await;
    }
    outcome
}

async fn pinged_directly(from: &Node, to: &str) -> bool {
    let pong = from.client.clone().ping(proto::PingRequest { peer: to.to_owned() }).await;
    pong.is_ok_and(|pong| is_direct(pong.into_inner().route()))
}

/// Whether messages pass at the end, and over what.
async fn confirm(from: &Node, to: &str, watch: &RouteWatch, outcome: &mut Outcome) {
    if let Err(why) = send(from, to, "last", DIRECT).await {
        outcome.trouble.push(format!("last message: {why}"));
        return;
    }
    match from.client.clone().ping(proto::PingRequest { peer: to.to_owned() }).await {
        Ok(pong) => {
            let pong = pong.into_inner();
            outcome.held = is_direct(pong.route()) && is_direct(watch.now());
            if is_direct(pong.route()) {
                outcome.transport = Some(if pong.address.contains("/quic-v1") { "QUIC" } else { "TCP" });
            }
            if outcome.direct.is_some() && !outcome.held {
                outcome.trouble.push(format!("not direct any more: {:?} {}", pong.route(), pong.address));
            }
        }
        Err(status) => outcome.trouble.push(format!("ping: {}", status.message())),
    }
}

/// Sends a message and waits until the peer has stored it.
pub(crate) async fn send(from: &Node, to: &str, id: &str, patience: Duration) -> Result<(), String> {
    let request = proto::SendRequest {
        peer: to.to_owned(),
        message: Some(message("", id, "natlab")),
        wait: proto::Wait::Stored.into(),
        timeout_ms: u32::try_from(patience.as_millis()).unwrap(),
        ..proto::SendRequest::default()
    };
    match from.client.clone().send(request).await {
        Ok(response) => {
            let response = response.into_inner();
            let stored = response.state() == MessageState::Stored;
            if stored { Ok(()) } else { Err(format!("{:?}: {}", response.state(), response.detail)) }
        }
        Err(status) => Err(status.message().to_owned()),
    }
}

pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
