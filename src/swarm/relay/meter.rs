//! What circuits carry, against what their relay lets them.
//!
//! A relay ends a circuit when so many bytes or so much time have passed. Before
//! that, another one is opened, and the link moves there.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, core::ConnectedPoint, multiaddr::Protocol};
use tokio::sync::Notify;

use crate::swarm::{circuit::Circuit, route::relay_of};
use crate::wire::circuit::CircuitLimit;

/// Of a limit, after which another circuit is opened: the rest is for what is
/// on its way.
const USED: (u32, u32) = (4, 5);
/// Circuits that were set up and are no connections yet. The oldest is
/// forgotten: its connection ends with its limit.
const MAX_WAITING: usize = 512;

/// Counts the bytes of one circuit, both ways together: some relays do so,
/// others each way.
#[derive(Debug)]
pub(in crate::swarm) struct Meter {
    bytes: AtomicU64,
    /// At which someone is told.
    mark: AtomicU64,
    /// As the relay told when it opened the circuit.
    limit: OnceLock<CircuitLimit>,
    told: Arc<Notify>,
}

/// Meters of circuits whose connections the swarm has not told of yet.
type Waiting = Vec<(Way, Arc<Meter>)>;

/// The circuits that are no connections yet, and what tells of all that are
/// nearly used up.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm) struct Meters {
    waiting: Arc<Mutex<Waiting>>,
    told: Arc<Notify>,
}

/// What tells one circuit from others that are set up at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) struct Way {
    /// Who is, or claims to be, at the other end.
    pub(in crate::swarm) peer: PeerId,
    /// Through which relay, as far as the address says.
    pub(in crate::swarm) relay: Option<PeerId>,
    /// This side asked for it.
    pub(in crate::swarm) dialled: bool,
}

/// A circuit whose bytes are counted.
#[derive(Debug)]
pub(in crate::swarm) struct Metered<T> {
    circuit: T,
    meter: Option<Arc<Meter>>,
}

impl Meter {
    /// The relay told what the circuit may carry; the first word counts.
    pub(in crate::swarm) fn set_limit(&self, limit: CircuitLimit) {
        if self.limit.set(limit).is_err() {
            return;
        }
        let (part, of) = USED;
        let mark = limit.bytes.map_or(u64::MAX, |bytes| bytes / u64::from(of) * u64::from(part));
        self.mark.store(mark, Ordering::Relaxed);
        if self.is_used_up() {
            self.told.notify_one();
        }
    }

    /// How long the circuit is used, of the time that it has.
    pub(in crate::swarm) fn use_for(&self) -> Option<Duration> {
        let (part, of) = USED;
        self.limit.get()?.duration.map(|duration| duration / of * part)
    }

    /// Whether it is nearly used up.
    pub(in crate::swarm) fn is_used_up(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.mark.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: usize) {
        let bytes = bytes as u64;
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mark = self.mark.load(Ordering::Relaxed);
        if before < mark && before.saturating_add(bytes) >= mark {
            self.told.notify_one();
        }
    }
}

impl Meters {
    /// Counts the bytes of a circuit that was set up.
    pub(in crate::swarm) fn meter<T>(&self, circuit: T, endpoint: &ConnectedPoint) -> Metered<T> {
        Metered { circuit, meter: self.add(endpoint) }
    }

    /// The same of a circuit that knows its limit once it is open.
    pub(in crate::swarm) fn meter_early(&self, mut circuit: Circuit, endpoint: &ConnectedPoint) -> Metered<Circuit> {
        let meter = self.add(endpoint);
        if let Some(meter) = &meter {
            circuit.set_meter(meter.clone());
        }
        Metered { circuit, meter }
    }

    fn add(&self, endpoint: &ConnectedPoint) -> Option<Arc<Meter>> {
        Way::of(endpoint).map(|way| {
            let meter = Arc::new(Meter {
                bytes: 0.into(),
                mark: u64::MAX.into(),
                limit: OnceLock::new(),
                told: self.told.clone(),
            });
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                waiting.remove(0);
            }
            waiting.push((way, meter.clone()));
            meter
        })
    }

    /// The meter of a circuit that became a connection; of several alike the
    /// first that was set up.
    pub(in crate::swarm) fn take(&self, way: Way) -> Option<Arc<Meter>> {
        let mut waiting = self.waiting();
        // Those that nobody else holds never became one.
        waiting.retain(|(_, meter)| Arc::strong_count(meter) > 1);
        let at = waiting.iter().position(|(other, _)| *other == way)?;
        Some(waiting.remove(at).1)
    }

    /// Ready when a circuit is nearly used up.
    pub(in crate::swarm) fn told(&self) -> Arc<Notify> {
        self.told.clone()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Way, Arc<Meter>)>> {
        // Nothing panics while it is locked, and a list is whole at any time.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Way {
    fn of(endpoint: &ConnectedPoint) -> Option<Self> {
        let relayed = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { local_addr, .. } => local_addr,
        };
        let relay = relay_of(relayed).map(|(relay, _)| relay);
        match endpoint.get_remote_address().iter().last()? {
            Protocol::P2p(peer) => Some(Self { peer, relay, dialled: endpoint.is_dialer() }),
            _ => None,
        }
    }
}

impl<T> Metered<T> {
    fn count(&self, moved: &Poll<io::Result<usize>>) {
        if let (Some(meter), Poll::Ready(Ok(bytes))) = (&self.meter, moved) {
            meter.count(*bytes);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.circuit).poll_read(cx, buffer);
        self.count(&moved);
        moved
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.circuit).poll_write(cx, bytes);
        self.count(&moved);
        moved
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.circuit).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.circuit).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, io::Cursor};
    use libp2p::{
        Multiaddr,
        core::{Endpoint, transport::PortUse},
    };

    use super::*;

    fn to(peer: PeerId) -> ConnectedPoint {
        let address = Multiaddr::empty().with(Protocol::P2p(peer));
        ConnectedPoint::Dialer { address, role_override: Endpoint::Dialer, port_use: PortUse::Reuse }
    }

    fn way(peer: PeerId) -> Way {
        Way { peer, relay: None, dialled: true }
    }

    #[test]
    fn circuits_that_cross_are_told_apart() {
        let (meters, peer, relay) = (Meters::default(), PeerId::random(), PeerId::random());
        let through = |end: &str| format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit{end}").parse().unwrap();
        let address: Multiaddr = through(&format!("/p2p/{peer}"));
        let out = ConnectedPoint::Dialer { address, role_override: Endpoint::Dialer, port_use: PortUse::Reuse };
        let send_back_addr = Multiaddr::empty().with(Protocol::P2p(peer));
        let back = ConnectedPoint::Listener { local_addr: through(""), send_back_addr };
        let circuits = [&out, &back].map(|endpoint| meters.meter(Cursor::new(Vec::<u8>::new()), endpoint));
        for (circuit, dialled) in circuits.iter().zip([true, false]).rev() {
            let taken = meters.take(Way { peer, relay: Some(relay), dialled }).unwrap();
            assert!(Arc::ptr_eq(&taken, circuit.meter.as_ref().unwrap()));
        }
        assert!(meters.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_circuit_tells_once_that_it_is_nearly_used_up() {
        let meters = Meters::default();
        let peer = PeerId::random();
        let mut circuit = meters.meter(Cursor::new(vec![0; 100]), &to(peer));
        assert!(meters.take(way(PeerId::random())).is_none());
        let meter = meters.take(way(peer)).unwrap();
        assert!(meters.take(way(peer)).is_none());
        meter.set_limit(CircuitLimit { bytes: Some(100), duration: Some(Duration::from_secs(10)) });
        assert_eq!(meter.use_for(), Some(Duration::from_secs(8)));
        circuit.read_exact(&mut [0; 60]).await.unwrap();
        assert!(!meter.is_used_up() && meters.told().notified().now_or_never().is_none());
        circuit.write_all(&[0; 20]).await.unwrap();
        assert!(meter.is_used_up() && meters.told().notified().now_or_never().is_some());
        circuit.write_all(&[0; 20]).await.unwrap();
        assert!(meters.told().notified().now_or_never().is_none());
        meter.set_limit(CircuitLimit::default());
        assert!(meter.is_used_up(), "the first word counts");
    }

    #[test]
    fn circuits_that_never_became_connections_are_forgotten() {
        let meters = Meters::default();
        let peer = PeerId::random();
        drop(meters.meter(Cursor::new(Vec::<u8>::new()), &to(peer)));
        assert!(meters.take(way(peer)).is_none());
        let kept: Vec<_> =
            (0..2 * MAX_WAITING).map(|_| meters.meter(Cursor::new(Vec::<u8>::new()), &to(peer))).collect();
        assert_eq!(meters.waiting().len(), MAX_WAITING);
        drop(kept);
    }
}
