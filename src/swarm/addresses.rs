//! Addresses of one peer: who told them, when, and what came of them.

use std::time::Duration;

use libp2p::Multiaddr;
use tokio::time::Instant;

use super::route::{is_dialable, is_far, is_loopback, without_peer};
use crate::node::{DialCause, KnownAddressView, KnownSource};

/// Addresses tried in one dial.
pub(super) const MAX_DIAL_ADDRESSES: usize = 32;
/// Addresses kept of a peer from each source that others fill.
const MAX_OF_A_SOURCE: usize = 16;
/// Addresses that worked and that nobody tells any more.
const MAX_WORKED: usize = 4;
/// An address that failed so often in a row, and was not told since, goes.
const MAX_FAILURES: u32 = 8;
/// What was told or worked within this time is likely to hold; else the peer is
/// looked for while it is dialled.
const FRESH: Duration = Duration::from_secs(3 * 60);

/// All addresses known of a peer. Time is passed in.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// In the order in which they were told first.
    all: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    address: Multiaddr,
    /// Each source at most once.
    sources: Vec<KnownSource>,
    told: Instant,
    tried: Option<Instant>,
    outcome: Option<Result<(), DialCause>>,
    worked: Option<Instant>,
    /// In a row.
    failures: u32,
}

impl Addresses {
    /// Addresses to dial, best first: seen on the local network now, then what
    /// worked last, then the address book, then the rest; what failed comes
    /// after its like. `believed`: it may be wherever others say.
    pub(super) fn to_dial(&self, believed: bool) -> Vec<Multiaddr> {
        let allowed = |known: &&Known| believed || known.is_vouched() || may_come_from_anybody(&known.address);
        let dialable = self.sorted().into_iter().filter(|known| is_dialable(&known.address)).filter(allowed);
        dialable.map(|known| known.address.clone()).take(MAX_DIAL_ADDRESSES).collect()
    }

    /// Those seen on the local network now.
    pub(super) fn lan(&self) -> Vec<Multiaddr> {
        let lan = self.all.iter().filter(|known| known.has(KnownSource::Lan));
        lan.map(|known| known.address.clone()).collect()
    }

    /// Whether it is seen on the local network.
    pub(super) fn on_lan(&self) -> bool {
        self.all.iter().any(|known| known.has(KnownSource::Lan))
    }

    /// Whether there is one that is likely to hold.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < FRESH;
        self.all.iter().any(|known| {
            let told = known.sources.iter().any(|source| *source != KnownSource::Book) && recent(known.told);
            let works = known.failures == 0 && (told || known.worked.is_some_and(recent));
            works || known.has(KnownSource::Lan)
        })
    }

    /// One was told; whether it is new. `None` if there are too many of that
    /// source.
    pub(super) fn add(&mut self, source: KnownSource, address: &Multiaddr, now: Instant) -> Option<bool> {
        let address = without_peer(address);
        if let Some(known) = self.all.iter_mut().find(|known| known.address == address) {
            let new = !known.has(source);
            if new {
                known.sources.push(source);
            }
            known.told = now;
            return Some(new);
        }
        // The owner of this node chose those in the book.
        let max = if source == KnownSource::Book { MAX_DIAL_ADDRESSES } else { MAX_OF_A_SOURCE };
        if self.all.iter().filter(|known| known.has(source)).count() >= max {
            return None;
        }
        self.all.push(Known {
            address,
            sources: vec![source],
            told: now,
            tried: None,
            outcome: None,
            worked: None,
            failures: 0,
        });
        Some(true)
    }

    /// These are all that a source tells now; whether one is new.
    pub(super) fn set(&mut self, source: KnownSource, addresses: &[Multiaddr], now: Instant) -> bool {
        let plain: Vec<Multiaddr> = addresses.iter().map(without_peer).collect();
        let gone = |known: &Known| known.has(source) && !plain.contains(&known.address);
        let gone: Vec<Multiaddr> = self.all.iter().filter(|k| gone(k)).map(|known| known.address.clone()).collect();
        gone.iter().for_each(|address| self.remove(source, address));
        // Not `any`, which stops at the first.
        plain.iter().filter(|address| self.add(source, address, now) == Some(true)).count() > 0
    }

    /// A source does not tell an address any more.
    pub(super) fn remove(&mut self, source: KnownSource, address: &Multiaddr) {
        let address = without_peer(address);
        for known in self.all.iter_mut().filter(|known| known.address == address) {
            known.sources.retain(|other| *other != source);
        }
        self.all.retain(|known| !known.sources.is_empty());
    }

    /// Addresses found through the network; whether one is new. The oldest
    /// found before make room.
    pub(super) fn found(&mut self, addresses: &[Multiaddr], now: Instant) -> bool {
        let mut new = false;
        for address in addresses {
            if self.add(KnownSource::Found, address, now).is_none() {
                let found = self.all.iter().filter(|known| known.has(KnownSource::Found));
                let Some(oldest) = found.min_by_key(|known| known.told).map(|known| known.address.clone()) else {
                    continue;
                };
                self.remove(KnownSource::Found, &oldest);
                new |= self.add(KnownSource::Found, address, now) == Some(true);
            } else {
                new = true;
            }
        }
        new
    }

    /// An address led to the peer.
    pub(super) fn worked(&mut self, address: &Multiaddr, now: Instant) {
        let address = without_peer(address);
        if self.all.iter().all(|known| known.address != address) {
            self.make_room_for_worked();
        }
        self.add(KnownSource::Worked, &address, now);
        if let Some(known) = self.all.iter_mut().find(|known| known.address == address) {
            known.tried = Some(now);
            known.worked = Some(now);
            known.outcome = Some(Ok(()));
            known.failures = 0;
        }
    }

    /// An address did not lead to the peer. One that failed often and that
    /// nobody vouches for is forgotten.
    pub(super) fn failed(&mut self, address: &Multiaddr, cause: &DialCause, now: Instant) {
        let address = without_peer(address);
        let Some(position) = self.all.iter().position(|known| known.address == address) else { return };
        let known = &mut self.all[position];
        known.tried = Some(now);
        known.outcome = Some(Err(cause.clone()));
        known.failures = known.failures.saturating_add(1);
        let vouched = [KnownSource::Book, KnownSource::Lan, KnownSource::Relay].iter().any(|source| known.has(*source));
        if known.failures >= MAX_FAILURES && !vouched && now.saturating_duration_since(known.told) >= FRESH {
            self.all.remove(position);
        }
    }

    /// For a person.
    pub(super) fn views(&self, now: Instant) -> Vec<KnownAddressView> {
        let view = |known: &Known| KnownAddressView {
            address: known.address.clone(),
            source: known.best_source(),
            age: now.saturating_duration_since(known.told),
            tried: known.tried.map(|at| now.saturating_duration_since(at)),
            outcome: known.outcome.clone(),
        };
        self.sorted().into_iter().map(view).collect()
    }

    fn sorted(&self) -> Vec<&Known> {
        let mut all: Vec<&Known> = self.all.iter().collect();
        all.sort_by_key(|known| known.rank());
        all
    }

    fn make_room_for_worked(&mut self) {
        let only_worked = |known: &&Known| known.sources == [KnownSource::Worked];
        if self.all.iter().filter(only_worked).count() < MAX_WORKED {
            return;
        }
        let oldest = self.all.iter().filter(only_worked).min_by_key(|known| known.worked).map(|k| k.address.clone());
        if let Some(oldest) = oldest {
            self.remove(KnownSource::Worked, &oldest);
        }
    }
}

impl Known {
    fn has(&self, source: KnownSource) -> bool {
        self.sources.contains(&source)
    }

    /// Whether more than others' words speak for it.
    fn is_vouched(&self) -> bool {
        [KnownSource::Book, KnownSource::Lan, KnownSource::Worked].iter().any(|source| self.has(*source))
    }

    /// The one that says most of it.
    fn best_source(&self) -> KnownSource {
        self.sources.iter().copied().min_by_key(|source| rank_of(*source)).unwrap_or(KnownSource::Found)
    }

    /// Smaller is better. What worked last comes before what worked earlier.
    fn rank(&self) -> (u8, u32, u8, std::cmp::Reverse<Option<Instant>>) {
        let class = if self.has(KnownSource::Lan) {
            0
        } else if self.worked.is_some() && self.failures == 0 {
            1
        } else {
            2
        };
        (class, self.failures, rank_of(self.best_source()), std::cmp::Reverse(self.worked))
    }
}

/// Whether to dial an address if just anybody told it: one of the internet. Not
/// one of a local network, whose hosts need not be safe from what this one can
/// be made to do, nor a name, which its owner can make lead there. Those of this
/// host are taken only from peers that are here, too.
pub(super) fn may_come_from_anybody(address: &Multiaddr) -> bool {
    is_far(address) || is_loopback(address)
}

fn rank_of(source: KnownSource) -> u8 {
    match source {
        KnownSource::Lan => 0,
        KnownSource::Worked => 1,
        KnownSource::Book => 2,
        KnownSource::Peer => 3,
        KnownSource::Found => 4,
        KnownSource::Relay => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u32) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{n}").parse().unwrap()
    }

    fn ports(addresses: &Addresses) -> Vec<String> {
        addresses.to_dial(true).iter().map(|a| a.to_string().rsplit('/').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_best_come_first() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut addresses = Addresses::default();
        addresses.found(&[addr(5)], now);
        addresses.set(KnownSource::Peer, &[addr(4)], now);
        addresses.set(KnownSource::Book, &[addr(3), addr(6)], now);
        addresses.worked(&addr(7), now);
        addresses.worked(&addr(2), later);
        addresses.add(KnownSource::Lan, &addr(1), now);
        assert_eq!(ports(&addresses), ["1", "2", "7", "3", "6", "4", "5"]);
        addresses.failed(&addr(3), &DialCause::TimedOut, later);
        addresses.failed(&addr(7), &DialCause::TimedOut, later);
        assert_eq!(ports(&addresses), ["1", "2", "6", "4", "5", "7", "3"]);
        let views = addresses.views(later);
        assert_eq!(views[0].source, KnownSource::Lan);
        assert_eq!((views[1].source, views[1].outcome.clone()), (KnownSource::Worked, Some(Ok(()))));
        assert_eq!(views[6].outcome, Some(Err(DialCause::TimedOut)));
        assert_eq!(views[6].age, Duration::from_secs(1));
    }

    #[test]
    fn what_a_source_no_longer_tells_goes_unless_another_does() {
        let now = Instant::now();
        let mut addresses = Addresses::default();
        assert!(addresses.set(KnownSource::Peer, &[addr(1), addr(2)], now));
        addresses.worked(&addr(2), now);
        assert!(!addresses.set(KnownSource::Peer, &[addr(1)], now));
        assert!(addresses.set(KnownSource::Peer, &[addr(3)], now));
        assert_eq!(ports(&addresses), ["2", "3"]);
    }

    #[test]
    fn each_source_has_its_share() {
        let now = Instant::now();
        let mut addresses = Addresses::default();
        for n in 0..100 {
            let at = now + Duration::from_secs(n.into());
            addresses.set(KnownSource::Peer, &(1..100).map(addr).collect::<Vec<_>>(), at);
            addresses.found(&[addr(1000 + n)], at);
            addresses.add(KnownSource::Lan, &addr(2000 + n), at);
            addresses.worked(&addr(3000 + n), at);
        }
        assert_eq!(addresses.all.len(), 3 * MAX_OF_A_SOURCE + MAX_WORKED);
        assert_eq!(addresses.to_dial(true).len(), MAX_DIAL_ADDRESSES);
        assert!(addresses.to_dial(true).contains(&addr(3099)));
        assert!(addresses.all.iter().any(|known| known.address == addr(1099)));
    }

    #[test]
    fn an_old_address_that_keeps_failing_is_forgotten_unless_it_is_in_the_book() {
        let now = Instant::now();
        let mut addresses = Addresses::default();
        addresses.set(KnownSource::Book, &[addr(1)], now);
        addresses.found(&[addr(2)], now);
        for n in 1..=MAX_FAILURES {
            assert_eq!(addresses.all.len(), 2);
            for address in [addr(1), addr(2)] {
                addresses.failed(&address, &DialCause::TimedOut, now + FRESH * n);
            }
        }
        assert_eq!(ports(&addresses), ["1"]);
    }

    #[test]
    fn a_strangers_word_leads_to_no_local_network() {
        let now = Instant::now();
        let told = |n: u32| -> Vec<Multiaddr> {
            let hosts = ["/ip4/192.168.1.1", "/ip6/fd00::1", "/dns4/evil.example", "/ip4/8.8.8.8", "/ip4/127.0.0.1"];
            hosts.iter().map(|host| format!("{host}/tcp/{n}").parse().unwrap()).collect()
        };
        let mut addresses = Addresses::default();
        addresses.set(KnownSource::Peer, &told(1), now);
        addresses.found(&told(2), now);
        addresses.set(KnownSource::Book, &told(3)[2..3], now);
        addresses.add(KnownSource::Lan, &told(4)[0], now);
        addresses.worked(&told(5)[1], now);
        let of = |believed| {
            let mut all: Vec<_> = addresses.to_dial(believed).iter().map(ToString::to_string).collect();
            all.sort();
            all
        };
        assert_eq!(of(true).len(), 13);
        let expected = [
            "/dns4/evil.example/tcp/3",
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/127.0.0.1/tcp/2",
            "/ip4/192.168.1.1/tcp/4",
            "/ip4/8.8.8.8/tcp/1",
            "/ip4/8.8.8.8/tcp/2",
            "/ip6/fd00::1/tcp/5",
        ];
        assert_eq!(of(false), expected);
    }

    #[test]
    fn a_book_alone_may_be_old() {
        let now = Instant::now();
        let mut addresses = Addresses::default();
        addresses.set(KnownSource::Book, &[addr(1)], now);
        assert!(!addresses.is_fresh(now));
        addresses.worked(&addr(1), now);
        assert!(addresses.is_fresh(now) && !addresses.is_fresh(now + FRESH));
        addresses.failed(&addr(1), &DialCause::TimedOut, now);
        assert!(!addresses.is_fresh(now));
    }
}
