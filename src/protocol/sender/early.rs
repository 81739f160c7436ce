//! The first messages of a lane, sent before the peer has said where it stands.
//!
//! That saves the round trip of OPEN and LANE_STATE where a connection was made
//! because something waits. Each such message names the tag before it, so that
//! the peer takes it only where it fits; it is sent again once the lane is
//! open, and whatever the peer has by then it drops. So nothing depends on what
//! became of it, except that the acknowledgement may come early too.

use super::{Prepared, Sender, SenderEffect};
use crate::{
    protocol::lane::{OutRow, Phase, RowBody},
    types::{Channel, Seq, Tag},
    wire::{Data, Forward},
};

/// Rows sent early: what is there when a connection is made for it.
pub(super) const MAX_EARLY_ROWS: usize = 16;
/// Their bytes.
const MAX_EARLY_BYTES: u64 = 16 * 1024;
/// The largest message that every peer takes, for one that has not said.
const SURE_BYTES: u64 = *crate::types::MESSAGE_BYTES_RANGE.start();

/// What a lane sent early on this link.
#[derive(Debug, Default)]
pub(in crate::protocol) struct Early {
    /// What the store is asked first.
    request: Option<u64>,
    /// The store was asked for the rows.
    loading: bool,
    /// Tag of the row before the next.
    after: Tag,
    /// Position and tag of what was sent, in order.
    sent: Vec<(Seq, Tag)>,
    /// The peer acknowledged up to here, before the lane was open.
    acked: Seq,
}

impl Early {
    /// A row may be with the peer for having been sent early.
    pub(in crate::protocol) fn covers(&self, seq: Seq) -> bool {
        self.sent.iter().any(|(sent, _)| *sent == seq)
    }
}

impl Sender {
    /// Begins, for a lane whose OPEN was just sent. Only where the peer most
    /// likely stands where this side believes: on a lane that is new, or that
    /// flowed before in this epoch.
    pub(super) fn begin_early(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let fresh = lane.acked == 0 && lane.previous.is_empty();
        if !(fresh || lane.flowed) || lane.last <= lane.acked || lane.unresolved || lane.loading || lane.is_cautious() {
            return;
        }
        self.requests += 1;
        let (request, epoch, high) = (self.requests, lane.epoch, lane.acked);
        lane.early.request = Some(request);
        let channel = channel.clone();
        self.effects.push_back(SenderEffect::Prepare { channel, epoch, request, high, gaps: Vec::new() });
    }

    /// The store has marked the rows as possibly seen; says whether that was
    /// asked for here.
    pub(super) fn prepared_early(&mut self, channel: &Channel, request: u64, info: &Prepared) -> bool {
        let Some(lane) = self.lanes.get_mut(channel).filter(|lane| lane.early.request == Some(request)) else {
            return false;
        };
        lane.early.request = None;
        let as_believed = info.acked == lane.acked && info.unresolved.is_empty() && info.last > info.acked;
        if lane.phase == Phase::Opening && as_believed && !lane.loading {
            lane.early.after = info.acked_tag;
            (lane.loading, lane.early.loading) = (true, true);
            let (epoch, from) = (lane.epoch, lane.acked + 1);
            let (max_bytes, max_rows) = (MAX_EARLY_BYTES, MAX_EARLY_ROWS);
            let channel = channel.clone();
            self.effects.push_back(SenderEffect::Load { channel, epoch, from, max_bytes, max_rows });
        }
        true
    }

    /// Sends rows that were loaded while the lane is being opened.
    pub(super) fn send_early(&mut self, channel: &Channel, rows: Vec<OutRow>) {
        let (now, max_bytes) = (self.now, self.peer_takes.unwrap_or(SURE_BYTES));
        let Some((link, relayed)) = self.link.as_ref().map(|link| (link.number, link.relayed)) else { return };
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let asked_here = std::mem::take(&mut lane.early.loading);
        // Some of them are not to be sent any more: not worth the care.
        let late = !std::mem::take(&mut lane.late).is_empty();
        if !asked_here || late {
            return;
        }
        for (row, seq) in rows.into_iter().zip(lane.acked + 1..) {
            if relayed && row.waits_for_direct(now) {
                return;
            }
            let RowBody::Message(content) = row.body else { return };
            if row.seq != seq || content.payload.len() as u64 > max_bytes {
                return;
            }
            let after = Some(std::mem::replace(&mut lane.early.after, row.tag));
            lane.early.sent.push((seq, row.tag));
            let ttl_left_ms = row.expires_at.saturating_sub(now).max(1);
            let data = Data { lane: lane.number, seq, tag: row.tag, ttl_left_ms, after, content };
            self.effects.push_back(SenderEffect::Send(link, Forward::Data(data)));
        }
    }

    /// An acknowledgement came of something that was only sent early; says
    /// whether that can be.
    pub(super) fn ack_early(&mut self, channel: &Channel, high: Seq) -> bool {
        let Some(lane) = self.lanes.get_mut(channel).filter(|lane| lane.early.covers(high)) else { return false };
        lane.early.acked = lane.early.acked.max(high);
        if !matches!(lane.phase, Phase::Preparing { .. }) {
            self.settle_early(channel);
            self.pump(channel);
        }
        true
    }

    /// The lane was compared: what was acknowledged early counts.
    pub(super) fn settle_early(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get(channel) else { return };
        let acked = lane.early.acked;
        if let Some((_, tag)) = lane.early.sent.iter().find(|(seq, _)| *seq == acked) {
            let tag = *tag;
            self.catch_up(channel, acked, tag);
        }
    }
}
