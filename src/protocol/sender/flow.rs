//! Rows on their way through a lane that is open, and the peer's answers.

use std::collections::BTreeMap;

use super::{LaneInfo, Live, PEER_WINDOW_BYTES, Sender, SenderEffect};
use crate::{
    protocol::Millis,
    protocol::lane::{LANE_WINDOW_BYTES, LANE_WINDOW_ROWS, Lane, OutRow, Phase, RowBody},
    types::{Channel, Epoch, NEVER_RELAYED, Seq},
    wire::{Data, Forward, Full, Outcome, Skip},
};

impl Sender {
    pub(super) fn lane_known(&mut self, info: LaneInfo) {
        let lane = self.lanes.entry(info.channel.clone()).or_insert_with(|| Lane::new(info.epoch));
        if lane.epoch != info.epoch {
            return; // From before a renumbering.
        }
        lane.previous = info.previous;
        lane.last = lane.last.max(info.last);
        if lane.phase == Phase::Closed {
            lane.acked = lane.acked.max(info.acked);
            lane.forget_rows();
            lane.unresolved |= info.unresolved;
        }
        self.open(&info.channel);
        self.load_if_wanted(&info.channel);
    }

    pub(super) fn appended(&mut self, channel: Channel, epoch: Epoch, row: OutRow) {
        let lane = self.lanes.entry(channel.clone()).or_insert_with(|| Lane::new(epoch));
        if lane.epoch != epoch {
            // It crossed a renumbering; the store knows its place.
            self.effects.push_back(SenderEffect::Rescan);
            return;
        }
        let loads = lane.loading || lane.waits.is_some();
        if lane.phase == Phase::Flowing && lane.has_room() && !loads && lane.last + 1 == row.seq {
            lane.push(row);
            self.pump(&channel);
        } else {
            lane.last = lane.last.max(row.seq);
            self.open(&channel);
            self.load_if_wanted(&channel);
        }
    }

    pub(super) fn loaded(&mut self, channel: &Channel, epoch: Epoch, rows: Vec<OutRow>) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.epoch != epoch {
            return;
        }
        lane.loading = false;
        if lane.phase == Phase::Opening {
            return self.send_early(channel, rows);
        }
        if !matches!(lane.phase, Phase::Flowing | Phase::Full { .. }) {
            return; // Asked for on a link that is gone.
        }
        for row in rows {
            lane.push(row);
        }
        for (seq, id) in std::mem::take(&mut lane.late) {
            lane.bury(seq, &id);
        }
        self.pump(channel);
    }

    pub(super) fn buried(&mut self, channel: &Channel, epoch: Epoch, seq: Seq, id: &str) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.epoch != epoch {
            return; // Renumbered since; the store has it.
        }
        if matches!(lane.phase, Phase::Preparing { .. }) {
            // The answer of the store may be older than this.
            lane.ask_again = true;
        }
        if seq > lane.acked {
            let waits = lane.waits;
            lane.bury(seq, id);
            self.held_moved |= lane.waits != waits;
            if lane.early.covers(seq) {
                // The peer may have it; it will not say so of itself.
                lane.unresolved = true;
                self.ask_anew(channel);
            }
            return self.pump(channel);
        }
        // It crossed the acknowledgement: the peer has it, or was told to do
        // without it. It knows.
        lane.unresolved = true;
        match lane.phase {
            Phase::Closed => self.open(channel),
            _ => self.ask_anew(channel),
        }
    }

    pub(super) fn recheck(&mut self) {
        let open = self.lanes.iter().filter(|(_, lane)| lane.phase != Phase::Closed);
        for channel in open.map(|(channel, _)| channel.clone()).collect::<Vec<_>>() {
            self.ask_anew(&channel);
        }
    }

    /// Compares an open lane once more, after the answers that it waits for.
    fn ask_anew(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        match lane.phase {
            Phase::Flowing | Phase::Full { .. } if lane.asked == 0 => self.reopen(channel),
            _ => lane.ask_again = true,
        }
    }

    pub(super) fn load_if_wanted(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get(channel) else { return };
        // Wait until half the window is free, so that rows are read in runs.
        let wanted = lane.phase == Phase::Flowing
            && !lane.loading
            && lane.waits.is_none()
            && lane.loaded_to() < lane.last
            && lane.bytes <= LANE_WINDOW_BYTES / 2
            && lane.held() <= LANE_WINDOW_ROWS / 2;
        if wanted
            && self.lanes.values().map(|lane| lane.bytes).sum::<u64>() < PEER_WINDOW_BYTES
            && let Some(lane) = self.lanes.get_mut(channel)
        {
            lane.loading = true;
            self.effects.push_back(SenderEffect::Load {
                channel: channel.clone(),
                epoch: lane.epoch,
                from: lane.loaded_to() + 1,
                max_bytes: LANE_WINDOW_BYTES - lane.bytes,
                max_rows: LANE_WINDOW_ROWS - lane.held(),
            });
        }
    }

    /// Sends what may be sent of a lane.
    pub(super) fn pump(&mut self, channel: &Channel) {
        let Some(link) = &self.link else { return };
        let (link_number, max_bytes, relayed) = (link.number, link.max_message_bytes, link.relayed);
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        while lane.may_send() {
            let (number, epoch, seq) = (lane.number, lane.epoch, lane.next);
            let now = self.now;
            if relayed && lane.wait_for_direct(now) {
                self.held_moved = true;
                break;
            }
            let Some(held) = lane.get_mut(seq) else { break };
            let (tag, ttl_left_ms) = (held.row.tag, held.row.expires_at.saturating_sub(now).max(1));
            let frame = match &held.row.body {
                RowBody::Message(content) if content.payload.len() as u64 > max_bytes => {
                    lane.blocked_at = Some(seq);
                    let channel = channel.clone();
                    let reject = SenderEffect::Reject { channel, epoch, seq, max_message_bytes: max_bytes };
                    self.effects.push_back(reject);
                    break;
                }
                RowBody::Message(content) => {
                    let content = content.clone();
                    held.stored = Some(true);
                    Forward::Data(Data { lane: number, seq, tag, ttl_left_ms, after: None, content })
                }
                RowBody::Tombstone { id } => {
                    let id = Some(id.clone()).filter(|id| !id.is_empty());
                    Forward::Skip(Skip { lane: number, from: seq, to: seq, tag, lost: false, id })
                }
                RowBody::Hole { from } => {
                    Forward::Skip(Skip { lane: number, from: *from, to: held.row.seq, tag, lost: false, id: None })
                }
            };
            lane.next = held.row.seq + 1;
            self.effects.push_back(SenderEffect::Send(link_number, frame));
        }
        self.load_if_wanted(channel);
    }

    /// When a row that waits for a direct link may go over any.
    pub(super) fn next_direct(&self) -> Option<Millis> {
        self.lanes
            .values()
            .filter_map(|lane| lane.waits)
            .map(|waits| waits.until)
            .filter(|until| *until < NEVER_RELAYED)
            .min()
    }

    /// Rows that waited long enough for a direct link go over any.
    pub(super) fn stop_waiting(&mut self, now: Millis) {
        let due = |lane: &Lane| lane.waits.is_some_and(|waits| waits.until <= now);
        let due: Vec<Channel> = self.lanes.iter().filter(|(_, lane)| due(lane)).map(|(c, _)| c.clone()).collect();
        for channel in due {
            if let Some(lane) = self.lanes.get_mut(&channel) {
                lane.waits = None;
                self.held_moved = true;
            }
            self.load_if_wanted(&channel);
        }
    }

    pub(super) fn by_number<'a>(
        link: &Option<Live>,
        lanes: &'a mut BTreeMap<Channel, Lane>,
        number: u32,
    ) -> Option<(Channel, &'a mut Lane)> {
        let channel = link.as_ref()?.numbers.get(&number)?.clone();
        let lane = lanes.get_mut(&channel).filter(|lane| lane.number == number)?;
        Some((channel, lane))
    }

    pub(super) fn ack(&mut self, number: u32, high: Seq) {
        let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, number) else { return };
        if high <= lane.acked {
            return; // The answer to a gap that was skipped, or late.
        }
        if high >= lane.next || !lane.ends_row(high) {
            return match self.ack_early(&channel, high) {
                true => {}
                false => self.violation("ACK of something not sent"),
            };
        }
        let (epoch, count) = (lane.epoch, high - lane.acked);
        let (tag, outcomes) = lane.acknowledge(high);
        self.effects.push_back(SenderEffect::Acked { channel: channel.clone(), epoch, seq: high, tag, count });
        for (id, stored) in outcomes {
            self.effects.push_back(SenderEffect::Resolved { channel: channel.clone(), id, stored });
        }
        self.pump(&channel);
        self.load_starved();
    }

    /// Lanes that found the peer's window full get their turn.
    pub(super) fn load_starved(&mut self) {
        if self.lanes.len() > 1 {
            let starved: Vec<Channel> = self
                .lanes
                .iter()
                .filter(|(_, lane)| lane.phase == Phase::Flowing && !lane.loading && lane.loaded_to() < lane.last)
                .map(|(channel, _)| channel.clone())
                .collect();
            starved.iter().for_each(|channel| self.load_if_wanted(channel));
        }
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) {
        let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, outcome.lane) else { return };
        if lane.told(&outcome.id, outcome.stored) {
            return;
        }
        lane.asked = lane.asked.saturating_sub(1);
        let (none_left, more) = (lane.asked == 0, lane.ask_again);
        lane.unresolved = more || !none_left;
        self.effects.push_back(SenderEffect::Resolved {
            channel: channel.clone(),
            id: outcome.id,
            stored: outcome.stored,
        });
        if none_left && more {
            self.reopen(&channel);
        }
    }

    pub(super) fn full(&mut self, full: &Full) {
        let now = self.now;
        let Some((_, lane)) = Self::by_number(&self.link, &mut self.lanes, full.lane) else { return };
        match lane.phase {
            // It does not even take the lane.
            Phase::Opening => lane.bar(full.limit, now),
            Phase::Flowing | Phase::Full { .. }
                if full.next > lane.acked
                    && full.next <= lane.next
                    && (full.next == lane.acked + 1 || lane.ends_row(full.next - 1)) =>
            {
                lane.refuse(full.next, full.limit, now);
            }
            // Of what was sent early, and will be sent again.
            Phase::Preparing { .. } if lane.early.covers(full.next) => {}
            _ => self.violation("FULL of something not sent"),
        }
    }

    pub(super) fn ready(&mut self, number: u32) {
        let now = self.now;
        let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, number) else { return };
        let Phase::Full { limit, retry_at } = lane.phase else { return };
        let ready_at = lane.ready_at();
        if ready_at <= now {
            lane.resume();
            self.pump(&channel);
        } else {
            lane.phase = Phase::Full { limit, retry_at: retry_at.min(ready_at) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::{Prepared, SenderInput},
        types::{Content, Route},
        wire::{Back, LaneState, Welcome},
    };

    /// Gives inputs to a sender with one link; what it does about each.
    fn handle(sender: &mut Sender, inputs: Vec<SenderInput>) -> Vec<SenderEffect> {
        inputs.into_iter().for_each(|input| sender.handle(0, input));
        std::iter::from_fn(|| sender.poll()).collect()
    }

    fn frame(frame: Back) -> SenderInput {
        SenderInput::Frame(1, frame)
    }

    fn opened(lane: u32, high: Seq) -> SenderInput {
        frame(Back::LaneState(LaneState { lane, high, inherited: 0, floor: 0, tag: high, gaps: Vec::new() }))
    }

    fn prepared(request: u64, unresolved: &[&str]) -> SenderInput {
        let unresolved = unresolved.iter().map(|id| (1, id.to_string())).collect();
        let (acked, acked_tag, last, tag_at) = (0, 0, 2, Some(1));
        let info =
            Prepared { acked, acked_tag, last, tag_at, gap_is_message: false, unresolved, more_unresolved: false };
        SenderInput::Prepared { channel: "".into(), request, info: Some(info) }
    }

    fn row(seq: Seq, body: RowBody) -> OutRow {
        OutRow { seq, tag: seq, expires_at: 1000, direct_until: 0, body }
    }

    #[test]
    fn a_lane_that_the_peer_does_not_take_is_opened_anew_later() {
        let mut sender = Sender::new();
        let full = |lane| frame(Back::Full(Full { lane, next: 1, limit: crate::wire::Limit::Lanes }));
        let body = RowBody::Message(Content::default());
        let first = vec![
            SenderInput::LinkUp(1, Route::Direct),
            frame(Back::Welcome(Welcome { version: 1, features: 0, max_message_bytes: 1000 })),
            SenderInput::Appended { channel: "".into(), epoch: 7, row: row(1, body) },
            full(1),
        ];
        handle(&mut sender, first);
        let mut waits = Vec::new();
        for lane in 2..9 {
            let (at, before) = (sender.next_tick().unwrap(), sender.now);
            waits.push(at - before);
            assert_eq!(sender.refusals().count(), 1);
            sender.handle(at, SenderInput::Tick);
            let sent = sender.poll();
            assert!(matches!(&sent, Some(SenderEffect::Send(1, Forward::Open(open))) if open.lane == lane), "{sent:?}");
            handle(&mut sender, vec![full(lane)]);
        }
        assert_eq!(waits, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
    }

    fn up(route: Route) -> Vec<SenderInput> {
        let welcome = Welcome { version: 1, features: 0, max_message_bytes: 1000 };
        vec![SenderInput::LinkUp(1, route), frame(Back::Welcome(welcome))]
    }

    /// Positions sent as messages, and as gaps.
    fn sent(effects: &[SenderEffect]) -> (Vec<Seq>, Vec<Seq>) {
        let (mut data, mut gaps) = (Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                SenderEffect::Send(_, Forward::Data(message)) => data.push(message.seq),
                SenderEffect::Send(_, Forward::Skip(skip)) => gaps.push(skip.from),
                _ => {}
            }
        }
        (data, gaps)
    }

    /// Opens the lane of a channel that has these rows.
    fn open(sender: &mut Sender, channel: &str, lane: u32, rows: Vec<OutRow>) -> Vec<SenderEffect> {
        let (channel, epoch) = (Channel::from(channel), 7);
        let (acked, acked_tag, last, tag_at) = (0, 0, rows.len() as u64, None);
        let (unresolved, more_unresolved, gap_is_message) = (Vec::new(), false, false);
        let info = Prepared { acked, acked_tag, last, tag_at, gap_is_message, unresolved, more_unresolved };
        let first = rows[0].clone();
        let inputs = vec![
            SenderInput::Appended { channel: channel.clone(), epoch, row: OutRow { seq: last, ..first } },
            opened(lane, 0),
            // The first question was about what can be sent early.
            SenderInput::Prepared { channel: channel.clone(), request: 2 * u64::from(lane), info: Some(info) },
            SenderInput::Loaded { channel, epoch, rows },
        ];
        handle(sender, inputs)
    }

    fn text(seq: Seq, direct_until: Millis) -> OutRow {
        let content = Content { id: seq.to_string(), ..Content::default() };
        OutRow { direct_until, ..row(seq, RowBody::Message(content)) }
    }

    #[test]
    fn what_waits_for_a_direct_link_holds_its_lane_and_no_other() {
        let mut sender = Sender::new();
        handle(&mut sender, up(Route::Relayed));
        let first = open(&mut sender, "a", 1, vec![text(1, 0), text(2, NEVER_RELAYED), text(3, 0)]);
        assert_eq!(sent(&first).0, [1]);
        assert_eq!(sender.take_held(), Some(vec![(Channel::from("a"), 2)]));
        assert_eq!(sent(&open(&mut sender, "b", 2, vec![text(1, 0), text(2, 0)])).0, [1, 2]);
        // What is held takes no room in memory, nor does what comes behind it.
        let behind = SenderInput::Appended { channel: "a".into(), epoch: 7, row: text(4, 0) };
        assert_eq!(handle(&mut sender, vec![behind]), []);
        assert_eq!(sender.lanes["a"].held(), 1);
        assert_eq!((sender.next_tick(), sender.take_held()), (None, None));
        // Taken back, it is in nobody's way.
        let buried = SenderInput::Buried { channel: "a".into(), epoch: 7, seq: 2, id: "2".into() };
        let asked = handle(&mut sender, vec![buried]);
        assert!(matches!(&asked[..], [SenderEffect::Load { from: 2, .. }]), "{asked:?}");
        assert_eq!(sender.take_held(), Some(Vec::new()));
        let rows = vec![row(2, RowBody::Tombstone { id: "2".into() }), text(3, 0), text(4, 0)];
        let told = handle(&mut sender, vec![SenderInput::Loaded { channel: "a".into(), epoch: 7, rows }]);
        assert_eq!(sent(&told), (vec![3, 4], vec![2]));
    }

    #[test]
    fn what_waits_for_a_direct_link_is_not_sent_early() {
        for (route, goes) in [(Route::Relayed, vec![1]), (Route::Direct, vec![1, 2, 3])] {
            let mut sender = Sender::new();
            handle(&mut sender, up(route));
            let (channel, epoch) = (Channel::from("a"), 7);
            let rows = vec![text(1, 0), text(2, NEVER_RELAYED), text(3, 0)];
            let (acked, acked_tag, last, tag_at) = (0, 0, 3, None);
            let (unresolved, more_unresolved, gap_is_message) = (Vec::new(), false, false);
            let info = Prepared { acked, acked_tag, last, tag_at, gap_is_message, unresolved, more_unresolved };
            let inputs = vec![
                SenderInput::Appended { channel: channel.clone(), epoch, row: text(3, 0) },
                SenderInput::Prepared { channel: channel.clone(), request: 1, info: Some(info) },
                SenderInput::Loaded { channel, epoch, rows },
            ];
            assert_eq!(sent(&handle(&mut sender, inputs)).0, goes, "{route}");
        }
    }

    #[test]
    fn a_direct_link_or_time_sends_what_waited_for_one() {
        let mut sender = Sender::new();
        handle(&mut sender, up(Route::Relayed));
        let first = open(&mut sender, "a", 1, vec![text(1, 500), text(2, 0)]);
        assert!(sent(&first).0.is_empty());
        assert_eq!((sender.next_tick(), sender.refusals().count()), (Some(500), 0));
        sender.handle(499, SenderInput::Tick);
        assert_eq!(sender.poll(), None);
        sender.handle(500, SenderInput::Tick);
        assert!(matches!(sender.poll(), Some(SenderEffect::Load { from: 1, .. })));
        let loaded = SenderInput::Loaded { channel: "a".into(), epoch: 7, rows: vec![text(1, 500), text(2, 0)] };
        sender.handle(500, loaded);
        let effects: Vec<SenderEffect> = std::iter::from_fn(|| sender.poll()).collect();
        assert_eq!(sent(&effects).0, [1, 2]);
        assert_eq!(sender.next_tick(), None);

        let mut sender = Sender::new();
        handle(&mut sender, up(Route::Direct));
        let first = open(&mut sender, "a", 1, vec![text(1, NEVER_RELAYED), text(2, 500)]);
        assert_eq!(sent(&first).0, [1, 2]);
    }

    #[test]
    fn tombstones_that_were_not_named_are_found() {
        let mut sender = Sender::new();
        let (channel, epoch) = (Channel::from(""), 7);
        let message = |id: &str| RowBody::Message(Content { id: id.to_owned(), ..Content::default() });
        let rows = ["one", "two"].into_iter().zip(1..).map(|(id, seq)| row(seq, message(id))).collect();
        let sent = handle(
            &mut sender,
            vec![
                SenderInput::LinkUp(1, Route::Direct),
                frame(Back::Welcome(Welcome { version: 1, features: 0, max_message_bytes: 1000 })),
                SenderInput::Appended { channel: channel.clone(), epoch, row: row(2, message("two")) },
                opened(1, 0),
                // The first question was about what can be sent early.
                prepared(2, &[]),
                SenderInput::Loaded { channel: channel.clone(), epoch, rows },
            ],
        );
        assert!(matches!(sent.last(), Some(SenderEffect::Send(1, Forward::Data(Data { seq: 2, .. })))), "{sent:?}");
        let again = handle(&mut sender, vec![SenderInput::Recheck]);
        assert!(matches!(&again[0], SenderEffect::Send(1, Forward::Open(open)) if open.lane == 2), "{again:?}");
        // The peer has the first; the store knows that it wants neither sent.
        let asked = handle(&mut sender, vec![opened(2, 1), prepared(4, &["one"])]);
        assert!(asked.iter().any(|effect| matches!(effect, SenderEffect::Send(_, Forward::Query(q)) if q.id == "one")));
        let rows = vec![row(2, RowBody::Tombstone { id: "two".to_owned() })];
        let told = handle(&mut sender, vec![SenderInput::Loaded { channel, epoch, rows }]);
        assert!(matches!(&told[..], [SenderEffect::Send(_, Forward::Skip(skip))] if skip.from == 2), "{told:?}");
    }
}
