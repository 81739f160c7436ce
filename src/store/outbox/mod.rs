//! Messages on their way out.

mod bury;
mod lanes;
mod records;

use libp2p::PeerId;
use rusqlite::{OptionalExtension as _, Row, params};

#[cfg(test)]
pub(super) use self::records::{FORGET_ACKED, FORGET_FINAL};
use super::{
    Db, StoreError,
    lines::{MAX_FORGOTTEN, TRIM_EVERY},
    row::{checksum, content, encode_metadata, key, owner, position},
};
use crate::{
    protocol::{LaneInfo, MAX_OPEN_LANES, Millis, OutRow, Prepared, RowBody},
    types::{Channel, Content, Epoch, PathPolicy, Seq, Tag},
    wire::{MAX_EPOCHS, MAX_GAPS},
};

/// Most channels to one peer: each is a lane on the link.
const MAX_CHANNELS: i64 = MAX_OPEN_LANES as i64;
/// Outcomes asked of a peer at a time.
const MAX_UNRESOLVED: usize = 256;
/// How long what became of a message is known at least.
const KEEP_MS: Millis = 24 * 60 * 60 * 1000;
/// Name of that limit.
pub const CHANNELS_LIMIT: &str = "channels_per_peer";
/// Most positions of a hole that are found in one operation, whose lines are
/// looked at: a few milliseconds of the store's time.
const MAX_HOLE: Seq = 20_000;
/// In `outbox.buried`: the row is the end of a hole, and stands for all
/// positions without a row before it.
const HOLE: i64 = -1;
/// Tombstones made of expired messages in one operation.
const MAX_EXPIRED: i64 = 1000;
/// Most that a tombstone costs, as in [`crate::types::Content::cost`]; one of a
/// message that cost less costs as much as that.
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
    /// Over which routes it may go.
    pub path: PathPolicy,
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

/// A message that was given up.
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
    /// The peer cannot have seen it: that is its end.
    pub is_final: bool,
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

const SENT: &str = "SELECT s.id, l.peer, l.channel, l.epoch, s.row, s.final, s.pending, s.payload_bytes, s.queued_at, \
                    l.acked, l.exposed, o.expires_at, s.digest \
                    FROM sent s JOIN out_lane l ON l.id = s.row >> 40 \
                    LEFT JOIN outbox o ON o.row = s.row AND o.buried = 0";

fn progress(seq: Seq, (done, pending): (i64, i64), acked: Seq, exposed: Seq) -> Progress {
    match (Final::from_number(done), Final::from_number(pending)) {
        (Some(done), _) => Progress::Done(done),
        (None, Some(pending)) => Progress::Pending(pending),
        (None, None) if seq <= acked => Progress::Done(Final::Stored),
        (None, None) if seq <= exposed => Progress::Sent,
        (None, None) => Progress::Queued,
    }
}

fn sent_record(row: &Row<'_>) -> rusqlite::Result<(SentRecord, Vec<u8>)> {
    let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
    let (seq, acked, exposed) = (position(row.get(4)?), number(9)?, number(10)?);
    let progress = progress(seq, (row.get(5)?, row.get(6)?), acked, exposed);
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

/// Whether a lane `l` has messages whose outcome only the peer knows.
const UNRESOLVED: &str = "EXISTS (SELECT 1 FROM sent s INDEXED BY sent_pending \
                          WHERE s.row BETWEEN l.id << 40 AND (l.id << 40 | (1 << 40) - 1) AND s.pending != 0)";

fn lane_info_sql() -> String {
    format!(
        "SELECT channel, epoch, acked, last, {UNRESOLVED}, previous FROM out_lane l \
         WHERE peer = ?1 AND (?2 IS NULL OR channel = ?2)"
    )
}

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
        let NewMessage { peer, channel, content, ttl_ms, path, digest } = message;
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
        let (expires_at, direct_until) = (now.saturating_add(ttl_ms), path.until(now));
        let metadata = encode_metadata(&content.metadata);
        self.connection
            .prepare_cached("INSERT INTO outbox VALUES (?1,?2,0,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)")?
            .execute(params![
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
                direct_until.cast_signed(),
            ])?;
        self.connection.prepare_cached("INSERT INTO sent VALUES (?1,?2,?3,0,0,?4,?5,?6)")?.execute(params![
            row,
            content.id,
            digest,
            content.payload.len() as i64,
            wall,
            now.saturating_add(ttl_ms.max(KEEP_MS)).cast_signed(),
        ])?;
        let exposed = if self.live.contains(&lane.id) { seq } else { lane.exposed };
        self.connection
            .prepare_cached("UPDATE out_lane SET last=?2, exposed=?3, bytes=bytes+?4, messages=messages+1, lines=lines+1 WHERE id=?1")?
            .execute(params![lane.id, seq.cast_signed(), exposed.cast_signed(), cost.cast_signed()])?;
        self.outbox.messages += 1;
        self.outbox.bytes += cost;
        self.lines.sent += 1;
        if seq.is_multiple_of(TRIM_EVERY) {
            self.trim_sent(lane.id, seq, lane.acked)?;
        }
        let row = OutRow { seq, tag, expires_at, direct_until, body: RowBody::Message(content) };
        Ok(Enqueued::New(Queued { epoch: lane.epoch, row }))
    }

    fn create_lane(&mut self, peer: &PeerId, channel: &str) -> Result<LaneRow, StoreError> {
        let epoch = self.random();
        self.connection
            .prepare_cached("INSERT INTO out_lane (peer, channel, epoch) VALUES (?1, ?2, ?3)")?
            .execute(params![peer.to_bytes(), channel, epoch.cast_signed()])?;
        let id = self.connection.last_insert_rowid();
        self.lines.lanes += 1;
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
            return Ok(Some(OutboxLimit { limit: CHANNELS_LIMIT, used: lanes.cast_unsigned(), max }));
        }
        Ok(None)
    }
}
