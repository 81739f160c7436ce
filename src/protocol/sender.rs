//! This node's messages to one peer.
//!
//! The store holds every row; this machine holds a window of them while a link
//! is open. A lane is opened on a link when something waits on it:
//!
//! ```text
//! OPEN → LANE_STATE(high, tag) → Prepare (store) → compare → send from high + 1
//! ```
//!
//! The comparison finds a store that was replaced by an older copy: `high`
//! below what was acknowledged means the peer's was, a tag at `high` that is
//! not ours means this node's was.

use std::collections::{BTreeMap, VecDeque};

use super::{
    LinkNumber, Millis, VERSION,
    ephemeral::{Ephemerals, Waiting},
    lane::{LANE_WINDOW_BYTES, LANE_WINDOW_ROWS, Lane, MAX_OPEN_LANES, OutRow, Phase, RowBody},
};
use crate::{
    types::{Channel, Content, Epoch, Seq, Tag},
    wire::{
        Back, Data, Ephemeral, EphemeralOutcome, Forward, Full, Hello, LaneState, Limit, Open, Outcome, Query, Refusal,
        Skip, Welcome,
    },
};

/// Bytes of all lanes to one peer in memory.
const PEER_WINDOW_BYTES: u64 = 16 * 1024 * 1024;

/// A lane as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneInfo {
    /// The channel.
    pub channel: Channel,
    /// Its present numbering.
    pub epoch: Epoch,
    /// See [`Open::previous`].
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
    /// Ids of messages at or below the position asked for, or acknowledged,
    /// whose outcome only the peer knows: at most a bounded number.
    pub unresolved: Vec<String>,
    /// There are more of those.
    pub more_unresolved: bool,
}

/// What happens to a sender.
#[derive(Debug)]
pub enum SenderInput {
    /// A link is open; it replaces the one before.
    LinkUp(LinkNumber),
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
    /// An ephemeral message to send.
    Ephemeral {
        /// Names it in [`SenderEffect::EphemeralDone`].
        key: u64,
        /// The channel.
        channel: Channel,
        /// The message.
        content: Content,
        /// How long it may wait for a link.
        deadline: Millis,
    },
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

#[derive(Debug)]
struct Live {
    number: LinkNumber,
    state: PeerState,
    max_message_bytes: u64,
    next_lane: u32,
    /// Lanes by their number on the link.
    numbers: BTreeMap<u32, Channel>,
}

/// The state machine; see the module.
#[derive(Debug, Default)]
pub struct Sender {
    now: Millis,
    lanes: BTreeMap<Channel, Lane>,
    link: Option<Live>,
    ephemerals: Ephemerals,
    requests: u64,
    effects: VecDeque<SenderEffect>,
}

impl Sender {
    /// A sender that knows of no lane yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one input; time never goes back.
    pub fn handle(&mut self, now: Millis, input: SenderInput) {
        self.now = self.now.max(now);
        match input {
            SenderInput::LinkUp(link) => self.link_up(link),
            SenderInput::LinkDown(link) => self.link_down(link),
            SenderInput::Frame(link, frame) => self.frame(link, frame),
            SenderInput::Lanes(lanes) => lanes.into_iter().for_each(|info| self.lane_known(info)),
            SenderInput::Appended { channel, epoch, row } => self.appended(channel, epoch, row),
            SenderInput::Loaded { channel, epoch, rows } => self.loaded(&channel, epoch, rows),
            SenderInput::Prepared { channel, request, info } => self.prepared(&channel, request, info),
            SenderInput::Renumbered(info) => self.renumbered(info),
            SenderInput::StoreFailed => self.store_failed(),
            SenderInput::Buried { channel, epoch, seq, id } => self.buried(&channel, epoch, seq, &id),
            SenderInput::Ephemeral { key, channel, content, deadline } => {
                self.ephemeral(Waiting { key, channel, content, deadline });
            }
            SenderInput::Tick => self.tick(),
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<SenderEffect> {
        self.effects.pop_front()
    }

    /// When [`SenderInput::Tick`] is next of use.
    #[must_use]
    pub fn next_tick(&self) -> Option<Millis> {
        let retries = self.lanes.values().filter_map(|lane| match lane.phase {
            Phase::Full { retry_at, .. } => Some(retry_at),
            _ => None,
        });
        retries.chain(self.ephemerals.next_deadline()).min()
    }

    /// How things stand with the peer.
    #[must_use]
    pub fn state(&self) -> PeerState {
        self.link.as_ref().map_or(PeerState::Down, |link| link.state)
    }

    /// The channels whose lanes the peer refused, and the limits they wait for.
    pub fn refusals(&self) -> impl Iterator<Item = (&Channel, Limit)> {
        self.lanes.iter().filter_map(|(channel, lane)| match lane.phase {
            Phase::Full { limit, .. } | Phase::Barred { limit } => Some((channel, limit)),
            _ => None,
        })
    }

    /// Whether nothing waits, for a peer that nobody needs to dial.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.lanes.values().any(Lane::is_pending) && self.ephemerals.next_deadline().is_none()
    }

    fn send(&mut self, frame: Forward) {
        if let Some(link) = &self.link {
            self.effects.push_back(SenderEffect::Send(link.number, frame));
        }
    }

    fn is_up(&self) -> bool {
        self.state() == PeerState::Up
    }

    // Links

    fn link_up(&mut self, number: LinkNumber) {
        if let Some(old) = self.link.take() {
            self.effects.push_back(SenderEffect::Close(old.number, "replaced by a younger link"));
            self.forget_link();
        }
        self.link = Some(Live {
            number,
            state: PeerState::Greeting,
            max_message_bytes: 0,
            next_lane: 0,
            numbers: BTreeMap::new(),
        });
        self.send(Forward::Hello(Hello { version: VERSION, features: 0 }));
        // Without waiting for the answer: it costs nothing when it is no.
        self.open_all();
    }

    fn link_down(&mut self, number: LinkNumber) {
        if self.link.as_ref().is_some_and(|link| link.number == number) {
            self.link = None;
            self.forget_link();
        }
    }

    fn forget_link(&mut self) {
        self.effects.push_back(SenderEffect::Hide);
        self.lanes.values_mut().for_each(Lane::close);
        for key in self.ephemerals.link_lost() {
            self.effects.push_back(SenderEffect::EphemeralDone(key, EphemeralEnd::LinkLost));
        }
    }

    /// The peer broke the protocol.
    fn violation(&mut self, what: &'static str) {
        if let Some(link) = self.link.take() {
            self.effects.push_back(SenderEffect::Close(link.number, what));
            self.forget_link();
        }
    }

    fn store_failed(&mut self) {
        for lane in self.lanes.values_mut() {
            lane.loading = false;
            lane.late.clear();
            if lane.phase == Phase::Renumbering {
                lane.phase = Phase::Closed;
            }
        }
        self.violation("the store failed");
    }

    fn frame(&mut self, number: LinkNumber, frame: Back) {
        if self.link.as_ref().is_none_or(|link| link.number != number) {
            return; // From a link that was replaced.
        }
        match frame {
            Back::Welcome(welcome) => self.welcome(&welcome),
            Back::Refused(refusal) => self.refused_link(refusal),
            Back::LaneState(state) => self.lane_state(state),
            Back::Ack { lane, high } => self.ack(lane, high),
            Back::Outcome(outcome) => self.outcome(outcome),
            Back::Full(full) => self.full(&full),
            Back::Ready { lane } => self.ready(lane),
            Back::EphemeralResult { number, outcome } => {
                if let Some(key) = self.ephemerals.finish(number) {
                    self.effects.push_back(SenderEffect::EphemeralDone(key, EphemeralEnd::Answered(outcome)));
                }
            }
            Back::Bye => self.violation("the peer is shutting down"),
        }
    }

    fn welcome(&mut self, welcome: &Welcome) {
        let Some(link) = self.link.as_mut() else { return };
        if link.state == PeerState::Up {
            return self.violation("WELCOME twice");
        }
        link.state = PeerState::Up;
        link.max_message_bytes = welcome.max_message_bytes;
        self.open_all();
        self.pump_ephemerals();
    }

    fn refused_link(&mut self, refusal: Refusal) {
        let Some(link) = self.link.as_mut() else { return };
        link.state = PeerState::Refused(refusal);
        link.numbers.clear();
        self.effects.push_back(SenderEffect::Hide);
        self.lanes.values_mut().for_each(Lane::close);
        for key in self.ephemerals.link_lost() {
            self.effects.push_back(SenderEffect::EphemeralDone(key, EphemeralEnd::Untrusted));
        }
    }

    // Opening lanes

    /// Opens lanes that are done too: the peer may have been restored to a
    /// time before it got what it acknowledged.
    fn open_all(&mut self) {
        let channels: Vec<Channel> = self.lanes.keys().cloned().collect();
        for channel in channels {
            self.open(&channel);
        }
    }

    fn open(&mut self, channel: &Channel) {
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
    }

    /// Opens a lane anew on the same link, to compare once more.
    fn reopen(&mut self, channel: &Channel) {
        if let (Some(lane), Some(link)) = (self.lanes.get_mut(channel), self.link.as_mut()) {
            link.numbers.remove(&lane.number);
            lane.close();
            self.open(channel);
        }
    }

    fn lane_state(&mut self, state: LaneState) {
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

    fn prepared(&mut self, channel: &Channel, answered: u64, info: Option<Prepared>) {
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
        self.ask(channel, info.unresolved, info.more_unresolved);
        self.flow(channel);
    }

    /// The peer has rows of this epoch that this node never wrote, or was told
    /// to skip what is to be sent: this node's store was replaced by an older
    /// copy while it ran.
    fn renumber(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.minted {
            return self.violation("rows of an epoch that was never used");
        }
        lane.phase = Phase::Renumbering;
        let epoch = lane.epoch;
        self.effects.push_back(SenderEffect::Renumber { channel: channel.clone(), epoch });
    }

    /// The peer has more than it acknowledged here.
    fn catch_up(&mut self, channel: &Channel, high: Seq, tag: Tag) {
        let Some(lane) = self.lanes.get_mut(channel).filter(|lane| lane.acked < high) else { return };
        let (epoch, count) = (lane.epoch, high - lane.acked);
        lane.acked = high;
        lane.forget_rows();
        self.effects.push_back(SenderEffect::Acked { channel: channel.clone(), epoch, seq: high, tag, count });
    }

    /// The peer's store is an older copy of itself. The rows that it lacks are
    /// gone here, so it must be told to go on without them.
    fn skip_lost(&mut self, channel: &Channel, high: Seq, info: &Prepared) {
        let Some(lane) = self.lanes.get(channel).filter(|_| high < info.acked) else { return };
        let skip =
            Skip { lane: lane.number, from: high + 1, to: info.acked, tag: info.acked_tag, lost: true, id: None };
        self.effects.push_back(SenderEffect::Lost { channel: channel.clone(), count: info.acked - high });
        self.send(Forward::Skip(skip));
    }

    /// Nothing of this epoch is at the peer: positions go on from those it has
    /// under the epochs before.
    fn begin_epoch(&mut self, channel: &Channel, known: Seq, tag: Tag) {
        if let Some(lane) = self.lanes.get(channel).filter(|_| known > 0) {
            let skip = Skip { lane: lane.number, from: 1, to: known, tag, lost: false, id: None };
            self.send(Forward::Skip(skip));
        }
    }

    /// Asks what became of messages that turned into tombstones on the way.
    fn ask(&mut self, channel: &Channel, ids: Vec<String>, more: bool) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        lane.asked = ids.len();
        lane.unresolved = more || !ids.is_empty();
        lane.ask_again |= more;
        let number = lane.number;
        for id in ids {
            self.send(Forward::Query(Query { lane: number, id }));
        }
    }

    fn flow(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        lane.phase = Phase::Flowing;
        lane.minted = false;
        if lane.ask_again && lane.asked == 0 {
            return self.reopen(channel);
        }
        self.pump(channel);
    }

    fn renumbered(&mut self, info: LaneInfo) {
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

    // Rows

    fn lane_known(&mut self, info: LaneInfo) {
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

    fn appended(&mut self, channel: Channel, epoch: Epoch, row: OutRow) {
        let lane = self.lanes.entry(channel.clone()).or_insert_with(|| Lane::new(epoch));
        if lane.epoch != epoch {
            // It crossed a renumbering; the store knows its place.
            self.effects.push_back(SenderEffect::Rescan);
            return;
        }
        if lane.phase == Phase::Flowing && lane.has_room() && !lane.loading && lane.last + 1 == row.seq {
            lane.push(row);
            self.pump(&channel);
        } else {
            lane.last = lane.last.max(row.seq);
            self.open(&channel);
            self.load_if_wanted(&channel);
        }
    }

    fn loaded(&mut self, channel: &Channel, epoch: Epoch, rows: Vec<OutRow>) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.epoch != epoch {
            return;
        }
        lane.loading = false;
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

    fn buried(&mut self, channel: &Channel, epoch: Epoch, seq: Seq, id: &str) {
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        if lane.epoch != epoch {
            return; // Renumbered since; the store has it.
        }
        if matches!(lane.phase, Phase::Preparing { .. }) {
            // The answer of the store may be older than this.
            lane.ask_again = true;
        }
        if seq > lane.acked {
            lane.bury(seq, id);
            return self.pump(channel);
        }
        // It crossed the acknowledgement: the peer has it, or was told to do
        // without it. It knows.
        lane.unresolved = true;
        match lane.phase {
            Phase::Closed => self.open(channel),
            _ if lane.asked > 0 => lane.ask_again = true,
            Phase::Flowing | Phase::Full { .. } => self.reopen(channel),
            _ => lane.ask_again = true,
        }
    }

    fn load_if_wanted(&mut self, channel: &Channel) {
        let Some(lane) = self.lanes.get(channel) else { return };
        // Wait until half the window is free, so that rows are read in runs.
        let wanted = lane.phase == Phase::Flowing
            && !lane.loading
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
    fn pump(&mut self, channel: &Channel) {
        let Some(link) = &self.link else { return };
        let (link_number, max_bytes) = (link.number, link.max_message_bytes);
        let Some(lane) = self.lanes.get_mut(channel) else { return };
        while lane.may_send() {
            let (number, epoch, seq) = (lane.number, lane.epoch, lane.next);
            let now = self.now;
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
                    held.sent_as_message = true;
                    Forward::Data(Data { lane: number, seq, tag, ttl_left_ms, content })
                }
                RowBody::Tombstone { id } => {
                    Forward::Skip(Skip { lane: number, from: seq, to: seq, tag, lost: false, id: Some(id.clone()) })
                }
            };
            lane.next += 1;
            self.effects.push_back(SenderEffect::Send(link_number, frame));
        }
        self.load_if_wanted(channel);
    }

    // Answers

    fn by_number<'a>(
        link: &Option<Live>,
        lanes: &'a mut BTreeMap<Channel, Lane>,
        number: u32,
    ) -> Option<(Channel, &'a mut Lane)> {
        let channel = link.as_ref()?.numbers.get(&number)?.clone();
        let lane = lanes.get_mut(&channel).filter(|lane| lane.number == number)?;
        Some((channel, lane))
    }

    fn ack(&mut self, number: u32, high: Seq) {
        let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, number) else { return };
        if high <= lane.acked {
            return; // The answer to a gap that was skipped, or late.
        }
        if high >= lane.next {
            return self.violation("ACK of something not sent");
        }
        let (epoch, count) = (lane.epoch, high - lane.acked);
        let (tag, stored) = lane.acknowledge(high);
        for id in stored {
            self.effects.push_back(SenderEffect::Resolved { channel: channel.clone(), id, stored: true });
        }
        self.effects.push_back(SenderEffect::Acked { channel: channel.clone(), epoch, seq: high, tag, count });
        self.pump(&channel);
        self.load_starved();
    }

    /// Lanes that found the peer's window full get their turn.
    fn load_starved(&mut self) {
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

    fn outcome(&mut self, outcome: Outcome) {
        let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, outcome.lane) else { return };
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

    fn full(&mut self, full: &Full) {
        let now = self.now;
        let Some((_, lane)) = Self::by_number(&self.link, &mut self.lanes, full.lane) else { return };
        match lane.phase {
            // It does not even take the lane.
            Phase::Opening => lane.phase = Phase::Barred { limit: full.limit },
            Phase::Flowing | Phase::Full { .. } if full.next > lane.acked && full.next <= lane.next => {
                lane.refuse(full.next, full.limit, now);
            }
            _ => self.violation("FULL of something not sent"),
        }
    }

    fn ready(&mut self, number: u32) {
        if let Some((channel, lane)) = Self::by_number(&self.link, &mut self.lanes, number)
            && matches!(lane.phase, Phase::Full { .. })
        {
            lane.phase = Phase::Flowing;
            lane.credit = usize::MAX;
            self.pump(&channel);
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let due: Vec<Channel> = self
            .lanes
            .iter()
            .filter(|(_, lane)| matches!(lane.phase, Phase::Full { retry_at, .. } if retry_at <= now))
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in due {
            if let Some(lane) = self.lanes.get_mut(&channel) {
                // One row only: the peer may still be full.
                lane.phase = Phase::Flowing;
                lane.credit = 1;
                self.pump(&channel);
            }
        }
        for key in self.ephemerals.expire(now) {
            let end = match self.state() {
                PeerState::Refused(_) => EphemeralEnd::Untrusted,
                _ => EphemeralEnd::Unreachable,
            };
            self.effects.push_back(SenderEffect::EphemeralDone(key, end));
        }
    }

    fn ephemeral(&mut self, message: Waiting) {
        if let Err(key) = self.ephemerals.push(message) {
            self.effects.push_back(SenderEffect::EphemeralDone(key, EphemeralEnd::QueueFull));
        }
        self.pump_ephemerals();
    }

    fn pump_ephemerals(&mut self) {
        let max = self.link.as_ref().map_or(0, |link| link.max_message_bytes);
        while self.is_up()
            && let Some((number, message)) = self.ephemerals.pop()
        {
            if message.content.payload.len() as u64 > max {
                self.ephemerals.finish(number);
                self.effects.push_back(SenderEffect::EphemeralDone(message.key, EphemeralEnd::TooLarge(max)));
                continue;
            }
            self.send(Forward::Ephemeral(Ephemeral { number, channel: message.channel, content: message.content }));
        }
    }
}
