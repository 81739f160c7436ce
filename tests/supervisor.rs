//! What a service manager hears from a real daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::{os::unix::net::UnixDatagram, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{DEADLINE, Daemon, loopback};
use tempfile::TempDir;

/// The manager's end of `sd_notify(3)`.
struct Manager {
    _dir: TempDir,
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { path: path.display().to_string(), socket, _dir: dir }
    }

    /// The next report; blocks, with a deadline.
    fn next(&self) -> String {
        let mut report = [0; 4096];
        let length = self.socket.recv(&mut report).expect("a report in time");
        String::from_utf8(report[..length].to_vec()).unwrap()
    }

    fn wait_for(&self, line: &str) {
        while !self.next().lines().any(|found| found == line) {}
    }

    /// Whether nothing is told within a time.
    fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let silent = self.socket.recv(&mut [0; 4096]).is_err();
        self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        silent
    }
}

fn daemon_of(manager: &Manager, watchdog: Option<Duration>) -> Daemon {
    let mut options = loopback();
    options.env.push(("NOTIFY_SOCKET".to_owned(), manager.path.clone()));
    if let Some(allowed) = watchdog {
        options.env.push(("WATCHDOG_USEC".to_owned(), allowed.as_micros().to_string()));
    }
    Daemon::new(options)
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_life_and_end_are_told() {
    let manager = Manager::new();
    let mut daemon = daemon_of(&manager, Some(Duration::from_millis(300)));
    daemon.spawn();
    manager.wait_for("READY=1");
    // Ready means that a client is served at once, without a second try.
    let mut client = support::connect(&daemon.socket()).await.unwrap();
    client.status(p2p_node::proto::StatusRequest {}).await.unwrap();
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
    let mut child = daemon.take_child();
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    manager.wait_for("STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_run_gives_no_sign_of_life() {
    let manager = Manager::new();
    let mut daemon = daemon_of(&manager, Some(Duration::from_millis(300)));
    daemon.spawn();
    manager.wait_for("WATCHDOG=1");
    let pid = Pid::from_raw(daemon.pid().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    // What was told before the stop is still in the socket.
    while !manager.is_silent_for(Duration::from_millis(200)) {}
    assert!(manager.is_silent_for(Duration::from_millis(900)), "three times the time allowed");
    kill(pid, Signal::SIGCONT).unwrap();
    manager.wait_for("WATCHDOG=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_watchdog_only_the_states_are_told() {
    let manager = Manager::new();
    let mut daemon = daemon_of(&manager, None);
    daemon.spawn();
    assert!(manager.next().lines().any(|line| line == "READY=1"));
    let mut child = daemon.take_child();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(manager.next().lines().any(|line| line == "STOPPING=1"));
    assert!(child.wait().unwrap().success());
}
