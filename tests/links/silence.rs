//! A connection that goes silent is left before the transport gives it up.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use p2p_node::node::{ConnectionView, DialTarget, NodeEvent, Standing};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};

use crate::node::{DEADLINE, TestNode};

/// Of two ways to a peer each is the first every other time.
const ATTEMPTS: usize = 20;

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

/// The same with streams of TCP, whose hosts acknowledge what nobody reads.
async fn stream_path(server: &Multiaddr) -> Path {
    let Some(Protocol::Tcp(port)) = server.iter().nth(1) else { panic!("no TCP address: {server}") };
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("/ip4/127.0.0.1/tcp/{}", outside.local_addr().unwrap().port()).parse().unwrap();
    let muted = Arc::new(AtomicBool::new(false));
    let silent = muted.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = outside.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(pass_on(from_client, to_server, silent.clone()));
            tokio::spawn(pass_on(from_server, to_client, silent.clone()));
        }
    });
    Path { address, muted }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, muted: Arc<AtomicBool>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        while muted.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// One that is only slow, or whose peer hung for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_silent_for_long_is_used_again_when_it_answers() {
    for _ in 0..ATTEMPTS {
        if is_used_again().await {
            return;
        }
    }
    panic!("the second connection never came up over a path that can be silenced");
}

/// `false`: the second connection came up over an address that b told itself,
/// which cannot be silenced.
async fn is_used_again() -> bool {
    let (mut a, mut b) = (TestNode::start().await, TestNode::start().await);
    let (one, two) = (stream_path(&b.address(false)).await, stream_path(&b.address(false)).await);
    a.set(b.id, Standing::Trusted, false, vec![two.address.clone()]).await;
    b.set(a.id, Standing::Trusted, false, Vec::new()).await;
    let begun = Instant::now();
    a.node.connect(DialTarget::Address(b.id, one.address.clone()), DEADLINE).await.unwrap();
    let (first, _ends) = a.outbound(b.id).await;
    // It is up on the other side, too.
    let _ends_there = b.inbound(a.id).await;
    one.muted.store(true, Ordering::Relaxed);
    a.node.suspect(first.id).await.unwrap();
    let (second, _more_ends) = a.outbound(b.id).await;
    let used = used(&a, b.id).await;
    if used.address == two.address {
        // Longer than any answer is awaited.
        tokio::time::sleep(Duration::from_secs(12)).await;
        one.muted.store(false, Ordering::Relaxed);
        // Its answers come over the same connection.
        tokio::time::sleep(Duration::from_secs(4)).await;
        two.muted.store(true, Ordering::Relaxed);
        a.node.suspect(second.id).await.unwrap();
        let (third, _yet_more_ends) = a.outbound(b.id).await;
        assert!(third.id > second.id);
        let used = self::used(&a, b.id).await;
        assert!(used.address == one.address && used.age >= begun.elapsed() / 2, "{used:?}");
    }
    a.stop().await;
    b.stop().await;
    used.address == two.address
}

/// The connection that a's link runs on.
async fn used(a: &TestNode, b: PeerId) -> ConnectionView {
    let path = a.node.path(b).await.unwrap().unwrap();
    path.connections.into_iter().find(|connection| connection.in_use).unwrap()
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
