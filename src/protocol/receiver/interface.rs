//! What goes into a [`super::Receiver`] and what comes out.

use crate::{
    protocol::LinkNumber,
    types::{Channel, Content, Epoch, Presence, Seq, Tag},
    wire::{Back, EphemeralOutcome, Forward, Limit},
};

/// One position of a lane, or a gap in it, to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// The lane's channel.
    pub channel: Channel,
    /// The lane's numbering.
    pub epoch: Epoch,
    /// First position.
    pub seq: Seq,
    /// Tag of the (last) position.
    pub tag: Tag,
    /// What stands there.
    pub kind: InboundKind,
}

/// What stands at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundKind {
    /// A message.
    Message {
        /// The message.
        content: Content,
    },
    /// Nothing, up to and including `to`.
    Gap {
        /// Last position of the gap.
        to: Seq,
        /// The messages were stored here once, and are lost.
        lost: bool,
        /// The message that would have stood here.
        id: Option<String>,
    },
}

/// What a batch did to one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLane {
    /// The lane's channel.
    pub channel: Channel,
    /// The lane's numbering.
    pub epoch: Epoch,
    /// Highest contiguous position on disk.
    pub high: Seq,
    /// The limit that refused the position after `high`.
    pub refused: Option<Limit>,
    /// Of gaps with an id: whether that message was stored once.
    pub outcomes: Vec<(String, bool)>,
}

/// Where a lane stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Highest contiguous position on disk; 0 for a new lane.
    pub high: Seq,
    /// Tag there.
    pub tag: Tag,
    /// See [`crate::wire::LaneState::gaps`].
    pub gaps: Vec<(Seq, Seq)>,
    /// See [`crate::wire::LaneState::inherited`].
    pub inherited: Seq,
    /// See [`crate::wire::LaneState::floor`].
    pub floor: Seq,
}

/// What happens to a receiver.
#[derive(Debug)]
pub enum ReceiverInput {
    /// A link is open; it replaces the one before. That stays open for the
    /// ephemeral messages that are under way on it, until the sender closes it,
    /// the next one is replaced, or [`ReceiverEffect::Close`] names it.
    LinkUp(LinkNumber),
    /// A link is gone.
    LinkDown(LinkNumber),
    /// A frame came.
    Frame(LinkNumber, Forward),
    /// The frames at hand are all taken.
    Flush,
    /// Whether the peer may send.
    Trust(bool),
    /// Answer to [`ReceiverEffect::OpenLane`].
    LaneOpened {
        /// The link it was asked on.
        link: LinkNumber,
        /// The lane's number there.
        lane: u32,
        /// Where it stands, or the limit that refuses it.
        state: Result<Accepted, Limit>,
    },
    /// Answer to [`ReceiverEffect::Lookup`].
    LookedUp {
        /// The link it was asked on.
        link: LinkNumber,
        /// The lane's number there.
        lane: u32,
        /// The message.
        id: String,
        /// It was stored here.
        stored: bool,
    },
    /// A batch is on disk, as far as it was not refused.
    Committed(Vec<BatchLane>),
    /// A batch, or another operation, failed: nothing of it is on disk.
    StoreFailed,
    /// The inbox has room again.
    Room,
    /// An ephemeral message was handed on, or not.
    EphemeralDone {
        /// The link it came on.
        link: LinkNumber,
        /// Its number there.
        number: u64,
        /// What became of it.
        outcome: EphemeralOutcome,
    },
}

/// What a receiver wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum ReceiverEffect {
    /// Write a frame.
    Send(LinkNumber, Back),
    /// Close a link; the text is for the log.
    Close(LinkNumber, &'static str),
    /// Store: where does this lane stand, after all batches asked for before?
    OpenLane {
        /// Matches the answer.
        link: LinkNumber,
        /// Matches the answer.
        lane: u32,
        /// The channel.
        channel: Channel,
        /// The numbering.
        epoch: Epoch,
        /// See [`crate::wire::Open::previous`].
        previous: Vec<(Epoch, Seq)>,
    },
    /// Store: commit a batch.
    Commit(Vec<Inbound>),
    /// Store: was this message ever stored here?
    Lookup {
        /// Matches the answer.
        link: LinkNumber,
        /// Matches the answer.
        lane: u32,
        /// The channel.
        channel: Channel,
        /// The message.
        id: String,
    },
    /// The peer told what it is, perhaps several times since the last
    /// [`ReceiverInput::Flush`]; replaces what it told before.
    Presence {
        /// The link it came on.
        link: LinkNumber,
        /// As told last.
        presence: Presence,
    },
    /// Hand an ephemeral message to whoever listens.
    Ephemeral {
        /// Matches the answer.
        link: LinkNumber,
        /// Matches the answer.
        number: u64,
        /// The channel.
        channel: Channel,
        /// The message.
        content: Content,
    },
}
