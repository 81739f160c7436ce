//! The link and delivery protocol as pure state machines.
//!
//! Frames, answers of the store and the time go in; frames and wishes to the
//! store come out. Nothing here does IO, waits, or reads a clock, so that two
//! nodes can be run through thousands of failures in a test.
//!
//! * [`Sender`]: this node's messages to one peer.
//! * [`Receiver`]: one peer's messages to this node.
//!
//! A *lane* is (sender's epoch, recipient, channel). Its positions are dense:
//! each is a message or a tombstone, and the receiver takes them only in order,
//! each in the same transaction as the message. From that follow order, no
//! loss and no doubles, whatever happens to links. Two more marks cover a store
//! that was replaced by an older copy of itself: every row has a random tag,
//! which tells one history from another, and every receiver remembers ids for
//! a while, which catches what is sent again under a new numbering.

mod ephemeral;
mod lane;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use ephemeral::MAX_EPHEMERAL;
pub use lane::{MAX_OPEN_LANES, OutRow, RowBody};
pub use receiver::{Accepted, BatchLane, Inbound, InboundKind, Receiver, ReceiverEffect, ReceiverInput};
pub use sender::{EphemeralEnd, LaneInfo, PeerState, Prepared, Sender, SenderEffect, SenderInput};

/// Milliseconds of a clock that never goes back.
pub type Millis = u64;

/// Names a link; a younger one is larger.
pub type LinkNumber = u64;

/// The version said in HELLO and WELCOME.
pub const VERSION: u32 = 1;

/// The features said in HELLO and WELCOME.
pub const FEATURES: u64 = crate::wire::FEATURE_PRESENCE;
