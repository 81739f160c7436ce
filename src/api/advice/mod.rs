//! From what is known of the network to words: what is wrong, and what cures
//! it. Pure functions, so that each case can be shown in a test.
//!
//! A cure is a thing to do that is enough by itself. What cannot help here, for
//! the same cause, is not offered: no port mapping behind a carrier's NAT.

mod address;
mod nat;
mod node;
mod peer;
#[cfg(test)]
mod tests;

use libp2p::{Multiaddr, PeerId};

pub(super) use self::{
    nat::{summary, summary_v6},
    node::{NEEDS_RELAY, Reachability, node, reachability, verdict},
    peer::{Peer, not_found, peer},
};
use crate::node::ReachView;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advice {
    /// Names it for programs; the list is at `Advice` in the proto.
    pub(super) code: &'static str,
    /// What is the matter.
    pub(super) cause: String,
    /// What to do, each by itself enough, the simplest first.
    pub(super) cures: Vec<String>,
}

/// This node, as far as the words need it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'a> {
    /// Its id.
    pub(super) local: PeerId,
    /// How it is reached.
    pub(super) reach: &'a ReachView,
    /// Addresses it is bound to.
    pub(super) listen: &'a [Multiaddr],
    /// The settings name a relay or a bootstrap node.
    pub(super) has_servers: bool,
}

impl Advice {
    fn new(code: &'static str, cause: impl Into<String>, cures: Vec<String>) -> Self {
        Self { code, cause: cause.into(), cures }
    }
}
