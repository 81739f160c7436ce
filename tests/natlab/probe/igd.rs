//! The smallest clients that ask a router for a mapping. They run inside a
//! host's namespace.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket},
    time::Duration,
};

/// Routers answer within this, or do not speak the protocol.
const PATIENCE: Duration = Duration::from_millis(1000);

/// By NAT-PMP (RFC 6886): the outer port.
pub(crate) fn nat_pmp(router: Ipv4Addr, port: u16) -> Option<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    // Version 0, operation 1 (UDP), two bytes unused, inner and wished outer
    // port, lifetime in seconds.
    let mut request = vec![0, 1, 0, 0];
    request.extend(port.to_be_bytes());
    request.extend(port.to_be_bytes());
    request.extend(600u32.to_be_bytes());
    socket.send_to(&request, (router, 5351)).ok()?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).ok()?;
    let granted = length >= 16 && answer[1] == 129 && answer[2..4] == [0, 0];
    granted.then(|| u16::from_be_bytes([answer[10], answer[11]]))
}

/// By UPnP-IGD: the outer port.
pub(crate) fn upnp(host: IpAddr, port: u16) -> Option<u16> {
    let location = discover(host)?;
    let (server, path) = location.strip_prefix("http://")?.split_once('/')?;
    let description = http(server, &format!("GET /{path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"))?;
    // Version 1 or 2.
    let from = description.find("urn:schemas-upnp-org:service:WANIPConnection:")?;
    let (service, rest) = description[from..].split_once('<')?;
    let control = between(rest, "<controlURL>", "</controlURL>")?;
    let body = format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
         <u:AddPortMapping xmlns:u=\"{service}\"><NewRemoteHost></NewRemoteHost>\
         <NewExternalPort>{port}</NewExternalPort><NewProtocol>UDP</NewProtocol>\
         <NewInternalPort>{port}</NewInternalPort><NewInternalClient>{host}</NewInternalClient>\
         <NewEnabled>1</NewEnabled><NewPortMappingDescription>probe</NewPortMappingDescription>\
         <NewLeaseDuration>600</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>"
    );
    let answer = http(
        server,
        &format!(
            "POST {control} HTTP/1.1\r\nHost: {server}\r\nContent-Type: text/xml\r\n\
             SOAPAction: \"{service}#AddPortMapping\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ),
    )?;
    answer.contains(" 200 OK").then_some(port)
}

/// The address of the router's description, by SSDP.
fn discover(host: IpAddr) -> Option<String> {
    let socket = UdpSocket::bind((host, 0)).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let search = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                  ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";
    socket.send_to(search.as_bytes(), "239.255.255.250:1900").ok()?;
    let mut answer = [0; 2048];
    let length = socket.recv(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("location:"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn http(server: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end)?.0)
}
