//! The task that drives one peer's [`Sender`].
//!
//! It owns the outbound link to the peer while there is one. Wishes to the
//! store are run as one operation at a time, in order; what comes up meanwhile
//! goes into the next. Acknowledgements are written late, together: they only
//! tidy up, and an older state is harmless.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use libp2p::PeerId;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    Inner,
    effects::run_sender,
    link::{self, OpenLink},
    outbox::{News, Outbox, Request},
    progress::lock,
    silence::Silence,
    task::answered,
};
use crate::{
    node::{Direction, Link, Received},
    protocol::{EphemeralEnd, Sender, SenderEffect, SenderInput},
    store::{Buried, StoreError},
    types::{Channel, Presence},
    wire::{Back, Forward, Full},
};

/// Frames taken from a link at a time.
const MAX_FRAMES: usize = 256;
/// Requests taken from the mailbox at a time.
const MAX_REQUESTS: usize = 256;
/// Wishes to the store that wait. Past that nothing more is read from the
/// peer, whose answers make them.
const MAX_WISHES: usize = 4096;
/// Who holds a task's outside when nobody else does: the table and the task.
const HOLDERS: usize = 2;
/// How long acknowledgements wait to be written together.
const ACK_DELAY: Duration = Duration::from_millis(25);
/// How long to wait after a failure of the store.
const STORE_RETRY: Duration = Duration::from_secs(2);

type StoreAnswer = Pin<Box<dyn Future<Output = Result<Vec<SenderInput>, StoreError>> + Send>>;

pub(super) struct Task {
    inner: Arc<Inner>,
    outbox: Arc<Outbox>,
    peer: PeerId,
    sender: Sender,
    link: Option<OpenLink<Forward, Back>>,
    /// The link before, as long as the machine keeps it.
    old: Option<OpenLink<Forward, Back>>,
    silence: Silence,
    wishes: Vec<SenderEffect>,
    /// The wishes are only acknowledgements, to be written by then.
    due: Option<Instant>,
    store: Option<StoreAnswer>,
    /// Channels of messages whose ends it is writing down.
    resolving: BTreeSet<Channel>,
    replies: HashMap<u64, oneshot::Sender<EphemeralEnd>>,
    next_key: u64,
    wanted: bool,
    /// The machine knows its lanes.
    scanned: bool,
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Task {
    pub(super) fn new(inner: Arc<Inner>, outbox: Arc<Outbox>, peer: PeerId) -> Self {
        Self {
            inner,
            outbox,
            peer,
            sender: Sender::new(),
            link: None,
            old: None,
            silence: Silence::default(),
            wishes: vec![SenderEffect::Rescan],
            due: None,
            store: None,
            resolving: BTreeSet::new(),
            replies: HashMap::new(),
            next_key: 0,
            wanted: false,
            scanned: false,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut book = self.inner.book_version.subscribe();
        let mut announced = self.inner.announced.watch();
        self.tell_presence(&mut announced);
        let stop = self.inner.stop.clone();
        let (mut received, mut of_old, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            self.carry_out();
            self.tell_wanted().await;
            if self.may_end() && self.end(&requests) {
                return;
            }
            let (tick, reads) = (self.next_tick(), self.wishes.len() < MAX_WISHES);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                done = answered(&mut self.store) => self.store_answered(done).await,
                count = link::frames(&mut self.link, &mut received, MAX_FRAMES, |_| reads) => {
                    self.received(count, &mut received);
                }
                count = link::frames(&mut self.old, &mut of_old, MAX_FRAMES, |_| true) => {
                    self.received_on_old(count, &mut of_old);
                }
                _ = requests.recv_many(&mut asked, MAX_REQUESTS) => {
                    asked.drain(..).for_each(|request| self.request(request));
                }
                () = self.outbox.has_news(), if self.scanned => self.take_news(),
                _ = book.changed() => self.check_trust(),
                _ = announced.changed() => self.tell_presence(&mut announced),
                () = at(tick) => self.handle(SenderInput::Tick),
                () = at(self.silence.next()) => self.judge_silence().await,
                () = at(self.due), if self.store.is_none() => self.due = None,
            }
        }
        self.finish().await;
    }

    /// Nothing is under way: the task is started again when something is.
    fn may_end(&self) -> bool {
        self.scanned
            && self.link.is_none()
            && self.old.is_none()
            && self.store.is_none()
            && self.wishes.is_empty()
            && self.replies.is_empty()
            && self.sender.is_idle()
    }

    fn end(&self, requests: &mpsc::Receiver<Request>) -> bool {
        let mut peers = lock(&self.inner.peers);
        // Whoever waits for a receipt holds the outside of this very task.
        let unwatched = Arc::strong_count(&self.outbox) == HOLDERS;
        let ends = unwatched && requests.is_empty() && self.outbox.is_quiet();
        if ends {
            peers.remove(&self.peer);
        }
        ends
    }

    fn handle(&mut self, input: SenderInput) {
        self.sender.handle(self.inner.clock.now(), input);
    }

    fn next_tick(&self) -> Option<Instant> {
        let at = self.sender.next_tick()?;
        Some(Instant::now() + Duration::from_millis(at.saturating_sub(self.inner.clock.now())))
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Link(link) => self.link_up(link),
            Request::Ephemeral { channel, content, direct_until, deadline, reply } => {
                self.next_key += 1;
                self.replies.insert(self.next_key, reply);
                self.handle(SenderInput::Ephemeral { key: self.next_key, channel, content, direct_until, deadline });
            }
        }
    }

    fn link_up(&mut self, link: Link) {
        let Direction::Outbound { tx, rx } = link.direction else { return };
        let younger = self.link.as_ref().is_none_or(|open| open.id < link.id);
        if younger && self.inner.is_trusted(&self.peer) {
            let before = self.link.replace(OpenLink::new(link.id, link.route, tx, rx));
            // One that drains goes on.
            if let Some(mut before) = before.filter(|_| self.old.is_none()) {
                before.keep_waiting(|frame| matches!(frame, Forward::Ephemeral(_)));
                self.old = Some(before);
            }
            self.silence.over();
            self.handle(SenderInput::LinkUp(link.id.0, link.route));
        }
    }

    fn link_down(&mut self) {
        if let Some(open) = self.link.take() {
            self.silence.over();
            self.handle(SenderInput::LinkDown(open.id.0));
        }
    }

    fn old_down(&mut self) {
        if let Some(open) = self.old.take() {
            self.handle(SenderInput::LinkDown(open.id.0));
        }
    }

    fn received_on_old(&mut self, count: usize, received: &mut Vec<Received<Back>>) {
        let Some(id) = self.old.as_ref().map(|open| open.id.0) else { return received.clear() };
        received.drain(..).for_each(|frame| self.handle(SenderInput::Frame(id, frame.frame)));
        if count == 0 {
            self.old_down();
        }
    }

    /// Has the network look into a link on which an answer is overdue.
    async fn judge_silence(&mut self) {
        let owed = self.sender.awaits_answer();
        if self.silence.judge(owed, Instant::now())
            && let Some(open) = &self.link
        {
            // A closed network is on its way down, and so is this task.
            drop(self.inner.node.suspect(open.id).await);
        }
    }

    fn received(&mut self, count: usize, received: &mut Vec<Received<Back>>) {
        let Some(open) = &self.link else { return received.clear() };
        let id = open.id.0;
        self.silence.heard(Instant::now());
        let mut limits = false;
        for frame in received.drain(..) {
            limits |= matches!(frame.frame, Back::Full(_) | Back::Ready { .. } | Back::LaneState(_));
            if let Back::Full(full) = &frame.frame {
                self.forget_refused(full);
            }
            let resends = matches!(frame.frame, Back::Ready { .. });
            self.handle(SenderInput::Frame(id, frame.frame));
            if resends {
                // At once, so that the next refusal finds what it refuses.
                self.carry_out();
            }
        }
        if limits {
            let refused = self.sender.refusals().map(|(channel, limit)| (channel.clone(), limit)).collect();
            self.outbox.progress.set_refused(refused);
            self.outbox.progress.bump();
        }
        if count == 0 {
            self.link_down();
        }
    }

    /// Drops what waits for room and was refused: the machine sends it again,
    /// and a peer that only refuses must not make it pile up.
    fn forget_refused(&mut self, full: &Full) {
        if let Some(open) = &mut self.link {
            open.keep_waiting(|frame| match frame {
                Forward::Data(data) => data.lane != full.lane || data.seq < full.next,
                Forward::Skip(skip) => skip.lane != full.lane || skip.from < full.next,
                _ => true,
            });
        }
    }

    fn take_news(&mut self) {
        let News { rows, buried, rescan, recheck, .. } = self.outbox.take_news();
        for (channel, epoch, row) in rows {
            self.handle(SenderInput::Appended { channel, epoch, row });
        }
        for Buried { channel, epoch, seq, id, .. } in buried {
            self.handle(SenderInput::Buried { channel, epoch, seq, id });
        }
        if recheck {
            self.handle(SenderInput::Recheck);
        }
        if rescan || recheck {
            self.wishes.push(SenderEffect::Rescan);
        }
    }

    fn tell_presence(&mut self, announced: &mut watch::Receiver<Arc<Presence>>) {
        let presence = announced.borrow_and_update().clone();
        self.handle(SenderInput::Presence(presence));
    }

    fn check_trust(&mut self) {
        if !self.inner.is_trusted(&self.peer) {
            self.old_down();
            self.link_down();
        }
        self.outbox.progress.bump();
    }

    /// Keeps the network informed whether this peer is to be dialled.
    async fn tell_wanted(&mut self) {
        let wanted = self.scanned && !self.sender.is_idle() && self.inner.is_trusted(&self.peer);
        if wanted != self.wanted {
            self.wanted = wanted;
            // A closed network is on its way down, and so is this task.
            drop(self.inner.node.want(self.peer, wanted).await);
        }
    }

    /// Does what the machine wants.
    fn carry_out(&mut self) {
        let mut moved = false;
        while let Some(effect) = self.sender.poll() {
            match effect {
                SenderEffect::Send(number, frame) => self.send(number, frame),
                SenderEffect::Close(number, why) => self.close(number, why),
                SenderEffect::EphemeralDone(key, end) => {
                    if let Some(reply) = self.replies.remove(&key) {
                        // Whoever asked may have gone.
                        let _ = reply.send(end);
                    }
                }
                SenderEffect::Acked { channel, epoch, seq, tag, count } => {
                    self.inner.count(&self.peer, |counters| counters.sent += count);
                    self.outbox.progress.acked(&channel, epoch, seq);
                    self.wish_acked(SenderEffect::Acked { channel, epoch, seq, tag, count });
                    moved = true;
                }
                effect => {
                    self.note(&effect);
                    self.due = None;
                    self.wishes.push(effect);
                }
            }
        }
        self.outbox.progress.set_state(self.sender.state());
        if let Some(held) = self.sender.take_held() {
            self.outbox.progress.set_held(held);
        }
        if moved {
            self.outbox.progress.bump();
        }
        self.start_store();
    }

    /// Replaces an acknowledgement of the same lane that waits at the end.
    fn wish_acked(&mut self, effect: SenderEffect) {
        let (Some(SenderEffect::Acked { channel: last, epoch: old, .. }), SenderEffect::Acked { channel, epoch, .. }) =
            (self.wishes.last(), &effect)
        else {
            if self.wishes.is_empty() {
                self.due = Some(Instant::now() + ACK_DELAY);
            }
            return self.wishes.push(effect);
        };
        if last == channel && old == epoch {
            self.wishes.pop();
        }
        self.wishes.push(effect);
    }

    /// What others should know of a wish.
    fn note(&self, effect: &SenderEffect) {
        match effect {
            SenderEffect::Resolved { channel, .. } | SenderEffect::Reject { channel, .. } => {
                self.outbox.progress.disturb(channel);
            }
            SenderEffect::Renumber { channel, .. } => {
                if self.inner.may_warn(&self.peer) {
                    tracing::warn!(peer = %self.peer, %channel,
                        "this node's store is an older copy of itself; what the peer has already is not sent again");
                }
                self.outbox.progress.disturb(channel);
            }
            SenderEffect::Lost { channel, count } if self.inner.may_warn(&self.peer) => {
                tracing::warn!(peer = %self.peer, %channel, count,
                    "the peer's store was replaced by an older copy; messages it had acknowledged are lost there");
            }
            _ => {}
        }
    }

    fn send(&mut self, number: u64, frame: Forward) {
        if let Some(open) = self.link.as_mut().filter(|open| open.id.0 == number) {
            open.send(frame);
            self.silence.sent(Instant::now());
        }
    }

    fn close(&mut self, number: u64, why: &'static str) {
        tracing::debug!(peer = %self.peer, why, "outbound link closed");
        if self.link.as_ref().is_some_and(|open| open.id.0 == number) {
            self.link = None;
            self.silence.over();
        }
        self.old.take_if(|old| old.id.0 == number);
    }

    /// Hands the store what is wished for, if it is free and it is time.
    fn start_store(&mut self) {
        if self.store.is_some() || self.wishes.is_empty() || self.due.is_some_and(|due| due > Instant::now()) {
            return;
        }
        self.due = None;
        self.resolving = self
            .wishes
            .iter()
            .filter_map(|wish| match wish {
                SenderEffect::Resolved { channel, .. } => Some(channel.clone()),
                _ => None,
            })
            .collect();
        let (wishes, peer, store) = (std::mem::take(&mut self.wishes), self.peer, self.inner.store.clone());
        self.store = Some(Box::pin(async move {
            let run = move |db: &mut crate::store::Db| {
                wishes.into_iter().filter_map(|wish| run_sender(db, &peer, wish).transpose()).collect()
            };
            store.write(run).await
        }));
    }

    async fn store_answered(&mut self, done: Result<Vec<SenderInput>, StoreError>) {
        let resolved = std::mem::take(&mut self.resolving);
        match done {
            Ok(inputs) => {
                resolved.iter().for_each(|channel| self.outbox.progress.disturb(channel));
                for input in inputs {
                    self.scanned |= matches!(input, SenderInput::Lanes(_));
                    match &input {
                        SenderInput::Renumbered(lane) => self.outbox.progress.disturb(&lane.channel),
                        SenderInput::Buried { channel, .. } => self.outbox.progress.disturb(channel),
                        _ => {}
                    }
                    self.handle(input);
                }
                // Those who wait look at the store again.
                self.outbox.progress.bump();
            }
            Err(StoreError::Closed) => {}
            Err(error) => {
                tracing::error!(peer = %self.peer, %error, "the store failed; the link is closed and opened anew");
                self.handle(SenderInput::StoreFailed);
                self.wishes = vec![SenderEffect::Rescan];
                self.due = Some(Instant::now() + STORE_RETRY);
            }
        }
    }

    /// Says goodbye, lets the link flush, and writes what is left to write.
    async fn finish(mut self) {
        if let Some(open) = self.link.take() {
            open.part(Forward::Bye);
        }
        if let Some(answer) = self.store.take() {
            drop(answer.await);
        }
        self.due = None;
        self.start_store();
        if let Some(answer) = self.store.take() {
            drop(answer.await);
        }
    }
}
