//! Events on their way out, without ever waiting.

use std::collections::VecDeque;

use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::warn;

use crate::node::NodeEvent;

/// Events that wait while the receiver is busy. At a few events per connection
/// this is a burst of thousands of peers.
const QUEUE: usize = 1024;
/// Events kept beyond the queue when the receiver stalls. Past this they are
/// dropped: links are opened again, and the rest can be seen in the view, which
/// [`NodeEvent::Missed`] says.
const OVERFLOW: usize = 4096;

/// The sending end of the events.
#[derive(Debug)]
pub(super) struct Sink {
    tx: mpsc::Sender<NodeEvent>,
    overflow: VecDeque<NodeEvent>,
    dropped: u64,
    /// Some were dropped, and the receiver does not know yet.
    missed: bool,
}

impl Sink {
    pub(super) fn new() -> (Self, mpsc::Receiver<NodeEvent>) {
        let (tx, rx) = mpsc::channel(QUEUE);
        (Self { tx, overflow: VecDeque::new(), dropped: 0, missed: false }, rx)
    }

    /// Passes an event on, in order.
    pub(super) fn push(&mut self, event: NodeEvent) {
        let Some(event) = self.try_now(event) else { return };
        if self.overflow.len() < OVERFLOW {
            self.overflow.push_back(event);
        } else {
            self.dropped += 1;
            self.missed = true;
            if self.dropped.is_power_of_two() {
                warn!(dropped = self.dropped, "events of the network are not taken; dropping some");
            }
        }
    }

    /// Passes an event on if the receiver keeps up; otherwise it is dropped.
    pub(super) fn offer(&mut self, event: NodeEvent) -> bool {
        self.try_now(event).is_none()
    }

    /// Waits until the receiver has taken something that was held back; for
    /// ever if nothing is.
    pub(super) async fn ready(&self) -> Option<mpsc::OwnedPermit<NodeEvent>> {
        if self.overflow.is_empty() {
            return std::future::pending().await;
        }
        self.tx.clone().reserve_owned().await.ok()
    }

    /// Passes on what was held back. A receiver that is gone takes nothing.
    pub(super) fn on_ready(&mut self, permit: Option<mpsc::OwnedPermit<NodeEvent>>) {
        match (permit, self.overflow.pop_front()) {
            (Some(permit), Some(event)) => {
                drop(permit.send(event));
                if std::mem::take(&mut self.missed) {
                    self.overflow.push_back(NodeEvent::Missed);
                }
            }
            (None, _) => self.overflow.clear(),
            (Some(_), None) => {}
        }
    }

    /// Gives the event back if there is no room.
    fn try_now(&mut self, event: NodeEvent) -> Option<NodeEvent> {
        if !self.overflow.is_empty() {
            return Some(event);
        }
        match self.tx.try_send(event) {
            Ok(()) => None,
            Err(TrySendError::Full(event)) => Some(event),
            // Shutting down: nobody wants it.
            Err(TrySendError::Closed(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    #[tokio::test]
    async fn a_receiver_that_missed_events_is_told_where() {
        let (mut sink, mut events) = Sink::new();
        let peer = PeerId::random();
        for _ in 0..QUEUE + OVERFLOW + 10 {
            sink.push(NodeEvent::OnLan(peer, true));
        }
        let mut taken = 0;
        loop {
            let event = events.recv().await.unwrap();
            let permit = if sink.overflow.is_empty() { None } else { sink.ready().await };
            sink.on_ready(permit);
            if matches!(event, NodeEvent::Missed) {
                break;
            }
            taken += 1;
        }
        assert_eq!(taken, QUEUE + OVERFLOW);
        sink.push(NodeEvent::OnLan(peer, false));
        assert!(matches!(events.recv().await, Some(NodeEvent::OnLan(_, false))));
    }
}
