//! A NAT lab: internets of network namespaces on one machine, each with sites
//! behind routers of every kind, and real daemons in them.
//!
//! `scripts/natlab` runs it; `scripts/natlab --help` says what it can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod args;
mod crowd;
mod expected;
mod faults;
mod foreign;
mod forwarder;
mod igd;
mod interop;
mod janitor;
mod kind;
mod lab;
mod line;
mod look;
mod matrix;
mod netns;
mod node;
mod plan;
mod probe;
mod prove;
mod relays;
mod report;
mod router;
mod rules;
mod run;
mod site;
#[path = "../skip/mod.rs"]
mod skip;
#[path = "../support/mod.rs"]
mod support;
mod sys;
mod traffic;
mod watch;

use std::{process::ExitCode, time::Duration};

use clap::{CommandFactory as _, Parser as _};

use args::{Args, Mode};
use kind::Kind;
use lab::Lab;
use matrix::Plan;
use site::Spec;

/// What the lab runs, beside the daemon.
const PROGRAMS: [&str; 4] = ["ip", "nft", "conntrack", "miniupnpd"];

fn main() -> ExitCode {
    let Some(mode) = mode() else { return ExitCode::SUCCESS };
    if let Some(why) = missing() {
        skip::skip("natlab", &why);
        return ExitCode::SUCCESS;
    }
    janitor::on_signals();
    janitor::sweep_dead();
    janitor::keep_temporary_files();
    let passed = std::panic::catch_unwind(|| run(mode)).unwrap_or(false);
    janitor::sweep_own();
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(mode: Mode) -> bool {
    match mode {
        Mode::Check => check(),
        Mode::Prove { only, labs } => prove::prove(&if only.is_empty() { prove::all() } else { only }, labs),
        Mode::Matrix { runs, delay, relay_delay, loss, labs, only, shared, json } => {
            let (pairs, relay_delay) = (args::pairs(&only, shared), args::delay(relay_delay.unwrap_or(delay)));
            let plan = Plan { pairs, runs, delay: args::delay(delay), relay_delay, loss, labs, shared };
            matrix::matrix(&plan, json.as_deref())
        }
        Mode::Faults { only, runs, delay, out, labs, pairs, logs, log } => {
            let (delay, out) = (args::delay(delay), Duration::from_secs(out));
            let pairs = if pairs.is_empty() { None } else { Some(args::pairs(&pairs, None)) };
            faults::faults(&faults::Plan { only, pairs, runs, delay, out, labs, logs, log })
        }
        Mode::Crowd { nodes, kind, delay } => crowd::crowd(nodes, kind, args::delay(delay)),
        Mode::Interop { pairs, delay } => interop::interop(&args::pairs(&pairs, None), args::delay(delay)),
        Mode::Netcheck { pairs, delay, relays } => look::look(&args::pairs(&pairs, None), args::delay(delay), relays),
        Mode::Hold { kinds, hosts, delay } => hold(&kinds, hosts, Duration::from_millis(delay)),
        Mode::Clean => true,
    }
}

/// The routers, and of the matrix one pair of each sort, among them those that
/// stock hole punching loses.
fn check() -> bool {
    let pairs = vec![
        (Kind::None, Kind::PortRestricted),
        (Kind::PortRestrictedChanged, Kind::PortRestrictedChanged),
        (Kind::FullCone, Kind::Symmetric),
        (Kind::Upnp, Kind::Restricted),
        (Kind::PortRestricted, Kind::UdpBlocked),
    ];
    let delay = args::delay(15.0);
    let plan = Plan { pairs, runs: 1, delay, relay_delay: delay, loss: 0.0, labs: 2, shared: None };
    prove::prove(&prove::all(), 4) && matrix::matrix(&plan, None)
}

/// Builds sites and keeps them until the program is interrupted.
fn hold(kinds: &[Kind], hosts: u8, delay: Duration) -> bool {
    let lab = Lab::new();
    let site = |kind: &Kind| {
        let hosts = if kind.is_public() { 1 } else { hosts };
        lab.site(Spec { hosts, delay, ..Spec::new(*kind) })
    };
    let sites: Vec<_> = kinds.iter().map(site).collect();
    for site in &sites {
        println!("{} at {}", site.spec.kind.name(), site.public());
        for (host, netns) in (0..).zip(&site.hosts) {
            println!("  host    {:<24} {}", netns.name(), site.host_ip(host));
        }
        for router in &site.routers {
            println!("  router  {:<24} {}", router.netns.name(), router.facts.outer);
        }
    }
    println!("files in {}", lab.directory().display());
    loop {
        std::thread::park();
    }
}

/// What to do. As one of cargo's tests, without arguments, it checks; `None` if the arguments are meant for other tests.
fn mode() -> Option<Mode> {
    let first = std::env::args().nth(1);
    match first.as_deref() {
        None => Some(Mode::Check),
        Some("-h" | "--help" | "help") => Some(Args::parse().mode),
        Some(word) if Args::command().find_subcommand(word).is_some() => Some(Args::parse().mode),
        Some(_) => None,
    }
}

/// Why the lab cannot run here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces are made as root only".to_owned());
    }
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|program| !sys::has(program)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}
