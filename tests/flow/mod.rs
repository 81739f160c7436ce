//! Many messages at once through SendStream, and a Listen up to a marker.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use p2p_node::proto::{self, AckMode, MessageState, Wait, listen_response, send_stream_response};
use tokio::time::timeout;
use tonic::Streaming;

use crate::support::{Client, DEADLINE, message, send_to};

/// Bytes of payload in one frame of a SendStream.
const FRAME_BYTES: usize = 512 << 10;

/// The last message of a channel in a test.
pub(crate) const MARKER: &str = "marker";

/// Receipts of a SendStream, as they come.
pub(crate) struct Receipts {
    stream: Streaming<proto::SendStreamResponse>,
    read: Vec<proto::Receipt>,
}

impl Receipts {
    /// Sends requests in frames through one SendStream; the `ref` of each is
    /// its place.
    pub(crate) async fn of(client: &Client, requests: Vec<proto::SendRequest>) -> Self {
        let stream = client.clone().send_stream(tokio_stream::iter(frames(requests))).await.unwrap().into_inner();
        Self { stream, read: Vec::new() }
    }

    /// Reads until there are so many; each names a message that was taken.
    pub(crate) async fn read(&mut self, count: usize) -> &[proto::Receipt] {
        while self.read.len() < count {
            let frame = timeout(DEADLINE, self.stream.message()).await.expect("receipts in time");
            let frame = frame.unwrap().expect("an open stream").frame;
            if let Some(send_stream_response::Frame::Receipts(receipts)) = frame {
                self.read.extend(receipts.receipts);
            }
        }
        for receipt in &self.read {
            assert!(receipt.response.is_some(), "{}: {}", receipt.code, receipt.error);
        }
        &self.read
    }

    /// Reads to the end of the stream, and checks that each message got one
    /// receipt, with this state.
    pub(crate) async fn all(mut self, count: usize, state: MessageState) {
        let receipts = self.read(count).await;
        let mut places: Vec<_> = receipts.iter().map(|receipt| receipt.r#ref).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..count as u64));
        for receipt in receipts {
            assert_eq!(receipt.response.as_ref().unwrap().state(), state, "{receipt:?}");
        }
        assert!(timeout(DEADLINE, self.stream.message()).await.expect("the end in time").unwrap().is_none());
    }
}

/// Sends, and waits until each is on the sender's disk.
pub(crate) async fn queue_all(client: &Client, requests: Vec<proto::SendRequest>) {
    let count = requests.len();
    let queued = |request| proto::SendRequest { wait: Wait::Queued.into(), ..request };
    let receipts = Receipts::of(client, requests.into_iter().map(queued).collect()).await;
    receipts.all(count, MessageState::Queued).await;
}

/// Sends, and waits until each is on the recipient's disk.
pub(crate) async fn store_all(client: &Client, requests: Vec<proto::SendRequest>) {
    let count = requests.len();
    Receipts::of(client, requests).await.all(count, MessageState::Stored).await;
}

/// Sends the last message of a channel, and waits until it is stored.
pub(crate) async fn mark(client: &Client, peer: &str, channel: &str) {
    store_all(client, vec![send_to(peer, message(channel, MARKER, ""))]).await;
}

/// A Listen on a channel that is ready.
pub(crate) async fn listen(client: &Client, channel: &str) -> Streaming<proto::ListenResponse> {
    let request = proto::ListenRequest {
        channel: channel.to_owned(),
        ack_mode: AckMode::Manual.into(),
        max_batch: 64,
        ..proto::ListenRequest::default()
    };
    let mut stream = client.clone().listen(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    stream
}

/// Messages of a channel before the marker, in the order they come, each batch
/// acknowledged.
pub(crate) async fn read_to_marker(
    client: &Client,
    stream: &mut Streaming<proto::ListenResponse>,
) -> Vec<proto::Message> {
    let mut read = Vec::new();
    loop {
        let frame = timeout(DEADLINE, stream.message()).await;
        let frame = frame.unwrap_or_else(|_| panic!("nothing came after {} messages", read.len()));
        let frame = frame.unwrap().expect("an open stream").frame;
        let Some(listen_response::Frame::Deliveries(batch)) = frame else { continue };
        let cursor = batch.deliveries.last().unwrap().cursor;
        let channel = batch.deliveries[0].message.as_ref().unwrap().channel.clone();
        read.extend(batch.deliveries.into_iter().map(|delivery| delivery.message.unwrap()));
        client.clone().ack(proto::AckRequest { channel, cursor, ..Default::default() }).await.unwrap();
        if read.last().unwrap().id == MARKER {
            read.pop();
            return read;
        }
    }
}

/// As [`read_to_marker`], with a Listen of its own; ids only.
pub(crate) async fn ids_to_marker(client: &Client, channel: &str) -> Vec<String> {
    let mut stream = listen(client, channel).await;
    read_to_marker(client, &mut stream).await.into_iter().map(|message| message.id).collect()
}

/// Requests with a prefix and a number as id.
pub(crate) fn numbered(
    peer: &str,
    channel: &str,
    prefix: &str,
    numbers: std::ops::Range<usize>,
) -> Vec<proto::SendRequest> {
    numbers.map(|at| send_to(peer, message(channel, &format!("{prefix}{at}"), vec![b'x'; 200]))).collect()
}

/// Ids of requests.
pub(crate) fn ids(requests: &[proto::SendRequest]) -> Vec<String> {
    requests.iter().map(|request| request.message.as_ref().unwrap().id.clone()).collect()
}

fn frames(requests: Vec<proto::SendRequest>) -> Vec<proto::SendStreamRequest> {
    let mut frames = vec![proto::SendStreamRequest::default()];
    let mut bytes = 0;
    for (at, request) in requests.into_iter().enumerate() {
        let size = request.message.as_ref().unwrap().payload.len();
        let last = frames.last().unwrap();
        if !last.items.is_empty() && (bytes + size > FRAME_BYTES || last.items.len() == 64) {
            frames.push(proto::SendStreamRequest::default());
            bytes = 0;
        }
        bytes += size;
        frames.last_mut().unwrap().items.push(proto::SendItem { r#ref: at as u64, request: Some(request) });
    }
    frames
}
