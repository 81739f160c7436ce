//! What the line of each site does to packets: delay, loss, outage. Set while
//! the lab runs.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

/// Losses are counted in parts of a million.
const MILLION: f64 = 1_000_000.0;

/// The lines of a lab, by number of the site.
pub(crate) struct Lines {
    lines: Vec<Line>,
    /// Packets with a source or destination that no site has: a router that
    /// let a private address out.
    pub(crate) strays: AtomicU64,
    /// Packets that met a full queue.
    pub(crate) overflows: AtomicU64,
}

#[derive(Default)]
struct Line {
    delay_micros: AtomicU32,
    loss_millionths: AtomicU32,
    down: AtomicBool,
}

impl Lines {
    pub(crate) fn new() -> Self {
        let lines = (0..=u8::MAX).map(|_| Line::default()).collect();
        Self { lines, strays: AtomicU64::new(0), overflows: AtomicU64::new(0) }
    }

    /// One-way delay and loss in percent between the site and the middle of
    /// the internet, the same in both directions: a packet between two sites
    /// meets both.
    pub(crate) fn set(&self, site: u8, delay: Duration, loss_percent: f64) {
        let line = &self.lines[usize::from(site)];
        line.delay_micros.store(u32::try_from(delay.as_micros()).unwrap(), Ordering::Relaxed);
        let loss = (loss_percent / 100.0 * MILLION).round();
        assert!((0.0..=MILLION).contains(&loss), "loss of {loss_percent}%");
        line.loss_millionths.store(loss as u32, Ordering::Relaxed);
        self.set_down(site, false);
    }

    /// Loses everything, silently.
    pub(crate) fn set_down(&self, site: u8, down: bool) {
        self.lines[usize::from(site)].down.store(down, Ordering::Relaxed);
    }

    /// How long a packet is under way; `None` if it is lost.
    pub(crate) fn journey(&self, from: u8, to: u8) -> Option<Duration> {
        let lines = [&self.lines[usize::from(from)], &self.lines[usize::from(to)]];
        let lost = |line: &&Line| {
            let loss = line.loss_millionths.load(Ordering::Relaxed);
            line.down.load(Ordering::Relaxed) || (loss > 0 && rand::random_range(0..1_000_000) < loss)
        };
        if lines.iter().any(lost) {
            return None;
        }
        let micros = lines.iter().map(|line| u64::from(line.delay_micros.load(Ordering::Relaxed))).sum();
        Some(Duration::from_micros(micros))
    }
}
