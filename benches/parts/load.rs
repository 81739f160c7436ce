//! The load that is the same for all: messages of 1 KiB with a bound on those
//! in flight, counted where they arrive.

use std::{
    path::Path,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use p2p_node::proto::{self, p2p_client::P2pClient, send_stream_response::Frame};
use tokio::{net::UnixStream, sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Bytes of a payload.
pub(crate) const MESSAGE_BYTES: usize = 1024;
/// What passes before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// Longest wait for what is still on its way at the end.
const DRAIN: Duration = Duration::from_secs(20);

/// How to send.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) peer: String,
    pub(crate) channel: &'static str,
    pub(crate) ephemeral: bool,
    /// Messages without a receipt at most.
    pub(crate) in_flight: usize,
    /// Messages of a frame at most; fewer when fewer may be sent.
    pub(crate) per_frame: usize,
    pub(crate) length: Duration,
}

impl Default for Load {
    fn default() -> Self {
        let length = Duration::from_secs(1);
        Self { peer: String::new(), channel: "", ephemeral: false, in_flight: 1, per_frame: 256, length }
    }
}

/// The result of one measurement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    /// Messages a second.
    pub(crate) rate: f64,
    /// Time from app to app, in microseconds; 0 if not measured.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Messages that did not end as stored, in thousandths of all.
    pub(crate) refused: f64,
}

/// The results of all rounds.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) in_flight: usize,
    pub(crate) taken: Vec<Taken>,
}

impl Figure {
    pub(crate) fn add(all: &mut Vec<Self>, name: &str, in_flight: usize, taken: Taken) {
        let mut known = all.iter_mut().find(|figure| figure.name == name && figure.in_flight == in_flight);
        match &mut known {
            Some(figure) => figure.taken.push(taken),
            None => all.push(Self { name: name.to_owned(), in_flight, taken: vec![taken] }),
        }
    }

    pub(crate) fn median(&self, part: impl Fn(&Taken) -> f64) -> f64 {
        median(self.taken.iter().map(part).collect())
    }
}

/// The middle value; the upper one of two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What has arrived at the far end.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    count: AtomicU64,
    nanos: Mutex<Vec<u64>>,
}

impl Arrived {
    /// Counts a batch of payloads; those that carry a time are timed.
    pub(crate) fn note<'a>(&self, payloads: impl Iterator<Item = &'a [u8]>) {
        let mut count = 0;
        for payload in payloads {
            count += 1;
            let sent = payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if sent > 0 {
                self.nanos.lock().unwrap().push(now_nanos().saturating_sub(sent));
            }
        }
        self.count.fetch_add(count, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The times since the last call, sorted.
    fn take_nanos(&self) -> Vec<u64> {
        let mut nanos = std::mem::take(&mut *self.nanos.lock().unwrap());
        nanos.sort_unstable();
        nanos
    }
}

fn now_nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // Never 0, which stands for a message without a time.
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

/// A payload: with the time when one at a time is sent, else always the same.
pub(crate) fn payload(in_flight: usize) -> Bytes {
    static ZEROS: [u8; MESSAGE_BYTES] = [0; MESSAGE_BYTES];
    if in_flight > 1 {
        return Bytes::from_static(&ZEROS);
    }
    let mut bytes = ZEROS.to_vec();
    bytes[..8].copy_from_slice(&now_nanos().to_le_bytes());
    bytes.into()
}

/// What was sent until the stop.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) stored: u64,
    pub(crate) refused: u64,
}

/// Runs a sender for the length of a load and counts at the far end.
pub(crate) async fn measure<F>(load: &Load, arrived: &Arrived, send: impl FnOnce(&'static AtomicBool) -> F) -> Taken
where
    F: Future<Output = Tally> + Send + 'static,
{
    // One byte a measurement.
    let stop: &'static AtomicBool = Box::leak(Box::default());
    let before = arrived.count();
    let sender = tokio::spawn(send(stop));
    sleep(WARM_UP).await;
    arrived.take_nanos();
    let (from, began) = (arrived.count(), Instant::now());
    sleep(load.length).await;
    let rate = (arrived.count() - from) as f64 / began.elapsed().as_secs_f64();
    let nanos = arrived.take_nanos();
    stop.store(true, Ordering::Relaxed);
    let tally = sender.await.unwrap();
    let deadline = Instant::now() + DRAIN;
    while arrived.count() - before < tally.stored && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    let missing = tally.stored.saturating_sub(arrived.count() - before);
    assert_eq!(missing, 0, "messages with a receipt that did not arrive");
    let at = |share: f64| nanos.get((nanos.len() as f64 * share) as usize).map_or(0.0, |&nanos| nanos as f64 / 1000.0);
    let all = (tally.stored + tally.refused).max(1) as f64;
    Taken { rate, p50: at(0.5), p99: at(0.99), refused: tally.refused as f64 * 1000.0 / all }
}

/// A channel to a Unix socket.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// Sends by `SendStream` whatever may be sent, until the stop, and waits for
/// all receipts.
pub(crate) async fn send_stream(mut client: P2pClient<Channel>, load: Load, stop: &AtomicBool) -> Tally {
    let (frames, outgoing) = mpsc::channel(load.in_flight);
    let mut answers = client.send_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let (mut under_way, mut tally) = (0, Tally::default());
    loop {
        while !stop.load(Ordering::Relaxed) && under_way < load.in_flight {
            let count = load.per_frame.min(load.in_flight - under_way);
            let items = (0..count).map(|_| item(&load)).collect();
            frames.send(proto::SendStreamRequest { items }).await.unwrap();
            under_way += count;
        }
        if under_way == 0 {
            return tally;
        }
        let answer = answers.message().await.unwrap().expect("an open stream");
        let Some(Frame::Receipts(receipts)) = answer.frame else { continue };
        under_way -= receipts.receipts.len();
        for receipt in receipts.receipts {
            match receipt.response {
                Some(sent) if sent.state() == proto::MessageState::Stored => tally.stored += 1,
                _ => tally.refused += 1,
            }
        }
    }
}

fn item(load: &Load) -> proto::SendItem {
    let message = proto::Message {
        payload: payload(load.in_flight),
        channel: load.channel.to_owned(),
        ..proto::Message::default()
    };
    let request = proto::SendRequest {
        peer: load.peer.clone(),
        message: Some(message),
        wait: proto::Wait::Stored.into(),
        ephemeral: load.ephemeral,
        ..proto::SendRequest::default()
    };
    proto::SendItem { r#ref: 1, request: Some(request) }
}
