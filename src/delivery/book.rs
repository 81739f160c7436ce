//! The address book: durable in the store, cached for decisions, told to the
//! network.

use std::{collections::HashMap, future::Future, sync::PoisonError};

use libp2p::PeerId;

use super::{Delivery, DeliveryError, Inner};
use crate::{
    node::{DIAL_DEADLINE, DialTarget, PeerPolicy, Standing},
    store::{BookChange, BookPeer, Changed, Db, Trust},
};

/// A peer of the book, as it is after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookEntry {
    /// The entry.
    pub peer: BookPeer,
    /// It was not there before.
    pub created: bool,
}

/// What decisions need of the book, in memory.
#[derive(Debug, Default)]
pub(super) struct BookCache {
    trust: HashMap<PeerId, Trust>,
    aliases: HashMap<String, PeerId>,
}

impl BookCache {
    pub(super) fn new(book: &[BookPeer]) -> Self {
        let mut cache = Self::default();
        for peer in book {
            cache.put(peer);
        }
        cache
    }

    fn put(&mut self, peer: &BookPeer) {
        self.trust.insert(peer.peer, peer.trust);
        self.aliases.retain(|_, holder| *holder != peer.peer);
        if let Some(alias) = &peer.alias {
            self.aliases.insert(alias.clone(), peer.peer);
        }
    }

    fn remove(&mut self, peer: &PeerId) {
        self.trust.remove(peer);
        self.aliases.retain(|_, holder| holder != peer);
    }
}

impl Inner {
    /// What the book says of a peer.
    pub(super) fn trust(&self, peer: &PeerId) -> Option<Trust> {
        self.book.read().unwrap_or_else(PoisonError::into_inner).trust.get(peer).copied()
    }

    /// Whether messages go to and are taken from a peer.
    pub(super) fn is_trusted(&self, peer: &PeerId) -> bool {
        match self.trust(peer) {
            Some(Trust::Trusted) => true,
            Some(Trust::Blocked) => false,
            Some(Trust::Known) | None => self.options.trust_open,
        }
    }

    fn change(&self, change: impl FnOnce(&mut BookCache)) {
        change(&mut self.book.write().unwrap_or_else(PoisonError::into_inner));
        self.book_version.send_modify(|version| *version += 1);
    }
}

impl Delivery {
    /// Makes one change of the book after another, so that disk, cache and
    /// network see them in one order. It runs to its end even if the caller
    /// goes: the network must not miss what is on disk.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, DeliveryError>> + Send + 'static,
    ) -> Result<T, DeliveryError> {
        let turn = self.inner.book_turn.clone().lock_owned().await;
        let changing = self.inner.tasks.spawn(async move {
            let _turn = turn;
            change.await
        });
        changing.await.map_err(|_| DeliveryError::Closed)?
    }

    /// What the book says of a peer; `None` if it is not in it.
    #[must_use]
    pub fn trust(&self, peer: &PeerId) -> Option<Trust> {
        self.inner.trust(peer)
    }

    /// Whether messages go to and are taken from a peer.
    #[must_use]
    pub fn is_trusted(&self, peer: &PeerId) -> bool {
        self.inner.is_trusted(peer)
    }

    /// Tells the network of the whole book, at the start.
    ///
    /// # Errors
    /// When the store fails or the network is closed.
    pub async fn tell_book(&self) -> Result<(), DeliveryError> {
        for peer in self.book().await? {
            self.tell_policy(&peer).await?;
        }
        Ok(())
    }

    async fn tell_policy(&self, peer: &BookPeer) -> Result<(), DeliveryError> {
        let standing = match peer.trust {
            Trust::Blocked => Standing::Blocked,
            Trust::Trusted => Standing::Trusted,
            Trust::Known => Standing::Stranger,
        };
        let policy = PeerPolicy { standing, pinned: peer.pinned, addresses: peer.addresses.clone() };
        self.inner.node.set_policy(peer.peer, policy).await.map_err(|_| DeliveryError::Closed)
    }

    /// The whole book.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn book(&self) -> Result<Vec<BookPeer>, DeliveryError> {
        Ok(self.inner.store.write(|db| db.book()).await?)
    }

    /// Those of some peers that are in the book.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn book_peers(&self, peers: Vec<PeerId>) -> Result<Vec<BookPeer>, DeliveryError> {
        let read = move |db: &mut crate::store::Db| peers.iter().filter_map(|peer| db.peer(peer).transpose()).collect();
        Ok(self.inner.store.write(read).await?)
    }

    /// The peer of a name.
    #[must_use]
    pub fn peer_by_alias(&self, alias: &str) -> Option<PeerId> {
        self.inner.book.read().unwrap_or_else(PoisonError::into_inner).aliases.get(alias).copied()
    }

    /// Adds a peer to the book or changes it. `Err` of the inner result is
    /// what stands in the way.
    ///
    /// # Errors
    /// When the store fails or the network is closed.
    pub async fn put_peer(&self, change: BookChange) -> Result<Result<BookEntry, Changed>, DeliveryError> {
        let delivery = self.clone();
        self.in_turn(async move {
            let put = move |db: &mut Db| Ok((db.put_peer(&change)?, db.peer(&change.peer)?));
            let done = delivery.inner.store.write(put).await?;
            let (Changed::Done { created }, Some(peer)) = done else { return Ok(Err(done.0)) };
            delivery.adopt(&peer).await?;
            Ok(Ok(BookEntry { peer, created }))
        })
        .await
    }

    /// Takes an entry over that the store has: for decisions, into the network,
    /// and to watchers. To be called in turn with the change itself.
    pub(super) async fn adopt(&self, peer: &BookPeer) -> Result<(), DeliveryError> {
        self.inner.change(|book| book.put(peer));
        self.tell_policy(peer).await?;
        self.inner.roster.book_changed(peer.peer, self.is_trusted(&peer.peer), true);
        Ok(())
    }

    /// Takes a peer out of the book and closes its connections; false if it was
    /// not there.
    ///
    /// # Errors
    /// When the store fails or the network is closed.
    pub async fn remove_peer(&self, peer: PeerId) -> Result<bool, DeliveryError> {
        let inner = self.inner.clone();
        self.in_turn(async move {
            let removed = inner.store.write(move |db| db.remove_peer(&peer)).await?;
            if removed {
                inner.change(|book| book.remove(&peer));
                let policy = PeerPolicy { standing: Standing::Stranger, pinned: false, addresses: Vec::new() };
                inner.node.set_policy(peer, policy).await.map_err(|_| DeliveryError::Closed)?;
                inner.node.disconnect(peer).await.map_err(|_| DeliveryError::Closed)?;
                inner.roster.book_changed(peer, inner.is_trusted(&peer), false);
            }
            Ok(removed)
        })
        .await
    }

    /// Connects to a peer of the book in the background, because it was just
    /// added.
    pub fn connect_soon(&self, peer: PeerId) {
        // None left: it is dialled when a message waits.
        let Ok(greeting) = self.inner.greetings.clone().try_acquire_owned() else { return };
        let node = self.inner.node.clone();
        self.inner.tasks.spawn(async move {
            let _greeting = greeting;
            if let Err(error) = node.connect(DialTarget::Peer(peer), DIAL_DEADLINE).await {
                tracing::debug!(%peer, %error, "a peer that was just added is not reached yet");
            }
        });
    }
}
