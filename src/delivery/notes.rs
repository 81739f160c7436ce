//! What is learned of peers goes into the address book, later and together.

use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

use super::Delivery;
use crate::clock;

/// Notes that wait for the store. Past that they are dropped: each is only a
/// convenience, and the next one of its kind makes up for it.
pub(super) const QUEUE: usize = 1024;
/// Notes written in one operation.
const BATCH: usize = 256;

/// Something learned of a peer.
#[derive(Debug)]
pub(super) enum Note {
    /// It is or was connected.
    Seen(PeerId),
    /// It was reached at an address.
    Worked(PeerId, Multiaddr),
}

impl Delivery {
    /// Writes notes until the daemon stops; what is at hand then is written.
    pub(super) async fn note(self, mut notes: mpsc::Receiver<Note>) {
        let mut batch = Vec::new();
        while notes.recv_many(&mut batch, BATCH).await > 0 {
            let (batch, wall) = (std::mem::take(&mut batch), clock::wall_ms());
            let written = self.inner.store.write(move |db| {
                batch.iter().try_for_each(|note| match note {
                    Note::Seen(peer) => db.peer_seen(peer, wall),
                    Note::Worked(peer, address) => db.address_worked(peer, address, wall),
                })
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "what was learned of peers was not noted");
            }
        }
    }
}
