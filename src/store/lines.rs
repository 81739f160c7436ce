//! How much is remembered of ids: a line for each message that was sent, and
//! one for each that came in, kept for a time, the youngest ones.

use rusqlite::params;

use super::{Db, StoreError};
use crate::types::Seq;

/// Lines kept for one peer and channel: about 35 MB on disk with ids of 36
/// bytes; three messages a second for a day.
pub const MAX_LINES: u64 = 250_000;
/// Lines of all, in each direction: about 150 MB on disk, a share of what the
/// messages themselves may take by default. Once there are as many, each peer
/// and channel keeps an equal share.
pub const MAX_ALL_LINES: u64 = 1_000_000;
/// Lines are trimmed each time so many were added: one statement for many
/// messages. Twice as many may go, so that the trimming always catches up.
pub(super) const TRIM_EVERY: u64 = 256;
/// Lines forgotten, or looked at for it, in one operation: a few milliseconds
/// of the store's time.
pub(super) const MAX_FORGOTTEN: usize = 2_000;
/// Lanes looked at in one operation.
const MAX_OWNERS: i64 = 64;

/// Number of lines in the store, in each direction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lines {
    pub(super) sent: u64,
    pub(super) seen: u64,
    /// Lanes that have lines, as counted at the beginning of the last round of
    /// forgetting, and those made since.
    pub(super) lanes: u64,
    /// The same of origins.
    pub(super) origins: u64,
}

/// A lane or an origin that has lines.
pub(super) struct Owner {
    pub(super) id: i64,
    /// Its last line.
    pub(super) last: u64,
    pub(super) acked: Seq,
}

impl Db {
    /// How many lines each of so many owners may keep now.
    pub(super) fn lines_allowed(&self, owners: u64, all: u64) -> u64 {
        let (max, max_all) = (self.options.max_lines, self.options.max_all_lines);
        if all <= max_all { max } else { (max_all / owners.max(1)).clamp(1, max) }
    }

    /// How many owners have lines: those that have none take no share.
    pub(super) fn owners_with_lines(&self, table: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {table} WHERE lines > 0");
        let count: i64 = self.connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
        Ok(count.cast_unsigned())
    }

    /// Some owners after one, and after which to go on.
    pub(super) fn owners_after(&self, sql: &str, after: i64) -> Result<(Vec<Owner>, Option<i64>), StoreError> {
        let owners: Vec<Owner> = self
            .connection
            .prepare_cached(&format!("{sql} ORDER BY id LIMIT ?2"))?
            .query_map(params![after, MAX_OWNERS], |row| {
                let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                Ok(Owner { id: row.get(0)?, last: number(1)?, acked: number(2)? })
            })?
            .collect::<Result<_, _>>()?;
        let last = owners.last().map(|owner| owner.id);
        Ok((owners, last))
    }
}
