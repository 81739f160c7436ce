//! Records of where peers can be reached, kept for others.

use std::{
    borrow::Cow,
    collections::HashMap,
    iter::Empty,
    net::{IpAddr, Ipv6Addr},
    option,
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
    multiaddr::Protocol,
};

use super::key;
use crate::swarm::route::is_circuit;

/// Records kept for others: some 16 MiB at the very worst, 2 MiB as they are.
pub(in crate::swarm) const MAX_RECORDS: usize = 4096;

/// One record for each peer, under its own id. Where there is no room, whoever
/// has most gives way, so that one host cannot push out the others.
#[derive(Debug)]
pub struct Store {
    local: PeerId,
    max: usize,
    own: Option<ProviderRecord>,
    kept: HashMap<PeerId, Kept>,
}

/// Where a record came from. Those of one host or network share their room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Trusted peers keep their places.
    Trusted,
    /// An address of IPv4, or a network of IPv6.
    Ip(IpAddr),
    /// Through a relay, or by other means.
    Other,
}

#[derive(Debug)]
struct Kept {
    record: ProviderRecord,
    origin: Origin,
    since: Instant,
}

impl Origin {
    /// Of a connection with this address.
    #[must_use]
    pub fn of(address: &Multiaddr, trusted: bool) -> Self {
        let relayed = is_circuit(address);
        match address.iter().next() {
            _ if trusted => Self::Trusted,
            Some(Protocol::Ip4(ip)) if !relayed => Self::Ip(ip.into()),
            Some(Protocol::Ip6(ip)) if !relayed => {
                Self::Ip(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into())
            }
            _ => Self::Other,
        }
    }
}

impl Store {
    /// An empty store of this node.
    #[must_use]
    pub fn new(local: PeerId) -> Self {
        Self { local, max: MAX_RECORDS, own: None, kept: HashMap::new() }
    }

    /// Keeps a record, or renews one. `false` if it is not the peer's own, or
    /// if there is no room.
    pub fn keep(&mut self, record: ProviderRecord, origin: Origin, now: Instant) -> bool {
        if record.key != key(&record.provider) || record.addresses.is_empty() {
            return false;
        }
        let since = self.kept.get(&record.provider).map_or(now, |kept| kept.since);
        if !self.kept.contains_key(&record.provider) && self.kept.len() >= self.max && !self.make_room(origin, now) {
            return false;
        }
        self.kept.insert(record.provider, Kept { record, origin, since });
        true
    }

    /// Whoever asks here for this node is told its addresses.
    pub(in crate::swarm) fn set_own(&mut self) {
        // Kademlia fills in the addresses.
        self.own = Some(ProviderRecord::new(key(&self.local), self.local, Vec::new()));
    }

    /// Records kept for others.
    pub(in crate::swarm) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether a record of the peer is kept.
    pub(in crate::swarm) fn has(&self, peer: &PeerId) -> bool {
        self.kept.contains_key(peer)
    }

    /// What a peer told of itself here.
    pub(in crate::swarm) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.kept.get(peer).map_or(&[], |kept| &kept.record.addresses)
    }

    /// Forgets what was not renewed.
    pub(in crate::swarm) fn purge(&mut self, now: Instant) {
        self.kept.retain(|_, kept| !kept.record.is_expired(now));
    }

    /// Frees a place for a newcomer: the youngest record of the origin that has
    /// most goes, unless that is the newcomer's own.
    fn make_room(&mut self, newcomer: Origin, now: Instant) -> bool {
        self.purge(now);
        if self.kept.len() < self.max {
            return true;
        }
        let mut counts: HashMap<Origin, usize> = HashMap::new();
        for kept in self.kept.values().filter(|kept| kept.origin != Origin::Trusted) {
            *counts.entry(kept.origin).or_default() += 1;
        }
        let Some((largest, most)) = counts.iter().max_by_key(|(_, count)| **count) else { return false };
        let own = counts.get(&newcomer).copied().unwrap_or(0);
        if newcomer != Origin::Trusted && own + 1 >= *most {
            return false;
        }
        let of_largest = self.kept.iter().filter(|(_, kept)| kept.origin == *largest);
        let Some(youngest) = of_largest.max_by_key(|(_, kept)| kept.since).map(|(peer, _)| *peer) else { return false };
        self.kept.remove(&youngest);
        true
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = option::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    /// Only for this node's own; see [`Store::keep`] for those of others.
    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider != self.local {
            return Err(Error::MaxProvidedKeys);
        }
        self.own = Some(record);
        Ok(())
    }

    fn providers(&self, wanted: &RecordKey) -> Vec<ProviderRecord> {
        if let Some(own) = self.own.as_ref().filter(|own| own.key == *wanted) {
            return vec![own.clone()];
        }
        let peer = PeerId::from_bytes(wanted.as_ref()).ok();
        peer.and_then(|peer| self.kept.get(&peer)).map(|kept| kept.record.clone()).into_iter().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.own.as_ref().map(Cow::Borrowed).into_iter()
    }

    fn remove_provider(&mut self, wanted: &RecordKey, provider: &PeerId) {
        if *provider == self.local {
            self.own.take_if(|own| own.key == *wanted);
        } else if *wanted == key(provider) {
            self.kept.remove(provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(peer: PeerId, now: Instant) -> ProviderRecord {
        let mut record = ProviderRecord::new(key(&peer), peer, vec!["/ip4/1.2.3.4/tcp/1".parse().unwrap()]);
        record.expires = Some(now + Duration::from_secs(60));
        record
    }

    fn store(max: usize) -> Store {
        Store { max, ..Store::new(PeerId::random()) }
    }

    fn from(ip: [u8; 4]) -> Origin {
        Origin::Ip(ip.into())
    }

    #[test]
    fn only_the_peer_itself_has_a_record_under_its_id() {
        let now = Instant::now();
        let mut store = store(4);
        let (victim, stranger) = (PeerId::random(), PeerId::random());
        let forged = ProviderRecord { provider: stranger, ..record(victim, now) };
        assert!(!store.keep(forged, from([1, 1, 1, 1]), now));
        assert!(store.providers(&key(&victim)).is_empty());
        assert!(store.keep(record(victim, now), from([1, 1, 1, 1]), now));
        assert_eq!(store.providers(&key(&victim)).len(), 1);
    }

    #[test]
    fn a_flood_from_one_host_pushes_nobody_out() {
        let now = Instant::now();
        let mut store = store(10);
        let others: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        for (n, peer) in (1..).zip(&others) {
            assert!(store.keep(record(*peer, now), from([n, 1, 1, 1]), now));
        }
        let flood: Vec<PeerId> = (0..100).map(|_| PeerId::random()).collect();
        let taken = flood.iter().filter(|peer| store.keep(record(**peer, now), from([9, 9, 9, 9]), now)).count();
        assert_eq!((taken, store.len()), (7, 10));
        assert!(others.iter().all(|peer| store.has(peer)));
        // A newcomer from elsewhere takes one of the flood's places.
        let (newcomer, friend) = (PeerId::random(), PeerId::random());
        assert!(store.keep(record(newcomer, now), from([7, 7, 7, 7]), now));
        assert!(store.keep(record(friend, now), Origin::Trusted, now));
        assert!(others.iter().chain([&newcomer, &friend]).all(|peer| store.has(peer)));
        assert_eq!(store.len(), 10);
    }

    #[test]
    fn trusted_peers_keep_their_places() {
        let now = Instant::now();
        let mut store = store(3);
        let friends: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        assert!(friends.iter().all(|peer| store.keep(record(*peer, now), Origin::Trusted, now)));
        assert!(!store.keep(record(PeerId::random(), now), from([1, 1, 1, 1]), now));
        assert!(friends.iter().all(|peer| store.has(peer)));
    }

    #[test]
    fn what_is_not_renewed_goes() {
        let now = Instant::now();
        let mut store = store(1);
        let (old, new) = (PeerId::random(), PeerId::random());
        assert!(store.keep(record(old, now), from([1, 1, 1, 1]), now));
        assert!(!store.keep(record(new, now), from([1, 1, 1, 1]), now));
        let later = now + Duration::from_secs(61);
        assert!(store.keep(record(new, later), from([1, 1, 1, 1]), later));
        assert!(!store.has(&old));
    }

    #[test]
    fn networks_of_ipv6_count_as_one() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap(), false);
        assert_eq!(origin("/ip6/2001:db8::1/tcp/1"), origin("/ip6/2001:db8::2/tcp/1"));
        assert_ne!(origin("/ip6/2001:db8::1/tcp/1"), origin("/ip6/2001:db8:0:1::1/tcp/1"));
        assert_ne!(origin("/ip4/1.2.3.4/tcp/1"), origin("/ip4/1.2.3.5/tcp/1"));
    }
}
