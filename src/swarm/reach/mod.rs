//! How others can reach this node: what servers see of it ([`observed`],
//! [`nat`]), which addresses servers could connect to ([`verdicts`]), and where
//! a peer may find it ([`Reach::candidates`]).

mod candidates;
pub(super) mod client;
pub(super) mod nat;
pub(super) mod observed;
mod order;
pub(super) mod place;
pub(super) mod server;
pub(super) mod target;
#[cfg(test)]
mod tests;
pub(super) mod verdicts;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{ConnectedPoint, transport::PortUse},
    identify,
    swarm::ConnectionId,
};
use tokio::{sync::mpsc, time::Instant};

pub(super) use candidates::{Candidate, Confidence};
pub(super) use order::{best_first, ip};

use super::{
    SwarmConfig,
    route::{is_loopback, route, without_peer},
};
use crate::{
    node::{AddressSource, AddressView, NatClass, NatView, Serve, Verdict},
    types::Route,
};
use client::Nonces;
use nat::{Mapping, Udp};
use observed::{Observed, Opinion, Own};
use place::{Host, Place, Transport, transport};
use server::{Client, DialBackJob, Serving};
use verdicts::{Answer, Question, Server, Verdicts, Wanted};

/// The protocol in which a node asks another to connect back to it.
pub(super) const DIAL_REQUEST: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-request");
/// The protocol of the connection back.
pub(super) const DIAL_BACK: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-back");
/// Reports that wait for the task: as many as there are questions of this node
/// and of others at once.
pub(super) const REPORT_QUEUE: usize = verdicts::MAX_ASKING + server::MAX_SERVED;
/// Own global addresses that are asked about: hosts give themselves many in
/// IPv6.
const MAX_INTERFACE_TARGETS: usize = 6;

/// What is known of the ways to this node. Time is passed in.
#[derive(Debug)]
pub(super) struct Reach {
    observed: Observed,
    udp: Udp,
    pub(super) verdicts: Verdicts,
    /// Direct connections. Bounded by the limits on connections.
    connections: HashMap<ConnectionId, Way>,
    listen: Vec<Multiaddr>,
    /// Those of the local network, the interface of the default route first.
    local: Vec<Multiaddr>,
    configured: Vec<Multiaddr>,
    mapped: Vec<Multiaddr>,
    /// Whom the settings name.
    named: HashSet<PeerId>,
    serve: Serve,
    /// Of questions under way.
    pub(super) nonces: Nonces,
    pub(super) serving: Serving,
    /// What was logged of the NATs of IPv4 and IPv6.
    pub(super) logged: [(NatClass, Option<IpAddr>); 2],
    /// From what runs elsewhere.
    pub(super) reports: mpsc::Sender<Report>,
}

/// What runs elsewhere tells the task.
#[derive(Debug)]
pub(super) enum Report {
    /// A question of this node was answered, or not.
    Answered(Question, Answer),
    /// A peer wants to be connected to.
    DialBack(DialBackJob),
    /// A connection back has served its purpose.
    Served(PeerId, ConnectionId),
}

/// How a direct connection goes.
#[derive(Debug)]
struct Way {
    peer: PeerId,
    host: Host,
    transport: Transport,
    lan: bool,
    socket: Socket,
}

/// What a connection uses on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Socket {
    /// This side dialled out of the socket that it listens on.
    Dialled,
    /// The peer came in on this port.
    Accepted(u16),
    /// Another one.
    Other,
}

impl Reach {
    pub(super) fn new(config: &SwarmConfig, reports: mpsc::Sender<Report>) -> Self {
        let named = config.relays.iter().chain(&config.bootstrap).map(|named| named.peer).collect();
        Self {
            observed: Observed::default(),
            udp: Udp::default(),
            verdicts: Verdicts::default(),
            connections: HashMap::new(),
            listen: Vec::new(),
            local: Vec::new(),
            configured: config.external.iter().map(without_peer).collect(),
            mapped: Vec::new(),
            named,
            serve: config.serve,
            nonces: Nonces::default(),
            serving: Serving::new(Instant::now()),
            logged: Default::default(),
            reports,
        }
    }

    /// The addresses listened on, of all interfaces.
    pub(super) fn set_listen(&mut self, listen: Vec<Multiaddr>) {
        if self.listen != listen {
            self.listen = listen;
            self.sort_local();
        }
    }

    /// Asks the system for its routes, which is not for every word of a peer.
    fn sort_local(&mut self) {
        let own = best_first(&self.listen, &[], &[]).into_iter();
        self.local = own.filter(|own| own.route == Route::Lan).map(|own| own.address).collect();
    }

    /// The addresses that a router forwards to this node now.
    pub(super) fn set_mapped(&mut self, mapped: &[Multiaddr]) {
        self.mapped = mapped.iter().map(without_peer).collect();
    }

    /// A connection is up. `own_port`: if it was dialled, from a port that is
    /// listened on, unless it says otherwise itself.
    pub(super) fn connected(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        endpoint: &ConnectedPoint,
        own_port: bool,
        now: Instant,
    ) {
        let address = endpoint.get_remote_address();
        let (Some(host), Some(transport)) = (Host::of(address), transport(address)) else { return };
        if endpoint.is_relayed() {
            return;
        }
        self.udp.worked(address, transport, now);
        let socket = match endpoint {
            ConnectedPoint::Dialer { port_use: PortUse::Reuse, .. } if own_port => Socket::Dialled,
            ConnectedPoint::Dialer { .. } => Socket::Other,
            ConnectedPoint::Listener { local_addr, .. } => {
                Place::of(local_addr).map_or(Socket::Other, |place| Socket::Accepted(place.at.port()))
            }
        };
        let lan = route(address) == Route::Lan;
        self.connections.insert(id, Way { peer, host, transport, lan, socket });
    }

    /// A connection is gone.
    pub(super) fn closed(&mut self, id: ConnectionId, now: Instant) {
        self.connections.remove(&id);
        self.observed.closed(id, now);
        self.verdicts.closed(id);
    }

    /// These addresses are being dialled.
    pub(super) fn dial_begun<'a>(&mut self, addresses: impl Iterator<Item = &'a Multiaddr>, now: Instant) {
        for address in addresses.filter(|address| transport(address) == Some(Transport::Quic)) {
            if route(address) == Route::Direct {
                self.udp.quic_begun(address, now);
            }
        }
    }

    /// These addresses could not be dialled.
    pub(super) fn dial_failed<'a>(&mut self, addresses: impl Iterator<Item = &'a Multiaddr>, now: Instant) {
        for address in addresses.filter(|address| transport(address) == Some(Transport::Quic)) {
            if route(address) == Route::Direct {
                self.udp.quic_failed(address, now);
            }
        }
    }

    /// A peer told what it is and what it sees. `trusted`: the user trusts it.
    pub(super) fn identified(&mut self, id: ConnectionId, info: &identify::Info, trusted: bool, now: Instant) {
        let Some(way) = self.connections.get(&id) else { return };
        let Some(seen) = Place::of(&info.observed_addr).filter(|seen| seen.transport == way.transport) else { return };
        let (peer, host, lan) = (way.peer, way.host.clone(), way.lan || route(&info.observed_addr) == Route::Lan);
        let confided = trusted || self.named.contains(&peer);
        if !lan && info.protocols.contains(&DIAL_REQUEST) {
            let server = Server { peer, host: host.clone(), transport: way.transport, v6: seen.is_v6(), confided };
            self.verdicts.server(id, server, now);
        }
        if let Some(own) = self.own_socket(way, seen.is_v6())
            && !is_loopback(&info.observed_addr)
        {
            let dialled = way.socket == Socket::Dialled;
            let opinion = Opinion {
                peer,
                host,
                lan,
                seen: seen.at,
                connection: id,
                dialled,
                confided,
                gone: None,
                outdated: false,
            };
            self.observed.note(own, opinion, now);
        }
    }

    /// The socket listened on that a connection uses. Which one a dial takes
    /// cannot be told where there are several.
    fn own_socket(&self, way: &Way, v6: bool) -> Option<Own> {
        let transport = way.transport;
        let port = match way.socket {
            Socket::Accepted(port) => port,
            Socket::Dialled => {
                let mut ports = self.own_sockets().filter(|own| own.transport == transport && own.v6 == v6);
                let port = ports.next()?.port;
                if ports.any(|own| own.port != port) {
                    return None;
                }
                port
            }
            Socket::Other => return None,
        };
        Some(Own { transport, v6, port })
    }

    fn own_sockets(&self) -> impl Iterator<Item = Own> {
        let places = self.listen.iter().filter_map(Place::of);
        places.map(|place| Own { transport: place.transport, v6: place.is_v6(), port: place.at.port() })
    }

    fn own_ips(&self) -> Vec<IpAddr> {
        self.listen.iter().filter_map(Place::of).map(|place| place.ip()).collect()
    }

    /// What is between the QUIC socket and the others.
    pub(super) fn nat(&self, v6: bool, now: Instant) -> NatView {
        let own_ips = self.own_ips();
        let sockets =
            self.observed.sockets().into_iter().filter(|own| own.transport == Transport::Quic && own.v6 == v6);
        let mappings = sockets.map(|own| Mapping::of(&self.observed, own, &own_ips, now));
        let best = mappings.max_by_key(|mapping| (mapping.public_ip.is_some(), mapping.observers));
        best.unwrap_or_default().view(self.udp.is_blocked(v6, now) && !self.has_quic(v6))
    }

    /// Whether there is a connection over QUIC with a host of the internet; one
    /// that is named may be of either family.
    fn has_quic(&self, v6: bool) -> bool {
        let fits = |host: &Host| !matches!(host, Host::Ip(ip) if ip.is_ipv6() != v6);
        self.connections.values().any(|way| way.transport == Transport::Quic && !way.lan && fits(&way.host))
    }

    /// Brings what is asked about up to date.
    pub(super) fn refresh(&mut self, now: Instant) {
        let targets = self.targets(now);
        self.verdicts.retarget(&targets, now);
    }

    /// Addresses that may work from outside.
    fn targets(&self, now: Instant) -> Vec<Wanted> {
        let places = |addresses: &[Multiaddr]| -> Vec<Place> {
            addresses.iter().filter(|address| route(address) == Route::Direct).filter_map(Place::of).collect()
        };
        let mut interfaces = places(&self.listen);
        interfaces.truncate(MAX_INTERFACE_TARGETS);

        let mut all: Vec<Wanted> = Vec::new();
        let by_source = [
            (AddressSource::Configured, places(&self.configured)),
            (AddressSource::Mapped, places(&self.mapped)),
            (AddressSource::Interface, interfaces),
            (AddressSource::Observed, self.steady(now)),
        ];
        for (source, places) in by_source {
            // Nobody may be there to verify a lone server's own.
            let assumed = match source {
                AddressSource::Configured => true,
                AddressSource::Interface => self.serve == Serve::On,
                _ => false,
            };
            for place in places {
                if !all.iter().any(|known| known.place == place) {
                    all.push(Wanted { place, source, assumed });
                }
            }
        }
        all
    }

    /// Where enough of those that this node dialled see it, unless its NAT
    /// shows each of them another port.
    fn steady(&self, now: Instant) -> Vec<Place> {
        let own_ips = self.own_ips();
        let mappings =
            self.observed.sockets().into_iter().map(|own| (own, Mapping::of(&self.observed, own, &own_ips, now)));
        let steady = mappings.filter(|(_, mapping)| mapping.class != NatClass::EndpointDependent);
        let places = steady.flat_map(|(own, mapping)| {
            mapping.expected.into_iter().map(move |at| Place { transport: own.transport, at })
        });
        places.collect()
    }

    /// Where others see this node, as far as it is believed: those who look for
    /// it may try there, though nobody has confirmed it.
    pub(super) fn seen(&self, now: Instant) -> Vec<Multiaddr> {
        self.steady(now).iter().map(Place::address).collect()
    }

    /// Whether anybody can reach this node: the settings say so, or a server
    /// got in that had no other reason.
    pub(super) fn is_public(&self) -> bool {
        !self.configured.is_empty() || self.verdicts.targets().any(|(_, target)| target.is_proven())
    }

    /// Whoever asks over this connection: a direct one, and not of the local
    /// network.
    pub(super) fn client(&self, id: ConnectionId) -> Option<Client> {
        let way = self.connections.get(&id).filter(|way| !way.lan)?;
        match way.host {
            Host::Ip(ip) => Some(Client { peer: way.peer, ip, own_ips: self.own_ips() }),
            Host::Name(_) => None,
        }
    }

    /// Whether a connection is direct.
    pub(super) fn is_direct(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// The network may be another one: what was seen and tried says little now.
    pub(super) fn network_changed(&mut self, now: Instant) {
        self.sort_local();
        self.observed.network_changed();
        self.udp.clear();
        self.verdicts.clear(now);
    }

    /// Addresses that work, as far as is known.
    pub(super) fn confirmed(&self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.configured.clone();
        let targets = self.verdicts.targets().filter(|(_, target)| target.advertised);
        all.extend(targets.map(|(place, _)| place.address()));
        all.sort();
        all.dedup();
        all
    }

    /// All addresses that may work from outside, the best first.
    pub(super) fn addresses(&self, now: Instant) -> Vec<AddressView> {
        let mut all: Vec<AddressView> =
            self.verdicts.targets().map(|(place, target)| view(place, target, now)).collect();
        let names = self.configured.iter().filter(|address| Place::of(address).is_none());
        all.extend(names.map(|address| AddressView {
            address: address.clone(),
            source: AddressSource::Configured,
            verdict: Verdict::Assumed,
            verified_by: Vec::new(),
            age: None,
            advertised: true,
            detail: String::new(),
        }));
        all.sort_by_key(|view| {
            let tcp = transport(&view.address) != Some(Transport::Quic);
            (!view.advertised, view.verdict != Verdict::Reachable, tcp, view.address.to_string())
        });
        all
    }
}

fn view(place: &Place, target: &target::Target, now: Instant) -> AddressView {
    let verified_by = target.verified_by();
    let detail = match target.verdict() {
        Verdict::Reachable if !target.is_proven() => {
            "only hosts that this node had contacted connected to it; a NAT that lets those in may keep others out"
        }
        Verdict::Reachable if verified_by.len() == 1 => "one server connected to it",
        Verdict::Unknown if target.verdicts.is_empty() => "no server was asked yet",
        _ => "",
    };
    AddressView {
        address: place.address(),
        source: target.source,
        verdict: target.verdict(),
        verified_by,
        age: target.verdicts.last().map(|said| now.saturating_duration_since(said.at)),
        advertised: target.advertised,
        detail: detail.to_owned(),
    }
}
