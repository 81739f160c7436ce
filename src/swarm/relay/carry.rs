//! A circuit: what one end sends, the other one gets.
//!
//! What came behind the question for the circuit follows right behind the one
//! put to the other end, as a rule the first bytes of a handshake: that saves
//! half a round trip of each circuit. Whoever speaks the protocol reads no
//! further than the message before it has answered, or keeps what it read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite, future::poll_fn};
use tokio::time::{Sleep, sleep, timeout};

use crate::wire::circuit::{
    CircuitLimit,
    serve::{Refusal, connected, stop_answer},
};

/// Bytes of a circuit held in each direction.
const BUFFER: usize = 16 * 1024;
/// Bytes passed on before the other end has accepted: a handshake begins with
/// a few hundred.
const EARLY: u64 = 16 * 1024;
/// Moves of one direction before it is another task's turn.
const MOVES: usize = 16;
/// Bytes read at once while the answer is awaited.
const PIECE: usize = 512;
/// Longest that bytes held may take to be passed on, in times of that which an
/// answer may take. Behind an end that does not read, megabytes of the other
/// one wait at this node, and two such circuits are all that waits there of one
/// connection.
const STUCK: u32 = 6;

/// A circuit that was accepted.
#[derive(Debug)]
pub(super) struct Circuit {
    there: Way,
    back: Way,
    limit: CircuitLimit,
}

/// One direction.
#[derive(Debug)]
struct Way {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the circuit so far.
    carried: u64,
    state: State,
    unflushed: bool,
    /// Ends when what is held was held too long.
    stuck: Option<Pin<Box<Sleep>>>,
    longest: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reader's end is to be passed on.
    Ending,
    Ended,
}

/// How a circuit ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// Both ends closed it.
    #[error("closed")]
    Closed,
    /// It carried what it may.
    #[error("it carried what it may")]
    Bytes,
    /// The connection of one of its ends is gone, or this node stops.
    #[error("a connection is gone")]
    Gone,
    /// Its time has passed.
    #[error("its time has passed")]
    Time,
    /// Something broke.
    #[error("broken: {0}")]
    Broken(io::Error),
}

/// Asks the other end with these bytes, passes on what came early behind the
/// question, and waits so long for the answer, which is passed on once the
/// circuit [runs](Circuit::run).
///
/// # Errors
/// What to tell the source.
pub(super) async fn connect<S, D>(
    source: &mut S,
    destination: &mut D,
    question: &[u8],
    early: &[u8],
    limit: CircuitLimit,
    patience: Duration,
) -> Result<Circuit, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = Way::new(question, early, patience * STUCK);
    let mut came = Vec::with_capacity(PIECE);
    let budget = EARLY.min(limit.bytes.unwrap_or(EARLY));
    let answered = poll_fn(|cx| {
        // First, so that it is sent together with what opens the stream.
        let moved = there.poll(source, destination, budget, cx);
        match (poll_answer(destination, &mut came, cx), moved) {
            (Poll::Ready(answered), _) => Poll::Ready(answered),
            (Poll::Pending, Poll::Ready(Err(_))) => Poll::Ready(Err(Refusal::ConnectionFailed)),
            (Poll::Pending, _) => Poll::Pending,
        }
    });
    let length = timeout(patience, answered).await.unwrap_or(Err(Refusal::ConnectionFailed))?;
    let back = Way::new(&connected(limit), &came[length..], patience * STUCK);
    Ok(Circuit { there, back, limit })
}

/// The length of the answer, once it is there.
fn poll_answer<D: AsyncRead + Unpin>(
    destination: &mut D,
    came: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, Refusal>> {
    loop {
        let mut piece = [0; PIECE];
        match ready!(Pin::new(&mut *destination).poll_read(cx, &mut piece)) {
            Ok(0) | Err(_) => return Poll::Ready(Err(Refusal::ConnectionFailed)),
            Ok(read) => came.extend_from_slice(&piece[..read]),
        }
        // An answer that is incomplete has a bounded length.
        if let Some(answered) = stop_answer(came).transpose() {
            return Poll::Ready(answered);
        }
    }
}

impl Circuit {
    /// Tells the source, and moves bytes until the circuit ends.
    pub(super) async fn run<S, D>(mut self, mut source: S, mut destination: D) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
        D: AsyncRead + AsyncWrite + Unpin,
    {
        let duration = self.limit.duration;
        let moved = poll_fn(|cx| self.poll(&mut source, &mut destination, cx));
        match duration {
            Some(duration) => timeout(duration, moved).await.unwrap_or(End::Time),
            None => moved.await,
        }
    }

    fn poll<S, D>(&mut self, source: &mut S, destination: &mut D, cx: &mut Context<'_>) -> Poll<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
        D: AsyncRead + AsyncWrite + Unpin,
    {
        // The one more tells a circuit that is used up from one that has more
        // to carry.
        let left = self.left().saturating_add(1);
        let budget = self.back.carried.saturating_add(left);
        let back = self.back.poll(destination, source, budget, cx);
        let left = self.left().saturating_add(1);
        let budget = self.there.carried.saturating_add(left);
        let there = self.there.poll(source, destination, budget, cx);
        match (there, back) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(End::Broken(error)),
            _ if self.limit.bytes.is_some_and(|most| self.carried() > most) => Poll::Ready(End::Bytes),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Closed),
            _ => Poll::Pending,
        }
    }

    fn carried(&self) -> u64 {
        self.there.carried + self.back.carried
    }

    fn left(&self) -> u64 {
        self.limit.bytes.map_or(u64::MAX, |most| most.saturating_sub(self.carried()))
    }
}

impl Way {
    /// Sends a message of the protocol first, and then what was read already.
    /// `longest`: for bytes that are held.
    fn new(message: &[u8], read: &[u8], longest: Duration) -> Self {
        let end = message.len() + read.len();
        let mut buffer = vec![0; BUFFER.max(end)].into_boxed_slice();
        buffer[..message.len()].copy_from_slice(message);
        buffer[message.len()..end].copy_from_slice(read);
        Self {
            buffer,
            start: 0,
            end,
            carried: read.len() as u64,
            state: State::Open,
            unflushed: false,
            stuck: None,
            longest,
        }
    }

    /// Moves what is there to be moved, but reads no more than so much in all.
    /// Ready when the reader's end was passed on, or something broke.
    fn poll(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        budget: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..MOVES {
            while self.start < self.end {
                let Poll::Ready(written) = Pin::new(&mut *writer).poll_write(cx, &self.buffer[self.start..self.end])
                else {
                    return self.poll_stuck(cx);
                };
                let written = written?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += written;
                self.unflushed = true;
            }
            self.stuck = None;
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(Pin::new(&mut *writer).poll_close(cx))?;
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            let room = budget.saturating_sub(self.carried).min(self.buffer.len() as u64) as usize;
            if room == 0 {
                return self.poll_flush(writer, cx);
            }
            match Pin::new(&mut *reader).poll_read(cx, &mut self.buffer[..room]) {
                Poll::Ready(Ok(0)) => self.state = State::Ending,
                Poll::Ready(Ok(read)) => {
                    (self.start, self.end) = (0, read);
                    self.carried += read as u64;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.poll_flush(writer, cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What is held is not taken now.
    fn poll_stuck(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(self.longest)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other end does not read")))
    }

    /// Nothing more is to be moved now.
    fn poll_flush(&mut self, writer: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(writer).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::swarm::pipe::{Pipe, pipe};

    /// STATUS: OK of the stop protocol.
    const ACCEPTED: &[u8] = b"\x04\x08\x01\x20\x64";

    const FREE: CircuitLimit = CircuitLimit { duration: None, bytes: None };

    struct World {
        source: Pipe,
        destination: Pipe,
        relay: JoinHandle<Result<End, Refusal>>,
    }

    fn begin(early: &'static [u8], limit: CircuitLimit) -> World {
        begin_for(early, limit, Duration::from_secs(30))
    }

    fn begin_for(early: &'static [u8], limit: CircuitLimit, patience: Duration) -> World {
        let ((source, mut here), (mut there, destination)) = (pipe(), pipe());
        let relay = tokio::spawn(async move {
            let circuit = connect(&mut here, &mut there, b"question", early, limit, patience).await?;
            Ok(circuit.run(here, there).await)
        });
        World { source, destination, relay }
    }

    impl World {
        async fn up(early: &'static [u8], limit: CircuitLimit) -> Self {
            let mut world = begin(early, limit);
            world.expect_there(&[b"question", early].concat()).await;
            world.destination.write_all(ACCEPTED).await.unwrap();
            world.expect_back(&connected(limit)).await;
            world
        }

        async fn expect_there(&mut self, bytes: &[u8]) {
            let mut came = vec![0; bytes.len()];
            self.destination.read_exact(&mut came).await.unwrap();
            assert_eq!(came, bytes);
        }

        async fn expect_back(&mut self, bytes: &[u8]) {
            let mut came = vec![0; bytes.len()];
            self.source.read_exact(&mut came).await.unwrap();
            assert_eq!(came, bytes);
        }

        async fn end(self) -> Result<End, Refusal> {
            self.relay.await.unwrap()
        }
    }

    #[tokio::test]
    async fn early_bytes_follow_the_question_without_an_answer() {
        let mut world = begin(b"early", FREE);
        world.expect_there(b"questionearly").await;
        world.source.write_all(b" and more").await.unwrap();
        world.expect_there(b" and more").await;
        world.destination.write_all(&[ACCEPTED, b"reply"].concat()).await.unwrap();
        world.expect_back(&[connected(FREE), b"reply".to_vec()].concat()).await;
    }

    #[tokio::test]
    async fn no_more_than_a_handshake_is_passed_on_early() {
        let mut world = begin(b"early", FREE);
        let sent = vec![7; 40_000];
        world.source.write_all(&sent).await.unwrap();
        world.expect_there(b"questionearly").await;
        let count = EARLY as usize - 5;
        world.expect_there(&sent[..count]).await;
        timeout(Duration::from_millis(50), world.destination.read(&mut [0])).await.unwrap_err();
        world.destination.write_all(ACCEPTED).await.unwrap();
        world.expect_back(&connected(FREE)).await;
        world.expect_there(&sent[count..]).await;
    }

    #[tokio::test]
    async fn megabytes_pass_both_ways_and_ends_are_passed_on() {
        let world = World::up(b"", FREE).await;
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut from, mut to) = world.source.split();
        let (mut from2, mut to2) = world.destination.split();
        let (mut there, mut back) = (Vec::new(), Vec::new());
        let send = async |to: &mut (dyn AsyncWrite + Unpin), bytes: &[u8]| {
            to.write_all(bytes).await.unwrap();
            to.close().await.unwrap();
        };
        let reply = async {
            // Still after the other direction has ended.
            from2.read_to_end(&mut there).await.unwrap();
            send(&mut to2, &bytes).await;
        };
        let ((), (), read) = tokio::join!(send(&mut to, &bytes), reply, from.read_to_end(&mut back));
        read.unwrap();
        assert!(there == bytes && back == bytes);
        assert!(matches!(world.relay.await.unwrap(), Ok(End::Closed)));
    }

    #[tokio::test]
    async fn a_circuit_carries_what_it_may_and_no_more() {
        let limit = CircuitLimit { duration: None, bytes: Some(10_000) };
        let mut world = World::up(b"early", limit).await;
        world.source.write_all(&[1; 5000]).await.unwrap();
        world.expect_there(&[1; 5000]).await;
        world.destination.write_all(&[2; 4995]).await.unwrap();
        world.expect_back(&[2; 4995]).await;
        assert!(!world.relay.is_finished());
        world.destination.write_all(&[3; 5000]).await.unwrap();
        let mut rest = Vec::new();
        world.source.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() < 2, "{}", rest.len());
        assert!(matches!(world.end().await, Ok(End::Bytes)));
    }

    #[tokio::test]
    async fn a_circuit_lives_no_longer_than_it_may() {
        let limit = CircuitLimit { duration: Some(Duration::from_millis(70)), bytes: None };
        let world = World::up(b"", limit).await;
        let begun = tokio::time::Instant::now();
        assert!(matches!(world.end().await, Ok(End::Time)));
        assert!(begun.elapsed() >= Duration::from_millis(70));
    }

    #[tokio::test]
    async fn an_end_that_does_not_read_is_not_waited_for_for_ever() {
        let patience = Duration::from_millis(500);
        let stuck = patience * STUCK;
        let mut world = begin_for(b"", FREE, patience);
        world.expect_there(b"question").await;
        world.destination.write_all(ACCEPTED).await.unwrap();
        world.expect_back(&connected(FREE)).await;
        let begun = tokio::time::Instant::now();
        let (mut from, _to) = world.destination.split();
        let (_back, mut to) = world.source.split();
        let sending = tokio::spawn(async move { while to.write_all(&[7; 1000]).await.is_ok() {} });
        // It reads now and then, but less than what is held.
        for _ in 0..3 {
            tokio::time::sleep(stuck / 4).await;
            from.read_exact(&mut [0; 10]).await.unwrap();
        }
        let end = world.relay.await.unwrap().unwrap();
        assert!(matches!(&end, End::Broken(error) if error.kind() == io::ErrorKind::TimedOut), "{end:?}");
        assert!(begun.elapsed() >= stuck && begun.elapsed() < 2 * stuck, "{:?}", begun.elapsed());
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn refusals_and_silence_are_told() {
        for (answer, told) in [
            (&b"\x05\x08\x01\x20\xc9\x01"[..], Refusal::LimitExceeded),
            (b"\x05\x08\x01\x20\xca\x01", Refusal::PermissionDenied),
            (b"\xff\xff\xff\xff", Refusal::ConnectionFailed),
            (b"\x05\x08", Refusal::ConnectionFailed),
        ] {
            let mut world = begin(b"early", FREE);
            world.destination.write_all(answer).await.unwrap();
            world.destination.close().await.unwrap();
            assert_eq!(world.end().await.unwrap_err(), told, "{answer:?}");
        }
        let mut world = begin(b"", FREE);
        world.source.write_all(b"then gone").await.unwrap();
        let (_, source) = (world.destination, world.source);
        assert_eq!(world.relay.await.unwrap().unwrap_err(), Refusal::ConnectionFailed);
        drop(source);
    }

    #[tokio::test]
    async fn an_answer_is_not_awaited_for_ever() {
        let mut world = begin_for(b"early", FREE, Duration::from_millis(70));
        world.destination.write_all(b"\x04\x08").await.unwrap();
        assert_eq!((&mut world.relay).await.unwrap().unwrap_err(), Refusal::ConnectionFailed);
    }
}
