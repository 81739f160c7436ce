//! The two nodes, the links between them, and what befalls them.

mod scenarios;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use libp2p::PeerId;
use p2p_node::{
    delivery::effects::{run_receiver, run_sender},
    protocol::{InboundKind, Receiver, ReceiverEffect, ReceiverInput, Sender, SenderEffect, SenderInput},
    store::{Acknowledged, Arrival, Buried, Db, Enqueued, Final, NewMessage, Progress, Queued, StoreOptions},
    types::{Content, PathPolicy, Route},
    wire::{Back, Forward, Skip},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::oracle::{Arrived, Counts, Direction, End, check};

const CHANNELS: [&str; 3] = ["", "alpha", "beta"];
/// Small enough that the inbox is full at times.
const MAX_INBOX_BYTES: u64 = 12_000;
/// Payloads over this are refused by a node while its limit is low.
const LOW_LIMIT: u64 = 500;
const HIGH_LIMIT: u64 = 5_000;
const STEPS: usize = 240;
const QUIET_STEPS: usize = 4_000;

/// A bug put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    None,
    /// The receiver's driver answers a batch before the store has it.
    AckBeforeCommit,
    /// The sender goes on in the old epoch after a restore, and does not
    /// compare tags.
    SequenceReused,
    /// The receiver says nothing about a gap.
    SkipNotAcked,
}

/// Work that the store has not committed.
enum Op {
    Send { channel: usize, size: usize, ttl: u64, order: u64 },
    Cancel { pick: u64 },
    Expire,
    Sender(SenderEffect),
    Receiver(ReceiverEffect, Route),
    Consume { channel: usize },
}

/// What the store answers, until it is handed to the machines.
enum Answer {
    Sender(SenderInput),
    Receiver(ReceiverInput),
}

struct Node {
    peer: PeerId,
    db: Db,
    /// What its app consumed; as durable as the store.
    consumed: Vec<Arrived>,
    copies: Vec<(Db, Vec<Arrived>)>,
    sender: Sender,
    receiver: Receiver,
    ops: VecDeque<Op>,
    answers: VecDeque<Answer>,
    trusts: bool,
    max_message_bytes: u64,
}

/// A link for the messages of one node; frames on their way.
struct Link {
    number: u64,
    route: Route,
    forward: VecDeque<Forward>,
    back: VecDeque<Back>,
    up_at_sender: bool,
    up_at_receiver: bool,
}

pub(crate) struct World {
    rng: StdRng,
    plant: Plant,
    now: u64,
    nodes: [Node; 2],
    /// Links for the messages of node 0 and of node 1; the last one is young.
    links: [Vec<Link>; 2],
    next_link: u64,
    next_order: u64,
    directions: [Direction; 2],
    /// Until when no relay may carry a message, by its id.
    direct_until: BTreeMap<String, u64>,
    counts: Counts,
    /// Tags of messages that came to a receiver early, and not again since.
    early: BTreeSet<u64>,
    quiet: bool,
}

fn options() -> StoreOptions {
    StoreOptions { max_inbox_bytes: MAX_INBOX_BYTES, ..StoreOptions::default() }
}

impl World {
    pub(crate) fn new(seed: u64, plant: Plant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = [0, 1].map(|_| Node {
            peer: PeerId::random(),
            db: Db::in_memory(options(), rng.random()).unwrap(),
            consumed: Vec::new(),
            copies: Vec::new(),
            sender: Sender::new(),
            receiver: Receiver::new(HIGH_LIMIT, true),
            ops: VecDeque::new(),
            answers: VecDeque::new(),
            trusts: true,
            max_message_bytes: HIGH_LIMIT,
        });
        Self {
            rng,
            plant,
            now: 1,
            nodes,
            links: [Vec::new(), Vec::new()],
            next_link: 0,
            next_order: 0,
            directions: [Direction::default(), Direction::default()],
            direct_until: BTreeMap::new(),
            counts: Counts::default(),
            early: BTreeSet::new(),
            quiet: false,
        }
    }

    pub(crate) fn run(mut self) -> Result<Counts, String> {
        for _ in 0..STEPS {
            self.now += self.rng.random_range(0..400);
            self.step();
        }
        self.settle()?;
        for from in [0, 1] {
            let ends = self.ends(from);
            let log = self.log(1 - from);
            check(&self.directions[from], &ends, &log).map_err(|error| format!("from node {from}: {error}"))?;
            self.count(&ends);
        }
        Ok(self.counts)
    }

    fn count(&mut self, ends: &BTreeMap<String, End>) {
        let number = |end| ends.values().filter(|e| **e == end).count() as u64;
        self.counts.accepted += ends.len() as u64;
        self.counts.stored += number(End::Stored);
        self.counts.cancelled += number(End::Cancelled);
        self.counts.expired += number(End::Expired);
        self.counts.rejected += number(End::Rejected);
    }

    // What can happen

    fn step(&mut self) {
        let node = self.rng.random_range(0..2);
        match self.rng.random_range(0..100) {
            0..14 => self.app_sends(node),
            14..17 => self.nodes[node].ops.push_back(Op::Cancel { pick: self.rng.random() }),
            17..19 => self.nodes[node].ops.push_back(Op::Expire),
            19..24 => {
                let channel = self.rng.random_range(0..CHANNELS.len());
                self.nodes[node].ops.push_back(Op::Consume { channel });
            }
            24..40 => self.commit(node),
            40..52 => self.hand_answers(node),
            52..68 => self.carry(node),
            68..84 => self.progress(),
            84..88 => self.connect(node),
            88..90 => self.break_link(node),
            90..92 => self.crash(node),
            92..94 => self.crash_and_restore(node),
            94..96 => self.copy_store(node),
            96..98 => self.change_trust(node),
            _ => self.tick(node),
        }
    }

    /// Some rounds of a network that works.
    fn progress(&mut self) {
        for _ in 0..self.rng.random_range(1..12) {
            for node in [0, 1] {
                self.commit(node);
                self.hand_answers(node);
                self.carry(node);
            }
        }
    }

    fn app_sends(&mut self, node: usize) {
        for _ in 0..self.rng.random_range(1..5) {
            let channel = self.rng.random_range(0..CHANNELS.len());
            let size = if self.rng.random_bool(0.05) { 1_000 } else { self.rng.random_range(0..400) };
            let ttl = if self.rng.random_bool(0.1) { self.rng.random_range(1..5_000) } else { 10_000_000 };
            let order = self.next_order;
            self.next_order += 1;
            self.nodes[node].ops.push_back(Op::Send { channel, size, ttl, order });
        }
    }

    fn tick(&mut self, node: usize) {
        self.nodes[node].sender.handle(self.now, SenderInput::Tick);
        self.drain(node);
    }

    fn change_trust(&mut self, node: usize) {
        let trusts = self.quiet || self.rng.random_bool(0.5);
        self.nodes[node].trusts = trusts;
        self.nodes[node].receiver.handle(ReceiverInput::Trust(trusts));
        self.drain(node);
    }

    // The store

    /// Commits some of what waits, as one transaction.
    fn commit(&mut self, node: usize) {
        let count = self.rng.random_range(1..=self.nodes[node].ops.len().max(1));
        let ops: Vec<Op> = (0..count).filter_map(|_| self.nodes[node].ops.pop_front()).collect();
        self.nodes[node].db.begin().unwrap();
        let mut answers = Vec::new();
        for op in ops {
            answers.extend(self.run_op(node, op));
        }
        self.nodes[node].db.commit().unwrap();
        self.nodes[node].answers.extend(answers);
    }

    /// Names a tombstone to the sender, or, as if there were too many, does not.
    fn tell_buried(&mut self, node: usize, buried: Buried) -> Answer {
        let Buried { channel, epoch, seq, id, .. } = buried;
        if self.rng.random_ratio(1, 4) {
            self.nodes[node].ops.push_back(Op::Sender(SenderEffect::Rescan));
            return Answer::Sender(SenderInput::Recheck);
        }
        Answer::Sender(SenderInput::Buried { channel, epoch, seq, id })
    }

    fn run_op(&mut self, node: usize, op: Op) -> Option<Answer> {
        let other = self.nodes[1 - node].peer;
        match op {
            Op::Send { channel, size, ttl, order } => self.run_send(node, channel, size, ttl, order),
            Op::Cancel { pick } => {
                let (waiting, _) = self.nodes[node].db.list_outbox(None, None, Default::default(), 1000).unwrap();
                let record = waiting.get(usize::try_from(pick).unwrap_or(0) % waiting.len().max(1))?;
                let (_, buried) = self.nodes[node].db.cancel(record).unwrap();
                Some(self.tell_buried(node, buried?))
            }
            Op::Expire => {
                let buried = self.nodes[node].db.expire(self.now).unwrap();
                for buried in buried {
                    let answer = self.tell_buried(node, buried);
                    self.nodes[node].answers.push_back(answer);
                }
                None
            }
            Op::Sender(effect) => {
                match &effect {
                    SenderEffect::Renumber { .. } => self.counts.renumbered += 1,
                    SenderEffect::Resolved { .. } => self.counts.pending_resolved += 1,
                    _ => {}
                }
                let asked = match (&effect, self.plant) {
                    (SenderEffect::Prepare { .. }, Plant::SequenceReused) => self.asked_tag(node, &effect),
                    _ => None,
                };
                let mut answer = run_sender(&mut self.nodes[node].db, &other, effect).unwrap();
                if let (Some((high, tag)), Some(SenderInput::Prepared { info: Some(info), .. })) = (asked, &mut answer)
                {
                    // As if the two were never compared.
                    info.last = info.last.max(high);
                    info.tag_at = Some(tag);
                    info.acked_tag = if info.acked == high { tag } else { info.acked_tag };
                    info.gap_is_message = false;
                }
                answer.map(Answer::Sender)
            }
            Op::Receiver(effect, route) => self.run_receive(node, other, effect, route),
            Op::Consume { channel } => {
                self.consume(node, channel);
                Some(Answer::Receiver(ReceiverInput::Room))
            }
        }
    }

    /// The tag that the peer named in LANE_STATE, which the plant takes for its
    /// own.
    fn asked_tag(&self, node: usize, effect: &SenderEffect) -> Option<(u64, u64)> {
        let SenderEffect::Prepare { channel, epoch, high, .. } = effect else { return None };
        let state = self.nodes[1 - node].db.open_lane(&self.nodes[node].peer, channel, *epoch, &[]).unwrap().ok()?;
        (state.high == *high).then_some((state.high, state.tag))
    }

    fn run_send(&mut self, node: usize, channel: usize, size: usize, ttl: u64, order: u64) -> Option<Answer> {
        let id = format!("{node}-{order}");
        let content = Content { id: id.clone(), payload: vec![order as u8; size].into(), ..Content::default() };
        let message = NewMessage {
            peer: self.nodes[1 - node].peer,
            channel: CHANNELS[channel].into(),
            content,
            ttl_ms: ttl,
            path: match order % 8 {
                0 => PathPolicy::DirectOnly,
                1 => PathPolicy::PreferDirect(2_000),
                _ => PathPolicy::Any,
            },
            digest: Vec::new(),
        };
        match self.nodes[node].db.enqueue(message, self.now, 0).unwrap() {
            Enqueued::New(queued) => {
                self.direct_until.insert(id.clone(), queued.row.direct_until);
                self.directions[node].order.insert(id, order);
                let channel = CHANNELS[channel].into();
                Some(Answer::Sender(SenderInput::Appended { channel, epoch: queued.epoch, row: queued.row }))
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn run_receive(&mut self, node: usize, other: PeerId, effect: ReceiverEffect, route: Route) -> Option<Answer> {
        let mut only_gaps = false;
        if let ReceiverEffect::Commit(batch) = &effect {
            only_gaps = batch.iter().all(|item| matches!(item.kind, InboundKind::Gap { .. }));
            for item in batch {
                if let InboundKind::Message { content, .. } = &item.kind
                    && !self.nodes[node].db.was_stored(&other, &item.channel, &content.id).unwrap()
                {
                    self.directions[1 - node].epochs.insert(content.id.clone(), item.epoch);
                }
            }
        }
        let arrival = Arrival { peer: other, route, now: self.now, wall: 0 };
        let (input, done) = run_receiver(&mut self.nodes[node].db, &arrival, effect).unwrap()?;
        let lost = done.map_or(0, |done| done.lost);
        self.directions[1 - node].lost += lost;
        self.counts.lost_by_restore += lost;
        if let ReceiverInput::Committed(lanes) = &input {
            self.counts.refused_full += lanes.iter().filter(|lane| lane.refused.is_some()).count() as u64;
        }
        let muted = self.plant == Plant::SkipNotAcked && only_gaps && matches!(input, ReceiverInput::Committed(_));
        (!muted).then_some(Answer::Receiver(input))
    }

    fn consume(&mut self, node: usize, channel: usize) {
        let name = CHANNELS[channel];
        let db = &mut self.nodes[node].db;
        db.open_consumer(name, "app").unwrap();
        let rows = read_inbox(db, name);
        let Some(last) = rows.last().map(|(cursor, _)| *cursor) else { return };
        let done = db.acknowledge(name, "app", last).unwrap();
        assert!(matches!(done, Acknowledged::At { .. }));
        self.nodes[node].consumed.extend(rows.into_iter().map(|(_, arrived)| arrived));
    }

    fn hand_answers(&mut self, node: usize) {
        for _ in 0..self.rng.random_range(1..8) {
            let Some(answer) = self.nodes[node].answers.pop_front() else { break };
            match answer {
                Answer::Sender(input) => self.nodes[node].sender.handle(self.now, input),
                Answer::Receiver(input) => self.nodes[node].receiver.handle(input),
            }
        }
        self.drain(node);
    }

    /// Carries out what the machines of a node want.
    fn drain(&mut self, node: usize) {
        while let Some(effect) = self.nodes[node].sender.poll() {
            match effect {
                SenderEffect::Send(number, frame) => {
                    let hole = |skip: &Skip| skip.from > 1 && !skip.lost && skip.id.is_none();
                    self.counts.holes += u64::from(matches!(&frame, Forward::Skip(skip) if hole(skip)));
                    let until = match &frame {
                        Forward::Data(data) => self.direct_until.get(&data.content.id).copied().unwrap_or_default(),
                        _ => 0,
                    };
                    let now = self.now;
                    if let Some(link) = self.link(node, number).filter(|link| link.up_at_sender) {
                        assert!(link.route != Route::Relayed || until <= now, "sent through a relay: {frame:?}");
                        link.forward.push_back(frame);
                    }
                }
                SenderEffect::Close(number, why) => self.close(node, number, true, why),
                SenderEffect::EphemeralDone(..) => {}
                effect => self.nodes[node].ops.push_back(Op::Sender(effect)),
            }
        }
        let held = self.nodes[node].sender.take_held();
        self.counts.held += u64::from(held.is_some_and(|held| !held.is_empty()));
        while let Some(effect) = self.nodes[node].receiver.poll() {
            match effect {
                ReceiverEffect::Send(number, frame) => {
                    if let Some(link) = self.link(1 - node, number).filter(|link| link.up_at_receiver) {
                        link.back.push_back(frame);
                    }
                }
                ReceiverEffect::Close(number, why) => self.close(1 - node, number, false, why),
                ReceiverEffect::Ephemeral { .. } => {}
                effect => {
                    if let ReceiverEffect::Commit(batch) = &effect {
                        self.counts.early += batch.iter().filter(|item| self.early.remove(&item.tag)).count() as u64;
                    }
                    if self.plant == Plant::AckBeforeCommit {
                        self.answer_early(node, &effect);
                    }
                    self.nodes[node].ops.push_back(Op::Receiver(effect, Route::Lan));
                }
            }
        }
    }

    /// The planted bug: a batch counts as done before it is.
    fn answer_early(&mut self, node: usize, effect: &ReceiverEffect) {
        let ReceiverEffect::Commit(batch) = effect else { return };
        let mut lanes: BTreeMap<(p2p_node::types::Channel, u64), u64> = BTreeMap::new();
        for item in batch {
            let high = match &item.kind {
                InboundKind::Gap { to, .. } => *to,
                InboundKind::Message { .. } => item.seq,
            };
            lanes.insert((item.channel.clone(), item.epoch), high);
        }
        let lanes = lanes
            .into_iter()
            .map(|((channel, epoch), high)| p2p_node::protocol::BatchLane {
                channel,
                epoch,
                high,
                refused: None,
                outcomes: Vec::new(),
            })
            .collect();
        self.nodes[node].answers.push_back(Answer::Receiver(ReceiverInput::Committed(lanes)));
    }

    // Links

    fn link(&mut self, from: usize, number: u64) -> Option<&mut Link> {
        self.links[from].iter_mut().find(|link| link.number == number)
    }

    fn close(&mut self, from: usize, number: u64, by_sender: bool, why: &str) {
        // Only a broken peer is hung up on for these.
        let harmless = ["replaced", "shutting down", "done", "store failed"].iter().any(|word| why.contains(word));
        assert!(harmless || self.plant != Plant::None, "link closed: {why}");
        if let Some(link) = self.link(from, number) {
            if by_sender {
                link.up_at_sender = false;
            } else {
                link.up_at_receiver = false;
            }
        }
    }

    fn connect(&mut self, from: usize) {
        self.next_link += 1;
        self.counts.links += 1;
        let number = self.next_link;
        let route = if self.rng.random_bool(0.3) { Route::Relayed } else { Route::Direct };
        self.links[from].push(Link {
            number,
            route,
            forward: VecDeque::new(),
            back: VecDeque::new(),
            up_at_sender: true,
            up_at_receiver: true,
        });
        let first = self.rng.random_bool(0.5);
        for side in [first, !first] {
            if side {
                self.nodes[from].sender.handle(self.now, SenderInput::LinkUp(number, route));
                self.drain(from);
            } else {
                self.nodes[1 - from].receiver.handle(ReceiverInput::LinkUp(number));
                self.drain(1 - from);
            }
        }
        if self.links[from].len() > 3 {
            self.links[from].remove(0);
        }
    }

    /// Moves some frames of one direction; a link that one side has closed
    /// ends for the other once its frames are through.
    fn carry(&mut self, from: usize) {
        if self.links[from].is_empty() {
            return;
        }
        let at = if self.rng.random_bool(0.8) || self.quiet {
            self.links[from].len() - 1
        } else {
            self.rng.random_range(0..self.links[from].len())
        };
        let number = self.links[from][at].number;
        let frames = self.rng.random_range(1..24);
        for _ in 0..frames {
            let link = &mut self.links[from][at];
            let Some(frame) = link.forward.pop_front() else { break };
            if link.up_at_receiver {
                if let Forward::Data(data) = &frame {
                    let _ = match data.after {
                        Some(_) => self.early.insert(data.tag),
                        None => self.early.remove(&data.tag),
                    };
                }
                self.nodes[1 - from].receiver.handle(ReceiverInput::Frame(number, frame));
            }
        }
        self.nodes[1 - from].receiver.handle(ReceiverInput::Flush);
        self.drain(1 - from);
        for _ in 0..frames {
            let Some(link) = self.link(from, number) else { return };
            let Some(frame) = link.back.pop_front() else { break };
            if link.up_at_sender {
                self.nodes[from].sender.handle(self.now, SenderInput::Frame(number, frame));
                self.drain(from);
            }
        }
        self.end_of_stream(from, number);
    }

    fn end_of_stream(&mut self, from: usize, number: u64) {
        let Some(link) = self.link(from, number) else { return };
        if !link.up_at_receiver && link.back.is_empty() && link.up_at_sender {
            link.up_at_sender = false;
            self.nodes[from].sender.handle(self.now, SenderInput::LinkDown(number));
            self.drain(from);
        } else if !link.up_at_sender && link.forward.is_empty() && link.up_at_receiver {
            link.up_at_receiver = false;
            self.nodes[1 - from].receiver.handle(ReceiverInput::LinkDown(number));
            self.drain(1 - from);
        }
    }

    /// All frames on the way are lost; each side notices.
    fn break_link(&mut self, from: usize) {
        let Some(link) = self.links[from].last_mut() else { return };
        link.forward.clear();
        link.back.clear();
        let number = link.number;
        if std::mem::take(&mut link.up_at_sender) {
            self.nodes[from].sender.handle(self.now, SenderInput::LinkDown(number));
            self.drain(from);
        }
        if self.link(from, number).is_some_and(|link| std::mem::take(&mut link.up_at_receiver)) {
            self.nodes[1 - from].receiver.handle(ReceiverInput::LinkDown(number));
            self.drain(1 - from);
        }
    }

    // Crashes

    /// The process is gone, with all that was not committed.
    fn crash(&mut self, node: usize) {
        self.counts.crashes += 1;
        for from in [0, 1] {
            while !self.links[from].is_empty() {
                self.break_link(from);
                self.links[from].pop();
            }
        }
        let raised = self.quiet || self.rng.random_bool(0.5);
        let this = &mut self.nodes[node];
        this.max_message_bytes = if raised { HIGH_LIMIT } else { LOW_LIMIT };
        this.ops.clear();
        this.answers.clear();
        this.sender = Sender::new();
        this.receiver = Receiver::new(this.max_message_bytes, this.trusts);
        // A new process has no open links in its store's memory either.
        let seed = self.rng.random();
        this.db = this.db.copy(seed).unwrap();
        if self.plant != Plant::SequenceReused {
            this.db.begin().unwrap();
            this.db.begin_session().unwrap();
            this.db.commit().unwrap();
        }
        this.ops.push_back(Op::Sender(SenderEffect::Rescan));
    }

    fn copy_store(&mut self, node: usize) {
        let seed = self.rng.random();
        let this = &mut self.nodes[node];
        let copy = this.db.copy(seed).unwrap();
        this.copies.push((copy, this.consumed.clone()));
    }

    fn crash_and_restore(&mut self, node: usize) {
        if self.nodes[node].copies.is_empty() || self.rng.random_bool(0.3) {
            return;
        }
        self.counts.rollbacks += 1;
        let at = self.rng.random_range(0..self.nodes[node].copies.len());
        let before = self.log(node);
        let seed = self.rng.random();
        let (copy, consumed) = &self.nodes[node].copies[at];
        let (copy, consumed) = (copy.copy(seed).unwrap(), consumed.clone());
        self.nodes[node].db = copy;
        self.nodes[node].consumed = consumed;
        self.directions[1 - node].rolled_back.extend(before.into_iter().map(|arrived| arrived.id));
        self.directions[node].sender_restored = true;
        self.crash(node);
    }

    // The end

    /// Lets everything come to rest without further faults.
    fn settle(&mut self) -> Result<(), String> {
        self.quiet = true;
        for node in [0, 1] {
            self.crash_for_limit(node);
            self.change_trust(node);
            self.connect(node);
        }
        for step in 0..QUIET_STEPS {
            self.now += 5_000;
            for node in [0, 1] {
                self.tick(node);
                self.commit(node);
                self.hand_answers(node);
                self.carry(node);
                for channel in 0..CHANNELS.len() {
                    self.nodes[node].ops.push_back(Op::Consume { channel });
                }
                // A relay is left for a direct path sooner or later.
                let better = step % 64 == 63;
                if self.links[node].last().is_none_or(|link| {
                    !link.up_at_sender || !link.up_at_receiver || (better && link.route == Route::Relayed)
                }) {
                    self.connect(node);
                }
            }
            if step % 16 == 15 && (0..2).all(|node| self.is_finished(node)) {
                return Ok(());
            }
        }
        Err(format!("never came to rest: {:?}", [0, 1].map(|node| self.unfinished(node))))
    }

    /// A node whose limit is low rejects for good; that is part of the run, but
    /// its limit must not change while it settles.
    fn crash_for_limit(&mut self, node: usize) {
        if self.nodes[node].max_message_bytes == LOW_LIMIT && self.rng.random_bool(0.5) {
            self.crash(node);
        }
    }

    fn is_finished(&self, node: usize) -> bool {
        self.ends(node).values().all(|end| *end != End::Unfinished)
    }

    /// What did not come to rest, and the machine that should have seen to it.
    fn unfinished(&self, node: usize) -> Vec<String> {
        let ends = self.ends(node).into_iter().filter(|(_, end)| *end == End::Unfinished);
        let records = ends.map(|(id, _)| format!("{:?}", self.nodes[node].db.find_sent(&id, None, None)));
        records.chain([format!("{:?}", self.nodes[node].sender)]).collect()
    }

    /// How a node sees each message that it knows to have sent.
    fn ends(&self, node: usize) -> BTreeMap<String, End> {
        let db = &self.nodes[node].db;
        let mut ends = BTreeMap::new();
        for id in self.directions[node].order.keys() {
            for record in db.find_sent(id, None, None).unwrap() {
                let end = match record.progress {
                    Progress::Done(Final::Stored) => End::Stored,
                    Progress::Done(Final::Cancelled) => End::Cancelled,
                    Progress::Done(Final::Expired) => End::Expired,
                    Progress::Done(Final::TooLarge) => End::Rejected,
                    _ => End::Unfinished,
                };
                ends.insert(id.clone(), end);
            }
        }
        ends
    }

    /// What arrived at a node, in order per channel: consumed and not.
    fn log(&self, node: usize) -> Vec<Arrived> {
        let mut log = self.nodes[node].consumed.clone();
        for name in CHANNELS {
            log.extend(read_inbox(&self.nodes[node].db, name).into_iter().map(|(_, arrived)| arrived));
        }
        log
    }
}

fn read_inbox(db: &Db, channel: &str) -> Vec<(u64, Arrived)> {
    let page = db.read_inbox(channel, 0, 100_000, u64::MAX).unwrap();
    assert_eq!(page.damaged, None);
    page.rows.into_iter().map(|row| (row.cursor, Arrived { channel: channel.to_owned(), id: row.content.id })).collect()
}
