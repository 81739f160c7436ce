//! The messages as they are on the wire.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{Candidate, CandidateKind, MAX_CANDIDATES, MAX_RTT, Mapping, Message, Nat, Offer, Transport};

pub(super) const OFFER: u32 = 1;
pub(super) const ANSWER: u32 = 2;
pub(super) const SYNC: u32 = 3;

const CONFIRMED: u32 = 1;
const OBSERVED: u32 = 2;
const LOCAL: u32 = 3;

const QUIC: u32 = 1;
const TCP: u32 = 2;

const NO_NAT: u32 = 1;
const INDEPENDENT: u32 = 2;
const DEPENDENT: u32 = 3;

/// OFFER, ANSWER and SYNC; the last has nothing but its kind.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Punch {
    #[prost(uint32, tag = "1")]
    pub(super) kind: u32,
    #[prost(uint32, tag = "2")]
    pub(super) round: u32,
    /// 0: not measured.
    #[prost(uint32, tag = "3")]
    pub(super) rtt_ms: u32,
    #[prost(message, repeated, tag = "4")]
    pub(super) candidates: Vec<RawCandidate>,
    #[prost(message, optional, tag = "5")]
    pub(super) nat_v4: Option<RawNat>,
    #[prost(message, optional, tag = "6")]
    pub(super) nat_v6: Option<RawNat>,
    #[prost(bool, tag = "7")]
    pub(super) udp_blocked: bool,
}

/// See [`Candidate`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RawCandidate {
    /// Four or sixteen bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ip: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) port: u32,
    #[prost(uint32, tag = "3")]
    pub(super) transport: u32,
    #[prost(uint32, tag = "4")]
    pub(super) kind: u32,
}

/// See [`Nat`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RawNat {
    #[prost(uint32, tag = "1")]
    pub(super) mapping: u32,
    #[prost(bool, optional, tag = "2")]
    pub(super) port_kept: Option<bool>,
    #[prost(sint32, optional, tag = "3")]
    pub(super) port_step: Option<i32>,
}

impl Punch {
    pub(super) fn into_offer(self) -> Offer {
        let mut seen = HashSet::new();
        let known = self.candidates.iter().filter_map(RawCandidate::check);
        Offer {
            round: self.round,
            rtt: (self.rtt_ms > 0).then(|| Duration::from_millis(self.rtt_ms.into()).min(MAX_RTT)),
            candidates: known.filter(|known| seen.insert((known.transport, known.socket))).collect(),
            nat_v4: self.nat_v4.unwrap_or_default().into(),
            nat_v6: self.nat_v6.unwrap_or_default().into(),
            udp_blocked: self.udp_blocked,
        }
    }
}

impl From<&Message> for Punch {
    fn from(message: &Message) -> Self {
        match message {
            Message::Offer(offer) => Self { kind: OFFER, ..offer.into() },
            Message::Answer(offer) => Self { kind: ANSWER, ..offer.into() },
            Message::Sync => Self { kind: SYNC, ..Self::default() },
        }
    }
}

impl From<&Offer> for Punch {
    fn from(offer: &Offer) -> Self {
        let rtt = offer.rtt.map_or(0, |rtt| rtt.min(MAX_RTT).as_millis() as u32);
        Self {
            kind: 0,
            round: offer.round,
            rtt_ms: rtt,
            candidates: offer.candidates.iter().take(MAX_CANDIDATES).map(RawCandidate::from).collect(),
            nat_v4: RawNat::unless_default(offer.nat_v4),
            nat_v6: RawNat::unless_default(offer.nat_v6),
            udp_blocked: offer.udp_blocked,
        }
    }
}

impl RawCandidate {
    /// `None` for what is unknown here or cannot be connected to.
    fn check(&self) -> Option<Candidate> {
        let ip = match self.ip.len() {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(self.ip.as_slice()).ok()?).into(),
            16 => Ipv6Addr::from(<[u8; 16]>::try_from(self.ip.as_slice()).ok()?).into(),
            _ => return None,
        };
        let kind = match self.kind {
            CONFIRMED => CandidateKind::Confirmed,
            OBSERVED => CandidateKind::Observed,
            LOCAL => CandidateKind::Local,
            _ => return None,
        };
        let transport = match self.transport {
            QUIC => Transport::Quic,
            TCP => Transport::Tcp,
            _ => return None,
        };
        Candidate::new(kind, transport, SocketAddr::new(ip, u16::try_from(self.port).ok()?))
    }
}

impl From<&Candidate> for RawCandidate {
    fn from(candidate: &Candidate) -> Self {
        let ip = match candidate.socket.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let kind = match candidate.kind {
            CandidateKind::Confirmed => CONFIRMED,
            CandidateKind::Observed => OBSERVED,
            CandidateKind::Local => LOCAL,
        };
        let transport = match candidate.transport {
            Transport::Quic => QUIC,
            Transport::Tcp => TCP,
        };
        Self { ip, port: candidate.socket.port().into(), transport, kind }
    }
}

impl RawNat {
    fn unless_default(nat: Nat) -> Option<Self> {
        (nat != Nat::default()).then(|| nat.into())
    }
}

impl From<Nat> for RawNat {
    fn from(nat: Nat) -> Self {
        let mapping = match nat.mapping {
            Mapping::Unknown => 0,
            Mapping::None => NO_NAT,
            Mapping::EndpointIndependent => INDEPENDENT,
            Mapping::EndpointDependent => DEPENDENT,
        };
        Self { mapping, port_kept: nat.port_kept, port_step: nat.port_step }
    }
}

impl From<RawNat> for Nat {
    fn from(raw: RawNat) -> Self {
        let mapping = match raw.mapping {
            NO_NAT => Mapping::None,
            INDEPENDENT => Mapping::EndpointIndependent,
            DEPENDENT => Mapping::EndpointDependent,
            _ => Mapping::Unknown,
        };
        Self { mapping, port_kept: raw.port_kept, port_step: raw.port_step }
    }
}
