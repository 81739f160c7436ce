//! The address book: what decisions and the network go by is what the disk
//! has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use p2p_node::proto::{self, Trust};
use support::{Client, Daemon, message, send_to};
use tonic_types::StatusExt as _;

/// Changes at once.
const CLIENTS: usize = 8;
const BURSTS: usize = 100;
const ALIAS: &str = "pi";

/// What the disk, deliveries and the network make of a peer.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    /// By the store.
    trust: Trust,
    alias: String,
    /// Reason of a refused Send to the peer id; none if it is taken.
    send: Option<String>,
    /// The same for the alias that it may have.
    by_alias: Option<String>,
    /// Reason of a refused Connect: no peer has an address.
    connect: String,
}

fn reason<T>(answer: Result<T, tonic::Status>) -> Option<String> {
    answer.err().map(|status| status.get_details_error_info().expect("a reason").reason)
}

async fn standing(client: &mut Client, peer: &str, alias: &str) -> Standing {
    let rows = client.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner().peers;
    let row = rows.into_iter().find(|row| row.peer_id == peer).unwrap_or_default();
    let mut send = async |to: &str| {
        let request = proto::SendRequest { wait: proto::Wait::Queued.into(), ..send_to(to, message("", "", "x")) };
        reason(client.send(request).await)
    };
    let (send, by_alias) = (send(peer).await, send(alias).await);
    let target = Some(proto::connect_request::Target::Peer(peer.to_owned()));
    let connect = reason(client.connect(proto::ConnectRequest { target }).await).unwrap();
    Standing { trust: row.trust(), alias: row.alias, send, by_alias, connect }
}

/// What must follow from what the disk has.
fn expected(trust: Trust, alias: &str) -> Standing {
    let send = match trust {
        Trust::Trusted => None,
        Trust::Blocked => Some("PEER_BLOCKED"),
        Trust::Known | Trust::Unspecified => Some("PEER_NOT_IN_BOOK"),
    };
    let send = send.map(ToOwned::to_owned);
    let by_alias = if alias.is_empty() { Some("PEER_UNKNOWN".to_owned()) } else { send.clone() };
    let connect = if trust == Trust::Blocked { "PEER_BLOCKED" } else { "NO_ADDRESS" };
    Standing { trust, alias: alias.to_owned(), send, by_alias, connect: connect.to_owned() }
}

async fn change(mut client: Client, peer: String, alias: String) {
    let add = |alias: String, trust: Trust| proto::AddPeerRequest {
        peer: peer.clone(),
        alias,
        trust: trust.into(),
        ..proto::AddPeerRequest::default()
    };
    match rand::random_range(0..4) {
        0 => drop(client.add_peer(add(alias, Trust::Trusted)).await.unwrap()),
        1 => drop(client.add_peer(add(String::new(), Trust::Known)).await.unwrap()),
        2 => drop(client.block(proto::BlockRequest { peer }).await.unwrap()),
        // That it is not there is no news.
        _ => drop(client.remove_peer(proto::RemovePeerRequest { peer }).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_cross_leave_one_book() {
    let mut a = Daemon::start().await;
    let peer = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id().to_string();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(a.client().await);
    }
    for burst in 0..BURSTS {
        let changes = clients.iter().map(|client| tokio::spawn(change(client.clone(), peer.clone(), ALIAS.to_owned())));
        for done in changes.collect::<Vec<_>>() {
            done.await.unwrap();
        }
        let found = standing(&mut clients[0], &peer, ALIAS).await;
        assert_eq!(found, expected(found.trust, &found.alias), "burst {burst}");
    }
    let before = standing(&mut a.client().await, &peer, ALIAS).await;
    assert!(a.stop().success());
    a.restart().await;
    assert_eq!(standing(&mut a.client().await, &peer, ALIAS).await, before);
}
