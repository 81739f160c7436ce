//! A consumer's view of a channel: what is stored, in order, then what comes.

use std::sync::Arc;

use libp2p::PeerId;

use super::{
    Delivery, DeliveryError,
    attempts::Attempts,
    hub::{EphemeralArrival, Hold, Seat},
};
use crate::{
    store::{Acknowledged, InboxRow, Opened},
    types::{Channel, Content, Route, Seq},
};

/// Bytes of one batch of deliveries.
const BATCH_BYTES: u64 = 1024 * 1024;

/// What a Listen asks for.
#[derive(Debug, Clone)]
pub struct ListenSpec {
    /// The channel.
    pub channel: Channel,
    /// The consumer's name.
    pub consumer: String,
    /// Acknowledge what is handed out.
    pub auto: bool,
    /// Messages in a batch, at least 1.
    pub max_batch: usize,
    /// Read without a consumer.
    pub peek: bool,
    /// Who asks, for the message to the next who does.
    pub pid: String,
}

/// A message for an app.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The sender.
    pub peer: PeerId,
    /// How it came.
    pub route: Option<Route>,
    /// Unix milliseconds.
    pub received_at: i64,
    /// Position in the sender's lane; 0 for an ephemeral one.
    pub seq: Seq,
    /// Position in the inbox; 0 for an ephemeral one.
    pub cursor: u64,
    /// How often this consumer got it, this time included.
    pub attempt: u32,
    /// The message.
    pub content: Arc<Content>,
}

/// An open Listen. Dropping it frees the consumer.
#[derive(Debug)]
pub struct Listener {
    delivery: Delivery,
    spec: ListenSpec,
    seat: Seat,
    hold: Option<Hold>,
    /// Its number; `None` for a peek while the store has no such channel.
    channel: Option<i64>,
    /// Where the consumer stood when the Listen began.
    start: u64,
    /// Handed out up to here.
    cursor: u64,
    attempts: Attempts,
    unacknowledged: bool,
    /// The last look into the store found nothing: it is worth another only
    /// after a wake.
    dry: bool,
}

impl Delivery {
    /// Opens a Listen.
    ///
    /// # Errors
    /// [`DeliveryError::Held`], [`DeliveryError::TooMany`], or a failure of the
    /// store.
    pub async fn listen(&self, spec: ListenSpec) -> Result<Listener, DeliveryError> {
        // Sit down before reading, so that nothing falls between.
        let seat = self.inner.hub.sit_down(&spec.channel, spec.peek);
        if spec.peek {
            // Looking must not make a channel that nothing was sent to.
            let channel = None;
            let (delivery, attempts) = (self.clone(), Attempts::default());
            return Ok(Listener {
                delivery,
                spec,
                seat,
                hold: None,
                channel,
                start: 0,
                cursor: 0,
                attempts,
                unacknowledged: false,
                dry: false,
            });
        }
        let hold = self.inner.hub.hold(&spec.channel, &spec.consumer, spec.pid.clone())?;
        let (channel, consumer) = (spec.channel.clone(), spec.consumer.clone());
        let state = match self.inner.store.write(move |db| db.open_consumer(&channel, &consumer)).await? {
            Opened::Consumer(state) => state,
            Opened::TooMany { max } => {
                let (what, remedy) = ("consumers of a channel", "use one of those there are");
                return Err(DeliveryError::TooMany { what, used: max, max, remedy });
            }
            Opened::TooManyChannels { used, max } => {
                let (what, remedy) = ("channels", "use one of those there are");
                return Err(DeliveryError::TooMany { what, used, max, remedy });
            }
        };
        Ok(Listener {
            delivery: self.clone(),
            spec,
            seat,
            hold: Some(hold),
            channel: Some(state.channel),
            start: state.cursor,
            cursor: state.cursor,
            attempts: Attempts::decode(&state.attempts),
            unacknowledged: false,
            dry: false,
        })
    }

    /// Advances a consumer; answers where it stands then.
    ///
    /// # Errors
    /// [`DeliveryError::NoConsumer`], [`DeliveryError::BeyondLast`], or a
    /// failure of the store.
    pub async fn ack(&self, channel: &Channel, consumer: &str, cursor: u64) -> Result<u64, DeliveryError> {
        let (name, who) = (channel.clone(), consumer.to_owned());
        match self.inner.store.write(move |db| db.acknowledge(&name, &who, cursor)).await? {
            Acknowledged::At { cursor, freed } => {
                if freed {
                    self.inner.room.send_modify(|version| *version += 1);
                }
                Ok(cursor)
            }
            Acknowledged::NoConsumer => {
                Err(DeliveryError::NoConsumer { channel: channel.to_string(), consumer: consumer.to_owned() })
            }
            Acknowledged::Beyond { last } => Err(DeliveryError::BeyondLast { cursor, last }),
        }
    }
}

impl Listener {
    /// Cursor of the consumer's last acknowledged message.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The next batch; waits until there is one.
    ///
    /// # Errors
    /// [`DeliveryError::Damaged`], or a failure of the store.
    pub async fn next(&mut self) -> Result<Vec<Delivered>, DeliveryError> {
        self.acknowledge_handed().await?;
        loop {
            if !self.dry || self.seat.wake.has_changed().map_err(|_| DeliveryError::Closed)? {
                // First mark as seen, then read: a wake between the two is kept.
                self.seat.wake.borrow_and_update();
                let batch = self.read().await?;
                self.dry = batch.is_empty();
                if !self.dry {
                    return Ok(batch);
                }
            }
            tokio::select! {
                biased;
                Some(arrival) = self.seat.ephemerals.recv() => return Ok(self.ephemerals(arrival)),
                woken = self.seat.wake.changed() => {
                    woken.map_err(|_| DeliveryError::Closed)?;
                    self.dry = false;
                }
            }
        }
    }

    async fn acknowledge_handed(&mut self) -> Result<(), DeliveryError> {
        if std::mem::take(&mut self.unacknowledged) {
            self.delivery.ack(&self.spec.channel, &self.spec.consumer, self.cursor).await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Vec<Delivered>, DeliveryError> {
        let Some(channel) = self.number().await? else { return Ok(Vec::new()) };
        let (after, max) = (self.cursor, self.spec.max_batch);
        let page = self.delivery.inner.store.read(move |reader| reader.inbox(channel, after, max, BATCH_BYTES)).await?;
        if page.rows.is_empty()
            && let Some(cursor) = page.damaged
        {
            return Err(DeliveryError::Damaged { channel: self.spec.channel.to_string(), cursor });
        }
        let batch: Vec<Delivered> = page.rows.into_iter().map(|row| self.delivered(row)).collect();
        if let Some(last) = batch.last() {
            self.cursor = last.cursor;
            self.unacknowledged = self.spec.auto && !self.spec.peek;
        }
        Ok(batch)
    }

    async fn number(&mut self) -> Result<Option<i64>, DeliveryError> {
        if self.channel.is_none() {
            let name = self.spec.channel.clone();
            self.channel = self.delivery.inner.store.read(move |reader| reader.channel(&name)).await?;
        }
        Ok(self.channel)
    }

    fn delivered(&self, row: InboxRow) -> Delivered {
        Delivered {
            peer: row.peer,
            route: row.route,
            received_at: row.received_at,
            seq: row.seq,
            cursor: row.cursor,
            attempt: self.attempts.of(row.cursor) + 1,
            content: Arc::new(row.content),
        }
    }

    fn ephemerals(&mut self, first: EphemeralArrival) -> Vec<Delivered> {
        let mut arrivals = vec![first];
        while arrivals.len() < self.spec.max_batch
            && let Ok(more) = self.seat.ephemerals.try_recv()
        {
            arrivals.push(more);
        }
        arrivals
            .into_iter()
            .map(|arrival| Delivered {
                peer: arrival.peer,
                route: Some(arrival.route),
                received_at: arrival.received_at,
                seq: 0,
                cursor: 0,
                attempt: 1,
                content: arrival.content,
            })
            .collect()
    }
}

impl Drop for Listener {
    /// Notes how far deliveries went, so that what comes again says so. The
    /// consumer is free only then.
    fn drop(&mut self) {
        if self.spec.peek || self.cursor == self.start {
            return;
        }
        let mut attempts = self.attempts.delivered(self.cursor);
        let (name, consumer) = (self.spec.channel.clone(), self.spec.consumer.clone());
        let (store, hold) = (self.delivery.inner.store.clone(), self.hold.take());
        self.delivery.inner.tasks.spawn(async move {
            let note = move |db: &mut crate::store::Db| {
                if let Opened::Consumer(state) = db.open_consumer(&name, &consumer)? {
                    attempts.acknowledged(state.cursor);
                    db.note_attempts(state.channel, &consumer, &attempts.encode())?;
                }
                Ok(())
            };
            if let Err(error) = store.write(note).await {
                tracing::debug!(%error, "delivery attempts were not noted");
            }
            drop(hold);
        });
    }
}
