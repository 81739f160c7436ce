//! One lane as its sender sees it: which rows are in memory, which of them are
//! on the link, and which are acknowledged.

use std::collections::VecDeque;

use super::{Millis, sender::early::Early};
use crate::{
    types::{Content, Epoch, Seq, Tag},
    wire::Limit,
};

/// Most lanes open on a link, on both sides: bounds what a peer can make the
/// other remember.
pub const MAX_OPEN_LANES: usize = 4096;

/// Bytes of one lane that are in memory, on the link or about to be: enough to
/// fill 100 Mbit/s over 300 ms.
pub(super) const LANE_WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Rows of one lane in memory: small messages must not make the window huge.
pub(super) const LANE_WINDOW_ROWS: usize = 8192;

/// First and last wait before a refused lane is tried again, if the peer does
/// not say that it is ready.
const RETRY_MS: std::ops::RangeInclusive<Millis> = 2_000..=60_000;

/// A lane that was refused twice with nothing taken in between waits for this
/// part of its wait although the peer says that it is ready: what is refused was
/// sent for nothing, at this side's cost.
const READY_PART: Millis = 16;

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRow {
    /// Position in the lane.
    pub seq: Seq,
    /// Random mark.
    pub tag: Tag,
    /// When its time to live ends.
    pub expires_at: Millis,
    /// Until when no relay may carry it, see [`crate::types::PathPolicy::until`].
    pub direct_until: Millis,
    /// What stands there.
    pub body: RowBody,
}

/// What stands at a position of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowBody {
    /// A message.
    Message(Content),
    /// A message that is not to be sent any more.
    Tombstone {
        /// Its id.
        id: String,
    },
    /// Nothing that the peer could have seen, from a position up to the row's.
    Hole {
        /// The first position.
        from: Seq,
    },
}

impl OutRow {
    /// Bytes it counts for in windows and queues.
    #[must_use]
    pub fn cost(&self) -> u64 {
        match &self.body {
            RowBody::Message(content) => content.cost(),
            RowBody::Tombstone { id } => id.len() as u64 + 128,
            RowBody::Hole { .. } => 128,
        }
    }

    /// Whether no relay may carry it yet.
    pub(super) fn waits_for_direct(&self, now: Millis) -> bool {
        matches!(self.body, RowBody::Message(_)) && now < self.direct_until
    }

    /// The first position that it stands for.
    #[must_use]
    pub fn first(&self) -> Seq {
        match self.body {
            RowBody::Hole { from } => from,
            _ => self.seq,
        }
    }
}

/// What a lane is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not open on a link.
    Closed,
    /// OPEN is sent.
    Opening,
    /// The peer said where it stands; the store is asked what it knows.
    Preparing { request: u64, high: Seq, inherited: Seq, floor: Seq, tag: Tag },
    /// The store gives it a new epoch.
    Renumbering,
    /// Messages flow.
    Flowing,
    /// The peer refused it.
    Full { limit: Limit, retry_at: Millis },
    /// The peer takes no more lanes; it is opened anew later.
    Barred { limit: Limit, retry_at: Millis },
}

/// A row in memory.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) row: OutRow,
    /// Whether the peer has the message if it acknowledges the row: yes when it
    /// is on this link as one, although it became a tombstone since; as the
    /// peer says when it is there as a gap.
    pub(super) stored: Option<bool>,
}

/// A row that waits for a direct link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Direct {
    pub(super) seq: Seq,
    pub(super) until: Millis,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) epoch: Epoch,
    /// See [`crate::wire::Open::previous`].
    pub(super) previous: Vec<(Epoch, Seq)>,
    pub(super) phase: Phase,
    /// Number on the link, while not closed.
    pub(super) number: u32,
    pub(super) acked: Seq,
    /// Last position that the store has.
    pub(super) last: Seq,
    /// Its epoch was just made, so the peer cannot know it.
    pub(super) minted: bool,
    /// Next position to send on this link.
    pub(super) next: Seq,
    /// Rows from `acked + 1` on, with no position left out.
    rows: VecDeque<Held>,
    pub(super) bytes: u64,
    /// A load is under way.
    pub(super) loading: bool,
    /// Rows that became tombstones meanwhile; what is loaded may not say so.
    pub(super) late: Vec<(Seq, String)>,
    /// Waits for the store to make a row a tombstone before it goes on.
    pub(super) blocked_at: Option<Seq>,
    /// The next row waits for a direct link, until then at most. It and those
    /// behind it are not in memory, which is for lanes that move.
    pub(super) waits: Option<Direct>,
    /// Rows that may be on the link unacknowledged: one when a refused lane
    /// is tried again, and twice as many with every acknowledgement.
    credit: usize,
    /// Last wait of a refused lane; 0 once something was taken.
    backoff: Millis,
    /// When it was refused last.
    refused_at: Millis,
    /// There are messages whose outcome only the peer knows.
    pub(super) unresolved: bool,
    /// Those of them that it was asked about on this link.
    pub(super) asked: usize,
    /// There are more to ask about once those are answered.
    pub(super) ask_again: bool,
    /// Messages flowed in this epoch, which the peer therefore knows.
    pub(super) flowed: bool,
    /// What was sent before the lane was open.
    pub(super) early: Early,
}

impl Lane {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            previous: Vec::new(),
            phase: Phase::Closed,
            number: 0,
            acked: 0,
            last: 0,
            minted: false,
            next: 1,
            rows: VecDeque::new(),
            bytes: 0,
            loading: false,
            late: Vec::new(),
            blocked_at: None,
            waits: None,
            credit: usize::MAX,
            backoff: 0,
            refused_at: 0,
            unresolved: false,
            asked: 0,
            ask_again: false,
            flowed: false,
            early: Early::default(),
        }
    }

    /// Forgets all that belongs to a link; the store has every row.
    pub(super) fn close(&mut self) {
        if self.phase != Phase::Renumbering {
            self.phase = Phase::Closed;
        }
        self.number = 0;
        self.credit = if self.backoff == 0 { usize::MAX } else { 1 };
        self.asked = 0;
        self.ask_again = false;
        self.early = Early::default();
        self.forget_rows();
    }

    /// It was refused, or waits for something: one row at a time.
    pub(super) fn is_cautious(&self) -> bool {
        self.backoff > 0 || self.minted
    }

    /// Drops the rows in memory and begins again after `acked`.
    pub(super) fn forget_rows(&mut self) {
        self.rows.clear();
        self.bytes = 0;
        self.blocked_at = None;
        self.waits = None;
        self.next = self.acked + 1;
    }

    /// Number of rows in memory.
    pub(super) fn held(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn loaded_to(&self) -> Seq {
        self.rows.back().map_or(self.acked, |held| held.row.seq)
    }

    /// There is something the peer has to hear about.
    pub(super) fn is_pending(&self) -> bool {
        self.last > self.acked || self.unresolved
    }

    /// The peer owes an answer to something that is on the link.
    pub(super) fn awaits_answer(&self) -> bool {
        let in_flight = self.next > self.acked + 1;
        self.asked > 0 || self.phase == Phase::Opening || (self.phase == Phase::Flowing && in_flight)
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes < LANE_WINDOW_BYTES && self.rows.len() < LANE_WINDOW_ROWS
    }

    /// Takes a row if it is the next one; says whether it did.
    pub(super) fn push(&mut self, row: OutRow) -> bool {
        self.last = self.last.max(row.seq);
        if row.first() != self.loaded_to() + 1 {
            return false;
        }
        self.bytes += row.cost();
        self.rows.push_back(Held { row, stored: None });
        true
    }

    /// Index of the row that stands for a position, if that is in memory.
    fn index(&self, seq: Seq) -> usize {
        let direct = usize::try_from(seq.saturating_sub(self.acked + 1)).unwrap_or(usize::MAX);
        match self.rows.get(direct) {
            Some(held) if held.row.seq == seq => direct,
            _ => self.rows.partition_point(|held| held.row.seq < seq),
        }
    }

    /// The row that stands for a position.
    pub(super) fn get_mut(&mut self, seq: Seq) -> Option<&mut Held> {
        if seq <= self.acked {
            return None;
        }
        let index = self.index(seq);
        self.rows.get_mut(index)
    }

    /// Whether no row stands for this position and the next one.
    pub(super) fn ends_row(&self, seq: Seq) -> bool {
        self.rows.get(self.index(seq)).is_none_or(|held| held.row.seq == seq)
    }

    /// Whether the next row may go on the link now.
    pub(super) fn may_send(&self) -> bool {
        let in_flight = self.index(self.next);
        self.phase == Phase::Flowing
            && self.blocked_at.is_none()
            && in_flight < self.credit
            && self.next <= self.loaded_to()
    }

    /// On a relayed link: if the next row may not go there, forgets it and those
    /// behind it until it may. Returns whether that is so.
    pub(super) fn wait_for_direct(&mut self, now: Millis) -> bool {
        let index = self.index(self.next);
        let Some(held) = self.rows.get(index).filter(|held| held.row.waits_for_direct(now)) else { return false };
        self.waits = Some(Direct { seq: held.row.seq, until: held.row.direct_until });
        let dropped: u64 = self.rows.drain(index..).map(|held| held.row.cost()).sum();
        self.bytes = self.bytes.saturating_sub(dropped);
        true
    }

    /// Marks a row as not to be sent any more.
    pub(super) fn bury(&mut self, seq: Seq, id: &str) {
        // It is told to do without it, for which any link will do.
        self.waits.take_if(|waits| waits.seq == seq);
        if self.blocked_at == Some(seq) {
            self.blocked_at = None;
        }
        if let Some(held) = self.get_mut(seq) {
            if !matches!(held.row.body, RowBody::Message(_)) {
                return;
            }
            let before = held.row.cost();
            held.row.body = RowBody::Tombstone { id: id.to_owned() };
            let after = held.row.cost();
            self.bytes = (self.bytes + after).saturating_sub(before);
        } else if self.loading {
            self.late.push((seq, id.to_owned()));
        }
    }

    /// Takes an acknowledgement up to `high`, which must be on the link.
    /// Returns the tag of the last row and, of messages that are tombstones
    /// here, whether the peer has them.
    pub(super) fn acknowledge(&mut self, high: Seq) -> (Tag, Vec<(String, bool)>) {
        let mut tag = 0;
        let mut outcomes = Vec::new();
        while self.acked < high {
            let Some(held) = self.rows.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(held.row.cost());
            self.acked = held.row.seq;
            tag = held.row.tag;
            if let (Some(stored), RowBody::Tombstone { id }) = (held.stored, held.row.body) {
                outcomes.push((id, stored));
            }
        }
        self.credit = self.credit.saturating_mul(2);
        self.backoff = 0;
        (tag, outcomes)
    }

    /// Keeps what the peer says of a tombstone until it acknowledges that, as
    /// what is not acknowledged does not count as lost when the peer's store is
    /// replaced by an older copy. Says whether there is such a row.
    pub(super) fn told(&mut self, id: &str, stored: bool) -> bool {
        let is_it = |held: &&mut Held| matches!(&held.row.body, RowBody::Tombstone { id: other } if other == id);
        let held = self.rows.iter_mut().find(is_it);
        held.map(|held| held.stored = Some(stored)).is_some()
    }

    fn back_off(&mut self) {
        self.backoff = (self.backoff * 2).clamp(*RETRY_MS.start(), *RETRY_MS.end());
    }

    /// The peer does not take the lane.
    pub(super) fn bar(&mut self, limit: Limit, now: Millis) {
        self.back_off();
        self.phase = Phase::Barred { limit, retry_at: now + self.backoff };
    }

    /// The peer took nothing from `next` on.
    pub(super) fn refuse(&mut self, next: Seq, limit: Limit, now: Millis) {
        self.back_off();
        let refused = self.index(next)..self.index(self.next).min(self.rows.len());
        for held in self.rows.range_mut(refused) {
            held.stored = None;
        }
        self.next = next;
        self.refused_at = now;
        self.phase = Phase::Full { limit, retry_at: now + self.backoff };
    }

    /// The peer, or time, says that a refused lane may go on. One row only: the
    /// peer may still be full.
    pub(super) fn resume(&mut self) {
        self.phase = Phase::Flowing;
        self.credit = 1;
    }

    /// When a refused lane goes on if the peer says that it is ready.
    pub(super) fn ready_at(&self) -> Millis {
        let again = self.backoff > *RETRY_MS.start();
        self.refused_at + if again { self.backoff / READY_PART } else { 0 }
    }
}
