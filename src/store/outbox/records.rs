//! What is known of messages that were sent, finished or not.

use super::*;

/// Forgets lines whose end is known, the oldest first. By the index alone: its
/// cost is that of what goes.
pub(in crate::store) const FORGET_FINAL: &str = "DELETE FROM sent WHERE row IN (SELECT row FROM sent INDEXED BY sent_final \
     WHERE row BETWEEN ?1 AND ?2 AND final != 0 ORDER BY row LIMIT ?3)";

/// The lines that [`Db::forget_sent`] looks at next.
pub(in crate::store) const FORGET_ACKED: &str =
    "SELECT max(row), count(*) FROM (SELECT row FROM sent WHERE row BETWEEN ?1 AND ?2 ORDER BY row LIMIT ?3)";

impl Db {
    pub(super) fn sent(&self, lane: i64, id: &str) -> Result<Option<(SentRecord, Vec<u8>)>, StoreError> {
        let sql = format!("{SENT} WHERE s.id = ?1 AND s.row BETWEEN ?2 AND ?3");
        let range = params![id, key(lane, 0), key(lane, Seq::MAX)];
        Ok(self.connection.prepare_cached(&sql)?.query_row(range, sent_record).optional()?)
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

    /// Where messages of one lane stand, each named by its position and id;
    /// `None` for those that are forgotten. And the lane's present numbering.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn progress_of(
        &self,
        peer: &PeerId,
        channel: &str,
        messages: &[(Seq, String)],
    ) -> Result<(Epoch, Vec<Option<Progress>>), StoreError> {
        let Some(lane) = self.lane(peer, channel)? else { return Ok((0, vec![None; messages.len()])) };
        let mut statement = self.connection.prepare_cached("SELECT id, final, pending FROM sent WHERE row = ?1")?;
        let mut look_up = |(seq, id): &(Seq, String)| {
            let found = statement
                .query_row([key(lane.id, *seq)], |row| {
                    let same = row.get_ref(0)?.as_str()? == id;
                    Ok(same.then_some((row.get(1)?, row.get(2)?)))
                })
                .optional()?;
            Ok(found.flatten().map(|line| progress(*seq, line, lane.acked, lane.exposed)))
        };
        let found = messages.iter().map(&mut look_up).collect::<Result<_, StoreError>>()?;
        Ok((lane.epoch, found))
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

    /// Messages and bytes that wait, per peer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn outbox_by_peer(&self) -> Result<Vec<(PeerId, crate::store::Fill)>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT peer, sum(messages), sum(bytes) FROM out_lane GROUP BY peer")?;
        let rows = statement.query_map([], |row| {
            let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            let fill = crate::store::Fill { messages: number(1)?, bytes: number(2)? };
            Ok((peer(&row.get::<_, Vec<u8>>(0)?)?, fill))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Messages and bytes that wait for one peer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn outbox_of(&self, peer: &PeerId) -> Result<crate::store::Fill, StoreError> {
        let sql = "SELECT ifnull(sum(messages), 0), ifnull(sum(bytes), 0) FROM out_lane WHERE peer = ?1";
        Ok(self.connection.prepare_cached(sql)?.query_row([peer.to_bytes()], |row| {
            let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            Ok(crate::store::Fill { messages: number(0)?, bytes: number(1)? })
        })?)
    }

    /// Keeps pace with what is added to a lane's lines.
    pub(super) fn trim_sent(&mut self, lane: i64, last: Seq, acked: Seq) -> Result<(), StoreError> {
        let upto = last.saturating_sub(self.lines_allowed(self.lines.lanes, self.lines.sent));
        self.forget_sent_upto(lane, upto, acked, 2 * TRIM_EVERY as usize)?;
        Ok(())
    }

    /// Forgets messages up to a position that are finished, the oldest first.
    /// Looks at so many lines at most, and returns how many it looked at.
    fn forget_sent_upto(&mut self, lane: i64, upto: Seq, acked: Seq, limit: usize) -> Result<usize, StoreError> {
        let (mut gone, mut looked_at) = self.forget_acked_upto(lane, upto.min(acked), limit)?;
        if acked < upto && looked_at < limit {
            // Beyond what was acknowledged nearly all wait, a million perhaps:
            // none of those is looked at.
            let range = params![key(lane, acked + 1), key(lane, upto), (limit - looked_at) as i64];
            let ended = self.connection.prepare_cached(FORGET_FINAL)?.execute(range)?;
            (gone, looked_at) = (gone + ended, looked_at + ended);
        }
        if gone > 0 {
            self.connection
                .prepare_cached("UPDATE out_lane SET lines = lines - ?2 WHERE id = ?1")?
                .execute([lane, gone as i64])?;
            self.lines.sent = self.lines.sent.saturating_sub(gone as u64);
        }
        Ok(looked_at)
    }

    /// Up to here all was acknowledged: only what the peer has still to tell
    /// about is not finished, and it is not looked at again and again. Returns
    /// how many lines are gone, and how many it looked at.
    fn forget_acked_upto(&mut self, lane: i64, upto: Seq, limit: usize) -> Result<(usize, usize), StoreError> {
        let from = self.passed.get(&lane).copied().unwrap_or(0) + 1;
        if upto < from || limit == 0 {
            return Ok((0, 0));
        }
        let range = params![key(lane, from), key(lane, upto), limit as i64];
        let (last, looked_at): (Option<i64>, usize) = self
            .connection
            .prepare_cached(FORGET_ACKED)?
            .query_row(range, |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as usize)))?;
        let Some(last) = last else { return Ok((0, 0)) };
        let gone = self
            .connection
            .prepare_cached("DELETE FROM sent WHERE row BETWEEN ?1 AND ?2 AND pending = 0")?
            .execute([key(lane, from), last])?;
        if gone < looked_at {
            self.passed.insert(lane, position(last));
        }
        Ok((gone, looked_at))
    }

    /// Forgets what became of messages finished long ago, of some lanes after
    /// one: a bounded number. Returns the lane after which to go on, `None` at
    /// the end.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn forget_sent(&mut self, after: i64, now: Millis) -> Result<Option<i64>, StoreError> {
        if after == 0 {
            self.lines.lanes = self.owners_with_lines("out_lane")?;
        }
        let allowed = self.lines_allowed(self.lines.lanes, self.lines.sent);
        let mut left = MAX_FORGOTTEN;
        let (lanes, last) =
            self.owners_after("SELECT id, last, acked FROM out_lane WHERE id > ?1 AND lines > 0", after)?;
        for lane in lanes {
            let upto = self.due_upto(lane.id, left, now)?.max(lane.last.saturating_sub(allowed));
            left -= self.forget_sent_upto(lane.id, upto, lane.acked, left)?;
            if left == 0 {
                return Ok(Some(lane.id - 1));
            }
        }
        Ok(last)
    }

    /// Up to which position the first lines of a lane have been kept long
    /// enough. One that is kept longer keeps those behind it, for no longer
    /// than there is room.
    fn due_upto(&self, lane: i64, lines: usize, now: Millis) -> Result<Seq, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT row, keep_until FROM sent WHERE row BETWEEN ?1 AND ?2 ORDER BY row LIMIT ?3")?;
        let mut found = statement.query(params![key(lane, 0), key(lane, Seq::MAX), lines as i64])?;
        let mut upto = 0;
        while let Some(row) = found.next()? {
            if row.get::<_, i64>(1)? >= now.cast_signed() {
                break;
            }
            upto = position(row.get(0)?);
        }
        Ok(upto)
    }
}
