//! Messages with which two relayed peers arrange a direct connection: those of
//! `/p2p-node/punch/1` here, those of libp2p's `/libp2p/dcutr` in [`dcutr`].
//!
//! ```text
//! length: unsigned varint, of all that follows; at most 4096
//! body:   protobuf
//! ```
//!
//! Whoever opens the stream says OFFER, the other side ANSWER, with the same
//! fields; then the first one says SYNC. Both sides make the same plan of offer
//! and answer. Fields, kinds of candidates and transports that a reader does
//! not know are skipped, so that later versions can add some.

pub mod dcutr;
mod frame;
mod proto;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{Multiaddr, multiaddr::Protocol};

pub use frame::MAX_PUNCH_BYTES;
use frame::bad;

/// Candidates in one message.
pub const MAX_CANDIDATES: usize = 32;
/// Longest round trip that is believed: more makes for no sensible clock.
const MAX_RTT: Duration = Duration::from_secs(10);

/// Where a peer may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    /// How it is known. The better ones come first.
    pub kind: CandidateKind,
    /// The transport.
    pub transport: Transport,
    /// Never unspecified, multicast or broadcast, and never port 0.
    pub socket: SocketAddr,
}

/// How a candidate is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateKind {
    /// Anyone can connect to it: mapped, configured, or tried from outside.
    Confirmed,
    /// Servers see connections come from it.
    Observed,
    /// An own interface has it.
    Local,
}

/// Transports that can be punched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// QUIC version 1.
    Quic,
    /// TCP.
    Tcp,
}

/// The NAT or firewall that a side is behind, as far as it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nat {
    /// How it maps.
    pub mapping: Mapping,
    /// Others see the port that is listened on.
    pub port_kept: Option<bool>,
    /// From the port that one destination sees to that which the next sees.
    pub port_step: Option<i32>,
}

/// How a NAT maps (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Not measured.
    #[default]
    Unknown,
    /// There is no NAT.
    None,
    /// Every destination sees the same address and port.
    EndpointIndependent,
    /// Each destination sees another port.
    EndpointDependent,
}

/// What one side brings: OFFER and ANSWER.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// From 1, counted anew when something changed.
    pub round: u32,
    /// Round trip over the relay, as last measured.
    pub rtt: Option<Duration>,
    /// Where it may be reached.
    pub candidates: Vec<Candidate>,
    /// What is between it and the IPv4 internet.
    pub nat_v4: Nat,
    /// The same of IPv6.
    pub nat_v6: Nat,
    /// UDP does not get out.
    pub udp_blocked: bool,
}

/// A message of `/p2p-node/punch/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first.
    Offer(Offer),
    /// What comes back.
    Answer(Offer),
    /// The answer is here: clocks start.
    Sync,
}

impl Candidate {
    /// The candidate of an address with a literal IP; `None` for other
    /// transports and for addresses that cannot be connected to. A /p2p part at
    /// the end is left out.
    #[must_use]
    pub fn of(address: &Multiaddr, kind: CandidateKind) -> Option<Self> {
        let mut parts = address.iter();
        let ip: IpAddr = match parts.next()? {
            Protocol::Ip4(ip) => ip.into(),
            Protocol::Ip6(ip) => ip.into(),
            _ => return None,
        };
        let (transport, port) = match parts.next()? {
            Protocol::Udp(port) if parts.next()? == Protocol::QuicV1 => (Transport::Quic, port),
            Protocol::Tcp(port) => (Transport::Tcp, port),
            _ => return None,
        };
        let ends = matches!((parts.next(), parts.next()), (None, _) | (Some(Protocol::P2p(_)), None));
        ends.then(|| Self::new(kind, transport, SocketAddr::new(ip, port))).flatten()
    }

    /// `None` for an address that cannot be connected to.
    #[must_use]
    pub fn new(kind: CandidateKind, transport: Transport, socket: SocketAddr) -> Option<Self> {
        let ip = socket.ip().to_canonical();
        let usable = match ip {
            // 240.0.0.0/4 is reserved, 0.0.0.0/8 is this host.
            IpAddr::V4(ip) => !ip.is_multicast() && ip.octets()[0] != 0 && ip.octets()[0] < 240,
            // Link-local addresses mean nothing without an interface.
            IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
        };
        (usable && socket.port() != 0).then(|| Self { kind, transport, socket: SocketAddr::new(ip, socket.port()) })
    }

    /// To dial it.
    #[must_use]
    pub fn address(&self) -> Multiaddr {
        let address = Multiaddr::from(self.socket.ip());
        match self.transport {
            Transport::Quic => address.with(Protocol::Udp(self.socket.port())).with(Protocol::QuicV1),
            Transport::Tcp => address.with(Protocol::Tcp(self.socket.port())),
        }
    }
}

/// Reads a message of `/p2p-node/punch/1`. The size is looked at before
/// anything is kept; candidates that cannot be connected to are left out.
///
/// # Errors
/// The stream breaks, or what came is no such message.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Message> {
    let punch: proto::Punch = frame::read(io).await?;
    if punch.candidates.len() > MAX_CANDIDATES {
        return Err(bad(format!("{} candidates; the limit is {MAX_CANDIDATES}", punch.candidates.len())));
    }
    match punch.kind {
        proto::OFFER => Ok(Message::Offer(punch.into_offer())),
        proto::ANSWER => Ok(Message::Answer(punch.into_offer())),
        proto::SYNC => Ok(Message::Sync),
        kind => Err(bad(format!("a message of kind {kind}, which is unknown here"))),
    }
}

/// Writes a message of `/p2p-node/punch/1`; candidates beyond the first
/// [`MAX_CANDIDATES`] are left out.
///
/// # Errors
/// The stream breaks.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    frame::write(io, &proto::Punch::from(message)).await
}
