//! Signals, sent to a copy of this test that plays the daemon.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use p2p_node::shutdown;

const ROLE: &str = "TEST_SHUTDOWN_ROLE";

/// Not a test by itself: the process that the signals go to.
#[test]
fn daemon() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let shutdown = shutdown::install().unwrap();
        eprintln!("ready");
        shutdown.token().cancelled().await;
        eprintln!("cancelled");
        if role == "stuck" {
            // Blocks the only thread of the runtime.
            loop {
                std::thread::park();
            }
        }
    });
}

struct Daemon {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Daemon {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut daemon = Self { child, lines };
        daemon.says("ready");
        daemon
    }

    fn says(&mut self, text: &str) {
        assert!(self.lines.any(|line| line.unwrap() == text), "never said {text:?}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn status(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "still running");
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_signal_asks_for_an_orderly_end() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start("orderly");
        daemon.signal(signal);
        daemon.says("cancelled");
        assert_eq!(daemon.status(), Some(0), "{signal}");
    }
}

#[test]
fn a_second_signal_ends_a_process_that_is_stuck() {
    for (first, second, status) in [
        (Signal::SIGTERM, Signal::SIGTERM, 143),
        (Signal::SIGTERM, Signal::SIGINT, 130),
        (Signal::SIGINT, Signal::SIGINT, 130),
    ] {
        let mut daemon = Daemon::start("stuck");
        daemon.signal(first);
        daemon.says("cancelled");
        daemon.signal(second);
        assert_eq!(daemon.status(), Some(status), "{first} then {second}");
    }
}
