//! A network on loopback, with its events.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use p2p_node::{
    node::{Connected, DialTarget, Direction, Link, Node, NodeError, NodeEvent, PeerPolicy, Received, Standing},
    swarm::{self, BoundAddress, ConnectionLimits, ListenAddress, SwarmConfig, SwarmError},
    types::Content,
    wire::{Back, Data, Forward},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Longest wait for something that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";

pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) id: PeerId,
    pub(crate) bound: Vec<BoundAddress>,
    events: mpsc::Receiver<NodeEvent>,
    passed: VecDeque<NodeEvent>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

pub(crate) type OutboundLink = (mpsc::Sender<Forward>, mpsc::Receiver<Received<Back>>);
pub(crate) type InboundLink = (mpsc::Sender<Back>, mpsc::Receiver<Received<Forward>>);

pub(crate) fn config(listen: &[&str]) -> SwarmConfig {
    SwarmConfig {
        listen: listen.iter().map(|a| ListenAddress { addr: a.parse().unwrap(), required: true }).collect(),
        external: Vec::new(),
        bootstrap: Vec::new(),
        relays: Vec::new(),
        serve: p2p_node::node::Serve::Off,
        relay_limits: swarm::RelayLimits::default(),
        network: p2p_node::node::Overlay::Private,
        mdns: false,
        port_mapping: false,
        trust_open: false,
        max_message_bytes: 1024 * 1024,
        limits: ConnectionLimits::default(),
        max_memory_bytes: None,
    }
}

impl TestNode {
    pub(crate) async fn start() -> Self {
        Self::start_with(config(&[QUIC, TCP])).await.unwrap()
    }

    pub(crate) async fn start_with(config: SwarmConfig) -> Result<Self, SwarmError> {
        Self::start_as(config, Keypair::generate_ed25519()).await
    }

    pub(crate) async fn start_as(config: SwarmConfig, keypair: Keypair) -> Result<Self, SwarmError> {
        // RUST_LOG=p2p_node=debug shows what a failed test did.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let stop = CancellationToken::new();
        let network = swarm::spawn(config, keypair, stop.clone()).await?;
        Ok(Self {
            id: network.node.local_peer_id(),
            node: network.node,
            bound: network.bound,
            events: network.events,
            passed: VecDeque::new(),
            stop,
            task: network.task,
        })
    }

    pub(crate) fn address(&self, quic: bool) -> Multiaddr {
        let is_quic = |a: &Multiaddr| a.iter().any(|part| part == Protocol::QuicV1);
        self.bound.iter().map(|b| &b.bound).find(|a| is_quic(a) == quic).unwrap().clone()
    }

    pub(crate) async fn set(&self, peer: PeerId, standing: Standing, pinned: bool, addresses: Vec<Multiaddr>) {
        self.node.set_policy(peer, PeerPolicy { standing, pinned, addresses }).await.unwrap();
    }

    pub(crate) async fn trust(&self, other: &Self) {
        self.set(other.id, Standing::Trusted, false, Vec::new()).await;
    }

    pub(crate) async fn connect(&self, other: &Self, quic: bool) -> Result<Connected, NodeError> {
        self.node.connect(DialTarget::Address(other.id, other.address(quic)), DEADLINE).await
    }

    /// The next event that fits; those passed over are kept.
    pub(crate) async fn wait(&mut self, fits: impl Fn(&NodeEvent) -> bool) -> NodeEvent {
        if let Some(position) = self.passed.iter().position(&fits) {
            return self.passed.remove(position).unwrap();
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            let event = timeout_at(deadline, self.events.recv()).await.expect("event in time").expect("running");
            if fits(&event) {
                return event;
            }
            self.passed.push_back(event);
        }
    }

    /// Events that came within a time.
    pub(crate) async fn collect(&mut self, within: Duration) -> Vec<NodeEvent> {
        let deadline = Instant::now() + within;
        let mut all: Vec<_> = self.passed.drain(..).collect();
        while let Ok(Some(event)) = timeout_at(deadline, self.events.recv()).await {
            all.push(event);
        }
        all
    }

    pub(crate) async fn outbound(&mut self, peer: PeerId) -> (Link, OutboundLink) {
        let outbound = |link: &Link| link.peer == peer && matches!(link.direction, Direction::Outbound { .. });
        let link = self.link(outbound).await;
        split_outbound(link)
    }

    pub(crate) async fn inbound(&mut self, peer: PeerId) -> (Link, InboundLink) {
        let inbound = |link: &Link| link.peer == peer && matches!(link.direction, Direction::Inbound { .. });
        let link = self.link(inbound).await;
        split_inbound(link)
    }

    async fn link(&mut self, fits: impl Fn(&Link) -> bool) -> Link {
        match self.wait(|event| matches!(event, NodeEvent::Link(link) if fits(link))).await {
            NodeEvent::Link(link) => link,
            _ => unreachable!("asked for a link"),
        }
    }

    pub(crate) async fn disconnected(&mut self, peer: PeerId) {
        self.wait(|event| matches!(event, NodeEvent::Disconnected(other, _) if *other == peer)).await;
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        drop(self.passed);
        drop(self.events);
        timeout(DEADLINE, self.task).await.expect("stops in time").unwrap();
    }
}

/// The ends of a link, and the link with ends that lead nowhere.
fn split_outbound(mut link: Link) -> (Link, OutboundLink) {
    let nowhere = Direction::Outbound { tx: mpsc::channel(1).0, rx: mpsc::channel(1).1 };
    match std::mem::replace(&mut link.direction, nowhere) {
        Direction::Outbound { tx, rx } => (link, (tx, rx)),
        Direction::Inbound { .. } => unreachable!("asked for outbound"),
    }
}

fn split_inbound(mut link: Link) -> (Link, InboundLink) {
    let nowhere = Direction::Outbound { tx: mpsc::channel(1).0, rx: mpsc::channel(1).1 };
    match std::mem::replace(&mut link.direction, nowhere) {
        Direction::Inbound { tx, rx } => (link, (tx, rx)),
        Direction::Outbound { .. } => unreachable!("asked for inbound"),
    }
}

pub(crate) fn data(seq: u64, bytes: usize) -> Forward {
    let payload: Vec<u8> = (0..bytes).map(|n| (n as u64 * 31 + seq) as u8).collect();
    let content = Content { id: format!("m{seq}"), payload: Bytes::from(payload), ..Content::default() };
    Forward::Data(Data { lane: 1, seq, tag: 7, ttl_left_ms: 1000, after: None, content })
}

pub(crate) async fn receive<F>(rx: &mut mpsc::Receiver<Received<F>>) -> Option<F> {
    timeout(DEADLINE, rx.recv()).await.expect("frame in time").map(|received| received.frame)
}
