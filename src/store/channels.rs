//! Channels: each has a number and an order of its own.

use rusqlite::{Connection, OptionalExtension as _};

use super::{Db, StoreError};

/// Channels in all: a bound on what apps and trusted peers can make this node
/// keep.
pub const MAX_CHANNELS: u64 = 100_000;

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
    pub(super) fn channel(&self, name: &str) -> Result<Option<(i64, u64)>, StoreError> {
        if let Some(found) = find_channel(&self.connection, name)? {
            return Ok(Some(found));
        }
        if self.channels()? >= self.options.max_channels {
            return Ok(None);
        }
        self.connection.prepare_cached("INSERT INTO channel (name) VALUES (?1)")?.execute([name])?;
        Ok(Some((self.connection.last_insert_rowid(), 0)))
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
