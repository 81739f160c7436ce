//! Opening a lane on a link: what the peer has is compared with what the store
//! knows, and the lane goes on from there.

use super::{LaneInfo, PeerState, Prepared, Sender, SenderEffect};
use crate::{
    protocol::lane::{Lane, MAX_OPEN_LANES, Phase},
    types::{Channel, Seq, Tag},
    wire::{Forward, LaneState, Open, Query, Skip},
};

impl Sender {
    /// Opens lanes that are done too: the peer may have been restored to a
    /// time before it got what it acknowledged.
    pub(super) fn open_all(&mut self) {
        let channels: Vec<Channel> = self.lanes.keys().cloned().collect();
        for channel in channels {
            self.open(&channel);
        }
    }

    pub(super) fn open(&mut self, channel: &Channel) {
        let Some(link) = self.link.as_mut() else { return };
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.phase != Phase::Closed
            || link.numbers.len() >= MAX_OPEN_LANES
            || !matches!(link.state, PeerState::Greeting | PeerState::Up)
        {
            return;
        }
        link.next_lane += 1;
        link.numbers.insert(link.next_lane, channel.clone());
        lane.number = link.next_lane;
        lane.phase = Phase::Opening;
        let (lane, epoch, previous) = (lane.number, lane.epoch, lane.previous.clone());
        let open = Open { lane, channel: channel.clone(), epoch, previous };
        self.send(Forward::Open(open));
        self.begin_early(channel);
    }

    /// Opens a lane anew on the same link, to compare once more.
    pub(super) fn reopen(&mut self, channel: &Channel) {
        if let (Some(lane), Some(link)) = (self.lanes.get_mut(channel), self.link.as_mut()) {
            link.numbers.remove(&lane.number);
            self.held_moved |= lane.waits.is_some();
            lane.close();
            self.open(channel);
        }
    }

    pub(super) fn lane_state(&mut self, state: LaneState) {
        let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, state.lane) else { return };
        if lane.phase != Phase::Opening {
            return self.violation("LANE_STATE without OPEN");
        }
        self.requests += 1;
        let LaneState { high, inherited, floor, tag, gaps, .. } = state;
        let (request, epoch) = (self.requests, lane.epoch);
        lane.phase = Phase::Preparing { request, high, inherited, floor, tag };
        let high = if high == 0 { inherited } else { high };
        self.effects.push_back(SenderEffect::Prepare { channel, epoch, request, high, gaps });
    }

    pub(super) fn prepared(&mut self, channel: &Channel, answered: u64, info: Option<Prepared>) {
        if let Some(info) = &info
            && self.prepared_early(channel, answered, info)
        {
            return;
        }
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let (Phase::Preparing { request, high, inherited, floor, tag }, Some(info)) = (lane.phase, info) else {
            return;
        };
        if request != answered {
            return; // The link that asked is gone.
        }
        lane.acked = info.acked;
        lane.last = lane.last.max(info.last);
        lane.forget_rows();
        let at = if high == 0 { inherited } else { high };
        let known_tag = if at == info.acked { Some(info.acked_tag) } else { info.tag_at };
        let same_history = at < info.acked || at == 0 || (known_tag == Some(tag) && !info.gap_is_message);
        match high {
            0 if same_history && inherited > info.acked && inherited <= info.last => {
                self.begin_epoch(channel, inherited, tag);
                self.catch_up(channel, inherited, tag);
            }
            0 => {
                let known = floor.min(info.acked);
                self.begin_epoch(channel, known, info.acked_tag);
                self.skip_lost(channel, known, &info);
            }
            _ if high > info.last || !same_history => return self.renumber(channel),
            _ if high < info.acked => self.skip_lost(channel, high, &info),
            _ => self.catch_up(channel, high, tag),
        }
        self.settle_early(channel);
        self.ask(channel, info.unresolved, info.more_unresolved);
        self.flow(channel);
    }

    /// The peer has rows of this epoch that this node never wrote, or was told
    /// to skip what is to be sent: this node's store was replaced by an older
    /// copy while it ran.
    pub(super) fn renumber(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.minted {
            return self.violation("rows of an epoch that was never used");
        }
        lane.phase = Phase::Renumbering;
        let epoch = lane.epoch;
        self.effects.push_back(SenderEffect::Renumber { channel: channel.clone(), epoch });
    }

    /// The peer has more than it acknowledged here.
    pub(super) fn catch_up(&mut self, channel: &Channel, high: Seq, tag: Tag) {
        let Some(lane) = self.lanes.get_mut(channel).filter(|lane| lane.acked < high) else { return };
        let (epoch, count) = (lane.epoch, high - lane.acked);
        lane.acked = high;
        self.held_moved |= lane.waits.is_some();
        lane.forget_rows();
        self.effects.push_back(SenderEffect::Acked { channel: channel.clone(), epoch, seq: high, tag, count });
    }

    /// The peer's store is an older copy of itself. The rows that it lacks are
    /// gone here, so it must be told to go on without them.
    pub(super) fn skip_lost(&mut self, channel: &Channel, high: Seq, info: &Prepared) {
        let Some(lane) = self.lanes.get(channel).filter(|_| high < info.acked) else { return };
        let skip =
            Skip { lane: lane.number, from: high + 1, to: info.acked, tag: info.acked_tag, lost: true, id: None };
        self.effects.push_back(SenderEffect::Lost { channel: channel.clone(), count: info.acked - high });
        self.send(Forward::Skip(skip));
    }

    /// Nothing of this epoch is at the peer: positions go on from those it has
    /// under the epochs before.
    pub(super) fn begin_epoch(&mut self, channel: &Channel, known: Seq, tag: Tag) {
        if let Some(lane) = self.lanes.get(channel).filter(|_| known > 0) {
            let skip = Skip { lane: lane.number, from: 1, to: known, tag, lost: false, id: None };
            self.send(Forward::Skip(skip));
        }
    }

    /// Asks what became of messages that turned into tombstones on the way. Of
    /// those that are not acknowledged the answer to their gaps will tell.
    pub(super) fn ask(&mut self, channel: &Channel, mut unresolved: Vec<(Seq, String)>, more: bool) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        let more = more && unresolved.last().is_some_and(|(seq, _)| *seq <= lane.acked);
        unresolved.retain(|(seq, _)| *seq <= lane.acked);
        lane.asked = unresolved.len();
        lane.unresolved = more || !unresolved.is_empty();
        lane.ask_again |= more;
        let number = lane.number;
        for (_, id) in unresolved {
            self.send(Forward::Query(Query { lane: number, id }));
        }
    }

    pub(super) fn flow(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        lane.phase = Phase::Flowing;
        lane.minted = false;
        lane.flowed = true;
        if lane.ask_again && lane.asked == 0 {
            return self.reopen(channel);
        }
        self.pump(channel);
    }

    pub(super) fn renumbered(&mut self, info: LaneInfo) {
        let channel = info.channel.clone();
        if let Some(lane) = self.lanes.get(&channel)
            && let Some(link) = self.link.as_mut()
        {
            link.numbers.remove(&lane.number);
        }
        let mut lane = Lane::new(info.epoch);
        lane.previous = info.previous;
        lane.minted = true;
        lane.acked = info.acked;
        lane.last = info.last;
        lane.forget_rows();
        lane.unresolved = info.unresolved;
        self.lanes.insert(channel.clone(), lane);
        self.open(&channel);
    }
}
