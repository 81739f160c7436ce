//! The go-libp2p node of tests/interop/libp2p on a host of a site.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::site::Site;

/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// Longest wait for anything that it does.
const PATIENCE: Duration = Duration::from_secs(20);

/// Builds the program: where it is, or why it cannot be.
pub(crate) fn build() -> Result<PathBuf, String> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/libp2p");
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("go-libp2p-node");
    let output = Command::new("go").args(["build", "-C", source, "-o"]).arg(&program).arg(".").output();
    let output = output.map_err(|error| format!("go: {error}"))?;
    if output.status.success() {
        return Ok(program);
    }
    Err(format!("go build: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

pub(crate) struct Foreign {
    child: Child,
    stdin: ChildStdin,
    events: Arc<Mutex<Vec<(Instant, Value)>>>,
    pub(crate) id: String,
}

impl Foreign {
    /// Starts it as "relay" or "peer" and waits until it is ready.
    pub(crate) async fn start(program: &Path, site: &Site, role: &str, relays: &[String]) -> Self {
        let mut command = site.hosts[0].command(program.to_str().unwrap());
        command.arg(role);
        for relay in relays {
            command.arg("--relay").arg(relay);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let events = Arc::new(Mutex::new(Vec::new()));
        std::thread::spawn({
            let events = Arc::clone(&events);
            move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    events.lock().unwrap().push((Instant::now(), event));
                }
            }
        });
        let mut foreign = Self { child, stdin, events, id: String::new() };
        let ready = foreign.wait("ready", |_| true).await.expect("the go-libp2p node starts");
        ready.1["peer_id"].as_str().unwrap().clone_into(&mut foreign.id);
        foreign
    }

    /// Waits for an event, past ones included: when it came, and what it said.
    pub(crate) async fn wait(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Option<(Instant, Value)> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let found = {
                let events = self.events.lock().unwrap();
                events.iter().find(|(_, event)| event["event"] == name && fits(event)).cloned()
            };
            if found.is_some() {
                return found;
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Tells it to do something: nothing, or what went wrong.
    pub(crate) async fn order(&mut self, verb: &str, argument: &str) -> Result<(), String> {
        writeln!(self.stdin, "{verb} {argument}").unwrap();
        let done = self.wait("done", |event| event["verb"] == verb && event["argument"] == argument).await;
        match done {
            Some((_, event)) => event["error"].as_str().map_or(Ok(()), |error| Err(error.to_owned())),
            None => Err(format!("no answer to {verb}")),
        }
    }

    /// The first connection with this peer that needs no relay.
    pub(crate) async fn direct(&self, peer: &str) -> Option<(Instant, String)> {
        let fits = |event: &Value| event["peer_id"] == peer && event["relayed"] == false;
        let (at, event) = self.wait("connected", fits).await?;
        Some((at, event["address"].as_str().unwrap_or_default().to_owned()))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
