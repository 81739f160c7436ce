//! What others see of the sockets that this node listens on.
//!
//! A server tells from which address and port a connection came that this side
//! made out of such a socket. Anybody can tell anything: an address counts as
//! this node's own only if two hosts agree, or one says so in which the user
//! confided.

use std::{collections::HashMap, hash::Hash, net::SocketAddr, time::Duration};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::place::{Host, Transport};

/// Opinions on one socket. Two are enough; the rest is for a few that lie.
const MAX_OPINIONS: usize = 64;
/// Sockets that opinions are kept on: two transports, two families, a few
/// ports.
const MAX_SOCKETS: usize = 16;
/// An opinion counts for so long after its connection ended: servers come and
/// go, and a mapping that nothing else uses is soon gone too.
const OUTLIVES: Duration = Duration::from_secs(600);
/// Hosts that have to agree.
const ENOUGH: usize = 2;

/// A socket that this node listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::swarm) struct Own {
    pub(in crate::swarm) transport: Transport,
    pub(in crate::swarm) v6: bool,
    pub(in crate::swarm) port: u16,
}

/// What one peer sees of one socket.
#[derive(Debug, Clone)]
pub(in crate::swarm) struct Opinion {
    pub(in crate::swarm) peer: PeerId,
    /// Where that is.
    pub(in crate::swarm) host: Host,
    /// The peer is on the local network: it knows nothing of the NAT.
    pub(in crate::swarm) lan: bool,
    pub(in crate::swarm) seen: SocketAddr,
    /// Connections are numbered in the order in which they are begun.
    pub(in crate::swarm) connection: ConnectionId,
    /// This side made the connection, so that `seen` is what a NAT chose for
    /// it; otherwise `seen` is where the peer came in.
    pub(in crate::swarm) dialled: bool,
    /// The user named the peer, or trusts it.
    pub(in crate::swarm) confided: bool,
    /// Since when the connection is gone.
    pub(in crate::swarm) gone: Option<Instant>,
    /// The network changed since; the opinion stands as long as the connection.
    pub(in crate::swarm) outdated: bool,
}

/// See the module. Time is passed in.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Observed {
    sockets: HashMap<Own, HashMap<PeerId, Opinion>>,
}

impl Opinion {
    fn counts(&self, now: Instant) -> bool {
        self.gone.is_none_or(|gone| now.saturating_duration_since(gone) < OUTLIVES)
    }
}

impl Observed {
    /// Takes an opinion; tells whether it says something new. The newest of a
    /// peer replaces the one before, except that a second TCP connection may
    /// come from another port than that listened on: the older one tells the
    /// truth while it is there.
    pub(in crate::swarm) fn note(&mut self, own: Own, opinion: Opinion, now: Instant) -> bool {
        if !self.sockets.contains_key(&own) && self.sockets.len() >= MAX_SOCKETS {
            return false;
        }
        let opinions = self.sockets.entry(own).or_default();
        opinions.retain(|_, opinion| opinion.counts(now));
        if let Some(known) = opinions.get(&opinion.peer) {
            let older_stands =
                own.transport == Transport::Tcp && known.gone.is_none() && known.connection < opinion.connection;
            if older_stands || known.connection > opinion.connection {
                return false;
            }
        } else if opinions.len() >= MAX_OPINIONS && !make_room(opinions, opinion.confided) {
            return false;
        }
        let seen = opinion.seen;
        opinions.insert(opinion.peer, opinion).is_none_or(|before| before.seen != seen)
    }

    /// A connection is gone.
    pub(in crate::swarm) fn closed(&mut self, connection: ConnectionId, now: Instant) {
        for opinions in self.sockets.values_mut() {
            opinions.retain(|_, opinion| opinion.connection != connection || !opinion.outdated);
            for opinion in opinions.values_mut().filter(|opinion| opinion.connection == connection) {
                opinion.gone.get_or_insert(now);
            }
        }
    }

    /// The network may be another one. What was seen stands where the
    /// connection does: nobody tells it again soon.
    pub(in crate::swarm) fn network_changed(&mut self) {
        for opinions in self.sockets.values_mut() {
            opinions.retain(|_, opinion| opinion.gone.is_none());
            opinions.values_mut().for_each(|opinion| opinion.outdated = true);
        }
    }

    /// Sockets on which there are opinions.
    pub(in crate::swarm) fn sockets(&self) -> Vec<Own> {
        let mut all: Vec<Own> = self.sockets.keys().copied().collect();
        all.sort();
        all
    }

    /// Opinions on a socket that count, in the order of their connections.
    pub(in crate::swarm) fn opinions(&self, own: Own, now: Instant) -> Vec<&Opinion> {
        let opinions = self.sockets.get(&own).into_iter().flat_map(HashMap::values);
        let mut all: Vec<&Opinion> = opinions.filter(|opinion| opinion.counts(now)).collect();
        all.sort_by_key(|opinion| opinion.connection);
        all
    }
}

/// What enough of them say, by how many say so, then by who was confided in.
pub(super) fn agreed<T: Copy + Eq + Hash + Ord>(opinions: &[&Opinion], what: impl Fn(&Opinion) -> T) -> Vec<T> {
    let mut groups: HashMap<T, Vec<&Opinion>> = HashMap::new();
    for opinion in opinions {
        groups.entry(what(opinion)).or_default().push(opinion);
    }
    let weight = |group: &[&Opinion]| (group.iter().filter(|opinion| opinion.confided).count(), hosts(group));
    let mut found: Vec<_> = groups
        .into_iter()
        .map(|(what, group)| (weight(&group), what))
        .filter(|((confided, hosts), _)| *confided > 0 || *hosts >= ENOUGH)
        .collect();
    found.sort_by(|(a, x), (b, y)| b.cmp(a).then(x.cmp(y)));
    found.into_iter().map(|(_, what)| what).collect()
}

/// Different hosts among those that hold the opinions.
pub(super) fn hosts(opinions: &[&Opinion]) -> usize {
    let mut known: Vec<&Host> = Vec::new();
    for opinion in opinions {
        // Two names may stand for one host. Whom the user confided in needs no
        // second host.
        let certain = matches!(opinion.host, Host::Ip(_)) || opinion.confided;
        if certain && !known.iter().any(|host| host.may_be(&opinion.host)) {
            known.push(&opinion.host);
        }
    }
    known.len()
}

/// Drops one opinion for another: one whose connection is gone, or a stranger's
/// for a better one.
fn make_room(opinions: &mut HashMap<PeerId, Opinion>, for_confided: bool) -> bool {
    let worst = opinions
        .values()
        .filter(|opinion| opinion.gone.is_some() || (for_confided && !opinion.confided))
        .min_by_key(|opinion| (opinion.confided, opinion.gone.is_none(), opinion.connection))
        .map(|opinion| opinion.peer);
    worst.is_some_and(|worst| opinions.remove(&worst).is_some())
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;

    use super::*;

    pub(in crate::swarm::reach) const QUIC: Own = Own { transport: Transport::Quic, v6: false, port: 4001 };
    pub(in crate::swarm::reach) const TCP: Own = Own { transport: Transport::Tcp, v6: false, port: 4001 };

    /// A stranger at 8.8.8.`host` on connection `n` sees this.
    pub(in crate::swarm::reach) fn stranger(host: u8, n: usize, seen: &str) -> Opinion {
        Opinion {
            peer: PeerId::random(),
            host: Host::Ip(IpAddr::from([8, 8, 8, host])),
            lan: false,
            seen: seen.parse().unwrap(),
            connection: ConnectionId::new_unchecked(n),
            dialled: true,
            confided: false,
            gone: None,
            outdated: false,
        }
    }

    fn agreed_on(observed: &Observed, own: Own, now: Instant) -> Vec<SocketAddr> {
        agreed(&observed.opinions(own, now), |opinion| opinion.seen)
    }

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn one_stranger_is_not_enough_and_neither_are_two_at_one_host() {
        let mut observed = Observed::default();
        let now = Instant::now();
        assert!(observed.note(QUIC, stranger(1, 1, "1.2.3.4:5"), now));
        assert!(observed.note(QUIC, stranger(1, 2, "1.2.3.4:5"), now));
        assert!(agreed_on(&observed, QUIC, now).is_empty());
        assert!(observed.note(QUIC, stranger(2, 3, "1.2.3.4:5"), now));
        assert_eq!(agreed_on(&observed, QUIC, now), ["1.2.3.4:5".parse().unwrap()]);
        assert!(agreed_on(&observed, TCP, now).is_empty());
    }

    #[test]
    fn whoever_was_confided_in_is_enough_and_comes_first() {
        let mut observed = Observed::default();
        let now = Instant::now();
        for host in 1..=3 {
            observed.note(QUIC, stranger(host, host.into(), "6.6.6.6:6"), now);
        }
        observed.note(QUIC, Opinion { confided: true, ..stranger(9, 9, "1.2.3.4:5") }, now);
        let expected: [SocketAddr; 2] = ["1.2.3.4:5".parse().unwrap(), "6.6.6.6:6".parse().unwrap()];
        assert_eq!(agreed_on(&observed, QUIC, now), expected);
    }

    #[test]
    fn a_peer_has_one_opinion_and_the_newest_counts() {
        let mut observed = Observed::default();
        let now = Instant::now();
        let first = Opinion { confided: true, ..stranger(1, 1, "1.2.3.4:5") };
        assert!(observed.note(QUIC, first.clone(), now));
        assert!(!observed.note(QUIC, first.clone(), now));
        let second =
            Opinion { seen: "1.2.3.4:6".parse().unwrap(), connection: ConnectionId::new_unchecked(2), ..first.clone() };
        assert!(observed.note(QUIC, second.clone(), now));
        assert!(!observed.note(QUIC, first.clone(), now), "told late by the older connection");
        assert_eq!(agreed_on(&observed, QUIC, now), [second.seen]);
        // Not of TCP, unless the older connection is gone.
        assert!(observed.note(TCP, first.clone(), now));
        assert!(!observed.note(TCP, second.clone(), now));
        observed.closed(first.connection, now);
        assert!(observed.note(TCP, second.clone(), now));
    }

    #[test]
    fn opinions_outlive_their_connection_for_a_while() {
        let mut observed = Observed::default();
        let now = Instant::now();
        observed.note(QUIC, Opinion { confided: true, ..stranger(1, 1, "1.2.3.4:5") }, now);
        assert_eq!(agreed_on(&observed, QUIC, later(100_000)).len(), 1);
        observed.closed(ConnectionId::new_unchecked(1), now);
        assert_eq!(agreed_on(&observed, QUIC, later(500)).len(), 1);
        assert!(agreed_on(&observed, QUIC, later(700)).is_empty());
    }

    #[test]
    fn after_a_change_of_the_network_only_what_stands_counts() {
        let mut observed = Observed::default();
        let now = Instant::now();
        for n in 1..=2 {
            observed.note(QUIC, Opinion { confided: true, ..stranger(n, n.into(), &format!("1.2.3.4:{n}")) }, now);
        }
        observed.closed(ConnectionId::new_unchecked(1), now);
        observed.network_changed();
        assert_eq!(agreed_on(&observed, QUIC, now), ["1.2.3.4:2".parse().unwrap()]);
        observed.closed(ConnectionId::new_unchecked(2), now);
        assert!(agreed_on(&observed, QUIC, now).is_empty());
    }

    #[test]
    fn the_table_is_bounded_and_strangers_push_nobody_out() {
        let mut observed = Observed::default();
        let now = Instant::now();
        observed.note(QUIC, Opinion { confided: true, ..stranger(1, 0, "1.2.3.4:5") }, now);
        for n in 1..1000 {
            observed.note(QUIC, stranger((n % 250) as u8, n, "6.6.6.6:6"), now);
        }
        assert_eq!(observed.opinions(QUIC, now).len(), MAX_OPINIONS);
        assert!(observed.note(QUIC, Opinion { confided: true, ..stranger(2, 2000, "1.2.3.4:5") }, now));
        assert_eq!(observed.opinions(QUIC, now).len(), MAX_OPINIONS);
        assert_eq!(agreed_on(&observed, QUIC, now)[0], "1.2.3.4:5".parse().unwrap());
        for port in 0..100 {
            observed.note(Own { port, ..QUIC }, stranger(1, 1, "1.2.3.4:5"), now);
        }
        assert_eq!(observed.sockets().len(), MAX_SOCKETS);
    }
}
