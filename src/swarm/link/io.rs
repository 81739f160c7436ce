//! Moves the frames of one link.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    reader::{FRAME_OVERHEAD, ReadEnd, Reader},
    writer::{WriteError, Writer},
};
use crate::{
    node::{Direction, Received},
    types::MAX_HEADER_BYTES,
    wire::{Decoder, EncodedFrame, WireError, encode_back, encode_forward},
};

/// Frames that wait in each direction. Enough that neither side waits for the
/// other at full speed; their bytes are bounded by the budget.
const QUEUE: usize = 512;
/// Least bytes of frames that have come in and are not yet done with.
const LEAST_BUDGET: usize = 8 * 1024 * 1024;
/// A closed link lives on for this long at most, to take the rest of what the
/// other side had to say.
const LINGER: Duration = Duration::from_secs(5);

/// What a link needs besides its stream.
#[derive(Debug)]
pub(in crate::swarm) struct Terms {
    /// Knows the largest frame.
    pub(in crate::swarm) decoder: Decoder,
    /// Bytes of frames that have come in; may be shared with other links.
    pub(in crate::swarm) budget: Arc<Semaphore>,
    /// Ends the link at once.
    pub(in crate::swarm) cancel: CancellationToken,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::swarm) enum LinkEnd {
    /// It was closed, on either side.
    #[error("closed")]
    Closed,
    /// The stream broke.
    #[error("stream broken: {0}")]
    Broken(std::io::Error),
    /// One side does not follow the protocol.
    #[error("{0}")]
    Protocol(WireError),
}

impl From<ReadEnd> for LinkEnd {
    fn from(end: ReadEnd) -> Self {
        match end {
            ReadEnd::Closed | ReadEnd::Unread => Self::Closed,
            ReadEnd::Broken(error) => Self::Broken(error),
            ReadEnd::Protocol(error) => Self::Protocol(error),
        }
    }
}

impl From<Result<(), WriteError>> for LinkEnd {
    fn from(end: Result<(), WriteError>) -> Self {
        match end {
            Ok(()) => Self::Closed,
            Err(WriteError::Broken(error)) => Self::Broken(error),
            Err(WriteError::Encode(error)) => Self::Protocol(error),
        }
    }
}

/// A budget for the frames of one or more links: at least one frame of the
/// largest size always fits.
pub(in crate::swarm) fn budget(max_message_bytes: u64) -> Arc<Semaphore> {
    /// Kind and header length before each header.
    const FIXED: usize = 16;
    let message = usize::try_from(max_message_bytes).unwrap_or(usize::MAX);
    let frame = message.saturating_add(MAX_HEADER_BYTES + FIXED + FRAME_OVERHEAD);
    Arc::new(Semaphore::new(frame.clamp(LEAST_BUDGET, Semaphore::MAX_PERMITS)))
}

/// A link on which this side sends messages: its ends, and what moves them.
pub(in crate::swarm) fn outbound<S>(stream: S, terms: Terms) -> (Direction, impl Future<Output = LinkEnd> + Send)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (tx, rx, moved) = link(stream, terms, encode_forward, Decoder::back);
    (Direction::Outbound { tx, rx }, moved)
}

/// A link on which the peer sends messages.
pub(in crate::swarm) fn inbound<S>(stream: S, terms: Terms) -> (Direction, impl Future<Output = LinkEnd> + Send)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (tx, rx, moved) = link(stream, terms, encode_back, Decoder::forward);
    (Direction::Inbound { tx, rx }, moved)
}

type Encode<W> = fn(&W) -> Result<EncodedFrame, WireError>;
type Decode<R> = fn(&Decoder, Bytes) -> Result<R, WireError>;

fn link<S, W, R>(
    stream: S,
    terms: Terms,
    encode: Encode<W>,
    decode: Decode<R>,
) -> (mpsc::Sender<W>, mpsc::Receiver<Received<R>>, impl Future<Output = LinkEnd> + Send)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    W: Send + Sync + 'static,
    R: Send + Sync + 'static,
{
    let (tx, to_write) = mpsc::channel(QUEUE);
    let (was_read, rx) = mpsc::channel(QUEUE);
    let (read_half, write_half) = stream.split();
    let reader = Reader::new(read_half, terms.decoder, decode, terms.budget, was_read);
    let writer = Writer::new(write_half, encode, to_write);
    let moved = async move {
        tokio::select! {
            biased;
            () = terms.cancel.cancelled() => LinkEnd::Closed,
            end = both(reader.run(), writer.run()) => end,
        }
    };
    (tx, rx, moved)
}

/// Runs both directions in one task, where their shared stream needs no
/// waiting. When one has ended in peace the other gets a little time.
async fn both(
    reading: impl Future<Output = ReadEnd>,
    writing: impl Future<Output = Result<(), WriteError>>,
) -> LinkEnd {
    let mut reading = std::pin::pin!(reading);
    let mut writing = std::pin::pin!(writing);
    tokio::select! {
        end = &mut reading => match LinkEnd::from(end) {
            LinkEnd::Closed => timeout(LINGER, writing).await.map_or(LinkEnd::Closed, LinkEnd::from),
            end => end,
        },
        end = &mut writing => match LinkEnd::from(end) {
            LinkEnd::Closed => timeout(LINGER, reading).await.map_or(LinkEnd::Closed, LinkEnd::from),
            end => end,
        },
    }
}
