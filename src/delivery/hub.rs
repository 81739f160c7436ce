//! Where messages that came in meet those who listen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use libp2p::PeerId;
use tokio::sync::{mpsc, watch};

use super::{DeliveryError, progress::lock};
use crate::{
    types::{Channel, Content, Route},
    wire::EphemeralOutcome,
};

/// Ephemeral messages that wait for one Listen.
const EPHEMERAL_QUEUE: usize = 1024;

/// A message that no store keeps.
#[derive(Debug, Clone)]
pub(super) struct EphemeralArrival {
    pub(super) peer: PeerId,
    pub(super) route: Route,
    pub(super) received_at: i64,
    pub(super) content: Arc<Content>,
}

/// The channels that are listened to, and the consumers in use.
#[derive(Debug, Default)]
pub(super) struct Hub {
    channels: Mutex<HashMap<Channel, Listened>>,
    held: Mutex<HashMap<(Channel, String), String>>,
}

#[derive(Debug)]
struct Listened {
    /// Grows with every batch that was stored.
    wake: watch::Sender<u64>,
    ephemerals: HashMap<u64, Place>,
    next: u64,
}

/// Where ephemeral messages go.
#[derive(Debug)]
struct Place {
    queue: mpsc::Sender<EphemeralArrival>,
    /// It only looks: its sender is told as if it were not there.
    peek: bool,
}

impl Hub {
    /// Something durable is there to read.
    pub(super) fn wake(&self, channel: &str) {
        if let Some(listened) = lock(&self.channels).get(channel) {
            listened.wake.send_modify(|version| *version += 1);
        }
    }

    /// Hands an ephemeral message to all who listen; tells how those fared who
    /// do more than look.
    pub(super) fn hand_over(&self, channel: &str, arrival: &EphemeralArrival) -> EphemeralOutcome {
        let channels = lock(&self.channels);
        let (mut consumers, mut taken) = (0, 0);
        for place in channels.get(channel).into_iter().flat_map(|listened| listened.ephemerals.values()) {
            let handed = place.queue.try_send(arrival.clone()).is_ok();
            if !place.peek {
                consumers += 1;
                taken += usize::from(handed);
            }
        }
        match (consumers, taken) {
            (0, _) => EphemeralOutcome::NoConsumer,
            (_, 0) => EphemeralOutcome::Busy,
            _ => EphemeralOutcome::Handed,
        }
    }

    /// Joins a channel's listeners until the seat is dropped.
    pub(super) fn sit_down(self: &Arc<Self>, channel: &Channel, peek: bool) -> Seat {
        let (queue, ephemerals) = mpsc::channel(EPHEMERAL_QUEUE);
        let mut channels = lock(&self.channels);
        let listened = channels.entry(channel.clone()).or_insert_with(|| Listened {
            wake: watch::Sender::new(0),
            ephemerals: HashMap::new(),
            next: 0,
        });
        listened.next += 1;
        listened.ephemerals.insert(listened.next, Place { queue, peek });
        Seat {
            hub: self.clone(),
            channel: channel.clone(),
            number: listened.next,
            wake: listened.wake.subscribe(),
            ephemerals,
        }
    }

    /// Takes a consumer for one process until the hold is dropped.
    pub(super) fn hold(
        self: &Arc<Self>,
        channel: &Channel,
        consumer: &str,
        pid: String,
    ) -> Result<Hold, DeliveryError> {
        let key = (channel.clone(), consumer.to_owned());
        let mut held = lock(&self.held);
        if let Some(pid) = held.get(&key) {
            let (channel, consumer) = (channel.to_string(), consumer.to_owned());
            return Err(DeliveryError::Held { channel, consumer, pid: pid.clone() });
        }
        held.insert(key.clone(), pid);
        Ok(Hold { hub: self.clone(), key })
    }
}

/// A listener's place at a channel.
#[derive(Debug)]
pub(super) struct Seat {
    hub: Arc<Hub>,
    channel: Channel,
    number: u64,
    pub(super) wake: watch::Receiver<u64>,
    pub(super) ephemerals: mpsc::Receiver<EphemeralArrival>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut channels = lock(&self.hub.channels);
        if let Some(listened) = channels.get_mut(&self.channel) {
            listened.ephemerals.remove(&self.number);
            if listened.ephemerals.is_empty() {
                channels.remove(&self.channel);
            }
        }
    }
}

/// A consumer in use.
#[derive(Debug)]
pub(super) struct Hold {
    hub: Arc<Hub>,
    key: (Channel, String),
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.hub.held).remove(&self.key);
    }
}
