//! Dials through relays without waiting for them.
//!
//! The first bytes of the handshake with the peer follow right behind the
//! question for a circuit; the relay passes them on once the peer has accepted.
//! That saves a round trip of every connection that begins relayed. It is what
//! the specification permits and every relay does that keeps what it read.
//!
//! Only through relays that are connected; libp2p's own transport dials the
//! others first.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{
    AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt,
    future::{BoxFuture, Pending},
};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Transport, TransportError,
    core::transport::{DialOpts, ListenerId, TransportEvent},
    multiaddr::Protocol,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::relay::meter::Meter;
use crate::wire::circuit::{answer, connect};

/// The protocol of circuit relay v2 between a client and its relay.
pub(super) const HOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
/// Circuits asked for that the task has not looked at yet. Past that a dial
/// fails, and is tried again like any that failed.
const QUEUE: usize = 64;
/// Bytes read at once while the relay's answer is awaited.
const PIECE: usize = 512;

/// Relays that are connected, as the task knows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Connected(Arc<Mutex<HashSet<PeerId>>>);

/// A stream to a relay is wanted.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) relay: PeerId,
    pub(super) reply: oneshot::Sender<io::Result<Opened>>,
}

/// A stream to a relay.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: Stream,
    /// The connection it runs on is gone. A yamux stream of a connection that
    /// this side closed never ends by itself.
    pub(super) closed: CancellationToken,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Circuits {
    connected: Connected,
    requests: mpsc::Sender<Request>,
}

/// A circuit. Reading begins with the relay's answer.
#[derive(Debug)]
pub(super) struct Circuit {
    stream: Stream,
    state: State,
    meter: Option<Arc<Meter>>,
}

type Closed = Pin<Box<WaitForCancellationFutureOwned>>;

#[derive(Debug)]
enum State {
    /// What came of the relay's answer, which does not come when the
    /// connection is gone.
    Asked(Vec<u8>, Closed),
    /// What came behind it.
    Open(Bytes),
}

impl Connected {
    pub(super) fn set(&self, relay: PeerId, connected: bool) {
        let mut relays = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if connected {
            relays.insert(relay);
        } else {
            relays.remove(&relay);
        }
    }

    fn contains(&self, relay: &PeerId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(relay)
    }
}

impl Circuits {
    pub(super) fn new(connected: Connected) -> (Self, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        (Self { connected, requests }, queue)
    }
}

impl Transport for Circuits {
    type Output = Circuit;
    type Error = io::Error;
    type ListenerUpgrade = Pending<io::Result<Circuit>>;
    type Dial = BoxFuture<'static, io::Result<Circuit>>;

    fn listen_on(&mut self, _: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let ends = ends(&address).filter(|(relay, _)| !options.role.is_listener() && self.connected.contains(relay));
        let Some((relay, peer)) = ends else { return Err(TransportError::MultiaddrNotSupported(address)) };
        let (reply, opened) = oneshot::channel();
        self.requests.try_send(Request { relay, reply }).map_err(|_| {
            TransportError::Other(io::Error::other("too many circuits are being opened; try again later"))
        })?;
        Ok(async move {
            let Opened { mut stream, closed } = opened.await.map_err(|_| gone())??;
            stream.write_all(&connect(peer.to_bytes())).await?;
            let state = State::Asked(Vec::new(), Box::pin(closed.cancelled_owned()));
            Ok(Circuit { stream, state, meter: None })
        }
        .boxed())
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Pending
    }
}

/// The relay and the peer behind it.
fn ends(address: &Multiaddr) -> Option<(PeerId, PeerId)> {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    match parts.as_slice() {
        [.., Protocol::P2p(relay), Protocol::P2pCircuit, Protocol::P2p(peer)] => Some((*relay, *peer)),
        _ => None,
    }
}

pub(super) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the relay is not connected any more")
}

impl Circuit {
    /// Tells what the relay lets it carry, once that is known.
    pub(super) fn set_meter(&mut self, meter: Arc<Meter>) {
        self.meter = Some(meter);
    }

    /// Reads on in the relay's answer.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let State::Asked(came, closed) = &mut self.state {
            if closed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(gone()));
            }
            let mut piece = [0; PIECE];
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
            if read == 0 {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the relay closed the circuit")));
            }
            came.extend_from_slice(&piece[..read]);
            if let Some((limit, length)) = answer(came).map_err(io::Error::other)? {
                let rest = Bytes::from(came.split_off(length));
                self.state = State::Open(rest);
                if let Some(meter) = &self.meter {
                    meter.set_limit(limit);
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Circuit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_answer(cx))?;
        if let State::Open(rest) = &mut self.state
            && !rest.is_empty()
        {
            let count = rest.len().min(buffer.len());
            rest.copy_to_slice(&mut buffer[..count]);
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Circuit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
