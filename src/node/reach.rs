//! How this node is reached, and how it reaches a peer, at one moment.

use std::{net::IpAddr, time::Duration};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::{DialCause, RelayTrouble};
use crate::{ports::MappingView, types::Route};

/// How this node can be reached from outside.
#[derive(Debug, Clone, Default)]
pub struct ReachView {
    /// What is between this node and the IPv4 internet.
    pub nat_v4: NatView,
    /// The same of IPv6.
    pub nat_v6: NatView,
    /// Addresses at which others may reach it, best first.
    pub addresses: Vec<AddressView>,
    /// What its router forwards; `None` where that is not asked for.
    pub mappings: Option<MappingView>,
    /// Relays that it uses, or would like to.
    pub relays: Vec<RelayView>,
    /// What it does for others.
    pub serving: ServingView,
    /// How it is found by others, and finds them.
    pub finding: FindView,
}

/// How this node is found by its id, and finds others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FindView {
    /// Where.
    pub network: Overlay,
    /// It answers the questions of others.
    pub server: bool,
    /// Servers that it knows.
    pub servers: u32,
    /// Servers among them that it is connected with.
    pub connected: u32,
    /// Settings name servers.
    pub configured: bool,
    /// A server answered, so that this node knows its place.
    pub bootstrapped: bool,
    /// How long ago servers took this node's addresses.
    pub published: Option<Duration>,
    /// How many took them.
    pub published_to: u32,
    /// What they were told, without /p2p part.
    pub addresses: Vec<Multiaddr>,
    /// Addresses of others that are kept here.
    pub records: u32,
    /// Most of those.
    pub max_records: u32,
}

/// Where peers are looked for by their id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlay {
    /// Among nodes of this program.
    #[default]
    Private,
    /// In the public network of IPFS, without serving it.
    Ipfs,
}

/// A NAT or firewall, measured from the socket that serves QUIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatView {
    /// Its kind.
    pub class: NatClass,
    /// The address that others see.
    pub public_ip: Option<IpAddr>,
    /// The port that others see is the one listened on.
    pub port_kept: Option<bool>,
    /// From the port that one server sees to that which the next sees, where
    /// they differ by the same step each time.
    pub port_step: Option<i32>,
    /// Servers that told what they see.
    pub observers: u32,
    /// UDP does not get out, TCP does.
    pub udp_blocked: bool,
}

/// Kinds of NAT, by how they map (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NatClass {
    /// Fewer than two servers told.
    #[default]
    Unknown,
    /// None: others see an address of this host.
    None,
    /// Every destination sees the same address and port.
    EndpointIndependent,
    /// Each destination sees another port; also called symmetric.
    EndpointDependent,
}

/// One address at which others may reach this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressView {
    /// Without /p2p part at its end.
    pub address: Multiaddr,
    /// How it is known.
    pub source: AddressSource,
    /// Whether it works.
    pub verdict: Verdict,
    /// Who said so.
    pub verified_by: Vec<PeerId>,
    /// How long ago.
    pub age: Option<Duration>,
    /// Others are told of it.
    pub advertised: bool,
    /// More, for a person; may be empty.
    pub detail: String,
}

/// How an address of this node is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSource {
    /// An own interface has it.
    Interface,
    /// The setting `external`.
    Configured,
    /// Servers see connections come from it.
    Observed,
    /// The router gave it.
    Mapped,
    /// A relay forwards it.
    Relay,
}

/// Whether others can reach an address of this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody tried yet.
    #[default]
    Unknown,
    /// A server connected to it.
    Reachable,
    /// A server could not.
    Unreachable,
    /// The settings say so, nobody tried.
    Assumed,
}

/// A relay that this node uses, or would like to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayView {
    /// The relay.
    pub peer: PeerId,
    /// The settings name it; otherwise it was found.
    pub configured: bool,
    /// Where it is looked for.
    pub addresses: Vec<Multiaddr>,
    /// How far things are.
    pub state: RelayState,
    /// Connections with it.
    pub connections: u32,
    /// Last measured.
    pub rtt: Option<Duration>,
    /// Longest that a circuit may live; `None`: no limit.
    pub max_circuit_duration: Option<Duration>,
    /// Bytes that a circuit may carry, each way or, by a relay of this program,
    /// both ways together; `None`: no limit.
    pub max_circuit_bytes: Option<u64>,
    /// The last trouble, since the last reservation.
    pub trouble: Option<RelayTrouble>,
}

/// How far it is with a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayState {
    /// Not needed now: enough others are reserved.
    Spare,
    /// Being dialled.
    Connecting,
    /// Asked for a reservation.
    Reserving,
    /// Others reach this node there.
    Reserved,
    /// Failed; tried again later.
    Waiting,
}

/// Whether a node serves others as relay, bootstrap and so on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Serve {
    /// Where it is publicly reachable: trusted peers.
    #[default]
    Auto,
    /// Everyone, within limits.
    On,
    /// Nobody.
    Off,
}

/// What this node does for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServingView {
    /// As configured.
    pub mode: Serve,
    /// It serves now.
    pub active: bool,
    /// Peers that hold a reservation here.
    pub reservations: u32,
    /// Most of those.
    pub max_reservations: u32,
    /// Circuits that run here.
    pub circuits: u32,
    /// Most of those.
    pub max_circuits: u32,
    /// Most that one peer opened.
    pub max_circuits_per_peer: u32,
    /// Bytes that a circuit may carry, both ways together; 0: no limit.
    pub max_circuit_bytes: u64,
    /// Longest that a circuit may live.
    pub max_circuit_duration: Duration,
    /// Reservations and circuits refused since the start.
    pub refused: u64,
}

/// How a peer is reached, and what was tried.
#[derive(Debug, Clone)]
pub struct PathView {
    /// The peer.
    pub peer: PeerId,
    /// Its connections, the best first.
    pub connections: Vec<ConnectionView>,
    /// Last measured round trip.
    pub rtt: Option<Duration>,
    /// Addresses known of it, best first.
    pub addresses: Vec<KnownAddressView>,
    /// Attempts to get a direct connection while it was relayed, oldest first.
    pub punches: Vec<PunchView>,
    /// What the peer says of its NAT (IPv4).
    pub peer_nat: Option<NatView>,
    /// When a better path is looked for next.
    pub next_try: Option<Duration>,
    /// It is being dialled now.
    pub dialling: bool,
}

/// One connection with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// How it goes.
    pub route: Route,
    /// The peer's address.
    pub address: Multiaddr,
    /// This side dialled.
    pub dialled: bool,
    /// For how long it has been up.
    pub age: Duration,
    /// Messages go over it.
    pub in_use: bool,
}

/// An address of a peer, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAddressView {
    /// Without /p2p part at its end.
    pub address: Multiaddr,
    /// Who told it.
    pub source: KnownSource,
    /// When it was told last.
    pub age: Duration,
    /// When it was tried last.
    pub tried: Option<Duration>,
    /// What came of it: `None` before the first try, or that it worked, or the
    /// cause of the failure.
    pub outcome: Option<Result<(), DialCause>>,
}

/// Who told an address of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KnownSource {
    /// Seen on the local network.
    Lan,
    /// The address book.
    Book,
    /// It led to the peer before.
    Worked,
    /// The peer itself told it.
    Peer,
    /// Found through the network.
    Found,
    /// A relay of this node, on which the peer may be too.
    Relay,
}

/// One attempt to get a direct connection to a peer that is relayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchView {
    /// How long ago it began.
    pub age: Duration,
    /// From 1, counted anew when something changed.
    pub round: u32,
    /// What was done, for a person: who dialled, over what.
    pub plan: String,
    /// Where the peer was looked for.
    pub addresses: Vec<Multiaddr>,
    /// How long it took.
    pub took: Option<Duration>,
    /// `None` while it runs.
    pub outcome: Option<Result<Multiaddr, String>>,
}

/// A node that the settings name, with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddresses {
    /// The node.
    pub peer: PeerId,
    /// Without /p2p part; at least one.
    pub addresses: Vec<Multiaddr>,
}

/// The relay in an address that leads through one.
#[must_use]
pub fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut last = None;
    for part in address {
        match part {
            Protocol::P2p(peer) => last = Some(peer),
            Protocol::P2pCircuit => return last,
            _ => {}
        }
    }
    None
}
