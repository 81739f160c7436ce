//! Real daemons for tests: each a process with a state directory and a socket
//! of its own, killed when it goes out of scope.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    fs::File,
    future::Future,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use p2p_node::proto::{self, p2p_client::P2pClient};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The executable under test.
pub(crate) const P2P_NODE: &str = env!("CARGO_BIN_EXE_p2p-node");

/// Longest that anything in a test may take: a test that hangs must end.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);

/// A client of the API.
pub(crate) type Client = P2pClient<Channel>;

/// How to start a daemon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Further arguments of `run`.
    pub(crate) args: Vec<String>,
    /// What is put before the command: `ip netns exec NAME`, say.
    pub(crate) prefix: Vec<String>,
    /// Environment.
    pub(crate) env: Vec<(String, String)>,
    /// Settings file, in TOML.
    pub(crate) config: String,
}

/// A daemon with a directory that outlives its process.
pub(crate) struct Daemon {
    dir: TempDir,
    /// Of the next start.
    pub(crate) options: Options,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one on a loopback port that the system chooses, and waits until
    /// it serves.
    pub(crate) async fn start() -> Self {
        Self::start_with(loopback()).await
    }

    /// Starts one and waits until it serves.
    pub(crate) async fn start_with(options: Options) -> Self {
        let mut daemon = Self::new(options);
        daemon.restart().await;
        daemon
    }

    /// Makes the directory only.
    pub(crate) fn new(options: Options) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("config.toml"), &options.config).unwrap();
        Self { dir, options, child: None }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Arguments of this daemon's `run`.
    pub(crate) fn run_command(&self) -> Command {
        let mut words = self.options.prefix.clone();
        words.push(P2P_NODE.to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        scrub(&mut command);
        command.envs(self.options.env.iter().cloned());
        command.arg("--socket").arg(self.socket());
        command.arg("--config").arg(self.dir.path().join("config.toml"));
        command.arg("run").arg("--state-dir").arg(self.state_dir()).args(&self.options.args);
        command
    }

    /// Starts the process, without waiting for it to serve.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = self.run_command();
        // What daemons of tests log, unless a test says so itself.
        if let Ok(log) = std::env::var("TEST_LOG") {
            command.env("P2P_NODE_LOG", log);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the process and waits until it serves.
    pub(crate) async fn restart(&mut self) {
        self.spawn();
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Ok(mut client) = connect(&self.socket()).await
                && let Ok(status) = client.status(proto::StatusRequest {}).await
                && !status.get_ref().listen_addresses.is_empty()
            {
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "the daemon does not serve:\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Hands the process over to a test that ends it in a way of its own.
    pub(crate) fn take_child(&mut self) -> Child {
        self.child.take().expect("the daemon runs")
    }

    /// SIGKILL, as a crash.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; returns how it ended.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon runs");
        signal(child.id(), nix::sys::signal::Signal::SIGTERM);
        wait_exit(&mut child)
    }

    pub(crate) async fn client(&self) -> Client {
        connect(&self.socket()).await.unwrap()
    }

    pub(crate) async fn status(&self) -> proto::StatusResponse {
        self.client().await.status(proto::StatusRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn peer_id(&self) -> String {
        self.status().await.peer_id
    }

    /// Runs the command line against this daemon.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        let mut command = Command::new(P2P_NODE);
        scrub(&mut command);
        command.arg("--socket").arg(self.socket()).args(args).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Puts another daemon into the address book, with its addresses.
    pub(crate) async fn add(&self, other: &Daemon) {
        let status = other.status().await;
        let request = proto::AddPeerRequest {
            peer: status.peer_id,
            addresses: status.listen_addresses,
            ..proto::AddPeerRequest::default()
        };
        self.client().await.add_peer(request).await.unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.dir.path().display(), self.log());
        }
    }
}

/// Two daemons that trust each other.
pub(crate) async fn pair() -> (Daemon, Daemon) {
    let (a, b) = (Daemon::start().await, Daemon::start().await);
    a.add(&b).await;
    b.add(&a).await;
    (a, b)
}

/// QUIC on a loopback port that the system chooses, no mDNS.
pub(crate) fn loopback() -> Options {
    let address = format!("/ip4/{}/udp/0/quic-v1", own_ip());
    let args = ["--listen", &address, "--no-mdns"];
    Options { args: args.map(ToOwned::to_owned).to_vec(), ..Options::default() }
}

/// A loopback address of one's own: no other test can take the port while a
/// daemon is down.
pub(crate) fn own_ip() -> String {
    let [a, b, c, _] = rand::random::<[u8; 4]>();
    format!("127.{}.{b}.{}", a.clamp(1, 254), c.clamp(1, 254))
}

/// Takes away whatever of this environment a daemon or a client would read.
pub(crate) fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("P2P_NODE_")) {
        command.env_remove(name);
    }
    command.env_remove("STATE_DIRECTORY").env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET");
}

/// A client of the daemon at a socket.
pub(crate) async fn connect(socket: &Path) -> Result<Client, tonic::transport::Error> {
    connect_by(Endpoint::from_static("http://localhost"), socket).await
}

/// The same with HTTP/2 windows of so many bytes: what this side takes from the
/// daemon without reading it.
pub(crate) async fn connect_with_window(socket: &Path, bytes: u32) -> Client {
    let endpoint = Endpoint::from_static("http://localhost");
    let endpoint = endpoint.initial_stream_window_size(bytes).initial_connection_window_size(bytes);
    connect_by(endpoint, socket).await.unwrap()
}

async fn connect_by(endpoint: Endpoint, socket: &Path) -> Result<Client, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = endpoint.connect_with_connector(connector).await?;
    Ok(P2pClient::new(channel).max_decoding_message_size(72 << 20).max_encoding_message_size(72 << 20))
}

pub(crate) fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// Waits for a process to end.
pub(crate) fn wait_exit(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            panic!("the process did not end in time: {:?}", child.wait().unwrap().signal());
        }
        std::thread::sleep(POLL);
    }
}

/// Polls until something is there.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A message with a payload.
pub(crate) fn message(channel: &str, id: &str, payload: impl Into<Vec<u8>>) -> proto::Message {
    proto::Message {
        id: id.to_owned(),
        channel: channel.to_owned(),
        payload: payload.into().into(),
        ..proto::Message::default()
    }
}

/// A Send that waits until the peer has stored the message.
pub(crate) fn send_to(peer: &str, message: proto::Message) -> proto::SendRequest {
    proto::SendRequest {
        peer: peer.to_owned(),
        message: Some(message),
        wait: proto::Wait::Stored.into(),
        ..proto::SendRequest::default()
    }
}

/// Reads `count` deliveries of a channel by a manual Listen, and acknowledges
/// them.
pub(crate) async fn receive(client: &mut Client, channel: &str, count: usize) -> Vec<proto::Delivery> {
    let request = proto::ListenRequest {
        channel: channel.to_owned(),
        ack_mode: proto::AckMode::Manual.into(),
        max_batch: 256,
        ..proto::ListenRequest::default()
    };
    let mut stream = client.clone().listen(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while all.len() < count {
        let frame = tokio::time::timeout(DEADLINE, stream.message()).await.expect("deliveries in time");
        if let Some(proto::listen_response::Frame::Deliveries(batch)) = frame.unwrap().expect("an open stream").frame {
            all.extend(batch.deliveries);
        }
    }
    let cursor = all.last().map_or(0, |delivery: &proto::Delivery| delivery.cursor);
    let ack = proto::AckRequest { channel: channel.to_owned(), cursor, ..proto::AckRequest::default() };
    client.ack(ack).await.unwrap();
    all
}
