//! What the network tells the rest of the daemon.

use libp2p::{Multiaddr, PeerId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    types::Route,
    wire::{
        Back, Forward,
        join::{JoinAnswer, JoinRequest},
    },
};

/// Names a link within this start of the daemon; never used twice, and larger
/// for a younger link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Something happened.
#[derive(Debug)]
pub enum NodeEvent {
    /// A link is open; dropping it closes it.
    Link(Link),
    /// The first connection to a peer is up.
    Connected(ConnectionInfo),
    /// The last connection to a peer is gone; the text says why, for a person.
    Disconnected(PeerId, String),
    /// The best connection to a connected peer runs another way now.
    Rerouted(PeerId, Route),
    /// A peer was seen on the local network (true), or is not any more.
    OnLan(PeerId, bool),
    /// A peer presents the secret of a ticket.
    Join(JoinAttempt),
    /// Events were dropped before this one: the receiver was too slow. The view
    /// tells how things are.
    Missed,
    /// A dialled address led to the peer: worth remembering.
    AddressWorked(PeerId, Multiaddr),
    /// The socket that served the node is gone for good; the daemon must end.
    Fatal(String),
}

/// A connection as far as others care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The peer.
    pub peer: PeerId,
    /// How it is reached.
    pub route: Route,
    /// Its address.
    pub address: Multiaddr,
}

/// A peer wants to be trusted. Answer once what the answer says is on disk;
/// dropping it leaves the peer without one.
#[derive(Debug)]
pub struct JoinAttempt {
    /// The peer.
    pub peer: PeerId,
    /// It is connected over this host's loopback.
    pub same_host: bool,
    /// What it presents.
    pub request: JoinRequest,
    /// Takes the answer.
    pub reply: oneshot::Sender<JoinAnswer>,
}

/// One substream for messages in one direction, cut into frames.
#[derive(Debug)]
pub struct Link {
    /// Names it.
    pub id: LinkId,
    /// The other side.
    pub peer: PeerId,
    /// How the connection below it runs.
    pub route: Route,
    /// Who sends messages on it, with the two ends of its queues.
    pub direction: Direction,
}

/// Which way messages go on a link.
///
/// The receiving half yields `None` once the link is broken or was closed by
/// the other side. Dropping the sending half flushes what is queued and then
/// closes the link.
#[derive(Debug)]
pub enum Direction {
    /// From here to the peer.
    Outbound {
        /// Frames to the peer.
        tx: mpsc::Sender<Forward>,
        /// Frames from the peer.
        rx: mpsc::Receiver<Received<Back>>,
    },
    /// From the peer to here.
    Inbound {
        /// Frames to the peer.
        tx: mpsc::Sender<Back>,
        /// Frames from the peer.
        rx: mpsc::Receiver<Received<Forward>>,
    },
}

/// A frame that came in, with its share of the link's memory, which is free
/// again when this is dropped.
#[derive(Debug)]
pub struct Received<F> {
    /// The frame.
    pub frame: F,
    /// Bytes of the link's budget.
    pub permit: OwnedSemaphorePermit,
}
