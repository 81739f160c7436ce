//! Receipts of many messages at once.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use libp2p::PeerId;
use tokio::sync::watch;

use super::{
    Delivery,
    outbox::Outbox,
    send::{Look, Pending, Sent, progress_state},
};
use crate::types::Channel;

/// Messages of one stream whose ends are waited for, each under a number of
/// its caller's.
#[derive(Debug, Default)]
pub struct Receipts {
    lanes: HashMap<(PeerId, Channel), VecDeque<(u64, Pending)>>,
    /// One per peer: grows when something has moved.
    watches: HashMap<PeerId, (Arc<Outbox>, watch::Receiver<u64>)>,
    count: usize,
}

impl Receipts {
    /// How many are waited for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// None is waited for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one; gives it back if it has ended already.
    pub fn push(&mut self, number: u64, pending: Pending) -> Option<Sent> {
        let Some(outbox) = pending.outbox.clone().filter(|_| !pending.sent.state.is_final()) else {
            return Some(pending.sent);
        };
        let (peer, channel) = (pending.peer, pending.channel.clone());
        self.watches.entry(peer).or_insert_with(|| {
            let mut watch = outbox.progress.watch();
            // What happened before now must be looked at.
            watch.mark_changed();
            (outbox, watch)
        });
        self.lanes.entry((peer, channel)).or_default().push_back((number, pending));
        self.count += 1;
        None
    }

    /// Waits for a peer some of whose messages may have ended. Never resolves
    /// while none is waited for. Can be dropped at any time.
    pub async fn moved(&mut self) -> PeerId {
        if self.count == 0 {
            return std::future::pending().await;
        }
        let changes = self.watches.iter_mut().map(|(peer, (_, watch))| {
            Box::pin(async move {
                // The sender lives in the outbox beside it.
                drop(watch.changed().await);
                *peer
            })
        });
        futures::future::select_all(changes).await.0
    }

    /// Takes out what has ended of a peer's messages. Must run to its end: what
    /// it has taken out is gone with it.
    pub async fn take_ended(&mut self, delivery: &Delivery, peer: &PeerId) -> Vec<(u64, Sent)> {
        let mut ended = Vec::new();
        let Some((outbox, _)) = self.watches.get(peer) else { return ended };
        let outbox = outbox.clone();
        for ((_, channel), queue) in self.lanes.iter_mut().filter(|((of, _), _)| of == peer) {
            let lane = outbox.progress.lane(channel);
            // In order: behind one that waits, all wait, unless disturbed.
            while let Some((_, first)) = queue.front()
                && matches!(first.look(lane), Look::Stored)
            {
                let Some((number, pending)) = queue.pop_front() else { break };
                ended.push((number, pending.stored()));
            }
            if queue.iter().any(|(_, pending)| matches!(pending.look(lane), Look::AskStore)) {
                ended.extend(ask_all(delivery, queue, &outbox).await);
            }
        }
        self.lanes.retain(|_, queue| !queue.is_empty());
        self.count -= ended.len();
        ended
    }
}

/// Asks the store, once, about the messages of a lane that has been disturbed
/// since it was asked last.
async fn ask_all(delivery: &Delivery, queue: &mut VecDeque<(u64, Pending)>, outbox: &Outbox) -> Vec<(u64, Sent)> {
    let mut ended = Vec::new();
    let Some((_, first)) = queue.front() else { return ended };
    let (peer, channel) = (first.peer, first.channel.clone());
    let before = outbox.progress.lane(&channel);
    let asked: Vec<bool> = queue.iter().map(|(_, pending)| matches!(pending.look(before), Look::AskStore)).collect();
    let named = queue.iter().zip(&asked).filter(|(_, asked)| **asked);
    let messages = named.map(|((_, pending), _)| (pending.sent.seq, pending.sent.id.clone())).collect();
    let Ok((epoch, found)) = delivery.progress_of(peer, channel, messages).await else {
        return ended; // They are asked about again when something moves.
    };
    let mut found = found.into_iter();
    for ((number, mut pending), asked) in std::mem::take(queue).into_iter().zip(asked) {
        if !asked {
            queue.push_back((number, pending));
            continue;
        }
        let Some(progress) = found.next().flatten() else {
            ended.push((number, pending.forgotten()));
            continue;
        };
        let (state, outcome) = progress_state(progress);
        if state.is_final() {
            ended.push((number, Sent { state, outcome, ..pending.sent }));
            continue;
        }
        // Only a further change is a reason to ask again.
        (pending.epoch, pending.disturbed) = (epoch, before.disturbed);
        queue.push_back((number, pending));
    }
    ended
}
