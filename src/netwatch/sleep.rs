//! Notices that the host slept: the boot clock counts sleep, the monotonic one
//! does not.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Less is the jitter of reading two clocks, on a machine that is busy.
const LEAST: Duration = Duration::from_millis(500);

/// How far the two clocks were apart.
#[derive(Debug)]
pub(super) struct Sleep {
    apart: Duration,
}

impl Sleep {
    pub(super) fn new(reading: ClockPair) -> Self {
        Self { apart: reading.apart() }
    }

    /// How long the host slept since the last look, if it did.
    pub(super) fn look(&mut self, reading: ClockPair) -> Option<Duration> {
        let apart = reading.apart();
        let slept = apart.saturating_sub(self.apart);
        self.apart = apart;
        (slept >= LEAST).then_some(slept)
    }
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClockPair {
    boot: Duration,
    monotonic: Duration,
}

impl ClockPair {
    /// Clocks that cannot be read never slept.
    pub(super) fn read() -> Self {
        // The monotonic one first: a pause between the two looks like sleep.
        let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
        let monotonic = read(ClockId::CLOCK_MONOTONIC);
        Self { monotonic, boot: read(ClockId::CLOCK_BOOTTIME) }
    }

    fn apart(self) -> Duration {
        self.boot.saturating_sub(self.monotonic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot_ms: u64, monotonic_ms: u64) -> ClockPair {
        ClockPair { boot: Duration::from_millis(boot_ms), monotonic: Duration::from_millis(monotonic_ms) }
    }

    #[test]
    fn sleep_is_told_once() {
        let mut sleep = Sleep::new(at(1000, 900));
        assert_eq!(sleep.look(at(4000, 3900)), None);
        assert_eq!(sleep.look(at(67_000, 6900)), Some(Duration::from_secs(60)));
        assert_eq!(sleep.look(at(70_000, 9900)), None);
    }

    #[test]
    fn jitter_is_no_sleep() {
        let mut sleep = Sleep::new(at(1000, 900));
        assert_eq!(sleep.look(at(4100, 3900)), None);
        assert_eq!(sleep.look(at(7000, 6900)), None);
    }

    #[test]
    fn the_machine_has_both_clocks() {
        let reading = ClockPair::read();
        assert!(reading.boot >= reading.monotonic && reading.monotonic > Duration::ZERO, "{reading:?}");
    }
}
