//! Notices that a peer which owes an answer says nothing.
//!
//! A mapping in a NAT that is gone, or an address that changed, breaks a
//! connection without a word. The transport finds out after seconds of
//! silence; whoever sends and hears nothing may suspect it much sooner, and
//! the network then looks into it.

use std::time::Duration;

use tokio::time::Instant;

/// After this without any frame from a peer that owes one, its link is
/// suspected. A peer whose disk is slow is suspected in vain: that costs it one
/// ping, which needs no disk.
const PATIENCE: Duration = Duration::from_millis(500);
/// From one suspicion of a link to the next.
const AGAIN: Duration = Duration::from_secs(2);

/// The silence on one link. Time is passed in.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Since when an answer may be owed, or since the last frame if later.
    since: Option<Instant>,
    /// It was suspected in this silence.
    suspected: bool,
}

impl Silence {
    /// There is another link, or none.
    pub(super) fn over(&mut self) {
        *self = Self::default();
    }

    /// A frame was sent that may want an answer.
    pub(super) fn sent(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Frames came: whatever is still owed is owed from now on.
    pub(super) fn heard(&mut self, now: Instant) {
        self.suspected = false;
        if self.since.is_some() {
            self.since = Some(now);
        }
    }

    /// When to call [`Self::judge`].
    pub(super) fn next(&self) -> Option<Instant> {
        Some(self.since? + if self.suspected { AGAIN } else { PATIENCE })
    }

    /// Whether the link is to be suspected; `owed` says whether the peer owes
    /// an answer after all.
    pub(super) fn judge(&mut self, owed: bool, now: Instant) -> bool {
        if self.next().is_none_or(|next| next > now) {
            return false;
        }
        self.since = owed.then_some(now);
        self.suspected = owed;
        owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_that_owes_an_answer_is_suspected() {
        let start = Instant::now();
        let mut silence = Silence::default();
        assert_eq!(silence.next(), None);
        silence.sent(start);
        silence.sent(start + PATIENCE / 2);
        assert_eq!(silence.next(), Some(start + PATIENCE));
        assert!(!silence.judge(true, start + PATIENCE / 2));
        silence.heard(start + PATIENCE / 2);
        assert_eq!(silence.next(), Some(start + PATIENCE / 2 + PATIENCE), "something came");
        assert!(!silence.judge(false, start + 2 * PATIENCE), "all is answered");
        assert_eq!(silence.next(), None);
    }

    #[test]
    fn a_silence_that_lasts_is_told_again_and_again() {
        let start = Instant::now();
        let mut silence = Silence::default();
        silence.sent(start);
        let mut now = start + PATIENCE;
        assert!(silence.judge(true, now));
        assert!(!silence.judge(true, now));
        for _ in 0..3 {
            assert_eq!(silence.next(), Some(now + AGAIN));
            now += AGAIN;
            assert!(silence.judge(true, now));
        }
        silence.heard(now);
        assert_eq!(silence.next(), Some(now + PATIENCE));
        silence.over();
        assert_eq!(silence.next(), None);
    }
}
