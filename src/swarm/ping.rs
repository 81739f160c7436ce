//! Single pings over libp2p's ping protocol.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};
use tokio::time::{Instant, timeout};

use super::pending::PingJob;
use crate::node::DIAL_DEADLINE;

/// The protocol.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");
/// Streams tried for one ping. libp2p answers on one stream per connection and
/// drops it for a newer one, so that the periodic ping may get in the way.
pub(super) const MAX_STREAMS: u32 = 3;
/// Bytes there and back, as the protocol says.
const BYTES: usize = 32;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub(super) enum PingError {
    /// No answer.
    #[error("no answer within {} s", DIAL_DEADLINE.as_secs())]
    Timeout,
    /// An answer that is none.
    #[error("other bytes came back than were sent")]
    Mismatch,
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Broken(#[from] io::Error),
}

/// What a ping is for.
#[derive(Debug)]
pub(super) enum Job {
    /// A caller wants to know.
    Asked(PingJob),
    /// Whether the connection is still alive.
    Probe(PeerId, ConnectionId),
}

/// A ping that came to an end.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) job: Job,
    pub(super) result: Result<Duration, PingError>,
}

/// Sends random bytes, reads them back, and tells how long that took.
pub(super) async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Duration, PingError> {
    timeout(DIAL_DEADLINE, send_and_read(stream)).await.unwrap_or(Err(PingError::Timeout))
}

async fn send_and_read(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Duration, PingError> {
    let sent: [u8; BYTES] = rand::random();
    let start = Instant::now();
    stream.write_all(&sent).await?;
    stream.flush().await?;
    let mut back = [0; BYTES];
    stream.read_exact(&mut back).await?;
    let rtt = start.elapsed();
    if back != sent {
        return Err(PingError::Mismatch);
    }
    // The measurement stands, however the stream ends.
    let _ = stream.close().await;
    Ok(rtt)
}
