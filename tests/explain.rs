//! NetCheck, ExplainPath and FindPeer of real daemons, and their commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use p2p_node::proto::{self, MessageState, NodeState, Route};
use serde_json::Value;
use support::{Daemon, eventually, message, pair, send_to};
use tonic::Code;

const STRANGER: &str = "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf";

async fn explain(daemon: &Daemon, peer: &str) -> proto::ExplainPathResponse {
    let request = proto::ExplainPathRequest { peer: peer.to_owned() };
    daemon.client().await.explain_path(request).await.unwrap().into_inner()
}

fn codes(advice: &[proto::Advice]) -> Vec<&str> {
    advice.iter().map(|known| known.code.as_str()).collect()
}

/// What a command prints, and its exit status.
fn told(daemon: &Daemon, args: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon.cli(args);
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_explained_before_and_while_it_is_connected() {
    let (a, b) = pair().await;
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let sent = a.client().await.send(send_to(&b_id, message("", "", "x"))).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored);
    let path = explain(&a, &b_id).await;
    assert_eq!((path.route(), path.relay_id.as_str(), codes(&path.advice)), (Route::Lan, "", vec![]), "{path:?}");
    assert!(path.verdict.contains("local network") && path.connections.iter().any(|known| known.in_use), "{path:?}");
    let (status, text, _) = told(&a, &["explain", &b_id]);
    assert!(status == Some(0) && text.starts_with(&format!("{b_id}: connected")), "{text}");
    let (status, json, _) = told(&a, &["explain", &b_id, "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, &json["route"], &json["relay_id"]), (Some(0), &"ROUTE_LAN".into(), &"".into()), "{json}");

    a.client().await.block(proto::BlockRequest { peer: b_id.clone() }).await.unwrap();
    eventually("no connection", || async { (explain(&a, &b_id).await.route() == Route::None).then_some(()) }).await;
    assert_eq!(codes(&explain(&a, &b_id).await.advice), ["BLOCKED"]);
    let itself = a.client().await.explain_path(proto::ExplainPathRequest { peer: a_id.clone() }).await.unwrap_err();
    assert_eq!(itself.code(), Code::InvalidArgument);
    assert!(itself.message().contains(&a_id) && itself.message().contains("netcheck"), "{itself}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_trust_back_is_named_with_its_cure() {
    let (a, b) = (Daemon::start().await, Daemon::start().await);
    a.add(&b).await;
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let request = proto::SendRequest { timeout_ms: 2_000, ..send_to(&b_id, message("", "", "x")) };
    let sent = a.client().await.send(request).await.unwrap().into_inner();
    assert_eq!(sent.reason(), proto::Reason::Untrusted, "{sent:?}");
    let path = explain(&a, &b_id).await;
    assert_eq!(codes(&path.advice), ["UNTRUSTED"], "{path:?}");
    assert_eq!(path.advice[0].cures, [format!("over there, run `p2p-node peer add {a_id}`")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_found_and_that_is_said() {
    let a = Daemon::start().await;
    let path = explain(&a, STRANGER).await;
    assert_eq!(path.route(), Route::None, "{path:?}");
    assert!(codes(&path.advice).contains(&"UNKNOWN_PEER"), "{path:?}");
    let find = proto::FindPeerRequest { peer: STRANGER.to_owned() };
    let found = a.client().await.find_peer(find).await.unwrap().into_inner();
    assert!(found.addresses.is_empty() && found.detail.contains("knows no server to ask"), "{found:?}");
    let (status, text, error) = told(&a, &["find", STRANGER]);
    assert!(status == Some(1) && text.is_empty() && error.contains("--bootstrap"), "{text}{error}");
    for name in ["nobody", "12D3KooWshort"] {
        let find = a.client().await.find_peer(proto::FindPeerRequest { peer: name.to_owned() }).await.unwrap_err();
        assert!(matches!(find.code(), Code::NotFound | Code::InvalidArgument), "{find}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_this_host_says_so_and_needs_no_relay() {
    let a = Daemon::start().await;
    let check = a.client().await.net_check(proto::NetCheckRequest {}).await.unwrap().into_inner();
    assert!(check.verdict.contains("this host only") && check.advice.is_empty(), "{check:?}");
    let status = a.status().await;
    assert!(!status.states.contains(&NodeState::NeedsRelay.into()) && status.problems.is_empty(), "{status:?}");
    let (code, text, _) = told(&a, &["netcheck"]);
    assert!(
        code == Some(0) && text.starts_with("not reachable from outside: it listens on this host only\n"),
        "{text}"
    );
    let (code, json, _) = told(&a, &["netcheck", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["nat_v4"]["type"]), (Some(0), &"NAT_TYPE_UNSPECIFIED".into()), "{json}");
    assert!(json["serving"]["mode"].is_string() && json["relays"].is_array(), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_direct_paths_go_over_the_local_network() {
    let (a, b) = pair().await;
    let peer = b.peer_id().await;
    for policy in ["any", "prefer-direct", "direct-only"] {
        let (status, text, error) = told(&a, &["send", &peer, "x", "--path", policy]);
        assert!(status == Some(0) && text.starts_with("stored"), "{policy}: {text}{error}");
    }
    assert_eq!(support::receive(&mut b.client().await, "", 3).await.len(), 3);
}
