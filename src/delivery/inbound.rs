//! The task that drives one peer's [`Receiver`].
//!
//! One operation of the store is under way at a time; frames that come
//! meanwhile make the next batch. Each frame keeps its share of the link's
//! memory until its batch is on disk, which is what slows a peer down that
//! sends faster than the disk writes.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use libp2p::PeerId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    Inner,
    effects::run_receiver,
    hub::EphemeralArrival,
    link::{self, OpenLink},
    progress::lock,
    task::answered,
};
use crate::{
    clock,
    node::{Direction, Link, Received},
    protocol::{Receiver, ReceiverEffect, ReceiverInput},
    store::{Arrival, BatchDone, StoreError},
    types::{Channel, Content, Presence, Route},
    wire::{Back, Forward},
};

/// Links that wait for a peer's task: it takes the youngest.
const MAILBOX: usize = 4;
/// Frames taken from a link at a time.
const MAX_FRAMES: usize = 512;
/// Answers that wait for a peer that does not read them. Past that nothing
/// more is read from it.
const MAX_ANSWERS: usize = 4096;

/// The outside of a peer's task.
#[derive(Debug)]
pub(super) struct Door {
    links: mpsc::Sender<Link>,
    up: Arc<AtomicBool>,
}

impl Door {
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

type Batch = Result<Vec<(ReceiverInput, Option<BatchDone>)>, StoreError>;
type StoreAnswer = Pin<Box<dyn Future<Output = Batch> + Send>>;

struct Task {
    inner: Arc<Inner>,
    peer: PeerId,
    up: Arc<AtomicBool>,
    receiver: Receiver,
    link: Option<OpenLink<Back, Forward>>,
    /// The link before, as long as the machine keeps it.
    old: Option<OpenLink<Back, Forward>>,
    wishes: Vec<ReceiverEffect>,
    store: Option<StoreAnswer>,
    /// Memory of frames that are in the machine's batch or in a wish.
    permits: Vec<OwnedSemaphorePermit>,
    /// Memory of frames that the store is writing.
    writing: Vec<OwnedSemaphorePermit>,
}

impl Inner {
    /// Brings a link to its peer's task, which is started if it does not run.
    pub(super) fn inbound_link(self: &Arc<Self>, link: Link) {
        let peer = link.peer;
        let mut inbound = lock(&self.inbound);
        let door = inbound.entry(peer).or_insert_with(|| {
            let (links, mailbox) = mpsc::channel(MAILBOX);
            let up = Arc::new(AtomicBool::new(false));
            let task = Task {
                inner: self.clone(),
                peer,
                up: up.clone(),
                receiver: Receiver::new(self.options.max_message_bytes, self.is_trusted(&peer)),
                link: None,
                old: None,
                wishes: Vec::new(),
                store: None,
                permits: Vec::new(),
                writing: Vec::new(),
            };
            self.tasks.spawn_on(task.run(mailbox), &self.runtime);
            Door { links, up }
        });
        if door.links.try_send(link).is_err() {
            tracing::debug!(%peer, "a link was dropped: the peer opens them faster than they are taken");
        }
    }
}

impl Task {
    async fn run(mut self, mut links: mpsc::Receiver<Link>) {
        let mut book = self.inner.book_version.subscribe();
        let mut has_room = self.inner.room.subscribe();
        let stop = self.inner.stop.clone();
        // A change between the start of this task and the subscription.
        self.receiver.handle(ReceiverInput::Trust(self.inner.is_trusted(&self.peer)));
        let (mut received, mut of_old) = (Vec::new(), Vec::new());
        loop {
            self.carry_out();
            if self.may_end() && self.end(&links) {
                return;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(link) = links.recv() => self.link_up(link),
                done = answered(&mut self.store) => self.store_answered(done),
                count = link::frames(&mut self.link, &mut received, MAX_FRAMES, |waiting| waiting < MAX_ANSWERS) => {
                    self.received(count, &mut received);
                }
                count = link::frames(&mut self.old, &mut of_old, MAX_FRAMES, |waiting| waiting < MAX_ANSWERS) => {
                    self.received_on_old(count, &mut of_old);
                }
                _ = book.changed() => self.receiver.handle(ReceiverInput::Trust(self.inner.is_trusted(&self.peer))),
                _ = has_room.changed() => self.receiver.handle(ReceiverInput::Room),
            }
        }
        self.finish().await;
    }

    fn may_end(&self) -> bool {
        self.link.is_none() && self.old.is_none() && self.store.is_none() && self.wishes.is_empty()
    }

    /// The lock keeps a link from being brought to a task that is gone.
    fn end(&self, links: &mpsc::Receiver<Link>) -> bool {
        let mut inbound = lock(&self.inner.inbound);
        let ends = links.is_empty();
        if ends {
            inbound.remove(&self.peer);
        }
        ends
    }

    fn link_up(&mut self, link: Link) {
        let Direction::Inbound { tx, rx } = link.direction else { return };
        if self.link.as_ref().is_none_or(|open| open.id < link.id) {
            if let Some(before) = self.link.replace(OpenLink::new(link.id, link.route, tx, rx)) {
                self.old = Some(before);
            }
            self.receiver.handle(ReceiverInput::LinkUp(link.id.0));
        }
    }

    fn received(&mut self, count: usize, received: &mut Vec<Received<Forward>>) {
        let Some(open) = &self.link else { return received.clear() };
        let id = open.id;
        for Received { frame, permit } in received.drain(..) {
            let before = self.receiver.batch_len();
            let adds = matches!(frame, Forward::Data(_) | Forward::Skip(_));
            self.receiver.handle(ReceiverInput::Frame(id.0, frame));
            // One that is ignored holds nothing: no commit would free it.
            if adds && self.receiver.batch_len() > before {
                self.permits.push(permit);
            }
        }
        self.receiver.handle(ReceiverInput::Flush);
        if count == 0 {
            self.receiver.handle(ReceiverInput::LinkDown(id.0));
            self.lose_link();
        }
    }

    fn received_on_old(&mut self, count: usize, received: &mut Vec<Received<Forward>>) {
        let Some(id) = self.old.as_ref().map(|open| open.id.0) else { return received.clear() };
        received.drain(..).for_each(|frame| self.receiver.handle(ReceiverInput::Frame(id, frame.frame)));
        if count == 0 {
            self.receiver.handle(ReceiverInput::LinkDown(id));
            self.old = None;
        }
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.receiver.poll() {
            match effect {
                ReceiverEffect::Send(number, frame) => self.send(number, frame),
                ReceiverEffect::Close(number, why) => self.close(number, why),
                ReceiverEffect::Ephemeral { link, number, channel, content } => {
                    let outcome = self.hand_over(link, &channel, content);
                    self.receiver.handle(ReceiverInput::EphemeralDone { link, number, outcome });
                }
                ReceiverEffect::Presence { link, presence } => self.told_presence(link, presence),
                effect => self.wishes.push(effect),
            }
        }
        self.up.store(self.receiver.is_up(), Ordering::Relaxed);
        self.start_store();
    }

    fn told_presence(&mut self, number: u64, presence: Presence) {
        let (inner, peer) = (&self.inner, self.peer);
        if !inner.roster.told(peer, presence, || inner.is_trusted(&peer)) {
            self.receiver.handle(ReceiverInput::LinkDown(number));
            self.close(number, "the peer tells what it is too often");
        }
    }

    fn hand_over(&self, number: u64, channel: &Channel, mut content: Content) -> crate::wire::EphemeralOutcome {
        // A slice of the link's buffer would keep all of that in memory.
        content.payload = Bytes::copy_from_slice(&content.payload);
        let links = [&self.link, &self.old].into_iter().flatten();
        let route = links.into_iter().find(|open| open.id.0 == number).map_or(Route::Direct, |open| open.route);
        let content = Arc::new(content);
        let arrival = EphemeralArrival { peer: self.peer, route, received_at: clock::wall_ms(), content };
        self.inner.hub.hand_over(channel, &arrival)
    }

    fn send(&mut self, number: u64, frame: Back) {
        let links = [&mut self.link, &mut self.old].into_iter().flatten();
        if let Some(open) = links.into_iter().find(|open| open.id.0 == number) {
            open.send(frame);
        }
    }

    fn close(&mut self, number: u64, why: &'static str) {
        tracing::debug!(peer = %self.peer, why, "inbound link closed");
        if self.link.as_ref().is_some_and(|open| open.id.0 == number) {
            self.lose_link();
        }
        self.old.take_if(|old| old.id.0 == number);
    }

    fn lose_link(&mut self) {
        self.link = None;
        self.inner.roster.unlinked(self.peer);
    }

    fn start_store(&mut self) {
        if self.store.is_some() || self.wishes.is_empty() {
            return;
        }
        let arrival = Arrival {
            peer: self.peer,
            route: self.link.as_ref().map_or(Route::Direct, |open| open.route),
            now: self.inner.clock.now(),
            wall: clock::wall_ms(),
        };
        let (wishes, store) = (std::mem::take(&mut self.wishes), self.inner.store.clone());
        self.writing = std::mem::take(&mut self.permits);
        self.store = Some(Box::pin(async move {
            let run = move |db: &mut crate::store::Db| {
                wishes.into_iter().filter_map(|wish| run_receiver(db, &arrival, wish).transpose()).collect()
            };
            store.write(run).await
        }));
    }

    fn store_answered(&mut self, done: Batch) {
        self.writing.clear();
        match done {
            Ok(answers) => {
                for (input, batch) in answers {
                    if let Some(batch) = batch {
                        self.stored(&batch);
                    }
                    self.receiver.handle(input);
                }
            }
            Err(StoreError::Closed) => {}
            Err(error) => {
                tracing::error!(peer = %self.peer, %error, "messages could not be stored and will come again");
                self.wishes.clear();
                self.permits.clear();
                self.receiver.handle(ReceiverInput::StoreFailed);
            }
        }
    }

    fn stored(&self, batch: &BatchDone) {
        self.inner.count(&self.peer, |counters| counters.received += batch.stored);
        for channel in batch.channels.keys() {
            self.inner.hub.wake(channel);
        }
        if batch.lost > 0 && self.inner.may_warn(&self.peer) {
            tracing::warn!(peer = %self.peer, count = batch.lost,
                "this node's store is an older copy of itself; messages it had acknowledged are lost");
        }
    }

    /// Acknowledges what is being written, and says goodbye.
    async fn finish(mut self) {
        if let Some(answer) = self.store.take() {
            let done = answer.await;
            self.store_answered(done);
            // Only answers: nothing new is handed to the store.
            while let Some(effect) = self.receiver.poll() {
                if let ReceiverEffect::Send(number, frame) = effect {
                    self.send(number, frame);
                }
            }
        }
        if let Some(open) = self.link.take() {
            open.part(Back::Bye);
        }
    }
}
