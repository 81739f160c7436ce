//! One peer's messages to this node.
//!
//! Frames are taken in runs: [`ReceiverInput::Frame`] for each that has come,
//! then [`ReceiverInput::Flush`], which asks the store to commit them as one
//! batch. Several batches can be under way. Nothing is acknowledged before the
//! store said that it is on disk; the store itself takes positions only in
//! order, so a batch that follows a refused one does no harm.

mod interface;

use std::collections::{BTreeMap, VecDeque};

pub use self::interface::{Accepted, BatchLane, Inbound, InboundKind, ReceiverEffect, ReceiverInput};
use super::{FEATURES, LinkNumber, MAX_OPEN_LANES, VERSION};
use crate::{
    types::{Channel, Epoch, MAX_SEQ, Presence, Seq, Tag},
    wire::{
        Back, Data, Ephemeral, FEATURE_PRESENCE, Forward, Full, LaneState, Limit, Open, Outcome, Query, Refusal, Skip,
        Welcome,
    },
};

/// Questions to the store under way for one link: openings and queries.
/// A peer that asks faster than the store answers breaks the protocol's
/// pace, and its link is closed.
const MAX_QUESTIONS: usize = 2 * MAX_OPEN_LANES;

/// Messages of a lane that are kept while the store has not told where it
/// stands; a sender that sends more early sends the rest again.
const MAX_EARLY: usize = 16;
/// Bytes of those of all lanes of a link, as they count in queues.
const MAX_EARLY_BYTES: u64 = 256 * 1024;

#[derive(Debug)]
struct Lane {
    channel: Channel,
    epoch: Epoch,
    /// Handed to the store, or stored; `None` until the store told.
    high: Option<Seq>,
    /// Tag there, if messages sent early may follow; 0 where nothing is yet.
    tag: Option<Tag>,
    /// Sent early, until the store told.
    early: Vec<Data>,
    /// What was on the link behind a refused position still arrives.
    stale: bool,
    /// The sender waits for READY.
    waits: bool,
}

#[derive(Debug)]
struct Live {
    number: LinkNumber,
    greeted: bool,
    lanes: BTreeMap<u32, Lane>,
    by_channel: BTreeMap<Channel, u32>,
    questions: usize,
    /// Bytes of what was sent early, of all lanes.
    early_bytes: u64,
    /// What the peer told of itself last, since [`ReceiverInput::Flush`].
    presence: Option<Presence>,
}

/// The state machine; see the module.
#[derive(Debug)]
pub struct Receiver {
    max_message_bytes: u64,
    trusted: bool,
    link: Option<Live>,
    /// The link before.
    old: Option<LinkNumber>,
    batch: Vec<Inbound>,
    effects: VecDeque<ReceiverEffect>,
}

impl Receiver {
    /// A receiver of one peer's messages, with payloads of at most so many
    /// bytes.
    #[must_use]
    pub fn new(max_message_bytes: u64, trusted: bool) -> Self {
        Self { max_message_bytes, trusted, link: None, old: None, batch: Vec::new(), effects: VecDeque::new() }
    }

    /// Takes one input.
    pub fn handle(&mut self, input: ReceiverInput) {
        match input {
            ReceiverInput::LinkUp(link) => self.link_up(link),
            ReceiverInput::LinkDown(link) => self.link_down(link),
            ReceiverInput::Frame(link, frame) => self.frame(link, frame),
            ReceiverInput::Flush => {
                self.flush();
                self.tell_presence();
            }
            ReceiverInput::Trust(trusted) => self.trust(trusted),
            ReceiverInput::LaneOpened { link, lane, state } => self.lane_opened(link, lane, state),
            ReceiverInput::LookedUp { link, lane, id, stored } => self.looked_up(link, lane, id, stored),
            ReceiverInput::Committed(lanes) => lanes.into_iter().for_each(|lane| self.committed(lane)),
            ReceiverInput::StoreFailed => self.close("the store failed"),
            ReceiverInput::Room => self.room(),
            ReceiverInput::EphemeralDone { link, number, outcome } => {
                if self.is_current(link) || self.old == Some(link) {
                    self.effects.push_back(ReceiverEffect::Send(link, Back::EphemeralResult { number, outcome }));
                }
            }
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<ReceiverEffect> {
        self.effects.pop_front()
    }

    /// A link is open and the peer may send.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.trusted && self.link.as_ref().is_some_and(|link| link.greeted)
    }

    /// Number of positions and gaps that wait for [`ReceiverInput::Flush`].
    #[must_use]
    pub fn batch_len(&self) -> usize {
        self.batch.len()
    }

    fn is_current(&self, number: LinkNumber) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }

    fn send(&mut self, frame: Back) {
        if let Some(link) = &self.link {
            self.effects.push_back(ReceiverEffect::Send(link.number, frame));
        }
    }

    fn close(&mut self, why: &'static str) {
        self.close_current(why);
        self.close_old();
    }

    fn close_current(&mut self, why: &'static str) {
        if let Some(link) = self.link.take() {
            self.effects.push_back(ReceiverEffect::Close(link.number, why));
        }
    }

    fn link_up(&mut self, number: LinkNumber) {
        self.flush();
        let trusted = self.trusted;
        match self.link.take_if(|link| link.greeted && trusted) {
            Some(link) => {
                self.close_old();
                self.old = Some(link.number);
            }
            None => self.close_current("replaced by a younger link"),
        }
        self.link = Some(Live {
            number,
            greeted: false,
            lanes: BTreeMap::new(),
            by_channel: BTreeMap::new(),
            questions: 0,
            early_bytes: 0,
            presence: None,
        });
    }

    fn link_down(&mut self, number: LinkNumber) {
        self.old.take_if(|old| *old == number);
        if self.is_current(number) {
            self.flush();
            self.link = None;
            self.close_old();
        }
    }

    /// Also when the younger link ends first. Links over two connections may
    /// come in another order than they were opened in: then what ended is the
    /// one that the peer gave up, and what it sends on the other was ignored.
    /// It opens a new link when that is closed.
    fn close_old(&mut self) {
        if let Some(old) = self.old.take() {
            self.effects.push_back(ReceiverEffect::Close(old, "replaced by a younger link"));
        }
    }

    fn frame_of_old(&mut self, link: LinkNumber, frame: Forward) {
        match frame {
            Forward::Ephemeral(message) if message.content.payload.len() as u64 <= self.max_message_bytes => {
                let Ephemeral { number, channel, content } = message;
                self.effects.push_back(ReceiverEffect::Ephemeral { link, number, channel, content });
            }
            Forward::Ephemeral(_) | Forward::Bye => self.close_old(),
            _ => {} // It comes again on the younger link.
        }
    }

    fn frame(&mut self, number: LinkNumber, frame: Forward) {
        if self.old == Some(number) {
            return self.frame_of_old(number, frame);
        }
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else {
            return; // From a link that was replaced.
        };
        match (frame, link.greeted) {
            (Forward::Hello(hello), false) => {
                link.greeted = true;
                if hello.features & FEATURE_PRESENCE == 0 {
                    // It will never tell, so what it told before is over.
                    link.presence = Some(Presence::default());
                }
                self.greet();
            }
            (Forward::Hello(_), true) => self.close("HELLO twice"),
            (_, false) => self.close("a frame before HELLO"),
            (Forward::Bye, true) => self.close("the peer is done"),
            // Whatever was on its way when the answer was no.
            _ if !self.trusted => {}
            (Forward::Open(open), true) => self.open(open),
            (Forward::Data(data), true) => self.data(data),
            (Forward::Skip(skip), true) => self.skip(skip),
            (Forward::Query(query), true) => self.query(query),
            (Forward::Ephemeral(message), true) => self.ephemeral(message),
            (Forward::Presence(presence), true) => link.presence = Some(presence),
        }
    }

    // Trust

    fn greet(&mut self) {
        if self.trusted {
            let max_message_bytes = self.max_message_bytes;
            self.send(Back::Welcome(Welcome { version: VERSION, features: FEATURES, max_message_bytes }));
        } else {
            self.send(Back::Refused(Refusal::Untrusted));
        }
    }

    fn trust(&mut self, trusted: bool) {
        if self.trusted == trusted {
            return;
        }
        self.flush();
        self.trusted = trusted;
        if !trusted {
            self.close_old();
        }
        if let Some(link) = self.link.as_mut()
            && link.greeted
        {
            link.lanes.clear();
            link.early_bytes = 0;
            link.by_channel.clear();
            self.greet();
        }
    }

    // Lanes

    fn question(&mut self) -> Option<LinkNumber> {
        let link = self.link.as_mut()?;
        link.questions += 1;
        if link.questions > MAX_QUESTIONS {
            self.close("too many questions at once");
            return None;
        }
        Some(link.number)
    }

    fn answered(&mut self, number: LinkNumber) {
        if let Some(link) = self.link.as_mut().filter(|link| link.number == number) {
            link.questions = link.questions.saturating_sub(1);
        }
    }

    fn open(&mut self, open: Open) {
        let Some(link) = self.link.as_mut() else { return };
        // The sender opens a channel again only when it left the lane before.
        if let Some(left) = link.by_channel.remove(&open.channel)
            && let Some(left) = link.lanes.remove(&left)
        {
            link.early_bytes = link.early_bytes.saturating_sub(cost(&left.early));
        }
        if link.lanes.len() >= MAX_OPEN_LANES {
            let full = Full { lane: open.lane, next: 1, limit: Limit::Lanes };
            return self.send(Back::Full(full));
        }
        let lane = Lane {
            channel: open.channel.clone(),
            epoch: open.epoch,
            high: None,
            tag: None,
            early: Vec::new(),
            stale: false,
            waits: false,
        };
        if link.lanes.insert(open.lane, lane).is_some() {
            return self.close("a lane's number was used twice");
        }
        link.by_channel.insert(open.channel.clone(), open.lane);
        // Batches before it count.
        self.flush();
        if let Some(link) = self.question() {
            let Open { lane, channel, epoch, previous } = open;
            self.effects.push_back(ReceiverEffect::OpenLane { link, lane, channel, epoch, previous });
        }
    }

    fn lane_opened(&mut self, number: LinkNumber, lane: u32, state: Result<Accepted, Limit>) {
        self.answered(number);
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else { return };
        let Some(entry) = link.lanes.get_mut(&lane) else { return };
        match state {
            Ok(Accepted { high, tag, gaps, inherited, floor }) => {
                entry.high = Some(high);
                let begins = inherited == 0 && floor == 0;
                entry.tag = if high > 0 { Some(tag) } else { begins.then_some(0) };
                let early = std::mem::take(&mut entry.early);
                link.early_bytes = link.early_bytes.saturating_sub(cost(&early));
                self.send(Back::LaneState(LaneState { lane, high, tag, gaps, inherited, floor }));
                early.into_iter().for_each(|data| self.data(data));
                self.flush();
            }
            Err(limit) => {
                if let Some(lane) = link.lanes.remove(&lane) {
                    link.early_bytes = link.early_bytes.saturating_sub(cost(&lane.early));
                    link.by_channel.remove(&lane.channel);
                }
                self.send(Back::Full(Full { lane, next: 1, limit }));
            }
        }
    }

    /// The lane and its highest position, if it is open.
    fn lane(&mut self, number: u32) -> Option<(&mut Lane, Seq)> {
        let lane = self.link.as_mut()?.lanes.get_mut(&number)?;
        let high = lane.high?;
        Some((lane, high))
    }

    fn data(&mut self, data: Data) {
        if data.content.payload.len() as u64 > self.max_message_bytes {
            // One sent early did not know of the limit.
            if data.after.is_none() {
                self.close("a message over the limit of WELCOME");
            }
            return;
        }
        let number = data.lane;
        if data.after.is_some() && !self.fits(&data) {
            return;
        }
        let Some((lane, high)) = self.lane(number) else { return };
        if data.seq != high + 1 {
            return self.out_of_turn(number, data.seq);
        }
        lane.high = Some(data.seq);
        lane.tag = Some(data.tag);
        lane.stale = false;
        let (channel, epoch) = (lane.channel.clone(), lane.epoch);
        let kind = InboundKind::Message { content: data.content };
        self.batch.push(Inbound { channel, epoch, seq: data.seq, tag: data.tag, kind });
    }

    /// Whether a message that was sent early has its place right behind what
    /// is here. While the store has not told, it is kept until it does.
    fn fits(&mut self, data: &Data) -> bool {
        let Some(link) = self.link.as_mut() else { return false };
        let Some(lane) = link.lanes.get_mut(&data.lane) else { return false };
        let Some(high) = lane.high else {
            let bytes = link.early_bytes + data.content.cost();
            if lane.early.len() < MAX_EARLY && bytes <= MAX_EARLY_BYTES {
                link.early_bytes = bytes;
                lane.early.push(data.clone());
            }
            return false;
        };
        !lane.stale && data.seq == high + 1 && data.after == lane.tag
    }

    fn skip(&mut self, skip: Skip) {
        if skip.to >= MAX_SEQ {
            return self.close("a position beyond the last");
        }
        let Some((lane, high)) = self.lane(skip.lane) else { return };
        if skip.from != high + 1 {
            return self.out_of_turn(skip.lane, skip.from);
        }
        lane.high = Some(skip.to);
        lane.tag = Some(skip.tag);
        lane.stale = false;
        let (channel, epoch) = (lane.channel.clone(), lane.epoch);
        let kind = InboundKind::Gap { to: skip.to, lost: skip.lost, id: skip.id };
        self.batch.push(Inbound { channel, epoch, seq: skip.from, tag: skip.tag, kind });
    }

    /// After a refusal the rest of what was on the link arrives for nothing;
    /// otherwise the sender has lost count.
    fn out_of_turn(&mut self, number: u32, seq: Seq) {
        if let Some((lane, high)) = self.lane(number)
            && seq > high
            && !lane.stale
        {
            self.close("a position out of turn");
        }
    }

    fn query(&mut self, query: Query) {
        let Some((lane, _)) = self.lane(query.lane) else { return };
        let channel = lane.channel.clone();
        self.flush();
        if let Some(link) = self.question() {
            self.effects.push_back(ReceiverEffect::Lookup { link, lane: query.lane, channel, id: query.id });
        }
    }

    fn looked_up(&mut self, link: LinkNumber, lane: u32, id: String, stored: bool) {
        self.answered(link);
        if self.is_current(link) {
            self.send(Back::Outcome(Outcome { lane, id, stored }));
        }
    }

    // Batches

    fn flush(&mut self) {
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.effects.push_back(ReceiverEffect::Commit(batch));
        }
    }

    fn committed(&mut self, done: BatchLane) {
        let Some(link) = self.link.as_mut() else { return };
        let Some(&number) = link.by_channel.get(&done.channel) else { return };
        let Some(lane) = link.lanes.get_mut(&number) else { return };
        if lane.epoch != done.epoch || lane.high.is_none() {
            return; // Opened anew since; LANE_STATE will tell.
        }
        if done.refused.is_some() {
            lane.high = Some(done.high);
            lane.tag = None;
            lane.stale = true;
            lane.waits = true;
        }
        for (id, stored) in done.outcomes {
            self.send(Back::Outcome(Outcome { lane: number, id, stored }));
        }
        self.send(Back::Ack { lane: number, high: done.high });
        if let Some(limit) = done.refused {
            self.send(Back::Full(Full { lane: number, next: done.high + 1, limit }));
        }
    }

    fn room(&mut self) {
        let Some(link) = self.link.as_mut() else { return };
        let mut ready = Vec::new();
        for (&number, lane) in link.lanes.iter_mut().filter(|(_, lane)| lane.waits) {
            lane.waits = false;
            ready.push(number);
        }
        for lane in ready {
            self.send(Back::Ready { lane });
        }
    }

    /// Only the last of those that came together counts.
    fn tell_presence(&mut self) {
        if let Some(link) = &mut self.link
            && let Some(presence) = link.presence.take_if(|_| self.trusted)
        {
            self.effects.push_back(ReceiverEffect::Presence { link: link.number, presence });
        }
    }

    fn ephemeral(&mut self, message: Ephemeral) {
        if message.content.payload.len() as u64 > self.max_message_bytes {
            return self.close("a message over the limit of WELCOME");
        }
        let Some(link) = self.link.as_ref().map(|link| link.number) else { return };
        let Ephemeral { number, channel, content } = message;
        self.effects.push_back(ReceiverEffect::Ephemeral { link, number, channel, content });
    }
}

fn cost(early: &[Data]) -> u64 {
    early.iter().map(|data| data.content.cost()).sum()
}
