//! A steady stream of durable messages from one node to another.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use p2p_node::proto::{self, Route, listen_response::Frame};
use tokio::task::JoinHandle;

use crate::{
    node::Node,
    support::{Client, message},
    watch::is_direct,
};

/// Between two messages.
const INTERVAL: Duration = Duration::from_millis(50);
/// Most messages of one delivery.
const BATCH: u32 = 64;

/// When each message was sent, by its number.
type Times = Arc<Mutex<Vec<(u32, Instant)>>>;
/// When and by which route each came.
type Arrivals = Arc<Mutex<Vec<(u32, Instant, Route)>>>;

pub(crate) struct Traffic {
    sent: Times,
    received: Arrivals,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
}

/// What became of all messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) doubled: usize,
    pub(crate) ordered: bool,
}

impl Traffic {
    pub(crate) async fn start(from: &Node, to: &Node) -> Self {
        let (sent, received) = (Times::default(), Arrivals::default());
        let stop = Arc::new(AtomicBool::new(false));
        let receiver = tokio::spawn(receive(to.client.clone(), Arc::clone(&received)));
        let sender = tokio::spawn(send(from.client.clone(), to.id.clone(), Arc::clone(&sent), Arc::clone(&stop)));
        Self { sent, received, stop, sender, receiver }
    }

    /// How long after this moment the first message came that was sent later;
    /// `None` if none has.
    pub(crate) fn flows_after(&self, moment: Instant) -> Option<Duration> {
        self.arrived(moment, |_| true)
    }

    /// The same of the first that came over a direct connection.
    pub(crate) fn direct_after(&self, moment: Instant) -> Option<Duration> {
        self.arrived(moment, is_direct)
    }

    fn arrived(&self, moment: Instant, fits: fn(Route) -> bool) -> Option<Duration> {
        let first = self.sent.lock().unwrap().iter().find(|(_, at)| *at >= moment).map(|(number, _)| *number)?;
        let received = self.received.lock().unwrap();
        let later = received.iter().rev().take_while(|(number, ..)| *number >= first);
        later.filter(|(.., route)| fits(*route)).last().map(|(_, at, _)| at.duration_since(moment))
    }

    /// The first message that came after this moment, whenever it was sent.
    pub(crate) fn comes_after(&self, moment: Instant) -> Option<Duration> {
        let received = self.received.lock().unwrap();
        received.iter().rev().take_while(|(_, at, _)| *at >= moment).last().map(|(_, at, _)| at.duration_since(moment))
    }

    /// The route by which the last one came.
    pub(crate) fn route(&self) -> Route {
        self.received.lock().unwrap().last().map_or(Route::None, |(.., route)| *route)
    }

    /// Sends no more, waits for what is under way, and counts.
    pub(crate) async fn end(self, patience: Duration) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.await.unwrap();
        let sent = self.sent.lock().unwrap().len();
        let deadline = Instant::now() + patience;
        let count = || self.received.lock().unwrap().len();
        while count() < sent && Instant::now() < deadline {
            tokio::time::sleep(INTERVAL).await;
        }
        // One that came twice would come now.
        tokio::time::sleep(4 * INTERVAL).await;
        self.receiver.abort();
        let numbers: Vec<u32> = self.received.lock().unwrap().iter().map(|(number, ..)| *number).collect();
        let mut distinct = numbers.clone();
        distinct.sort_unstable();
        distinct.dedup();
        Account {
            sent,
            lost: sent - distinct.len(),
            doubled: numbers.len() - distinct.len(),
            ordered: numbers.is_sorted(),
        }
    }
}

async fn send(client: Client, to: String, sent: Times, stop: Arc<AtomicBool>) {
    let mut tick = tokio::time::interval(INTERVAL);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tick.tick().await;
        let request = proto::SendRequest {
            peer: to.clone(),
            message: Some(message(CHANNEL, &number.to_string(), "steady")),
            wait: proto::Wait::Queued.into(),
            ..proto::SendRequest::default()
        };
        let at = Instant::now();
        client.clone().send(request).await.unwrap();
        sent.lock().unwrap().push((number, at));
    }
}

/// Of these messages alone.
const CHANNEL: &str = "steady";

async fn receive(mut client: Client, received: Arrivals) {
    let request = proto::ListenRequest {
        channel: CHANNEL.to_owned(),
        ack_mode: proto::AckMode::Manual.into(),
        max_batch: BATCH,
        ..proto::ListenRequest::default()
    };
    let mut stream = client.listen(request).await.unwrap().into_inner();
    while let Some(response) = stream.message().await.unwrap() {
        let Some(Frame::Deliveries(batch)) = response.frame else { continue };
        let now = Instant::now();
        let messages = batch.deliveries.iter().map(|delivery| delivery.message.as_ref().unwrap());
        let arrived = messages.map(|message| (message.id.parse().unwrap(), now, message.route()));
        received.lock().unwrap().extend(arrived);
        let cursor = batch.deliveries.last().map_or(0, |delivery| delivery.cursor);
        let ack = proto::AckRequest { channel: CHANNEL.to_owned(), cursor, ..proto::AckRequest::default() };
        client.ack(ack).await.unwrap();
    }
}
