//! Where the socket of the API can be.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod support;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use support::{P2P_NODE, connect, eventually, loopback, scrub};

/// A daemon that does not outlive its test.
struct Running(Child);

impl Running {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(P2P_NODE);
        scrub(&mut command);
        command.current_dir(dir).args(arguments).args(loopback().args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A name without a directory once failed: its parent is the empty path.
#[tokio::test]
async fn a_bare_file_name_is_in_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Running::start(dir.path(), &["--socket", "sock", "run", "--state-dir", "state"]);
    let socket = dir.path().join("sock");
    eventually("the daemon serves", || {
        let ended = daemon.0.try_wait().unwrap();
        assert!(ended.is_none(), "the daemon ended: {ended:?}");
        let socket = &socket;
        async move { connect(socket).await.ok() }
    })
    .await;
}
