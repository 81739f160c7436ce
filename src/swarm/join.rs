//! `/p2p-node/join/1` on the network's side: carries what joiner and inviter
//! say, and holds guessers back.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    multiaddr::Protocol,
    request_response::{self, ProtocolSupport, ResponseChannel},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    node::{Connected, Joined, NodeError},
    wire::join::{self, JoinAnswer, JoinRequest},
};

/// The protocol.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/p2p-node/join/1");
/// From the request to the answer, on either side; a disk that is busy takes a
/// part of it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Tries of one origin within [`WINDOW`].
const MAX_TRIES: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Origins whose tries are counted. Beyond, the one that tried longest ago is
/// forgotten: a secret is beyond guessing anyway, and joining must stay
/// possible while many try.
const MAX_ORIGINS: usize = 4096;
/// Requests that are being looked at here.
const MAX_UNANSWERED: usize = 16;
/// Requests of this node that wait for an answer.
const MAX_SENT: usize = 64;

/// The behaviour.
pub(super) type Behaviour = request_response::Behaviour<Codec>;
/// What it tells.
pub(super) type Event = request_response::Event<JoinRequest, JoinAnswer>;

/// Reads and writes the messages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Codec;

/// Sets up the behaviour, which answers requests. It has as many streams as a connection may have:
/// those past a limit of its own it would log one by one.
pub(super) fn behaviour(max_streams: usize) -> Behaviour {
    let config =
        request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(max_streams);
    Behaviour::new([(PROTOCOL, ProtocolSupport::Inbound)], config)
}

/// Someone who wants to join another node, and waits.
#[derive(Debug)]
pub(super) struct JoinJob {
    pub(super) request: JoinRequest,
    pub(super) reply: oneshot::Sender<Result<Joined, NodeError>>,
    /// What it goes over, once there is a connection.
    pub(super) connected: Option<Connected>,
}

impl JoinJob {
    /// Tells the caller what came of it. It may have gone away.
    pub(super) fn finish(self, peer: PeerId, answer: io::Result<JoinAnswer>) {
        let failed = |cause: String, again| NodeError::NotJoined { peer, cause, again };
        let result = match (answer, self.connected) {
            (Ok(answer), Some(connected)) => Ok(Joined { answer, connected }),
            (Err(error), _) if error.kind() == io::ErrorKind::InvalidData => {
                let cause = format!("it said what this version does not understand ({error}); update p2p-node here");
                Err(failed(cause, false))
            }
            (Err(error), _) if error.kind() == io::ErrorKind::Unsupported => Err(failed(error.to_string(), false)),
            (Err(error), _) => Err(failed(error.to_string(), true)),
            (Ok(_), None) => Err(failed("the connection is gone".to_owned(), true)),
        };
        drop(self.reply.send(result));
    }
}

/// Requests and answers under way.
pub(super) struct Joins {
    /// One for each request of this node that waits for an answer.
    pub(super) sending: Arc<Semaphore>,
    tries: Tries,
    /// One for each request that is being looked at here.
    slots: Arc<Semaphore>,
    answered: mpsc::Sender<Answered>,
}

/// A request was looked at.
#[derive(Debug)]
pub(super) struct Answered {
    channel: ResponseChannel<JoinAnswer>,
    origin: Origin,
    answer: JoinAnswer,
}

/// Where tries come from, as far as that costs something to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    V4(Ipv4Addr),
    /// A /64: who has one address of it has all.
    V6([u8; 8]),
    Relay(PeerId),
    Unknown,
}

/// When each origin tried.
#[derive(Debug, Default)]
struct Tries {
    origins: HashMap<Origin, VecDeque<Instant>>,
}

/// Room for answers of all requests that are looked at.
pub(super) const ANSWER_QUEUE: usize = MAX_UNANSWERED;

impl Joins {
    pub(super) fn new(answered: mpsc::Sender<Answered>) -> Self {
        let (sending, slots) = (Semaphore::new(MAX_SENT), Semaphore::new(MAX_UNANSWERED));
        Self { sending: Arc::new(sending), tries: Tries::default(), slots: Arc::new(slots), answered }
    }

    /// A request came in: the reply to give to whoever looks at it, or `None`
    /// if it is answered already.
    pub(super) fn admit(
        &mut self,
        behaviour: &mut Behaviour,
        address: Option<&Multiaddr>,
        channel: ResponseChannel<JoinAnswer>,
        now: Instant,
    ) -> Option<oneshot::Sender<JoinAnswer>> {
        let origin = address.map_or(Origin::Unknown, Origin::of);
        let slot = if self.tries.take(origin, now) { self.slots.clone().try_acquire_owned().ok() } else { None };
        let Some(slot) = slot else {
            // Fails if the joiner gave up.
            drop(behaviour.send_response(channel, JoinAnswer::TooMany));
            return None;
        };
        let (reply, answer) = oneshot::channel();
        let answered = self.answered.clone();
        tokio::spawn(async move {
            // Dropped unanswered when the daemon stops; the joiner hears the
            // end of the stream.
            if let Ok(Ok(answer)) = tokio::time::timeout(TIMEOUT, answer).await {
                // The task may be gone.
                drop(answered.send(Answered { channel, origin, answer }).await);
            }
            drop(slot);
        });
        Some(reply)
    }

    /// A request was looked at.
    pub(super) fn answer(&mut self, behaviour: &mut Behaviour, answered: Answered) {
        let Answered { channel, origin, answer } = answered;
        if matches!(answer, JoinAnswer::Welcome { .. }) {
            // No guess: a household may set up more nodes than that at once.
            self.tries.give_back(origin);
        }
        // Fails if the joiner gave up; it can ask again.
        drop(behaviour.send_response(channel, answer));
    }
}

impl Origin {
    fn of(address: &Multiaddr) -> Self {
        let parts: Vec<Protocol<'_>> = address.iter().collect();
        if let Some(at) = parts.iter().position(|part| *part == Protocol::P2pCircuit)
            && let Some(Protocol::P2p(relay)) = parts[..at].last()
        {
            return Self::Relay(*relay);
        }
        // Also of a circuit of which only the relay's address is known.
        match parts.first() {
            Some(Protocol::Ip4(ip)) => Self::V4(*ip),
            Some(Protocol::Ip6(ip)) => Self::of_v6(*ip),
            _ => Self::Unknown,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        match IpAddr::V6(ip).to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Tries {
    /// Counts a try, unless there were too many.
    fn take(&mut self, origin: Origin, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        if !self.origins.contains_key(&origin) && self.origins.len() >= MAX_ORIGINS {
            self.origins.retain(|_, tries| tries.back().is_some_and(recent));
            self.forget_one();
        }
        let tries = self.origins.entry(origin).or_default();
        tries.retain(recent);
        let allowed = tries.len() < MAX_TRIES;
        if allowed {
            tries.push_back(now);
        }
        allowed
    }

    /// If there is still no room.
    fn forget_one(&mut self) {
        if self.origins.len() < MAX_ORIGINS {
            return;
        }
        let oldest = self.origins.iter().min_by_key(|(_, tries)| tries.back().copied()).map(|(origin, _)| *origin);
        if let Some(oldest) = oldest {
            self.origins.remove(&oldest);
        }
    }

    /// The last try of an origin does not count.
    fn give_back(&mut self, origin: Origin) {
        if let Some(tries) = self.origins.get_mut(&origin) {
            tries.pop_back();
            if tries.is_empty() {
                self.origins.remove(&origin);
            }
        }
    }
}

/// Presents a secret to an inviter and hears what it says, on a stream of the
/// task's choice: request_response would take any connection of the peer, one
/// that is dead and not known to be, perhaps.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &JoinRequest,
) -> io::Result<JoinAnswer> {
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, format!("nothing came within {} s", TIMEOUT.as_secs()));
    tokio::time::timeout(TIMEOUT, ask(stream, request)).await.unwrap_or_else(|_| Err(timed_out()))
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &JoinRequest) -> io::Result<JoinAnswer> {
    join::write(&mut stream, request).await?;
    stream.close().await?;
    join::read(&mut stream).await
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = JoinRequest;
    type Response = JoinAnswer;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<JoinRequest> {
        join::read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<JoinAnswer> {
        join::read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: JoinRequest,
    ) -> io::Result<()> {
        join::write(io, &request).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        answer: JoinAnswer,
    ) -> io::Result<()> {
        join::write(io, &answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&text.parse().unwrap())
    }

    #[test]
    fn origins_are_what_costs_something_to_change() {
        assert_eq!(origin("/ip4/1.2.3.4/tcp/1"), origin("/ip4/1.2.3.4/udp/9/quic-v1"));
        assert_ne!(origin("/ip4/1.2.3.4/tcp/1"), origin("/ip4/1.2.3.5/tcp/1"));
        assert_eq!(origin("/ip6/2001:db8:1:2::1/tcp/1"), origin("/ip6/2001:db8:1:2:3:4:5:6/tcp/1"));
        assert_ne!(origin("/ip6/2001:db8:1:2::1/tcp/1"), origin("/ip6/2001:db8:1:3::1/tcp/1"));
        assert_eq!(origin("/ip6/::ffff:1.2.3.4/tcp/1"), origin("/ip4/1.2.3.4/tcp/1"));
        let relay = PeerId::random();
        let circuit = |ip: &str| origin(&format!("/ip4/{ip}/tcp/1/p2p/{relay}/p2p-circuit"));
        assert_eq!(circuit("1.2.3.4"), circuit("5.6.7.8"));
        assert_eq!(circuit("1.2.3.4"), Origin::Relay(relay));
    }

    #[test]
    fn five_tries_a_minute() {
        let mut tries = Tries::default();
        let start = Instant::now();
        let (one, other) = (origin("/ip4/1.2.3.4/tcp/1"), origin("/ip4/1.2.3.5/tcp/1"));
        for second in 0..5 {
            assert!(tries.take(one, start + Duration::from_secs(second)));
        }
        assert!(!tries.take(one, start + Duration::from_secs(59)));
        assert!(tries.take(other, start + Duration::from_secs(59)));
        assert!(tries.take(one, start + Duration::from_secs(60)));
        assert!(!tries.take(one, start + Duration::from_secs(60)));
        tries.give_back(one);
        assert!(tries.take(one, start + Duration::from_secs(60)));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let mut tries = Tries::default();
        let start = Instant::now();
        let nth = |n: u32| Origin::V4(Ipv4Addr::from(n));
        for n in 0..2 * MAX_ORIGINS as u32 {
            assert!(tries.take(nth(n), start + Duration::from_millis(n.into())));
        }
        assert_eq!(tries.origins.len(), MAX_ORIGINS);
        assert!(!tries.origins.contains_key(&nth(0)) && tries.origins.contains_key(&nth(MAX_ORIGINS as u32)));
        assert!(tries.take(nth(0), start + 3 * WINDOW));
        assert_eq!(tries.origins.len(), 1);
    }
}
