//! Many daemons with one relay, which is their bootstrap node too: each sends
//! to every other, by its id alone.

use std::{
    fs,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};

use crate::{
    kind::Kind,
    lab::Lab,
    node::{Node, end},
    relays::Relays,
    report::percentiles,
    run::{millis, send},
    site::{Site, Spec},
};

/// Longest until all are reachable through one relay, on a busy machine.
const REACHABLE: Duration = Duration::from_secs(120);
/// Longest until a message is stored: all share this machine's processors, and
/// a dial that took too long is only tried again after a while.
const STORED: Duration = Duration::from_secs(90);
/// Starts at once: more only wait for each other's processor time.
const STARTS: usize = 6;
/// Messages under way at once: a person's fleet does not speak all at once,
/// but more than one at a time.
const SENDS: usize = 32;

/// Says whether every message was stored.
pub(crate) fn crowd(count: usize, kind: Kind, delay: Duration) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(count, kind, delay))
}

async fn run(count: usize, kind: Kind, delay: Duration) -> bool {
    let lab = Lab::new();
    let begin = Instant::now();
    let relays = Relays::start(&lab, 1, delay, kind.is_v6()).await;
    let sites: Vec<Site> = (0..count).map(|_| lab.site(Spec { delay, ..Spec::new(kind) })).collect();
    println!("{count} sites after {:.1} s", begin.elapsed().as_secs_f64());
    let starts = stream::iter(&sites).map(|site| Node::start_peer(site, 0, &relays.addresses));
    let nodes: Vec<Node> = starts.buffered(STARTS).collect().await;
    let reachable = stream::iter(&nodes).map(|node| node.reachable(REACHABLE)).buffered(STARTS);
    let reachable: Vec<_> = reachable.collect().await;
    let late: Vec<_> = reachable.iter().filter_map(|one| one.as_ref().err()).collect();
    println!("{} of {count} reachable after {:.1} s", count - late.len(), begin.elapsed().as_secs_f64());
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.id != node.id) {
            node.trust(&other.id).await;
        }
    }
    println!("all know all ids after {:.1} s", begin.elapsed().as_secs_f64());
    let passed = exchange(&nodes).await && late.is_empty();
    println!("memory: relay {}, the largest of the others {} MiB", relays.memory(), largest(&nodes));
    end(nodes).await;
    relays.end().await;
    passed
}

/// Each sends to every other; whether all was stored.
async fn exchange(nodes: &[Node]) -> bool {
    let begin = Instant::now();
    let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to)));
    let pairs: Vec<_> = pairs.filter(|(from, to)| from.id != to.id).collect();
    let one = async |from: &Node, to: &Node| {
        let dial = Instant::now();
        let stored = send(from, &to.id, &format!("crowd-{}", from.id), STORED).await;
        if stored.is_err() {
            look(from, to);
        }
        stored.map(|()| millis(dial.elapsed())).map_err(|why| format!("{} to {}: {why}", from.id, to.id))
    };
    let sends = stream::iter(pairs).map(|(from, to)| one(from, to));
    let results: Vec<_> = sends.buffer_unordered(SENDS).collect().await;
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let times: Vec<f64> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
    let (p50, p95) = percentiles(times).unwrap_or_default();
    println!(
        "{} of {} messages stored in {:.1} s; first message p50 {p50:.0} ms, p95 {p95:.0} ms",
        results.len() - failed.len(),
        results.len(),
        begin.elapsed().as_secs_f64()
    );
    for why in failed.iter().take(10) {
        println!("  {why}");
    }
    failed.is_empty()
}

/// Prints what either knows of the other, and with NATLAB_LOGS all it logged.
fn look(from: &Node, to: &Node) {
    for (one, other) in [(from, to), (to, from)] {
        let told = one.daemon.cli(&["explain", &other.id]);
        eprintln!("--- {} of {}\n{}", one.id, other.id, String::from_utf8_lossy(&told.stdout));
        if std::env::var_os("NATLAB_LOGS").is_some() {
            eprintln!("{}", one.daemon.log());
        }
    }
}

fn largest(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| memory(node.daemon.pid())).max().unwrap_or(0)
}

/// What a process holds in memory, in MiB.
pub(crate) fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
