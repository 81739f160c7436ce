//! What a daemon costs that has nothing to do, and how soon it is there.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{load, product};
use crate::support::{DEADLINE, Daemon, loopback};

/// Starts of each kind; the median is shown.
const STARTS: usize = 10;
/// Between a daemon's last work and the watch.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two looks at a socket.
const POLL: Duration = Duration::from_micros(200);

/// See the module.
pub(crate) struct Idle {
    first_ms: f64,
    again_ms: f64,
    rss_kib: [u64; 2],
    cpu_ms: [f64; 2],
    watched: Duration,
}

/// Measures with daemons of its own.
pub(crate) async fn measure(watched: Duration) -> Idle {
    eprintln!("starts, then {} idle seconds", watched.as_secs());
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let mut daemon = Daemon::new(loopback());
        first.push(start(&mut daemon).await);
        daemon.stop();
        again.push(start(&mut daemon).await);
    }
    let (a, b) = product::pair(crate::QUIC).await;
    sleep(SETTLE).await;
    let pids = [a.pid(), b.pid()];
    let rss_kib = pids.map(rss_kib);
    let before = pids.map(run_nanos);
    sleep(watched).await;
    let mut cpu_ms = [0.0; 2];
    for ((cpu, pid), before) in cpu_ms.iter_mut().zip(pids).zip(before) {
        let after = run_nanos(pid);
        let spent = |(thread, nanos): (&u64, &u64)| nanos.saturating_sub(before.get(thread).copied().unwrap_or(0));
        *cpu = after.iter().map(spent).sum::<u64>() as f64 / 1e6;
    }
    Idle { first_ms: load::median(first), again_ms: load::median(again), rss_kib, cpu_ms, watched }
}

/// Milliseconds from the start of the process to the health service's word.
async fn start(daemon: &mut Daemon) -> f64 {
    let began = Instant::now();
    daemon.spawn();
    while !serves(&daemon.socket()).await {
        assert!(began.elapsed() < DEADLINE, "the daemon does not serve:\n{}", daemon.log());
        sleep(POLL).await;
    }
    began.elapsed().as_secs_f64() * 1000.0
}

async fn serves(socket: &Path) -> bool {
    let Ok(channel) = load::channel(socket).await else { return false };
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: "p2p.v1.P2P".to_owned() }).await;
    answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
}

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Time on a processor, by thread: the file of the process tells of its first
/// thread only.
fn run_nanos(pid: u32) -> HashMap<u64, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .filter_map(|thread| {
            let thread = thread.ok()?;
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, text.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

impl Idle {
    pub(crate) fn print(&self) {
        println!("\nIDLE, two daemons with one QUIC connection between them");
        println!("  start to health SERVING, new directory      {:>8.1} ms  (median of {STARTS})", self.first_ms);
        println!("  start to health SERVING, known directory    {:>8.1} ms  (median of {STARTS})", self.again_ms);
        let mib = self.rss_kib.map(|kib| kib as f64 / 1024.0);
        println!("  resident memory                             {:>8.1} and {:.1} MiB", mib[0], mib[1]);
        let seconds = self.watched.as_secs_f64();
        let share = self.cpu_ms.map(|ms| ms / (seconds * 10.0));
        println!(
            "  processor time in {seconds:>3.0} s                    {:>8.1} and {:.1} ms  ({:.3} and {:.3} %)",
            self.cpu_ms[0], self.cpu_ms[1], share[0], share[1]
        );
    }
}
