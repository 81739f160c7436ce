//! What clients ask this node for as a relay, on streams of the hop protocol of
//! circuit relay v2.
//!
//! Each stream is a task of its own, which reads the question, has the swarm's
//! task decide, and answers. That of a circuit then carries it.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{PeerId, Stream, StreamProtocol, swarm::ConnectionId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    carry::{End, connect},
    server::CircuitId,
};
use crate::wire::circuit::{
    CircuitLimit,
    serve::{Refusal, Request, refuse, request, reserved, stop_connect},
};

/// The protocol in which a relay asks whoever a circuit leads to.
pub(in crate::swarm) const STOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");
/// Questions being read, decided and answered, and circuits being set up, at
/// once; a circuit that is up counts no more. Four times what one peer can hold
/// on all its connections; 20 KiB each at most. So many of trusted peers, and
/// as many of others, who cannot crowd those out however many they are.
const MAX_ATTENDED: usize = 512;
/// What their tasks tell, and the swarm's task has not looked at yet. Past that
/// they wait.
const REPORT_QUEUE: usize = 64;
/// Bytes of a question read at once.
const PIECE: usize = 512;
/// Longest that each step takes: reading a question, finding a connection that
/// leads to the other end, its answer, writing the own one. No longer than
/// whoever asks waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Attends to all streams.
#[derive(Debug)]
pub(in crate::swarm) struct Hops {
    trusted: Arc<Semaphore>,
    others: Arc<Semaphore>,
    reports: mpsc::Sender<Report>,
}

/// What a stream's task tells the swarm's task.
#[derive(Debug)]
pub(in crate::swarm) enum Report {
    /// A client asks for a reservation.
    Reserve(Client, oneshot::Sender<Result<Granted, Refusal>>),
    /// A client asks for a circuit to a peer.
    Connect(Client, PeerId, Reply),
    /// A circuit was accepted at its other end.
    Up(CircuitId),
    /// A circuit has ended, or did not come about.
    Ended(CircuitId),
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(in crate::swarm) struct Client {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) connection: ConnectionId,
}

/// A reservation.
#[derive(Debug)]
pub(in crate::swarm) struct Granted {
    pub(in crate::swarm) duration: Duration,
    /// Of this node, in binary.
    pub(in crate::swarm) addresses: Vec<Vec<u8>>,
}

/// Takes the way to the other end, or why there is none.
pub(in crate::swarm) type Reply = oneshot::Sender<Result<Way, Refusal>>;

/// A circuit that is to be set up.
#[derive(Debug)]
pub(in crate::swarm) struct Way {
    pub(in crate::swarm) id: CircuitId,
    /// Of the stop protocol, to the other end.
    pub(in crate::swarm) stream: Stream,
    pub(in crate::swarm) cancel: CancellationToken,
}

/// A way to the other end is being looked for.
#[derive(Debug)]
pub(in crate::swarm) struct StopJob {
    pub(in crate::swarm) id: CircuitId,
    /// Connections that were not tried yet, the best first.
    pub(in crate::swarm) untried: Vec<ConnectionId>,
    pub(in crate::swarm) cancel: CancellationToken,
    pub(in crate::swarm) reply: Reply,
}

impl Hops {
    pub(in crate::swarm) fn new() -> (Self, mpsc::Receiver<Report>) {
        let (reports, queue) = mpsc::channel(REPORT_QUEUE);
        let places = || Arc::new(Semaphore::new(MAX_ATTENDED));
        (Self { trusted: places(), others: places(), reports }, queue)
    }

    /// Attends to a stream, which is dropped if there are too many. `place`: of
    /// the stream, on its connection; free again once it is answered.
    pub(in crate::swarm) fn attend(
        &self,
        client: Client,
        trusted: bool,
        stream: Stream,
        place: OwnedSemaphorePermit,
        limit: CircuitLimit,
    ) {
        let slots = if trusted { &self.trusted } else { &self.others };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            return debug!(peer = %client.peer, "too many questions to this relay at once");
        };
        let desk = Desk { client, limit, reports: self.reports.clone(), patience: PATIENCE };
        tokio::spawn(desk.attend(stream, (slot, place)));
    }
}

/// Where one stream is attended to.
struct Desk {
    client: Client,
    limit: CircuitLimit,
    reports: mpsc::Sender<Report>,
    patience: Duration,
}

/// Held until a stream is answered.
type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Desk {
    async fn attend(self, mut stream: impl AsyncRead + AsyncWrite + Unpin, places: Places) {
        let mut came = Vec::with_capacity(PIECE);
        match timeout(self.patience, ask(&mut stream, &mut came)).await {
            Ok(Ok((Request::Reserve, _))) => self.reserve(&mut stream).await,
            Ok(Ok((Request::Connect(to), length))) => {
                let early = came.split_off(length);
                self.relay(&to, stream, early, places).await;
            }
            Ok(Err(Some(refusal))) => self.answer(&mut stream, &refuse(refusal)).await,
            // It says nothing, or is gone.
            Ok(Err(None)) | Err(_) => {}
        }
    }

    async fn reserve(&self, stream: &mut (impl AsyncWrite + Unpin)) {
        let (reply, decided) = oneshot::channel();
        if self.reports.send(Report::Reserve(self.client, reply)).await.is_err() {
            return;
        }
        let Ok(granted) = decided.await else { return };
        debug!(peer = %self.client.peer, granted = granted.is_ok(), "a client asks for a reservation");
        let bytes = match granted {
            Ok(Granted { duration, addresses }) => reserved(SystemTime::now() + duration, addresses, self.limit),
            Err(refusal) => refuse(refusal),
        };
        self.answer(stream, &bytes).await;
    }

    /// Sets a circuit up and carries it.
    async fn relay(&self, to: &[u8], mut stream: impl AsyncRead + AsyncWrite + Unpin, early: Vec<u8>, places: Places) {
        let from = self.client.peer;
        let mut way = match self.find(to).await {
            Ok(way) => way,
            Err(refusal) => {
                debug!(%from, %refusal, "no circuit");
                return self.answer(&mut stream, &refuse(refusal)).await;
            }
        };
        let question = stop_connect(from.to_bytes(), self.limit);
        let setup = connect(&mut stream, &mut way.stream, &question, &early, self.limit, self.patience);
        let circuit = tokio::select! {
            biased;
            () = way.cancel.cancelled() => Err(Refusal::ConnectionFailed),
            circuit = setup => circuit,
        };
        match circuit {
            Ok(circuit) => {
                drop((places, early));
                // The task may be gone.
                let _ = self.reports.send(Report::Up(way.id)).await;
                let end = tokio::select! {
                    biased;
                    () = way.cancel.cancelled() => End::Gone,
                    end = circuit.run(stream, way.stream) => end,
                };
                debug!(%from, %end, "a circuit ended");
            }
            Err(refusal) => {
                debug!(%from, %refusal, "no circuit");
                drop(way.stream);
                self.answer(&mut stream, &refuse(refusal)).await;
            }
        }
        let _ = self.reports.send(Report::Ended(way.id)).await;
    }

    /// A stream to the other end.
    async fn find(&self, to: &[u8]) -> Result<Way, Refusal> {
        let to = PeerId::from_bytes(to).map_err(|_| Refusal::Malformed)?;
        let (reply, mut found) = oneshot::channel();
        let gone = Refusal::ConnectionFailed;
        self.reports.send(Report::Connect(self.client, to, reply)).await.map_err(|_| gone)?;
        match timeout(self.patience, &mut found).await {
            Ok(found) => found.map_err(|_| gone)?,
            Err(_) => {
                // One that came at the last moment counts as a circuit, and
                // has to be ended by whoever has it.
                found.close();
                found.try_recv().map_err(|_| gone)?
            }
        }
    }

    /// The last word on a stream. Whoever asked may be gone.
    async fn answer(&self, stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
        let said: Result<io::Result<()>, _> = timeout(self.patience, async {
            stream.write_all(bytes).await?;
            stream.close().await
        })
        .await;
        if !matches!(said, Ok(Ok(()))) {
            debug!("nobody reads an answer of this relay");
        }
    }
}

/// Reads the question; `Err(None)` if there is none. What came behind it stays
/// in the buffer.
async fn ask(stream: &mut (impl AsyncRead + Unpin), came: &mut Vec<u8>) -> Result<(Request, usize), Option<Refusal>> {
    loop {
        let mut piece = [0; PIECE];
        let read = stream.read(&mut piece).await.map_err(|_| None)?;
        if read == 0 {
            return Err(None);
        }
        came.extend_from_slice(&piece[..read]);
        // A question that is incomplete has a bounded length.
        if let Some(whole) = request(came)? {
            return Ok(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::{
        swarm::pipe::{Pipe, pipe},
        wire::circuit::{self, answer as read_answer},
    };

    const LIMIT: CircuitLimit = CircuitLimit { duration: None, bytes: Some(1000) };

    struct World {
        client: Pipe,
        reports: mpsc::Receiver<Report>,
        relay: JoinHandle<()>,
        slots: Arc<Semaphore>,
    }

    fn begin() -> World {
        begin_for(Duration::from_secs(30))
    }

    fn begin_for(patience: Duration) -> World {
        let (client, here) = pipe();
        let (tell, reports) = mpsc::channel(REPORT_QUEUE);
        let slots = Arc::new(Semaphore::new(2));
        let place = || slots.clone().try_acquire_owned().unwrap();
        let client_id = Client { peer: PeerId::random(), connection: ConnectionId::new_unchecked(1) };
        let desk = Desk { client: client_id, limit: LIMIT, reports: tell, patience };
        let relay = tokio::spawn(desk.attend(here, (place(), place())));
        World { client, reports, relay, slots }
    }

    impl World {
        async fn send(&mut self, bytes: &[u8]) {
            self.client.write_all(bytes).await.unwrap();
        }

        /// All that the relay says.
        async fn told(mut self) -> Vec<u8> {
            let mut told = Vec::new();
            self.client.read_to_end(&mut told).await.unwrap();
            self.relay.await.unwrap();
            assert_eq!(self.slots.available_permits(), 2);
            told
        }
    }

    #[tokio::test]
    async fn a_reservation_is_granted_or_refused() {
        for granted in [true, false] {
            let mut world = begin();
            world.send(b"\x02\x08\x00").await;
            let Some(Report::Reserve(_, reply)) = world.reports.recv().await else { panic!("asked") };
            let given = Granted { duration: Duration::from_secs(60), addresses: vec![b"address".to_vec()] };
            reply.send(if granted { Ok(given) } else { Err(Refusal::ReservationRefused) }).unwrap();
            let told = world.told().await;
            let expected = if granted { Ok(Some((LIMIT, told.len()))) } else { Err(circuit::CircuitError::Other(200)) };
            assert_eq!(read_answer(&told), expected);
        }
    }

    #[tokio::test]
    async fn a_refused_circuit_names_its_status() {
        for refusal in [Refusal::NoReservation, Refusal::LimitExceeded, Refusal::PermissionDenied] {
            let mut world = begin();
            let to = PeerId::random();
            world.send(&[circuit::connect(to.to_bytes()), b"early".to_vec()].concat()).await;
            let Some(Report::Connect(_, asked, reply)) = world.reports.recv().await else { panic!("asked") };
            assert_eq!(asked, to);
            reply.send(Err(refusal)).unwrap();
            assert_eq!(world.told().await, refuse(refusal));
        }
    }

    #[tokio::test]
    async fn nonsense_is_called_so() {
        for (bytes, refusal) in [
            (vec![0xff; 4096], Refusal::Malformed),
            (refuse(Refusal::Malformed), Refusal::Unexpected),
            (circuit::connect(b"no peer id".to_vec()), Refusal::Malformed),
            (b"\x02\x08\x01".to_vec(), Refusal::Malformed),
        ] {
            let mut world = begin();
            world.send(&bytes).await;
            assert_eq!(world.told().await, refuse(refusal), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn half_a_question_is_not_awaited_for_ever() {
        let mut world = begin_for(Duration::from_millis(70));
        world.send(b"\x20\x08").await;
        assert!(world.told().await.is_empty());
        let mut world = begin();
        world.send(b"\x20\x08").await;
        world.client.close().await.unwrap();
        assert!(world.told().await.is_empty());
    }

    #[tokio::test]
    async fn a_way_is_not_looked_for_for_ever() {
        let mut world = begin_for(Duration::from_millis(70));
        world.send(&circuit::connect(PeerId::random().to_bytes())).await;
        let Some(Report::Connect(.., reply)) = world.reports.recv().await else { panic!("asked") };
        let mut told = Vec::new();
        world.client.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, refuse(Refusal::ConnectionFailed));
        assert!(reply.is_closed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let mut world = begin();
                world.send(&bytes).await;
                world.client.close().await.unwrap();
                drop(std::mem::replace(&mut world.reports, mpsc::channel(1).1));
                drop(world.told().await);
            });
        }
    }
}
