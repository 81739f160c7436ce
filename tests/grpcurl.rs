//! The API as a stranger meets it: grpcurl, which knows it by reflection
//! alone, and the command line beside it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod skip;
mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use p2p_node::proto::MessageState;
use serde_json::{Value, json};
use support::{Daemon, loopback, message, pair, send_to};

/// grpcurl's exit status when the time given with -max-time is over: 64 and
/// the gRPC code.
const DEADLINE_EXCEEDED: i32 = 64 + 4;

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_needs_reflection_only() {
    let Some(grpcurl) = Grpcurl::find() else {
        return skip::skip("grpcurl", "no grpcurl; scripts/install-test-tools installs it");
    };
    let (a, b) = pair().await;
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);

    let services = grpcurl.text(&a, &["list"]);
    for service in ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "p2p.v1.P2P"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let described = grpcurl.text(&a, &["describe", "p2p.v1.P2P"]);
    for rpc in ["rpc Send ( .p2p.v1.SendRequest )", "rpc Listen (", "rpc SendStream ( stream "] {
        assert!(described.contains(rpc), "{described}");
    }
    let health = grpcurl.call(&a, "grpc.health.v1.Health/Check", &json!({}));
    assert_eq!(health, json!({"status": "SERVING"}));
    let health = grpcurl.call(&a, "grpc.health.v1.Health/Check", &json!({"service": "p2p.v1.P2P"}));
    assert_eq!(health, json!({"status": "SERVING"}));

    let request = json!({
        "peer": b_id, "wait": "WAIT_STORED",
        "message": {"id": "one", "type": "greeting", "payload": "aGVsbG8=", "metadata": {"k": "v"}},
    });
    let sent = grpcurl.call(&a, "p2p.v1.P2P/Send", &request);
    assert_eq!(sent, json!({"id": "one", "state": "MESSAGE_STATE_STORED", "sequence": "1"}));
    // Other content under the same id.
    let reused = json!({"peer": b_id, "message": {"id": "one", "payload": "YnllYnll"}});
    let refused = grpcurl.run(&a, &["-d", &reused.to_string()], &["p2p.v1.P2P/Send"]);
    assert_eq!(refused.status.code(), Some(64 + 6), "{refused:?}");

    // A batch of one is the default, so each message is an object of its own.
    let auto = json!({"ack_mode": "ACK_MODE_AUTO"}).to_string();
    let listened = grpcurl.run(&b, &["-max-time", "3", "-d", &auto], &["p2p.v1.P2P/Listen"]);
    assert_eq!(listened.status.code(), Some(DEADLINE_EXCEEDED), "{listened:?}");
    let frames = values(&listened.stdout);
    assert_eq!(frames.len(), 2, "{frames:?}");
    assert!(frames[0]["ready"]["instanceId"].is_string(), "{frames:?}");
    let delivery = &frames[1]["deliveries"]["deliveries"][0];
    assert_eq!((&delivery["attempt"], &delivery["cursor"]), (&json!(1), &json!("1")));
    let got = &delivery["message"];
    for (name, value) in [
        ("id", json!("one")),
        ("type", json!("greeting")),
        ("payload", json!("aGVsbG8=")),
        ("metadata", json!({"k": "v"})),
        ("from", json!(a_id)),
        ("to", json!(b_id)),
        ("sequence", json!("1")),
        ("route", json!("ROUTE_LAN")),
    ] {
        assert_eq!(got[name], value, "{name} of {got}");
    }
    // What was handed out is done.
    let again = grpcurl.run(&b, &["-max-time", "1", "-d", &auto], &["p2p.v1.P2P/Listen"]);
    assert_eq!(values(&again.stdout).len(), 1, "{again:?}");

    let unsaid = grpcurl.run(&b, &["-max-time", "1"], &["p2p.v1.P2P/Listen"]);
    assert_eq!(unsaid.status.code(), Some(64 + 3), "{unsaid:?}");
    assert!(String::from_utf8_lossy(&unsaid.stderr).contains("ACK_MODE_AUTO"), "{unsaid:?}");

    let peers = grpcurl.call(&a, "p2p.v1.P2P/ListPeers", &json!({}));
    assert_eq!(peers["peers"][0]["peerId"], b_id, "{peers}");
    assert_eq!((&peers["peers"][0]["online"], &peers["peers"][0]["trust"]), (&json!(true), &json!("TRUST_TRUSTED")));
    let status = grpcurl.call(&a, "p2p.v1.P2P/Status", &json!({}));
    assert_eq!((&status["peerId"], &status["states"]), (&json!(a_id), &json!(["NODE_STATE_LISTENING"])), "{status}");
    assert_eq!(status["limits"]["maxMessageBytes"], "1048576");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_prints_json_with_the_protos_names() {
    let (a, b) = pair().await;
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let sent = one(&a, &["send", &b_id, "hello", "--json", "--type", "t", "--meta", "k=v", "--channel", "c"]);
    assert_eq!((&sent["state"], &sent["duplicate"]), (&json!("MESSAGE_STATE_STORED"), &json!(false)), "{sent}");
    let heard = one(&b, &["listen", "--channel", "c", "--max", "1", "--json"]);
    assert_eq!(names(&heard), ["attempt", "cursor", "message"]);
    assert_eq!(heard["message"]["id"], sent["id"]);
    for (name, value) in [
        ("payload", json!("aGVsbG8=")),
        ("type", json!("t")),
        ("metadata", json!({"k": "v"})),
        ("from", json!(a_id)),
        ("reply_to", json!("")),
        ("route", json!("ROUTE_LAN")),
    ] {
        assert_eq!(heard["message"][name], value, "{name} of {heard}");
    }
    let peers = lines(&b, &["peers", "--json"]);
    assert_eq!((peers.len(), &peers[0]["peer_id"], &peers[0]["route"]), (1, &json!(a_id), &json!("ROUTE_LAN")));
    assert_eq!(lines(&b, &["peers", "--online", "--json"]).len(), 1);
    let status = one(&a, &["--json", "status"]);
    assert_eq!((&status["peer_id"], &status["states"]), (&json!(a_id), &json!(["NODE_STATE_LISTENING"])), "{status}");
    assert_eq!((&status["inbox"]["messages"], &status["trust_open"]), (&json!("0"), &json!(false)));
    let ping = one(&a, &["ping", &b_id, "--json"]);
    assert_eq!((&ping["peer_id"], &ping["route"]), (&json!(b_id), &json!("ROUTE_LAN")), "{ping}");
    assert!(ping["rtt_ms"].as_f64().unwrap() > 0.0, "{ping}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_listed_and_taken_from() {
    let (a, b) = (Daemon::start().await, Daemon::start_with(loopback()).await);
    let b_id = b.peer_id().await;
    drop(b);
    assert!(lines(&a, &["queue", "ls", "--json"]).is_empty());
    let address = "/ip4/127.0.0.1/udp/9/quic-v1";
    let added = one(&a, &["peer", "add", &b_id, "--alias", "pi", "--address", address, "--json"]);
    assert_eq!((&added["created"], &added["peer"]["alias"]), (&json!(true), &json!("pi")), "{added}");
    for id in ["one", "two"] {
        let sent = one(&a, &["send", "pi", "x", "--id", id, "--wait", "queued", "--json"]);
        assert_eq!((&sent["id"], &sent["state"]), (&json!(id), &json!("MESSAGE_STATE_QUEUED")));
    }
    // Not there in time is no failure: the daemon goes on trying.
    let still = one(&a, &["send", "pi", "x", "--id", "three", "--timeout", "500ms", "--json"]);
    assert_eq!((&still["state"], &still["reason"]), (&json!("MESSAGE_STATE_QUEUED"), &json!("REASON_NOT_CONNECTED")));
    let queue = lines(&a, &["queue", "ls", "--json"]);
    let ids: Vec<_> = queue.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "two", "three"]);
    assert_eq!((&queue[0]["peer"], &queue[0]["payload_bytes"]), (&json!(b_id), &json!("1")), "{queue:?}");
    let removed = one(&a, &["queue", "rm", "two", "--json"]);
    assert_eq!(removed["state"], "MESSAGE_STATE_CANCELLED", "{removed}");
    assert_eq!(lines(&a, &["queue", "ls", "--json"]).len(), 2);
    let unknown = a.cli(&["send", "nobody", "x"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("NOT_FOUND"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peek_and_a_text_listing_leave_the_message() {
    let a = Daemon::start().await;
    let own = a.peer_id().await;
    let sent = a.client().await.send(send_to(&own, message("", "one", "hello"))).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored);
    for _ in 0..2 {
        assert_eq!(one(&a, &["listen", "--peek", "--max", "1", "--json"])["message"]["id"], "one");
    }
    let printed = a.cli(&["listen", "--max", "1"]);
    assert!(String::from_utf8_lossy(&printed.stdout).ends_with("  hello\n"), "{printed:?}");
    assert_eq!(a.status().await.inbox.unwrap().messages, 0);
}

/// One line of JSON that a command prints.
fn one(daemon: &Daemon, args: &[&str]) -> Value {
    let mut all = lines(daemon, args);
    assert_eq!(all.len(), 1, "{args:?}: {all:?}");
    all.remove(0)
}

/// Lines of JSON that a command prints.
fn lines(daemon: &Daemon, args: &[&str]) -> Vec<Value> {
    let output = daemon.cli(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Field names, sorted.
fn names(value: &Value) -> Vec<&str> {
    let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Objects that follow one another.
fn values(text: &[u8]) -> Vec<Value> {
    serde_json::Deserializer::from_slice(text).into_iter().map(Result::unwrap).collect()
}

struct Grpcurl(PathBuf);

impl Grpcurl {
    /// The one that $GRPCURL names, else the one in $PATH or Go's directory.
    fn find() -> Option<Self> {
        if let Some(named) = std::env::var_os("GRPCURL") {
            return Some(Self(named.into()));
        }
        let go = std::env::var_os("HOME").map(|home| Path::new(&home).join("go/bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(go);
        places.map(|place| place.join("grpcurl")).find(|file| file.is_file()).map(Self)
    }

    fn run(&self, daemon: &Daemon, options: &[&str], target: &[&str]) -> Output {
        let mut command = Command::new(&self.0);
        command.args(["-plaintext", "-unix"]).args(options).arg(daemon.socket()).args(target);
        command.output().unwrap()
    }

    fn text(&self, daemon: &Daemon, target: &[&str]) -> String {
        let output = self.run(daemon, &[], target);
        assert!(output.status.success(), "{target:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn call(&self, daemon: &Daemon, method: &str, request: &Value) -> Value {
        let output = self.run(daemon, &["-d", &request.to_string()], &[method]);
        assert!(output.status.success(), "{method}: {output:?}");
        let mut all = values(&output.stdout);
        assert_eq!(all.len(), 1, "{method}: {all:?}");
        all.remove(0)
    }
}
