//! Finds peers by their id, and lets this node be found.
//!
//! A Kademlia network of those nodes that serve: each node tells the servers
//! nearest to its own id where it can be reached (a provider record under its
//! id), and whoever looks for it asks there. No server is nearer to a key than
//! the key's owner, and servers take a record only from the peer whose id it is
//! under: nobody can push another out of its place.
//!
//! `behaviour` wraps libp2p's Kademlia, `store` keeps the records of others,
//! `own` gathers what others are told, `publish` says when, `announce` tells it,
//! `lookup` keeps the searches under way.

pub(super) mod announce;
pub(super) mod behaviour;
pub(super) mod lookup;
pub(super) mod own;
pub(super) mod publish;
pub(super) mod store;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, StreamProtocol, kad, multiaddr::Protocol};

use tokio::time::Instant;

use self::{lookup::Lookups, publish::Publisher};
use super::{
    SwarmConfig,
    route::{is_dialable, is_loopback, without_peer},
};
use crate::node::{Overlay, Serve};
pub use store::{Origin, Store};

/// Kademlia among nodes of this program.
const PRIVATE: StreamProtocol = StreamProtocol::new("/p2p-node/kad/1");
/// Kademlia of the public network.
const IPFS: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");
/// Where the public network begins: names that hold the addresses, of the nodes
/// that its own software begins with.
const IPFS_BOOTSTRAP: [&str; 4] = [
    "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
];

/// Addresses taken of a peer from one answer, and told of this node.
pub(super) const MAX_ADDRESSES: usize = 16;
/// Bytes of one address; names of 253 characters fit.
const MAX_ADDRESS_BYTES: usize = 384;
/// Servers that hold each record of the private network. Each is renewed often,
/// and one that answers is enough.
const REPLICATION: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Servers asked at once in one search. One that is gone takes a place until
/// its dial fails; the others go on.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(5).unwrap();
/// When Kademlia itself gives a search up; every search has a shorter deadline
/// of its own, at which it is ended with what it has.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that does not answer a question.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a record stays that is not renewed: three renewals may fail.
pub(super) const RECORD_TTL: Duration = Duration::from_secs(40 * 60);
/// How often records that were not renewed are looked for. They are not told
/// any more as soon as they are old; this frees their place.
const PURGE_INTERVAL: Duration = Duration::from_secs(120);
/// Nodes of the settings that are kept connected; the others are dialled when
/// there is something to ask.
const MAX_ANCHORS: usize = 3;

/// What the task keeps of finding and being found.
#[derive(Debug)]
pub(super) struct Find {
    pub(super) network: Overlay,
    serve: Serve,
    /// As a relay does: it can be reached, or is told to.
    serves: bool,
    pub(super) lookups: Lookups,
    pub(super) publisher: Publisher,
    /// Servers that the settings name, relays among them, with their addresses.
    configured: HashMap<PeerId, Vec<Multiaddr>>,
    /// Those among them that are kept connected.
    pub(super) anchors: Vec<PeerId>,
    /// Connected servers.
    pub(super) servers: HashSet<PeerId>,
    /// A server answered.
    pub(super) bootstrapped: bool,
    trust_open: bool,
    /// Connections kept for peers whose record is here; past this they are
    /// left to end by themselves, so that there is room for newcomers.
    pub(super) max_kept: usize,
    /// When records that were not renewed are looked for; never while there are
    /// none.
    purge: Option<Instant>,
}

impl Find {
    pub(super) fn new(config: &SwarmConfig) -> Self {
        let mut configured: HashMap<PeerId, Vec<Multiaddr>> = HashMap::new();
        for node in config.bootstrap.iter().chain(&config.relays) {
            configured.entry(node.peer).or_default().extend(node.addresses.iter().cloned());
        }
        for (peer, address) in ipfs_bootstrap(config.network) {
            configured.entry(peer).or_default().push(address);
        }
        let mut anchors: Vec<PeerId> = config.bootstrap.iter().map(|node| node.peer).collect();
        anchors.truncate(MAX_ANCHORS);
        Self {
            network: config.network,
            serve: config.serve,
            serves: false,
            lookups: Lookups::new(),
            publisher: Publisher::new(),
            configured,
            anchors,
            servers: HashSet::new(),
            bootstrapped: false,
            trust_open: config.trust_open,
            max_kept: config.limits.max_untrusted as usize / 2,
            purge: None,
        }
    }

    /// Whether this node answers the questions of others. Those of the public
    /// network it does not: that would cost more than it gives.
    pub(super) fn is_server(&self) -> bool {
        self.serves && self.network == Overlay::Private
    }

    /// This node serves others, or not any more; whether that is new.
    pub(super) fn set_serves(&mut self, serves: bool) -> bool {
        std::mem::replace(&mut self.serves, serves) != serves
    }

    /// Addresses that the settings give for a node.
    pub(super) fn named(&self, peer: &PeerId) -> &[Multiaddr] {
        self.configured.get(peer).map_or(&[], Vec::as_slice)
    }

    /// Whether the settings name it.
    pub(super) fn is_configured(&self, peer: &PeerId) -> bool {
        self.configured.contains_key(peer)
    }

    /// Whether the settings name any.
    pub(super) fn has_configured(&self) -> bool {
        !self.configured.is_empty()
    }

    /// When something is to be done next.
    pub(super) fn next(&self) -> Option<Instant> {
        [self.lookups.next(), self.publisher.next(), self.purge].into_iter().flatten().min()
    }

    /// There are records that may have to go later.
    pub(super) fn purge_later(&mut self, now: Instant) {
        self.purge.get_or_insert(now + PURGE_INTERVAL);
    }

    /// Whether to look for records that were not renewed.
    pub(super) fn is_purge_due(&mut self, now: Instant) -> bool {
        self.purge.take_if(|at| *at <= now).is_some()
    }

    /// Whether a peer may leave its record here.
    pub(super) fn takes_from(&self, trusted: bool) -> bool {
        self.is_server() && (self.serve == Serve::On || self.trust_open || trusted)
    }
}

/// The protocol that servers of a network speak.
#[must_use]
pub fn protocol(network: Overlay) -> StreamProtocol {
    match network {
        Overlay::Private => PRIVATE,
        Overlay::Ipfs => IPFS,
    }
}

/// The key under which a peer's addresses are found.
#[must_use]
pub fn key(peer: &PeerId) -> kad::RecordKey {
    kad::RecordKey::new(&peer.to_bytes())
}

/// How Kademlia is set up.
#[must_use]
pub fn config(network: Overlay) -> kad::Config {
    let mut config = kad::Config::new(protocol(network));
    if network == Overlay::Private {
        config.set_replication_factor(REPLICATION);
    }
    config
        .set_parallelism(PARALLELISM)
        .set_query_timeout(QUERY_TIMEOUT)
        .set_substreams_timeout(REQUEST_TIMEOUT)
        .set_provider_record_ttl(Some(RECORD_TTL))
        // The task decides what enters the table and the store.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        // Values are not kept, and providers are published on change.
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_periodic_bootstrap_interval(None);
    config
}

/// Where the network begins without settings.
pub(super) fn ipfs_bootstrap(network: Overlay) -> Vec<(PeerId, Multiaddr)> {
    let ids: &[&str] = match network {
        Overlay::Private => &[],
        Overlay::Ipfs => &IPFS_BOOTSTRAP,
    };
    let entry = |id: &&str| {
        let peer: PeerId = id.parse().ok()?;
        let name = Multiaddr::empty().with(Protocol::Dnsaddr("bootstrap.libp2p.io".into()));
        Some((peer, name))
    };
    ids.iter().filter_map(entry).collect()
}

/// An address that others tell of a peer, if it can be one, without its /p2p
/// part. Circuits name their relay with its address.
pub(super) fn told_address(peer: &PeerId, address: &Multiaddr, here: bool) -> Option<Multiaddr> {
    if address.len() > MAX_ADDRESS_BYTES {
        return None;
    }
    let circuits = address.iter().filter(|part| matches!(part, Protocol::P2pCircuit)).count();
    let others = address.iter().filter(|part| matches!(part, Protocol::P2p(id) if id != peer)).count();
    let plain = without_peer(address);
    let fits = match circuits {
        0 => others == 0,
        1 => others == 1 && matches!(plain.iter().last(), Some(Protocol::P2pCircuit)),
        _ => false,
    };
    // A loopback address of another host leads to this one.
    (fits && is_dialable(&plain) && (here || !is_loopback(&plain))).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of queries, which only Kademlia makes.
    pub(super) fn queries() -> impl FnMut() -> kad::QueryId {
        let peer = PeerId::random();
        let mut kad = kad::Behaviour::new(peer, store::Store::new(peer));
        move || kad.get_providers(key(&peer))
    }

    #[test]
    fn only_addresses_that_can_lead_to_the_peer_are_taken() {
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let taken = |text: &str| told_address(&peer, &text.parse().unwrap(), false).map(|a| a.to_string());
        let circuit = format!("/ip4/8.8.8.8/udp/1/quic-v1/p2p/{relay}/p2p-circuit");
        for (text, expected) in [
            ("/ip4/8.8.8.8/tcp/1".to_owned(), Some("/ip4/8.8.8.8/tcp/1".to_owned())),
            (format!("/ip4/8.8.8.8/tcp/1/p2p/{peer}"), Some("/ip4/8.8.8.8/tcp/1".to_owned())),
            (format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}"), None),
            (circuit.clone(), Some(circuit.clone())),
            (format!("{circuit}/p2p/{peer}"), Some(circuit.clone())),
            (format!("{circuit}/p2p/{relay}"), None),
            (format!("{circuit}/p2p/{relay}/p2p-circuit"), None),
            (format!("/p2p/{relay}/p2p-circuit"), None),
            (format!("{circuit}/ip4/1.2.3.4/tcp/1"), None),
            ("/ip4/127.0.0.1/tcp/1".to_owned(), None),
            ("/ip4/0.0.0.0/tcp/1".to_owned(), None),
            (format!("/dns4/{}/tcp/1", "a".repeat(400)), None),
        ] {
            assert_eq!(taken(&text), expected, "{text}");
        }
        assert!(told_address(&peer, &"/ip4/127.0.0.1/tcp/1".parse().unwrap(), true).is_some());
    }

    /// The nearest key to a peer's own id is its record's: no other server is
    /// nearer, however many there are.
    #[test]
    fn a_peer_is_nearest_to_its_own_record() {
        let peer = PeerId::random();
        let distance = kad::KBucketKey::new(key(&peer)).distance(&kad::KBucketKey::from(peer));
        assert_eq!(distance, kad::KBucketDistance::default());
    }
}
