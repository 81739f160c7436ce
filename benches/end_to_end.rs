//! What the daemon costs and how much it moves, beside what it is built on.
//!
//! Two real daemons on loopback carry 1 KiB messages from app to app: app,
//! Unix socket, daemon, QUIC or TCP, daemon, Unix socket, app. In the same run,
//! by turns with it, the parts run alone: a gRPC stream on a Unix socket, a
//! framed libp2p stream, and appends to SQLite. The ratios come first, for they
//! depend less on the machine than the figures. Nothing is judged here.
//!
//! Settings, from the environment:
//! - `BENCH_SECONDS`: length of each measurement (2).
//! - `BENCH_ROUNDS`: how often each is repeated; medians are shown (3).
//! - `BENCH_IDLE_SECONDS`: how long an idle daemon is watched (60); 0 leaves
//!   idle and start out.
//! - `BENCH_ONLY`: only measurements whose name contains this.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark stops at once")]

mod parts;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use parts::{
    grpc::RawGrpc,
    idle,
    link::RawLink,
    load::{Figure, Load},
    product::Product,
    sqlite, table,
};

const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
/// Few and many messages whose receipts are waited for.
const IN_FLIGHT: [usize; 2] = [1, 1024];

/// What the environment asks for.
struct Settings {
    length: Duration,
    rounds: usize,
    idle: Duration,
    only: String,
}

impl Settings {
    fn read() -> Self {
        let number = |name: &str, default: f64| {
            std::env::var(name).map_or(default, |text| {
                text.parse()
                    .ok()
                    .filter(|&n: &f64| n >= 0.0)
                    .unwrap_or_else(|| panic!("{name} is {text}; use a number"))
            })
        };
        Self {
            length: Duration::from_secs_f64(number("BENCH_SECONDS", 2.0)),
            rounds: (number("BENCH_ROUNDS", 3.0) as usize).max(1),
            idle: Duration::from_secs_f64(number("BENCH_IDLE_SECONDS", 60.0)),
            only: std::env::var("BENCH_ONLY").unwrap_or_default(),
        }
    }
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    // `cargo test --benches` passes this: then it need only start.
    if !std::env::args().any(|word| word == "--bench") {
        return println!("run this with cargo bench");
    }
    let settings = Settings::read();
    let idle = if settings.idle.is_zero() { None } else { Some(idle::measure(settings.idle).await) };
    let figures = throughput(&settings).await;
    table::ratios(&figures);
    table::figures(&figures);
    if let Some(idle) = idle {
        idle.print();
    }
}

/// All measurements, by turns, so that a slow spell of the machine meets all.
async fn throughput(settings: &Settings) -> Vec<Figure> {
    let (quic, tcp) = (Product::start(QUIC).await, Product::start(TCP).await);
    let (raw_quic, raw_tcp) = (RawLink::start(QUIC).await, RawLink::start(TCP).await);
    let grpc = RawGrpc::start().await;
    let mut figures: Vec<Figure> = Vec::new();
    let wanted = |name: &str| name.contains(&settings.only);
    for round in 1..=settings.rounds {
        eprintln!("round {round} of {}", settings.rounds);
        for in_flight in IN_FLIGHT {
            let load = Load { in_flight, length: settings.length, ..Load::default() };
            let one_a_frame = Load { per_frame: 1, ..load.clone() };
            let ephemeral = Load { ephemeral: true, ..load.clone() };
            let mut note = |name: &str, taken| Figure::add(&mut figures, name, in_flight, taken);
            macro_rules! run {
                ($name:expr, $measured:expr) => {
                    if wanted($name) {
                        note($name, $measured.await);
                    }
                };
            }
            run!(table::DURABLE_QUIC, quic.measure(&load));
            run!(table::RAW_GRPC, grpc.measure(&load));
            run!(table::EPHEMERAL_QUIC, quic.measure(&ephemeral));
            run!(table::RAW_QUIC, raw_quic.measure(&load));
            run!(table::DURABLE_TCP, tcp.measure(&load));
            run!(table::RAW_SQLITE, sqlite::measure(if in_flight == 1 { 1 } else { 64 }, settings.length));
            run!(table::EPHEMERAL_TCP, tcp.measure(&ephemeral));
            run!(table::RAW_TCP, raw_tcp.measure(&load));
            if in_flight > 1 {
                run!(table::DURABLE_SINGLE, quic.measure(&one_a_frame));
                run!(table::RAW_GRPC_SINGLE, grpc.measure(&one_a_frame));
            }
        }
    }
    figures
}
