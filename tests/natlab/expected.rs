//! What should come of each pair of kinds, and what stock libp2p would have
//! made of it.

use crate::kind::{Filtering, Kind, Mapping};

/// The kinds of the matrix.
pub(crate) const MATRIX: [Kind; 11] = [
    Kind::None,
    Kind::FullCone,
    Kind::Restricted,
    Kind::PortRestricted,
    Kind::PortRestrictedChanged,
    Kind::FullConeChanged,
    Kind::Symmetric,
    Kind::Double,
    Kind::UdpBlocked,
    Kind::Upnp,
    Kind::Pcp,
];

/// How a pair differs from the easiest, for figures by class. A pair is of the
/// last that fits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Two NATs that keep ports.
    Kept,
    /// One side is public.
    Public,
    /// A router made a mapping on request.
    Mapped,
    /// A NAT changes the port.
    Changed,
    Symmetric,
    UdpBlocked,
}

/// All unordered pairs of the matrix, each kind with itself as well.
pub(crate) fn pairs() -> Vec<(Kind, Kind)> {
    let with_later = |(n, kind): (usize, &Kind)| MATRIX[n..].iter().map(|other| (*kind, *other)).collect::<Vec<_>>();
    MATRIX.iter().enumerate().flat_map(with_later).collect()
}

/// Whether the two can reach each other without a relay: always, unless one
/// side's port cannot be told in advance and the other lets in only ports it
/// has written to.
pub(crate) fn direct(a: Kind, b: Kind) -> bool {
    !(unforeseeable(a) && strict(b) || unforeseeable(b) && strict(a))
}

/// The port of the next destination is anyone's guess. (One that counts can be
/// foreseen, but not for sure.)
fn unforeseeable(kind: Kind) -> bool {
    matches!(kind.mapping(), Mapping::Random | Mapping::Block | Mapping::PlusOne)
}

/// Lets in only ports written to, and makes no mappings on request.
fn strict(kind: Kind) -> bool {
    kind.filtering() == Filtering::AddressAndPort && kind.igd().is_none()
}

/// Whether stock libp2p 0.57 (identify, DCUtR, UPnP) stays on the relay where
/// a direct way exists: a changed port is dropped from the observed address, a
/// mapped address never becomes a candidate, and candidates are of the
/// transport by which the relay was reached. A public side is dialled without
/// any of it.
pub(crate) fn stock_loses(a: Kind, b: Kind) -> bool {
    if !direct(a, b) || a.is_public() || b.is_public() {
        return false;
    }
    let either = |is: fn(Kind) -> bool| is(a) || is(b);
    either(|kind| kind.mapping() != Mapping::Kept) || either(|kind| kind.igd().is_some()) || a.udp() != b.udp()
}

pub(crate) fn class(a: Kind, b: Kind) -> Class {
    let either = |is: fn(Kind) -> bool| is(a) || is(b);
    if either(|kind| !kind.udp()) {
        Class::UdpBlocked
    } else if either(unforeseeable) {
        Class::Symmetric
    } else if either(|kind| kind.mapping() == Mapping::Changed) {
        Class::Changed
    } else if either(|kind| kind.igd().is_some()) {
        Class::Mapped
    } else if either(Kind::is_public) {
        Class::Public
    } else {
        Class::Kept
    }
}
