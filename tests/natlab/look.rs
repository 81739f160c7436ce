//! What the command line says to the user of a node in some cell of the
//! matrix, for a person to judge.

use std::time::{Duration, Instant};

use crate::{
    kind::Kind,
    lab::Lab,
    node::{Node, end},
    relays::Relays,
    run::{DIRECT, send},
    site::Spec,
    watch::{RouteWatch, is_direct},
};

/// Longest until others can reach a node.
const REACHABLE: Duration = Duration::from_secs(20);
/// Time for a direct connection to come, or for what prevents it to show.
const SETTLES: Duration = Duration::from_secs(20);
/// Time for verdicts on addresses to come in after that.
const VERDICTS: Duration = Duration::from_secs(5);

/// Prints what the first node's user is told, with so many relays.
pub(crate) fn look(pairs: &[(Kind, Kind)], delay: Duration, relays: usize) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all: Vec<bool> = pairs.iter().map(|pair| runtime.block_on(one(*pair, delay, relays))).collect();
    all.into_iter().all(|answered| answered)
}

/// One cell; whether every command answered.
async fn one((a, b): (Kind, Kind), delay: Duration, count: usize) -> bool {
    let lab = Lab::new();
    let relays = Relays::start(&lab, count, delay, a.is_v6() || b.is_v6()).await;
    let sites = [a, b].map(|kind| lab.site(Spec { delay, ..Spec::new(kind) }));
    let (a, b) = tokio::join!(
        Node::start_peer(&sites[0], 0, &relays.addresses),
        Node::start_peer(&sites[1], 0, &relays.addresses)
    );
    tokio::join!(a.trust(&b.id), b.trust(&a.id));
    let [first, second] = sites.each_ref().map(|site| site.spec.kind.name());
    println!("=== {first} to {second}, {count} relays");
    if count > 0 {
        for node in [&a, &b] {
            if let Err(why) = node.reachable(REACHABLE).await {
                println!("not reachable in time: {why}");
            }
        }
    }
    let watch = RouteWatch::new(&a.client, &b.id).await;
    if let Err(why) = send(&a, &b.id, "look", DIRECT).await {
        println!("not stored: {why}");
    }
    let begin = Instant::now();
    while !is_direct(watch.now()) && begin.elapsed() < SETTLES {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(VERDICTS).await;
    let mut answered = true;
    for command in [vec!["status"], vec!["netcheck"], vec!["explain", &b.id], vec!["--json", "netcheck"]] {
        let output = a.daemon.cli(&command);
        answered &= output.status.success();
        println!("--- p2p-node {}", command.join(" "));
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    end(vec![a, b]).await;
    relays.end().await;
    answered
}
