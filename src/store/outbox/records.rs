//! What is known of messages that were sent, finished or not.

use super::*;

impl Db {
    pub(super) fn sent(&self, lane: i64, id: &str) -> Result<Option<(SentRecord, Vec<u8>)>, StoreError> {
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

    /// Messages and bytes that wait, and messages lost by a restore, per peer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn outbox_by_peer(&self) -> Result<Vec<(PeerId, crate::store::Fill, u64)>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT peer, sum(messages), sum(bytes), sum(lost) FROM out_lane GROUP BY peer")?;
        let rows = statement.query_map([], |row| {
            let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            let fill = crate::store::Fill { messages: number(1)?, bytes: number(2)? };
            Ok((peer(&row.get::<_, Vec<u8>>(0)?)?, fill, number(3)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
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
