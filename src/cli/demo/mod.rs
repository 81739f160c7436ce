//! `demo`: two daemons of this executable at work, in a directory that is gone
//! afterwards. Every figure it prints was measured during the run.

mod node;
mod story;
mod traffic;

use std::{
    fs::Permissions,
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use serde::Serialize;
use tempfile::TempDir;

use super::{
    errors::{Failure, exit},
    output::Out,
    signals::Signals,
};
use node::Node;

/// Longest directory name that leaves room for a socket's name below it: a
/// socket's whole path has 107 bytes.
const MAX_DIR_BYTES: usize = 90;

/// What the demo found out.
#[derive(Debug, Default, Serialize)]
struct Figures {
    /// Peer id of the first node.
    a: String,
    /// Peer id of the second node.
    b: String,
    /// How they were connected, as the API calls it.
    route: String,
    /// Round trip between the daemons.
    rtt_ms: f64,
    /// From one app to the other, first message each way.
    a_to_b_ms: f64,
    b_to_a_ms: f64,
    /// Durable messages sent at full speed, and the bytes of each payload.
    messages: u64,
    message_bytes: usize,
    /// Until the last was known to be on the second node's disk.
    stored_per_second: u64,
    /// Until the last was acknowledged by the app there.
    heard_per_second: u64,
    /// Messages taken while the second node was dead, and how long that took.
    queued_while_down: u64,
    queued_ms: f64,
    /// How many of them arrived, once each and in order, after both nodes had
    /// been killed, and how long after their restart.
    arrived_after_restart: u64,
    recovery_ms: f64,
}

/// Runs the demo and cleans up after it, however it ends.
pub(super) async fn demo(out: Out) -> Result<(), Failure> {
    let mut signals = Signals::all()?;
    let dir = directory().map_err(|error| Failure::Failed(format!("cannot make a temporary directory: {error}")))?;
    let mut a = Node::new("a", dir.path())?;
    let mut b = Node::new("b", dir.path())?;
    let outcome = tokio::select! {
        biased;
        signal = signals.wait() => Err(signal),
        outcome = Box::pin(story::tell(&mut a, &mut b, out)) => outcome,
    };
    // Before the directory goes, for they write into it.
    a.kill().await;
    b.kill().await;
    if let Err(failure) = &outcome
        && failure.status() == exit::FAILED
    {
        show_logs(&[&a, &b]);
    }
    let removed = dir.close();
    outcome?;
    removed.map_err(|error| Failure::Failed(format!("cannot remove the temporary directory: {error}")))
}

fn directory() -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let permissions = Permissions::from_mode(0o700);
    let builder = builder.prefix("p2p-node-demo-").permissions(permissions);
    let dir = builder.tempdir()?;
    if dir.path().as_os_str().as_bytes().len() > MAX_DIR_BYTES {
        return builder.tempdir_in(Path::new("/tmp"));
    }
    Ok(dir)
}

/// The ends of the daemons' logs, which are all that is left of them.
fn show_logs(nodes: &[&Node]) {
    let mut stderr = io::stderr().lock();
    for node in nodes {
        // Nothing is left to be done when even stderr is gone.
        let _ = writeln!(stderr, "last lines of {}'s log:", node.name());
        for line in node.log_tail() {
            let _ = writeln!(stderr, "  {line}");
        }
    }
}
