//! Where each consumer of a channel stands.

use rusqlite::{OptionalExtension as _, params};

use super::{
    Db, StoreError,
    channels::{Maker, find_channel},
};

/// Consumers of one channel: each keeps messages in the inbox.
const MAX_CONSUMERS: i64 = 64;

/// Where a consumer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerState {
    /// Number of the channel, for [`super::Reader::inbox`].
    pub channel: i64,
    /// All up to here is acknowledged.
    pub cursor: u64,
    /// How often later messages were delivered, as the delivery layer wrote it.
    pub attempts: Vec<u8>,
}

/// What came of opening a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// It is there.
    Consumer(ConsumerState),
    /// The channel has as many as it can have.
    TooMany {
        /// Allowed.
        max: u64,
    },
    /// The channel would be one too many.
    TooManyChannels {
        /// In use.
        used: u64,
        /// Allowed.
        max: u64,
    },
}

/// What came of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// Where the consumer stands now, and whether messages were dropped from
    /// the inbox.
    At {
        /// Cursor.
        cursor: u64,
        /// The inbox has more room.
        freed: bool,
    },
    /// There is no such consumer.
    NoConsumer,
    /// No delivery had that cursor; the last one is told.
    Beyond {
        /// Last cursor of the channel.
        last: u64,
    },
}

impl Db {
    /// Finds a consumer or makes it; a new one begins with the oldest message
    /// kept.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn open_consumer(&mut self, channel: &str, name: &str) -> Result<Opened, StoreError> {
        let Some((channel, _)) = self.channel(channel, Maker::App)? else {
            return Ok(Opened::TooManyChannels { used: self.channels()?, max: self.options.max_channels });
        };
        if let Some(state) = self.consumer(channel, name)? {
            return Ok(Opened::Consumer(state));
        }
        let count: i64 = self
            .connection
            .prepare_cached("SELECT count(*) FROM consumer WHERE channel = ?1")?
            .query_row([channel], |row| row.get(0))?;
        if count >= MAX_CONSUMERS {
            return Ok(Opened::TooMany { max: MAX_CONSUMERS.cast_unsigned() });
        }
        self.connection
            .prepare_cached("INSERT INTO consumer VALUES (?1, ?2, 0, x'')")?
            .execute(params![channel, name])?;
        Ok(Opened::Consumer(ConsumerState { channel, cursor: 0, attempts: Vec::new() }))
    }

    fn consumer(&self, channel: i64, name: &str) -> Result<Option<ConsumerState>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT cursor, attempts FROM consumer WHERE channel = ?1 AND name = ?2")?
            .query_row(params![channel, name], |row| {
                Ok(ConsumerState { channel, cursor: row.get::<_, i64>(0)?.cast_unsigned(), attempts: row.get(1)? })
            })
            .optional()?)
    }

    /// Advances a consumer; messages that every consumer is done with are
    /// dropped.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn acknowledge(&mut self, channel: &str, name: &str, cursor: u64) -> Result<Acknowledged, StoreError> {
        let Some((channel, last)) = find_channel(&self.connection, channel)? else {
            return Ok(Acknowledged::NoConsumer);
        };
        let Some(state) = self.consumer(channel, name)? else { return Ok(Acknowledged::NoConsumer) };
        if cursor > last {
            return Ok(Acknowledged::Beyond { last });
        }
        if cursor <= state.cursor {
            return Ok(Acknowledged::At { cursor: state.cursor, freed: false });
        }
        self.connection
            .prepare_cached("UPDATE consumer SET cursor = ?3 WHERE channel = ?1 AND name = ?2")?
            .execute(params![channel, name, cursor.cast_signed()])?;
        let done: i64 = self
            .connection
            .prepare_cached("SELECT min(cursor) FROM consumer WHERE channel = ?1")?
            .query_row([channel], |row| row.get(0))?;
        let freed = self.drop_consumed(channel, done.cast_unsigned())?;
        Ok(Acknowledged::At { cursor, freed })
    }

    /// Notes how often messages were delivered to a consumer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn note_attempts(&mut self, channel: i64, name: &str, attempts: &[u8]) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE consumer SET attempts = ?3 WHERE channel = ?1 AND name = ?2")?
            .execute(params![channel, name, attempts])?;
        Ok(())
    }
}
