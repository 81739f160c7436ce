//! What the kernel tells over netlink. Only questions and subscriptions: they
//! need no privilege.

use std::{collections::BTreeSet, net::IpAddr, pin::pin};

use futures::{Stream, StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia},
    },
    sys::SocketAddr,
};
use tokio::task::AbortHandle;

use super::{Gateway, Interface, InterfaceAddress, NetState, NetWatchError};

/// Interfaces looked at: a host of containers has hundreds.
const MAX_INTERFACES: usize = 1024;
/// Addresses looked at, of one interface.
const MAX_ADDRESSES: usize = 256;
/// Routes looked at, of each family: a router of the internet's core has a
/// million. The default ones come first.
const MAX_ROUTES: usize = 4096;
/// Default routes kept, of each family.
const MAX_GATEWAYS: usize = 16;
/// The bit of an address that the host made up and will replace. The library
/// calls it `Secondary`, which it means with IPv4.
const TEMPORARY: AddressFlags = AddressFlags::Secondary;

const NOTICES: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

type Notices = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A connection to the kernel; closed when this is dropped.
#[derive(Debug)]
pub(super) struct Kernel {
    handle: Handle,
    notices: Notices,
    task: AbortHandle,
}

impl Kernel {
    /// With notices.
    pub(super) fn watch() -> Result<Self, NetWatchError> {
        let (connection, handle, notices) = new_multicast_connection(&NOTICES).map_err(NetWatchError::Socket)?;
        Ok(Self { handle, notices, task: tokio::spawn(connection).abort_handle() })
    }

    /// For questions only.
    pub(super) fn open() -> Result<Self, NetWatchError> {
        let (connection, handle, notices) = new_connection().map_err(NetWatchError::Socket)?;
        Ok(Self { handle, notices, task: tokio::spawn(connection).abort_handle() })
    }

    /// Waits for a notice, and takes along all that are there: what they say
    /// is read with [`Self::read`]. False once the connection is closed.
    pub(super) async fn notice(&mut self) -> bool {
        let open = self.notices.next().await.is_some();
        while self.notices.try_recv().is_ok() {}
        open
    }

    /// Reads everything.
    pub(super) async fn read(&self) -> Result<NetState, NetWatchError> {
        let mut state = NetState::default();
        self.links(&mut state).await?;
        self.addresses(&mut state).await?;
        state.gateways_v4 =
            self.gateways("IPv4 routes", RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()).await?;
        state.gateways_v6 =
            self.gateways("IPv6 routes", RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()).await?;
        Ok(state)
    }

    async fn links(&self, state: &mut NetState) -> Result<(), NetWatchError> {
        let take = |link: LinkMessage| {
            if link.header.flags.contains(LinkFlags::Loopback) || state.interfaces.len() >= MAX_INTERFACES {
                return;
            }
            let up = link.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            let interface = Interface { name: name.unwrap_or_default(), up, addresses: BTreeSet::new() };
            state.interfaces.insert(link.header.index, interface);
        };
        each("interfaces", self.handle.link().get().execute(), usize::MAX, take).await
    }

    async fn addresses(&self, state: &mut NetState) -> Result<(), NetWatchError> {
        let take = |message: AddressMessage| {
            let Some(interface) = state.interfaces.get_mut(&message.header.index) else { return };
            if let Some(address) = address(&message)
                && interface.addresses.len() < MAX_ADDRESSES
            {
                interface.addresses.insert(address);
            }
        };
        each("addresses", self.handle.address().get().execute(), usize::MAX, take).await
    }

    async fn gateways(&self, what: &'static str, question: RouteMessage) -> Result<Vec<Gateway>, NetWatchError> {
        let mut gateways = Vec::new();
        let take = |route: RouteMessage| gateways.extend(default_route(&route));
        each(what, self.handle.route().get(question).execute(), MAX_ROUTES, take).await?;
        gateways.sort_by_key(|gateway| (gateway.metric, gateway.interface, gateway.ip));
        gateways.dedup();
        gateways.truncate(MAX_GATEWAYS);
        Ok(gateways)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn each<T>(
    what: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    most: usize,
    mut take: impl FnMut(T),
) -> Result<(), NetWatchError> {
    let mut answers = pin!(answers.take(most));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => take(answer),
            // Such as a host without IPv6: it has no routes of that kind.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(nix::libc::EOPNOTSUPP) => return Ok(()),
            Err(error) => return Err(NetWatchError::Read { what, cause: error.to_string() }),
        }
    }
    Ok(())
}

fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a link of two the address is the other end's, and this is ours.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = local.or(peer)?;
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        return None;
    }
    let temporary = ip.is_ipv6() && flags.contains(TEMPORARY);
    Some(InterfaceAddress { ip, prefix: message.header.prefix_len, temporary })
}

fn default_route(route: &RouteMessage) -> Option<Gateway> {
    let header = &route.header;
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ip, mut interface, mut metric) = (None, None, 0);
    let mut table = u32::from(header.table);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => ip = plain(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => ip = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(id) => table = *id,
            // Several next hops at once; the first stands for them.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                interface = Some(hop.interface_index);
                ip = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => plain(address),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(())?;
    Some(Gateway { ip, interface: interface?, metric })
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
