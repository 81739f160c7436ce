//! Connecting, and what is said when it fails.

use std::{
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId};
use p2p_node::{
    node::{DialCause, DialTarget, NodeError, NodeEvent, Standing},
    swarm::{ListenAddress, SwarmConfig},
};

use crate::node::{DEADLINE, QUIC, TCP, TestNode, config};

fn listening_on(address: &Multiaddr) -> SwarmConfig {
    let mut config = config(&[]);
    config.listen = vec![ListenAddress { addr: address.clone(), required: false }];
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_that_says_so() {
    let node = TestNode::start().await;
    for quic in [true, false] {
        let address = node.address(quic);
        let error = TestNode::start_with(listening_on(&address)).await.err().expect("refused").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("Address already in use"), "{error}");
        assert!(error.contains("port in use: another daemon? choose another with --listen"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_by_another_program_is_an_error_too() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp_address = format!("/ip4/0.0.0.0/tcp/{}", tcp.local_addr().unwrap().port());
    let udp_address = format!("/ip4/0.0.0.0/udp/{}/quic-v1", udp.local_addr().unwrap().port());
    for address in [tcp_address, udp_address] {
        let error = TestNode::start_with(listening_on(&address.parse().unwrap())).await.err().expect("refused");
        assert!(error.to_string().contains("port in use"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_cannot_be_bound_are_explained() {
    for (address, part) in [
        ("/ip4/203.0.113.1/tcp/0", "no interface of this host has that address"),
        ("/ip4/127.0.0.1/udp/0", "give --listen as"),
        ("/dns4/example.com/tcp/1", "give --listen as"),
    ] {
        let error = TestNode::start_with(config(&[address])).await.err().expect("refused").to_string();
        assert!(error.contains(address) && error.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_share_a_port() {
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let mut both = config(&[]);
    for (host, kind) in [("/ip4/0.0.0.0", "tcp"), ("/ip6/::", "tcp"), ("/ip4/0.0.0.0", "udp"), ("/ip6/::", "udp")] {
        let quic = if kind == "udp" { "/quic-v1" } else { "" };
        let addr = format!("{host}/{kind}/{port}{quic}").parse().unwrap();
        both.listen.push(ListenAddress { addr, required: false });
    }
    let node = TestNode::start_with(both).await.unwrap();
    // A host without IPv6 skips two.
    assert!([2, 4].contains(&node.bound.len()), "{:?}", node.bound);
    let skipped = node.node.view().await.unwrap().skipped;
    assert_eq!(node.bound.len() + skipped.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_again_at_once_on_its_port() {
    let (first, other) = (TestNode::start().await, TestNode::start().await);
    let address = first.address(false);
    other.connect(&first, false).await.unwrap();
    first.stop().await;
    let second = TestNode::start_with(listening_on(&address)).await.unwrap();
    assert_eq!(second.bound[0].bound, address);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_readable() {
    let (a, b) = (TestNode::start().await, TestNode::start().await);
    let connect = async |peer, address: Multiaddr| {
        a.node.connect(DialTarget::Address(peer, address), DEADLINE).await.unwrap_err()
    };

    let wrong = PeerId::random();
    for quic in [true, false] {
        let error = connect(wrong, b.address(quic)).await.to_string();
        assert!(
            error.contains(&format!("{}: wrong peer id: expected {wrong}, got {}", b.address(quic), b.id)),
            "{error}"
        );
    }

    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let closed: Multiaddr = format!("/ip4/127.0.0.1/tcp/{free}").parse().unwrap();
    let error = connect(wrong, closed.clone()).await;
    assert_eq!(error.to_string(), format!("peer {wrong} cannot be reached: {closed}: connection refused"));

    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address: Multiaddr =
        format!("/ip4/127.0.0.1/udp/{}/quic-v1", silent.local_addr().unwrap().port()).parse().unwrap();
    let error = connect(wrong, address.clone()).await;
    assert_eq!(error.to_string(), format!("peer {wrong} cannot be reached: {address}: timed out"));

    assert_eq!(connect(a.id, b.address(true)).await, NodeError::Myself(a.id));
    let unknown = a.node.connect(DialTarget::Peer(wrong), DEADLINE).await.unwrap_err();
    assert_eq!(unknown, NodeError::NoAddress(wrong));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_tried_is_named() {
    let a = TestNode::start().await;
    let peer = PeerId::random();
    let addresses: Vec<Multiaddr> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
        .map(|port| format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap())
        .collect();
    a.set(peer, Standing::Stranger, false, addresses.clone()).await;
    let NodeError::Unreachable { attempts, .. } = a.node.connect(DialTarget::Peer(peer), DEADLINE).await.unwrap_err()
    else {
        panic!("another error");
    };
    for address in addresses {
        let attempt = attempts.iter().find(|attempt| attempt.address.as_ref() == Some(&address)).unwrap();
        assert_eq!(attempt.cause, DialCause::Refused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_share_a_dial() {
    let (a, b) = (TestNode::start().await, TestNode::start().await);
    a.set(b.id, Standing::Stranger, false, vec![b.address(true)]).await;
    // One that goes away harms nobody.
    let gone = a.node.connect(DialTarget::Peer(b.id), Duration::from_nanos(1)).await;
    assert!(gone.is_err());
    let (one, two, three, pong) = tokio::join!(
        a.node.connect(DialTarget::Peer(b.id), DEADLINE),
        a.node.connect(DialTarget::Peer(b.id), DEADLINE),
        a.connect(&b, true),
        a.node.ping(b.id, DEADLINE),
    );
    for connected in [one, two, three] {
        assert_eq!(connected.unwrap().peer, b.id);
    }
    assert!(pong.unwrap().rtt > Duration::ZERO);
    assert_eq!(a.node.view_peer(b.id).await.unwrap().unwrap().connections, 1);
    assert!(a.connect(&b, true).await.unwrap().already);
}

#[tokio::test(flavor = "multi_thread")]
async fn ping_dials_and_measures() {
    let (mut a, b) = (TestNode::start().await, TestNode::start().await);
    a.set(b.id, Standing::Stranger, false, vec![b.address(false)]).await;
    let pong = a.node.ping(b.id, DEADLINE).await.unwrap();
    assert!(pong.rtt > Duration::ZERO && pong.rtt < DEADLINE);
    assert!(!pong.connected.already);
    assert!(a.node.ping(b.id, DEADLINE).await.unwrap().connected.already);
    let address = b.address(false);
    a.wait(|event| matches!(event, NodeEvent::AddressWorked(peer, worked) if *peer == b.id && *worked == address))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_peer_is_refused_both_ways() {
    let (mut a, b) = (TestNode::start().await, TestNode::start().await);
    b.connect(&a, true).await.unwrap();
    a.wait(|event| matches!(event, NodeEvent::Connected(info) if info.peer == b.id)).await;
    a.set(b.id, Standing::Blocked, false, vec![b.address(true)]).await;
    a.disconnected(b.id).await;
    assert_eq!(a.connect(&b, true).await.unwrap_err(), NodeError::Blocked(b.id));
    assert_eq!(a.node.ping(b.id, DEADLINE).await.unwrap_err(), NodeError::Blocked(b.id));
    // The blocked side may believe for a moment that it is connected.
    let _ = b.connect(&a, false).await;
    let came = a.collect(Duration::from_millis(500)).await;
    assert!(!came.iter().any(|event| matches!(event, NodeEvent::Connected(_))), "{came:?}");

    a.set(b.id, Standing::Stranger, false, Vec::new()).await;
    a.connect(&b, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_limited_and_trusted_peers_are_not() {
    let mut narrow = config(&[QUIC, TCP]);
    narrow.limits.max_untrusted = 2;
    let mut a = TestNode::start_with(narrow).await.unwrap();
    let strangers = [TestNode::start().await, TestNode::start().await, TestNode::start().await];
    let friend = TestNode::start().await;
    a.trust(&friend).await;
    for stranger in &strangers[..2] {
        a.connect(stranger, true).await.unwrap();
    }
    let error = a.connect(&strangers[2], true).await.unwrap_err();
    assert!(
        matches!(&error, NodeError::Limit(text) if text.contains("2 connections with peers that are not trusted")),
        "{error}"
    );
    let _ = strangers[2].connect(&a, true).await;
    a.connect(&friend, true).await.unwrap();
    let came = a.collect(Duration::from_millis(500)).await;
    let connected = came.iter().filter(|event| matches!(event, NodeEvent::Connected(_))).count();
    assert_eq!(connected, 3);
    let counts = a.node.view().await.unwrap().connections;
    assert_eq!((counts.established, counts.untrusted, counts.max_untrusted), (3, 2, 2));
    assert!(counts.refused >= 2, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_shows_peers_and_addresses() {
    let (a, b) = (TestNode::start().await, TestNode::start().await);
    a.connect(&b, true).await.unwrap();
    let view = a.node.view().await.unwrap();
    let mut listen: Vec<_> = a.bound.iter().map(|bound| bound.bound.clone()).collect();
    listen.sort();
    assert_eq!(view.listen, listen);
    assert_eq!(view.peers.len(), 1);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let peer = a.node.view_peer(b.id).await.unwrap().unwrap();
        assert_eq!(peer.connections, 1);
        if peer.agent.starts_with("p2p-node/") && peer.rtt.is_some() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{peer:?}");
        tokio::task::yield_now().await;
    }
    a.node.disconnect(b.id).await.unwrap();
}
