//! Brings what the network tells to those whom it concerns.

use tokio::sync::mpsc;

use super::{Delivery, DeliveryError};
use crate::{
    clock,
    node::{Direction, Link, NodeEvent},
};

impl Delivery {
    /// Starts the layer: takes the network's events, wakes the tasks of peers
    /// with messages waiting, and begins the upkeep. Resolves the returned
    /// receiver with the cause if the network fails for good.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn start(&self, events: mpsc::Receiver<NodeEvent>) -> Result<mpsc::Receiver<String>, DeliveryError> {
        let (fatal, failures) = mpsc::channel(1);
        self.inner.tasks.spawn(self.clone().route(events, fatal));
        self.inner.tasks.spawn(self.clone().keep_up());
        for peer in self.inner.store.write(|db| db.waiting_peers()).await? {
            self.inner.outbox(&peer);
        }
        Ok(failures)
    }

    async fn route(self, mut events: mpsc::Receiver<NodeEvent>, fatal: mpsc::Sender<String>) {
        loop {
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => self.event(event, &fatal).await,
                    None => {
                        // Nobody waits for the cause when all is going down.
                        drop(fatal.try_send("the network task ended".to_owned()));
                        return;
                    }
                },
            }
        }
    }

    async fn event(&self, event: NodeEvent, fatal: &mpsc::Sender<String>) {
        match event {
            NodeEvent::Link(link) => self.link(link),
            NodeEvent::Connected(info) => self.seen(info.peer).await,
            NodeEvent::Disconnected(peer) => self.seen(peer).await,
            NodeEvent::Join(attempt) => self.take_in(attempt),
            NodeEvent::AddressWorked(peer, address) => {
                let noted =
                    self.inner.store.write(move |db| db.address_worked(&peer, &address, clock::wall_ms())).await;
                log_failure(noted.err());
            }
            NodeEvent::Fatal(cause) => drop(fatal.try_send(cause)),
        }
    }

    fn link(&self, link: Link) {
        match link.direction {
            Direction::Inbound { .. } => self.inner.inbound_link(link),
            Direction::Outbound { .. } => {
                let peer = link.peer;
                if !self.inner.ask(&peer, super::outbox::Request::Link(link)) {
                    tracing::debug!(%peer, "an outbound link was dropped: the peer's task is behind");
                }
            }
        }
    }

    /// Notes the time for peers of the book.
    async fn seen(&self, peer: libp2p::PeerId) {
        if self.inner.trust(&peer).is_some() {
            log_failure(self.inner.store.write(move |db| db.peer_seen(&peer, clock::wall_ms())).await.err());
        }
    }
}

fn log_failure(error: Option<crate::store::StoreError>) {
    if let Some(error) = error {
        tracing::warn!(%error, "what was learned of a peer was not noted");
    }
}
