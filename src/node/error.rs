//! Why the network could not do what it was asked.

use std::fmt;

use libp2p::{Multiaddr, PeerId};

use super::DialCause;

/// Why a command failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// The peer id is this node's own.
    #[error("peer {0} is this node itself; name another")]
    Myself(PeerId),
    /// The address book says no.
    #[error("peer {0} is blocked; `p2p-node peer add {0}` unblocks it")]
    Blocked(PeerId),
    /// Nothing to dial, and nobody to ask.
    #[error(
        "no address is known for peer {0}; give one with `p2p-node connect MULTIADDR` or `p2p-node peer add {0} --address MULTIADDR`, \
         or set `bootstrap` or `relay` to a node that both sides use, so that it is found by its id"
    )]
    NoAddress(PeerId),
    /// Nothing to dial, and those that were asked know nothing.
    #[error("peer {peer} was not found: {}", not_found(peer, *asked, *answered))]
    NotFound {
        /// The peer.
        peer: PeerId,
        /// Servers asked.
        asked: u32,
        /// Servers that answered.
        answered: u32,
    },
    /// Every address failed.
    #[error("peer {peer} cannot be reached: {}", list(attempts))]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// What was tried.
        attempts: Vec<DialAttempt>,
    },
    /// A limit of this node stood in the way.
    #[error("{0}")]
    Limit(String),
    /// The peer is connected and did not answer.
    #[error("peer {0} did not answer the ping: {1}")]
    NoPong(PeerId, String),
    /// The peer is connected and did not answer.
    #[error("peer {peer} did not say whether the ticket is good: {cause}; try again, or ask who made it")]
    NotJoined {
        /// The peer.
        peer: PeerId,
        /// For a person.
        cause: String,
        /// Another try may help.
        again: bool,
    },
    /// Time ran out.
    #[error(
        "no answer from peer {0} in time; check that it runs and that its address is right, or allow more, up to 10 s"
    )]
    Timeout(PeerId),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// One address tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialAttempt {
    /// The address; none when the dial failed before one was tried.
    pub address: Option<Multiaddr>,
    /// Why it failed.
    pub cause: DialCause,
}

impl fmt::Display for DialAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "{address}: {}", self.cause),
            None => self.cause.fmt(f),
        }
    }
}

fn not_found(peer: &PeerId, asked: u32, answered: u32) -> String {
    if answered == 0 {
        return format!(
            "no server answered ({asked} asked); check this node's network, and that those in `bootstrap` and `relay` run, \
             or give an address with `p2p-node peer add {peer} --address MULTIADDR`"
        );
    }
    format!(
        "none of the {answered} servers that answered knows an address of it; check that it runs, and that `bootstrap` or \
         `relay` names the same nodes there, or give an address with `p2p-node peer add {peer} --address MULTIADDR`"
    )
}

fn list(attempts: &[DialAttempt]) -> String {
    let all: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    all.join("; ")
}
