//! What the protocol's sender asks of the store: lanes, their rows and their
//! epochs.

use super::*;

/// Rows of a lane as they were read.
#[derive(Default)]
struct Found {
    rows: Vec<OutRow>,
    /// Ids of those that fail their checksum.
    damaged: Vec<String>,
    /// Which of them are holes that nobody has seen before.
    holes: Vec<usize>,
}

impl Db {
    /// All lanes to a peer.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn lanes_to(&self, peer: &PeerId) -> Result<Vec<LaneInfo>, StoreError> {
        let mut statement = self.connection.prepare_cached(&lane_info_sql())?;
        let rows = statement.query_map(params![peer.to_bytes(), None::<&str>], lane_info)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) fn lane_info(&self, peer: &PeerId, channel: &str) -> Result<Option<LaneInfo>, StoreError> {
        let mut statement = self.connection.prepare_cached(&lane_info_sql())?;
        Ok(statement.query_row(params![peer.to_bytes(), channel], lane_info).optional()?)
    }

    /// Peers that have something to hear.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn waiting_peers(&self) -> Result<Vec<PeerId>, StoreError> {
        let sql = format!("SELECT DISTINCT peer FROM out_lane l WHERE last > acked OR {UNRESOLVED}");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map([], |row| peer(&row.get::<_, Vec<u8>>(0)?))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// See [`crate::protocol::SenderEffect::Prepare`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn prepare_lane(
        &mut self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        high: Seq,
        gaps: &[(Seq, Seq)],
    ) -> Result<Option<Prepared>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return Ok(None) };
        self.live.insert(lane.id);
        self.connection
            .prepare_cached(
                "UPDATE out_lane SET exposed = last, used = 1 WHERE id = ?1 AND (exposed < last OR used = 0)",
            )?
            .execute([lane.id])?;
        let tag_at = self
            .connection
            .prepare_cached("SELECT tag FROM outbox WHERE row = ?1")?
            .query_row([key(lane.id, high)], |row| row.get::<_, i64>(0))
            .optional()?
            .filter(|_| high > lane.acked && high <= lane.last)
            .map(i64::cast_unsigned);
        let mut unresolved: Vec<(Seq, String)> = self
            .connection
            .prepare_cached(
                "SELECT row, id FROM sent INDEXED BY sent_pending WHERE row BETWEEN ?1 AND ?2 AND pending != 0 \
                 ORDER BY row LIMIT ?3",
            )?
            .query_map(
                params![key(lane.id, 0), key(lane.id, lane.acked.max(high).min(lane.last)), MAX_UNRESOLVED as i64 + 1],
                |row| Ok((position(row.get(0)?), row.get(1)?)),
            )?
            .collect::<Result<_, _>>()?;
        let more_unresolved = unresolved.len() > MAX_UNRESOLVED;
        unresolved.truncate(MAX_UNRESOLVED);
        let LaneRow { acked, acked_tag, last, .. } = lane;
        let gap_is_message = self.gap_is_message(&lane, high, gaps)?;
        Ok(Some(Prepared { acked, acked_tag, last, tag_at, gap_is_message, unresolved, more_unresolved }))
    }

    /// Whether the peer was told to skip what is a message here, as far as it
    /// remembers; when it may have forgotten, the answer is yes, because a
    /// renumbering is safe where a wrong comparison is not.
    pub(super) fn gap_is_message(&self, lane: &LaneRow, high: Seq, gaps: &[(Seq, Seq)]) -> Result<bool, StoreError> {
        if gaps.len() >= MAX_GAPS && gaps.first().is_some_and(|(first, _)| *first > lane.acked + 1) {
            return Ok(true);
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM outbox WHERE row BETWEEN ?1 AND ?2 AND buried = 0)")?;
        for &(first, last) in gaps {
            let (first, last) = (first.max(lane.acked + 1), last.min(high).min(lane.last));
            if first <= last && statement.query_row([key(lane.id, first), key(lane.id, last)], |row| row.get(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// See [`crate::protocol::SenderEffect::Hide`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn hide_lanes(&mut self, peer: &PeerId) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT id FROM out_lane WHERE peer = ?1")?;
        for id in statement.query_map([peer.to_bytes()], |row| row.get(0))? {
            self.live.remove(&id?);
        }
        Ok(())
    }

    /// Reads rows of a lane. A row that fails its checksum comes back as a
    /// tombstone, is one from now on, and is logged. Positions without a row
    /// come back as holes.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn load_rows(
        &mut self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        from: Seq,
        max_bytes: u64,
        max_rows: usize,
    ) -> Result<Vec<OutRow>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return Ok(Vec::new()) };
        let Found { mut rows, damaged, holes } = self.read_rows(&lane, from, max_bytes, max_rows)?;
        for id in damaged {
            tracing::error!(%peer, channel, id, "a queued message is damaged on disk and cannot be sent");
            self.bury(&lane, &id, Final::Expired)?;
        }
        for index in holes {
            let (first, last, tag) = (rows[index].first(), rows[index].seq, self.random());
            rows[index].tag = tag;
            self.end_hole(&lane, last, tag)?;
            let lost = self.mend_lines(&lane, first, last)?;
            if lost > 0 {
                tracing::error!(%peer, channel, first, last, lost, "queued messages are missing from the store and cannot be sent");
            }
        }
        Ok(rows)
    }

    /// Puts a row at the end of a hole. Its tag is what the peer will know the
    /// hole by.
    fn end_hole(&self, lane: &LaneRow, last: Seq, tag: Tag) -> Result<(), StoreError> {
        let row = key(lane.id, last);
        self.connection
            .prepare_cached("INSERT INTO outbox VALUES (?1, ?2, ?3, 0, 0, '', '', '', 0, x'', x'', ?4, 0)")?
            .execute(params![row, tag.cast_signed(), HOLE, checksum(row, &Content::default(), &[])])?;
        Ok(())
    }

    /// A file that was repaired by hand can lack rows of messages that waited:
    /// they count as expired. Returns how many there were.
    fn mend_lines(&self, lane: &LaneRow, first: Seq, last: Seq) -> Result<usize, StoreError> {
        Ok(self
            .connection
            .prepare_cached("UPDATE sent SET final = ?3 WHERE row BETWEEN ?1 AND ?2 AND final = 0 AND pending = 0")?
            .execute(params![key(lane.id, first), key(lane.id, last), Final::Expired.number()])?)
    }

    fn read_rows(&self, lane: &LaneRow, from: Seq, max_bytes: u64, max_rows: usize) -> Result<Found, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT row, tag, buried, expires_at, cost, id, kind, reply_to, timestamp, metadata, payload, checksum, direct_until \
             FROM outbox WHERE row BETWEEN ?1 AND ?2 ORDER BY row",
        )?;
        let mut next = from.max(lane.acked + 1);
        let mut stored = statement.query([key(lane.id, next), key(lane.id, lane.last)])?;
        let (mut found, mut bytes, mut missing) = (Found::default(), 0, 0);
        let full = |rows: &[OutRow], bytes| !rows.is_empty() && (bytes >= max_bytes || rows.len() >= max_rows);
        while next <= lane.last && !full(&found.rows, bytes) {
            let row = stored.next()?;
            let buried: i64 = row.map_or(Ok(0), |row| row.get(2))?;
            let seq = row.map_or(Ok(lane.last + 1), |row| row.get(0).map(position))?;
            if seq > next && buried != HOLE {
                let end = (seq - 1).min(next + MAX_HOLE - missing - 1);
                missing += end + 1 - next;
                found.holes.push(found.rows.len());
                found.rows.push(OutRow {
                    seq: end,
                    tag: 0,
                    expires_at: 0,
                    direct_until: 0,
                    body: RowBody::Hole { from: next },
                });
                next = end + 1;
                if next < seq || missing >= MAX_HOLE {
                    break;
                }
            }
            let Some(row) = row.filter(|_| !full(&found.rows, bytes)) else { break };
            let id: String = row.get(5)?;
            let body = match buried {
                HOLE => RowBody::Hole { from: next },
                0 => match content(row, 5, row.get(0)?, "a message") {
                    Ok(content) => RowBody::Message(content),
                    Err(_) => {
                        found.damaged.push(id.clone());
                        RowBody::Tombstone { id }
                    }
                },
                _ => RowBody::Tombstone { id },
            };
            bytes += row.get::<_, i64>(4)?.cast_unsigned();
            let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
            let (tag, expires_at, direct_until) = (number(1)?, number(3)?, number(12)?);
            found.rows.push(OutRow { seq, tag, expires_at, direct_until, body });
            next = seq + 1;
        }
        Ok(found)
    }

    /// See [`crate::protocol::SenderEffect::Acked`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn acked(&mut self, peer: &PeerId, channel: &str, epoch: Epoch, seq: Seq, tag: Tag) -> Result<(), StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)?.filter(|lane| lane.acked < seq && seq <= lane.last) else {
            return Ok(());
        };
        let range = params![key(lane.id, lane.acked + 1), key(lane.id, seq)];
        let (messages, bytes) = self
            .connection
            .prepare_cached(
                // A tombstone ceased to be a message when it became one.
                "SELECT count(*) FILTER (WHERE buried = 0), ifnull(sum(cost), 0) FROM outbox WHERE row BETWEEN ?1 AND ?2",
            )?
            .query_row(range, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        self.connection.prepare_cached("DELETE FROM outbox WHERE row BETWEEN ?1 AND ?2")?.execute(range)?;
        self.connection
            .prepare_cached(
                "UPDATE out_lane SET acked=?2, acked_tag=?3, bytes=bytes-?4, messages=messages-?5 WHERE id=?1",
            )?
            .execute(params![lane.id, seq.cast_signed(), tag.cast_signed(), bytes, messages])?;
        self.outbox.messages = self.outbox.messages.saturating_sub(messages.cast_unsigned());
        self.outbox.bytes = self.outbox.bytes.saturating_sub(bytes.cast_unsigned());
        Ok(())
    }

    /// See [`crate::protocol::SenderEffect::Resolved`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn resolved(&mut self, peer: &PeerId, channel: &str, id: &str, stored: bool) -> Result<(), StoreError> {
        let Some(lane) = self.lane(peer, channel)? else { return Ok(()) };
        self.passed.remove(&lane.id);
        self.connection
            .prepare_cached(
                "UPDATE sent SET final = iif(?4, ?5, pending), pending = 0 \
                 WHERE id = ?1 AND row BETWEEN ?2 AND ?3 AND pending != 0",
            )?
            .execute(params![id, key(lane.id, 0), key(lane.id, Seq::MAX), stored, Final::Stored.number()])?;
        Ok(())
    }

    /// See [`crate::protocol::SenderEffect::Lost`]. No message counts twice,
    /// however often the peer says that it has none.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn count_lost(&mut self, peer: &PeerId, channel: &str, count: u64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE out_lane SET lost = min(lost + ?3, acked) WHERE peer = ?1 AND channel = ?2")?
            .execute(params![peer.to_bytes(), channel, count.cast_signed()])?;
        Ok(())
    }

    /// See [`crate::protocol::SenderEffect::Renumber`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn renumber(&mut self, peer: &PeerId, channel: &str, epoch: Epoch) -> Result<Option<LaneInfo>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return self.lane_info(peer, channel) };
        self.mint(lane.id)?;
        self.connection.prepare_cached("UPDATE out_lane SET exposed = last WHERE id = ?1")?.execute([lane.id])?;
        self.live.remove(&lane.id);
        self.lane_info(peer, channel)
    }

    /// Gives a lane a new epoch and remembers the one it leaves.
    pub(super) fn mint(&mut self, lane: i64) -> Result<(), StoreError> {
        let (left, used, mut previous) = self
            .connection
            .prepare_cached("SELECT epoch, acked, used, previous FROM out_lane WHERE id = ?1")?
            .query_row([lane], |row| {
                let left = (row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned());
                Ok((left, row.get::<_, bool>(2)?, decode_epochs(row.get_ref(3)?.as_blob()?)))
            })?;
        // One that no peer has heard of is forgotten: many starts while the
        // peer is away must not push out those that it knows.
        if used {
            previous.insert(0, left);
        }
        previous.truncate(MAX_EPOCHS);
        let (fresh, previous) = (self.random(), encode_epochs(&previous));
        self.connection
            .prepare_cached("UPDATE out_lane SET epoch = ?2, previous = ?3, used = 0 WHERE id = ?1")?
            .execute(params![lane, fresh.cast_signed(), previous])?;
        Ok(())
    }

    /// Gives every lane a new epoch: at each start of the daemon, so that what
    /// it writes is never taken for what another run wrote from the same copy
    /// of the store.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn mint_epochs(&mut self) -> Result<(), StoreError> {
        let lanes: Vec<i64> = self
            .connection
            .prepare("SELECT id FROM out_lane WHERE last > 0")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        lanes.into_iter().try_for_each(|lane| self.mint(lane))
    }
}
