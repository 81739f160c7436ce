//! Where the lanes of each origin stand.

use super::*;

/// Numberings kept per origin: a sender that is restored returns to an old one.
const KEPT_EPOCHS: i64 = MAX_EPOCHS as i64 + 1;

/// A lane as it is on disk.
pub(super) struct Known {
    pub(super) high: Seq,
    pub(super) tag: Tag,
    pub(super) gaps: Vec<(Seq, Seq)>,
    /// See [`super::seen`].
    pub(super) base: Seq,
}

impl Db {
    /// Where a lane stands; `Err` names the limit that keeps it from being
    /// opened.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn open_lane(
        &self,
        peer: &PeerId,
        channel: &str,
        epoch: Epoch,
        previous: &[(Epoch, Seq)],
    ) -> Result<Result<Accepted, Limit>, StoreError> {
        let Some(origin) = self.origin(peer, channel)? else {
            return Ok(if self.may_add_origin(peer, channel)? { Ok(unknown_lane()) } else { Err(Limit::Lanes) });
        };
        if let Some(Known { high, tag, gaps, .. }) = self.lane_at(origin.id, epoch)? {
            return Ok(Ok(Accepted { high, tag, gaps, ..unknown_lane() }));
        }
        let mut best = unknown_lane();
        for (index, (epoch, upto)) in previous.iter().enumerate() {
            let Some(Known { high, tag, gaps, .. }) = self.lane_at(origin.id, *epoch)? else { continue };
            if index == 0 {
                best = Accepted { inherited: high, tag, gaps, ..best };
            }
            best.floor = best.floor.max(high.min(*upto));
        }
        Ok(Ok(best))
    }

    pub(super) fn lane_at(&self, origin: i64, epoch: Epoch) -> Result<Option<Known>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT high, tag, gaps, base FROM in_lane WHERE origin = ?1 AND epoch = ?2")?
            .query_row([origin, epoch.cast_signed()], |row| {
                Ok(Known {
                    high: row.get::<_, i64>(0)?.cast_unsigned(),
                    tag: row.get::<_, i64>(1)?.cast_unsigned(),
                    gaps: decode_gaps(row.get_ref(2)?.as_blob()?),
                    base: row.get::<_, i64>(3)?.cast_unsigned(),
                })
            })
            .optional()?)
    }

    pub(super) fn write_lane(&self, epoch: Epoch, lane: &Open, now: Millis) -> Result<(), StoreError> {
        if lane.high == 0 {
            return Ok(()); // Refused before anything of it was stored.
        }
        let origin = lane.origin.id;
        self.connection
            .prepare_cached(
                "INSERT INTO in_lane VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
                 ON CONFLICT DO UPDATE SET high = excluded.high, tag = excluded.tag, gaps = excluded.gaps",
            )?
            .execute(params![
                origin,
                epoch.cast_signed(),
                lane.high.cast_signed(),
                lane.tag.cast_signed(),
                encode_gaps(&lane.gaps),
                lane.base.cast_signed(),
                now.cast_signed()
            ])?;
        self.connection
            .prepare_cached("UPDATE origin SET bytes=bytes+?2, messages=messages+?3, lost=lost+?4 WHERE id=?1")?
            .execute(params![origin, lane.cost.cast_signed(), lane.stored.cast_signed(), lane.lost.cast_signed()])?;
        if !lane.known {
            self.connection.execute(
                "DELETE FROM in_lane WHERE origin = ?1 AND epoch NOT IN \
                 (SELECT epoch FROM in_lane WHERE origin = ?1 ORDER BY epoch = ?3 DESC, opened DESC LIMIT ?2)",
                params![origin, KEPT_EPOCHS, epoch.cast_signed()],
            )?;
        }
        Ok(())
    }
}

fn unknown_lane() -> Accepted {
    Accepted { high: 0, tag: 0, gaps: Vec::new(), inherited: 0, floor: 0 }
}

fn encode_gaps(gaps: &[(Seq, Seq)]) -> Vec<u8> {
    gaps.iter().flat_map(|(first, last)| [first.to_le_bytes(), last.to_le_bytes()]).flatten().collect()
}

fn decode_gaps(bytes: &[u8]) -> Vec<(Seq, Seq)> {
    let number = |half: &[u8]| half.iter().rev().fold(0, |sum, byte| sum << 8 | Seq::from(*byte));
    bytes.chunks_exact(16).map(|gap| (number(&gap[..8]), number(&gap[8..]))).collect()
}
