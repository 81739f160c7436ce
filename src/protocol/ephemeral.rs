//! Messages that no store keeps: a bounded queue before the link is up, a
//! bounded table while the peer has not answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Millis;
use crate::types::{Channel, Content, NEVER_RELAYED};

/// Messages that wait for a link or an answer, per peer.
pub const MAX_EPHEMERAL: usize = 4096;

/// Their bytes.
pub(super) const MAX_EPHEMERAL_BYTES: u64 = 16 * 1024 * 1024;

/// A message on its way, under the key that its caller knows it by.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) key: u64,
    pub(super) channel: Channel,
    pub(super) content: Content,
    /// Until when no relay may carry it.
    pub(super) direct_until: Millis,
    pub(super) deadline: Millis,
}

#[derive(Debug, Default)]
pub(super) struct Ephemerals {
    waiting: VecDeque<Waiting>,
    /// By number on the link: the caller's key and the message's cost.
    sent: BTreeMap<u64, (u64, u64)>,
    bytes: u64,
    next_number: u64,
}

impl Ephemerals {
    /// Queues a message; gives its key back when too much is under way.
    pub(super) fn push(&mut self, message: Waiting) -> Result<(), u64> {
        let cost = message.content.cost();
        let full = self.waiting.len() + self.sent.len() >= MAX_EPHEMERAL || self.bytes + cost > MAX_EPHEMERAL_BYTES;
        // One message of any size goes when nothing else is under way.
        if full && self.bytes > 0 {
            return Err(message.key);
        }
        self.bytes += cost;
        self.waiting.push_back(message);
        Ok(())
    }

    /// Next message for the link, with its number there. On a relayed link, with
    /// the time: those that may not go there yet stay, and those behind them on
    /// the same channel, so that order is kept.
    pub(super) fn pop(&mut self, relayed: Option<Millis>) -> Option<(u64, Waiting)> {
        let index = relayed.map_or(Some(0), |now| self.first_for_relay(now))?;
        let message = self.waiting.remove(index)?;
        self.next_number += 1;
        self.sent.insert(self.next_number, (message.key, message.content.cost()));
        Some((self.next_number, message))
    }

    /// Whether some are on the link.
    pub(super) fn awaits_answer(&self) -> bool {
        !self.sent.is_empty()
    }

    fn first_for_relay(&self, now: Millis) -> Option<usize> {
        let mut held: BTreeSet<&Channel> = BTreeSet::new();
        self.waiting.iter().position(|message| {
            let goes = message.direct_until <= now && !held.contains(&message.channel);
            if !goes {
                held.insert(&message.channel);
            }
            goes
        })
    }

    /// The peer answered; returns the caller's key.
    pub(super) fn finish(&mut self, number: u64) -> Option<u64> {
        let (key, cost) = self.sent.remove(&number)?;
        self.bytes = self.bytes.saturating_sub(cost);
        Some(key)
    }

    /// The link is gone: nobody will answer these.
    pub(super) fn link_lost(&mut self) -> Vec<u64> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_values()
            .map(|(key, cost)| {
                self.bytes = self.bytes.saturating_sub(cost);
                key
            })
            .collect()
    }

    /// Takes out those whose deadline has passed while they waited for a link.
    pub(super) fn expire(&mut self, now: Millis) -> Vec<u64> {
        let (late, waiting): (VecDeque<_>, _) = self.waiting.drain(..).partition(|m| m.deadline <= now);
        self.waiting = waiting;
        late.into_iter()
            .map(|m| {
                self.bytes = self.bytes.saturating_sub(m.content.cost());
                m.key
            })
            .collect()
    }

    /// When one may go over a relay that may not now.
    pub(super) fn next_direct(&self, now: Millis) -> Option<Millis> {
        self.waiting.iter().map(|m| m.direct_until).filter(|at| (now + 1..NEVER_RELAYED).contains(at)).min()
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.waiting.iter().map(|m| m.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_for_a_direct_link_hold_their_channel_only() {
        let mut queue = Ephemerals::default();
        for (key, channel, direct_until) in [(1, "a", 50), (2, "a", 0), (3, "b", 0), (4, "b", NEVER_RELAYED)] {
            let (content, channel) = (Content::default(), channel.into());
            queue.push(Waiting { key, channel, content, direct_until, deadline: 100 }).unwrap();
        }
        let mut keys = |now| std::iter::from_fn(|| Some(queue.pop(now)?.1.key)).collect::<Vec<_>>();
        assert_eq!(keys(Some(10)), [3]);
        assert_eq!(keys(Some(50)), [1, 2]);
        assert_eq!(keys(None), [4]);
    }
}
