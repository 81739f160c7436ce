//! Bytes to frames.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, error::TrySendError},
};

use crate::{
    node::Received,
    wire::{Decoder, FRAME_PREFIX_BYTES, WireError},
};

/// Bytes read at once on a quiet link.
const FIRST_READ: usize = 4 * 1024;
/// Bytes read at once on a busy link; larger reads bring nothing more.
/// Frames that fit are slices of the read buffer, larger ones are read into
/// a buffer of their own.
const LARGEST_READ: usize = 64 * 1024;
/// First piece of a large frame that gets memory; it doubles as bytes come in,
/// so that an announcement alone costs little.
const FIRST_PIECE: usize = 256 * 1024;
/// What a frame costs of the budget besides its bytes, so that tiny frames are
/// not free.
pub(super) const FRAME_OVERHEAD: usize = 128;

/// Reads frames from a stream and passes them on.
pub(super) struct Reader<S, F> {
    stream: S,
    decoder: Decoder,
    decode: fn(&Decoder, Bytes) -> Result<F, WireError>,
    budget: Arc<Semaphore>,
    frames: mpsc::Sender<Received<F>>,
    /// Bytes not yet cut into frames.
    buffer: BytesMut,
    /// Where the stream writes; zeroed once.
    scratch: Vec<u8>,
}

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadEnd {
    /// The other side closed the link.
    #[error("closed by the peer")]
    Closed,
    /// Nobody takes frames here any more.
    #[error("closed here")]
    Unread,
    /// The stream broke, within a frame if the kind is `UnexpectedEof`.
    #[error("stream broken: {0}")]
    Broken(#[from] io::Error),
    /// The peer does not follow the protocol.
    #[error(transparent)]
    Protocol(#[from] WireError),
}

impl<S: AsyncRead + Unpin, F> Reader<S, F> {
    pub(super) fn new(
        stream: S,
        decoder: Decoder,
        decode: fn(&Decoder, Bytes) -> Result<F, WireError>,
        budget: Arc<Semaphore>,
        frames: mpsc::Sender<Received<F>>,
    ) -> Self {
        Self { stream, decoder, decode, budget, frames, buffer: BytesMut::new(), scratch: vec![0; FIRST_READ] }
    }

    /// Reads until something ends it.
    pub(super) async fn run(mut self) -> ReadEnd {
        let frames = self.frames.clone();
        tokio::select! {
            biased;
            end = self.read_all() => end,
            () = frames.closed() => ReadEnd::Unread,
        }
    }

    async fn read_all(&mut self) -> ReadEnd {
        loop {
            if let Err(end) = self.read_some().await {
                return end;
            }
        }
    }

    /// Passes on what the buffer holds and reads more.
    async fn read_some(&mut self) -> Result<(), ReadEnd> {
        while let Some(len) = self.announced()? {
            let whole = FRAME_PREFIX_BYTES + len;
            if whole > LARGEST_READ {
                self.pass_on_large(len).await?;
            } else if self.buffer.len() >= whole {
                let permit = self.acquire(len).await?;
                let body = self.buffer.split_to(whole).freeze().slice(FRAME_PREFIX_BYTES..);
                self.pass_on(body, permit).await?;
            } else {
                break;
            }
        }
        self.fill().await
    }

    /// Length of the frame body that the buffer begins with.
    fn announced(&self) -> Result<Option<usize>, WireError> {
        match self.buffer.first_chunk::<FRAME_PREFIX_BYTES>() {
            Some(prefix) => self.decoder.body_len(*prefix).map(Some),
            None => Ok(None),
        }
    }

    async fn fill(&mut self) -> Result<(), ReadEnd> {
        // The substream itself never makes a busy reader give way.
        tokio::task::consume_budget().await;
        let read = self.stream.read(&mut self.scratch).await?;
        if read == 0 {
            return Err(if self.buffer.is_empty() { ReadEnd::Closed } else { truncated() });
        }
        if self.buffer.capacity() - self.buffer.len() < read {
            self.buffer.reserve(self.scratch.len());
        }
        self.buffer.extend_from_slice(&self.scratch[..read]);
        if read == self.scratch.len() && read < LARGEST_READ {
            self.scratch.resize(2 * read, 0);
        }
        Ok(())
    }

    /// Reads a frame that the read buffer has no room for.
    async fn pass_on_large(&mut self, len: usize) -> Result<(), ReadEnd> {
        let permit = self.acquire(len).await?;
        let _prefix = self.buffer.split_to(FRAME_PREFIX_BYTES);
        let begun = self.buffer.split_to(self.buffer.len().min(len));
        let mut body = Vec::with_capacity(len.min(FIRST_PIECE).max(begun.len()));
        body.extend_from_slice(&begun);
        drop(begun);
        while body.len() < len {
            let filled = body.len();
            let piece = (len - filled).min(filled.max(FIRST_PIECE));
            body.reserve_exact(piece);
            body.resize(filled + piece, 0);
            self.stream.read_exact(&mut body[filled..]).await?;
        }
        self.pass_on(body.into(), permit).await
    }

    /// Waits until the frame has room among those not yet done with.
    async fn acquire(&self, len: usize) -> Result<OwnedSemaphorePermit, ReadEnd> {
        let cost = u32::try_from(len + FRAME_OVERHEAD).unwrap_or(u32::MAX);
        match self.budget.clone().try_acquire_many_owned(cost) {
            Ok(permit) => Ok(permit),
            Err(_) => self.budget.clone().acquire_many_owned(cost).await.map_err(|_| ReadEnd::Unread),
        }
    }

    async fn pass_on(&self, body: Bytes, permit: OwnedSemaphorePermit) -> Result<(), ReadEnd> {
        let frame = (self.decode)(&self.decoder, body)?;
        match self.frames.try_send(Received { frame, permit }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(received)) => self.frames.send(received).await.map_err(|_| ReadEnd::Unread),
            Err(TrySendError::Closed(_)) => Err(ReadEnd::Unread),
        }
    }
}

fn truncated() -> ReadEnd {
    ReadEnd::Broken(io::ErrorKind::UnexpectedEof.into())
}
