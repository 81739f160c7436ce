//! Two nodes that know each other only through a relay get a direct connection,
//! and so do a node and a libp2p peer that is not of this product.

// A test that cannot go on panics, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../links/node.rs"]
#[allow(dead_code, unreachable_pub)]
mod node;
mod stock;

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use node::{DEADLINE, QUIC, TCP, TestNode, config};
use p2p_node::{
    node::{DialTarget, PathView},
    swarm::ListenAddress,
    types::Route,
};
use stock::{Client, Relay};

/// A node that listens at the relay too.
async fn behind(relay: &Relay, listen: &[&str]) -> (TestNode, Multiaddr) {
    let mut config = config(listen);
    let quic = listen.iter().any(|address| address.contains("quic"));
    let at = relay.circuit(quic);
    config.listen.push(ListenAddress { addr: at.clone(), required: true });
    let node = TestNode::start_with(config).await.unwrap();
    relay.reserved(node.id).await;
    let at = at.with(Protocol::P2p(node.id));
    (node, at)
}

async fn path(node: &TestNode, peer: PeerId, fits: impl Fn(&PathView) -> bool) -> PathView {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let path = node.node.path(peer).await.unwrap();
        if let Some(path) = &path
            && fits(path)
        {
            return path.clone();
        }
        assert!(Instant::now() < deadline, "{path:#?}");
        tokio::task::yield_now().await;
    }
}

fn is_direct(path: &PathView) -> bool {
    path.connections.iter().any(|connection| connection.route != Route::Relayed)
}

/// All that the two have over the relay until then.
async fn dial_over_relay(node: &TestNode, peer: PeerId, address: Multiaddr) {
    let connected = node.node.connect(DialTarget::Address(peer, address), DEADLINE).await.unwrap();
    assert_eq!(connected.route, Route::Relayed);
}

async fn a_direct_connection_comes(listen: &[&str], transport: &str) {
    let relay = Relay::start().await;
    let (a, _) = behind(&relay, listen).await;
    let (b, at) = behind(&relay, listen).await;
    a.trust(&b).await;
    b.trust(&a).await;
    let begun = Instant::now();
    dial_over_relay(&a, b.id, at).await;
    for (node, peer) in [(&a, b.id), (&b, a.id)] {
        let path = path(node, peer, |path| {
            is_direct(path) && path.punches.iter().any(|punch| matches!(punch.outcome, Some(Ok(_))))
        })
        .await;
        let direct = path.connections.iter().find(|connection| connection.route != Route::Relayed).unwrap();
        assert!(direct.address.to_string().contains(transport), "{path:#?}");
        assert_eq!(path.punches.len(), 1, "{path:#?}");
        assert_eq!(path.next_try, None);
    }
    println!("direct after {:?}", begun.elapsed());
    // What was still being dialled is given up: one connection is left besides
    // the relayed one.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for (node, peer) in [(&a, b.id), (&b, a.id)] {
        let path = node.node.path(peer).await.unwrap().unwrap();
        let direct = path.connections.iter().filter(|connection| connection.route != Route::Relayed).count();
        assert_eq!(direct, 1, "{path:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_nodes_get_a_direct_connection_over_quic() {
    a_direct_connection_comes(&[QUIC, TCP], "/quic-v1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relayed_nodes_get_a_direct_connection_over_tcp() {
    a_direct_connection_comes(&[TCP], "/tcp/").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_was_asked_for_is_punched_too() {
    let relay = Relay::start().await;
    let (a, _) = behind(&relay, &[QUIC]).await;
    let (b, at) = behind(&relay, &[QUIC]).await;
    dial_over_relay(&a, b.id, at).await;
    path(&a, b.id, is_direct).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libp2p_peer_that_dialled_gets_a_direct_connection() {
    for quic in [true, false] {
        let relay = Relay::start().await;
        let (b, at) = behind(&relay, if quic { &[QUIC, TCP] } else { &[TCP] }).await;
        let mut stock = Client::behind(&relay, quic).await;
        b.set(stock.id, p2p_node::node::Standing::Trusted, false, Vec::new()).await;
        stock.dial(at);
        stock.direct(b.id).await;
        path(&b, stock.id, is_direct).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libp2p_peer_that_was_dialled_gets_a_direct_connection() {
    for quic in [true, false] {
        let relay = Relay::start().await;
        let (a, _) = behind(&relay, if quic { &[QUIC, TCP] } else { &[TCP] }).await;
        let mut stock = Client::behind(&relay, quic).await;
        let at = relay.circuit(quic).with(Protocol::P2p(stock.id));
        let stock_id = stock.id;
        let (_, ()) = tokio::join!(stock.direct(a.id), async {
            dial_over_relay(&a, stock_id, at).await;
            path(&a, stock_id, is_direct).await;
        });
    }
}
