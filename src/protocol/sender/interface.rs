//! What goes into a [`super::Sender`] and what comes out.

use std::sync::Arc;

use super::super::{LinkNumber, Millis, lane::OutRow};
use crate::{
    types::{Channel, Content, Epoch, Presence, Route, Seq, Tag},
    wire::{Back, EphemeralOutcome, Forward, Refusal},
};

/// A lane as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneInfo {
    /// The channel.
    pub channel: Channel,
    /// Its present numbering.
    pub epoch: Epoch,
    /// See [`crate::wire::Open::previous`].
    pub previous: Vec<(Epoch, Seq)>,
    /// All up to here was acknowledged.
    pub acked: Seq,
    /// Last position used.
    pub last: Seq,
    /// Ids exist whose outcome only the peer knows.
    pub unresolved: bool,
}

/// The store's answer to [`SenderEffect::Prepare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// All up to here was acknowledged and is gone.
    pub acked: Seq,
    /// Tag of the row that was there.
    pub acked_tag: Tag,
    /// Last position used.
    pub last: Seq,
    /// Tag of the row at the position asked for, if it is still kept.
    pub tag_at: Option<Tag>,
    /// A position after `acked` that is a gap for the peer is a message here.
    pub gap_is_message: bool,
    /// Positions, in order, and ids of messages at or below the position asked
    /// for, or acknowledged, whose outcome only the peer knows: at most a
    /// bounded number.
    pub unresolved: Vec<(Seq, String)>,
    /// There are more of those.
    pub more_unresolved: bool,
}

/// What happens to a sender.
#[derive(Debug)]
pub enum SenderInput {
    /// A link is open, and how it runs; it replaces the one before, which
    /// stays open for answers until [`SenderEffect::Close`] names it.
    LinkUp(LinkNumber, Route),
    /// A link is gone.
    LinkDown(LinkNumber),
    /// A frame came.
    Frame(LinkNumber, Back),
    /// These lanes are in the store; all of them, when the machine is new.
    Lanes(Vec<LaneInfo>),
    /// The store took a new row.
    Appended {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// The row.
        row: OutRow,
    },
    /// Answer to [`SenderEffect::Load`]: rows in order, as many as fitted.
    Loaded {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// The rows.
        rows: Vec<OutRow>,
    },
    /// Answer to [`SenderEffect::Prepare`]; `None` if there is no such lane in
    /// this epoch.
    Prepared {
        /// The lane's channel.
        channel: Channel,
        /// As in the question.
        request: u64,
        /// What the store knows.
        info: Option<Prepared>,
    },
    /// Answer to [`SenderEffect::Renumber`].
    Renumbered(LaneInfo),
    /// A store operation failed; the link is closed and all begins anew.
    StoreFailed,
    /// A row became a tombstone.
    Buried {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// The row's position.
        seq: Seq,
        /// The message's id.
        id: String,
    },
    /// Rows became tombstones, too many to name: lanes that are open are
    /// compared and read anew. The others need [`SenderInput::Lanes`].
    Recheck,
    /// An ephemeral message to send.
    Ephemeral {
        /// Names it in [`SenderEffect::EphemeralDone`].
        key: u64,
        /// The channel.
        channel: Channel,
        /// The message.
        content: Content,
        /// Until when no relay may carry it, see [`crate::types::PathPolicy::until`].
        direct_until: Millis,
        /// How long it may wait for a link.
        deadline: Millis,
    },
    /// What this node is; replaces what was said before.
    Presence(Arc<Presence>),
    /// Time passed.
    Tick,
}

/// What a sender wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum SenderEffect {
    /// Write a frame.
    Send(LinkNumber, Forward),
    /// Close a link; the text is for the log.
    Close(LinkNumber, &'static str),
    /// Store: mark all rows of a lane, and those to come while the link is
    /// up, as possibly seen by the peer, and tell what is known.
    Prepare {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// Matches the answer.
        request: u64,
        /// The position whose tag is asked for.
        high: Seq,
        /// Positions where the peer has no message, first and last of each.
        gaps: Vec<(Seq, Seq)>,
    },
    /// Store: the link is gone; rows to come are not seen by the peer.
    Hide,
    /// Store: tell anew which lanes there are.
    Rescan,
    /// Store: read rows from a position on.
    Load {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// First position.
        from: Seq,
        /// Stop once so many bytes are read; at least one row.
        max_bytes: u64,
        /// Most rows.
        max_rows: usize,
    },
    /// Store: all up to a position is on the peer's disk.
    Acked {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// The position.
        seq: Seq,
        /// Tag of the row there.
        tag: Tag,
        /// How many positions are new to it.
        count: u64,
    },
    /// Store: the peer told whether it has a message that became a tombstone.
    Resolved {
        /// The lane's channel.
        channel: Channel,
        /// The message.
        id: String,
        /// It was stored.
        stored: bool,
    },
    /// Store: give a lane a new epoch; its rows keep their positions, and all
    /// of them may have been seen by the peer.
    Renumber {
        /// The lane's channel.
        channel: Channel,
        /// The numbering to leave.
        epoch: Epoch,
    },
    /// Store: count messages that the peer's older store does not have.
    Lost {
        /// The lane's channel.
        channel: Channel,
        /// How many.
        count: u64,
    },
    /// Store: the peer takes no message of this size; make it a tombstone.
    Reject {
        /// The lane's channel.
        channel: Channel,
        /// Its numbering.
        epoch: Epoch,
        /// Its position.
        seq: Seq,
        /// What the peer takes at most.
        max_message_bytes: u64,
    },
    /// What became of an ephemeral message.
    EphemeralDone(u64, EphemeralEnd),
}

/// What became of an ephemeral message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EphemeralEnd {
    /// The peer answered.
    Answered(EphemeralOutcome),
    /// No link came up in time.
    Unreachable,
    /// Only a relayed link was up, and it waited for a direct one.
    OnlyRelayed,
    /// The peer does not trust this node.
    Untrusted,
    /// The link broke before the answer.
    LinkLost,
    /// Too many are under way.
    QueueFull,
    /// The peer takes at most so many bytes.
    TooLarge(u64),
}

/// How things stand with the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// No link.
    Down,
    /// HELLO is not answered yet.
    Greeting,
    /// It takes nothing from this node.
    Refused(Refusal),
    /// Messages flow.
    Up,
}
