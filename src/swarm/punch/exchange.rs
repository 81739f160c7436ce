//! What is said on the stream, on either side and in either protocol.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use libp2p::{PeerId, StreamProtocol, core::upgrade::NegotiationError};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::wire::punch::{self, Message, Offer, dcutr};

/// Our own protocol.
pub(in crate::swarm) const PROTOCOL: StreamProtocol = StreamProtocol::new("/p2p-node/punch/1");
/// libp2p's.
pub(in crate::swarm) const STOCK: StreamProtocol = StreamProtocol::new("/libp2p/dcutr");
/// From the first message to the last: two round trips over a slow relay.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Exchanges that run at once.
pub(super) const MAX_EXCHANGES: usize = 64;
/// Room for all that they tell: each tells two things at most.
pub(in crate::swarm) const HEARD_QUEUE: usize = 2 * MAX_EXCHANGES;

/// An exchange came further.
#[derive(Debug)]
pub(in crate::swarm) struct Heard {
    pub(super) peer: PeerId,
    pub(super) attempt: u64,
    pub(super) what: What,
}

/// What an exchange tells.
#[derive(Debug)]
pub(super) enum What {
    /// What the peer brings; of the side that led, with the round trip.
    Offer(Offer, Option<Duration>),
    /// The peer said SYNC.
    Synced,
    /// It failed.
    Broken(io::Error),
}

/// One side of one exchange.
pub(super) struct Exchange {
    pub(super) peer: PeerId,
    pub(super) attempt: u64,
    /// This side opened the stream.
    pub(super) leader: bool,
    /// In libp2p's protocol.
    pub(super) stock: bool,
    /// What this side brings.
    pub(super) mine: Offer,
    pub(super) heard: mpsc::Sender<Heard>,
}

impl Exchange {
    /// Runs it to its end. Nobody listens any more when the task that owns the
    /// swarm has ended.
    pub(super) async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "no answer over the relay");
        let result = timeout(TIMEOUT, self.talk(stream)).await.unwrap_or_else(|_| Err(timed_out()));
        if let Err(error) = result {
            self.tell(What::Broken(error)).await;
        }
    }

    async fn talk(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        match (self.leader, self.stock) {
            (true, false) => self.lead(stream).await,
            (false, false) => self.follow(stream).await,
            (true, true) => self.lead_stock(stream).await,
            (false, true) => self.follow_stock(stream).await,
        }
    }

    async fn lead(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        punch::write(&mut stream, &Message::Offer(self.mine.clone())).await?;
        let sent = Instant::now();
        let Message::Answer(theirs) = punch::read(&mut stream).await? else { return Err(unexpected()) };
        let rtt = sent.elapsed();
        self.tell(What::Offer(theirs, Some(rtt))).await;
        punch::write(&mut stream, &Message::Sync).await?;
        stream.close().await
    }

    async fn follow(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let Message::Offer(theirs) = punch::read(&mut stream).await? else { return Err(unexpected()) };
        let answer = Offer { round: theirs.round, ..self.mine.clone() };
        punch::write(&mut stream, &Message::Answer(answer)).await?;
        let rtt = theirs.rtt;
        self.tell(What::Offer(theirs, rtt)).await;
        let Message::Sync = punch::read(&mut stream).await? else { return Err(unexpected()) };
        self.tell(What::Synced).await;
        Ok(())
    }

    async fn lead_stock(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        dcutr::write(&mut stream, &dcutr::Message::Connect(self.mine.candidates.clone())).await?;
        let sent = Instant::now();
        let dcutr::Message::Connect(candidates) = dcutr::read(&mut stream).await? else { return Err(unexpected()) };
        let rtt = sent.elapsed();
        self.tell(What::Offer(Offer { candidates, ..Offer::default() }, Some(rtt))).await;
        dcutr::write(&mut stream, &dcutr::Message::Sync).await?;
        stream.close().await
    }

    async fn follow_stock(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let dcutr::Message::Connect(candidates) = dcutr::read(&mut stream).await? else { return Err(unexpected()) };
        dcutr::write(&mut stream, &dcutr::Message::Connect(self.mine.candidates.clone())).await?;
        self.tell(What::Offer(Offer { candidates, ..Offer::default() }, None)).await;
        let dcutr::Message::Sync = dcutr::read(&mut stream).await? else { return Err(unexpected()) };
        self.tell(What::Synced).await;
        Ok(())
    }

    async fn tell(&self, what: What) {
        let _ = self.heard.send(Heard { peer: self.peer, attempt: self.attempt, what }).await;
    }
}

/// A stream counts as open before the other side has agreed to its protocol, so
/// that its refusal comes when it is read.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<NegotiationError>());
    matches!(inner, Some(NegotiationError::Failed))
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the peer said something out of turn")
}
