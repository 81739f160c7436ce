//! Whether a router forgot its mappings, by the seconds that it counts since
//! it began to keep them.

use std::time::{Duration, Instant};

/// Seconds that clocks of the two may differ by, with rounding.
const SLACK: i64 = 2;

/// A router's count, and when it told that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch {
    seconds: u32,
    at: Instant,
}

impl Epoch {
    pub(super) fn new(seconds: u32, at: Instant) -> Self {
        Self { seconds, at }
    }

    /// Takes a later count. True when the two cannot be of one run of the
    /// router: it went back, or its clock ran more than a sixteenth slower or
    /// faster than ours (RFC 6887, 8.5). Our clock stands still while the host
    /// sleeps, which looks the same; mapping again then does no harm.
    pub(super) fn restarted(&mut self, seconds: u32, at: Instant) -> bool {
        let here = whole(at.saturating_duration_since(self.at));
        let there = i64::from(seconds) - i64::from(self.seconds);
        *self = Self { seconds, at };
        there < -1 || here + SLACK < there - there / 16 || there + SLACK < here - here / 16
    }
}

fn whole(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(first: u32, seconds: u64, then: u32) -> bool {
        let start = Instant::now();
        Epoch::new(first, start).restarted(then, start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_count_that_goes_on_is_the_same_run() {
        assert!(!after(100, 60, 160));
        assert!(!after(100, 60, 158) && !after(100, 60, 162), "rounding");
        assert!(!after(0, 3600, 3400), "a slow clock");
    }

    #[test]
    fn a_count_that_begins_anew_is_a_restart() {
        assert!(after(5000, 60, 3));
        assert!(after(10, 60, 20), "restarted 40 seconds ago");
    }

    #[test]
    fn counts_at_the_ends_of_the_range_are_no_trouble() {
        assert!(after(0, 1, u32::MAX));
        assert!(after(u32::MAX, 1, 0));
        assert!(!after(u32::MAX, 1, u32::MAX));
    }
}
