//! What keeps a daemon from starting is said, with the remedy, and nothing is
//! changed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod skip;
mod support;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    process::Command,
};

use support::{Daemon, Options, P2P_NODE, loopback, wait_exit};

fn fails(daemon: &mut Daemon, status: i32, says: &[&str]) {
    daemon.spawn();
    let ended = wait_exit(&mut daemon.take_child());
    let log = daemon.log();
    assert_eq!(ended.code(), Some(status), "{log}");
    for text in says {
        assert!(log.contains(text), "no {text:?} in {log}");
    }
}

async fn stopped() -> Daemon {
    let mut daemon = Daemon::start().await;
    assert!(daemon.stop().success());
    daemon
}

#[test]
fn bad_settings_are_all_named() {
    let config = "colour = 'red'\ntrust = 'maybe'\n[limits]\nmax_streams = 1\n".to_owned();
    let mut daemon = Daemon::new(Options { config, ..loopback() });
    fails(&mut daemon, 64, &["colour", "trust", "maybe", "limits.max_streams", "4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_stores_are_refused_and_kept() {
    let daemon = stopped().await;
    let good = fs::read(daemon.state_dir().join("store.db")).unwrap();
    let mut newer = good.clone();
    // user_version in SQLite's header.
    newer[60..64].copy_from_slice(&99u32.to_be_bytes());
    for (bytes, says) in [
        (vec![b'x'; 8192], ["damaged", "Put a backup in its place"]),
        (good[..good.len() / 2].to_vec(), ["damaged", "Put a backup in its place"]),
        (newer, ["version 99", "newer p2p-node"]),
    ] {
        let mut daemon = stopped().await;
        let path = daemon.state_dir().join("store.db");
        fs::write(&path, &bytes).unwrap();
        fails(&mut daemon, 1, &says);
        let now = fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..bytes.len().min(now.len())).filter(|at| bytes[*at] != now[*at]).collect();
        assert!(
            now.len() == bytes.len() && changed.is_empty(),
            "{says:?}: {} to {} bytes, changed: {changed:?}",
            bytes.len(),
            now.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_no_file_is_refused() {
    let mut daemon = stopped().await;
    let path = daemon.state_dir().join("store.db");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("kept"), "kept").unwrap();
    fails(&mut daemon, 1, &[&path.display().to_string(), "cannot be opened", "directory", "check that it is a file"]);
    assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "kept");
}

/// Runs a command as a user who is nobody's owner; none if that cannot be.
fn as_nobody() -> Option<Vec<String>> {
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(ToOwned::to_owned);
    let runs = Command::new(&words[0]).args(&words[1..]).args([P2P_NODE, "version"]).output();
    runs.is_ok_and(|run| run.status.success()).then(|| words.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_not_be_read_is_refused() {
    let mut daemon = stopped().await;
    let path = daemon.state_dir().join("store.db");
    let good = fs::read(&path).unwrap();
    // Root may read all: as root, the daemon runs as another user, to whom all
    // but the store is given.
    let root = nix::unistd::geteuid().is_root();
    if root {
        let Some(prefix) = as_nobody() else {
            return skip::skip("bad_start", "setpriv cannot run the daemon as another user");
        };
        daemon.options.prefix = prefix;
        let found = fs::read_dir(daemon.state_dir()).unwrap().map(|entry| entry.unwrap().path());
        for given in found.filter(|file| *file != path).chain([daemon.dir().to_owned(), daemon.state_dir()]) {
            chown(given, Some(65534), Some(65534)).unwrap();
        }
        chown(daemon.dir().join("config.toml"), Some(65534), Some(65534)).unwrap();
    } else {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    fails(&mut daemon, 1, &[&path.display().to_string(), "cannot be opened", "Permission denied", "read and write"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(fs::read(&path).unwrap() == good, "the store was changed");
    if root {
        chown(&path, Some(65534), Some(65534)).unwrap();
    }
    daemon.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_keys_are_refused() {
    let mut daemon = stopped().await;
    let key = daemon.state_dir().join("identity.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    fails(&mut daemon, 1, &["mode 0644", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "garbage").unwrap();
    fails(&mut daemon, 1, &["does not hold an Ed25519 key", "backup"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_reclaimed_only_from_the_dead() {
    let mut daemon = Daemon::start().await;
    daemon.kill();
    assert!(daemon.socket().exists());
    daemon.restart().await;
    let mut same_state = Daemon::new(Options::default());
    std::os::unix::fs::symlink(daemon.state_dir(), same_state.state_dir()).unwrap();
    fails(&mut same_state, 1, &["in use by another daemon", "--state-dir"]);
    let mut same_socket = Daemon::new(loopback());
    std::os::unix::fs::symlink(daemon.socket(), same_socket.socket()).unwrap();
    fails(&mut same_socket, 1, &["is not a socket", "--socket"]);
    let mut file = Daemon::new(loopback());
    fs::write(file.socket(), "kept").unwrap();
    fails(&mut file, 1, &["is not a socket", "--socket"]);
    assert_eq!(fs::read_to_string(file.socket()).unwrap(), "kept");
    let mut live = Daemon::new(loopback());
    let _held = std::os::unix::net::UnixListener::bind(live.socket()).unwrap();
    fails(&mut live, 1, &["in use by a running daemon", "--socket"]);
}

#[test]
fn ports_in_use_are_named() {
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (udp, tcp) = ((udp.local_addr().unwrap().port(), udp), (tcp.local_addr().unwrap().port(), tcp));
    for address in [format!("/ip4/127.0.0.1/udp/{}/quic-v1", udp.0), format!("/ip4/127.0.0.1/tcp/{}", tcp.0)] {
        let args = ["--listen", &address, "--no-mdns"].map(ToOwned::to_owned).to_vec();
        fails(&mut Daemon::new(Options { args, ..Options::default() }), 1, &[&address, "in use"]);
    }
}
