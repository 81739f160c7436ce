//! What a UPnP device says about itself.

use std::net::SocketAddrV4;

use roxmltree::{Document, Node, ParsingOptions};

use super::{soap::Fault, ssdp};

/// Services that forward ports, the better ones first. PPP is what some DSL
/// routers have.
const KINDS: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// Services tried: a router has one a line.
const MAX_SERVICES: usize = 4;
/// Elements and texts of a document; descriptions have hundreds.
const MAX_NODES: u32 = 4096;

/// A device that may forward ports.
#[derive(Debug)]
pub(super) struct Device {
    /// As it came: not to be shown yet.
    pub(super) name: String,
    pub(super) services: Vec<Service>,
}

/// A service that forwards ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) kind: &'static str,
    pub(super) host: SocketAddrV4,
    pub(super) path: String,
}

impl Service {
    /// Whether it can choose a port itself.
    pub(super) fn chooses(&self) -> bool {
        self.kind == KINDS[0]
    }
}

/// Reads a document of a stranger: no entities, few nodes.
pub(super) fn document(text: &str) -> Result<Document<'_>, Fault> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|_| Fault::Odd("it answers no proper XML"))
}

/// Text of the child of a name.
pub(super) fn child<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|child| child.tag_name().name() == name)?.text().map(str::trim)
}

/// Reads the description that the device at `host` gave.
pub(super) fn parse(text: &str, host: SocketAddrV4) -> Result<Device, Fault> {
    let document = document(text)?;
    let base = child(document.root_element(), "URLBase").and_then(ssdp::parse_url).map(|base| base.host);
    // A base elsewhere is as no base.
    let base = base.filter(|base| base.ip() == host.ip()).unwrap_or(host);
    let devices = document.root_element().children().find(|node| node.tag_name().name() == "device");
    let name = devices.and_then(|device| child(device, "friendlyName")).unwrap_or_default().to_owned();
    let mut services = Vec::new();
    for kind in KINDS {
        let found = document
            .descendants()
            .filter(|node| node.tag_name().name() == "service" && child(*node, "serviceType") == Some(kind))
            .filter_map(|node| service(kind, base, child(node, "controlURL")?));
        services.extend(found.take(MAX_SERVICES));
    }
    services.truncate(MAX_SERVICES);
    if services.is_empty() {
        return Err(Fault::Odd("it forwards no ports"));
    }
    Ok(Device { name, services })
}

fn service(kind: &'static str, base: SocketAddrV4, url: &str) -> Option<Service> {
    if let Some(location) = ssdp::parse_url(url) {
        // Elsewhere than the device itself is refused.
        let near = location.host.ip() == base.ip();
        return near.then_some(Service { kind, host: location.host, path: location.path });
    }
    if url.contains("://") || url.starts_with("//") {
        return None;
    }
    let separator = if url.starts_with('/') { "" } else { "/" };
    let location = ssdp::parse_url(&format!("http://{base}{separator}{url}"))?;
    (location.host == base).then_some(Service { kind, host: base, path: location.path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(kind: &str, url: &str) -> String {
        format!(
            r#"<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device>
            <friendlyName>Router</friendlyName><deviceList><device><deviceList><device><serviceList><service>
            <serviceType>urn:schemas-upnp-org:service:{kind}</serviceType><controlURL>{url}</controlURL>
            </service></serviceList></device></deviceList></device></deviceList></device></root>"#
        )
    }

    fn read(text: &str) -> Result<Device, Fault> {
        parse(text, "192.168.1.1:5000".parse().unwrap())
    }

    #[test]
    fn a_service_is_found_at_any_depth() {
        let device = read(&description("WANPPPConnection:1", "ctl/IPConn")).unwrap();
        assert_eq!(device.name, "Router");
        let [service] = device.services.as_slice() else { panic!("{device:?}") };
        assert_eq!((service.kind, service.path.as_str(), service.host.port()), (KINDS[2], "/ctl/IPConn", 5000));
    }

    #[test]
    fn a_service_elsewhere_is_refused() {
        for url in ["http://128.66.0.1/ctl", "//128.66.0.1/ctl", "https://192.168.1.1/", "a b", "http://x/"] {
            assert!(read(&description("WANIPConnection:1", url)).is_err(), "{url}");
        }
        let other_port = read(&description("WANIPConnection:1", "http://192.168.1.1:99/c")).unwrap();
        assert_eq!(other_port.services[0].host.port(), 99);
    }

    #[test]
    fn a_device_without_such_a_service_is_none() {
        read(&description("Layer3Forwarding:1", "/ctl")).unwrap_err();
        read("<root/>").unwrap_err();
        read("hello").unwrap_err();
        read("").unwrap_err();
    }

    #[test]
    fn documents_made_to_hurt_are_refused() {
        let deep = "<a>".repeat(20_000) + &"</a>".repeat(20_000);
        read(&deep).unwrap_err();
        read(&format!("<a>{}</a>", "<b/>".repeat(20_000))).unwrap_err();
        let entities = r#"<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>"#;
        read(entities).unwrap_err();
    }

    #[test]
    fn many_services_are_a_few() {
        let one = description("WANIPConnection:1", "/c");
        let service = &one[one.find("<service>").unwrap()..one.find("</service>").unwrap() + "</service>".len()];
        let many = one.replace(service, &service.repeat(200));
        assert_eq!(read(&many).unwrap().services.len(), MAX_SERVICES);
    }
}
