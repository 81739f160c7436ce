//! Channels: each has a number and an order of its own.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Db, StoreError};

/// Channels in all: a bound on what apps and trusted peers can make this node
/// keep.
pub const MAX_CHANNELS: u64 = 100_000;

/// The part of them that peers can make: under `trust = "open"` anyone is one,
/// and what nobody deletes must not shut out apps.
const PEERS_PART: u64 = 2;

/// Who makes a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    App,
    Peer,
}

/// The number of a channel and its last cursor.
pub(super) fn find_channel(connection: &Connection, name: &str) -> Result<Option<(i64, u64)>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT id, last FROM channel WHERE name = ?1")?
        .query_row([name], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))
        .optional()?)
}

impl Db {
    /// The number of a channel and its last cursor; made if new. `None` when
    /// there are as many as there can be.
    pub(super) fn channel(&self, name: &str, maker: Maker) -> Result<Option<(i64, u64)>, StoreError> {
        if let Some(found) = find_channel(&self.connection, name)? {
            return Ok(Some(found));
        }
        if !self.may_add_channel(maker)? {
            return Ok(None);
        }
        self.connection
            .prepare_cached("INSERT INTO channel (name, by_peer) VALUES (?1, ?2)")?
            .execute(params![name, maker == Maker::Peer])?;
        Ok(Some((self.connection.last_insert_rowid(), 0)))
    }

    /// Makes a channel for an app, if it is new. False when there are as many
    /// as there can be.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn make_channel(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.channel(name, Maker::App)?.is_some())
    }

    /// Whether there may be one more channel.
    pub(super) fn may_add_channel(&self, maker: Maker) -> Result<bool, StoreError> {
        let max = self.options.max_channels;
        if self.channels()? >= max {
            return Ok(false);
        }
        if maker == Maker::App {
            return Ok(true);
        }
        let sql = "SELECT count(*) FROM channel WHERE by_peer = 1";
        let peers: i64 = self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(peers.cast_unsigned() < max / PEERS_PART)
    }

    /// Number of channels.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn channels(&self) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM channel";
        Ok(self.connection.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(0))?.cast_unsigned())
    }
}
