//! A daemon that the demo owns.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{
    cli::{
        client::{Client, connect_to},
        errors::Failure,
        output::clean,
    },
    proto::{StatusRequest, StatusResponse},
};

/// How long a daemon may take until it serves. It takes milliseconds; this is
/// for a machine that is busy with something else.
const START: Duration = Duration::from_secs(20);
/// Between one look and the next.
const POLL: Duration = Duration::from_millis(20);
/// Of a log that are shown when something went wrong.
const TAIL_LINES: usize = 20;
/// Of a log that are read for that.
const TAIL_BYTES: u64 = 16 * 1024;
/// Set by systemd for the process it starts, and not meant for its children.
const SYSTEMD: [&str; 4] = ["STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY", "NOTIFY_SOCKET"];

/// A daemon, running or not. Never outlives this process.
pub(super) struct Node {
    name: &'static str,
    dir: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node with its files in `dir`; not running yet.
    pub(super) fn new(name: &'static str, dir: &Path) -> Result<Self, Failure> {
        let node = Self { name, dir: dir.to_owned(), child: None };
        // An empty file, so that the machine's own settings stay out of it.
        fs::write(node.file("toml"), "").map_err(|error| node.failure("cannot write its settings", &error))?;
        Ok(node)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Starts the daemon and waits until it serves.
    pub(super) async fn start(&mut self) -> Result<(Client, StatusResponse), Failure> {
        let child = self.spawn().map_err(|error| self.failure("cannot start", &error))?;
        self.child = Some(child);
        let deadline = Instant::now() + START;
        loop {
            let last = match self.look().await {
                Ok(serving) => return Ok(serving),
                Err(failure) => failure,
            };
            self.check_alive()?;
            if Instant::now() > deadline {
                return Err(self.failure("does not serve", &last));
            }
            sleep(POLL).await;
        }
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only when it is gone already.
            let _ = child.kill().await;
        }
    }

    /// The last lines of its log, safe to print.
    pub(super) fn log_tail(&self) -> Vec<String> {
        let text = tail(&self.file("log")).unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<_> = text.lines().map(clean).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(self.file("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("run")
            .arg("--socket")
            .arg(self.file("sock"))
            .arg("--config")
            .arg(self.file("toml"))
            .arg("--state-dir")
            .arg(self.dir.join(self.name))
            .args(["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--no-mdns"])
            .args(["--exit-with-parent", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            // Ctrl-C goes to the demo, which ends its daemons in order.
            .process_group(0);
        for variable in foreign_variables() {
            command.env_remove(variable);
        }
        command.spawn()
    }

    async fn look(&self) -> Result<(Client, StatusResponse), Failure> {
        let mut client = connect_to(&self.file("sock")).await?;
        let status = client.status(StatusRequest {}).await?.into_inner();
        if status.listen_addresses.is_empty() {
            return Err(Failure::Failed("it listens on no address yet".to_owned()));
        }
        Ok((client, status))
    }

    fn check_alive(&mut self) -> Result<(), Failure> {
        let ended = self.child.as_mut().map(Child::try_wait);
        match ended {
            Some(Ok(Some(status))) => Err(self.failure("ended at its start", &status)),
            _ => Ok(()),
        }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.dir.join(self.name).with_extension(extension)
    }

    fn failure(&self, what: &str, cause: &impl std::fmt::Display) -> Failure {
        Failure::Failed(format!("node {} {what}: {cause}", self.name))
    }
}

/// Variables that would change how a daemon of the demo runs.
fn foreign_variables() -> Vec<OsString> {
    let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"P2P_NODE_");
    std::env::vars_os().map(|(name, _)| name).filter(ours).chain(SYSTEMD.map(OsString::from)).collect()
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new("a", dir.path()).unwrap();
        assert_eq!(node.log_tail().len(), 1);
        let log: String = (0..5000).map(|number| format!("line\x1b {number}\n")).collect();
        fs::write(dir.path().join("a.log"), log).unwrap();
        let tail = node.log_tail();
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.last().unwrap(), "line\\u{1b} 4999");
    }
}
