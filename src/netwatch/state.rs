//! The network of the host at one moment, and what differs between two.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

/// Parts of a summary: enough to understand, short in a log.
const MAX_SUMMARY_PARTS: usize = 4;

/// The host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetState {
    /// Interfaces but the loopback, by index; at most 1024.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Gateways of IPv4 default routes, the preferred one first; at most 16.
    pub gateways_v4: Vec<Gateway>,
    /// Gateways of IPv6 default routes, the preferred one first; at most 16.
    pub gateways_v6: Vec<Gateway>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Such as `eth0`.
    pub name: String,
    /// Switched on, and the cable (or its like) is in.
    pub up: bool,
    /// Addresses in use, those still being tried left out; at most 256.
    pub addresses: BTreeSet<InterfaceAddress>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix, in bits.
    pub prefix: u8,
    /// Made up by the host and replaced every day or so (RFC 8981).
    pub temporary: bool,
}

/// A default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// Next hop. `None`: everyone is on the link, as with a tunnel.
    pub ip: Option<IpAddr>,
    /// Index of the interface.
    pub interface: u32,
    /// The lower, the more preferred.
    pub metric: u32,
}

/// That the network changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkChange {
    /// Connections, mappings and reservations are likely gone: a default route
    /// or an address of its interface changed, or the host slept. A change
    /// that is not major is a bridge of containers, or one more address.
    pub major: bool,
    /// What changed, for a log.
    pub summary: String,
}

impl NetState {
    /// Whether an interface that is up has an IPv6 address of the internet.
    #[must_use]
    pub fn has_global_ipv6(&self) -> bool {
        let global = |address: &InterfaceAddress| is_global_v6(&address.ip);
        self.interfaces.values().any(|interface| interface.up && interface.addresses.iter().any(global))
    }

    /// What differs in `next`; `None` if nothing does.
    #[must_use]
    pub fn change_to(&self, next: &Self) -> Option<NetworkChange> {
        if self == next {
            return None;
        }
        let mut parts = Vec::new();
        let routes = self.routes_changed(next, &mut parts);
        let mut major = routes;
        let indexes: BTreeSet<u32> = self.interfaces.keys().chain(next.interfaces.keys()).copied().collect();
        for index in indexes {
            let (before, after) = (self.interfaces.get(&index), next.interfaces.get(&index));
            let weight = interface_changed(before, after, &mut parts);
            major |= weight == Weight::Matters && self.matters(next, index);
        }
        Some(NetworkChange { major, summary: summary(&parts) })
    }

    /// Whether the world is reached over this interface, before or after. On a
    /// host without default routes it is reached over any.
    fn matters(&self, next: &Self, index: u32) -> bool {
        let gateways = || [self, next].into_iter().flat_map(|state| state.gateways_v4.iter().chain(&state.gateways_v6));
        gateways().next().is_none() || gateways().any(|gateway| gateway.interface == index)
    }

    fn routes_changed(&self, next: &Self, parts: &mut Vec<String>) -> bool {
        let mut changed = false;
        for (kind, before, after) in
            [("IPv4", &self.gateways_v4, &next.gateways_v4), ("IPv6", &self.gateways_v6, &next.gateways_v6)]
        {
            if before != after {
                changed = true;
                parts.push(format!("{kind} default route {} → {}", self.first(before), next.first(after)));
            }
        }
        changed
    }

    fn first(&self, gateways: &[Gateway]) -> String {
        let Some(gateway) = gateways.first() else { return "none".to_owned() };
        let name = self.interfaces.get(&gateway.interface).map_or("?", |interface| interface.name.as_str());
        match gateway.ip {
            Some(ip) => format!("{ip} ({name})"),
            None => name.to_owned(),
        }
    }
}

impl NetworkChange {
    /// After a sleep everything may have changed, and old connections are dead.
    pub(super) fn slept(seconds: u64) -> Self {
        Self { major: true, summary: format!("resumed after {seconds} s of sleep") }
    }

    /// This one and a later one as one.
    pub(super) fn and(self, later: Self) -> Self {
        // The later one says what holds; two are enough to read.
        let summary = format!("{}; {}", self.summary.split("; ").next().unwrap_or_default(), later.summary);
        Self { major: self.major || later.major, summary }
    }
}

/// Whether an address is one of the IPv6 internet: 2000::/3, which is all that
/// is given out.
pub(super) fn is_global_v6(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    Nothing,
    Small,
    Matters,
}

fn interface_changed(before: Option<&Interface>, after: Option<&Interface>, parts: &mut Vec<String>) -> Weight {
    let empty = Interface::default();
    let (old, new) = (before.unwrap_or(&empty), after.unwrap_or(&empty));
    if old == new && before.is_some() == after.is_some() {
        return Weight::Nothing;
    }
    let name = if new.name.is_empty() { &old.name } else { &new.name };
    let mut weight = Weight::Small;
    if old.up != new.up {
        weight = Weight::Matters;
        parts.push(format!("{name} {}", if new.up { "up" } else { "down" }));
    }
    for lost in old.addresses.difference(&new.addresses) {
        // Deprecated ones are kept in use; one that goes takes connections along.
        weight = Weight::Matters;
        parts.push(format!("{name} lost {}", lost.ip));
    }
    for got in new.addresses.difference(&old.addresses) {
        if !got.temporary {
            weight = Weight::Matters;
        }
        parts.push(format!("{name} got {}", got.ip));
    }
    if parts.is_empty() {
        parts.push(format!("{name} changed"));
    }
    weight
}

fn summary(parts: &[String]) -> String {
    let mut text = parts.iter().take(MAX_SUMMARY_PARTS).cloned().collect::<Vec<_>>().join(", ");
    if parts.len() > MAX_SUMMARY_PARTS {
        // Writing to a text cannot fail.
        let _ = write!(text, " and {} more", parts.len() - MAX_SUMMARY_PARTS);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> NetState {
        let address = |ip: &str, prefix| InterfaceAddress { ip: ip.parse().unwrap(), prefix, temporary: false };
        let wlan = Interface {
            name: "wlan0".into(),
            up: true,
            addresses: [address("192.168.1.7", 24), address("2001:db8::7", 64)].into(),
        };
        let docker = Interface { name: "docker0".into(), up: true, addresses: [address("172.17.0.1", 16)].into() };
        NetState {
            interfaces: BTreeMap::from([(2, wlan), (3, docker)]),
            gateways_v4: vec![Gateway { ip: Some("192.168.1.1".parse().unwrap()), interface: 2, metric: 600 }],
            gateways_v6: Vec::new(),
        }
    }

    fn address(ip: &str, temporary: bool) -> InterfaceAddress {
        InterfaceAddress { ip: ip.parse().unwrap(), prefix: 24, temporary }
    }

    #[test]
    fn the_same_state_is_no_change() {
        assert_eq!(home().change_to(&home()), None);
    }

    #[test]
    fn another_network_is_major_and_told() {
        let mut next = home();
        next.gateways_v4[0].ip = Some("10.0.0.1".parse().unwrap());
        let change = home().change_to(&next).unwrap();
        assert!(change.major, "{change:?}");
        assert_eq!(change.summary, "IPv4 default route 192.168.1.1 (wlan0) → 10.0.0.1 (wlan0)");
    }

    #[test]
    fn an_address_of_the_routed_interface_is_major() {
        let mut next = home();
        next.interfaces.get_mut(&2).unwrap().addresses.insert(address("192.168.2.9", false));
        assert!(home().change_to(&next).unwrap().major);
        assert!(next.change_to(&home()).unwrap().major, "lost again");
    }

    #[test]
    fn containers_and_fresh_temporary_addresses_are_minor() {
        let mut next = home();
        next.interfaces.remove(&3);
        next.interfaces.insert(9, Interface { name: "veth1".into(), up: true, ..Interface::default() });
        next.interfaces.get_mut(&2).unwrap().addresses.insert(address("2001:db8::99", true));
        let change = home().change_to(&next).unwrap();
        assert!(!change.major, "{change:?}");
    }

    #[test]
    fn without_default_routes_every_interface_matters() {
        let mut before = home();
        before.gateways_v4.clear();
        let mut next = before.clone();
        next.interfaces.get_mut(&3).unwrap().up = false;
        assert!(before.change_to(&next).unwrap().major);
    }

    #[test]
    fn a_summary_is_short() {
        let mut next = home();
        for last in 0..100 {
            next.interfaces.get_mut(&2).unwrap().addresses.insert(address(&format!("192.168.3.{last}"), false));
        }
        let change = home().change_to(&next).unwrap();
        assert!(change.summary.len() < 200 && change.summary.ends_with("and 96 more"), "{change:?}");
    }

    #[test]
    fn folded_changes_keep_what_was_major() {
        let minor = NetworkChange { major: false, summary: "b up".into() };
        let folded = NetworkChange::slept(60).and(minor.clone());
        assert!(folded.major && folded.summary == "resumed after 60 s of sleep; b up", "{folded:?}");
        let mut many = minor.clone();
        for _ in 0..100 {
            many = many.and(minor.clone());
        }
        assert!(many.summary.len() < 200, "{many:?}");
    }

    #[test]
    fn global_ipv6_needs_an_interface_that_is_up() {
        let mut state = home();
        assert!(state.has_global_ipv6());
        state.interfaces.get_mut(&2).unwrap().up = false;
        assert!(!state.has_global_ipv6());
    }
}
