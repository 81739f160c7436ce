//! SendStream and Listen.

use std::pin::Pin;

use futures::{FutureExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Status, Streaming};

use super::{
    Api, caller,
    convert::{self, channel},
    errors::{bad_field, limit, shutting_down},
    messages::{Checked, Names},
};
use crate::{
    delivery::{Delivered, Delivery, DeliveryError, ListenSpec, Listener, Pending, Receipts, SendSpec, Sent},
    proto::{self, AckMode, Wait, listen_response, send_stream_response},
};

/// Messages of one Listen frame at most.
const MAX_BATCH: u32 = 4096;
/// Items of one SendStream frame at most.
const MAX_ITEMS: usize = 4096;
/// Messages of one SendStream whose ends are waited for. Past that nothing
/// more is read from it.
const MAX_UNDER_WAY: usize = 16 * 1024;
/// Bytes of one SendStream that wait for the commit before theirs to end. Past
/// that nothing more is read from it.
const MAX_WAITING_BYTES: u64 = 8 * 1024 * 1024;
/// Frames that wait for a client to read them; a frame of deliveries has up to
/// 1 MiB.
const FRAMES: usize = 4;
/// How long an ephemeral item of a stream waits for a link.
const EPHEMERAL_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type EphemeralEnd = (u64, Result<Sent, DeliveryError>);

/// Number and wish of each item of a commit, and what became of them.
type Committed = (Vec<(u64, Wait)>, Result<Vec<Result<Pending, DeliveryError>>, DeliveryError>);

type Commit = Pin<Box<dyn Future<Output = Committed> + Send>>;

/// Items of a SendStream whose ends are waited for.
#[derive(Default)]
struct UnderWay {
    durable: Receipts,
    ephemeral: FuturesUnordered<Pin<Box<dyn Future<Output = EphemeralEnd> + Send>>>,
    /// One commit at a time, which keeps the order; what comes meanwhile goes
    /// into the next, so that small frames share one.
    commit: Option<Commit>,
    committing: usize,
    specs: Vec<SendSpec>,
    asked: Vec<(u64, Wait)>,
    waiting_bytes: u64,
}

impl UnderWay {
    fn len(&self) -> usize {
        self.durable.len() + self.ephemeral.len() + self.committing + self.specs.len()
    }

    fn has_room(&self) -> bool {
        self.len() < MAX_UNDER_WAY && self.waiting_bytes < MAX_WAITING_BYTES
    }

    fn wait_for_commit(&mut self, at: u64, wait: Wait, spec: SendSpec) {
        self.waiting_bytes += spec.content.cost();
        self.specs.push(spec);
        self.asked.push((at, wait));
    }

    /// Begins the next commit if there is something for it and none runs.
    fn begin_commit(&mut self, delivery: &Delivery) {
        if self.commit.is_some() || self.specs.is_empty() {
            return;
        }
        self.waiting_bytes = 0;
        let (specs, asked) = (std::mem::take(&mut self.specs), std::mem::take(&mut self.asked));
        self.committing = specs.len();
        let delivery = delivery.clone();
        self.commit = Some(Box::pin(async move { (asked, delivery.send(specs).await) }));
    }

    /// Receipts of committed items that are known at once.
    fn take_committed(&mut self, (asked, answers): Committed) -> Result<Vec<proto::Receipt>, Status> {
        self.committing = 0;
        let mut receipts = Vec::new();
        for ((at, wait), answer) in asked.into_iter().zip(answers?) {
            match answer {
                Err(error) => receipts.push(refused(at, &error.into())),
                Ok(pending) if wait == Wait::Queued => receipts.push(taken(at, pending.sent)),
                Ok(pending) => receipts.extend(self.durable.push(at, pending).map(|sent| taken(at, sent))),
            }
        }
        Ok(receipts)
    }

    /// Receipts of an ephemeral item that ended, and of those that ended with
    /// it.
    fn ended(&mut self, first: EphemeralEnd) -> Vec<proto::Receipt> {
        let mut receipts = Vec::new();
        let mut next = Some(first);
        while let Some((at, end)) = next {
            receipts.push(end.map_or_else(|error| refused(at, &error.into()), |sent| taken(at, sent)));
            next = self.ephemeral.next().now_or_never().flatten();
        }
        receipts
    }
}

/// Resolves when there is something to resolve.
async fn committed(commit: &mut Option<Commit>) -> Committed {
    match commit {
        Some(under_way) => {
            let done = under_way.await;
            *commit = None;
            done
        }
        None => std::future::pending().await,
    }
}

type Frames<T> = mpsc::Sender<Result<T, Status>>;

impl Api {
    /// A place among the streams, while it is kept.
    pub(super) fn stream_slot(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.check_open()?;
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let max = u64::from(self.facts.settings.limits.max_streams);
            let text = format!("max_streams is {max}, all in use; end some streams, or raise it");
            limit(text, "max_streams", Some(max), max)
        })
    }

    // Listen

    pub(super) async fn listen_to(
        &self,
        request: Request<proto::ListenRequest>,
    ) -> Result<Answers<proto::ListenResponse>, Status> {
        let slot = self.stream_slot()?;
        let pid = caller(&request);
        let spec = listen_spec(request.into_inner(), pid)?;
        let name = spec.channel.clone();
        let listener = self.delivery.listen(spec).await?;
        let ready = proto::ListenReady {
            instance_id: self.facts.instance_id.clone(),
            cursor: listener.start(),
            inbox_id: self.delivery.inbox_id().to_owned(),
        };
        let (frames, answers) = mpsc::channel(FRAMES);
        // There is room: nothing was sent yet.
        drop(frames.try_send(Ok(listen_frame(listen_response::Frame::Ready(ready)))));
        let (stop, to) = (self.stop.clone(), self.delivery.node().local_peer_id().to_string());
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                biased;
                () = stop.cancelled() => drop(frames.try_send(Err(shutting_down()))),
                // The client went away.
                () = frames.closed() => {}
                () = deliver(listener, &frames, &to, &name) => {}
            }
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    // SendStream

    pub(super) async fn send_many(
        &self,
        request: Request<Streaming<proto::SendStreamRequest>>,
    ) -> Result<Answers<proto::SendStreamResponse>, Status> {
        let slot = self.stream_slot()?;
        let (frames, answers) = mpsc::channel(FRAMES);
        let ready = self.ready();
        // There is room: nothing was sent yet.
        drop(frames.try_send(Ok(send_frame(send_stream_response::Frame::Ready(ready)))));
        let (api, items) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let _slot = slot;
            let stop = api.stop.clone();
            let end = tokio::select! {
                biased;
                () = stop.cancelled() => Err(shutting_down()),
                () = frames.closed() => Ok(()),
                end = api.pump(items, &frames) => end,
            };
            if let Err(status) = end {
                // A client that does not read its receipts does not read this.
                drop(frames.try_send(Err(status)));
            }
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    /// Takes items while receipts go out, until the client is done and all
    /// ends are told.
    async fn pump(
        &self,
        mut items: Streaming<proto::SendStreamRequest>,
        frames: &Frames<proto::SendStreamResponse>,
    ) -> Result<(), Status> {
        let mut under_way = UnderWay::default();
        let mut reading = true;
        while reading || under_way.len() > 0 {
            under_way.begin_commit(&self.delivery);
            let receipts = tokio::select! {
                biased;
                done = committed(&mut under_way.commit) => under_way.take_committed(done)?,
                peer = under_way.durable.moved() => {
                    let ended = under_way.durable.take_ended(&self.delivery, &peer).await;
                    ended.into_iter().map(|(at, sent)| taken(at, sent)).collect()
                }
                Some(ended) = under_way.ephemeral.next() => under_way.ended(ended),
                batch = items.next(), if reading && under_way.has_room() => match batch {
                    Some(batch) => self.take_items(batch?.items, &mut under_way).await?,
                    None => {
                        reading = false;
                        continue;
                    }
                },
            };
            tell(frames, receipts).await;
        }
        Ok(())
    }

    /// Checks a frame's items and passes on the ephemeral ones; returns the
    /// receipts of those that are refused.
    async fn take_items(
        &self,
        items: Vec<proto::SendItem>,
        under_way: &mut UnderWay,
    ) -> Result<Vec<proto::Receipt>, Status> {
        if items.len() > MAX_ITEMS {
            let text =
                format!("items has {} entries; the limit is {MAX_ITEMS} a frame: use several frames", items.len());
            return Err(bad_field("items", text));
        }
        let (mut receipts, mut names) = (Vec::new(), Names::default());
        for item in items {
            let Some(request) = item.request else {
                let status = bad_field("request", "request is missing; give at least its peer and message".to_owned());
                receipts.push(refused(item.r#ref, &status));
                continue;
            };
            match self.check_send(request, &mut names).await {
                Ok(Checked { spec, ephemeral: true, .. }) => {
                    let until = tokio::time::Instant::now() + EPHEMERAL_WAIT;
                    let at = item.r#ref;
                    match self.delivery.send_ephemeral(spec, until).await {
                        Ok(sent) => under_way.ephemeral.push(Box::pin(async move { (at, sent.end().await) })),
                        Err(error) => receipts.push(refused(at, &error.into())),
                    }
                }
                Ok(Checked { spec, wait, .. }) => under_way.wait_for_commit(item.r#ref, wait, spec),
                Err(status) => receipts.push(refused(item.r#ref, &status)),
            }
        }
        Ok(receipts)
    }
}

/// Whether handing out is to acknowledge: never without being asked for by
/// name, because what is acknowledged is gone.
fn acknowledges_by_itself(request: &proto::ListenRequest) -> Result<bool, Status> {
    let given = match AckMode::try_from(request.ack_mode) {
        Ok(AckMode::Auto) => return Ok(true),
        Ok(AckMode::Manual) => return Ok(false),
        Ok(AckMode::Unspecified) if request.peek => return Ok(false),
        Ok(AckMode::Unspecified) => "missing (ACK_MODE_UNSPECIFIED)".to_owned(),
        Err(_) => format!("{}, which this version does not know", request.ack_mode),
    };
    let text = format!(
        "ack_mode is {given}; give ACK_MODE_MANUAL (2) to acknowledge by Ack, ACK_MODE_AUTO (1) to have what is \
         handed out acknowledged, or set peek to consume nothing"
    );
    Err(bad_field("ack_mode", text))
}

fn listen_spec(request: proto::ListenRequest, pid: String) -> Result<ListenSpec, Status> {
    if request.max_batch > MAX_BATCH {
        let text = format!("max_batch is {}; the limit is {MAX_BATCH}: ask for fewer, or 0 for 1", request.max_batch);
        return Err(bad_field("max_batch", text));
    }
    Ok(ListenSpec {
        channel: channel("channel", &request.channel)?,
        consumer: convert::consumer(&request.consumer)?,
        auto: acknowledges_by_itself(&request)?,
        max_batch: request.max_batch.max(1) as usize,
        peek: request.peek,
        pid,
    })
}

/// Hands out batches until the client goes or the store fails.
async fn deliver(mut listener: Listener, frames: &Frames<proto::ListenResponse>, to: &str, channel: &str) {
    loop {
        // A place first: what is not handed out is not counted as delivered.
        let Ok(place) = frames.reserve().await else { return };
        match listener.next().await {
            Ok(batch) => place.send(Ok(listen_frame(deliveries(batch, to, channel)))),
            Err(error) => {
                if !matches!(error, DeliveryError::Closed) {
                    tracing::warn!(%error, "a Listen ended");
                }
                return place.send(Err(error.into()));
            }
        }
    }
}

fn deliveries(batch: Vec<Delivered>, to: &str, channel: &str) -> listen_response::Frame {
    // Mostly one peer after itself.
    let mut from: Option<(PeerId, String)> = None;
    let deliveries = batch.into_iter().map(|delivered| {
        let peer = delivered.peer;
        let (_, text) = match from.take().filter(|(known, _)| *known == peer) {
            Some(known) => from.insert(known),
            None => from.insert((peer, peer.to_string())),
        };
        convert::delivery(delivered, text, to, channel)
    });
    let deliveries = deliveries.collect();
    listen_response::Frame::Deliveries(proto::Deliveries { deliveries })
}

fn listen_frame(frame: listen_response::Frame) -> proto::ListenResponse {
    proto::ListenResponse { frame: Some(frame) }
}

fn send_frame(frame: send_stream_response::Frame) -> proto::SendStreamResponse {
    proto::SendStreamResponse { frame: Some(frame) }
}

fn taken(at: u64, sent: Sent) -> proto::Receipt {
    proto::Receipt { r#ref: at, response: Some(convert::send_response(sent)), ..proto::Receipt::default() }
}

fn refused(at: u64, status: &Status) -> proto::Receipt {
    proto::Receipt {
        r#ref: at,
        response: None,
        code: status.code().into(),
        error: status.message().to_owned(),
        details: status.details().to_vec(),
    }
}

async fn tell(frames: &Frames<proto::SendStreamResponse>, receipts: Vec<proto::Receipt>) {
    if !receipts.is_empty() {
        let frame = send_frame(send_stream_response::Frame::Receipts(proto::Receipts { receipts }));
        // The client went away: the stream ends by itself.
        drop(frames.send(Ok(frame)).await);
    }
}
