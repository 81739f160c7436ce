//! The handle to the swarm's task.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};

use super::{
    Command, DialTarget, KnownAddressView, LinkId, NodeError, PathView, PeerPolicy, ReachView, command::Reply,
};
use crate::{
    types::Route,
    wire::join::{JoinAnswer, JoinRequest},
};

/// Longest that one connect or ping may take.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// Longest that joining may take: a dial, then an answer from a busy disk.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(30);

/// A handle to the network; clones share one task.
#[derive(Debug, Clone)]
pub struct Node {
    local: PeerId,
    commands: mpsc::Sender<Command>,
}

/// A connection to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The peer.
    pub peer: PeerId,
    /// How it is reached.
    pub route: Route,
    /// Its address.
    pub address: Multiaddr,
    /// The connection was there before the command.
    pub already: bool,
}

/// A measured round trip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pong {
    /// There and back.
    pub rtt: Duration,
    /// Over what.
    pub connected: Connected,
}

/// What an inviter answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its words.
    pub answer: JoinAnswer,
    /// Over what.
    pub connected: Connected,
}

/// What looking for a peer by its id brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The peer.
    pub peer: PeerId,
    /// Its addresses, best first, those that were known before among them.
    pub addresses: Vec<KnownAddressView>,
    /// Servers asked.
    pub asked: u32,
    /// Servers among them that had answered by then.
    pub answered: u32,
    /// Round trips between servers, one after the other, until an address came;
    /// 0 if none did.
    pub hops: u32,
    /// How long it took.
    pub took: Duration,
}

/// An address at which others may reach this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachable {
    /// Without /p2p part.
    pub address: Multiaddr,
    /// How far it reaches.
    pub route: Route,
    /// It is of use beyond the local network. Of an address at a relay: the
    /// relay is.
    pub beyond_lan: bool,
}

/// The network at one moment.
#[derive(Debug, Clone, Default)]
pub struct NetworkView {
    /// Bound addresses, without /p2p part.
    pub listen: Vec<Multiaddr>,
    /// Default addresses that could not be bound, with the cause.
    pub skipped: Vec<String>,
    /// Peers connected, in the book, or seen on the local network.
    pub peers: Vec<PeerView>,
    /// Counters against limits.
    pub connections: ConnectionCounts,
}

/// One peer at one moment.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// The peer.
    pub peer: PeerId,
    /// Route and address of the best connection.
    pub best: Option<(Route, Multiaddr)>,
    /// Number of connections.
    pub connections: u32,
    /// Last measured.
    pub rtt: Option<Duration>,
    /// Addresses seen on the local network now.
    pub lan: Vec<Multiaddr>,
    /// Other addresses known to the network task.
    pub addresses: Vec<Multiaddr>,
    /// What the peer says it runs (already cut to a printable, bounded text).
    pub agent: String,
}

/// Connections against their limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// All.
    pub established: u32,
    /// Of peers that are not trusted.
    pub untrusted: u32,
    /// Most of those.
    pub max_untrusted: u32,
    /// Most with one peer.
    pub max_per_peer: u32,
    /// Refused by a limit since the start.
    pub refused: u64,
}

impl Node {
    /// A handle that sends to the given task.
    pub(crate) fn new(local: PeerId, commands: mpsc::Sender<Command>) -> Self {
        Self { local, commands }
    }

    /// This node's own peer id.
    #[must_use]
    pub fn local_peer_id(&self) -> PeerId {
        self.local
    }

    /// Connects to a peer, within `deadline` and [`DIAL_DEADLINE`].
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn connect(&self, target: DialTarget, deadline: Duration) -> Result<Connected, NodeError> {
        let peer = target.peer();
        self.ask_within(peer, deadline.min(DIAL_DEADLINE), |reply| Command::Connect(target, reply)).await
    }

    /// Closes all connections to a peer and answers how many there were.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn disconnect(&self, peer: PeerId) -> Result<u32, NodeError> {
        self.ask(|reply| Command::Disconnect(peer, reply)).await
    }

    /// Measures the round trip, dialling first if needed.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn ping(&self, peer: PeerId, deadline: Duration) -> Result<Pong, NodeError> {
        self.ask_within(peer, deadline.min(DIAL_DEADLINE), |reply| Command::Ping(peer, reply)).await
    }

    /// Looks for a peer by its id, within `deadline` and [`DIAL_DEADLINE`],
    /// without connecting to it. The first addresses answer at once.
    ///
    /// # Errors
    /// [`NodeError::NotFound`], [`NodeError::NoAddress`] where there is nobody
    /// to ask, and others; see [`NodeError`].
    pub async fn find(&self, peer: PeerId, deadline: Duration) -> Result<Found, NodeError> {
        self.ask_within(peer, deadline.min(DIAL_DEADLINE), |reply| Command::Find(peer, reply)).await
    }

    /// Presents the secret of a ticket, within `deadline` and
    /// [`JOIN_DEADLINE`], dialling first if needed.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn join(
        &self,
        target: DialTarget,
        request: JoinRequest,
        deadline: Duration,
    ) -> Result<Joined, NodeError> {
        let peer = target.peer();
        self.ask_within(peer, deadline.min(JOIN_DEADLINE), |reply| Command::Join(target, request, reply)).await
    }

    /// Where others can reach this node, best first. `settled`: if it needs a
    /// relay and has none yet, wait up to 10 s for one.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn reachable(&self, settled: bool) -> Result<Vec<Reachable>, NodeError> {
        self.ask(|reply| Command::Reachable { settled, reply }).await
    }

    /// Tells what the address book says of a peer.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn set_policy(&self, peer: PeerId, policy: PeerPolicy) -> Result<(), NodeError> {
        self.tell(Command::SetPolicy(peer, policy)).await
    }

    /// Tells whether messages wait for a peer.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn want(&self, peer: PeerId, wanted: bool) -> Result<(), NodeError> {
        self.tell(Command::Want(peer, wanted)).await
    }

    /// Tells that nothing comes on a link although the peer owes an answer. If
    /// its connection turns out to be dead, the link moves to another.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn suspect(&self, link: LinkId) -> Result<(), NodeError> {
        self.tell(Command::Suspect(link)).await
    }

    /// The network at this moment.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn view(&self) -> Result<NetworkView, NodeError> {
        self.ask(Command::View).await
    }

    /// How this node can be reached at this moment.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn reach(&self) -> Result<ReachView, NodeError> {
        self.ask(Command::Reach).await
    }

    /// How a peer is reached and what was tried; `None` if nothing is known of
    /// it.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn path(&self, peer: PeerId) -> Result<Option<PathView>, NodeError> {
        self.ask(|reply| Command::Path(peer, reply)).await
    }

    /// One peer at this moment; `None` if nothing is known of it.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn view_peer(&self, peer: PeerId) -> Result<Option<PeerView>, NodeError> {
        Ok(self.view_peers(vec![peer]).await?.pop())
    }

    /// Some peers at this moment; those of which nothing is known are left out.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn view_peers(&self, peers: Vec<PeerId>) -> Result<Vec<PeerView>, NodeError> {
        self.ask(|reply| Command::ViewPeers(peers, reply)).await
    }

    /// Answers once the network's task has come round to it.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn beat(&self) -> Result<(), NodeError> {
        self.ask(Command::Beat).await
    }

    /// Stops opening links and connections.
    ///
    /// # Errors
    /// [`NodeError::Closed`].
    pub async fn drain(&self) -> Result<(), NodeError> {
        self.tell(Command::Drain).await
    }

    async fn tell(&self, command: Command) -> Result<(), NodeError> {
        self.commands.send(command).await.map_err(|_| NodeError::Closed)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| NodeError::Closed)
    }

    async fn ask_within<T>(
        &self,
        peer: PeerId,
        deadline: Duration,
        command: impl FnOnce(Reply<Result<T, NodeError>>) -> Command,
    ) -> Result<T, NodeError> {
        match tokio::time::timeout(deadline, self.ask(command)).await {
            Ok(answer) => answer?,
            Err(_) => Err(NodeError::Timeout(peer)),
        }
    }
}
