//! The outside of the task that drives one peer's sender (`super::outbound`):
//! what others tell it, and how it is started.

use std::sync::{Arc, Mutex};

use libp2p::PeerId;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Inner,
    outbound::Task,
    progress::{PeerProgress, lock},
};
use crate::{
    node::Link,
    protocol::{EphemeralEnd, OutRow, PeerState},
    store::Buried,
    types::{Channel, Content, Epoch},
};

/// Requests to a peer's task that wait.
const MAILBOX: usize = 1024;
/// New rows handed over in memory; more are read from the store when their
/// turn comes.
const MAX_APPENDED: usize = 8192;
/// The same in bytes.
const MAX_APPENDED_BYTES: u64 = 8 * 1024 * 1024;
/// Tombstones told one by one; for more, the lanes that are open are read anew
/// from the store.
const MAX_BURIED: usize = 4096;

/// What a peer's task is asked.
#[derive(Debug)]
pub(super) enum Request {
    Link(Link),
    Ephemeral {
        channel: Channel,
        content: Content,
        direct_until: u64,
        deadline: u64,
        reply: oneshot::Sender<EphemeralEnd>,
    },
}

/// The outside of a peer's task.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) progress: PeerProgress,
    mailbox: mpsc::Sender<Request>,
    news: Mutex<News>,
    has_news: Notify,
}

/// What was committed since the task last looked. A row comes before its
/// tombstone.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) rows: Vec<(Channel, Epoch, OutRow)>,
    bytes: u64,
    /// There were more rows than fit.
    pub(super) rescan: bool,
    /// Rows that became tombstones.
    pub(super) buried: Vec<Buried>,
    /// There were more of those than fit.
    pub(super) recheck: bool,
}

impl News {
    fn append(&mut self, channel: Channel, epoch: Epoch, row: OutRow) {
        let cost = row.cost();
        if self.rows.len() < MAX_APPENDED && self.bytes + cost <= MAX_APPENDED_BYTES {
            self.bytes += cost;
            self.rows.push((channel, epoch, row));
        } else {
            self.rescan = true;
        }
    }

    fn bury(&mut self, row: Buried) {
        if self.buried.len() < MAX_BURIED {
            self.buried.push(row);
        } else {
            self.recheck = true;
        }
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && !self.rescan && self.buried.is_empty() && !self.recheck
    }
}

impl Outbox {
    fn append(&self, channel: Channel, epoch: Epoch, row: OutRow) {
        lock(&self.news).append(channel, epoch, row);
        self.has_news.notify_one();
    }

    fn bury(&self, row: Buried) {
        self.progress.disturb(&row.channel);
        lock(&self.news).bury(row);
        self.has_news.notify_one();
    }

    /// Waits for news that were not taken.
    pub(super) async fn has_news(&self) {
        self.has_news.notified().await;
    }

    pub(super) fn take_news(&self) -> News {
        std::mem::take(&mut *lock(&self.news))
    }

    pub(super) fn is_quiet(&self) -> bool {
        lock(&self.news).is_empty()
    }

    pub(super) fn is_up(&self) -> bool {
        self.progress.state() == PeerState::Up
    }
}

impl Inner {
    /// Tells a peer's task of a row that was committed. Never blocks: it is
    /// called on the store's thread.
    pub(super) fn appended(self: &Arc<Self>, peer: &PeerId, channel: Channel, epoch: Epoch, row: OutRow) {
        self.with_outbox(peer, |outbox| outbox.append(channel, epoch, row));
    }

    /// For [`crate::store::Store::write_then`]: tells, in commit order, of rows
    /// that became tombstones. Those who wait for their lane must know before
    /// the peer's acknowledgement of a gap can be taken for one of a message.
    pub(super) fn disturb_then<T>(
        self: &Arc<Self>,
        buried: impl FnOnce(&T) -> &[Buried] + Send + 'static,
    ) -> impl FnOnce(&T) + Send + 'static {
        let inner = self.clone();
        move |done| {
            for row in buried(done) {
                inner.with_outbox(&row.peer, |outbox| outbox.bury(row.clone()));
            }
        }
    }

    /// Asks a peer's task. False when it cannot take more now.
    pub(super) fn ask(self: &Arc<Self>, peer: &PeerId, request: Request) -> bool {
        self.with_outbox(peer, |outbox| outbox.mailbox.try_send(request).is_ok())
    }

    /// Asks a peer's task once it can take more. Whoever waits for the answer
    /// is told if the task ends instead: its half of the channel is dropped.
    pub(super) async fn ask_in_turn(self: &Arc<Self>, peer: &PeerId, mut request: Request) {
        use mpsc::error::TrySendError::{Closed, Full};
        loop {
            // Under the lock: a task that is just ending takes nothing more.
            let full = self.with_outbox(peer, |outbox| match outbox.mailbox.try_send(request) {
                Err(Full(back)) => Some((back, outbox.mailbox.clone())),
                // Closed while it is in the table: all tasks are ending.
                Ok(()) | Err(Closed(_)) => None,
            });
            let Some((back, mailbox)) = full else { return };
            request = back;
            // Room, or the end of this task.
            drop(mailbox.reserve().await);
        }
    }

    /// The outside of a peer's task, which is started if it does not run.
    pub(super) fn outbox(self: &Arc<Self>, peer: &PeerId) -> Arc<Outbox> {
        self.with_outbox(peer, Arc::clone)
    }

    /// Holds the lock that a task takes to end itself, so that nothing is told
    /// to one that is gone.
    fn with_outbox<T>(self: &Arc<Self>, peer: &PeerId, tell: impl FnOnce(&Arc<Outbox>) -> T) -> T {
        let mut peers = lock(&self.peers);
        let outbox = peers.entry(*peer).or_insert_with(|| self.start_outbox(*peer));
        tell(outbox)
    }

    fn start_outbox(self: &Arc<Self>, peer: PeerId) -> Arc<Outbox> {
        let (mailbox, requests) = mpsc::channel(MAILBOX);
        let (progress, news, has_news) = (PeerProgress::default(), Mutex::default(), Notify::new());
        let outbox = Arc::new(Outbox { progress, mailbox, news, has_news });
        let task = Task::new(self.clone(), outbox.clone(), peer);
        self.tasks.spawn_on(task.run(requests), &self.runtime);
        outbox
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tombstone_is_forgotten() {
        let mut news = News::default();
        let buried = |seq| Buried {
            peer: PeerId::random(),
            channel: "".into(),
            epoch: 1,
            seq,
            id: seq.to_string(),
            is_final: false,
        };
        assert!(news.is_empty());
        (1..=MAX_BURIED as u64).for_each(|seq| news.bury(buried(seq)));
        assert!(!news.recheck && news.buried.len() == MAX_BURIED);
        news.bury(buried(0));
        assert!(news.recheck && news.buried.len() == MAX_BURIED && !news.is_empty());
    }
}
