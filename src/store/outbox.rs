//! Messages on their way out.

use bytes::Bytes;
use libp2p::PeerId;
use rusqlite::{OptionalExtension as _, Row, params};

use super::{
    Db, StoreError,
    row::{checksum, content, encode_metadata, key, owner, position},
};
use crate::{
    protocol::{LaneInfo, MAX_OPEN_LANES, Millis, OutRow, Prepared, RowBody},
    types::{Channel, Content, Epoch, Seq, Tag},
    wire::{MAX_EPOCHS, MAX_GAPS},
};

/// Most channels to one peer: each is a lane on the link.
const MAX_CHANNELS: i64 = MAX_OPEN_LANES as i64;
/// Outcomes asked of a peer at a time.
const MAX_UNRESOLVED: usize = 256;
/// How long what became of a message is known at least.
const KEEP_MS: Millis = 24 * 60 * 60 * 1000;
/// Tombstones made of expired messages in one operation.
const MAX_EXPIRED: i64 = 1000;
/// Cost of a tombstone, as in [`crate::types::Content::cost`].
const TOMBSTONE_COST: i64 = 256;

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Final {
    /// On the peer's disk.
    Stored,
    /// Its time ran out first.
    Expired,
    /// It was taken back first.
    Cancelled,
    /// The peer takes at most so many bytes.
    TooLarge,
}

impl Final {
    fn number(self) -> i64 {
        match self {
            Self::Stored => 1,
            Self::Expired => 2,
            Self::Cancelled => 3,
            Self::TooLarge => 4,
        }
    }

    fn from_number(number: i64) -> Option<Self> {
        [Self::Stored, Self::Expired, Self::Cancelled, Self::TooLarge].into_iter().find(|f| f.number() == number)
    }
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Surely not seen by the peer.
    Queued,
    /// Perhaps seen by the peer.
    Sent,
    /// Not sent any more; only the peer knows whether it has it.
    Pending(Final),
    /// Finished.
    Done(Final),
}

/// A message to put into the outbox.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// The recipient.
    pub peer: PeerId,
    /// The channel.
    pub channel: Channel,
    /// The message; its id is not empty.
    pub content: Content,
    /// Time to live in milliseconds.
    pub ttl_ms: Millis,
    /// Digest of the content as the app gave it; empty when the daemon made
    /// the id, so that it cannot come twice.
    pub digest: Vec<u8>,
}

/// A message that was put into the outbox.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The numbering it is part of.
    pub epoch: Epoch,
    /// The row, ready for the link.
    pub row: OutRow,
}

/// What came of putting a message into the outbox.
#[derive(Debug)]
pub enum Enqueued {
    /// It is there.
    New(Queued),
    /// It was there before, with the same content.
    Duplicate(SentRecord),
    /// Its id was used for other content.
    Conflict,
    /// A limit refuses it.
    Full(OutboxLimit),
}

/// A limit of the outbox that was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimit {
    /// The setting's name.
    pub limit: &'static str,
    /// In use now.
    pub used: u64,
    /// Allowed.
    pub max: u64,
}

/// What is known of a message that was sent from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRecord {
    /// The message's id.
    pub id: String,
    /// The recipient.
    pub peer: PeerId,
    /// The channel.
    pub channel: Channel,
    /// The present numbering of its lane.
    pub epoch: Epoch,
    /// Position in it.
    pub seq: Seq,
    /// Where it stands.
    pub progress: Progress,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// Unix milliseconds.
    pub queued_at: i64,
    /// Store time at which it expires; `None` once finished.
    pub expires_at: Option<Millis>,
}

/// A row that became a tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buried {
    /// The recipient.
    pub peer: PeerId,
    /// The channel.
    pub channel: Channel,
    /// The numbering.
    pub epoch: Epoch,
    /// The position.
    pub seq: Seq,
    /// The message's id.
    pub id: String,
}

/// Where a page of unfinished messages begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageStart(pub i64);

#[derive(Debug, Clone, Copy)]
struct LaneRow {
    id: i64,
    epoch: Epoch,
    acked: Seq,
    acked_tag: Tag,
    last: Seq,
    exposed: Seq,
}

impl LaneRow {
    const COLUMNS: &str = "id, epoch, acked, acked_tag, last, exposed";

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
        Ok(Self {
            id: row.get(0)?,
            epoch: number(1)?,
            acked: number(2)?,
            acked_tag: number(3)?,
            last: number(4)?,
            exposed: number(5)?,
        })
    }
}

const SENT: &str = "SELECT s.id, l.peer, l.channel, l.epoch, s.seq, s.final, s.pending, s.payload_bytes, s.queued_at, \
                    l.acked, l.exposed, o.expires_at, s.digest \
                    FROM sent s JOIN out_lane l ON l.id = s.lane \
                    LEFT JOIN outbox o ON o.row = (l.id << 40 | s.seq) AND o.id = s.id AND o.buried = 0";

fn sent_record(row: &Row<'_>) -> rusqlite::Result<(SentRecord, Vec<u8>)> {
    let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
    let (seq, acked, exposed) = (number(4)?, number(9)?, number(10)?);
    let progress = match (Final::from_number(row.get(5)?), Final::from_number(row.get(6)?)) {
        (Some(done), _) => Progress::Done(done),
        (None, Some(pending)) => Progress::Pending(pending),
        (None, None) if seq <= acked => Progress::Done(Final::Stored),
        (None, None) if seq <= exposed => Progress::Sent,
        (None, None) => Progress::Queued,
    };
    let record = SentRecord {
        id: row.get(0)?,
        peer: peer(&row.get::<_, Vec<u8>>(1)?)?,
        channel: row.get::<_, String>(2)?.into(),
        epoch: number(3)?,
        seq,
        progress,
        payload_bytes: number(7)?,
        queued_at: row.get(8)?,
        expires_at: row.get::<_, Option<i64>>(11)?.map(i64::cast_unsigned),
    };
    Ok((record, row.get(12)?))
}

const LANE_INFO: &str = "SELECT channel, epoch, acked, last, \
                         EXISTS (SELECT 1 FROM sent s WHERE s.lane = l.id AND s.pending != 0), previous \
                         FROM out_lane l WHERE peer = ?1 AND (?2 IS NULL OR channel = ?2)";

fn lane_info(row: &Row<'_>) -> rusqlite::Result<LaneInfo> {
    Ok(LaneInfo {
        channel: row.get::<_, String>(0)?.into(),
        epoch: row.get::<_, i64>(1)?.cast_unsigned(),
        acked: row.get::<_, i64>(2)?.cast_unsigned(),
        last: row.get::<_, i64>(3)?.cast_unsigned(),
        unresolved: row.get(4)?,
        previous: decode_epochs(row.get_ref(5)?.as_blob()?),
    })
}

fn encode_epochs(epochs: &[(Epoch, Seq)]) -> Vec<u8> {
    epochs.iter().flat_map(|(epoch, upto)| [epoch.to_le_bytes(), upto.to_le_bytes()]).flatten().collect()
}

fn decode_epochs(bytes: &[u8]) -> Vec<(Epoch, Seq)> {
    let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number)).collect();
    numbers.as_chunks::<2>().0.iter().map(|[epoch, upto]| (*epoch, *upto)).collect()
}

/// A peer id from its bytes.
pub(super) fn peer(bytes: &[u8]) -> rusqlite::Result<PeerId> {
    PeerId::from_bytes(bytes)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(error)))
}

impl Db {
    fn lane(&self, peer: &PeerId, channel: &str) -> Result<Option<LaneRow>, StoreError> {
        let sql = format!("SELECT {} FROM out_lane WHERE peer = ?1 AND channel = ?2", LaneRow::COLUMNS);
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row(params![peer.to_bytes(), channel], LaneRow::read).optional()?)
    }

    /// The lane, if it is in this epoch.
    fn lane_in(&self, peer: &PeerId, channel: &str, epoch: Epoch) -> Result<Option<LaneRow>, StoreError> {
        Ok(self.lane(peer, channel)?.filter(|lane| lane.epoch == epoch))
    }

    /// Puts a message into the outbox, at the end of its lane. `now` is store
    /// time, `wall` Unix milliseconds.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn enqueue(&mut self, message: NewMessage, now: Millis, wall: i64) -> Result<Enqueued, StoreError> {
        let NewMessage { peer, channel, content, ttl_ms, digest } = message;
        let lane = self.lane(&peer, &channel)?;
        if let Some(lane) = lane
            && !digest.is_empty()
            && let Some((record, known)) = self.sent(lane.id, &content.id)?
        {
            return Ok(if known == digest { Enqueued::Duplicate(record) } else { Enqueued::Conflict });
        }
        let cost = content.cost();
        if let Some(limit) = self.outbox_limit(&peer, lane.is_none(), cost)? {
            return Ok(Enqueued::Full(limit));
        }
        let lane = match lane {
            Some(lane) => lane,
            None => self.create_lane(&peer, &channel)?,
        };
        let (seq, tag) = (lane.last + 1, self.random());
        let row = key(lane.id, seq);
        let expires_at = now.saturating_add(ttl_ms);
        let metadata = encode_metadata(&content.metadata);
        self.connection.prepare_cached("INSERT INTO outbox VALUES (?1,?2,0,?3,?4,?5,?6,?7,?8,?9,?10,?11)")?.execute(
            params![
                row,
                tag.cast_signed(),
                expires_at.cast_signed(),
                cost.cast_signed(),
                content.id,
                content.kind,
                content.reply_to,
                content.timestamp,
                metadata,
                &content.payload[..],
                checksum(row, &content, &metadata),
            ],
        )?;
        self.connection.prepare_cached("INSERT OR REPLACE INTO sent VALUES (?1,?2,?3,?4,0,0,?5,?6,?7)")?.execute(
            params![
                content.id,
                lane.id,
                seq.cast_signed(),
                digest,
                content.payload.len() as i64,
                wall,
                now.saturating_add(ttl_ms.max(KEEP_MS)).cast_signed(),
            ],
        )?;
        let exposed = if self.live.contains(&lane.id) { seq } else { lane.exposed };
        self.connection
            .prepare_cached("UPDATE out_lane SET last=?2, exposed=?3, bytes=bytes+?4, messages=messages+1 WHERE id=?1")?
            .execute(params![lane.id, seq.cast_signed(), exposed.cast_signed(), cost.cast_signed()])?;
        self.outbox.messages += 1;
        self.outbox.bytes += cost;
        let row = OutRow { seq, tag, expires_at, body: RowBody::Message(content) };
        Ok(Enqueued::New(Queued { epoch: lane.epoch, row }))
    }

    fn create_lane(&mut self, peer: &PeerId, channel: &str) -> Result<LaneRow, StoreError> {
        let epoch = self.random();
        self.connection
            .prepare_cached("INSERT INTO out_lane (peer, channel, epoch) VALUES (?1, ?2, ?3)")?
            .execute(params![peer.to_bytes(), channel, epoch.cast_signed()])?;
        let id = self.connection.last_insert_rowid();
        Ok(LaneRow { id, epoch, acked: 0, acked_tag: 0, last: 0, exposed: 0 })
    }

    fn outbox_limit(&self, peer: &PeerId, new_lane: bool, cost: u64) -> Result<Option<OutboxLimit>, StoreError> {
        let (used, lanes) = self
            .connection
            .prepare_cached("SELECT ifnull(sum(bytes), 0), count(*) FROM out_lane WHERE peer = ?1")?
            .query_row([peer.to_bytes()], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?)))?;
        if self.outbox.bytes + cost > self.options.max_outbox_bytes {
            let (used, max) = (self.outbox.bytes, self.options.max_outbox_bytes);
            return Ok(Some(OutboxLimit { limit: "max_outbox_bytes", used, max }));
        }
        if used + cost > self.options.max_peer_bytes {
            return Ok(Some(OutboxLimit { limit: "max_peer_bytes", used, max: self.options.max_peer_bytes }));
        }
        if new_lane && lanes >= MAX_CHANNELS {
            let max = MAX_CHANNELS.cast_unsigned();
            return Ok(Some(OutboxLimit { limit: "channels_per_peer", used: lanes.cast_unsigned(), max }));
        }
        Ok(None)
    }

    fn sent(&self, lane: i64, id: &str) -> Result<Option<(SentRecord, Vec<u8>)>, StoreError> {
        let sql = format!("{SENT} WHERE s.id = ?1 AND s.lane = ?2");
        Ok(self.connection.prepare_cached(&sql)?.query_row(params![id, lane], sent_record).optional()?)
    }

    /// All messages of this id, of these peers and channels if given: more
    /// than one when the id is not unique; at most two are returned.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn find_sent(
        &self,
        id: &str,
        peer: Option<&PeerId>,
        channel: Option<&str>,
    ) -> Result<Vec<SentRecord>, StoreError> {
        let sql = format!(
            "{SENT} WHERE s.id = ?1 AND (?2 IS NULL OR l.peer = ?2) AND (?3 IS NULL OR l.channel = ?3) LIMIT 2"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![id, peer.map(|peer| peer.to_bytes()), channel], sent_record)?;
        Ok(rows.map(|row| row.map(|(record, _)| record)).collect::<Result<_, _>>()?)
    }

    /// A page of unfinished messages, oldest first per lane, and where the next
    /// one begins.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn list_outbox(
        &self,
        peer: Option<&PeerId>,
        channel: Option<&str>,
        start: PageStart,
        size: usize,
    ) -> Result<(Vec<SentRecord>, Option<PageStart>), StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT o.row, o.id FROM outbox o JOIN out_lane l ON l.id = o.row >> 40 \
             WHERE o.row > ?1 AND o.row & ((1 << 40) - 1) > l.acked \
             AND (?2 IS NULL OR l.peer = ?2) AND (?3 IS NULL OR l.channel = ?3) ORDER BY o.row LIMIT ?4",
        )?;
        let rows: Vec<(i64, String)> = statement
            .query_map(params![start.0, peer.map(|peer| peer.to_bytes()), channel, size as i64 + 1], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect::<Result<_, _>>()?;
        let next = (rows.len() > size).then(|| PageStart(rows[size - 1].0));
        let mut records = Vec::new();
        for (row, id) in rows.into_iter().take(size) {
            if let Some((record, _)) = self.sent(owner(row), &id)?
                && !matches!(record.progress, Progress::Done(_))
            {
                records.push(record);
            }
        }
        Ok((records, next))
    }

    /// All lanes to a peer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn lanes_to(&self, peer: &PeerId) -> Result<Vec<LaneInfo>, StoreError> {
        let mut statement = self.connection.prepare_cached(LANE_INFO)?;
        let rows = statement.query_map(params![peer.to_bytes(), None::<&str>], lane_info)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn lane_info(&self, peer: &PeerId, channel: &str) -> Result<Option<LaneInfo>, StoreError> {
        let mut statement = self.connection.prepare_cached(LANE_INFO)?;
        Ok(statement.query_row(params![peer.to_bytes(), channel], lane_info).optional()?)
    }

    /// Peers that have something to hear.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn waiting_peers(&self) -> Result<Vec<PeerId>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT DISTINCT peer FROM out_lane l WHERE last > acked \
             OR EXISTS (SELECT 1 FROM sent s WHERE s.lane = l.id AND s.pending != 0)",
        )?;
        let rows = statement.query_map([], |row| peer(&row.get::<_, Vec<u8>>(0)?))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Messages and bytes that wait, and messages lost by a restore, per peer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn outbox_by_peer(&self) -> Result<Vec<(PeerId, super::Fill, u64)>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT peer, sum(messages), sum(bytes), sum(lost) FROM out_lane GROUP BY peer")?;
        let rows = statement.query_map([], |row| {
            let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            let fill = super::Fill { messages: number(1)?, bytes: number(2)? };
            Ok((peer(&row.get::<_, Vec<u8>>(0)?)?, fill, number(3)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// See [`crate::protocol::SenderEffect::Prepare`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn prepare_lane(
        &mut self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        high: Seq,
        gaps: &[(Seq, Seq)],
    ) -> Result<Option<Prepared>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return Ok(None) };
        self.live.insert(lane.id);
        if lane.exposed < lane.last {
            self.connection.prepare_cached("UPDATE out_lane SET exposed = last WHERE id = ?1")?.execute([lane.id])?;
        }
        let tag_at = self
            .connection
            .prepare_cached("SELECT tag FROM outbox WHERE row = ?1")?
            .query_row([key(lane.id, high)], |row| row.get::<_, i64>(0))
            .optional()?
            .filter(|_| high > lane.acked && high <= lane.last)
            .map(i64::cast_unsigned);
        let mut unresolved: Vec<String> = self
            .connection
            .prepare_cached("SELECT id FROM sent WHERE lane = ?1 AND pending != 0 AND seq <= ?2 ORDER BY seq LIMIT ?3")?
            .query_map(
                params![lane.id, lane.acked.max(high).min(lane.last).cast_signed(), MAX_UNRESOLVED as i64 + 1],
                |row| row.get(0),
            )?
            .collect::<Result<_, _>>()?;
        let more_unresolved = unresolved.len() > MAX_UNRESOLVED;
        unresolved.truncate(MAX_UNRESOLVED);
        let LaneRow { acked, acked_tag, last, .. } = lane;
        let gap_is_message = self.gap_is_message(&lane, high, gaps)?;
        Ok(Some(Prepared { acked, acked_tag, last, tag_at, gap_is_message, unresolved, more_unresolved }))
    }

    /// Whether the peer was told to skip what is a message here, as far as it
    /// remembers; when it may have forgotten, the answer is yes, because a
    /// renumbering is safe where a wrong comparison is not.
    fn gap_is_message(&self, lane: &LaneRow, high: Seq, gaps: &[(Seq, Seq)]) -> Result<bool, StoreError> {
        if gaps.len() >= MAX_GAPS && gaps.first().is_some_and(|(first, _)| *first > lane.acked + 1) {
            return Ok(true);
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM outbox WHERE row BETWEEN ?1 AND ?2 AND buried = 0)")?;
        for &(first, last) in gaps {
            let (first, last) = (first.max(lane.acked + 1), last.min(high).min(lane.last));
            if first <= last && statement.query_row([key(lane.id, first), key(lane.id, last)], |row| row.get(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// See [`crate::protocol::SenderEffect::Hide`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn hide_lanes(&mut self, peer: &PeerId) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT id FROM out_lane WHERE peer = ?1")?;
        for id in statement.query_map([peer.to_bytes()], |row| row.get(0))? {
            self.live.remove(&id?);
        }
        Ok(())
    }

    /// Reads rows of a lane. A row that fails its checksum comes back as a
    /// tombstone, is one from now on, and is logged.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn load_rows(
        &mut self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        from: Seq,
        max_bytes: u64,
        max_rows: usize,
    ) -> Result<Vec<OutRow>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return Ok(Vec::new()) };
        let (rows, damaged) = self.read_rows(&lane, from, max_bytes, max_rows)?;
        for id in damaged {
            tracing::error!(%peer, channel, id, "a queued message is damaged on disk and cannot be sent");
            self.bury(&lane, &id, Final::Expired)?;
        }
        Ok(rows)
    }

    fn read_rows(
        &self,
        lane: &LaneRow,
        from: Seq,
        max_bytes: u64,
        max_rows: usize,
    ) -> Result<(Vec<OutRow>, Vec<String>), StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT row, tag, buried, expires_at, cost, id, kind, reply_to, timestamp, metadata, payload, checksum \
             FROM outbox WHERE row BETWEEN ?1 AND ?2 ORDER BY row",
        )?;
        let mut found = statement.query([key(lane.id, from.max(lane.acked + 1)), key(lane.id, lane.last)])?;
        let (mut rows, mut damaged, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(row) = found.next()? {
            if !rows.is_empty() && (bytes >= max_bytes || rows.len() >= max_rows) {
                break;
            }
            let key: i64 = row.get(0)?;
            let id: String = row.get(5)?;
            let buried: i64 = row.get(2)?;
            let body = if buried == 0 {
                match content(row, 5, key, "a message") {
                    Ok(content) => RowBody::Message(content),
                    Err(_) => {
                        damaged.push(id.clone());
                        RowBody::Tombstone { id }
                    }
                }
            } else {
                RowBody::Tombstone { id }
            };
            bytes += row.get::<_, i64>(4)?.cast_unsigned();
            let (tag, expires_at) = (row.get::<_, i64>(1)?.cast_unsigned(), row.get::<_, i64>(3)?.cast_unsigned());
            rows.push(OutRow { seq: position(key), tag, expires_at, body });
        }
        Ok((rows, damaged))
    }

    /// See [`crate::protocol::SenderEffect::Acked`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn acked(&mut self, peer: &PeerId, channel: &str, epoch: Epoch, seq: Seq, tag: Tag) -> Result<(), StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)?.filter(|lane| lane.acked < seq && seq <= lane.last) else {
            return Ok(());
        };
        let range = params![key(lane.id, lane.acked + 1), key(lane.id, seq)];
        let (messages, bytes) = self
            .connection
            .prepare_cached(
                // A tombstone ceased to be a message when it became one.
                "SELECT count(*) FILTER (WHERE buried = 0), ifnull(sum(cost), 0) FROM outbox WHERE row BETWEEN ?1 AND ?2",
            )?
            .query_row(range, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        self.connection.prepare_cached("DELETE FROM outbox WHERE row BETWEEN ?1 AND ?2")?.execute(range)?;
        self.connection
            .prepare_cached(
                "UPDATE out_lane SET acked=?2, acked_tag=?3, bytes=bytes-?4, messages=messages-?5 WHERE id=?1",
            )?
            .execute(params![lane.id, seq.cast_signed(), tag.cast_signed(), bytes, messages])?;
        self.outbox.messages = self.outbox.messages.saturating_sub(messages.cast_unsigned());
        self.outbox.bytes = self.outbox.bytes.saturating_sub(bytes.cast_unsigned());
        Ok(())
    }

    /// See [`crate::protocol::SenderEffect::Resolved`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn resolved(&mut self, peer: &PeerId, channel: &str, id: &str, stored: bool) -> Result<(), StoreError> {
        let Some(lane) = self.lane(peer, channel)? else { return Ok(()) };
        self.connection
            .prepare_cached(
                "UPDATE sent SET final = iif(?3, ?4, pending), pending = 0 WHERE id = ?1 AND lane = ?2 AND pending != 0",
            )?
            .execute(params![id, lane.id, stored, Final::Stored.number()])?;
        Ok(())
    }

    /// See [`crate::protocol::SenderEffect::Lost`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn count_lost(&mut self, peer: &PeerId, channel: &str, count: u64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE out_lane SET lost = lost + ?3 WHERE peer = ?1 AND channel = ?2")?
            .execute(params![peer.to_bytes(), channel, count.cast_signed()])?;
        Ok(())
    }

    /// See [`crate::protocol::SenderEffect::Renumber`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn renumber(&mut self, peer: &PeerId, channel: &str, epoch: Epoch) -> Result<Option<LaneInfo>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return self.lane_info(peer, channel) };
        self.mint(lane.id)?;
        self.connection.prepare_cached("UPDATE out_lane SET exposed = last WHERE id = ?1")?.execute([lane.id])?;
        self.live.remove(&lane.id);
        self.lane_info(peer, channel)
    }

    /// Gives a lane a new epoch and remembers the one it leaves.
    fn mint(&mut self, lane: i64) -> Result<(), StoreError> {
        let (left, mut previous) = self
            .connection
            .prepare_cached("SELECT epoch, acked, previous FROM out_lane WHERE id = ?1")?
            .query_row([lane], |row| {
                let left = (row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned());
                Ok((left, decode_epochs(row.get_ref(2)?.as_blob()?)))
            })?;
        previous.insert(0, left);
        previous.truncate(MAX_EPOCHS);
        let (fresh, previous) = (self.random(), encode_epochs(&previous));
        self.connection
            .prepare_cached("UPDATE out_lane SET epoch = ?2, previous = ?3 WHERE id = ?1")?
            .execute(params![lane, fresh.cast_signed(), previous])?;
        Ok(())
    }

    /// Gives every lane a new epoch: at each start of the daemon, so that what
    /// it writes is never taken for what another run wrote from the same copy
    /// of the store.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn mint_epochs(&mut self) -> Result<(), StoreError> {
        let lanes: Vec<i64> = self
            .connection
            .prepare("SELECT id FROM out_lane WHERE last > 0")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        lanes.into_iter().try_for_each(|lane| self.mint(lane))
    }

    /// See [`crate::protocol::SenderEffect::Reject`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn reject(
        &mut self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        seq: Seq,
    ) -> Result<Option<Buried>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return Ok(None) };
        let id: Option<String> = self
            .connection
            .prepare_cached("SELECT id FROM outbox WHERE row = ?1")?
            .query_row([key(lane.id, seq)], |row| row.get(0))
            .optional()?;
        let Some(id) = id else { return Ok(None) };
        self.bury(&lane, &id, Final::TooLarge)?;
        Ok(Some(Buried { peer: *peer, channel: channel.into(), epoch, seq, id }))
    }

    /// Takes a message back. Returns what is known of it after that, and the
    /// row that became a tombstone, if one did.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn cancel(&mut self, record: &SentRecord) -> Result<(Option<SentRecord>, Option<Buried>), StoreError> {
        let Some(lane) = self.lane(&record.peer, &record.channel)? else { return Ok((None, None)) };
        let buried = self.bury(&lane, &record.id, Final::Cancelled)?.map(|seq| Buried {
            peer: record.peer,
            channel: record.channel.clone(),
            epoch: lane.epoch,
            seq,
            id: record.id.clone(),
        });
        Ok((self.sent(lane.id, &record.id)?.map(|(record, _)| record), buried))
    }

    /// Makes tombstones of messages whose time has run out: a bounded number.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn expire(&mut self, now: Millis) -> Result<Vec<Buried>, StoreError> {
        let due: Vec<(i64, String)> = self
            .connection
            .prepare_cached("SELECT row, id FROM outbox WHERE buried = 0 AND expires_at <= ?1 LIMIT ?2")?
            .query_map([now.cast_signed(), MAX_EXPIRED], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut buried = Vec::new();
        for (row, id) in due {
            let sql = format!("SELECT {}, peer, channel FROM out_lane WHERE id = ?1", LaneRow::COLUMNS);
            let (lane, peer, channel) = self.connection.prepare_cached(&sql)?.query_row([owner(row)], |row| {
                Ok((LaneRow::read(row)?, peer(&row.get::<_, Vec<u8>>(6)?)?, row.get::<_, String>(7)?))
            })?;
            if let Some(seq) = self.bury(&lane, &id, Final::Expired)? {
                buried.push(Buried { peer, channel: channel.into(), epoch: lane.epoch, seq, id });
            }
        }
        Ok(buried)
    }

    /// When the next message expires.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn next_expiry(&self) -> Result<Option<Millis>, StoreError> {
        let next: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(expires_at) FROM outbox WHERE buried = 0")?
            .query_row([], |row| row.get(0))?;
        Ok(next.map(i64::cast_unsigned))
    }

    /// Makes a tombstone of a message that waits; its position, if it was one.
    /// Its outcome is final only if the peer cannot have seen it.
    fn bury(&mut self, lane: &LaneRow, id: &str, why: Final) -> Result<Option<Seq>, StoreError> {
        let Some((record, _)) = self.sent(lane.id, id)? else { return Ok(None) };
        if !matches!(record.progress, Progress::Queued | Progress::Sent) {
            return Ok(None);
        }
        let row = key(lane.id, record.seq);
        let cost: Option<i64> = self
            .connection
            .prepare_cached("SELECT cost FROM outbox WHERE row = ?1 AND buried = 0")?
            .query_row([row], |row| row.get(0))
            .optional()?;
        // One that is a tombstone already, and not final, keeps its outcome.
        let Some(cost) = cost else { return Ok(None) };
        let (done, pending) = if record.seq <= lane.exposed { (0, why.number()) } else { (why.number(), 0) };
        self.connection
            .prepare_cached("UPDATE sent SET final = ?3, pending = ?4 WHERE id = ?1 AND lane = ?2")?
            .execute(params![id, lane.id, done, pending])?;
        let empty = Content { id: id.to_owned(), payload: Bytes::new(), ..Content::default() };
        self.connection
            .prepare_cached(
                "UPDATE outbox SET buried = ?2, cost = ?3, kind = '', reply_to = '', timestamp = 0, \
                 metadata = x'', payload = x'', checksum = ?4 WHERE row = ?1",
            )?
            .execute(params![row, why.number(), TOMBSTONE_COST, checksum(row, &empty, &[])])?;
        self.connection
            .prepare_cached("UPDATE out_lane SET bytes = bytes + ?2, messages = messages - 1 WHERE id = ?1")?
            .execute([lane.id, TOMBSTONE_COST - cost])?;
        self.outbox.messages = self.outbox.messages.saturating_sub(1);
        self.outbox.bytes = self.outbox.bytes.saturating_add_signed(TOMBSTONE_COST - cost);
        Ok(Some(record.seq))
    }

    /// Forgets what became of messages finished long ago: looks at `count`
    /// lines from `after` on and returns where to go on, `None` at the end.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn forget_sent(&mut self, after: &str, count: usize, now: Millis) -> Result<Option<String>, StoreError> {
        let last: Option<String> = self
            .connection
            .prepare_cached("SELECT id FROM sent WHERE id > ?1 ORDER BY id LIMIT 1 OFFSET ?2")?
            .query_row(params![after, count as i64], |row| row.get(0))
            .optional()?;
        self.connection
            .prepare_cached(
                "DELETE FROM sent WHERE id > ?1 AND (?2 IS NULL OR id <= ?2) AND keep_until < ?3 AND pending = 0 \
                 AND (final != 0 OR seq <= (SELECT acked FROM out_lane l WHERE l.id = lane))",
            )?
            .execute(params![after, last, now.cast_signed()])?;
        Ok(last)
    }
}
