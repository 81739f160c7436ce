//! Settings that were checked: what the daemon runs on.

use std::{fmt::Display, ops::RangeInclusive, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::{
    Environment, Flags, Origin, Problem, paths,
    raw::{Raw, Text, Written},
};
use crate::{
    dialable,
    node::{Overlay, PeerAddresses, Serve},
    swarm::RelayLimits,
    telemetry,
    types::{Content, MAX_ALIAS_BYTES, MAX_HEADER_BYTES, MESSAGE_BYTES_RANGE, is_alias, to_alias},
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const DEFAULT_LISTEN: [&str; 4] =
    ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/4001", "/ip6/::/udp/4001/quic-v1", "/ip6/::/tcp/4001"];
/// The name of a node on a host whose own cannot be used.
const FALLBACK_NAME: &str = "p2p-node";
/// Each address costs a socket, and each is told to every peer.
const MAX_LISTEN: usize = 16;
/// Each is told to every peer.
const MAX_EXTERNAL: usize = 16;
/// Nodes of a fleet that others are to be found and reached through are few.
const MAX_PEER_ADDRESSES: usize = 64;
/// As `useradd` has it.
const MAX_GROUP_BYTES: usize = 32;
/// More than any disk this runs on, and far from overflow.
const MAX_QUEUE_BYTES: u64 = 1024 * 1024 * GIB;
/// Connections with peers that are not trusted.
const STRANGERS: u32 = 100;
/// The same of a node that serves everyone.
const SERVER_STRANGERS: u32 = 10_000;
/// Less would not hold the daemon itself, and it would accept no connection.
const MIN_MEMORY_BYTES: u64 = 64 * MIB;
/// Handshakes and what peers tell each other first take some 10 KiB of each
/// circuit, and another one is opened when four fifths are used.
const MIN_CIRCUIT_BYTES: u64 = 64 * KIB;

/// Validated settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What this node calls itself to others; see [`crate::types::is_alias`].
    pub name: String,
    /// Directory of identity and store.
    pub state_dir: PathBuf,
    /// Socket of the API; at most [`super::MAX_SOCKET_PATH_BYTES`] long.
    pub socket: PathBuf,
    /// Group that may open the socket.
    pub socket_group: String,
    /// Addresses to listen on; at least one.
    pub listen: Vec<ListenAddress>,
    /// Addresses at which this node is known to be reachable from outside.
    pub external: Vec<Multiaddr>,
    /// Nodes that are asked for others.
    pub bootstrap: Vec<PeerAddresses>,
    /// Nodes through which others reach this one; asked for others too.
    pub relay: Vec<PeerAddresses>,
    /// Whom this node serves as relay and bootstrap.
    pub serve: Serve,
    /// Where peers are looked for by their id.
    pub network: Overlay,
    /// Find peers on the local network.
    pub mdns: bool,
    /// Have the router forward the ports that are listened on.
    pub port_mapping: bool,
    /// Accept messages from everyone instead of the address book.
    pub trust_open: bool,
    /// What is logged: a filter that parses.
    pub log: String,
    /// Time to live of a message whose sender does not say; 1 s to 365 d.
    pub default_ttl: Duration,
    /// Longest that a shutdown waits for what is under way; 1 s to 5 min.
    pub shutdown_grace: Duration,
    /// Bounds.
    pub limits: Limits,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// TCP, or QUIC v1 over UDP.
    pub addr: Multiaddr,
    /// Failing to bind it is an error. False for the default addresses: a
    /// host without IPv6 skips those.
    pub required: bool,
}

/// Bounds of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of a message, in bytes.
    pub max_message_bytes: u64,
    /// Of all messages waiting to be sent.
    pub max_outbox_bytes: u64,
    /// Of all messages that came in and are kept.
    pub max_inbox_bytes: u64,
    /// Of one peer's share of either.
    pub max_peer_bytes: u64,
    /// Connections with peers that are not trusted.
    pub max_untrusted_connections: u32,
    /// Connections with trusted peers.
    pub max_trusted_connections: u32,
    /// Connections with one peer.
    pub max_connections_per_peer: u32,
    /// Memory of the process above which no connection is accepted; `None`:
    /// not watched.
    pub max_memory_bytes: Option<u64>,
    /// Streams of the API open at once.
    pub max_streams: u32,
    /// Reservations of others here at once.
    pub relay_reservations: u32,
    /// How long a reservation is good before it has to be renewed.
    pub relay_reservation_duration: Duration,
    /// Circuits through this node at once.
    pub relay_circuits: u32,
    /// Circuits at once that one peer opened.
    pub relay_circuits_per_peer: u32,
    /// Bytes that a circuit may carry, both ways together; 0: no limit.
    pub relay_circuit_bytes: u64,
    /// Longest that a circuit may live.
    pub relay_circuit_duration: Duration,
}

/// Checks raw settings. `None` only with problems.
pub(super) fn validate(raw: Raw, flags: &Flags, env: &Environment, problems: &mut Vec<Problem>) -> Option<Settings> {
    let state_dir = paths::state_dir(flags, &raw.state_dir, env, problems);
    let socket = paths::socket(flags, env, problems);
    let mut check = Check { problems };
    let serve = check.serve(raw.serve);
    let strangers = if serve == Serve::On { SERVER_STRANGERS } else { STRANGERS };
    let relay = RelayLimits::default();
    let settings = Settings {
        name: check.name(raw.name, env.host_name.as_deref()),
        socket_group: check.group(raw.socket_group),
        listen: check.listen(raw.listen),
        external: check.external(raw.external),
        bootstrap: check.peers(raw.bootstrap),
        relay: check.peers(raw.relay),
        serve,
        network: check.network(raw.network),
        mdns: check.switch(raw.mdns, true),
        port_mapping: check.switch(raw.port_mapping, true),
        trust_open: check.trust(raw.trust),
        log: check.log(raw.log),
        default_ttl: check.time(raw.default_ttl, 7 * DAY, SECOND..=365 * DAY),
        shutdown_grace: check.time(raw.shutdown_grace, 10 * SECOND, SECOND..=300 * SECOND),
        limits: Limits {
            max_message_bytes: check.size(raw.max_message_bytes.clone(), MIB, MESSAGE_BYTES_RANGE),
            max_outbox_bytes: check.size(raw.max_outbox_bytes.clone(), GIB, KIB..=MAX_QUEUE_BYTES),
            max_inbox_bytes: check.size(raw.max_inbox_bytes.clone(), GIB, KIB..=MAX_QUEUE_BYTES),
            max_peer_bytes: check.size(raw.max_peer_bytes.clone(), 256 * MIB, KIB..=MAX_QUEUE_BYTES),
            max_untrusted_connections: check.count(raw.max_untrusted_connections, strangers, 0..=100_000),
            max_trusted_connections: check.count(raw.max_trusted_connections, 1000, 1..=100_000),
            // One would refuse the better connection that replaces a worse.
            max_connections_per_peer: check.count(raw.max_connections_per_peer, 8, 2..=64),
            max_memory_bytes: raw
                .max_memory_bytes
                .map(|written| check.size(Some(written), MIN_MEMORY_BYTES, MIN_MEMORY_BYTES..=MAX_QUEUE_BYTES)),
            max_streams: check.count(raw.max_streams, 256, 4..=10_000),
            relay_reservations: check.count(raw.relay_reservations, relay.max_reservations, 1..=100_000),
            relay_reservation_duration: check.time(
                raw.relay_reservation_duration,
                relay.reservation_duration,
                60 * SECOND..=DAY,
            ),
            relay_circuits: check.count(raw.relay_circuits, relay.max_circuits, 1..=100_000),
            relay_circuits_per_peer: check.count(raw.relay_circuits_per_peer, relay.max_circuits_per_peer, 1..=100_000),
            relay_circuit_bytes: check.circuit_bytes(raw.relay_circuit_bytes, relay.max_circuit_bytes),
            relay_circuit_duration: check.time(
                raw.relay_circuit_duration,
                relay.max_circuit_duration,
                SECOND..=365 * DAY,
            ),
        },
        state_dir: state_dir?,
        socket: socket?,
    };
    let limits = &settings.limits;
    for (key, written, value) in [
        ("limits.max_outbox_bytes", raw.max_outbox_bytes, limits.max_outbox_bytes),
        ("limits.max_inbox_bytes", raw.max_inbox_bytes, limits.max_inbox_bytes),
        ("limits.max_peer_bytes", raw.max_peer_bytes, limits.max_peer_bytes),
    ] {
        check.holds_a_message(key, written, value, limits.max_message_bytes);
    }
    Some(settings)
}

/// Checks one setting after the other. A bad one becomes a problem and takes
/// its default, so that the others are checked too.
struct Check<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn parsed<T>(&mut self, written: Text, default: T, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some(Written { key, value, origin }) = written else { return default };
        parse(value.trim()).unwrap_or_else(|what| {
            self.problems.push(Problem { key: key.to_owned(), value: Some(value), origin, what });
            default
        })
    }

    fn switch(&mut self, written: Text, default: bool) -> bool {
        self.parsed(written, default, |text| match text {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        })
    }

    fn count(&mut self, written: Text, default: u32, range: RangeInclusive<u32>) -> u32 {
        self.parsed(written, default, |text| {
            let number: u64 = text.parse().map_err(|_| format!("must be a whole number {}", bounds(&range)))?;
            let number = u32::try_from(number).ok().filter(|number| range.contains(number));
            number.ok_or_else(|| format!("must be {}", bounds(&range)))
        })
    }

    fn size(&mut self, written: Text, default: u64, range: RangeInclusive<u64>) -> u64 {
        let limits = ByteSize(*range.start())..=ByteSize(*range.end());
        self.parsed(written, default, |text| {
            let size: ByteSize = text
                .parse()
                .map_err(|_| "must be a size: a number of bytes, or a text such as \"64 MiB\"".to_owned())?;
            if range.contains(&size.0) { Ok(size.0) } else { Err(format!("must be {}", bounds(&limits))) }
        })
    }

    fn circuit_bytes(&mut self, written: Text, default: u64) -> u64 {
        let (least, most) = (ByteSize(MIN_CIRCUIT_BYTES), ByteSize(MAX_QUEUE_BYTES));
        let size = self.size(written.clone(), default, 0..=MAX_QUEUE_BYTES);
        self.parsed(written, size, |_| match size {
            1..MIN_CIRCUIT_BYTES => Err(format!("must be 0 (no limit) or from {least} to {most}")),
            _ => Ok(size),
        })
    }

    fn time(&mut self, written: Text, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        // It has months of 30.44 days.
        let human = |time: &Duration| match time.as_secs() / DAY.as_secs() {
            days if days > 0 && *time == DAY * days as u32 => format!("{days}d"),
            _ => humantime::format_duration(*time).to_string(),
        };
        self.parsed(written, default, |text| {
            let time = humantime::parse_duration(text)
                .map_err(|_| "must be a duration such as \"10s\" or \"7d\"".to_owned())?;
            if range.contains(&time) {
                Ok(time)
            } else {
                Err(format!("must be from {} to {}", human(range.start()), human(range.end())))
            }
        })
    }

    fn serve(&mut self, written: Text) -> Serve {
        self.parsed(written, Serve::Auto, |text| match text {
            "auto" => Ok(Serve::Auto),
            "on" | "true" => Ok(Serve::On),
            "off" | "false" => Ok(Serve::Off),
            _ => {
                Err("must be \"auto\" (trusted peers, where publicly reachable), \"on\" (everyone) or \"off\""
                    .to_owned())
            }
        })
    }

    fn network(&mut self, written: Text) -> Overlay {
        self.parsed(written, Overlay::Private, |text| match text {
            "private" => Ok(Overlay::Private),
            "ipfs" => Ok(Overlay::Ipfs),
            _ => Err("must be \"private\" (nodes of this program) or \"ipfs\" (the public network)".to_owned()),
        })
    }

    fn external(&mut self, written: Option<Written<Vec<String>>>) -> Vec<Multiaddr> {
        const EXAMPLE: &str = "write it like /ip4/203.0.113.1/udp/4001/quic-v1 or /dns4/relay.example.org/tcp/4001";
        self.addresses(written, MAX_EXTERNAL, |text| match address(text) {
            Some((address, None)) => can_be_dialled(&address).map(|()| address),
            Some((_, Some(_))) => Err(format!("must not end in /p2p/...; {EXAMPLE}")),
            None => Err(format!("is no address of TCP or of UDP with quic-v1; {EXAMPLE}")),
        })
    }

    /// Addresses of one peer are gathered: they lead to one node.
    fn peers(&mut self, written: Option<Written<Vec<String>>>) -> Vec<PeerAddresses> {
        const EXAMPLE: &str = "write it like /dns4/relay.example.org/udp/4001/quic-v1/p2p/12D3KooW...";
        let all = self.addresses(written, MAX_PEER_ADDRESSES, |text| match address(text) {
            Some((address, Some(peer))) => can_be_dialled(&address).map(|()| (peer, address)),
            Some((_, None)) => {
                Err(format!("does not end in /p2p/PEER_ID, so that nobody knows who should answer; {EXAMPLE}"))
            }
            None => Err(format!("is no address of TCP or of UDP with quic-v1 that ends in /p2p/PEER_ID; {EXAMPLE}")),
        });
        let mut peers: Vec<PeerAddresses> = Vec::new();
        for (peer, address) in all {
            match peers.iter_mut().find(|known| known.peer == peer) {
                Some(known) => known.addresses.push(address),
                None => peers.push(PeerAddresses { peer, addresses: vec![address] }),
            }
        }
        peers
    }

    fn addresses<T: PartialEq>(
        &mut self,
        written: Option<Written<Vec<String>>>,
        max: usize,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(Written { key, value: texts, origin }) = written else { return Vec::new() };
        let mut refuse = |value: Option<&str>, what: String| {
            let value = value.map(str::to_owned);
            self.problems.push(Problem { key: key.to_owned(), value, origin: origin.clone(), what });
        };
        // What a list without entries looks like in the environment.
        let texts: Vec<&String> = texts.iter().filter(|text| !text.is_empty()).collect();
        if texts.len() > max {
            refuse(None, format!("has {} addresses; it can have {max} at most", texts.len()));
        }
        let mut all = Vec::new();
        for text in texts.into_iter().take(max) {
            match parse(text) {
                Err(what) => refuse(Some(text), what),
                Ok(value) if all.contains(&value) => refuse(Some(text), "is there twice; remove one".to_owned()),
                Ok(value) => all.push(value),
            }
        }
        all
    }

    fn trust(&mut self, written: Text) -> bool {
        self.parsed(written, false, |text| match text {
            "known" => Ok(false),
            "open" => Ok(true),
            _ => Err("must be \"known\" (the address book) or \"open\" (everyone)".to_owned()),
        })
    }

    fn log(&mut self, written: Text) -> String {
        self.parsed(written, "info".to_owned(), |text| match telemetry::parse_filter(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    fn name(&mut self, written: Text, host: Option<&str>) -> String {
        let default = host.and_then(to_alias).unwrap_or_else(|| FALLBACK_NAME.to_owned());
        self.parsed(written, default, |text| {
            if is_alias(text) {
                return Ok(text.to_owned());
            }
            Err(format!(
                "must have 1 to {MAX_ALIAS_BYTES} letters, digits, \"-\", \"_\" or \".\", not begin with \"-\", and be no peer id; \
                 leave it out for the name of this host"
            ))
        })
    }

    fn group(&mut self, written: Text) -> String {
        self.parsed(written, "p2p-node".to_owned(), |text| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.$".contains(c);
            if text.is_empty() || text.len() > MAX_GROUP_BYTES || !text.chars().all(plain) {
                return Err(format!(
                    "must be the name of a group: 1 to {MAX_GROUP_BYTES} letters, digits, \"-\", \"_\" or \".\""
                ));
            }
            Ok(text.to_owned())
        })
    }

    fn listen(&mut self, written: Option<Written<Vec<String>>>) -> Vec<ListenAddress> {
        let Some(Written { key, value: texts, origin }) = written else { return listen_addresses(&DEFAULT_LISTEN) };
        let mut refuse = |value: Option<&str>, what: String| {
            let value = value.map(str::to_owned);
            self.problems.push(Problem { key: key.to_owned(), value, origin: origin.clone(), what });
        };
        if texts.is_empty() || texts.len() > MAX_LISTEN {
            let what = format!("has {} addresses; it must have from 1 to {MAX_LISTEN}", texts.len());
            refuse(None, what);
        }
        for (index, text) in texts.iter().enumerate().take(MAX_LISTEN) {
            match listen_address(text) {
                Err(what) => refuse(Some(text), what),
                Ok(_) if texts[..index].contains(text) => {
                    refuse(Some(text), "is there twice; remove one".to_owned());
                }
                Ok(_) => {}
            }
        }
        listen_addresses(&texts)
    }

    /// A queue that cannot hold one message of the largest size would refuse
    /// it for ever.
    fn holds_a_message(&mut self, key: &str, written: Text, value: u64, max_message_bytes: u64) {
        let least = max_message_bytes + MAX_HEADER_BYTES as u64 + Content::default().cost();
        if value >= least {
            return;
        }
        let (text, origin) = written.map_or((None, Origin::Default), |written| (Some(written.value), written.origin));
        let what = format!(
            "must be at least {least}, the cost of one message of limits.max_message_bytes ({max_message_bytes}); \
             raise it or lower that"
        );
        self.problems.push(Problem { key: key.to_owned(), value: text, origin, what });
    }
}

/// Those that parse. The default list is the default also when written out.
fn listen_addresses<T: AsRef<str>>(texts: &[T]) -> Vec<ListenAddress> {
    let required = !texts.iter().map(AsRef::as_ref).eq(DEFAULT_LISTEN);
    texts
        .iter()
        .filter_map(|text| listen_address(text.as_ref()).ok())
        .map(|addr| ListenAddress { addr, required })
        .collect()
}

fn listen_address(text: &str) -> Result<Multiaddr, String> {
    const EXAMPLES: &str = "write it like /ip4/0.0.0.0/udp/4001/quic-v1 or /ip6/::/tcp/4001";
    let addr: Multiaddr = text.parse().map_err(|error| format!("is no multiaddr ({error}); {EXAMPLES}"))?;
    let parts: Vec<Protocol<'_>> = addr.iter().collect();
    match parts.as_slice() {
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)]
        | [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(_), Protocol::QuicV1] => Ok(addr),
        _ => Err(format!("is no address to listen on: an IP address with TCP, or with UDP and quic-v1; {EXAMPLES}")),
    }
}

/// An address to dial, and whom it leads to if it says so.
fn address(text: &str) -> Option<(Multiaddr, Option<PeerId>)> {
    let mut addr: Multiaddr = text.parse().ok()?;
    let peer = match addr.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    };
    if peer.is_some() {
        addr.pop();
    }
    let parts: Vec<Protocol<'_>> = addr.iter().collect();
    let (host, rest) = parts.split_first()?;
    let dns = matches!(host, Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_));
    let ip = matches!(host, Protocol::Ip4(_) | Protocol::Ip6(_));
    let transport = match rest {
        [Protocol::Tcp(port)] | [Protocol::Udp(port), Protocol::QuicV1] => *port != 0,
        _ => false,
    };
    ((dns || ip) && transport).then_some((addr, peer))
}

fn can_be_dialled(address: &Multiaddr) -> Result<(), String> {
    let told = |error| format!("cannot be dialled: {error}; name one at which others reach that node");
    dialable::check(address).map(drop).map_err(told)
}

fn bounds<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("from {} to {}", range.start(), range.end())
}
