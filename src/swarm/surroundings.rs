//! What is around the node: the home router, and the network of the host.

use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::BoundAddress;
use crate::{
    netwatch::{self, NetWatch},
    ports::{self, Control, MappingView, PortsConfig},
};

/// Separates this use of the key from all others.
const MAPPING_DOMAIN: &[u8] = b"p2p-node port mapping 1";

/// Changes that wait for the task: each says that, and how things are now.
pub(super) const CHANGE_QUEUE: usize = 4;

/// What became different around the node.
#[derive(Debug)]
pub(super) enum Surroundings {
    /// The host has another network, or the same again.
    Network,
    /// The router forwards these addresses now.
    Mapped(Vec<Multiaddr>),
}

/// Has the router forward the ports that are bound, until `stop`. `None` if
/// none of them can be reached from another host.
pub(super) fn map_ports(
    bound: &[BoundAddress],
    keypair: &Keypair,
    changes: &mpsc::Sender<Surroundings>,
    stop: &CancellationToken,
) -> Option<ports::Handle> {
    let mut config = ports_of(bound.iter().map(|address| &address.bound))?;
    // Another key than Ed25519 has no such secret; a constant serves, too.
    config.secret = keypair.derive_secret(MAPPING_DOMAIN).unwrap_or_default().into();
    let handle = ports::spawn(&config, stop.clone());
    tokio::spawn(follow_mappings(handle.view.clone(), changes.clone()));
    Some(handle)
}

/// Notices when the host's network changes, until `stop`.
pub(super) fn watch_network(mapping: Option<Control>, changes: mpsc::Sender<Surroundings>, stop: CancellationToken) {
    tokio::spawn(async move {
        match netwatch::spawn(stop).await {
            Ok(watch) => follow(watch, mapping, changes).await,
            Err(error) => tracing::warn!(%error, "changes of the host's network are not noticed"),
        }
    });
}

async fn follow(mut watch: NetWatch, mapping: Option<Control>, changes: mpsc::Sender<Surroundings>) {
    while let Some(change) = watch.changes.recv().await {
        if change.major {
            tracing::info!(change = change.summary, "the network changed");
            mapping.iter().for_each(Control::refresh);
            if changes.send(Surroundings::Network).await.is_err() {
                return;
            }
        }
    }
}

async fn follow_mappings(mut view: watch::Receiver<MappingView>, changes: mpsc::Sender<Surroundings>) {
    let mut told = Vec::new();
    while view.changed().await.is_ok() {
        let mapped = view.borrow_and_update().addresses();
        if mapped != told {
            told.clone_from(&mapped);
            if changes.send(Surroundings::Mapped(mapped)).await.is_err() {
                return;
            }
        }
    }
}

/// IPv4 ports that others can reach: not those of the loopback.
fn ports_of<'a>(addresses: impl Iterator<Item = &'a Multiaddr>) -> Option<PortsConfig> {
    let mut config = PortsConfig::default();
    for address in addresses {
        let mut parts = address.iter();
        match (parts.next(), parts.next()) {
            (Some(Protocol::Ip4(ip)), Some(Protocol::Udp(port))) if !ip.is_loopback() => config.udp.push(port),
            (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) if !ip.is_loopback() => config.tcp.push(port),
            _ => {}
        }
    }
    (!config.udp.is_empty() || !config.tcp.is_empty()).then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(addresses: &[&str]) -> Option<PortsConfig> {
        let addresses: Vec<Multiaddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        ports_of(addresses.iter())
    }

    #[test]
    fn ports_of_ipv4_are_mapped() {
        let all = ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/192.168.1.7/tcp/4002", "/ip6/::/udp/4003/quic-v1"];
        let config = ports(&all).unwrap();
        assert_eq!((config.udp, config.tcp), (vec![4001], vec![4002]));
    }

    #[test]
    fn those_of_the_loopback_and_of_ipv6_are_not() {
        assert_eq!(ports(&["/ip4/127.0.0.1/tcp/4001", "/ip6/::/tcp/4001"]), None);
    }
}
