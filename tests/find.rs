//! Nodes that know only each other's id, and a server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use p2p_node::proto::{self, MessageState};
use support::{Daemon, Options, eventually, message, receive, send_to};

/// A node that answers the others.
async fn server() -> Daemon {
    let mut options = support::loopback();
    options.args.extend(["--serve".to_owned(), "on".to_owned()]);
    Daemon::start_with(options).await
}

/// Where a daemon listens, with its id.
async fn full_address(daemon: &Daemon) -> String {
    daemon.status().await.listen_addresses.remove(0)
}

fn node_of(server: &str) -> Options {
    let mut options = support::loopback();
    options.args.extend(["--bootstrap".to_owned(), server.to_owned()]);
    options
}

async fn add_by_id(daemon: &Daemon, peer: &str) {
    let request = proto::AddPeerRequest { peer: peer.to_owned(), ..proto::AddPeerRequest::default() };
    daemon.client().await.add_peer(request).await.unwrap();
}

async fn send(from: &Daemon, to: &str, id: &str) {
    let sent = from.client().await.send(send_to(to, message("", id, id))).await.unwrap().into_inner();
    if sent.state() == MessageState::Stored {
        return;
    }
    eventually("the message to be stored", || async {
        let request = proto::GetMessageRequest { id: id.to_owned(), peer: Some(to.to_owned()), channel: None };
        let known = from.client().await.get_message(request).await.unwrap().into_inner();
        (known.message.unwrap().state() == MessageState::Stored).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_each_other_by_id_alone() {
    let server = server().await;
    let address = full_address(&server).await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Daemon::start_with(node_of(&address)).await);
    }
    let mut ids = Vec::new();
    for node in &nodes {
        ids.push(node.peer_id().await);
    }
    for (node, own) in nodes.iter().zip(&ids) {
        for peer in ids.iter().filter(|peer| *peer != own) {
            add_by_id(node, peer).await;
        }
    }
    for (n, (node, own)) in nodes.iter().zip(&ids).enumerate() {
        for peer in ids.iter().filter(|peer| *peer != own) {
            send(node, peer, &format!("from-{n}")).await;
        }
    }
    for node in &nodes {
        assert_eq!(receive(&mut node.client().await, "", 2).await.len(), 2);
    }
}
