//! Messages from apps: into the outbox, and what becomes of them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use libp2p::PeerId;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Delivery, DeliveryError, Inner,
    hub::EphemeralArrival,
    outbox::{Outbox, Request},
    progress::LaneProgress,
};
use crate::{
    clock,
    protocol::{EphemeralEnd, Inbound, InboundKind, Millis},
    store::{
        Arrival, CHANNELS_LIMIT, Db, Enqueued, Final, NewMessage, OutboxLimit, Progress, Queued, SentRecord,
        StoreError, Trust,
    },
    types::{Channel, Content, Epoch, PathPolicy, Route, Seq},
    wire::{EphemeralOutcome, Limit},
};

/// A message and how to treat it. Sizes were checked before.
#[derive(Debug, Clone)]
pub struct SendSpec {
    /// The recipient.
    pub peer: PeerId,
    /// The channel.
    pub channel: Channel,
    /// The message; an empty id is replaced by a new one.
    pub content: Content,
    /// The timestamp is the app's, and counts when two messages of one id are
    /// compared.
    pub dated: bool,
    /// Time to live.
    pub ttl_ms: Millis,
    /// Over which routes it may go.
    pub path: PathPolicy,
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// On this node's disk.
    Queued,
    /// Perhaps seen by the peer.
    Sent,
    /// On the peer's disk.
    Stored,
    /// Given up after its time.
    Expired,
    /// Taken back.
    Cancelled,
    /// Never to be stored.
    Rejected,
}

/// Why a message is where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to say.
    Fine,
    /// No connection.
    NotConnected,
    /// The peer does not trust this node.
    Untrusted,
    /// A limit of the peer.
    RemoteFull(Limit),
    /// Larger than the peer takes.
    TooLarge,
    /// Ephemeral: nobody listens.
    NoConsumer,
    /// Ephemeral: no connection came up in time.
    Unreachable,
    /// Ephemeral: the link broke.
    LinkLost,
    /// Ephemeral: those who listen are behind.
    ConsumerBusy,
    /// This node does not trust the peer any more.
    NotInBook,
    /// It waits for a direct path, and the peer is relayed.
    OnlyRelayed,
}

/// What is known of a message that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub state: State,
    /// Why.
    pub outcome: Outcome,
    /// The id came before, with the same content.
    pub duplicate: bool,
    /// Position in its lane; 0 for an ephemeral one.
    pub seq: Seq,
}

/// A message in the outbox whose end can be waited for.
#[derive(Debug, Clone)]
pub struct Pending {
    /// As it was when it was taken.
    pub sent: Sent,
    pub(super) peer: PeerId,
    pub(super) channel: Channel,
    pub(super) epoch: Epoch,
    pub(super) disturbed: u64,
    pub(super) outbox: Option<Arc<Outbox>>,
}

/// What the store says of a message that waits.
enum Told {
    Is(Sent),
    /// It has ended, and so many others since that nobody knows how.
    Forgotten,
    /// It cannot be asked now.
    Nothing,
}

/// A quick look at a message that waits.
pub(super) enum Look {
    Stored,
    Waiting,
    AskStore,
}

impl State {
    /// Nothing changes it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Sent)
    }
}

fn digest(spec: &SendSpec) -> Vec<u8> {
    /// Half of the hash: far from any accidental match.
    const BYTES: usize = 16;
    let content = &spec.content;
    let mut hash = blake3::Hasher::new();
    let dated = if spec.dated { content.timestamp } else { 0 };
    let texts = [&content.kind, &content.reply_to].into_iter().chain(content.metadata.iter().flat_map(|(k, v)| [k, v]));
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(&dated.to_le_bytes());
    hash.update(&content.payload);
    hash.finalize().as_bytes()[..BYTES].to_vec()
}

/// Position, epoch and state as the store has them.
pub(super) fn progress_state(progress: Progress) -> (State, Outcome) {
    match progress {
        Progress::Queued => (State::Queued, Outcome::Fine),
        Progress::Sent | Progress::Pending(_) => (State::Sent, Outcome::Fine),
        Progress::Done(Final::Stored) => (State::Stored, Outcome::Fine),
        Progress::Done(Final::Expired) => (State::Expired, Outcome::Fine),
        Progress::Done(Final::Cancelled) => (State::Cancelled, Outcome::Fine),
        Progress::Done(Final::TooLarge) => (State::Rejected, Outcome::TooLarge),
    }
}

/// What became of one item in the store's transaction.
enum Taken {
    Out { queued: Queued, peer: PeerId, channel: Channel, id: String },
    Own { sent: Sent, channel: Channel, wakes: bool },
    OwnFull,
    Duplicate(SentRecord),
    Conflict { id: String },
    Full(OutboxLimit),
}

/// An error undoes the whole operation of the store; what is refused has changed
/// nothing.
fn take(db: &mut Db, local: PeerId, message: NewMessage, now: Millis) -> Result<Taken, StoreError> {
    if message.peer == local {
        // A full inbox is noticed after the outbox has taken it.
        return match db.isolated(|db| enqueue(db, Some(message.clone()), message, now)) {
            Err(StoreError::InboxFull) => Ok(Taken::OwnFull),
            other => other,
        };
    }
    enqueue(db, None, message, now)
}

fn enqueue(db: &mut Db, own: Option<NewMessage>, message: NewMessage, now: Millis) -> Result<Taken, StoreError> {
    let (peer, channel, id) = (message.peer, message.channel.clone(), message.content.id.clone());
    match db.enqueue(message, now, clock::wall_ms())? {
        Enqueued::Duplicate(record) => Ok(Taken::Duplicate(record)),
        Enqueued::Conflict => Ok(Taken::Conflict { id }),
        Enqueued::Full(limit) => Ok(Taken::Full(limit)),
        Enqueued::New(queued) => match own {
            None => Ok(Taken::Out { queued, peer, channel, id }),
            Some(message) => take_own(db, message, &queued, now),
        },
    }
}

/// To oneself: through both halves of the store, in one step.
fn take_own(db: &mut Db, message: NewMessage, queued: &Queued, now: Millis) -> Result<Taken, StoreError> {
    let NewMessage { peer, channel, content, .. } = message;
    let (seq, tag, epoch, id) = (queued.row.seq, queued.row.tag, queued.epoch, content.id.clone());
    let arrival = Arrival { peer, route: Route::Lan, now, wall: clock::wall_ms() };
    let at = |seq, kind| Inbound { channel: channel.clone(), epoch, seq, tag, kind };
    let mut batch = vec![at(seq, InboundKind::Message { content })];
    // An app of this node asks for it, not a peer.
    if !db.make_channel(&channel)? {
        return Err(StoreError::InboxFull);
    }
    let high = db.open_lane(&peer, &channel, epoch, &[])?.map_or(0, |lane| lane.high);
    if high + 1 < seq {
        // The positions before are of other epochs.
        batch.insert(0, at(high + 1, InboundKind::Gap { to: seq - 1, lost: false, id: None }));
    }
    let done = db.commit_inbound(&arrival, batch)?;
    if done.lanes.iter().any(|lane| lane.refused.is_some()) {
        return Err(StoreError::InboxFull);
    }
    db.acked(&peer, &channel, epoch, seq, tag)?;
    let sent = Sent { id, state: State::Stored, outcome: Outcome::Fine, duplicate: false, seq };
    Ok(Taken::Own { sent, channel, wakes: done.stored > 0 })
}

impl Inner {
    fn may_send(&self, peer: &PeerId) -> Result<(), DeliveryError> {
        match self.trust(peer) {
            Some(Trust::Blocked) => Err(DeliveryError::Blocked(*peer)),
            _ if *peer == self.local || self.is_trusted(peer) => Ok(()),
            _ => Err(DeliveryError::NotInBook(*peer)),
        }
    }

    /// Called on the store's thread, in commit order.
    fn tell_taken(self: &Arc<Self>, taken: &[Taken]) {
        for item in taken {
            match item {
                Taken::Out { queued, peer, channel, .. } => {
                    self.appended(peer, channel.clone(), queued.epoch, queued.row.clone());
                }
                Taken::Own { channel, wakes: true, .. } => self.hub.wake(channel),
                _ => {}
            }
        }
    }
}

impl Delivery {
    /// Puts messages into the outbox, in order, in one transaction; each that
    /// is taken is on disk when this returns.
    ///
    /// # Errors
    /// Of the whole: the store failed, or the daemon is shutting down. Of an
    /// item: it is refused, and nothing of it is kept.
    pub async fn send(&self, specs: Vec<SendSpec>) -> Result<Vec<Result<Pending, DeliveryError>>, DeliveryError> {
        if self.inner.stop.is_cancelled() {
            return Err(DeliveryError::Closed);
        }
        let (now, local) = (self.inner.clock.now(), self.inner.local);
        let (mut answers, mut batch, mut lanes) = (Vec::new(), Vec::new(), VecDeque::new());
        for spec in specs {
            let allowed = self.inner.may_send(&spec.peer);
            if allowed.is_ok() {
                lanes.push_back(self.lane_before(&spec));
                self.inner.expires(now.saturating_add(spec.ttl_ms));
                batch.push(new_message(spec));
            }
            answers.push(allowed.err());
        }
        let inner = self.inner.clone();
        let taken: Vec<Taken> = self
            .inner
            .store
            .write_then(
                move |db| batch.into_iter().map(|message| take(db, local, message, now)).collect(),
                move |taken: &Vec<Taken>| inner.tell_taken(taken),
            )
            .await?;
        let mut taken = taken.into_iter().zip(lanes);
        let answer = |refused: Option<DeliveryError>| match refused {
            Some(error) => Err(error),
            None => taken.next().map_or(Err(DeliveryError::Closed), |(taken, lane)| answer(taken, lane)),
        };
        Ok(answers.into_iter().map(answer).collect())
    }

    /// The lane as it is before a message is put into it, so that no change
    /// after that is missed.
    fn lane_before(&self, spec: &SendSpec) -> LaneBefore {
        let outbox = (spec.peer != self.inner.local).then(|| self.inner.outbox(&spec.peer));
        let disturbed = outbox.as_ref().map_or(0, |outbox| outbox.progress.lane(&spec.channel).disturbed);
        LaneBefore { outbox, disturbed }
    }

    /// Hands over a message that no store keeps. Messages to one peer go in the
    /// order of these calls.
    ///
    /// # Errors
    /// The peer is not in the book, or blocked.
    pub async fn send_ephemeral(&self, spec: SendSpec, deadline: Instant) -> Result<Ephemeral, DeliveryError> {
        self.inner.may_send(&spec.peer)?;
        let SendSpec { peer, channel, mut content, path, .. } = spec;
        if content.id.is_empty() {
            content.id = uuid::Uuid::now_v7().to_string();
        }
        let id = content.id.clone();
        let (reply, end) = oneshot::channel();
        if peer == self.inner.local {
            let (route, received_at) = (Route::Lan, clock::wall_ms());
            let arrival = EphemeralArrival { peer, route, received_at, content: Arc::new(content) };
            let outcome = self.inner.hub.hand_over(&channel, &arrival);
            // The receiving half is just below.
            let _ = reply.send(EphemeralEnd::Answered(outcome));
        } else {
            let left = deadline.saturating_duration_since(Instant::now());
            let now = self.inner.clock.now();
            let at = now.saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            let direct_until = path.until(now);
            let request = Request::Ephemeral { channel, content, direct_until, deadline: at, reply };
            self.inner.ask_in_turn(&peer, request).await;
        }
        Ok(Ephemeral { id, end, deadline })
    }

    /// Waits until a message has ended, or until the deadline, and tells where
    /// it is then.
    pub async fn wait(&self, pending: Pending, deadline: Instant) -> Sent {
        let Some(outbox) = pending.outbox.clone().filter(|_| !pending.sent.state.is_final()) else {
            return pending.sent;
        };
        let mut watch = outbox.progress.watch();
        loop {
            watch.borrow_and_update();
            if let Some(sent) = self.settled(&pending, &outbox).await {
                return sent;
            }
            if !matches!(timeout_at(deadline, watch.changed()).await, Ok(Ok(()))) {
                return self.unfinished(&pending).await;
            }
        }
    }

    async fn settled(&self, pending: &Pending, outbox: &Outbox) -> Option<Sent> {
        match pending.look(outbox.progress.lane(&pending.channel)) {
            Look::Stored => Some(pending.clone().stored()),
            Look::Waiting => None,
            Look::AskStore => match self.ask_store(pending).await {
                Told::Forgotten => Some(pending.clone().forgotten()),
                Told::Is(sent) => Some(sent).filter(|sent| sent.state.is_final()),
                Told::Nothing => None,
            },
        }
    }

    async fn ask_store(&self, pending: &Pending) -> Told {
        match self.find(&pending.sent.id, Some(pending.peer), Some(pending.channel.clone())).await {
            Ok(record) => {
                let (state, outcome) = progress_state(record.progress);
                Told::Is(Sent { state, outcome, ..pending.sent.clone() })
            }
            Err(DeliveryError::NoMessage { .. }) => Told::Forgotten,
            Err(_) => Told::Nothing,
        }
    }

    async fn unfinished(&self, pending: &Pending) -> Sent {
        let mut sent = match self.ask_store(pending).await {
            Told::Forgotten => return pending.clone().forgotten(),
            Told::Is(sent) => sent,
            Told::Nothing => pending.sent.clone(),
        };
        if !sent.state.is_final() {
            sent.outcome = self.why_waiting(&pending.peer, Some((&pending.channel, sent.seq)));
            if sent.outcome == Outcome::OnlyRelayed {
                // The store notes only that the lane is on a link.
                sent.state = State::Queued;
            }
        }
        sent
    }
}

fn new_message(spec: SendSpec) -> NewMessage {
    let digest = if spec.content.id.is_empty() { Vec::new() } else { digest(&spec) };
    let SendSpec { peer, channel, mut content, ttl_ms, path, .. } = spec;
    if content.id.is_empty() {
        content.id = uuid::Uuid::now_v7().to_string();
    }
    NewMessage { peer, channel, content, ttl_ms, path, digest }
}

/// An ephemeral message under way.
#[derive(Debug)]
pub struct Ephemeral {
    id: String,
    end: oneshot::Receiver<EphemeralEnd>,
    deadline: Instant,
}

impl Ephemeral {
    /// Waits for its end.
    ///
    /// # Errors
    /// Too many are under way to this peer.
    pub async fn end(self) -> Result<Sent, DeliveryError> {
        /// The peer's task answers at the deadline by itself; a little later
        /// is the end for a peer that does not answer.
        const GRACE: Duration = Duration::from_millis(100);
        let end = match timeout_at(self.deadline + GRACE, self.end).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) | Err(_) => EphemeralEnd::LinkLost,
        };
        let (state, outcome) = match end {
            EphemeralEnd::Answered(EphemeralOutcome::Handed) => (State::Stored, Outcome::Fine),
            EphemeralEnd::Answered(EphemeralOutcome::NoConsumer) => (State::Rejected, Outcome::NoConsumer),
            EphemeralEnd::Answered(EphemeralOutcome::Busy | EphemeralOutcome::Other) => {
                (State::Rejected, Outcome::ConsumerBusy)
            }
            EphemeralEnd::Unreachable => (State::Rejected, Outcome::Unreachable),
            EphemeralEnd::OnlyRelayed => (State::Rejected, Outcome::OnlyRelayed),
            EphemeralEnd::Untrusted => (State::Rejected, Outcome::Untrusted),
            EphemeralEnd::LinkLost => (State::Rejected, Outcome::LinkLost),
            EphemeralEnd::TooLarge(_) => (State::Rejected, Outcome::TooLarge),
            EphemeralEnd::QueueFull => {
                let (what, max) = ("ephemeral messages under way to this peer", crate::protocol::MAX_EPHEMERAL as u64);
                return Err(DeliveryError::TooMany {
                    what,
                    used: max,
                    max,
                    remedy: "send slower, or send durable messages",
                });
            }
        };
        Ok(Sent { id: self.id, state, outcome, duplicate: false, seq: 0 })
    }
}

/// What is known of a lane before a message is put into it.
struct LaneBefore {
    /// None for messages to oneself.
    outbox: Option<Arc<Outbox>>,
    disturbed: u64,
}

fn answer(taken: Taken, LaneBefore { outbox, disturbed }: LaneBefore) -> Result<Pending, DeliveryError> {
    let sent = |id, state, outcome, duplicate, seq| Sent { id, state, outcome, duplicate, seq };
    match taken {
        Taken::Out { queued, peer, channel, id } => {
            let sent = sent(id, State::Queued, Outcome::Fine, false, queued.row.seq);
            Ok(Pending { sent, peer, channel, epoch: queued.epoch, disturbed, outbox })
        }
        Taken::Own { sent, channel, .. } => {
            // It has ended: nobody looks at the rest.
            Ok(Pending { sent, peer: PeerId::random(), channel, epoch: 0, disturbed, outbox: None })
        }
        Taken::Duplicate(record) => {
            let (state, outcome) = progress_state(record.progress);
            let SentRecord { id, peer, channel, epoch, seq, .. } = record;
            // Its lane may have been disturbed at any time before.
            Ok(Pending { sent: sent(id, state, outcome, true, seq), peer, channel, epoch, disturbed: u64::MAX, outbox })
        }
        Taken::OwnFull => Err(DeliveryError::InboxFull),
        Taken::Conflict { id } => Err(DeliveryError::Conflict { id }),
        // No message that goes makes room for another channel.
        Taken::Full(OutboxLimit { limit: CHANNELS_LIMIT, used, max }) => {
            Err(DeliveryError::TooMany { what: CHANNELS_LIMIT, used, max, remedy: "use the channels that there are" })
        }
        Taken::Full(limit) => Err(DeliveryError::Full(limit)),
    }
}

impl Pending {
    pub(super) fn stored(self) -> Sent {
        Sent { state: State::Stored, outcome: Outcome::Fine, ..self.sent }
    }

    /// Ended, in a way that is not known any more.
    pub(super) fn forgotten(self) -> Sent {
        Sent { state: State::Sent, outcome: Outcome::Fine, ..self.sent }
    }

    /// Where its lane is, as far as that can be told without the store.
    pub(super) fn look(&self, lane: LaneProgress) -> Look {
        if lane.disturbed != self.disturbed {
            Look::AskStore
        } else if lane.epoch == self.epoch && lane.acked >= self.sent.seq {
            Look::Stored
        } else {
            Look::Waiting
        }
    }
}
