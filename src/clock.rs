//! Store time: what a message's time to live is counted in.
//!
//! Wall clocks jump: a Raspberry Pi wakes up in the past and is set right
//! minutes later, and a user can set any date. So store time counts boot time,
//! which includes suspend and never jumps. While the machine was off, only the
//! wall clock can tell how long; it is believed when it is set from the
//! network now, and counts for nothing otherwise, so that a message rather
//! lives too long than expires unread.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Longest time off that is counted: more than any time to live, so that a
/// wrong date cannot push store time out of range.
pub const MAX_DOWNTIME_MS: u64 = 365 * 24 * 60 * 60 * 1000;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Made by systemd-timesyncd once it has set the clock.
const TIMESYNC_MARK: &str = "/run/systemd/timesync/synchronized";
/// Asks the kernel, for other daemons such as chrony. Its question is asked by
/// a program because the system call has no safe binding, and because a
/// sandbox that protects the clock forbids it.
const TIMEDATECTL: &str = "/usr/bin/timedatectl";
/// It answers in milliseconds; a bus that hangs must not hold up the start.
const TIMEDATECTL_DEADLINE: Duration = Duration::from_secs(2);

/// A moment of store time, kept in the store to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockMark {
    /// Store time, in milliseconds.
    pub store_ms: u64,
    /// Unix time then, in milliseconds.
    pub wall_ms: i64,
    /// Time since boot then, in milliseconds.
    pub boot_ms: u64,
    /// Which boot that was.
    pub boot_id: String,
}

/// The machine's clocks at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Unix time, in milliseconds.
    pub wall_ms: i64,
    /// Time since boot, suspend included, in milliseconds.
    pub boot_ms: u64,
    /// Names this boot.
    pub boot_id: String,
    /// The wall clock is set from the network.
    pub synchronised: bool,
}

/// Counts store time. Never goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreClock {
    /// Store time at `start_boot_ms`.
    start_ms: u64,
    start_boot_ms: u64,
    boot_id: String,
}

impl Reading {
    /// Reads the clocks. Whether the wall clock is synchronised is asked only
    /// if it matters, which is once a boot: when `mark` is of another one. May
    /// block for up to two seconds then.
    ///
    /// # Errors
    /// The boot id or the boot clock cannot be read.
    pub fn take(mark: Option<&ClockMark>) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{BOOT_ID}: {error}"));
        let boot_id = fs::read_to_string(BOOT_ID).map_err(named)?.trim().to_owned();
        let other_boot = mark.is_some_and(|mark| mark.boot_id != boot_id);
        Ok(Self { wall_ms: wall_ms(), boot_ms: boot_ms()?, boot_id, synchronised: other_boot && synchronised() })
    }
}

impl StoreClock {
    /// Goes on from where the store left off; a new store begins at 0.
    #[must_use]
    pub fn resume(mark: Option<&ClockMark>, now: &Reading) -> Self {
        let start_ms = mark.map_or(0, |mark| mark.store_ms.saturating_add(elapsed_ms(mark, now)));
        Self { start_ms, start_boot_ms: now.boot_ms, boot_id: now.boot_id.clone() }
    }

    /// Store time, in milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        // The boot clock was there when this was made, so it is there now.
        self.at(boot_ms().unwrap_or(self.start_boot_ms))
    }

    /// This moment, to be kept in the store.
    #[must_use]
    pub fn mark(&self) -> ClockMark {
        let boot_ms = boot_ms().unwrap_or(self.start_boot_ms);
        ClockMark { store_ms: self.at(boot_ms), wall_ms: wall_ms(), boot_ms, boot_id: self.boot_id.clone() }
    }

    fn at(&self, boot_ms: u64) -> u64 {
        self.start_ms.saturating_add(boot_ms.saturating_sub(self.start_boot_ms))
    }
}

fn elapsed_ms(mark: &ClockMark, now: &Reading) -> u64 {
    if mark.boot_id == now.boot_id {
        // A virtual machine that was rolled back is before the mark.
        return now.boot_ms.saturating_sub(mark.boot_ms);
    }
    if !now.synchronised {
        return 0;
    }
    let passed = now.wall_ms.saturating_sub(mark.wall_ms);
    u64::try_from(passed).unwrap_or(0).min(MAX_DOWNTIME_MS)
}

/// Unix time, in milliseconds.
#[must_use]
pub fn wall_ms() -> i64 {
    let since = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => since(after),
        Err(before) => -since(before.duration()),
    }
}

fn boot_ms() -> io::Result<u64> {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn synchronised() -> bool {
    Path::new(TIMESYNC_MARK).exists() || kernel_synchronised().unwrap_or(false)
}

fn kernel_synchronised() -> io::Result<bool> {
    let mut child = Command::new(TIMEDATECTL)
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + TIMEDATECTL_DEADLINE;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?.stdout.trim_ascii() == b"yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;
    const YEAR: i64 = 365 * 24 * HOUR;

    fn mark() -> ClockMark {
        ClockMark { store_ms: 1_000, wall_ms: 50 * YEAR, boot_ms: 5_000, boot_id: "a".into() }
    }

    fn reading(boot_id: &str, wall_passed: i64, boot_ms: u64, synchronised: bool) -> Reading {
        Reading { wall_ms: mark().wall_ms + wall_passed, boot_ms, boot_id: boot_id.into(), synchronised }
    }

    fn resumed(now: &Reading) -> u64 {
        StoreClock::resume(Some(&mark()), now).at(now.boot_ms)
    }

    #[test]
    fn within_a_boot_only_boot_time_counts() {
        for wall_passed in [300, -HOUR, YEAR, -50 * YEAR] {
            for synchronised in [false, true] {
                assert_eq!(resumed(&reading("a", wall_passed, 5_300, synchronised)), 1_300);
            }
        }
    }

    #[test]
    fn a_machine_rolled_back_does_not_take_store_time_back() {
        assert_eq!(resumed(&reading("a", -HOUR, 100, true)), 1_000);
    }

    #[test]
    fn downtime_counts_on_a_synchronised_clock() {
        assert_eq!(resumed(&reading("b", HOUR, 20, true)), 1_000 + HOUR as u64);
    }

    #[test]
    fn downtime_does_not_count_on_a_clock_that_nobody_set() {
        for wall_passed in [HOUR, -HOUR, YEAR] {
            assert_eq!(resumed(&reading("b", wall_passed, 20, false)), 1_000);
        }
    }

    #[test]
    fn an_hour_back_counts_nothing() {
        assert_eq!(resumed(&reading("b", -HOUR, 20, true)), 1_000);
        let epoch = Reading { wall_ms: i64::MIN, ..reading("b", 0, 20, true) };
        assert_eq!(resumed(&epoch), 1_000);
    }

    #[test]
    fn years_forward_count_as_one() {
        assert_eq!(resumed(&reading("b", YEAR, 20, true)), 1_000 + YEAR as u64);
        assert_eq!(resumed(&reading("b", 20 * YEAR, 20, true)), 1_000 + MAX_DOWNTIME_MS);
        let end = Reading { wall_ms: i64::MAX, ..reading("b", 0, 20, true) };
        assert_eq!(resumed(&end), 1_000 + MAX_DOWNTIME_MS);
    }

    #[test]
    fn a_new_store_begins_at_zero_and_counts_boot_time() {
        let clock = StoreClock::resume(None, &reading("a", 0, 5_000, true));
        assert_eq!(clock.at(5_000), 0);
        assert_eq!(clock.at(5_250), 250);
    }

    #[test]
    fn the_clocks_of_this_machine_can_be_read() {
        let first = Reading::take(None).unwrap();
        let clock = StoreClock::resume(None, &first);
        let mark = clock.mark();
        assert_eq!(mark.boot_id, first.boot_id);
        assert!(mark.wall_ms > 50 * YEAR && mark.boot_ms >= first.boot_ms);
        let again = StoreClock::resume(Some(&mark), &Reading::take(Some(&mark)).unwrap());
        assert!(again.now() >= mark.store_ms);
        // Asks whether the clock is synchronised; what comes back depends on the machine.
        let other_boot = ClockMark { boot_id: "other".into(), ..mark };
        assert!(Reading::take(Some(&other_boot)).is_ok());
    }
}
