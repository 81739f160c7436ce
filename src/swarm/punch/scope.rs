//! Dials that can be given up, and those that start from the port listened on.
//!
//! A swarm gives up a dial only together with all connections of the peer. What
//! is left of a punch that succeeded would go on sending packets for seconds
//! and end in connections that nobody needs.
//!
//! Over TCP there is one connection at most between two ports. A dial to where
//! nobody answers would stand in the way of a punch for seconds, or meet it as
//! another dial. So only punches, and dials of servers that are to see the port,
//! start from the one listened on.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
    },
};
use tokio_util::sync::CancellationToken;

use crate::swarm::route::{is_circuit, is_quic, without_peer};

/// Addresses of servers that are remembered; more than the relays known have.
const MAX_SERVERS: usize = 512;

type Output = (PeerId, StreamMuxerBox);

/// Says which dials end together, or early. A swarm starts the dials of all
/// addresses within its `dial`.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm) struct Scope(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Of the dials that begin.
    limit: Option<Limit>,
    servers: HashSet<Multiaddr>,
}

/// What ends a dial before the transport does.
#[derive(Debug, Clone)]
enum Limit {
    /// It is not needed any more.
    Token(CancellationToken),
    /// It takes too long.
    Time(Duration),
}

impl Scope {
    /// Dials begun within `begin` end when the token is cancelled.
    pub(super) fn within<T>(&self, token: &CancellationToken, begin: impl FnOnce() -> T) -> T {
        self.limited(Limit::Token(token.clone()), begin)
    }

    /// Dials begun within `begin` fail after this time.
    pub(in crate::swarm) fn within_time<T>(&self, time: Duration, begin: impl FnOnce() -> T) -> T {
        self.limited(Limit::Time(time), begin)
    }

    fn limited<T>(&self, limit: Limit, begin: impl FnOnce() -> T) -> T {
        self.set(Some(limit));
        let result = begin();
        self.set(None);
        result
    }

    /// At these addresses are servers that are to see the port listened on.
    pub(in crate::swarm) fn show_port<'a>(&self, addresses: impl IntoIterator<Item = &'a Multiaddr>) {
        let mut state = self.lock();
        for address in addresses {
            if state.servers.len() < MAX_SERVERS {
                state.servers.insert(without_peer(address));
            }
        }
    }

    /// Whether a dial of this address that is no punch starts from the port
    /// listened on.
    pub(in crate::swarm) fn shows_port(&self, address: &Multiaddr) -> bool {
        is_quic(address) || is_circuit(address) || self.lock().servers.contains(&without_peer(address))
    }

    fn set(&self, limit: Option<Limit>) {
        self.lock().limit = limit;
    }

    fn current(&self) -> Option<Limit> {
        self.lock().limit.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transport whose dials obey a [`Scope`].
pub(in crate::swarm) struct Scoped {
    inner: Boxed<Output>,
    scope: Scope,
}

impl Scoped {
    pub(in crate::swarm) fn new(inner: Boxed<Output>, scope: Scope) -> Self {
        Self { inner, scope }
    }
}

impl Transport for Scoped {
    type Output = Output;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Output> as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<Output>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let limit = self.scope.current();
        let punches = matches!(limit, Some(Limit::Token(_)));
        let port_use = if punches || self.scope.shows_port(&address) { options.port_use } else { PortUse::New };
        let dial = self.inner.dial(address, DialOpts { port_use, ..options })?;
        let given_up = || io::Error::new(io::ErrorKind::Interrupted, "given up: no longer needed");
        let late = || io::Error::new(io::ErrorKind::TimedOut, "timed out");
        Ok(match limit {
            None => dial.boxed(),
            Some(Limit::Token(token)) => {
                async move { token.run_until_cancelled(dial).await.unwrap_or_else(|| Err(given_up())) }.boxed()
            }
            Some(Limit::Time(time)) => {
                async move { tokio::time::timeout(time, dial).await.unwrap_or_else(|_| Err(late())) }.boxed()
            }
        })
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
