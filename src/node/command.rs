//! What the network is asked to do.

use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::{Connected, Found, Joined, LinkId, NetworkView, NodeError, PathView, PeerView, Pong, ReachView, Reachable};
use crate::wire::join::JoinRequest;

/// Answer channel of a command. The task ignores a caller that went away.
pub(crate) type Reply<T> = oneshot::Sender<T>;

/// A request to the task that owns the swarm. Handled in order.
#[derive(Debug)]
pub enum Command {
    /// Connect; answers at once when connected already.
    Connect(DialTarget, Reply<Result<Connected, NodeError>>),
    /// Close all connections to a peer; answers how many there were.
    Disconnect(PeerId, Reply<u32>),
    /// Measure the round trip over the best connection, dialling if needed.
    Ping(PeerId, Reply<Result<Pong, NodeError>>),
    /// Present the secret of a ticket to a peer, dialling if needed.
    Join(DialTarget, JoinRequest, Reply<Result<Joined, NodeError>>),
    /// Where others can reach this node, best first.
    Reachable {
        /// If it needs a relay and has none yet, wait a while for one.
        settled: bool,
        /// Takes the answer.
        reply: Reply<Vec<Reachable>>,
    },
    /// What the address book says of a peer; replaces what was said before.
    SetPolicy(PeerId, PeerPolicy),
    /// Whether messages wait for a peer: if so it is dialled until connected.
    Want(PeerId, bool),
    /// Nothing comes on a link although the peer owes an answer.
    Suspect(LinkId),
    /// The state of the network.
    View(Reply<NetworkView>),
    /// Look for a peer by its id; answers with the first addresses found.
    Find(PeerId, Reply<Result<Found, NodeError>>),
    /// How this node can be reached.
    Reach(Reply<ReachView>),
    /// How a peer is reached and what was tried; `None` if nothing is known of
    /// it.
    Path(PeerId, Reply<Option<PathView>>),
    /// The state of some peers; of those of which nothing is known, none.
    ViewPeers(Vec<PeerId>, Reply<Vec<PeerView>>),
    /// Answers: a sign that the task goes round.
    Beat(Reply<()>),
    /// Open no more links or connections; those open stay.
    Drain,
}

/// Whom to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialTarget {
    /// A peer, over the addresses known.
    Peer(PeerId),
    /// A peer over this address, which was stripped of its /p2p part.
    Address(PeerId, Multiaddr),
    /// A peer over these addresses and all those known.
    Addresses {
        /// The peer.
        peer: PeerId,
        /// Without /p2p part, best first.
        addresses: Vec<Multiaddr>,
        /// Even if it is connected: that connection may be dead.
        anew: bool,
    },
}

impl DialTarget {
    /// The peer to reach.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        match self {
            Self::Peer(peer) | Self::Address(peer, _) | Self::Addresses { peer, .. } => *peer,
        }
    }
}

/// How a peer is to be treated, from the address book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Whether it is trusted.
    pub standing: Standing,
    /// Keep connected.
    pub pinned: bool,
    /// Addresses to try, best first, without /p2p part.
    pub addresses: Vec<Multiaddr>,
}

/// The place of a peer in the address book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not in the book, or known only: counted against the limit of untrusted
    /// connections; no link is opened to it.
    Stranger,
    /// Links are opened to it, connections bypass the limit of untrusted.
    Trusted,
    /// Never connected.
    Blocked,
}
