//! Taking a batch of what came in.

use super::{
    seen::{Line, Remembered},
    *,
};

/// A lane while a batch goes through it.
pub(super) struct Open {
    pub(super) origin: Origin,
    pub(super) high: Seq,
    pub(super) tag: Tag,
    pub(super) gaps: Vec<(Seq, Seq)>,
    /// See [`super::seen`].
    pub(super) base: Seq,
    pub(super) known: bool,
    refused: Option<Limit>,
    outcomes: Vec<(String, bool)>,
    pub(super) stored: u64,
    pub(super) cost: u64,
    pub(super) lost: u64,
}

/// What a batch adds to an origin and its channel, under whatever numbering.
struct Ends {
    origin: Origin,
    /// Last cursor of the channel.
    last: u64,
    /// Last line of the origin's ids.
    line: u64,
    /// Lines that there are more than before.
    added: i64,
    stored: u64,
}

impl Db {
    /// Stores a batch, each lane as far as its positions are in order and
    /// limits allow, with the lanes' new state.
    ///
    /// # Errors
    /// When SQLite refuses; then nothing of the batch is stored.
    pub fn commit_inbound(&mut self, arrival: &Arrival, batch: Vec<Inbound>) -> Result<BatchDone, StoreError> {
        let mut lanes: BTreeMap<(Channel, Epoch), Open> = BTreeMap::new();
        let mut channels: BTreeMap<Channel, Ends> = BTreeMap::new();
        let mut peer_bytes = self.inbox_of(&arrival.peer)?.bytes;
        let mut done = BatchDone::default();
        for item in batch {
            let lane = match lanes.entry((item.channel.clone(), item.epoch)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => match self.open_for_batch(arrival, &item)? {
                    Ok(open) => entry.insert(open),
                    Err(limit) => entry.insert(Open::refused(limit)),
                },
            };
            if lane.refused.is_some() || item.seq != lane.high + 1 {
                continue;
            }
            let ends = channels.entry(item.channel).or_insert_with(|| Ends::of(lane.origin));
            match item.kind {
                InboundKind::Gap { to, lost, id } => {
                    if let Some(id) = id {
                        let (stored, forgotten) = self.gap_in_place_of(lane.origin.id, &id, item.epoch, lane.base)?;
                        ends.added -= i64::from(forgotten);
                        lane.outcomes.push((id, stored));
                    } else if !lost && item.seq == 1 {
                        lane.base = to;
                    }
                    lane.lost += if lost { to - item.seq + 1 } else { 0 };
                    lane.high = to;
                    lane.add_gap(item.seq, to);
                }
                InboundKind::Message { content } => {
                    let cost = content.cost();
                    if let Some(limit) = self.inbox_limit(peer_bytes, cost) {
                        lane.refused = Some(limit);
                        continue;
                    }
                    let metadata = encode_metadata(&content.metadata);
                    let sum = ContentSum::of(&content, &metadata);
                    let line = Line { epoch: item.epoch, seq: item.seq, mark: sum.mark(), stored_at: arrival.now };
                    match self.remember(key(lane.origin.id, ends.line + 1), &content.id, line, lane.base)? {
                        Remembered::Passed => {}
                        remembered => {
                            ends.line += 1;
                            ends.added += i64::from(remembered == Remembered::New);
                            ends.last += 1;
                            ends.stored += 1;
                            self.insert_inbox(arrival, lane.origin, ends.last, item.seq, &content, &metadata, &sum)?;
                            peer_bytes += cost;
                            self.inbox.bytes += cost;
                            self.inbox.messages += 1;
                            lane.stored += 1;
                            lane.cost += cost;
                            done.stored += 1;
                        }
                    }
                    lane.high = item.seq;
                }
            }
            lane.tag = item.tag;
        }
        for (name, ends) in channels {
            self.write_ends(&ends)?;
            if ends.stored > 0 {
                done.channels.insert(name, ends.last);
            }
        }
        for ((channel, epoch), lane) in lanes {
            done.lost += lane.lost;
            self.write_lane(epoch, &lane, arrival.now)?;
            let Open { high, refused, outcomes, .. } = lane;
            done.lanes.push(BatchLane { channel, epoch, high, refused, outcomes });
        }
        Ok(done)
    }

    fn open_for_batch(&self, arrival: &Arrival, item: &Inbound) -> Result<Result<Open, Limit>, StoreError> {
        let origin = match self.origin(&arrival.peer, &item.channel)? {
            Some(origin) => origin,
            None => match self.create_origin(&arrival.peer, &item.channel)? {
                Some(origin) => origin,
                None => return Ok(Err(Limit::Lanes)),
            },
        };
        let open = Open::new(origin);
        Ok(Ok(match self.lane_at(origin.id, item.epoch)? {
            Some(Known { high, tag, gaps, base }) => Open { high, tag, gaps, base, known: true, ..open },
            None => open,
        }))
    }

    fn inbox_limit(&self, peer_bytes: u64, cost: u64) -> Option<Limit> {
        if self.inbox.bytes + cost > self.options.max_inbox_bytes {
            Some(Limit::Inbox)
        } else if peer_bytes + cost > self.options.max_peer_bytes {
            Some(Limit::Peer)
        } else {
            None
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what a row is made of")]
    fn insert_inbox(
        &self,
        arrival: &Arrival,
        origin: Origin,
        cursor: u64,
        seq: Seq,
        content: &Content,
        metadata: &[u8],
        sum: &ContentSum,
    ) -> Result<(), StoreError> {
        let row = key(origin.channel, cursor);
        self.connection
            .prepare_cached("INSERT INTO inbox VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)")?
            .execute(params![
                row,
                origin.id,
                seq.cast_signed(),
                arrival.wall,
                route_number(arrival.route),
                content.cost().cast_signed(),
                content.id,
                content.kind,
                content.reply_to,
                content.timestamp,
                metadata,
                &content.payload[..],
                sum.checksum(row, content.timestamp),
            ])?;
        Ok(())
    }

    fn write_ends(&mut self, ends: &Ends) -> Result<(), StoreError> {
        if ends.stored > 0 {
            self.connection
                .prepare_cached("UPDATE channel SET last = ?2 WHERE id = ?1")?
                .execute(params![ends.origin.channel, ends.last.cast_signed()])?;
        }
        if ends.stored > 0 || ends.added != 0 {
            self.connection
                .prepare_cached("UPDATE origin SET line = ?2, lines = lines + ?3 WHERE id = ?1")?
                .execute(params![ends.origin.id, ends.line.cast_signed(), ends.added])?;
            self.lines.seen = self.lines.seen.saturating_add_signed(ends.added);
            // Its first lines.
            self.lines.origins += u64::from(ends.origin.line == 0 && ends.line > 0);
            self.trim_seen(ends.origin.id, ends.origin.line, ends.line)?;
        }
        Ok(())
    }
}

impl Ends {
    fn of(origin: Origin) -> Self {
        Self { origin, last: origin.last, line: origin.line, added: 0, stored: 0 }
    }
}

impl Open {
    /// Notes a gap, joined to the one before if they touch.
    fn add_gap(&mut self, first: Seq, last: Seq) {
        match self.gaps.last_mut() {
            Some(gap) if gap.1 + 1 == first => gap.1 = last,
            _ => self.gaps.push((first, last)),
        }
        if self.gaps.len() > MAX_GAPS {
            self.gaps.remove(0);
        }
    }

    fn new(origin: Origin) -> Self {
        Self {
            origin,
            high: 0,
            tag: 0,
            gaps: Vec::new(),
            base: 0,
            known: false,
            refused: None,
            outcomes: Vec::new(),
            stored: 0,
            cost: 0,
            lost: 0,
        }
    }

    fn refused(limit: Limit) -> Self {
        Self { refused: Some(limit), ..Self::new(Origin { id: 0, channel: 0, last: 0, line: 0 }) }
    }
}
