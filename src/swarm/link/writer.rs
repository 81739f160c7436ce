//! Frames to bytes.

use std::{io, time::Duration};

use futures::{AsyncWrite, AsyncWriteExt};
use tokio::{sync::mpsc, time::timeout};

use crate::wire::{EncodedFrame, WireError};

/// Frames taken from the queue at once.
const BATCH: usize = 256;
/// Small frames are gathered up to this many bytes before they are written.
const COALESCE: usize = 64 * 1024;
/// Payloads from this size on are written as they are: copying them costs more
/// than one more write.
const WRITE_UNCOPIED: usize = 32 * 1024;
/// Longest wait for the peer to take what is left when a link is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes frames from a queue and writes them to a stream.
pub(super) struct Writer<S, F> {
    stream: S,
    encode: fn(&F) -> Result<EncodedFrame, WireError>,
    frames: mpsc::Receiver<F>,
    buffer: Vec<u8>,
}

/// Why writing failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The stream broke.
    #[error("stream broken: {0}")]
    Broken(#[from] io::Error),
    /// This node made a frame that breaks a limit.
    #[error("a frame cannot be sent: {0}")]
    Encode(#[from] WireError),
}

impl<S: AsyncWrite + Unpin, F> Writer<S, F> {
    pub(super) fn new(stream: S, encode: fn(&F) -> Result<EncodedFrame, WireError>, frames: mpsc::Receiver<F>) -> Self {
        Self { stream, encode, frames, buffer: Vec::new() }
    }

    /// Writes until the queue is closed, then closes the stream.
    pub(super) async fn run(mut self) -> Result<(), WriteError> {
        let mut batch = Vec::with_capacity(BATCH);
        while self.frames.recv_many(&mut batch, BATCH).await > 0 {
            for frame in batch.drain(..) {
                self.write(&frame).await?;
            }
            if self.frames.is_empty() {
                self.flush().await?;
            }
        }
        match timeout(CLOSE_TIMEOUT, self.close()).await {
            Ok(closed) => closed.map_err(WriteError::Broken),
            Err(_) => Err(WriteError::Broken(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn write(&mut self, frame: &F) -> Result<(), WriteError> {
        let EncodedFrame { head, payload } = (self.encode)(frame)?;
        self.buffer.extend_from_slice(&head);
        if payload.len() >= WRITE_UNCOPIED {
            self.write_buffer().await?;
            self.stream.write_all(&payload).await?;
        } else {
            self.buffer.extend_from_slice(&payload);
        }
        if self.buffer.len() >= COALESCE {
            self.write_buffer().await?;
        }
        Ok(())
    }

    async fn write_buffer(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.write_buffer().await?;
        self.stream.flush().await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.stream.close().await
    }
}
