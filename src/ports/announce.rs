//! Routers tell by multicast that they restarted or got another address, in
//! PCP and in NAT-PMP alike. Such a word only says when to look: what holds is
//! then asked.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

/// To all hosts of the link, which every host is a member of (RFC 6886, 3.2.1).
const PORT: u16 = 5350;
/// Taken at once; the rest is looked at the next time.
const MAX_AT_ONCE: usize = 64;

/// Hears announcements.
#[derive(Debug)]
pub(super) struct Announcements(Option<UdpSocket>);

impl Announcements {
    /// Without a socket nothing is heard, and restarts are noticed later.
    pub(super) fn new() -> Self {
        let socket = bind();
        if let Err(error) = &socket {
            tracing::debug!(%error, "announcements of the router are not heard");
        }
        Self(socket.ok())
    }

    /// Waits for a word of the router.
    pub(super) async fn heard(&self, router: Option<Ipv4Addr>) {
        let (Some(socket), Some(router)) = (&self.0, router) else { return std::future::pending().await };
        let mut datagram = [0; 1];
        loop {
            match socket.recv_from(&mut datagram).await {
                Ok((_, from)) if from.ip() == IpAddr::V4(router) => break,
                Ok(_) => {}
                // None that would not come again at once.
                Err(_) => return std::future::pending().await,
            }
        }
        // They come in rows; one look answers them all.
        for _ in 0..MAX_AT_ONCE {
            if socket.try_recv_from(&mut datagram).is_err() {
                break;
            }
        }
    }
}

/// Shared with other programs of this host.
fn bind() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    UdpSocket::from_std(socket.into())
}
