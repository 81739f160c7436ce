//! The file: opening, settings, transactions.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, types::Value};

use super::{
    StoreError,
    channels::MAX_CHANNELS,
    lines::{Lines, MAX_ALL_LINES, MAX_LINES},
    schema,
};
use crate::types::Seq;

/// Pages in the write-ahead log before it is carried over: 16 MiB.
const CHECKPOINT_PAGES: i64 = 4096;
/// The log is cut to this size when it is reset.
const LOG_BYTES: i64 = 64 * 1024 * 1024;
/// Page cache, in KiB.
const CACHE_KIB: i64 = 16 * 1024;
/// Prepared statements kept.
const STATEMENTS: usize = 96;

/// Mark of a stop in order.
const CLEAN: &str = "clean";
/// Mark that names the inbox.
const INBOX: &str = "inbox";

/// How far a commit goes before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Each commit is on the disk before it is answered.
    #[default]
    Full,
    /// A power cut can undo commits. For tests that show that it does.
    Normal,
}

/// Limits and habits of a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes of messages that wait to be sent.
    pub max_outbox_bytes: u64,
    /// Bytes of messages that wait for apps.
    pub max_inbox_bytes: u64,
    /// Bytes of one peer in either.
    pub max_peer_bytes: u64,
    /// Ids remembered of one peer and channel, in each direction.
    pub max_lines: u64,
    /// Ids remembered in all, in each direction.
    pub max_all_lines: u64,
    /// Channels that messages can come in on.
    pub max_channels: u64,
    /// When a commit counts.
    pub synchronous: Synchronous,
}

impl Default for StoreOptions {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self {
            max_outbox_bytes: GIB,
            max_inbox_bytes: GIB,
            max_peer_bytes: GIB / 4,
            max_lines: MAX_LINES,
            max_all_lines: MAX_ALL_LINES,
            max_channels: MAX_CHANNELS,
            synchronous: Synchronous::Full,
        }
    }
}

/// Messages and bytes in one half of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fill {
    /// Number of messages.
    pub messages: u64,
    /// Their cost, see [`crate::types::Content::cost`].
    pub bytes: u64,
}

/// The store's state, used by one thread at a time. Operations are in the
/// modules around this one; each must run between [`Db::begin`] and
/// [`Db::commit`].
#[derive(Debug)]
pub struct Db {
    pub(super) connection: Connection,
    pub(super) options: StoreOptions,
    pub(super) outbox: Fill,
    pub(super) inbox: Fill,
    pub(super) lines: Lines,
    /// Lanes whose new rows go on a link at once.
    pub(super) live: BTreeSet<i64>,
    /// Up to which position the lines of a lane that are left cannot be
    /// forgotten before the peer tells what became of them.
    pub(super) passed: BTreeMap<i64, Seq>,
    /// Makes tags and epochs.
    rng: StdRng,
}

impl Db {
    /// Opens or creates the file at `path`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Open`], [`StoreError::Foreign`]
    /// or [`StoreError::Newer`]; the file is left as it is.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let named = |error: StoreError| match error {
            error if error.is_damage() => StoreError::Damaged { path: path.to_owned(), cause: error.to_string() },
            StoreError::Sqlite(cause) => StoreError::open(path, &cause),
            other => other,
        };
        let connection = Connection::open(path).map_err(|error| named(error.into()))?;
        Self::prepare(connection, options, rand::make_rng()).map_err(named)
    }

    /// A store in memory, whose tags and epochs follow from a seed: for
    /// simulations.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn in_memory(options: StoreOptions, seed: u64) -> Result<Self, StoreError> {
        Self::prepare(Connection::open_in_memory()?, options, StdRng::seed_from_u64(seed))
    }

    /// A copy in memory, with a seed of its own: what a restored backup is.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn copy(&self, seed: u64) -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        rusqlite::backup::Backup::new(&self.connection, &mut connection)?.run_to_completion(
            i32::MAX,
            Duration::ZERO,
            None,
        )?;
        Self::prepare(connection, self.options.clone(), StdRng::seed_from_u64(seed))
    }

    fn prepare(mut connection: Connection, options: StoreOptions, rng: StdRng) -> Result<Self, StoreError> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.busy_timeout(Duration::from_secs(10))?;
        // Before any setting: some of them write.
        schema::check(&connection)?;
        // Only a new file takes this; it lets the file shrink again later.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(
            None,
            "synchronous",
            match options.synchronous {
                Synchronous::Full => "FULL",
                Synchronous::Normal => "NORMAL",
            },
        )?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        // What a savepoint would undo is a few pages: they need no file, to
        // which each would be written first.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        schema::migrate(&mut connection)?;
        let mut db = Self {
            connection,
            options,
            outbox: Fill::default(),
            inbox: Fill::default(),
            lines: Lines::default(),
            live: BTreeSet::new(),
            passed: BTreeMap::new(),
            rng,
        };
        db.recount()?;
        Ok(db)
    }

    /// A tag or an epoch; never 0, which stands for none.
    pub(super) fn random(&mut self) -> u64 {
        self.rng.random_range(1..=u64::MAX)
    }

    /// Reads the totals anew: at the start, and after a batch was undone.
    pub(super) fn recount(&mut self) -> Result<(), StoreError> {
        let fill = |table: &str| {
            let sql =
                format!("SELECT ifnull(sum(messages), 0), ifnull(sum(bytes), 0), ifnull(sum(lines), 0) FROM {table}");
            self.connection.query_row(&sql, [], |row| {
                let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                Ok((Fill { messages: number(0)?, bytes: number(1)? }, number(2)?))
            })
        };
        let ((outbox, sent), (inbox, seen)) = (fill("out_lane")?, fill("origin")?);
        let (lanes, origins) = (self.owners_with_lines("out_lane")?, self.owners_with_lines("origin")?);
        (self.outbox, self.inbox, self.lines) = (outbox, inbox, Lines { sent, seen, lanes, origins });
        // What it passed may be there again.
        self.passed.clear();
        Ok(())
    }

    /// Begins a batch.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn begin(&mut self) -> Result<(), StoreError> {
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Ends a batch: all of it is on disk, or nothing.
    ///
    /// # Errors
    /// When SQLite refuses; the batch is undone.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.connection.execute_batch("COMMIT").map_err(|error| {
            self.rollback();
            StoreError::Commit(error.to_string())
        })
    }

    /// Undoes a batch.
    pub fn rollback(&mut self) {
        // Fails only when SQLite has undone it by itself already.
        drop(self.connection.execute_batch("ROLLBACK"));
        if let Err(error) = self.recount() {
            tracing::error!(%error, "the store cannot be read after a failed batch");
        }
    }

    /// Runs one operation of a batch so that it changes nothing if it fails.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn isolated<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.connection.is_autocommit() {
            // It could not begin, or SQLite undid it by itself: what runs now
            // would be kept although its caller is told that it failed.
            return Err(StoreError::Commit("no transaction is open".to_owned()));
        }
        self.connection.prepare_cached("SAVEPOINT operation")?.execute([])?;
        let result = operation(self);
        if result.is_err() {
            self.connection.prepare_cached("ROLLBACK TO operation")?.execute([])?;
            self.recount()?;
        }
        self.connection.prepare_cached("RELEASE operation")?.execute([])?;
        result
    }

    /// Notes that the file is in use, gives its lanes new epochs, and says whether it was closed in order the
    /// last time.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn begin_session(&mut self) -> Result<bool, StoreError> {
        let clean = self.mark(CLEAN)?.is_none_or(|mark| mark == "yes");
        self.set_mark(CLEAN, "no")?;
        self.mint_epochs()?;
        if self.mark(INBOX)?.is_none() {
            let id = self.random();
            self.set_mark(INBOX, &format!("{id:016x}"))?;
        }
        Ok(clean)
    }

    /// Names the inbox: another one when the file was lost and begun anew, and
    /// cursors with it. Empty before the first session.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn inbox_id(&self) -> Result<String, StoreError> {
        Ok(self.mark(INBOX)?.unwrap_or_default())
    }

    /// Notes that the file is closed in order.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn end_session(&mut self) -> Result<(), StoreError> {
        self.set_mark(CLEAN, "yes")
    }

    /// What waits to be sent.
    #[must_use]
    pub fn outbox_fill(&self) -> Fill {
        self.outbox
    }

    /// What waits for apps.
    #[must_use]
    pub fn inbox_fill(&self) -> Fill {
        self.inbox
    }

    /// A mark of this file.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn mark(&self, key: &str) -> Result<Option<String>, StoreError> {
        let value: Option<Value> =
            self.connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?;
        Ok(match value {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        })
    }

    /// Sets a mark of this file.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn set_mark(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.connection.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?.execute([key, value])?;
        Ok(())
    }

    /// Gives unused pages back to the file system, a few at a time.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn shrink(&self, pages: u32) -> Result<(), StoreError> {
        Ok(self.connection.execute_batch(&format!("PRAGMA incremental_vacuum({pages})"))?)
    }
}

/// A second connection, for reading only. Sees what is committed.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
}

impl Reader {
    /// Opens the file for reading.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn open(path: &PathBuf) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(Self { connection })
    }

    /// Reads the whole file for damage; `Ok(None)` is good news.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn check(&self) -> Result<Option<String>, StoreError> {
        let verdict: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok((verdict != "ok").then_some(verdict))
    }
}
