//! Runs with a course of their own, of which a seed decides only the details.

use super::*;

/// More than it takes to settle, less than a day.
const TTL: u64 = 20 * 60 * 60 * 1000;
/// A day, after which ids are forgotten here, and a bit.
const WINDOW: u64 = 24 * 60 * 60 * 1000 + 60_000;
/// The id that is used over and over.
const ID: &str = "again";

impl World {
    /// As when a virtual machine's disk is set back under it: no start of the
    /// daemon makes a new epoch, so the comparison has to.
    pub(crate) fn run_with_swapped_store(mut self) -> Result<Counts, String> {
        self.quiet = true;
        for round in 0..3 {
            for _ in 0..10 {
                self.app_sends(0);
            }
            self.settle()?;
            if round == 0 {
                self.copy_store(0);
            }
            if round == 1 {
                let seed = self.rng.random();
                self.nodes[0].db = self.nodes[0].copies[0].0.copy(seed).unwrap();
                self.directions[0].sender_restored = true;
                self.break_link(0);
                self.nodes[0].ops.clear();
            }
        }
        let (ends, log) = (self.ends(0), self.log(1));
        check(&self.directions[0], &ends, &log)?;
        self.count(&ends);
        Ok(self.counts)
    }

    /// A sender that is started over and over while its peer is away.
    pub(crate) fn run_with_many_starts(mut self) -> Result<Counts, String> {
        self.quiet = true;
        for starts in [0, 9, 20] {
            for _ in 0..starts {
                self.app_sends(0);
                self.commit_all(0);
                self.crash(0);
                self.commit_all(0);
            }
            self.app_sends(0);
            self.settle()?;
        }
        let (ends, log) = (self.ends(0), self.log(1));
        check(&self.directions[0], &ends, &log)?;
        self.count(&ends);
        self.counts.lost_by_restore += self.nodes[0].db.lost_by_restore().unwrap();
        Ok(self.counts)
    }

    /// A sensor whose peer is away while nearly all that it sends expires, and
    /// whose daemon is started now and then.
    pub(crate) fn run_with_a_peer_long_away(mut self) -> Result<Counts, String> {
        self.quiet = true;
        self.app_sends(0);
        if self.rng.random_bool(0.5) {
            self.settle()?;
            self.break_link(0);
        }
        for round in 0..4 {
            for _ in 0..60 {
                let (channel, order) = (self.rng.random_range(0..CHANNELS.len()), self.next_order);
                let ttl = if self.rng.random_ratio(1, 20) { TTL } else { self.rng.random_range(1..1_000) };
                self.next_order += 1;
                self.nodes[0].ops.push_back(Op::Send { channel, size: 10, ttl, order });
            }
            self.commit_all(0);
            self.now += 1_000;
            self.nodes[0].ops.push_back(Op::Expire);
            self.commit_all(0);
            let waits = self.nodes[0].db.outbox_fill();
            if waits.bytes > (waits.messages + 20) * 256 {
                return Err(format!("what has expired takes room: {waits:?}"));
            }
            if round % 2 == 0 && self.rng.random_bool(0.5) {
                self.crash(0);
                self.commit_all(0);
            }
        }
        self.app_sends(0);
        self.settle()?;
        let (ends, log) = (self.ends(0), self.log(1));
        check(&self.directions[0], &ends, &log)?;
        self.count(&ends);
        Ok(self.counts)
    }

    /// An app that uses an id again once its node has forgotten it, for the
    /// same content and for other. The receiver's clock stands still, so that
    /// it forgets nothing. Returns how many messages were stored on one side,
    /// and have arrived on the other.
    pub(crate) fn run_with_reused_ids(mut self) -> Result<(usize, usize), String> {
        self.quiet = true;
        let rounds = 12;
        for round in 0..rounds {
            if self.rng.random_bool(0.4) {
                self.app_sends(0);
            }
            if self.rng.random_bool(0.4) {
                let node = self.rng.random_range(0..2);
                self.crash(node);
            }
            // A new machine hears of its lanes before it hears of new rows.
            self.commit_all(0);
            self.send_again(round / 3)?;
            self.settle_again().map_err(|error| format!("round {round}: {error}"))?;
            self.now += WINDOW;
            self.forget_sent(0);
        }
        let arrived = self.log(1).iter().filter(|arrived| arrived.id == ID).count();
        Ok((rounds.into(), arrived))
    }

    /// Sends a message, and once more, as an app that is not sure.
    fn send_again(&mut self, content: u8) -> Result<(), String> {
        let content = Content { id: ID.to_owned(), payload: vec![content].into(), ..Content::default() };
        let digest = content.payload.to_vec();
        let channel: p2p_node::types::Channel = CHANNELS[0].into();
        let path = PathPolicy::Any;
        let message =
            NewMessage { peer: self.nodes[1].peer, channel: channel.clone(), content, ttl_ms: TTL, path, digest };
        let node = &mut self.nodes[0];
        match node.db.enqueue(message.clone(), self.now, 0).unwrap() {
            Enqueued::New(Queued { epoch, row }) => {
                node.answers.push_back(Answer::Sender(SenderInput::Appended { channel, epoch, row }));
            }
            other => return Err(format!("the id is not forgotten: {other:?}")),
        }
        match node.db.enqueue(message, self.now, 0).unwrap() {
            Enqueued::Duplicate(_) => Ok(()),
            other => Err(format!("doubled: {other:?}")),
        }
    }

    /// What comes to rest by itself does not wait for the message.
    fn settle_again(&mut self) -> Result<(), String> {
        let mut progress = None;
        for _ in 0..20 {
            self.settle()?;
            progress = self.nodes[0].db.find_sent(ID, None, None).unwrap().pop().map(|record| record.progress);
            if progress == Some(Progress::Done(Final::Stored)) {
                return Ok(());
            }
        }
        Err(format!("{progress:?}"))
    }

    fn commit_all(&mut self, node: usize) {
        while !self.nodes[node].ops.is_empty() {
            self.commit(node);
            self.hand_answers(node);
        }
    }

    fn forget_sent(&mut self, node: usize) {
        let mut next = Some(0);
        while let Some(after) = next {
            next = self.nodes[node].db.forget_sent(after, self.now).unwrap();
        }
    }
}
