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

pub(super) mod early;
mod flow;
mod interface;
mod opening;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

pub use self::interface::{EphemeralEnd, LaneInfo, PeerState, Prepared, SenderEffect, SenderInput};
use super::{
    FEATURES, LinkNumber, Millis, VERSION,
    ephemeral::{Ephemerals, Waiting},
    lane::{Lane, Phase},
};
use crate::{
    types::{Channel, Presence, Route, Seq},
    wire::{Back, Ephemeral, EphemeralOutcome, FEATURE_PRESENCE, Forward, Hello, Limit, Refusal, Welcome},
};

/// Bytes of all lanes to one peer in memory.
const PEER_WINDOW_BYTES: u64 = 16 * 1024 * 1024;

/// Least time between two frames that tell what this node is. Apps may change
/// it faster: the latest counts. Short enough for a person not to notice, and
/// well below the rate for which a peer closes the link.
const PRESENCE_INTERVAL: Millis = 250;
/// How long the answers to ephemeral messages may take to come on a link that
/// was replaced. Those that follow wait for them, so that their order stays; the
/// link may also have been replaced because it is dead.
const DRAIN: Millis = 1000;

#[derive(Debug)]
struct Live {
    number: LinkNumber,
    relayed: bool,
    state: PeerState,
    max_message_bytes: u64,
    /// The peer takes what this node tells of itself.
    takes_presence: bool,
    /// It was not told yet.
    tell_presence: bool,
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
    /// The link before, if all ephemeral messages under way are on it, and until
    /// when it is kept for their answers.
    draining: Option<(LinkNumber, Millis)>,
    ephemerals: Ephemerals,
    requests: u64,
    /// Bytes that the peer takes in a message, as it said last.
    peer_takes: Option<u64>,
    /// What this node is; `None` until told.
    presence: Option<Arc<Presence>>,
    /// When it may be told again.
    presence_at: Millis,
    /// Lanes began or ceased to wait for a direct link.
    held_moved: bool,
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
            SenderInput::LinkUp(link, route) => self.link_up(link, route),
            SenderInput::LinkDown(link) => self.link_down(link),
            SenderInput::Frame(link, frame) => self.frame(link, frame),
            SenderInput::Lanes(lanes) => lanes.into_iter().for_each(|info| self.lane_known(info)),
            SenderInput::Appended { channel, epoch, row } => self.appended(channel, epoch, row),
            SenderInput::Loaded { channel, epoch, rows } => self.loaded(&channel, epoch, rows),
            SenderInput::Prepared { channel, request, info } => self.prepared(&channel, request, info),
            SenderInput::Renumbered(info) => self.renumbered(info),
            SenderInput::StoreFailed => self.store_failed(),
            SenderInput::Buried { channel, epoch, seq, id } => self.buried(&channel, epoch, seq, &id),
            SenderInput::Recheck => self.recheck(),
            SenderInput::Ephemeral { key, channel, content, direct_until, deadline } => {
                self.ephemeral(Waiting { key, channel, content, direct_until, deadline });
            }
            SenderInput::Presence(presence) => self.presence(presence),
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
            Phase::Full { retry_at, .. } | Phase::Barred { retry_at, .. } => Some(retry_at),
            _ => None,
        });
        let presence = self.untold_presence().map(|_| self.presence_at);
        let (direct, ephemerals) = match &self.link {
            Some(link) if link.relayed => (self.next_direct(), self.ephemerals.next_direct(self.now)),
            _ => (None, None),
        };
        let deadline = self.ephemerals.next_deadline();
        let drained = self.draining.map(|(_, until)| until);
        retries.chain(deadline).chain(drained).chain(presence).chain(direct).chain(ephemerals).min()
    }

    /// How things stand with the peer.
    #[must_use]
    pub fn state(&self) -> PeerState {
        self.link.as_ref().map_or(PeerState::Down, |link| link.state)
    }

    /// The channels whose lanes the peer refused, and the limits they wait for.
    pub fn refusals(&self) -> impl Iterator<Item = (&Channel, Limit)> {
        self.lanes.iter().filter_map(|(channel, lane)| match lane.phase {
            Phase::Full { limit, .. } | Phase::Barred { limit, .. } => Some((channel, limit)),
            _ => None,
        })
    }

    /// The channels whose lanes wait for a direct link, each with the position
    /// that does, if that changed since this was asked last.
    pub fn take_held(&mut self) -> Option<Vec<(Channel, Seq)>> {
        if !std::mem::take(&mut self.held_moved) {
            return None;
        }
        let held = self.lanes.iter().filter_map(|(channel, lane)| Some((channel.clone(), lane.waits?.seq)));
        Some(held.collect())
    }

    /// Whether nothing waits, for a peer that nobody needs to dial.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.lanes.values().any(Lane::is_pending) && self.ephemerals.next_deadline().is_none()
    }

    /// Whether the peer owes an answer to something that is on the link.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        match self.state() {
            PeerState::Down | PeerState::Refused(_) => false,
            PeerState::Greeting => true,
            PeerState::Up => {
                self.ephemerals.awaits_answer() && self.draining.is_none()
                    || self.lanes.values().any(Lane::awaits_answer)
            }
        }
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

    fn link_up(&mut self, number: LinkNumber, route: Route) {
        if let Some(old) = self.link.take() {
            if self.draining.is_none() && self.ephemerals.awaits_answer() {
                self.draining = Some((old.number, self.now + DRAIN));
            } else {
                self.effects.push_back(SenderEffect::Close(old.number, "replaced by a younger link"));
            }
            self.forget_link();
        }
        self.link = Some(Live {
            number,
            relayed: route == Route::Relayed,
            state: PeerState::Greeting,
            max_message_bytes: 0,
            takes_presence: false,
            tell_presence: true,
            next_lane: 0,
            numbers: BTreeMap::new(),
        });
        self.send(Forward::Hello(Hello { version: VERSION, features: FEATURES }));
        // Without waiting for the answer: it costs nothing when it is no.
        self.open_all();
    }

    fn link_down(&mut self, number: LinkNumber) {
        if self.link.as_ref().is_some_and(|link| link.number == number) {
            self.link = None;
            self.forget_link();
        } else if self.draining.is_some_and(|(old, _)| old == number) {
            self.drained();
        }
    }

    fn forget_link(&mut self) {
        self.effects.push_back(SenderEffect::Hide);
        self.close_lanes();
        if self.draining.is_none() {
            self.lose_ephemerals(EphemeralEnd::LinkLost);
        }
    }

    fn lose_ephemerals(&mut self, end: EphemeralEnd) {
        for key in self.ephemerals.link_lost() {
            self.effects.push_back(SenderEffect::EphemeralDone(key, end));
        }
    }

    /// Nothing more is awaited on the link before.
    fn drained(&mut self) {
        if let Some((old, _)) = self.draining.take() {
            self.effects.push_back(SenderEffect::Close(old, "replaced by a younger link"));
            self.lose_ephemerals(EphemeralEnd::LinkLost);
            self.pump_ephemerals();
        }
    }

    fn ephemeral_result(&mut self, number: u64, outcome: EphemeralOutcome) {
        if let Some(key) = self.ephemerals.finish(number) {
            self.effects.push_back(SenderEffect::EphemeralDone(key, EphemeralEnd::Answered(outcome)));
        }
    }

    fn frame_of_old(&mut self, frame: Back) {
        match frame {
            Back::EphemeralResult { number, outcome } => self.ephemeral_result(number, outcome),
            Back::Bye => return self.drained(),
            _ => return, // Of lanes that are open anew.
        }
        if !self.ephemerals.awaits_answer() {
            self.drained();
        }
    }

    fn close_lanes(&mut self) {
        self.held_moved |= self.lanes.values().any(|lane| lane.waits.is_some());
        self.lanes.values_mut().for_each(Lane::close);
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
        if self.draining.is_some_and(|(old, _)| old == number) {
            return self.frame_of_old(frame);
        }
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
            Back::EphemeralResult { number, outcome } => self.ephemeral_result(number, outcome),
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
        self.peer_takes = Some(welcome.max_message_bytes);
        link.takes_presence = welcome.features & FEATURE_PRESENCE != 0;
        link.tell_presence = true;
        self.open_all();
        self.pump_ephemerals();
        self.pump_presence();
    }

    fn refused_link(&mut self, refusal: Refusal) {
        let Some(link) = self.link.as_mut() else { return };
        link.state = PeerState::Refused(refusal);
        link.numbers.clear();
        self.effects.push_back(SenderEffect::Hide);
        self.close_lanes();
        if self.draining.is_none() {
            self.lose_ephemerals(EphemeralEnd::Untrusted);
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        self.pump_presence();
        let due: Vec<Channel> = self
            .lanes
            .iter()
            .filter(|(_, lane)| {
                let (Phase::Full { retry_at, .. } | Phase::Barred { retry_at, .. }) = lane.phase else { return false };
                retry_at <= now
            })
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in due {
            let Some(lane) = self.lanes.get_mut(&channel) else { continue };
            if matches!(lane.phase, Phase::Barred { .. }) {
                self.reopen(&channel);
            } else {
                lane.resume();
                self.pump(&channel);
            }
        }
        self.stop_waiting(now);
        if self.draining.is_some_and(|(_, until)| until <= now) {
            self.drained();
        }
        for key in self.ephemerals.expire(now) {
            let end = match self.state() {
                PeerState::Refused(_) => EphemeralEnd::Untrusted,
                // On a link that carries all, none would have waited.
                PeerState::Up if self.draining.is_none() => EphemeralEnd::OnlyRelayed,
                _ => EphemeralEnd::Unreachable,
            };
            self.effects.push_back(SenderEffect::EphemeralDone(key, end));
        }
        self.pump_ephemerals();
    }

    // Presence

    fn presence(&mut self, presence: Arc<Presence>) {
        if self.presence.as_ref() == Some(&presence) {
            return;
        }
        self.presence = Some(presence);
        if let Some(link) = &mut self.link {
            link.tell_presence = true;
        }
        self.pump_presence();
    }

    /// What the peer should be told, if it takes it and does not know it.
    fn untold_presence(&self) -> Option<&Arc<Presence>> {
        let tells = |link: &Live| link.state == PeerState::Up && link.takes_presence && link.tell_presence;
        if self.link.as_ref().is_some_and(tells) { self.presence.as_ref() } else { None }
    }

    fn pump_presence(&mut self) {
        if self.now < self.presence_at {
            return;
        }
        let Some(presence) = self.untold_presence().map(|presence| Presence::clone(presence)) else { return };
        self.presence_at = self.now + PRESENCE_INTERVAL;
        if let Some(link) = &mut self.link {
            link.tell_presence = false;
        }
        self.send(Forward::Presence(presence));
    }

    fn ephemeral(&mut self, message: Waiting) {
        if let Err(key) = self.ephemerals.push(message) {
            self.effects.push_back(SenderEffect::EphemeralDone(key, EphemeralEnd::QueueFull));
        }
        self.pump_ephemerals();
    }

    fn pump_ephemerals(&mut self) {
        let Some(Live { max_message_bytes: max, relayed, .. }) = self.link else { return };
        while self.is_up()
            && self.draining.is_none()
            && let Some((number, message)) = self.ephemerals.pop(relayed.then_some(self.now))
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
