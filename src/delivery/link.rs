//! A link as the task that drives it holds it.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::{
    node::{LinkId, Received},
    types::Route,
};

/// An open link, on which frames `Out` go and frames `In` come.
pub(super) struct OpenLink<Out, In> {
    pub(super) id: LinkId,
    pub(super) route: Route,
    tx: mpsc::Sender<Out>,
    rx: mpsc::Receiver<Received<In>>,
    /// Frames that the link has no room for yet; bounded by the window of the
    /// machine that makes them, or by reading no more of the peer.
    waiting: VecDeque<Out>,
}

impl<Out, In> OpenLink<Out, In> {
    pub(super) fn new(id: LinkId, route: Route, tx: mpsc::Sender<Out>, rx: mpsc::Receiver<Received<In>>) -> Self {
        Self { id, route, tx, rx, waiting: VecDeque::new() }
    }

    /// Queues a frame. A link that is gone is noticed by its receiving half.
    pub(super) fn send(&mut self, frame: Out) {
        if !self.waiting.is_empty() {
            return self.waiting.push_back(frame);
        }
        if let Err(mpsc::error::TrySendError::Full(frame)) = self.tx.try_send(frame) {
            self.waiting.push_back(frame);
        }
    }

    /// Drops frames that wait for room.
    pub(super) fn keep_waiting(&mut self, keep: impl FnMut(&Out) -> bool) {
        self.waiting.retain(keep);
    }

    /// Says a last word if there is room, and lets the link flush.
    pub(super) fn part(self, bye: Out) {
        drop(self.tx.try_send(bye));
    }
}

/// Writes what waits for room and takes up to `max` frames of the peer; 0: the
/// link is gone. Reads while `reads` agrees to the number of frames that wait.
/// Nothing is lost when this is dropped; it never resolves without a link.
pub(super) async fn frames<Out, In>(
    link: &mut Option<OpenLink<Out, In>>,
    into: &mut Vec<Received<In>>,
    max: usize,
    reads: impl Fn(usize) -> bool,
) -> usize {
    let Some(open) = link else { return std::future::pending().await };
    loop {
        tokio::select! {
            biased;
            room = open.tx.reserve(), if !open.waiting.is_empty() => match (room, open.waiting.pop_front()) {
                (Ok(place), Some(frame)) => place.send(frame),
                // Its receiving half says so too.
                _ => open.waiting.clear(),
            },
            count = open.rx.recv_many(into, max), if reads(open.waiting.len()) => return count,
            else => return std::future::pending().await,
        }
    }
}
