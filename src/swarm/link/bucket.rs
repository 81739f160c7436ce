//! A token bucket.

use std::time::{Duration, Instant};

/// Lets a burst through and then one thing per interval. Time is passed in.
#[derive(Debug)]
pub(in crate::swarm) struct Bucket {
    burst: u32,
    interval: Duration,
    tokens: u32,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(in crate::swarm) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { burst, interval, tokens: burst, filled: now }
    }

    /// Takes a token if there is one.
    pub(in crate::swarm) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }

    /// Whether it is as a new one.
    pub(in crate::swarm) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens == self.burst
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let tokens = u32::try_from(passed.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        if tokens >= self.burst - self.tokens {
            self.tokens = self.burst;
            self.filled = now;
        } else {
            self.tokens += tokens;
            self.filled += self.interval * tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(3, Duration::from_secs(1), start);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(taken(&mut bucket, at(999)), 0);
        assert_eq!(taken(&mut bucket, at(1500)), 1);
        assert_eq!(taken(&mut bucket, at(2000)), 1);
        assert_eq!(taken(&mut bucket, at(1_000_000)), 3);
    }
}
