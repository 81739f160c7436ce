//! What time demands: messages expire, old ids and tickets are forgotten, the
//! clock is marked, the file shrinks.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Delivery;
use crate::{
    clock::ClockMark,
    store::{Buried, Db, StoreError},
};

/// Longest that the expiry of a message is not looked at.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);
/// After a failure of the store.
const RETRY: Duration = Duration::from_secs(1);
/// Between two rounds of tidying up.
const TIDY: Duration = Duration::from_secs(60);
/// Pages given back in one round.
const SHRINK_PAGES: u32 = 256;

/// Name of the clock's mark in the store.
pub(crate) const CLOCK_MARK: &str = "clock";

impl Delivery {
    pub(super) async fn keep_up(self) {
        let mut tidy = interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let inner = &self.inner;
            let wait = inner.next_expiry.load(Ordering::Acquire).saturating_sub(inner.clock.now());
            let wake = Instant::now() + Duration::from_millis(wait).min(EXPIRY_CHECK);
            let done = tokio::select! {
                biased;
                () = inner.stop.cancelled() => return,
                () = inner.expiry_moved.notified() => Ok(()),
                () = tokio::time::sleep_until(wake) => self.expire().await,
                _ = tidy.tick() => self.tidy().await,
            };
            if let Err(error) = done {
                tracing::warn!(%error, "upkeep of the store failed; it is tried again");
                tokio::select! {
                    () = self.inner.stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }

    async fn expire(&self) -> Result<(), StoreError> {
        let now = self.inner.clock.now();
        // Whatever is put in meanwhile moves it down again.
        self.inner.next_expiry.store(u64::MAX, Ordering::Release);
        let expired = self
            .inner
            .store
            .write_then(
                move |db| Ok((db.expire(now)?, db.next_expiry()?)),
                self.inner.disturb_then(|(buried, _): &(Vec<Buried>, _)| buried),
            )
            .await;
        let (buried, next) = expired.inspect_err(|_| self.inner.next_expiry.store(0, Ordering::Release))?;
        self.inner.next_expiry.fetch_min(next.unwrap_or(u64::MAX), Ordering::AcqRel);
        // Of the others only the peer knows.
        let count = buried.iter().filter(|row| row.is_final).count();
        if count > 0 {
            tracing::info!(count, "messages expired before they could be delivered");
        }
        Ok(())
    }

    /// Forgets ids that are old enough, in steps between which the store does
    /// other work. What comes in faster than this runs is kept in bounds by the
    /// store itself.
    async fn tidy(&self) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let now = self.inner.clock.now();
        let mark = self.inner.clock.mark();
        store.write(move |db| write_mark(db, &mark)).await?;
        let mut lane = Some(0);
        while let Some(after) = lane {
            lane = store.write(move |db| db.forget_sent(after, now)).await?;
        }
        let mut origin = Some(0);
        while let Some(after) = origin {
            origin = store.write(move |db| db.forget_seen(after, now)).await?;
        }
        store.write(move |db| db.forget_invites(now)).await?;
        store.write(|db| db.shrink(SHRINK_PAGES)).await
    }
}

/// Writes the clock's mark.
pub(crate) fn write_mark(db: &Db, mark: &ClockMark) -> Result<(), StoreError> {
    let text = serde_json::json!({
        "store_ms": mark.store_ms,
        "wall_ms": mark.wall_ms,
        "boot_ms": mark.boot_ms,
        "boot_id": mark.boot_id,
    });
    db.set_mark(CLOCK_MARK, &text.to_string())
}

/// Reads the clock's mark; `None` if there is none that can be read.
pub(crate) fn read_mark(db: &Db) -> Result<Option<ClockMark>, StoreError> {
    let Some(text) = db.mark(CLOCK_MARK)? else { return Ok(None) };
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) else { return Ok(None) };
    let number = |key: &str| value.get(key)?.as_u64();
    let mark = || {
        Some(ClockMark {
            store_ms: number("store_ms")?,
            wall_ms: value.get("wall_ms")?.as_i64()?,
            boot_ms: number("boot_ms")?,
            boot_id: value.get("boot_id")?.as_str()?.to_owned(),
        })
    };
    Ok(mark())
}
