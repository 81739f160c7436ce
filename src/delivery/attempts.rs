//! How often messages were delivered to a consumer: runs of cursors with one
//! count each, since deliveries always begin after the cursor and go on in
//! order.

/// Runs kept: past that the oldest counts are merged downwards, so that a
/// count is never higher than the truth.
const MAX_RUNS: usize = 16;

/// Counts of deliveries after a consumer's cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    /// Last cursor of each run, ascending, and its count, descending.
    runs: Vec<(u64, u32)>,
}

impl Attempts {
    pub(super) fn decode(bytes: &[u8]) -> Self {
        let runs = bytes
            .chunks_exact(12)
            .filter_map(|run| {
                let (upto, count) = run.split_first_chunk::<8>()?;
                Some((u64::from_le_bytes(*upto), u32::from_le_bytes(count.try_into().ok()?)))
            })
            .take(MAX_RUNS)
            .collect();
        Self { runs }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.runs
            .iter()
            .flat_map(|(upto, count)| [&upto.to_le_bytes()[..], &count.to_le_bytes()[..]].concat())
            .collect()
    }

    /// Deliveries of the message at a cursor so far.
    pub(super) fn of(&self, cursor: u64) -> u32 {
        self.runs.iter().find(|(upto, _)| *upto >= cursor).map_or(0, |(_, count)| *count)
    }

    /// The counts after all up to `upto` were delivered once more.
    pub(super) fn delivered(&self, upto: u64) -> Self {
        let mut runs: Vec<(u64, u32)> =
            self.runs.iter().filter(|(last, _)| *last < upto).map(|(last, count)| (*last, count + 1)).collect();
        runs.push((upto, self.of(upto) + 1));
        runs.extend(self.runs.iter().filter(|(last, _)| *last > upto));
        runs.dedup_by(|later, earlier| {
            let same = later.1 == earlier.1;
            if same {
                earlier.0 = later.0;
            }
            same
        });
        if runs.len() > MAX_RUNS {
            runs.drain(..runs.len() - MAX_RUNS);
        }
        Self { runs }
    }

    /// Forgets what is acknowledged.
    pub(super) fn acknowledged(&mut self, cursor: u64) {
        self.runs.retain(|(upto, _)| *upto > cursor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_runs() {
        let first = Attempts::default().delivered(5);
        assert_eq!((first.of(1), first.of(5), first.of(6)), (1, 1, 0));
        let second = first.delivered(3);
        assert_eq!((second.of(3), second.of(4), second.of(6)), (2, 1, 0));
        let third = second.delivered(9);
        assert_eq!((third.of(3), third.of(4), third.of(9)), (3, 2, 1));
        assert_eq!(Attempts::decode(&third.encode()), third);
        let mut left = third.clone();
        left.acknowledged(3);
        assert_eq!((left.of(4), left.of(9)), (2, 1));
    }

    #[test]
    fn stays_small_and_never_counts_too_high() {
        let mut attempts = Attempts::default();
        for upto in (1..100).rev() {
            attempts = attempts.delivered(upto);
            assert!(attempts.runs.len() <= MAX_RUNS);
        }
        assert!(attempts.of(1) <= 99 && attempts.of(99) == 1);
    }
}
