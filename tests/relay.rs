//! Messages through a relay, between real daemons that cannot reach each other
//! otherwise: one speaks only QUIC, the other only TCP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use p2p_node::proto;
use support::{Client, Daemon, Options, eventually, message, own_ip, receive, send_to};

/// A relay that serves everyone, on both transports.
fn relay_options(more: &[&str]) -> Options {
    let ip = own_ip();
    let listen = [format!("/ip4/{ip}/udp/0/quic-v1"), format!("/ip4/{ip}/tcp/0")];
    options(&listen.each_ref().map(String::as_str), more)
}

fn options(listen: &[&str], more: &[&str]) -> Options {
    let listen = listen.iter().flat_map(|address| ["--listen", address]);
    let args = listen.chain(["--no-mdns", "--log", "info,p2p_node=debug"]).chain(more.iter().copied());
    Options { args: args.map(ToOwned::to_owned).collect(), ..Options::default() }
}

async fn relay(more: &[&str]) -> Daemon {
    Daemon::start_with(relay_options(more)).await
}

/// Flags that name these relays.
async fn at(relays: &[&Daemon]) -> Vec<String> {
    let mut flags = Vec::new();
    for relay in relays {
        for address in relay.status().await.listen_addresses {
            flags.extend(["--relay".to_owned(), address]);
        }
    }
    flags
}

/// A node that others reach over QUIC only.
async fn quic(relays: &[&Daemon]) -> Daemon {
    node(&format!("/ip4/{}/udp/0/quic-v1", own_ip()), relays).await
}

/// A node that others reach over TCP only.
async fn tcp(relays: &[&Daemon]) -> Daemon {
    node(&format!("/ip4/{}/tcp/0", own_ip()), relays).await
}

async fn node(listen: &str, relays: &[&Daemon]) -> Daemon {
    let flags = at(relays).await;
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Daemon::start_with(options(&[listen], &flags)).await
}

/// Trusts a peer of which nothing is known but its id.
async fn trust(one: &Daemon, other: &Daemon) {
    let request = proto::AddPeerRequest { peer: other.peer_id().await, ..proto::AddPeerRequest::default() };
    one.client().await.add_peer(request).await.unwrap();
}

async fn route(client: &Client, peer: &str) -> proto::Route {
    let request = proto::ListPeersRequest::default();
    let peers = client.clone().list_peers(request).await.unwrap().into_inner().peers;
    peers.iter().find(|row| row.peer_id == peer).map_or(proto::Route::None, proto::Peer::route)
}

/// Sends both ways, and checks that it went through a relay.
async fn talk(a: &Daemon, b: &Daemon, id: &str) {
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let (mut a, mut b) = (a.client().await, b.client().await);
    a.send(send_to(&b_id, message("", &format!("{id}-there"), "hello"))).await.unwrap();
    b.send(send_to(&a_id, message("", &format!("{id}-back"), "hello"))).await.unwrap();
    let there = receive(&mut b, "", 1).await;
    let back = receive(&mut a, "", 1).await;
    assert_eq!(there[0].message.as_ref().unwrap().id, format!("{id}-there"));
    assert_eq!(back[0].message.as_ref().unwrap().id, format!("{id}-back"));
    assert_eq!(route(&a, &b_id).await, proto::Route::Relayed);
    assert_eq!(route(&b, &a_id).await, proto::Route::Relayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_known_by_id_alone_meet_at_their_relay() {
    let relay = relay(&["--serve", "on"]).await;
    let (a, b) = (quic(&[&relay]).await, tcp(&[&relay]).await);
    trust(&a, &b).await;
    trust(&b, &a).await;
    talk(&a, &b, "first").await;
}
