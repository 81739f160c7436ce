//! What the two sides of a link say to each other.

use crate::types::{Channel, Content, Epoch, Presence, Seq, Tag};

/// Epochs of a lane that both sides remember, the present one not counted.
pub const MAX_EPOCHS: usize = 8;

/// Bit of [`Hello::features`] and [`Welcome::features`]: this side takes
/// [`Forward::Presence`], and tells its own once on each link and whenever it
/// changes.
pub const FEATURE_PRESENCE: u64 = 1;

/// Gaps that a receiver tells of.
pub const MAX_GAPS: usize = 32;

/// From the side that sends messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forward {
    /// First frame of a link.
    Hello(Hello),
    /// Gives a lane a number on this link; answered by [`Back::LaneState`].
    Open(Open),
    /// A durable message, at its place in its lane.
    Data(Data),
    /// Places in a lane that hold no message (any more).
    Skip(Skip),
    /// Asks whether a message was ever stored; answered by [`Back::Outcome`].
    Query(Query),
    /// A message that neither side stores; answered by
    /// [`Back::EphemeralResult`].
    Ephemeral(Ephemeral),
    /// What the sender's node is; replaces what was told before. Only to a
    /// receiver with [`FEATURE_PRESENCE`]; not answered.
    Presence(Presence),
    /// Nothing more will come on this link.
    Bye,
}

/// From the side that receives messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Back {
    /// The peer is trusted; lanes can be opened. Follows [`Forward::Hello`],
    /// and a [`Back::Refused`] once trust is granted.
    Welcome(Welcome),
    /// Nothing is taken from this peer for now; all lanes of the link are
    /// closed.
    Refused(Refusal),
    /// Where a lane stands on the receiver's disk.
    LaneState(LaneState),
    /// All of a lane up to here is on the receiver's disk.
    Ack {
        /// Number of the lane on this link.
        lane: u32,
        /// Highest contiguous position stored.
        high: Seq,
    },
    /// Whether a message that is not sent any more was stored before.
    Outcome(Outcome),
    /// A lane is refused from a position on, until [`Back::Ready`].
    Full(Full),
    /// A lane that was refused may go on.
    Ready {
        /// Number of the lane on this link.
        lane: u32,
    },
    /// What became of an ephemeral message.
    EphemeralResult {
        /// As in [`Ephemeral::number`].
        number: u64,
        /// What became of it.
        outcome: EphemeralOutcome,
    },
    /// Nothing more will be taken on this link.
    Bye,
}

/// See [`Forward::Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Version of the protocol within `/p2p-node/link/1`.
    pub version: u32,
    /// Bits of optional features, such as [`FEATURE_PRESENCE`]; unknown ones
    /// are ignored.
    pub features: u64,
}

/// See [`Forward::Open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Number of the lane on this link; never used twice on it.
    pub lane: u32,
    /// The channel.
    pub channel: Channel,
    /// Which numbering of the lane.
    pub epoch: Epoch,
    /// Those before it, youngest first, each with the position up to which
    /// this one goes on from it; at most [`MAX_EPOCHS`].
    pub previous: Vec<(Epoch, Seq)>,
}

/// See [`Forward::Data`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Number of the lane on this link.
    pub lane: u32,
    /// Position in the lane.
    pub seq: Seq,
    /// Mark of the sender's row.
    pub tag: Tag,
    /// What is left of the time to live, in milliseconds.
    pub ttl_left_ms: u64,
    /// Sent early, before LANE_STATE: taken only right behind a position with
    /// this tag, or as the first of all with 0, and otherwise dropped. It is
    /// sent again once the lane is open.
    pub after: Option<Tag>,
    /// The message.
    pub content: Content,
}

/// See [`Forward::Skip`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// Number of the lane on this link.
    pub lane: u32,
    /// First position of the gap.
    pub from: Seq,
    /// Last position of the gap.
    pub to: Seq,
    /// Mark of the sender's row at `to`.
    pub tag: Tag,
    /// The messages were stored once and are gone, because the receiver's
    /// store was replaced by an older copy.
    pub lost: bool,
    /// Id of the one message that stood here, if its outcome is asked for.
    pub id: Option<String>,
}

/// See [`Forward::Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Number of the lane on this link.
    pub lane: u32,
    /// Id of the message.
    pub id: String,
}

/// See [`Forward::Ephemeral`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ephemeral {
    /// Matches the answer; unique on this link.
    pub number: u64,
    /// The channel.
    pub channel: Channel,
    /// The message.
    pub content: Content,
}

/// See [`Back::Welcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Version of the protocol within `/p2p-node/link/1`.
    pub version: u32,
    /// Bits of optional features, as in [`Hello::features`].
    pub features: u64,
    /// Largest payload this side takes, in bytes.
    pub max_message_bytes: u64,
}

/// See [`Back::Refused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The sender is not in the receiver's address book.
    Untrusted,
    /// A reason that this version does not know.
    Other,
}

/// See [`Back::LaneState`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneState {
    /// Number of the lane on this link.
    pub lane: u32,
    /// Highest contiguous position stored; 0 if none.
    pub high: Seq,
    /// While `high` is 0: the highest position stored of the epoch before.
    pub inherited: Seq,
    /// While `high` is 0: the highest position stored that this epoch goes on
    /// from, in any of those before it.
    pub floor: Seq,
    /// Mark of the row at `high` or `inherited`; 0 if none.
    pub tag: Tag,
    /// The youngest gaps, as first and last position, oldest first; at most
    /// [`MAX_GAPS`], and when there are as many there may have been more.
    pub gaps: Vec<(Seq, Seq)>,
}

/// See [`Back::Outcome`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Number of the lane on this link.
    pub lane: u32,
    /// Id of the message.
    pub id: String,
    /// It was stored.
    pub stored: bool,
}

/// See [`Back::Full`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// Number of the lane on this link.
    pub lane: u32,
    /// First position refused; all from here on must be sent again.
    pub next: Seq,
    /// The limit that was hit.
    pub limit: Limit,
}

/// A limit of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of its whole inbox.
    Inbox,
    /// Bytes in its inbox from this sender.
    Peer,
    /// Its disk takes nothing now.
    Storage,
    /// Number of channels or lanes.
    Lanes,
    /// A limit that this version does not know.
    Other,
}

/// What became of an ephemeral message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EphemeralOutcome {
    /// Handed to at least one open Listen.
    Handed,
    /// No Listen was open on the channel.
    NoConsumer,
    /// Every open Listen was too far behind.
    Busy,
    /// An outcome that this version does not know.
    Other,
}
