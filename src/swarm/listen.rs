//! The addresses that the node listens on.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
};

use libp2p::{Multiaddr, TransportError, core::transport::ListenerId, multiaddr::Protocol};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::{
    BoundAddress, ListenAddress, SwarmError,
    error::remedy,
    route::{is_circuit, is_loopback},
};
use crate::netwatch::NetState;

/// Listeners and what became of them.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    table: HashMap<ListenerId, Listener>,
    skipped: Vec<String>,
}

#[derive(Debug)]
struct Listener {
    asked: Multiaddr,
    /// Addresses reported and not expired.
    addresses: Vec<Multiaddr>,
    /// With the port that the system chose.
    bound: Option<Multiaddr>,
}

impl Listeners {
    /// Binds an address through `listen_on`. A default address of a kind that
    /// this host lacks is noted and skipped.
    pub(super) fn bind(
        &mut self,
        address: ListenAddress,
        listen_on: impl FnOnce(Multiaddr) -> Result<ListenerId, TransportError<io::Error>>,
    ) -> Result<(), SwarmError> {
        let ListenAddress { addr, required } = address;
        match probe(&addr).and_then(|()| listen_on(addr.clone()).map_err(plain_error)) {
            Ok(id) => {
                self.table.insert(id, Listener { asked: addr, addresses: Vec::new(), bound: None });
                Ok(())
            }
            Err(error) if !required && lacks_ipv6(&addr, &error) => {
                tracing::info!(address = %addr, %error, "not listening there: this host has no IPv6");
                self.skipped.push(format!("{addr}: {error}"));
                Ok(())
            }
            Err(error) => Err(failure(addr, &error)),
        }
    }

    /// Whether a listener is one of these.
    pub(super) fn has(&self, id: ListenerId) -> bool {
        self.table.contains_key(&id)
    }

    /// Whether every listener has reported an address.
    pub(super) fn all_reported(&self) -> bool {
        self.table.values().all(|listener| listener.bound.is_some())
    }

    /// Whether those that listen on all addresses of the host have reported one
    /// beside the loopback's, if there is any.
    pub(super) fn all_named(&self, host: &NetState) -> bool {
        let addresses = || host.interfaces.values().filter(|known| known.up).flat_map(|known| &known.addresses);
        self.table.values().all(|listener| {
            let Some((asked, _)) = socket_address(&listener.asked).filter(|(asked, _)| asked.ip().is_unspecified())
            else {
                return true;
            };
            !addresses().any(|known| known.ip.is_ipv4() == asked.is_ipv4())
                || listener.addresses.iter().any(|address| !is_loopback(address))
        })
    }

    /// A listener reported an address; tells whether it is new.
    pub(super) fn reported(&mut self, id: ListenerId, address: Multiaddr) -> bool {
        let Some(listener) = self.table.get_mut(&id) else { return false };
        if listener.bound.is_none() {
            listener.bound = Some(with_port_of(&listener.asked, &address));
        }
        let new = !listener.addresses.contains(&address);
        if new {
            listener.addresses.push(address);
        }
        new
    }

    /// A listener lost an address; tells whether it is one of these.
    pub(super) fn expired(&mut self, id: ListenerId, address: &Multiaddr) -> bool {
        let Some(listener) = self.table.get_mut(&id) else { return false };
        listener.addresses.retain(|other| other != address);
        true
    }

    /// A listener is gone: the error that says so, if it was known.
    pub(super) fn closed(&mut self, id: ListenerId, reason: Result<(), io::Error>) -> Option<SwarmError> {
        let listener = self.table.remove(&id)?;
        let error = reason.err().unwrap_or_else(|| io::Error::other("the listener was closed"));
        Some(failure(listener.asked, &error))
    }

    /// Addresses asked for, with their ports.
    pub(super) fn bound(&self) -> Vec<BoundAddress> {
        let bound = |listener: &Listener| {
            let bound = listener.bound.clone().unwrap_or_else(|| listener.asked.clone());
            BoundAddress { asked: listener.asked.clone(), bound }
        };
        self.table.values().map(bound).collect()
    }

    /// All addresses that the node can be reached at from its own interfaces.
    pub(super) fn addresses(&self) -> Vec<Multiaddr> {
        let mut all: Vec<_> = self.table.values().flat_map(|listener| listener.addresses.clone()).collect();
        all.sort();
        all
    }

    /// Default addresses that could not be bound, with the cause.
    pub(super) fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// Binds the address for a moment, without sharing it: libp2p sets
/// SO_REUSEPORT on TCP listeners, so that two daemons of one user would both
/// bind the port and each get a part of the connections.
fn probe(address: &Multiaddr) -> io::Result<()> {
    let Some((socket_address, kind)) = socket_address(address) else { return Ok(()) };
    let socket = Socket::new(Domain::for_address(socket_address), kind, None)?;
    if kind == Type::STREAM {
        // As libp2p does: connections that are being forgotten do not matter.
        socket.set_reuse_address(true)?;
    }
    if socket_address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&socket_address.into())
}

fn socket_address(address: &Multiaddr) -> Option<(SocketAddr, Type)> {
    if is_circuit(address) {
        // The address of a relay.
        return None;
    }
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((SocketAddr::new(ip, port), Type::STREAM)),
        Protocol::Udp(port) => Some((SocketAddr::new(ip, port), Type::DGRAM)),
        _ => None,
    }
}

fn plain_error(error: TransportError<io::Error>) -> io::Error {
    match error {
        TransportError::MultiaddrNotSupported(_) => {
            io::Error::new(io::ErrorKind::Unsupported, "this kind of address is not supported")
        }
        TransportError::Other(error) => super::cause::os_error(error),
    }
}

fn failure(address: Multiaddr, error: &io::Error) -> SwarmError {
    SwarmError::Listen { address, cause: error.to_string(), remedy: remedy(error) }
}

/// A host lacks IPv6 altogether, or has it switched off.
fn lacks_ipv6(address: &Multiaddr, error: &io::Error) -> bool {
    let ipv6 = matches!(address.iter().next(), Some(Protocol::Ip6(_)));
    let unsupported = error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
    ipv6 && (unsupported || error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// The address asked for, with the port of the one reported.
fn with_port_of(asked: &Multiaddr, reported: &Multiaddr) -> Multiaddr {
    let port = reported.iter().find_map(|part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    });
    let Some(port) = port else { return asked.clone() };
    asked
        .iter()
        .map(|part| match part {
            Protocol::Tcp(_) => Protocol::Tcp(port),
            Protocol::Udp(_) => Protocol::Udp(port),
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_port_takes_the_place_of_zero() {
        let asked = "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap();
        let reported = "/ip4/192.168.1.2/udp/4711/quic-v1".parse().unwrap();
        assert_eq!(with_port_of(&asked, &reported), "/ip4/0.0.0.0/udp/4711/quic-v1".parse().unwrap());
    }

    #[test]
    fn a_default_address_without_ipv6_is_skipped_and_a_named_one_refused() {
        let addr: Multiaddr = "/ip6/::/tcp/0".parse().unwrap();
        let fail = |errno: Errno| move |_| Err(TransportError::Other(io::Error::from_raw_os_error(errno as i32)));
        let mut listeners = Listeners::default();
        let errno = Errno::EAFNOSUPPORT;
        listeners.bind(ListenAddress { addr: addr.clone(), required: false }, fail(errno)).unwrap();
        assert_eq!(listeners.skipped().len(), 1);
        listeners.bind(ListenAddress { addr: addr.clone(), required: true }, fail(errno)).unwrap_err();
        let error =
            listeners.bind(ListenAddress { addr, required: false }, fail(Errno::EADDRINUSE)).unwrap_err().to_string();
        assert!(error.contains("/ip6/::/tcp/0") && error.contains("port in use"), "{error}");
    }
}
