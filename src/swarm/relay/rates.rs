//! How often each of many may do something.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

use crate::swarm::link::bucket::Bucket;

/// Those who asked of late and are counted; about 1 MB. Beyond, the one that
/// asked longest ago is forgotten.
const MAX_COUNTED: usize = 4096;

/// A bucket for each. Time is passed in.
#[derive(Debug)]
pub(super) struct Rates<K> {
    burst: u32,
    interval: Duration,
    buckets: HashMap<K, (Bucket, Instant)>,
}

impl<K: Copy + Eq + Hash> Rates<K> {
    /// Each may so much at once, and once more after each interval.
    pub(super) fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, buckets: HashMap::new() }
    }

    /// Whether this one may once more.
    pub(super) fn take(&mut self, key: K, now: Instant) -> bool {
        if self.buckets.len() >= MAX_COUNTED && !self.buckets.contains_key(&key) {
            self.forget(now);
        }
        let full = || (Bucket::new(self.burst, self.interval, now.into_std()), now);
        let (bucket, last) = self.buckets.entry(key).or_insert_with(full);
        *last = now;
        bucket.take(now.into_std())
    }

    /// A bucket that is full is as good as none.
    fn forget(&mut self, now: Instant) {
        self.buckets.retain(|_, (bucket, _)| !bucket.is_full(now.into_std()));
        if self.buckets.len() >= MAX_COUNTED {
            let oldest = self.buckets.iter().min_by_key(|(_, (_, last))| *last).map(|(key, _)| *key);
            oldest.and_then(|oldest| self.buckets.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_few_are_remembered() {
        let now = Instant::now();
        let mut rates = Rates::new(2, Duration::from_secs(1));
        for key in 0..3 * MAX_COUNTED {
            assert!(rates.take(key, now));
        }
        assert_eq!(rates.buckets.len(), MAX_COUNTED);
        let last = 3 * MAX_COUNTED - 1;
        assert!(rates.take(last, now) && !rates.take(last, now));
        let later = now + Duration::from_secs(1);
        assert!(rates.take(last, later) && !rates.take(last, later));
        assert!(rates.take(last + 1, later));
        assert!(rates.buckets.len() < 3, "full ones go first");
    }
}
