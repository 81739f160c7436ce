//! The search for a UPnP router: a question by multicast, and the same to the
//! gateway alone, for networks that drop multicast.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use hyper::Uri;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use crate::ports::router::Router;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Devices are asked for by the first version, too, by which newer ones answer.
const KINDS: [&str; 2] =
    ["urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:device:InternetGatewayDevice:2"];
/// When it is asked again and when no answer is the answer. Devices answer
/// within the second that the question gives them.
const WAITS: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(1800)];
/// As the specification asks; routers are on this link.
const HOPS: u32 = 2;
const MAX_DATAGRAM: usize = 2048;
/// Answers looked at: each device answers both kinds, and both questions.
const MAX_ANSWERS: usize = 64;
/// Devices that are asked what they are.
const MAX_LOCATIONS: usize = 4;
const MAX_PATH: usize = 512;

/// Where a device describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) host: SocketAddrV4,
    pub(super) path: String,
}

/// Devices on the router's subnet that call themselves gateways. With an
/// answer of the default gateway, nobody else is waited for.
pub(super) async fn search(router: &Router) -> Vec<Location> {
    let mut found = Vec::new();
    if let Err(error) = exchange(router, &mut found).await {
        tracing::debug!(router = %router.ip, %error, "no search for UPnP");
    }
    found
}

async fn exchange(router: &Router, found: &mut Vec<Location>) -> io::Result<()> {
    let socket = UdpSocket::bind((router.local, 0)).await?;
    socket.set_multicast_ttl_v4(HOPS)?;
    socket2::SockRef::from(&socket).set_multicast_if_v4(&router.local)?;
    let mut left = MAX_ANSWERS;
    for wait in WAITS {
        ask(&socket, router).await;
        let until = Instant::now() + wait;
        let mut datagram = [0; MAX_DATAGRAM];
        while let Ok(received) = timeout_at(until, socket.recv_from(&mut datagram)).await {
            let (length, from) = received?;
            let SocketAddr::V4(from) = from else { continue };
            left -= 1;
            if left == 0 {
                return Ok(());
            }
            let answer = datagram.get(..length).unwrap_or_default();
            let Some(location) = location(answer, *from.ip()).filter(|_| router.is_near(*from.ip())) else { continue };
            if *location.host.ip() == router.ip {
                // The gateway; it may be found at two kinds.
                found.insert(0, location);
                return Ok(());
            }
            if found.len() < MAX_LOCATIONS && !found.contains(&location) {
                found.push(location);
            }
        }
    }
    Ok(())
}

async fn ask(socket: &UdpSocket, router: &Router) {
    for kind in KINDS {
        for to in [GROUP, SocketAddrV4::new(router.ip, GROUP.port())] {
            // One that cannot be sent is as one that is lost.
            drop(socket.send_to(question(kind).as_bytes(), SocketAddr::V4(to)).await);
        }
    }
}

fn question(kind: &str) -> String {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {kind}\r\n\r\n")
}

/// The place that an answer names, if it is at the one that answered: anyone
/// on the link could have this host fetch what is elsewhere.
fn location(answer: &[u8], from: Ipv4Addr) -> Option<Location> {
    let text = std::str::from_utf8(answer).ok()?;
    let mut lines = text.lines();
    let mut status = lines.next()?.split_whitespace();
    (status.next()?.starts_with("HTTP/1.") && status.next()? == "200").then_some(())?;
    let url = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
    })?;
    let location = parse_url(url)?;
    (*location.host.ip() == from).then_some(location)
}

/// A URL of plain HTTP with an IPv4 address for a host.
pub(super) fn parse_url(url: &str) -> Option<Location> {
    if url.len() > MAX_PATH {
        return None;
    }
    let uri: Uri = url.parse().ok()?;
    let plain = uri.scheme_str()?.eq_ignore_ascii_case("http");
    let host: Ipv4Addr = uri.host()?.parse().ok()?;
    let port = uri.port_u16().unwrap_or(80);
    (plain && port != 0).then_some(())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Some(Location { host: SocketAddrV4::new(host, port), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn answer(location: &str) -> Option<Location> {
        let text = format!("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nlocation:{location}\r\nEXT:\r\n\r\n");
        super::location(text.as_bytes(), ROUTER)
    }

    #[test]
    fn the_router_tells_where_it_describes_itself() {
        let found = answer(" http://192.168.1.1:5000/rootDesc.xml?a=1").unwrap();
        assert_eq!(found, Location { host: "192.168.1.1:5000".parse().unwrap(), path: "/rootDesc.xml?a=1".into() });
        assert_eq!(answer("http://192.168.1.1").unwrap().host.port(), 80);
    }

    #[test]
    fn a_place_elsewhere_is_refused() {
        for elsewhere in [
            "http://192.168.1.2/",
            "http://128.66.0.1/rootDesc.xml",
            "http://192.168.1.1@128.66.0.1/",
            "http://router.example/",
            "http://127.0.0.1/",
            "https://192.168.1.1/",
            "http://[::1]/",
            "http://192.168.1.1:0/",
            "file:///etc/passwd",
            "/rootDesc.xml",
            "",
        ] {
            assert_eq!(answer(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(answer(&format!("http://192.168.1.1/{}", "a".repeat(5000))), None);
    }

    #[test]
    fn what_is_no_answer_is_nothing() {
        for text in [
            "",
            "NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n",
            "HTTP/1.1 404 No\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(location(text.as_bytes(), ROUTER), None, "{text:?}");
        }
        assert_eq!(location(&[0xff; 100], ROUTER), None);
    }
}
