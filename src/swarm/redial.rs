//! When to dial a peer again that should be connected.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use tokio::time::Instant;

use super::timers::Timers;

/// First wait after a failure: the peer may be on its way to the same relay.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait: a peer that comes back is reached within about a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Dials that cannot be started yet are spread over this time.
const SPREAD: Duration = Duration::from_secs(1);
/// Dials after a loss are spread over this time, so that two sides do not dial
/// at once.
const LOSS_SPREAD: Duration = Duration::from_millis(300);
/// Dials after a change of the network are spread over so much for each peer,
/// so that many are not dialled together.
const CHANGE_SPREAD: Duration = Duration::from_millis(20);
/// A connection that lived this long was a good one; the loss of one that did
/// not counts as a failure, after the first: a peer that refuses this node
/// accepts the connection and closes it.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// Peers that should be connected and when each is dialled next. Time and
/// chance are passed in: `jitter` is between 0 and 1.
#[derive(Debug)]
pub(super) struct Redial {
    /// Those that should be connected.
    peers: HashMap<PeerId, Tries>,
    /// Absent while the peer is connected or a dial is under way.
    timers: Timers<PeerId>,
}

#[derive(Debug, Default)]
struct Tries {
    /// Dials that failed in a row.
    failures: u32,
    /// Connections in a row that were lost at once.
    losses: u32,
    /// Since when it is connected, or was last.
    connected: Option<Instant>,
}

impl Redial {
    pub(super) fn new() -> Self {
        Self { peers: HashMap::new(), timers: Timers::new() }
    }

    /// Whether the peer should be connected.
    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    /// Whether the peer is to be dialled at some time.
    pub(super) fn is_waiting(&self, peer: &PeerId) -> bool {
        self.timers.get(peer).is_some()
    }

    /// The peer should be connected from now on and is not.
    pub(super) fn add(&mut self, peer: PeerId, now: Instant) {
        if !self.contains(&peer) {
            self.peers.insert(peer, Tries::default());
            self.timers.set(peer, now);
        }
    }

    /// The peer need not be connected any more.
    pub(super) fn remove(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
        self.timers.clear(peer);
    }

    /// The peer is connected; perhaps it was before.
    pub(super) fn connected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(tries) = self.peers.get_mut(peer) {
            tries.failures = 0;
            tries.connected.get_or_insert(now);
            self.timers.clear(peer);
        }
    }

    /// The last connection is gone.
    pub(super) fn lost(&mut self, peer: PeerId, now: Instant, jitter: f64) {
        let Some(tries) = self.peers.get_mut(&peer) else { return };
        let since = tries.connected.take();
        let good = since.is_none_or(|since| now.saturating_duration_since(since) >= GOOD_LIFE);
        let wait = match tries.losses {
            before if !good && before > 0 => wait(before - 1, jitter),
            _ => LOSS_SPREAD.mul_f64(jitter),
        };
        tries.losses = if good { 0 } else { tries.losses.saturating_add(1) };
        self.timers.set(peer, now + wait);
    }

    /// A dial failed.
    pub(super) fn failed(&mut self, peer: PeerId, now: Instant, jitter: f64) {
        if let Some(Tries { failures, .. }) = self.peers.get_mut(&peer) {
            self.timers.set(peer, now + wait(*failures, jitter));
            *failures = failures.saturating_add(1);
        }
    }

    /// No dial could be started for want of room; this is not the peer's fault.
    pub(super) fn postpone(&mut self, peer: PeerId, now: Instant, jitter: f64) {
        if self.contains(&peer) {
            self.timers.set(peer, now + FIRST_WAIT + SPREAD.mul_f64(jitter));
        }
    }

    /// There is a new reason to believe that the peer can be reached.
    pub(super) fn hint(&mut self, peer: PeerId, now: Instant) {
        if let Some(tries) = self.peers.get_mut(&peer) {
            (tries.failures, tries.losses) = (0, 0);
            if self.timers.get(&peer).is_some_and(|at| at > now) {
                self.timers.set(peer, now);
            }
        }
    }

    /// The network changed: all that wait are tried again soon.
    pub(super) fn network_changed(&mut self, now: Instant, mut jitter: impl FnMut() -> f64) {
        let spread = CHANGE_SPREAD.saturating_mul(self.timers.len() as u32).min(SPREAD);
        for (peer, tries) in &mut self.peers {
            (tries.failures, tries.losses) = (0, 0);
            let soon = now + spread.mul_f64(jitter());
            if self.timers.get(peer).is_some_and(|at| at > soon) {
                self.timers.set(*peer, soon);
            }
        }
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    /// When [`Self::pop_due`] has something next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// A peer to dial now; it does not come again until [`Self::failed`],
    /// [`Self::postpone`] or [`Self::lost`] is called.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<PeerId> {
        self.timers.pop_due(now)
    }
}

/// Doubles with every failure; between three and five quarters of it.
fn wait(failures: u32, jitter: f64) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.min(8)).min(LONGEST_WAIT).mul_f64(0.75 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(text: f64) -> Duration {
        Duration::from_secs_f64(text)
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut now = Instant::now();
        let peer = PeerId::random();
        let mut redial = Redial::new();
        redial.add(peer, now);
        for expected in [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            assert_eq!(redial.pop_due(now), Some(peer));
            assert_eq!(redial.pop_due(now), None);
            redial.failed(peer, now, 0.5);
            assert_eq!(redial.next(), Some(now + secs(expected)));
            now += secs(expected);
        }
    }

    #[test]
    fn jitter_spreads_by_a_quarter() {
        assert_eq!(wait(2, 0.0), secs(0.75));
        assert_eq!(wait(2, 1.0), secs(1.25));
        assert_eq!(wait(u32::MAX, 1.0), secs(75.0));
    }

    #[test]
    fn a_hint_starts_over() {
        let now = Instant::now();
        let peer = PeerId::random();
        let mut redial = Redial::new();
        redial.add(peer, now);
        for _ in 0..5 {
            redial.failed(peer, now, 0.5);
        }
        redial.hint(peer, now);
        assert_eq!(redial.pop_due(now), Some(peer));
        redial.failed(peer, now, 0.5);
        assert_eq!(redial.next(), Some(now + FIRST_WAIT));
    }

    #[test]
    fn a_hint_while_dialling_or_connected_dials_no_second_time() {
        let now = Instant::now();
        let peer = PeerId::random();
        let mut redial = Redial::new();
        redial.add(peer, now);
        assert_eq!(redial.pop_due(now), Some(peer));
        redial.hint(peer, now);
        redial.network_changed(now, || 0.0);
        assert_eq!(redial.next(), None);
        redial.connected(&peer, now);
        redial.hint(peer, now);
        assert_eq!(redial.next(), None);
        redial.lost(peer, now, 0.5);
        assert_eq!(redial.next(), Some(now + LOSS_SPREAD / 2));
    }

    #[test]
    fn a_changed_network_shortens_all_waits() {
        let now = Instant::now();
        let mut redial = Redial::new();
        for _ in 0..10 {
            let peer = PeerId::random();
            redial.add(peer, now);
            for _ in 0..8 {
                redial.failed(peer, now, 0.5);
            }
        }
        redial.network_changed(now, || 1.0);
        let mut due = 0;
        while redial.pop_due(now + SPREAD).is_some() {
            due += 1;
        }
        assert_eq!(due, 10);
    }

    #[test]
    fn a_peer_that_closes_at_once_is_dialled_ever_more_rarely() {
        let mut now = Instant::now();
        let peer = PeerId::random();
        let mut redial = Redial::new();
        redial.add(peer, now);
        for expected in [0.15, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            redial.connected(&peer, now);
            redial.lost(peer, now, 0.5);
            assert_eq!(redial.next(), Some(now + secs(expected)));
            now += secs(expected);
        }
        // A second connection makes it no younger.
        redial.connected(&peer, now);
        redial.connected(&peer, now + GOOD_LIFE);
        now += GOOD_LIFE;
        for expected in [0.15, 0.15, 0.25] {
            redial.lost(peer, now, 0.5);
            assert_eq!(redial.next(), Some(now + secs(expected)));
            redial.connected(&peer, now);
        }
    }

    #[test]
    fn a_removed_peer_stays_away() {
        let now = Instant::now();
        let peer = PeerId::random();
        let mut redial = Redial::new();
        redial.add(peer, now);
        redial.remove(&peer);
        redial.failed(peer, now, 0.5);
        redial.lost(peer, now, 0.5);
        assert_eq!(redial.next(), None);
    }
}
