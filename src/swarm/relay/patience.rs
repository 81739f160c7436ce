//! How long to wait after a failure.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest wait.
const SHORTEST: Duration = Duration::from_secs(1);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A wait is this part of the time that the trouble has lasted: a relay that
/// comes back after a minute is noticed within five seconds, one that is away
/// for a day is asked once a minute.
const PART: u32 = 16;

/// When to try again. Time and chance are passed in: `jitter` is between 0 and
/// 1, and makes between three and five quarters of a wait.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    until: Option<Instant>,
}

impl Patience {
    /// It worked.
    pub(super) fn worked(&mut self) {
        *self = Self::default();
    }

    /// It failed.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) {
        let since = *self.since.get_or_insert(now);
        let wait = (now.saturating_duration_since(since) / PART).clamp(SHORTEST, LONGEST);
        self.until = Some(now + wait.mul_f64(0.75 + jitter / 2.0));
    }

    /// Something that worked ended: it is tried again after this time.
    pub(super) fn ended(&mut self, now: Instant, wait: Duration) {
        self.since.get_or_insert(now);
        self.until = Some(now + wait);
    }

    /// There is a new reason to believe that it works.
    pub(super) fn hint(&mut self) {
        *self = Self::default();
    }

    /// Whether it may be tried.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// How long the trouble has lasted.
    pub(super) fn lasts(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// When it may be tried, if that is later.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_the_trouble() {
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let mut patience = Patience::default();
        assert!(patience.is_over(start));
        for (now, wait) in [(0, 1), (8, 1), (32, 2), (160, 10), (960, 60), (10_000, 60)] {
            patience.failed(at(now), 0.5);
            assert_eq!(patience.until(), Some(at(now + wait)), "{now}");
            assert!(!patience.is_over(at(now)) && patience.is_over(at(now + wait)));
        }
        patience.hint();
        assert!(patience.is_over(start));
        patience.failed(at(20_000), 0.0);
        assert_eq!(patience.until(), Some(at(20_000) + Duration::from_millis(750)));
    }
}
