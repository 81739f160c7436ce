//! The kinds of sites.

use clap::ValueEnum;

/// What stands between a site's hosts and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// A public host.
    None,
    FullCone,
    /// Lets in whoever shares an address with one that was written to.
    Restricted,
    /// Lets in who was written to, address and port.
    PortRestricted,
    /// The same, with another port outside than inside.
    PortRestrictedChanged,
    FullConeChanged,
    /// Another random port for each destination.
    Symmetric,
    /// The next port for each destination.
    SymmetricPlusOne,
    /// A carrier's: random ports of a block for each destination.
    CgnBlock,
    /// A port-restricted home router behind a port-restricted carrier's.
    Double,
    /// No UDP; TCP through a port-restricted router.
    UdpBlocked,
    /// Port-restricted, with UPnP-IGD.
    Upnp,
    /// Port-restricted, with PCP and NAT-PMP.
    Pcp,
    /// IPv6 alone: no translation, a firewall that lets in answers only.
    V6Firewall,
    /// IPv6 alone: a public host.
    V6Open,
}

/// How a router picks the outer port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// That of the host, for all destinations.
    Kept,
    /// Another one, the same for all destinations.
    Changed,
    /// Random for each destination.
    Random,
    /// Counted up for each destination.
    PlusOne,
    /// Random for each destination, within a block.
    Block,
}

/// Whom a router lets in to a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// Everyone.
    None,
    /// Any port of an address that was written to.
    Address,
    /// Who was written to.
    AddressAndPort,
}

/// The protocol by which hosts ask a router for a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Igd {
    Upnp,
    Pcp,
}

impl Kind {
    pub(crate) fn mapping(self) -> Mapping {
        match self {
            Self::PortRestrictedChanged | Self::FullConeChanged => Mapping::Changed,
            Self::Symmetric => Mapping::Random,
            Self::SymmetricPlusOne => Mapping::PlusOne,
            Self::CgnBlock => Mapping::Block,
            _ => Mapping::Kept,
        }
    }

    pub(crate) fn filtering(self) -> Filtering {
        match self {
            Self::None | Self::V6Open | Self::FullCone | Self::FullConeChanged => Filtering::None,
            Self::Restricted => Filtering::Address,
            _ => Filtering::AddressAndPort,
        }
    }

    pub(crate) fn igd(self) -> Option<Igd> {
        match self {
            Self::Upnp => Some(Igd::Upnp),
            Self::Pcp => Some(Igd::Pcp),
            _ => None,
        }
    }

    pub(crate) fn udp(self) -> bool {
        self != Self::UdpBlocked
    }

    /// Hosts stand on the internet themselves.
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Self::None | Self::V6Open)
    }

    pub(crate) fn is_v6(self) -> bool {
        matches!(self, Self::V6Firewall | Self::V6Open)
    }

    /// The address outside is not the host's.
    pub(crate) fn translates(self) -> bool {
        !self.is_public() && !self.is_v6()
    }

    /// A router of this kind can send back what is for its own outer address:
    /// that needs a mapping that holds for all destinations.
    pub(crate) fn takes_hairpin(self) -> bool {
        let holds = matches!(self.mapping(), Mapping::Kept | Mapping::Changed);
        self.translates() && self.udp() && self != Self::Double && holds
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().unwrap().get_name().to_owned()
    }
}
