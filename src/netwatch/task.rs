//! The task that watches.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    NetState, NetworkChange,
    kernel::Kernel,
    sleep::{ClockPair, Sleep},
};

/// Notices come in bursts: an interface that comes up gets its addresses and
/// routes within this time of each other.
const QUIET: Duration = Duration::from_millis(250);
/// A burst without end is looked at all the same.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// How late a resume from sleep may be noticed. A look costs microseconds.
const SLEEP_LOOK: Duration = Duration::from_secs(3);
/// After an answer that made no sense, such as one cut short by a change.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(
    kernel: Kernel,
    state: watch::Sender<NetState>,
    changes: mpsc::Sender<NetworkChange>,
    stop: CancellationToken,
) {
    let ended = Task { kernel, state, burst: None, waiting: None }.run(&changes, &stop).await;
    if let Err(why) = ended {
        tracing::warn!(why, "network changes are not noticed any more; restart the daemon after one");
    }
}

struct Task {
    kernel: Kernel,
    state: watch::Sender<NetState>,
    burst: Option<Burst>,
    /// For a reader that has not taken the last one.
    waiting: Option<NetworkChange>,
}

impl Task {
    async fn run(
        mut self,
        changes: &mpsc::Sender<NetworkChange>,
        stop: &CancellationToken,
    ) -> Result<(), &'static str> {
        let mut sleep = Sleep::new(ClockPair::read());
        let mut looks = interval(SLEEP_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.burst.as_ref().map(Burst::due);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = changes.closed() => return Ok(()),
                open = self.kernel.notice() => {
                    if !open {
                        return Err("the kernel closed the connection");
                    }
                    self.noticed(Instant::now());
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.look().await,
                Ok(permit) = changes.reserve(), if self.waiting.is_some() => {
                    if let Some(change) = self.waiting.take() {
                        permit.send(change);
                    }
                }
                _ = looks.tick() => {
                    if let Some(slept) = sleep.look(ClockPair::read()) {
                        self.tell(NetworkChange::slept(slept.as_secs()));
                    }
                }
            }
        }
    }

    fn noticed(&mut self, now: Instant) {
        self.burst = Some(match self.burst.take() {
            Some(burst) => burst.goes_on(now),
            None => Burst { began: now, last: now },
        });
    }

    async fn look(&mut self) {
        self.burst = None;
        match self.kernel.read().await {
            Ok(next) => {
                let change = self.state.borrow().change_to(&next);
                if let Some(change) = change {
                    self.state.send_replace(next);
                    self.tell(change);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the network cannot be read; trying again");
                self.noticed(Instant::now() + AGAIN);
            }
        }
    }

    fn tell(&mut self, change: NetworkChange) {
        self.waiting = Some(match self.waiting.take() {
            Some(earlier) => earlier.and(change),
            None => change,
        });
    }
}

/// Notices in a row.
#[derive(Debug)]
struct Burst {
    began: Instant,
    last: Instant,
}

impl Burst {
    fn goes_on(self, now: Instant) -> Self {
        Self { last: now, ..self }
    }

    fn due(&self) -> Instant {
        (self.last + QUIET).min(self.began + LONGEST_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_due_when_it_is_quiet_or_too_long() {
        let began = Instant::now();
        let mut burst = Burst { began, last: began };
        assert_eq!(burst.due(), began + QUIET);
        for step in 1..20 {
            burst = burst.goes_on(began + Duration::from_millis(100 * step));
        }
        assert_eq!(burst.due(), began + LONGEST_BURST);
    }
}
