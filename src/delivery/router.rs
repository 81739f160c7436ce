//! Brings what the network tells to those whom it concerns.

use tokio::sync::mpsc;

use super::{Delivery, DeliveryError, notes::Note};
use crate::{
    node::{Direction, Link, NodeEvent},
    store::Trust,
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
        let (notes, noted) = mpsc::channel(super::notes::QUEUE);
        self.inner.tasks.spawn(self.clone().route(events, notes, fatal));
        self.inner.tasks.spawn(self.clone().note(noted));
        self.inner.tasks.spawn(self.clone().keep_roster());
        self.inner.tasks.spawn(self.clone().keep_up());
        for peer in self.inner.store.write(|db| db.waiting_peers()).await? {
            self.inner.outbox(&peer);
        }
        Ok(failures)
    }

    async fn route(
        self,
        mut events: mpsc::Receiver<NodeEvent>,
        notes: mpsc::Sender<Note>,
        fatal: mpsc::Sender<String>,
    ) {
        loop {
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return,
                event = events.recv() => match event {
                    Some(NodeEvent::Missed) => self.catch_up().await,
                    Some(event) => self.event(event, &notes, &fatal),
                    None => {
                        // Nobody waits for the cause when all is going down.
                        drop(fatal.try_send("the network task ended".to_owned()));
                        return;
                    }
                },
            }
        }
    }

    /// Never waits: a slow disk must not delay what others learn of peers.
    fn event(&self, event: NodeEvent, notes: &mpsc::Sender<Note>, fatal: &mpsc::Sender<String>) {
        let note = |note: Note| {
            if notes.try_send(note).is_err() {
                tracing::debug!("what was learned of a peer was not noted: the store is behind");
            }
        };
        let note_seen = |peer| {
            if self.inner.trust(&peer).is_some() {
                note(Note::Seen(peer));
            }
        };
        let roster = &self.inner.roster;
        match event {
            NodeEvent::Link(link) => self.link(link),
            NodeEvent::Join(attempt) => self.take_in(attempt),
            NodeEvent::Connected(info) => {
                roster.connected(&info);
                note_seen(info.peer);
            }
            NodeEvent::Disconnected(peer, why) => {
                let trust = self.inner.trust(&peer);
                roster.disconnected(peer, why, trust == Some(Trust::Blocked), trust.is_some());
                note_seen(peer);
            }
            NodeEvent::Rerouted(peer, route) => roster.rerouted(peer, route),
            NodeEvent::OnLan(peer, there) => roster.on_lan(peer, there),
            // Handled by the caller, which may wait.
            NodeEvent::Missed => {}
            NodeEvent::AddressWorked(peer, address) => note(Note::Worked(peer, address)),
            NodeEvent::Fatal(cause) => drop(fatal.try_send(cause)),
        }
    }

    async fn catch_up(&self) {
        // A closed network is on its way down.
        let Ok(view) = self.inner.node.view().await else { return };
        self.inner.roster.catch_up(&view.peers);
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

    async fn keep_roster(self) {
        let inner = &self.inner;
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = inner.roster.run(|peer| inner.trust(peer).is_some()) => {}
        }
    }
}
