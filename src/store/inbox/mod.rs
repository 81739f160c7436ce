//! Messages that came in and that apps have not consumed.

mod commit;
mod lanes;
mod read;
mod seen;

use std::collections::{BTreeMap, btree_map::Entry};

use libp2p::PeerId;
use rusqlite::{Connection, OptionalExtension as _, params};

use self::{commit::Open, lanes::Known};
use super::{
    Db, Fill, Reader, StoreError,
    channels::{Maker, find_channel},
    outbox::peer,
    row::{ContentSum, content, encode_metadata, key, owner, position},
};
use crate::{
    protocol::{Accepted, BatchLane, Inbound, InboundKind, MAX_OPEN_LANES, Millis},
    types::{Channel, Content, Epoch, Route, Seq, Tag},
    wire::{Limit, MAX_EPOCHS, MAX_GAPS},
};

/// Pairs of sender and channel in all; with trust open to all, anyone could
/// make the table grow.
const MAX_ORIGINS: i64 = 200_000;
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
#[derive(Debug, Default, PartialEq)]
pub struct InboxPage {
    /// In order.
    pub rows: Vec<InboxRow>,
    /// The row after them does not match its checksum.
    pub damaged: Option<u64>,
}

#[derive(Clone, Copy)]
struct Origin {
    id: i64,
    channel: i64,
    /// Last cursor of the channel.
    last: u64,
    /// Last line of its ids.
    line: u64,
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
    fn origin(&self, peer: &PeerId, channel: &str) -> Result<Option<Origin>, StoreError> {
        Ok(self
            .connection
            .prepare_cached(
                "SELECT o.id, c.id, c.last, o.line FROM channel c JOIN origin o ON o.channel = c.id \
                 WHERE c.name = ?2 AND o.peer = ?1",
            )?
            .query_row(params![peer.to_bytes(), channel], |row| {
                let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                Ok(Origin { id: row.get(0)?, channel: row.get(1)?, last: number(2)?, line: number(3)? })
            })
            .optional()?)
    }

    /// Whether there may be one more origin; its channel may be new too.
    fn may_add_origin(&self, peer: &PeerId, channel: &str) -> Result<bool, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM origin WHERE peer = ?1), (SELECT count(*) FROM origin)";
        let (of_peer, origins): (i64, i64) =
            self.connection.prepare_cached(sql)?.query_row([peer.to_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(of_peer < MAX_OPEN_LANES as i64
            && origins < MAX_ORIGINS
            && (find_channel(&self.connection, channel)?.is_some() || self.may_add_channel(Maker::Peer)?))
    }

    /// `None` when there are as many as there can be.
    fn create_origin(&self, peer: &PeerId, channel: &str) -> Result<Option<Origin>, StoreError> {
        if !self.may_add_origin(peer, channel)? {
            return Ok(None);
        }
        let Some((number, last)) = self.channel(channel, Maker::Peer)? else { return Ok(None) };
        self.connection
            .prepare_cached("INSERT INTO origin (peer, channel) VALUES (?1, ?2)")?
            .execute(params![peer.to_bytes(), number])?;
        Ok(Some(Origin { id: self.connection.last_insert_rowid(), channel: number, last, line: 0 }))
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
}
