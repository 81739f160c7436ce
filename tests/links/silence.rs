//! A connection that goes silent is left before the transport gives it up.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use p2p_node::node::{DialTarget, NodeEvent, Standing};
use tokio::net::UdpSocket;

use crate::node::{DEADLINE, TestNode};

/// Passes datagrams on between one client and a server, until it is muted.
struct Path {
    address: Multiaddr,
    muted: Arc<AtomicBool>,
}

impl Path {
    async fn to(server: &Multiaddr) -> Self {
        let Some(Protocol::Udp(port)) = server.iter().nth(1) else { panic!("no UDP address: {server}") };
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let (outside, inside) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        inside.connect(server).await.unwrap();
        let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", outside.local_addr().unwrap().port()).parse().unwrap();
        let muted = Arc::new(AtomicBool::new(false));
        let silent = muted.clone();
        tokio::spawn(async move {
            let (mut there, mut back) = ([0; 2048], [0; 2048]);
            let mut client = None;
            loop {
                // Packets may get lost.
                tokio::select! {
                    Ok((bytes, from)) = outside.recv_from(&mut there) => {
                        client = Some(from);
                        if !silent.load(Ordering::Relaxed) {
                            drop(inside.send(&there[..bytes]).await);
                        }
                    }
                    Ok(bytes) = inside.recv(&mut back) => {
                        if let Some(client) = client.filter(|_| !silent.load(Ordering::Relaxed)) {
                            drop(outside.send_to(&back[..bytes], client).await);
                        }
                    }
                    else => return,
                }
            }
        });
        Self { address, muted }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_replaced_before_it_is_given_up() {
    let (mut a, mut b) = (TestNode::start().await, TestNode::start().await);
    let path = Path::to(&b.address(true)).await;
    a.set(b.id, Standing::Trusted, false, vec![b.address(false)]).await;
    b.set(a.id, Standing::Trusted, false, Vec::new()).await;
    a.node.connect(DialTarget::Address(b.id, path.address.clone()), DEADLINE).await.unwrap();
    let (first, _ends) = a.outbound(b.id).await;
    b.inbound(a.id).await;

    // Whoever is suspected in vain keeps its link.
    a.node.suspect(first.id).await.unwrap();
    a.node.ping(b.id, DEADLINE).await.unwrap();

    path.muted.store(true, Ordering::Relaxed);
    a.node.suspect(first.id).await.unwrap();
    let (second, _) = a.outbound(b.id).await;
    assert!(second.id > first.id);
    let view = a.node.view_peer(b.id).await.unwrap().unwrap();
    assert_eq!(view.connections, 2, "the silent one was not given up yet");
    let seen = a.collect(Duration::ZERO).await;
    assert!(!seen.iter().any(|event| matches!(event, NodeEvent::Disconnected(..))), "it was never away: {seen:?}");
    a.stop().await;
    b.stop().await;
}
