//! Messages that are given up.
//!
//! One that the peer may have seen becomes a tombstone, which tells the peer to
//! go on without it and asks whether it has it. Of one that it cannot have seen
//! no row is left: what expires while a peer is away, for months perhaps, takes
//! no room. The peer is told of such a hole as one.

use super::*;

impl Db {
    /// See [`crate::protocol::SenderEffect::Reject`].
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn reject(
        &mut self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        seq: Seq,
    ) -> Result<Option<Buried>, StoreError> {
        let Some(lane) = self.lane_in(peer, channel, epoch)? else { return Ok(None) };
        let id: Option<String> = self
            .connection
            .prepare_cached("SELECT id FROM outbox WHERE row = ?1")?
            .query_row([key(lane.id, seq)], |row| row.get(0))
            .optional()?;
        let Some(id) = id else { return Ok(None) };
        self.bury(&lane, &id, Final::TooLarge)?;
        Ok(Some(Buried { peer: *peer, channel: channel.into(), epoch, seq, id, is_final: seq > lane.exposed }))
    }

    /// Takes a message back. Returns what is known of it after that, and the
    /// message that was given up, if it was.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn cancel(&mut self, record: &SentRecord) -> Result<(Option<SentRecord>, Option<Buried>), StoreError> {
        let Some(lane) = self.lane(&record.peer, &record.channel)? else { return Ok((None, None)) };
        let buried = self.bury(&lane, &record.id, Final::Cancelled)?.map(|seq| Buried {
            peer: record.peer,
            channel: record.channel.clone(),
            epoch: lane.epoch,
            seq,
            id: record.id.clone(),
            is_final: seq > lane.exposed,
        });
        Ok((self.sent(lane.id, &record.id)?.map(|(record, _)| record), buried))
    }

    /// Gives up messages whose time has run out: a bounded number.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn expire(&mut self, now: Millis) -> Result<Vec<Buried>, StoreError> {
        let due: Vec<(i64, String)> = self
            .connection
            .prepare_cached("SELECT row, id FROM outbox WHERE buried = 0 AND expires_at <= ?1 LIMIT ?2")?
            .query_map([now.cast_signed(), MAX_EXPIRED], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut buried = Vec::new();
        for (row, id) in due {
            let sql = format!("SELECT {}, peer, channel FROM out_lane WHERE id = ?1", LaneRow::COLUMNS);
            let (lane, peer, channel) = self.connection.prepare_cached(&sql)?.query_row([owner(row)], |row| {
                Ok((LaneRow::read(row)?, peer(&row.get::<_, Vec<u8>>(6)?)?, row.get::<_, String>(7)?))
            })?;
            if let Some(seq) = self.bury(&lane, &id, Final::Expired)? {
                let (channel, epoch, is_final) = (channel.into(), lane.epoch, seq > lane.exposed);
                buried.push(Buried { peer, channel, epoch, seq, id, is_final });
            }
        }
        Ok(buried)
    }

    /// When the next message expires.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn next_expiry(&self) -> Result<Option<Millis>, StoreError> {
        let next: Option<i64> = self
            .connection
            .prepare_cached("SELECT min(expires_at) FROM outbox WHERE buried = 0")?
            .query_row([], |row| row.get(0))?;
        Ok(next.map(i64::cast_unsigned))
    }

    /// Gives up a message that waits; its position, if it did. Its outcome is
    /// final only if the peer cannot have seen it.
    pub(super) fn bury(&mut self, lane: &LaneRow, id: &str, why: Final) -> Result<Option<Seq>, StoreError> {
        let Some((record, _)) = self.sent(lane.id, id)? else { return Ok(None) };
        if !matches!(record.progress, Progress::Queued | Progress::Sent) {
            return Ok(None);
        }
        let row = key(lane.id, record.seq);
        let cost: Option<i64> = self
            .connection
            .prepare_cached("SELECT cost FROM outbox WHERE row = ?1 AND buried = 0")?
            .query_row([row], |row| row.get(0))
            .optional()?;
        // One that is a tombstone already, and not final, keeps its outcome.
        let Some(cost) = cost else { return Ok(None) };
        let unseen = record.seq > lane.exposed;
        let (done, pending) = if unseen { (why.number(), 0) } else { (0, why.number()) };
        self.connection
            .prepare_cached("UPDATE sent SET final = ?2, pending = ?3 WHERE row = ?1")?
            .execute([row, done, pending])?;
        // A skip from the first position on without an id says what the peer
        // is known to have; that position keeps its tombstone.
        let left = if unseen && record.seq > 1 {
            self.connection.prepare_cached("DELETE FROM outbox WHERE row = ?1")?.execute([row])?;
            0
        } else {
            let (empty, left) = (Content { id: id.to_owned(), ..Content::default() }, cost.min(TOMBSTONE_COST));
            self.connection
                .prepare_cached(
                    "UPDATE outbox SET buried = ?2, cost = ?3, kind = '', reply_to = '', timestamp = 0, \
                     metadata = x'', payload = x'', checksum = ?4 WHERE row = ?1",
                )?
                .execute(params![row, why.number(), left, checksum(row, &empty, &[])])?;
            left
        };
        self.connection
            .prepare_cached("UPDATE out_lane SET bytes = bytes + ?2, messages = messages - 1 WHERE id = ?1")?
            .execute([lane.id, left - cost])?;
        self.outbox.messages = self.outbox.messages.saturating_sub(1);
        self.outbox.bytes = self.outbox.bytes.saturating_add_signed(left - cost);
        Ok(Some(record.seq))
    }
}
