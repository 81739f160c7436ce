//! Dials that can be given up.
//!
//! A swarm gives up a dial only together with all connections of the peer. What
//! is left of a punch that succeeded would go on sending packets for seconds
//! and end in connections that nobody needs.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, Transport, TransportError, TransportEvent},
    },
};
use tokio_util::sync::CancellationToken;

type Output = (PeerId, StreamMuxerBox);

/// Says which dials end together. A swarm starts the dials of all addresses
/// within its `dial`.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm) struct Scope(Arc<Mutex<Option<CancellationToken>>>);

impl Scope {
    /// Dials begun within `begin` end when the token is cancelled.
    pub(super) fn within<T>(&self, token: &CancellationToken, begin: impl FnOnce() -> T) -> T {
        self.set(Some(token.clone()));
        let result = begin();
        self.set(None);
        result
    }

    fn set(&self, token: Option<CancellationToken>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    fn current(&self) -> Option<CancellationToken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        let dial = self.inner.dial(address, options)?;
        let Some(token) = self.scope.current() else { return Ok(dial.boxed()) };
        let given_up = || io::Error::new(io::ErrorKind::Interrupted, "given up: no longer needed");
        Ok(async move { token.run_until_cancelled(dial).await.unwrap_or_else(|| Err(given_up())) }.boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}
