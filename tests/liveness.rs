//! Peers that go without a word are noticed, and those that come back replace
//! what they left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use p2p_node::proto::{self, MessageState};
use support::{Daemon, eventually, message, pair, send_to};

/// A quiet peer that was killed is offline after ten seconds; the rest is for a
/// busy machine.
const NOTICED: Duration = Duration::from_secs(12);
/// The same with messages under way: six seconds.
const NOTICED_BUSY: Duration = Duration::from_secs(8);
/// Messages flow again with a peer that was restarted.
const REPLACED: Duration = Duration::from_secs(4);
/// What a peer left behind when it was restarted is closed.
const CLOSED: Duration = Duration::from_secs(8);

async fn peer(daemon: &Daemon, id: &str) -> proto::Peer {
    let peers = daemon.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
    peers.peers.into_iter().find(|row| row.peer_id == id).expect("a peer in the book")
}

/// How long connections with the peer stay.
async fn until_alone(daemon: &Daemon, id: &str) -> Duration {
    let start = Instant::now();
    eventually("no connection", || async { (peer(daemon, id).await.connections == 0).then_some(()) }).await;
    start.elapsed()
}

async fn talk(from: &Daemon, to: &str) {
    let sent = from.client().await.send(send_to(to, message("", "", "x"))).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored, "{sent:?}");
}

async fn queue(from: &Daemon, to: &str) {
    let request = proto::SendRequest { wait: proto::Wait::Queued.into(), ..send_to(to, message("", "", "x")) };
    from.client().await.send(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_peer_that_is_killed_is_soon_offline() {
    let (a, mut b) = pair().await;
    let b_id = b.peer_id().await;
    talk(&a, &b_id).await;
    b.kill();
    let took = until_alone(&a, &b_id).await;
    assert!(took < NOTICED, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_peer_that_is_killed_is_sooner_offline() {
    let (a, mut b) = pair().await;
    let b_id = b.peer_id().await;
    talk(&a, &b_id).await;
    // Both may have dialled; a second connection is quiet, and closed in time.
    eventually("one connection", || async { (peer(&a, &b_id).await.connections == 1).then_some(()) }).await;
    b.kill();
    queue(&a, &b_id).await;
    let took = until_alone(&a, &b_id).await;
    assert!(took < NOTICED_BUSY, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_replaces_its_connections() {
    let (mut a, mut b) = pair().await;
    // Either side chooses the connection in one of the rounds.
    for _ in 0..2 {
        let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
        talk(&a, &b_id).await;
        talk(&b, &a_id).await;
        b.kill();
        b.restart().await;
        let start = Instant::now();
        talk(&b, &a_id).await;
        talk(&a, &b_id).await;
        assert!(start.elapsed() < REPLACED, "{:?}", start.elapsed());
        eventually("one connection", || async { (peer(&a, &b_id).await.connections == 1).then_some(()) }).await;
        assert!(start.elapsed() < CLOSED, "{:?}", start.elapsed());
        std::mem::swap(&mut a, &mut b);
    }
}

/// A program that gets no time is not dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_on_a_busy_machine_stays_online() {
    let (a, b) = pair().await;
    let b_id = b.peer_id().await;
    talk(&a, &b_id).await;
    let connected = a.log().matches("peer connected").count();
    for _ in 0..3 {
        support::signal(b.pid(), nix::sys::signal::Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(3));
        support::signal(b.pid(), nix::sys::signal::Signal::SIGCONT);
        talk(&a, &b_id).await;
    }
    assert_eq!(a.log().matches("peer connected").count(), connected, "the connection was lost");
}

/// A daemon that is known and not there, and where it listens when it is.
async fn absent() -> (Daemon, String, String) {
    let mut daemon = Daemon::start().await;
    let (id, address) = (daemon.peer_id().await, daemon.status().await.listen_addresses[0].clone());
    daemon.kill();
    let plain = address.split("/p2p/").next().unwrap().to_owned();
    (daemon, id, plain)
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_each_others_relay_are_found_when_they_are_back() {
    let watcher = Daemon::start().await;
    let (mut one, one_id, one_at) = absent().await;
    let (mut two, two_id, two_at) = absent().await;
    for (peer, at, relay, relay_at) in [(&one_id, &one_at, &two_id, &two_at), (&two_id, &two_at, &one_id, &one_at)] {
        let request = proto::AddPeerRequest {
            peer: peer.clone(),
            addresses: vec![at.clone(), format!("{relay_at}/p2p/{relay}/p2p-circuit")],
            pinned: Some(true),
            ..proto::AddPeerRequest::default()
        };
        watcher.client().await.add_peer(request).await.unwrap();
    }
    // Each is now waited for as the other's relay.
    for (peer, at) in [(&one_id, &one_at), (&two_id, &two_at)] {
        eventually("a dial that failed", || async {
            let request = proto::ExplainPathRequest { peer: peer.clone() };
            let path = watcher.client().await.explain_path(request).await.unwrap().into_inner();
            let direct = path.addresses.iter().find(|known| known.address.starts_with(&format!("{at}/p2p/")))?;
            (direct.outcome() == proto::TryOutcome::Failed).then_some(())
        })
        .await;
    }
    one.restart().await;
    two.restart().await;
    for peer in [&one_id, &two_id] {
        eventually("a connection", || async { (self::peer(&watcher, peer).await.connections > 0).then_some(()) }).await;
    }
}
