//! Why the delivery layer refuses something.

use libp2p::PeerId;

use crate::store::{OutboxLimit, StoreError};

/// Why a request was refused; nothing of it was done.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The id stands for other content.
    #[error(
        "id {id:?} was used for other content to the same peer and channel; use another id, or none to have one made"
    )]
    Conflict {
        /// The id.
        id: String,
    },
    /// The outbox is full.
    #[error(
        "the outbox is full: {} is {}, {} in use; wait until messages are delivered, cancel some (p2p-node queue), or raise the limit",
        .0.limit, .0.max, .0.used
    )]
    Full(OutboxLimit),
    /// A message to oneself finds the inbox full.
    #[error(
        "this node's inbox is full; acknowledge messages (Ack, or p2p-node listen), or raise max_inbox_bytes and max_peer_bytes"
    )]
    InboxFull,
    /// There is no such message.
    #[error(
        "no message with id {id:?} was sent from here, or it is too long ago; `p2p-node queue ls` lists those that wait"
    )]
    NoMessage {
        /// The id.
        id: String,
    },
    /// Several peers or channels have a message of this id.
    #[error("several peers or channels have a message with id {id:?}; name the peer and the channel")]
    Ambiguous {
        /// The id.
        id: String,
    },
    /// Another Listen has the consumer.
    #[error(
        "consumer {consumer:?} of channel {channel:?} is in use by process {pid}; end it, or use another consumer name"
    )]
    Held {
        /// The channel.
        channel: String,
        /// The consumer.
        consumer: String,
        /// Process id of the holder, or "unknown".
        pid: String,
    },
    /// There is no such consumer.
    #[error("channel {channel:?} has no consumer {consumer:?}; a Listen makes one")]
    NoConsumer {
        /// The channel.
        channel: String,
        /// The consumer.
        consumer: String,
    },
    /// Nothing was delivered with that cursor.
    #[error("cursor {cursor} is beyond the last delivery of the channel, {last}; pass the cursor of a delivery")]
    BeyondLast {
        /// As asked.
        cursor: u64,
        /// The last one.
        last: u64,
    },
    /// A limit on consumers or listeners.
    #[error("{what}: at most {max}, {used} in use; {remedy}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// In use now.
        used: u64,
        /// Allowed.
        max: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// A message in the inbox does not match its checksum.
    #[error(
        "the message at cursor {cursor} of channel {channel:?} is damaged on disk; acknowledge cursor {cursor} to go on without it, and check the disk"
    )]
    Damaged {
        /// The channel.
        channel: String,
        /// Its position.
        cursor: u64,
    },
    /// Not in the address book, or not trusted there.
    #[error("peer {0} is not a trusted peer of the address book; add it with: p2p-node peer add {0}")]
    NotInBook(PeerId),
    /// Blocked.
    #[error("peer {0} is blocked; unblock it with: p2p-node peer add {0}")]
    Blocked(PeerId),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down; try again when it is back")]
    Closed,
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for DeliveryError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Closed,
            other => Self::Store(other),
        }
    }
}
