//! The part of the link behaviour that lives with each connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    iter::{Chain, Cloned},
    slice::Iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Stream, StreamProtocol,
    core::upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    ACCEPTED, PROTOCOL, SERVED,
    behaviour::{OpenError, Token},
    bucket::Bucket,
};
use crate::swarm::circuit::HOP;

/// Links that a peer may have open on one connection: one in use, one that
/// supersedes it, and the remains of others being closed.
const MAX_INBOUND_LINKS: usize = 4;
/// New links that a peer may open at once on one connection; more than a peer
/// whose link keeps breaking opens, with its growing waits.
const INBOUND_BURST: u32 = 8;
/// Streams of other protocols that a peer may have open on one connection.
const MAX_INBOUND_OTHERS: usize = 4;
/// New ones of those that it may open at once.
const OTHERS_BURST: u32 = 16;
/// After the burst, one new stream is let in per this time.
const INBOUND_INTERVAL: Duration = Duration::from_secs(2);
/// Questions to this node as a relay that a peer may have open on one
/// connection. Circuits that are up do not count here.
const MAX_INBOUND_HOPS: usize = 16;
/// New ones of those that it may open at once, and then one in the interval:
/// more than are answered other than with a refusal, which says more than a
/// stream that breaks.
const HOPS_BURST: u32 = 512;
const HOPS_INTERVAL: Duration = Duration::from_millis(100);
/// Longest negotiation of one substream.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// To the handler of one connection.
#[derive(Debug)]
pub(in crate::swarm) enum ToHandler {
    /// Open a stream.
    Open(StreamProtocol, Token),
    /// Keep the connection although nothing runs on it, or no more.
    KeepAlive(bool),
    /// Look again at what is served.
    Look,
}

/// From the handler of one connection.
#[derive(Debug)]
pub(in crate::swarm) enum FromHandler {
    /// The peer opened a link.
    Inbound(Stream, OwnedSemaphorePermit),
    /// The peer opened a stream of another of the protocols accepted.
    Accepted(StreamProtocol, Stream, OwnedSemaphorePermit),
    /// The peer opened more streams than it may; told once per connection.
    Refused,
    /// A stream is open.
    Opened(Token, Stream),
    /// A stream could not be opened.
    Failed(Token, OpenError),
}

/// See the module.
#[derive(Debug)]
pub(in crate::swarm) struct Handler {
    /// Streams to open. As many as the task asks for, which bounds them.
    to_open: VecDeque<(StreamProtocol, Token)>,
    /// For the behaviour. Bounded by the streams asked for and by the limits on
    /// inbound links.
    events: VecDeque<FromHandler>,
    links: Door,
    /// Questions to this node as a relay.
    hops: Door,
    /// Streams of all other protocols.
    others: Door,
    refusal_told: bool,
    keep_alive: bool,
    /// This node serves others.
    serving: Arc<AtomicBool>,
}

/// Lets in so many streams at once, and no more than so many in a time.
#[derive(Debug)]
struct Door {
    places: Arc<Semaphore>,
    rate: Bucket,
}

impl Door {
    fn new(places: usize, burst: u32, interval: Duration) -> Self {
        let rate = Bucket::new(burst, interval, Instant::now());
        Self { places: Arc::new(Semaphore::new(places)), rate }
    }

    fn enter(&mut self) -> Option<OwnedSemaphorePermit> {
        if self.rate.take(Instant::now()) { self.places.clone().try_acquire_owned().ok() } else { None }
    }
}

/// Accepts a stream of any of the protocols, and tells of which.
#[derive(Debug, Clone, Copy)]
pub(in crate::swarm) struct Accept {
    serving: bool,
}

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = Cloned<Chain<Iter<'static, StreamProtocol>, Iter<'static, StreamProtocol>>>;

    fn protocol_info(&self) -> Self::InfoIter {
        let served: &[_] = if self.serving { &SERVED } else { &[] };
        ACCEPTED.iter().chain(served).cloned()
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl Handler {
    pub(in crate::swarm) fn new(serving: Arc<AtomicBool>) -> Self {
        Self {
            to_open: VecDeque::new(),
            events: VecDeque::new(),
            links: Door::new(MAX_INBOUND_LINKS, INBOUND_BURST, INBOUND_INTERVAL),
            hops: Door::new(MAX_INBOUND_HOPS, HOPS_BURST, HOPS_INTERVAL),
            others: Door::new(MAX_INBOUND_OTHERS, OTHERS_BURST, INBOUND_INTERVAL),
            refusal_told: false,
            keep_alive: false,
            serving,
        }
    }

    /// Dropping the stream resets it.
    fn on_inbound(&mut self, protocol: StreamProtocol, stream: Stream) {
        let link = protocol == PROTOCOL;
        let door = match () {
            () if link => &mut self.links,
            () if protocol == HOP => &mut self.hops,
            () => &mut self.others,
        };
        match door.enter() {
            Some(place) if link => self.events.push_back(FromHandler::Inbound(stream, place)),
            Some(place) => self.events.push_back(FromHandler::Accepted(protocol, stream, place)),
            None if !self.refusal_told => {
                self.refusal_told = true;
                self.events.push_back(FromHandler::Refused);
            }
            None => {}
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = ToHandler;
    type ToBehaviour = FromHandler;
    type InboundProtocol = Accept;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = (StreamProtocol, Token);

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        let serving = self.serving.load(Ordering::Relaxed);
        SubstreamProtocol::new(Accept { serving }, ()).with_timeout(NEGOTIATION_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if let Some((protocol, token)) = self.to_open.pop_front() {
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(protocol.clone()), (protocol, token))
                .with_timeout(NEGOTIATION_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: ToHandler) {
        match event {
            ToHandler::Open(protocol, token) => self.to_open.push_back((protocol, token)),
            ToHandler::KeepAlive(keep) => self.keep_alive = keep,
            // Being handed over is enough: the connection asks then.
            ToHandler::Look => {}
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream), ..
            }) => {
                self.on_inbound(protocol, stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: (_, token),
            }) => self.events.push_back(FromHandler::Opened(token, stream)),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: (protocol, token), error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported(protocol),
                    StreamUpgradeError::Io(error) => OpenError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.events.push_back(FromHandler::Failed(token, error));
            }
            _ => {}
        }
    }
}
