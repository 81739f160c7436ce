//! Ids of messages that came in, so that none is stored twice.
//!
//! Within one numbering nothing can come twice: positions are taken in order,
//! and a sender gives each to one message. What can come again is a message
//! under another numbering, when the sender's store is an older copy of itself
//! and does not know that it was delivered. So each id has a line that says
//! where it was stored, and a message with that id is passed over only if
//!
//! - the line is of another numbering, and of a position beyond the **base** of
//!   the present one, which is how far that went on from what its sender knows
//!   to be here: the sender may not know of the line; and
//! - the content is the same.
//!
//! Every other message with a known id is a new one. Its sender has forgotten
//! the id, after its time, and told its app that the id is new; to pass the
//! message over would lose it. No clocks have to agree for that: it makes no
//! difference which side forgets an id first.

use super::*;
use crate::store::lines::{MAX_FORGOTTEN, TRIM_EVERY};

/// How long ids are remembered: copies of a sender's store that are older when
/// they are put back may deliver again what they have in their queue. The
/// sender has no say in it.
pub(super) const KEEP_SEEN_MS: Millis = 30 * 24 * 60 * 60 * 1000;

/// Where a message was stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) epoch: Epoch,
    pub(super) seq: Seq,
    /// See [`ContentSum::mark`].
    pub(super) mark: i64,
    pub(super) stored_at: Millis,
}

/// What came of noting an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    /// It has a line now.
    New,
    /// It had one, of another message.
    Reused,
    /// The message is here already.
    Passed,
}

impl Line {
    /// Whether the sender of a numbering may not know that this was stored.
    fn is_unknown_to(self, epoch: Epoch, base: Seq) -> bool {
        self.epoch != epoch && self.seq > base
    }
}

impl Db {
    /// Notes where a message is stored, in a line of its origin, unless it is
    /// there already.
    pub(super) fn remember(&self, row: i64, id: &str, line: Line, base: Seq) -> Result<Remembered, StoreError> {
        if self.add_line("INSERT OR IGNORE INTO seen VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", row, id, line)? {
            return Ok(Remembered::New);
        }
        if let Some((known_row, known)) = self.line_of(owner(row), id)? {
            if known.is_unknown_to(line.epoch, base) && known.mark == line.mark {
                // From now on its sender knows.
                self.connection.prepare_cached("UPDATE seen SET epoch = ?2, seq = ?3 WHERE row = ?1")?.execute([
                    known_row,
                    line.epoch.cast_signed(),
                    line.seq.cast_signed(),
                ])?;
                return Ok(Remembered::Passed);
            }
            self.connection.prepare_cached("DELETE FROM seen WHERE row = ?1")?.execute([known_row])?;
        }
        self.add_line("INSERT INTO seen VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", row, id, line)?;
        Ok(Remembered::Reused)
    }

    fn add_line(&self, sql: &str, row: i64, id: &str, line: Line) -> Result<bool, StoreError> {
        let Line { epoch, seq, mark, stored_at } = line;
        let added = self.connection.prepare_cached(sql)?.execute(params![
            row,
            owner(row),
            id,
            epoch.cast_signed(),
            seq.cast_signed(),
            mark,
            stored_at.cast_signed()
        ])?;
        Ok(added == 1)
    }

    fn line_of(&self, origin: i64, id: &str) -> Result<Option<(i64, Line)>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT row, epoch, seq, mark, stored_at FROM seen WHERE origin = ?1 AND id = ?2")?
            .query_row(params![origin, id], |row| {
                let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                let line = Line { epoch: number(1)?, seq: number(2)?, mark: row.get(3)?, stored_at: number(4)? };
                Ok((row.get(0)?, line))
            })
            .optional()?)
    }

    /// Whether the message that a gap stands for was stored before, and whether
    /// a line was forgotten: one of an earlier message with the same id, which
    /// must not be taken for this one later.
    pub(super) fn gap_in_place_of(
        &self,
        origin: i64,
        id: &str,
        epoch: Epoch,
        base: Seq,
    ) -> Result<(bool, bool), StoreError> {
        match self.line_of(origin, id)? {
            Some((_, line)) if line.is_unknown_to(epoch, base) => Ok((true, false)),
            Some((row, _)) => {
                self.connection.prepare_cached("DELETE FROM seen WHERE row = ?1")?.execute([row])?;
                Ok((false, true))
            }
            None => Ok((false, false)),
        }
    }

    /// Whether a message of this id was ever stored, as far back as ids are
    /// remembered.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn was_stored(&self, peer: &PeerId, channel: &str, id: &str) -> Result<bool, StoreError> {
        match self.origin(peer, channel)? {
            Some(origin) => Ok(self.line_of(origin.id, id)?.is_some()),
            None => Ok(false),
        }
    }

    /// Keeps pace with what a batch added to an origin's lines.
    pub(super) fn trim_seen(&mut self, origin: i64, before: u64, line: u64) -> Result<(), StoreError> {
        if before / TRIM_EVERY == line / TRIM_EVERY {
            return Ok(());
        }
        let upto = line.saturating_sub(self.lines_allowed(self.lines.origins, self.lines.seen));
        let limit = 2 * (line - before + TRIM_EVERY);
        self.forget_seen_upto(origin, upto, usize::try_from(limit).unwrap_or(usize::MAX))?;
        Ok(())
    }

    fn forget_seen_upto(&mut self, origin: i64, upto: u64, limit: usize) -> Result<usize, StoreError> {
        if upto == 0 || limit == 0 {
            return Ok(0);
        }
        let gone = self
            .connection
            .prepare_cached(
                "DELETE FROM seen WHERE row IN (SELECT row FROM seen WHERE row BETWEEN ?1 AND ?2 ORDER BY row LIMIT ?3)",
            )?
            .execute(params![key(origin, 0), key(origin, upto), limit as i64])?;
        self.connection
            .prepare_cached("UPDATE origin SET lines = lines - ?2 WHERE id = ?1")?
            .execute([origin, gone as i64])?;
        self.lines.seen = self.lines.seen.saturating_sub(gone as u64);
        Ok(gone)
    }

    /// Forgets ids that were remembered long enough, of some origins after one:
    /// a bounded number. Returns the origin after which to go on, `None` at the
    /// end.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn forget_seen(&mut self, after: i64, now: Millis) -> Result<Option<i64>, StoreError> {
        if after == 0 {
            self.lines.origins = self.owners_with_lines("origin")?;
        }
        let allowed = self.lines_allowed(self.lines.origins, self.lines.seen);
        let mut left = MAX_FORGOTTEN;
        let (owners, last) = self.owners_after("SELECT id, line, 0 FROM origin WHERE id > ?1 AND lines > 0", after)?;
        for owner in owners {
            // Lines are in the order of their times.
            let due: Option<i64> = self
                .connection
                .prepare_cached(
                    "SELECT max(row) FROM (SELECT row, stored_at FROM seen WHERE row BETWEEN ?1 AND ?2 \
                     ORDER BY row LIMIT ?3) WHERE stored_at <= ?4",
                )?
                .query_row(
                    params![
                        key(owner.id, 0),
                        key(owner.id, u64::MAX),
                        left as i64,
                        now.saturating_sub(KEEP_SEEN_MS).cast_signed()
                    ],
                    |row| row.get(0),
                )?;
            let due = if now < KEEP_SEEN_MS { 0 } else { due.map_or(0, position) };
            left -= self.forget_seen_upto(owner.id, due.max(owner.last.saturating_sub(allowed)), left)?;
            if left == 0 {
                return Ok(Some(owner.id - 1));
            }
        }
        Ok(last)
    }
}
