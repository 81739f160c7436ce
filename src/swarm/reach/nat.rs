//! What is between a socket of this node and the others, judged by what they
//! see.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::time::Instant;

use super::{
    observed::{Observed, Opinion, Own, agreed, hosts},
    place::{Host, Transport},
};
use crate::node::{NatClass, NatView};

/// With only two ports to compare, a step up to this is one and not chance.
const SMALL_STEP: i32 = 8;
/// Ports told ahead. Other connections take some too.
const PREDICTED: i32 = 3;
/// Hosts of which it is known whether UDP gets there.
const MAX_UDP_HOSTS: usize = 64;
/// Where TCP works and QUIC does not come within this, it will hardly: a first
/// packet that was lost has been sent again by then.
const UDP_PATIENCE: Duration = Duration::from_secs(1);
/// QUIC needs fewer round trips than TCP. Where it was begun first and is not
/// there so long after TCP, it is likely blocked.
const UDP_LEAD: Duration = Duration::from_millis(100);
/// A failure says something about the network for so long.
const UDP_MEMORY: Duration = Duration::from_secs(3600);

/// How one socket is mapped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::swarm) struct Mapping {
    pub(in crate::swarm) class: NatClass,
    pub(in crate::swarm) public_ip: Option<IpAddr>,
    pub(in crate::swarm) port_kept: Option<bool>,
    pub(in crate::swarm) port_step: Option<i32>,
    pub(in crate::swarm) observers: u32,
    /// Where the next one who is contacted sees this node, the likeliest first;
    /// all of them are guesses if the class is [`NatClass::EndpointDependent`].
    pub(in crate::swarm) expected: Vec<SocketAddr>,
}

impl Mapping {
    /// Of a socket. `own_ips`: those of this host's interfaces.
    pub(in crate::swarm) fn of(observed: &Observed, own: Own, own_ips: &[IpAddr], now: Instant) -> Self {
        let mut opinions = observed.opinions(own, now);
        opinions.retain(|opinion| opinion.dialled && !opinion.lan);
        // Whoever lies is outvoted by whom the user confided in; what is over
        // by what is.
        for better in [|o: &Opinion| o.confided, |o: &Opinion| o.gone.is_none()] {
            let some: Vec<_> = opinions.iter().copied().filter(|opinion| better(opinion)).collect();
            if hosts(&some) >= 2 {
                opinions = some;
            }
        }
        let observers = opinions.len() as u32;
        let Some(ip) = agreed(&opinions, |opinion| opinion.seen.ip()).first().copied() else {
            return Self { observers, ..Self::default() };
        };
        opinions.retain(|opinion| opinion.seen.ip() == ip);
        Self { public_ip: Some(ip), observers, ..judge(&opinions, own.port, own_ips.contains(&ip)) }
    }

    /// As others want to know it.
    pub(in crate::swarm) fn view(&self, udp_blocked: bool) -> NatView {
        NatView {
            class: self.class,
            public_ip: self.public_ip,
            port_kept: self.port_kept,
            port_step: self.port_step,
            observers: self.observers,
            udp_blocked,
        }
    }
}

/// All opinions name the same IP; there is at least one.
fn judge(opinions: &[&Opinion], own_port: u16, own_ip: bool) -> Mapping {
    let mut ports: HashMap<SocketAddr, Vec<&Opinion>> = HashMap::new();
    for opinion in opinions {
        ports.entry(opinion.seen).or_default().push(opinion);
    }
    let most = ports.iter().max_by_key(|(_, group)| (hosts(group), group.last().map(|newest| newest.connection)));
    let Some((same, group)) = most else { return Mapping::default() };
    let (all, agreeing) = (hosts(opinions), hosts(group));
    let kept = Some(same.port() == own_port);
    let one = |class| Mapping { class, port_kept: kept, expected: vec![*same], ..Mapping::default() };
    if own_ip {
        one(NatClass::None)
    } else if all < 2 {
        one(NatClass::Unknown)
    } else if agreeing >= 2 && agreeing * 2 > all {
        one(NatClass::EndpointIndependent)
    } else {
        dependent(opinions)
    }
}

fn dependent(opinions: &[&Opinion]) -> Mapping {
    let seen: Vec<SocketAddr> = opinions.iter().map(|opinion| opinion.seen).collect();
    let ports: Vec<i32> = seen.iter().map(|seen| i32::from(seen.port())).collect();
    let steps: Vec<i32> = ports.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let steady = steps.first().copied().filter(|first| *first != 0 && steps.iter().all(|step| step == first));
    let step = steady.filter(|step| steps.len() > 1 || step.abs() <= SMALL_STEP);
    let mut expected = Vec::new();
    if let Some(newest) = seen.last() {
        let ahead = step.into_iter().flat_map(|step| (1..=PREDICTED).map(move |n| n * step));
        let next = ahead.filter_map(|n| u16::try_from(i32::from(newest.port()) + n).ok());
        expected.extend(next.filter(|port| *port != 0).map(|port| SocketAddr::new(newest.ip(), port)));
        expected.push(*newest);
    }
    Mapping {
        class: NatClass::EndpointDependent,
        port_kept: Some(false),
        port_step: step,
        expected,
        ..Mapping::default()
    }
}

/// Whether UDP gets out, judged by hosts that were tried over both transports.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Udp {
    hosts: HashMap<(Host, bool), Tried>,
}

#[derive(Debug, Default)]
struct Tried {
    tcp_worked: Option<Instant>,
    quic_failed: Option<Instant>,
    /// Of an attempt that has not ended.
    quic_begun: Option<Instant>,
}

impl Udp {
    /// A connection was made to a host, or from it.
    pub(in crate::swarm) fn worked(&mut self, address: &Multiaddr, transport: Transport, now: Instant) {
        let Some(key) = key(address) else { return };
        match transport {
            Transport::Quic => self.hosts.retain(|(_, v6), _| *v6 != key.1),
            Transport::Tcp => {
                if let Some(tried) = self.tried(key) {
                    tried.tcp_worked = Some(now);
                }
            }
        }
    }

    /// An attempt over QUIC begins.
    pub(in crate::swarm) fn quic_begun(&mut self, address: &Multiaddr, now: Instant) {
        if let Some(tried) = key(address).and_then(|key| self.tried(key)) {
            tried.quic_begun.get_or_insert(now);
        }
    }

    /// An attempt over QUIC came to nothing.
    pub(in crate::swarm) fn quic_failed(&mut self, address: &Multiaddr, now: Instant) {
        if let Some(tried) = key(address).and_then(|key| self.tried(key)) {
            (tried.quic_begun, tried.quic_failed) = (None, Some(now));
        }
    }

    /// TCP got where QUIC did not, or does not get, and QUIC got nowhere.
    pub(in crate::swarm) fn is_blocked(&self, v6: bool, now: Instant) -> bool {
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let recent = |at| age(at).is_some_and(|age| age < UDP_MEMORY);
        let silent = |tried: &Tried| {
            let overtaken = tried.quic_begun <= tried.tcp_worked && age(tried.tcp_worked) >= Some(UDP_LEAD);
            age(tried.quic_begun).is_some_and(|age| age >= UDP_PATIENCE || overtaken)
        };
        let blocked = |tried: &Tried| recent(tried.tcp_worked) && (recent(tried.quic_failed) || silent(tried));
        self.hosts.iter().any(|((_, family), tried)| *family == v6 && blocked(tried))
    }

    /// The network is another one.
    pub(in crate::swarm) fn clear(&mut self) {
        self.hosts.clear();
    }

    fn tried(&mut self, key: (Host, bool)) -> Option<&mut Tried> {
        if !self.hosts.contains_key(&key) && self.hosts.len() >= MAX_UDP_HOSTS {
            let last = |tried: &Tried| tried.tcp_worked.max(tried.quic_failed).max(tried.quic_begun);
            let oldest = self.hosts.iter().min_by_key(|(_, tried)| last(tried));
            let oldest = oldest.map(|(key, _)| key.clone())?;
            self.hosts.remove(&oldest);
        }
        Some(self.hosts.entry(key).or_default())
    }
}

/// A host and whether it is IPv6. A name that may be both is taken for IPv4.
fn key(address: &Multiaddr) -> Option<(Host, bool)> {
    let v6 = matches!(address.iter().next(), Some(Protocol::Ip6(_) | Protocol::Dns6(_)));
    Some((Host::of(address)?, v6))
}

#[cfg(test)]
mod tests {
    use super::{
        super::observed::tests::{QUIC, stranger},
        *,
    };

    /// What strangers at different hosts see, one connection after the other.
    fn seen(all: &[&str]) -> Mapping {
        seen_by_hosts(&all.iter().enumerate().map(|(n, seen)| (n as u8, *seen)).collect::<Vec<_>>())
    }

    fn seen_by_hosts(all: &[(u8, &str)]) -> Mapping {
        let mut observed = Observed::default();
        let now = Instant::now();
        for (n, (host, seen)) in all.iter().enumerate() {
            observed.note(QUIC, stranger(*host, n, seen), now);
        }
        Mapping::of(&observed, QUIC, &["9.9.9.9".parse().unwrap()], now)
    }

    #[test]
    fn one_host_tells_nothing() {
        assert_eq!(seen(&[]), Mapping::default());
        assert_eq!(seen(&["1.2.3.4:4001"]), Mapping { observers: 1, ..Mapping::default() });
        let same_host = seen_by_hosts(&[(1, "1.2.3.4:5"), (1, "1.2.3.4:5")]);
        assert_eq!((same_host.class, same_host.public_ip), (NatClass::Unknown, None));
    }

    #[test]
    fn the_same_port_twice_is_independent() {
        let mapping = seen(&["1.2.3.4:4001", "1.2.3.4:4001"]);
        assert_eq!((mapping.class, mapping.port_kept), (NatClass::EndpointIndependent, Some(true)));
        let mapping = seen(&["1.2.3.4:777", "1.2.3.4:777", "6.6.6.6:1"]);
        assert_eq!((mapping.class, mapping.port_kept), (NatClass::EndpointIndependent, Some(false)));
        assert_eq!(mapping.public_ip, Some("1.2.3.4".parse().unwrap()));
        assert_eq!(mapping.expected, ["1.2.3.4:777".parse().unwrap()]);
        assert_eq!(mapping.port_step, None);
    }

    #[test]
    fn an_interfaces_address_is_no_nat() {
        assert_eq!(seen(&["9.9.9.9:4001", "9.9.9.9:4001"]).class, NatClass::None);
    }

    #[test]
    fn other_ports_each_time_are_dependent() {
        let mapping = seen(&["1.2.3.4:20000", "1.2.3.4:31313"]);
        assert_eq!((mapping.class, mapping.port_kept), (NatClass::EndpointDependent, Some(false)));
        assert_eq!((mapping.port_step, mapping.expected), (None, vec!["1.2.3.4:31313".parse().unwrap()]));
    }

    #[test]
    fn a_steady_step_is_told_and_continued() {
        for (ports, step, next) in [
            (vec!["1.2.3.4:20000", "1.2.3.4:20002"], Some(2), "1.2.3.4:20004"),
            (vec!["1.2.3.4:65530", "1.2.3.4:65534"], Some(4), "1.2.3.4:65534"),
            (vec!["1.2.3.4:20000", "1.2.3.4:20100", "1.2.3.4:20200"], Some(100), "1.2.3.4:20300"),
            (vec!["1.2.3.4:20000", "1.2.3.4:20001", "1.2.3.4:20003"], None, "1.2.3.4:20003"),
            (vec!["1.2.3.4:20000", "1.2.3.4:20100"], None, "1.2.3.4:20100"),
            (vec!["1.2.3.4:20004", "1.2.3.4:20003"], Some(-1), "1.2.3.4:20002"),
        ] {
            let mapping = seen(&ports);
            assert_eq!((mapping.port_step, mapping.expected[0]), (step, next.parse().unwrap()), "{ports:?}");
        }
    }

    #[test]
    fn liars_are_outvoted_by_those_confided_in() {
        let mut observed = Observed::default();
        let now = Instant::now();
        for n in 0..10 {
            observed.note(QUIC, stranger(n, n.into(), &format!("6.6.6.6:{n}1")), now);
        }
        for n in 20..22 {
            observed.note(QUIC, Opinion { confided: true, ..stranger(n, n.into(), "1.2.3.4:5") }, now);
        }
        let mapping = Mapping::of(&observed, QUIC, &[], now);
        assert_eq!((mapping.class, mapping.observers), (NatClass::EndpointIndependent, 2));
    }

    #[test]
    fn mappings_of_connections_that_are_gone_count_less() {
        let mut observed = Observed::default();
        let now = Instant::now();
        for n in 0..5 {
            observed.note(QUIC, stranger(n, n.into(), "1.2.3.4:5"), now);
            observed.closed(libp2p::swarm::ConnectionId::new_unchecked(n.into()), now);
        }
        for n in 5..7 {
            observed.note(QUIC, stranger(n, n.into(), "1.2.3.4:6"), now);
        }
        assert_eq!(Mapping::of(&observed, QUIC, &[], now).expected, ["1.2.3.4:6".parse().unwrap()]);
    }

    #[test]
    fn udp_is_blocked_where_only_tcp_works() {
        let address = |text: &str| -> Multiaddr { text.parse().unwrap() };
        let (quic, tcp) = (address("/ip4/8.8.8.8/udp/1/quic-v1"), address("/ip4/8.8.8.8/tcp/1"));
        let mut udp = Udp::default();
        let now = Instant::now();
        udp.quic_failed(&quic, now);
        assert!(!udp.is_blocked(false, now), "the host may be down");
        udp.worked(&address("/ip4/9.9.9.9/tcp/1"), Transport::Tcp, now);
        assert!(!udp.is_blocked(false, now), "another host");
        udp.worked(&tcp, Transport::Tcp, now);
        assert!(udp.is_blocked(false, now) && !udp.is_blocked(true, now));
        assert!(!udp.is_blocked(false, now + 2 * UDP_MEMORY));
        udp.worked(&address("/ip4/9.9.9.9/udp/1/quic-v1"), Transport::Quic, now);
        assert!(!udp.is_blocked(false, now));
        udp.worked(&tcp, Transport::Tcp, now);
        udp.quic_begun(&quic, now + UDP_LEAD);
        udp.quic_begun(&quic, now + UDP_PATIENCE);
        assert!(!udp.is_blocked(false, now + UDP_PATIENCE), "it may still come");
        assert!(udp.is_blocked(false, now + UDP_LEAD + UDP_PATIENCE));
        udp.clear();
        udp.quic_begun(&quic, now);
        udp.worked(&tcp, Transport::Tcp, now + UDP_LEAD);
        assert!(!udp.is_blocked(false, now + UDP_LEAD), "it may come now");
        assert!(udp.is_blocked(false, now + 2 * UDP_LEAD));
        for n in 0..1000_u32 {
            udp.quic_failed(&address(&format!("/ip4/{}/udp/1/quic-v1", std::net::Ipv4Addr::from(n))), now);
        }
        assert_eq!(udp.hosts.len(), MAX_UDP_HOSTS);
    }
}
