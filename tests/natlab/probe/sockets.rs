//! Plain sockets within namespaces, used from outside.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use crate::{netns::Netns, site::Site};

/// A packet that has not come after this does not come: many times the longest
/// round trip of a probe.
const PATIENCE: Duration = Duration::from_millis(250);

/// So long after the last of a burst, none of it comes any more.
const PAUSE: Duration = Duration::from_millis(30);

/// Round trips measured.
const TRIES: usize = 5;

/// A UDP socket of a site's host.
pub(crate) struct Peer {
    socket: UdpSocket,
    /// As seen from its own network.
    address: SocketAddr,
}

impl Peer {
    pub(crate) fn new(site: &Site, host: u8, port: u16) -> Self {
        let ip = site.host_ip(host);
        let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = site.hosts[usize::from(host)].enter(|| bind(SocketAddr::new(any, port)));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, address: SocketAddr::new(ip, port) }
    }

    /// Writes to a public peer: the source that this one sees.
    pub(crate) fn seen_by(&self, server: &Self) -> Option<SocketAddr> {
        self.source_at(server.address, server)
    }

    /// Whether what is written to this address comes to that peer.
    pub(crate) fn reaches(&self, address: SocketAddr, peer: &Self) -> bool {
        self.source_at(address, peer).is_some()
    }

    /// Writes to an address at which the peer should hear it: the source that
    /// it sees.
    pub(crate) fn source_at(&self, address: SocketAddr, peer: &Self) -> Option<SocketAddr> {
        let sent: [u8; 16] = rand::random();
        // A refusal of an earlier packet is reported here; the second goes.
        if self.socket.send_to(&sent, address).is_err() {
            drop(self.socket.send_to(&sent, address));
        }
        let deadline = Instant::now() + PATIENCE;
        let mut heard = [0; 64];
        while Instant::now() < deadline {
            match peer.socket.recv_from(&mut heard) {
                Ok((length, from)) if heard[..length] == sent => return Some(from),
                Ok(_) | Err(_) => (),
            }
        }
        None
    }

    /// Writes a number to a public peer.
    pub(crate) fn say(&self, number: u32, to: &Self) {
        self.socket.send_to(&number.to_be_bytes(), to.address).unwrap();
    }

    /// The numbers that come, so many or until none has come for a while.
    pub(crate) fn hear(&self, most: u32) -> Vec<u32> {
        self.socket.set_read_timeout(Some(PAUSE)).unwrap();
        let mut heard = [0; 4];
        let next = || self.socket.recv(&mut heard).ok().map(|_| u32::from_be_bytes(heard));
        std::iter::from_fn(next).take(most as usize).collect()
    }

    /// The time of a packet there and back, the best of some: a busy machine
    /// takes its own.
    pub(crate) fn round_trip(&self, server: &Self) -> Option<Duration> {
        let one = |_| {
            let begin = Instant::now();
            let from = self.seen_by(server)?;
            server.reaches(from, self).then(|| begin.elapsed())
        };
        (0..TRIES).filter_map(one).min()
    }
}

/// A process that another lab starts at this moment may hold a copy of the
/// socket before, until it runs its program.
fn bind(address: SocketAddr) -> UdpSocket {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UdpSocket::bind(address) {
            Ok(socket) => return socket,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{address}: {error}"),
        }
    }
}

/// Whether a TCP connection from one host to the other carries bytes there
/// and back.
pub(crate) fn tcp_echo(client: &Netns, server: &Netns, ip: IpAddr) -> bool {
    const WORD: &[u8] = b"there and back";
    let listener = server.enter(|| TcpListener::bind((ip, 0))).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let Ok(mut stream) = client.enter(|| TcpStream::connect_timeout(&address, 4 * PATIENCE)) else { return false };
    stream.write_all(WORD).unwrap();
    let Some(mut accepted) = accept(&listener) else { return false };
    accepted.set_nonblocking(false).unwrap();
    let mut word = [0; WORD.len()];
    let mut read = |from: &mut TcpStream| {
        from.set_read_timeout(Some(4 * PATIENCE)).unwrap();
        from.read_exact(&mut word).is_ok() && word == WORD
    };
    read(&mut accepted) && accepted.write_all(WORD).is_ok() && read(&mut stream)
}

/// The last packet of the handshake is still under way.
fn accept(listener: &TcpListener) -> Option<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return None,
        }
    }
}
