//! How far each lane to a peer has come, for those who wait for a receipt.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    protocol::PeerState,
    store::Progress,
    types::{Channel, Epoch, Seq},
    wire::Limit,
};

/// Locks without regard to a panic elsewhere: the data are plain values, whole
/// between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where one lane stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LaneProgress {
    pub(super) epoch: Epoch,
    pub(super) acked: Seq,
    /// Grows whenever a position may have ended otherwise than by being
    /// stored: then only the store knows.
    pub(super) disturbed: u64,
}

impl LaneProgress {
    /// Whether a message that the store takes to be under way is at the peer.
    pub(super) fn has_stored(self, epoch: Epoch, seq: Seq, progress: Progress) -> bool {
        matches!(progress, Progress::Queued | Progress::Sent) && self.epoch == epoch && self.acked >= seq
    }
}

/// Shared between a peer's task and those who wait.
#[derive(Debug)]
pub(super) struct PeerProgress {
    lanes: Mutex<HashMap<Channel, LaneProgress>>,
    state: Mutex<PeerState>,
    refused: Mutex<HashMap<Channel, Limit>>,
    /// Channels that wait for a direct path, from a position on.
    held: Mutex<HashMap<Channel, Seq>>,
    version: watch::Sender<u64>,
}

impl Default for PeerProgress {
    fn default() -> Self {
        Self {
            lanes: Mutex::default(),
            state: Mutex::new(PeerState::Down),
            refused: Mutex::default(),
            held: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl PeerProgress {
    pub(super) fn lane(&self, channel: &str) -> LaneProgress {
        lock(&self.lanes).get(channel).copied().unwrap_or_default()
    }

    pub(super) fn state(&self) -> PeerState {
        *lock(&self.state)
    }

    pub(super) fn set_state(&self, state: PeerState) {
        if std::mem::replace(&mut *lock(&self.state), state) != state {
            self.bump();
        }
    }

    pub(super) fn acked(&self, channel: &Channel, epoch: Epoch, seq: Seq) {
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(channel.clone()).or_default();
        (lane.epoch, lane.acked) = (epoch, seq);
    }

    pub(super) fn disturb(&self, channel: &Channel) {
        lock(&self.lanes).entry(channel.clone()).or_default().disturbed += 1;
        self.bump();
    }

    /// The limit of the peer that a channel waits for.
    pub(super) fn refused(&self, channel: &str) -> Option<Limit> {
        lock(&self.refused).get(channel).copied()
    }

    pub(super) fn any_refused(&self) -> Option<Limit> {
        lock(&self.refused).values().next().copied()
    }

    pub(super) fn set_refused(&self, refused: HashMap<Channel, Limit>) {
        *lock(&self.refused) = refused;
    }

    /// Whether a message, or any, waits for a direct path.
    pub(super) fn is_held(&self, message: Option<(&str, Seq)>) -> bool {
        let held = lock(&self.held);
        let waits = |(channel, seq)| held.get(channel).is_some_and(|from| *from <= seq);
        message.map_or(!held.is_empty(), waits)
    }

    pub(super) fn set_held(&self, held: Vec<(Channel, Seq)>) {
        *lock(&self.held) = held.into_iter().collect();
        self.bump();
    }

    /// Wakes those who wait.
    pub(super) fn bump(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
