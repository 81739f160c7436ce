//! A fleet with one relay and bootstrap node: each finds and messages every
//! other by its id alone.
//!
//! 60 daemons and 3,540 messages are the size to show; `P2P_NODE_FLEET=12`
//! makes it another, which fits a busy machine better and is the default.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use std::time::Instant;

use futures::future::join_all;
use p2p_node::proto;
use support::{Client, Daemon, Options, eventually, message, own_ip, receive};

/// Daemons, without the relay.
const DEFAULT_SIZE: usize = 12;

fn size() -> usize {
    std::env::var("P2P_NODE_FLEET").ok().map_or(DEFAULT_SIZE, |text| text.parse().unwrap())
}

/// On a loopback address of its own, over QUIC and TCP.
fn node(extra: &[&str]) -> Options {
    let ip = own_ip();
    let listen = [format!("/ip4/{ip}/udp/0/quic-v1"), format!("/ip4/{ip}/tcp/0")];
    let mut args: Vec<String> = vec!["--no-mdns".to_owned(), "--log".to_owned(), "warn".to_owned()];
    args.extend(listen.into_iter().flat_map(|address| ["--listen".to_owned(), address]));
    args.extend(extra.iter().map(|arg| (*arg).to_owned()));
    Options { args, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_finds_and_messages_everyone_by_id() {
    let (size, begun) = (size(), Instant::now());
    // Each node has two connections with it, one over each transport.
    let config = format!("[limits]\nmax_untrusted_connections = {}\n", 4 * size + 100);
    let relay = Daemon::start_with(Options { config, ..node(&["--serve", "on"]) }).await;
    let at = relay.status().await.listen_addresses;
    let named: Vec<&str> = at.iter().flat_map(|at| ["--relay", at, "--bootstrap", at]).collect();
    let fleet = join_all((0..size).map(|_| Daemon::start_with(node(&named)))).await;
    let ids = join_all(fleet.iter().map(Daemon::peer_id)).await;
    let clients = join_all(fleet.iter().map(Daemon::client)).await;
    eprintln!("{size} daemons serve after {:?}", begun.elapsed());

    let begun = Instant::now();
    join_all(clients.iter().map(|client| add_all(client, &ids))).await;
    eprintln!("each trusts the others after {:?}", begun.elapsed());

    let messages = size * (size - 1);
    let begun = Instant::now();
    join_all(clients.iter().zip(&ids).map(|(client, own)| send_all(client, own, &ids))).await;
    let received = clients.iter().cloned().map(|mut client| async move {
        let got = receive(&mut client, "", size - 1).await;
        let from: std::collections::BTreeSet<_> = got.into_iter().map(|one| one.message.unwrap().from).collect();
        (from.len(), begun.elapsed())
    });
    let received = join_all(received).await;
    assert!(received.iter().all(|(senders, _)| *senders == size - 1), "{received:?}");
    let mut took: Vec<_> = received.into_iter().map(|(_, took)| took).collect();
    took.sort();
    eprintln!(
        "{messages} messages, each between two that knew only the other's id: a node has all of its own after \
         {:?} (median), {:?} (last)",
        took[size / 2],
        took[size - 1]
    );
    for (client, own) in clients.iter().zip(&ids) {
        eventually("all met", || async { (met(client, own).await == size - 1).then_some(()) }).await;
    }
}

async fn add_all(client: &Client, ids: &[String]) {
    let own = client.clone().status(proto::StatusRequest {}).await.unwrap().into_inner().peer_id;
    for peer in ids.iter().filter(|peer| **peer != own) {
        let request = proto::AddPeerRequest { peer: peer.clone(), ..proto::AddPeerRequest::default() };
        client.clone().add_peer(request).await.unwrap();
    }
}

async fn send_all(client: &Client, own: &str, ids: &[String]) {
    for peer in ids.iter().filter(|peer| *peer != own) {
        let request = proto::SendRequest {
            peer: peer.clone(),
            message: Some(message("", "", own.as_bytes())),
            wait: proto::Wait::Queued.into(),
            ..proto::SendRequest::default()
        };
        client.clone().send(request).await.unwrap();
    }
}

/// Peers of the fleet, without the relay, that were connected. On a machine that
/// is busy a connection may be lost, and nothing is sent that would bring it
/// back.
async fn met(client: &Client, own: &str) -> usize {
    let peers = client.clone().list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner().peers;
    let seen = |peer: &&proto::Peer| peer.peer_id != own && peer.last_seen > 0;
    peers.iter().filter(seen).filter(|peer| peer.trust() == proto::Trust::Trusted).count()
}
