//! A host whose network changes, and what the daemon notices of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod netns;
mod skip;

use std::time::Duration;

use netns::Namespace;
use p2p_node::netwatch::{self, NetWatch, NetworkChange};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Debouncing takes 250 ms; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);

/// A host with one cable and a default route.
fn host() -> Result<(Namespace, Namespace), String> {
    let (host, other) = (Namespace::new("host")?, Namespace::new("other")?);
    host.cable("eth0", &other, "eth0")?;
    host.ip(&["address", "add", "192.168.5.2/24", "dev", "eth0"])?;
    host.ip(&["route", "add", "default", "via", "192.168.5.1"])?;
    Ok((host, other))
}

async fn next(watch: &mut NetWatch) -> NetworkChange {
    timeout(DEADLINE, watch.changes.recv()).await.expect("noticed in time").expect("still watching")
}

/// The next change that is told and shows what `holds`: a cable brings several.
async fn until(watch: &mut NetWatch, holds: impl Fn(&netwatch::NetState) -> bool) -> NetworkChange {
    loop {
        let change = next(watch).await;
        if holds(&watch.state.borrow()) {
            return change;
        }
    }
}

#[test]
fn addresses_routes_and_cables_are_noticed() {
    let (host, other) = match host() {
        Ok(hosts) => hosts,
        Err(why) => return skip::skip("netwatch", &why),
    };
    host.run(|| async {
        let stop = CancellationToken::new();
        let mut watch = netwatch::spawn(stop.clone()).await.unwrap();
        let first = watch.state.borrow().clone();
        assert_eq!(first.gateways_v4[0].ip, Some("192.168.5.1".parse().unwrap()), "{first:?}");
        let eth0 = &first.interfaces[&first.gateways_v4[0].interface];
        assert!(eth0.name == "eth0" && eth0.up, "{first:?}");
        assert!(eth0.addresses.iter().any(|address| address.ip.to_string() == "192.168.5.2"), "{first:?}");
        assert!(!first.has_global_ipv6(), "{first:?}");

        host.ip(&["address", "add", "2001:db8::7/64", "dev", "eth0", "nodad"]).unwrap();
        let change = until(&mut watch, netwatch::NetState::has_global_ipv6).await;
        assert!(change.major && change.summary.contains("2001:db8::7"), "{change:?}");

        host.ip(&["route", "replace", "default", "via", "192.168.5.9"]).unwrap();
        let change = until(&mut watch, |state| state.gateways_v4[0].ip == Some("192.168.5.9".parse().unwrap())).await;
        assert!(change.major && change.summary.contains("192.168.5.1 (eth0) → 192.168.5.9 (eth0)"), "{change:?}");

        other.ip(&["link", "set", "eth0", "down"]).unwrap();
        let change = until(&mut watch, |state| state.interfaces.values().all(|interface| !interface.up)).await;
        assert!(change.major && change.summary.contains("eth0 down"), "{change:?}");
        other.ip(&["link", "set", "eth0", "up"]).unwrap();
        until(&mut watch, |state| state.interfaces.values().any(|interface| interface.up)).await;

        stop.cancel();
        assert_eq!(timeout(DEADLINE, watch.changes.recv()).await.unwrap(), None);
    });
}

#[test]
fn a_burst_is_one_change_and_what_is_elsewhere_is_minor() {
    let (host, other) = match host() {
        Ok(hosts) => hosts,
        Err(why) => return skip::skip("netwatch", &why),
    };
    host.run(|| async {
        let mut watch = netwatch::spawn(CancellationToken::new()).await.unwrap();
        // An interface of a container: nothing is reached over it.
        host.cable("ct0", &other, "ct0").unwrap();
        host.ip(&["address", "add", "172.17.0.1/16", "dev", "ct0"]).unwrap();
        let with_address = |state: &netwatch::NetState| {
            let address = |address: &netwatch::InterfaceAddress| address.ip.to_string() == "172.17.0.1";
            state.interfaces.values().any(|interface| interface.addresses.iter().any(address))
        };
        let change = until(&mut watch, with_address).await;
        assert!(!change.major, "{change:?}");

        for last in 10..60 {
            host.ip(&["address", "add", &format!("192.168.5.{last}/24"), "dev", "eth0"]).unwrap();
        }
        let all = |state: &netwatch::NetState| {
            state.interfaces.values().map(|interface| interface.addresses.len()).sum::<usize>() >= 50
        };
        let mut told = 0;
        loop {
            told += 1;
            let change = next(&mut watch).await;
            assert!(change.summary.len() < 1000, "{change:?}");
            if all(&watch.state.borrow()) {
                break;
            }
        }
        assert!(told < 10, "{told} for fifty addresses");
    });
}
