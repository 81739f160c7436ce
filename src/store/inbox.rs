//! Messages that came in and that apps have not consumed.

use std::collections::BTreeMap;

use libp2p::PeerId;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Db, Fill, Reader, StoreError,
    outbox::peer,
    row::{checksum, content, encode_metadata, key, position},
};
use crate::{
    protocol::{Accepted, BatchLane, Inbound, InboundKind, MAX_OPEN_LANES, Millis},
    types::{Channel, Content, Epoch, Route, Seq, Tag},
    wire::{Limit, MAX_EPOCHS, MAX_GAPS},
};

/// Numberings kept per origin: a sender that is restored returns to an old one.
const KEPT_EPOCHS: i64 = MAX_EPOCHS as i64 + 1;
/// Pairs of sender and channel in all; with trust open to all, anyone could
/// make the table grow.
const MAX_ORIGINS: i64 = 200_000;
/// Channels in all; a bound on what trusted peers can make this node keep.
const MAX_CHANNELS: i64 = 100_000;
/// How long ids are remembered at least.
const KEEP_MS: Millis = 24 * 60 * 60 * 1000;
/// Longest that ids are remembered: the largest time to live.
const MAX_KEEP_MS: Millis = 365 * 24 * 60 * 60 * 1000;

/// Where and when a batch came in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The sender.
    pub peer: PeerId,
    /// How its link runs.
    pub route: Route,
    /// Store time.
    pub now: Millis,
    /// Unix milliseconds.
    pub wall: i64,
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct BatchDone {
    /// Each lane of the batch.
    pub lanes: Vec<BatchLane>,
    /// Channels with something new to read, and up to which cursor.
    pub channels: BTreeMap<Channel, u64>,
    /// Messages that were stored.
    pub stored: u64,
    /// Messages lost by a restore, per channel.
    pub lost: u64,
}

/// A message in the inbox.
#[derive(Debug, Clone, PartialEq)]
pub struct InboxRow {
    /// Position in the inbox of its channel.
    pub cursor: u64,
    /// The sender.
    pub peer: PeerId,
    /// Position in the sender's lane.
    pub seq: Seq,
    /// Unix milliseconds.
    pub received_at: i64,
    /// How it came.
    pub route: Option<Route>,
    /// The message.
    pub content: Content,
}

/// Rows read for a consumer.
#[derive(Debug, Default)]
pub struct InboxPage {
    /// In order.
    pub rows: Vec<InboxRow>,
    /// The row after them does not match its checksum.
    pub damaged: Option<u64>,
}

/// A lane while a batch goes through it.
struct Open {
    origin: Origin,
    high: Seq,
    tag: Tag,
    gaps: Vec<(Seq, Seq)>,
    known: bool,
    refused: Option<Limit>,
    outcomes: Vec<(String, bool)>,
    stored: u64,
    cost: u64,
    lost: u64,
}

#[derive(Clone, Copy)]
struct Origin {
    id: i64,
    channel: i64,
    last: u64,
}

fn route_number(route: Route) -> i64 {
    match route {
        Route::Lan => 1,
        Route::Direct => 2,
        Route::Relayed => 3,
    }
}

fn route_from(number: i64) -> Option<Route> {
    [Route::Lan, Route::Direct, Route::Relayed].into_iter().find(|route| route_number(*route) == number)
}

impl Db {
    /// Where a lane stands; `Err` names the limit that keeps it from being
    /// opened.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn open_lane(
        &self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        previous: &[(Epoch, Seq)],
    ) -> Result<Result<Accepted, Limit>, StoreError> {
        let Some(origin) = self.origin(peer, channel)? else {
            return Ok(if self.may_add_origin(peer)? { Ok(unknown_lane()) } else { Err(Limit::Lanes) });
        };
        if let Some(lane) = self.lane_at(origin.id, epoch)? {
            return Ok(Ok(lane));
        }
        let mut best = unknown_lane();
        for (index, (epoch, upto)) in previous.iter().enumerate() {
            let Some(Accepted { high, tag, gaps, .. }) = self.lane_at(origin.id, *epoch)? else { continue };
            if index == 0 {
                best = Accepted { inherited: high, tag, gaps, ..best };
            }
            best.floor = best.floor.max(high.min(*upto));
        }
        Ok(Ok(best))
    }

    fn origin(&self, peer: &PeerId, channel: &str) -> Result<Option<Origin>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT o.id, c.id, c.last FROM channel c JOIN origin o ON o.channel = c.id \
                 WHERE c.name = ?2 AND o.peer = ?1",
            )?
            .query_row(params![peer.to_bytes(), channel], |row| {
                Ok(Origin { id: row.get(0)?, channel: row.get(1)?, last: row.get::<_, i64>(2)?.cast_unsigned() })
            })
            .optional()?)
    }

    fn may_add_origin(&self, peer: &PeerId) -> Result<bool, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM origin WHERE peer = ?1), (SELECT count(*) FROM origin), \
                   (SELECT count(*) FROM channel)";
        let (of_peer, origins, channels) =
            self.connection.prepare_cached(sql)?.query_row([peer.to_bytes()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })?;
        Ok(of_peer < MAX_OPEN_LANES as i64 && origins < MAX_ORIGINS && channels < MAX_CHANNELS)
    }

    fn lane_at(&self, origin: i64, epoch: Epoch) -> Result<Option<Accepted>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT high, tag, gaps FROM in_lane WHERE origin = ?1 AND epoch = ?2")?
            .query_row([origin, epoch.cast_signed()], |row| {
                Ok(Accepted {
                    high: row.get::<_, i64>(0)?.cast_unsigned(),
                    tag: row.get::<_, i64>(1)?.cast_unsigned(),
                    gaps: decode_gaps(row.get_ref(2)?.as_blob()?),
                    inherited: 0,
                    floor: 0,
                })
            })
            .optional()?)
    }

    /// The number of a channel and its last cursor; made if new.
    pub(super) fn channel(&self, name: &str) -> Result<(i64, u64), StoreError> {
        self.connection.prepare_cached("INSERT OR IGNORE INTO channel (name) VALUES (?1)")?.execute([name])?;
        Ok(self
            .connection
            .prepare_cached("SELECT id, last FROM channel WHERE name = ?1")?
            .query_row([name], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?)
    }

    fn create_origin(&self, peer: &PeerId, channel: &str) -> Result<Origin, StoreError> {
        let (number, last) = self.channel(channel)?;
        self.connection
            .prepare_cached("INSERT INTO origin (peer, channel) VALUES (?1, ?2)")?
            .execute(params![peer.to_bytes(), number])?;
        Ok(Origin { id: self.connection.last_insert_rowid(), channel: number, last })
    }

    /// Stores a batch, each lane as far as its positions are in order and
    /// limits allow, with the lanes' new state.
    ///
    /// # Errors
    /// When SQLite refuses; then nothing of the batch is stored.
    pub fn commit_inbound(&mut self, arrival: &Arrival, batch: Vec<Inbound>) -> Result<BatchDone, StoreError> {
        let mut lanes: BTreeMap<(Channel, Epoch), Open> = BTreeMap::new();
        let mut channels: BTreeMap<Channel, u64> = BTreeMap::new();
        let mut peer_bytes = self.inbox_of(&arrival.peer)?.bytes;
        let mut stored = 0;
        for item in batch {
            let lane = match lanes.entry((item.channel.clone(), item.epoch)) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => match self.open_for_batch(arrival, &item)? {
                    Ok(open) => entry.insert(open),
                    Err(limit) => entry.insert(Open::refused(limit)),
                },
            };
            if lane.refused.is_some() || item.seq != lane.high + 1 {
                continue;
            }
            match item.kind {
                InboundKind::Gap { to, lost, id } => {
                    if let Some(id) = id {
                        let stored = self.has_seen(lane.origin.id, &id)?;
                        lane.outcomes.push((id, stored));
                    }
                    lane.lost += if lost { to - item.seq + 1 } else { 0 };
                    lane.high = to;
                    lane.add_gap(item.seq, to);
                }
                InboundKind::Message { content, ttl_left_ms } => {
                    let cost = content.cost();
                    if let Some(limit) = self.inbox_limit(peer_bytes, cost) {
                        lane.refused = Some(limit);
                        continue;
                    }
                    let keep = arrival.now.saturating_add(ttl_left_ms.clamp(KEEP_MS, MAX_KEEP_MS));
                    if self.remember(lane.origin.id, &content.id, keep)? {
                        let last = channels.entry(item.channel).or_insert(lane.origin.last);
                        *last += 1;
                        self.insert_inbox(arrival, lane.origin, *last, item.seq, &content, cost)?;
                        peer_bytes += cost;
                        self.inbox.bytes += cost;
                        self.inbox.messages += 1;
                        lane.stored += 1;
                        lane.cost += cost;
                        stored += 1;
                    }
                    lane.high = item.seq;
                }
            }
            lane.tag = item.tag;
        }
        let mut done = BatchDone { stored, ..BatchDone::default() };
        for (name, last) in &channels {
            self.connection
                .prepare_cached("UPDATE channel SET last = ?2 WHERE name = ?1")?
                .execute(params![&**name, last.cast_signed()])?;
        }
        done.channels = channels;
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
            None if self.may_add_origin(&arrival.peer)? => self.create_origin(&arrival.peer, &item.channel)?,
            None => return Ok(Err(Limit::Lanes)),
        };
        let known = self.lane_at(origin.id, item.epoch)?;
        let is_known = known.is_some();
        let Accepted { high, tag, gaps, .. } = known.unwrap_or_else(unknown_lane);
        Ok(Ok(Open { high, tag, gaps, known: is_known, ..Open::new(origin) }))
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

    /// Remembers an id; says whether it is new.
    fn remember(&self, origin: i64, id: &str, keep_until: Millis) -> Result<bool, StoreError> {
        let added = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO seen VALUES (?1, ?2, ?3)")?
            .execute(params![id, origin, keep_until.cast_signed()])?;
        Ok(added == 1)
    }

    fn has_seen(&self, origin: i64, id: &str) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM seen WHERE id = ?1 AND origin = ?2)")?
            .query_row(params![id, origin], |row| row.get(0))?)
    }

    /// Whether a message of this id was ever stored, as far back as ids are
    /// remembered.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn was_stored(&self, peer: &PeerId, channel: &str, id: &str) -> Result<bool, StoreError> {
        match self.origin(peer, channel)? {
            Some(origin) => self.has_seen(origin.id, id),
            None => Ok(false),
        }
    }

    fn insert_inbox(
        &self,
        arrival: &Arrival,
        origin: Origin,
        cursor: u64,
        seq: Seq,
        content: &Content,
        cost: u64,
    ) -> Result<(), StoreError> {
        let row = key(origin.channel, cursor);
        let metadata = encode_metadata(&content.metadata);
        self.connection
            .prepare_cached("INSERT INTO inbox VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)")?
            .execute(params![
                row,
                origin.id,
                seq.cast_signed(),
                arrival.wall,
                route_number(arrival.route),
                cost.cast_signed(),
                content.id,
                content.kind,
                content.reply_to,
                content.timestamp,
                metadata,
                &content.payload[..],
                checksum(row, content, &metadata),
            ])?;
        Ok(())
    }

    fn write_lane(&self, epoch: Epoch, lane: &Open, now: Millis) -> Result<(), StoreError> {
        if lane.high == 0 {
            return Ok(()); // Refused before anything of it was stored.
        }
        let origin = lane.origin.id;
        self.connection
            .prepare_cached(
                "INSERT INTO in_lane VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                 ON CONFLICT DO UPDATE SET high = excluded.high, tag = excluded.tag, gaps = excluded.gaps",
            )?
            .execute(params![
                origin,
                epoch.cast_signed(),
                lane.high.cast_signed(),
                lane.tag.cast_signed(),
                encode_gaps(&lane.gaps),
                now.cast_signed()
            ])?;
        self.connection
            .prepare_cached("UPDATE origin SET bytes=bytes+?2, messages=messages+?3, lost=lost+?4 WHERE id=?1")?
            .execute(params![origin, lane.cost.cast_signed(), lane.stored.cast_signed(), lane.lost.cast_signed()])?;
        if !lane.known {
            self.connection.execute(
                "DELETE FROM in_lane WHERE origin = ?1 AND epoch NOT IN \
                 (SELECT epoch FROM in_lane WHERE origin = ?1 ORDER BY epoch = ?3 DESC, opened DESC LIMIT ?2)",
                params![origin, KEPT_EPOCHS, epoch.cast_signed()],
            )?;
        }
        Ok(())
    }

    /// What one peer has in the inbox.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn inbox_of(&self, peer: &PeerId) -> Result<Fill, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT ifnull(sum(messages), 0), ifnull(sum(bytes), 0) FROM origin WHERE peer = ?1")?
            .query_row([peer.to_bytes()], |row| {
                Ok(Fill {
                    messages: row.get::<_, i64>(0)?.cast_unsigned(),
                    bytes: row.get::<_, i64>(1)?.cast_unsigned(),
                })
            })?)
    }

    /// Messages lost by restores, as counted on both halves of the store.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn lost_by_restore(&self) -> Result<u64, StoreError> {
        let sql = "SELECT (SELECT ifnull(sum(lost), 0) FROM origin) + (SELECT ifnull(sum(lost), 0) FROM out_lane)";
        let lost: i64 = self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(lost.cast_unsigned())
    }

    /// Drops rows that every consumer of a channel is done with.
    pub(super) fn drop_consumed(&mut self, channel: i64, upto: u64) -> Result<bool, StoreError> {
        let range = params![key(channel, 0), key(channel, upto)];
        let freed: Vec<(i64, i64, i64)> = self
            .connection
            .prepare_cached(
                "SELECT origin, count(*), sum(cost) FROM inbox WHERE row BETWEEN ?1 AND ?2 GROUP BY origin",
            )?
            .query_map(range, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        if freed.is_empty() {
            return Ok(false);
        }
        self.connection.prepare_cached("DELETE FROM inbox WHERE row BETWEEN ?1 AND ?2")?.execute(range)?;
        for (origin, messages, bytes) in freed {
            self.connection
                .prepare_cached("UPDATE origin SET messages = messages - ?2, bytes = bytes - ?3 WHERE id = ?1")?
                .execute([origin, messages, bytes])?;
            self.inbox.messages = self.inbox.messages.saturating_sub(messages.cast_unsigned());
            self.inbox.bytes = self.inbox.bytes.saturating_sub(bytes.cast_unsigned());
        }
        Ok(true)
    }

    /// Forgets ids remembered long enough: looks at `count` lines from `after`
    /// on and returns where to go on, `None` at the end.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn forget_seen(&mut self, after: &str, count: usize, now: Millis) -> Result<Option<String>, StoreError> {
        let last: Option<String> = self
            .connection
            .prepare_cached("SELECT id FROM seen WHERE id > ?1 ORDER BY id LIMIT 1 OFFSET ?2")?
            .query_row(params![after, count as i64], |row| row.get(0))
            .optional()?;
        self.connection
            .prepare_cached("DELETE FROM seen WHERE id > ?1 AND (?2 IS NULL OR id <= ?2) AND keep_until < ?3")?
            .execute(params![after, last, now.cast_signed()])?;
        Ok(last)
    }
}

fn unknown_lane() -> Accepted {
    Accepted { high: 0, tag: 0, gaps: Vec::new(), inherited: 0, floor: 0 }
}

fn encode_gaps(gaps: &[(Seq, Seq)]) -> Vec<u8> {
    gaps.iter().flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()]).flatten().collect()
}

fn decode_gaps(bytes: &[u8]) -> Vec<(Seq, Seq)> {
    let number = |half: &[u8]| half.iter().rev().fold(0, |sum, byte| sum << 8 | Seq::from(*byte));
    bytes.chunks_exact(16).map(|gap| (number(&gap[..8]), number(&gap[8..]))).collect()
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
            known: false,
            refused: None,
            outcomes: Vec::new(),
            stored: 0,
            cost: 0,
            lost: 0,
        }
    }

    fn refused(limit: Limit) -> Self {
        Self { refused: Some(limit), ..Self::new(Origin { id: 0, channel: 0, last: 0 }) }
    }
}

impl Reader {
    /// Reads the inbox of a channel after a cursor: at most so many rows, and
    /// bytes but for the first.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn inbox(&self, channel: i64, after: u64, max_rows: usize, max_bytes: u64) -> Result<InboxPage, StoreError> {
        read_inbox(&self.connection, channel, after, max_rows, max_bytes)
    }
}

impl Db {
    /// As [`Reader::inbox`], with what is not committed yet.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn read_inbox(
        &self,
        channel: &str,
        after: u64,
        max_rows: usize,
        max_bytes: u64,
    ) -> Result<InboxPage, StoreError> {
        let (channel, _) = self.channel(channel)?;
        read_inbox(&self.connection, channel, after, max_rows, max_bytes)
    }
}

fn read_inbox(
    connection: &Connection,
    channel: i64,
    after: u64,
    max_rows: usize,
    max_bytes: u64,
) -> Result<InboxPage, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT row, seq, received_at, route, cost, o.peer, i.id, kind, reply_to, timestamp, metadata, payload, \
         checksum FROM inbox i JOIN origin o ON o.id = i.origin \
         WHERE row > ?1 AND row <= ?2 ORDER BY row LIMIT ?3",
    )?;
    let mut found = statement.query(params![key(channel, after), key(channel, u64::MAX), max_rows as i64])?;
    let (mut page, mut bytes) = (InboxPage::default(), 0);
    while let Some(row) = found.next()? {
        bytes += row.get::<_, i64>(4)?.cast_unsigned();
        if !page.rows.is_empty() && bytes > max_bytes {
            break;
        }
        let key: i64 = row.get(0)?;
        let Ok(content) = content(row, 6, key, "a message in the inbox") else {
            page.damaged = Some(position(key));
            break;
        };
        page.rows.push(InboxRow {
            cursor: position(key),
            peer: peer(&row.get::<_, Vec<u8>>(5)?)?,
            seq: row.get::<_, i64>(1)?.cast_unsigned(),
            received_at: row.get(2)?,
            route: route_from(row.get(3)?),
            content,
        });
    }
    Ok(page)
}
