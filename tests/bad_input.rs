//! Bad requests, full queues and clients that misbehave: a clear error each,
//! nothing is lost, and the daemon goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::time::Duration;

use p2p_node::proto::{self, AckMode, MessageState, Reason, Wait, listen_response::Frame};
use support::{Client, DEADLINE, Daemon, Options, eventually, loopback, message, pair, send_to};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The error has this code and says all of this.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, says: &[impl AsRef<str>]) {
    let error = answer.unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    for text in says.iter().map(AsRef::as_ref) {
        assert!(error.message().contains(text), "{:?} does not say {text:?}", error.message());
    }
    if code == Code::InvalidArgument {
        let fields = error.get_details_bad_request().expect("details").field_violations;
        assert!(!fields[0].field.is_empty());
    }
}

fn limits(text: &str) -> Options {
    Options { config: format!("[limits]\n{text}"), ..loopback() }
}

async fn pair_with(from: Options, to: Options) -> (Daemon, Daemon) {
    let (a, b) = (Daemon::start_with(from).await, Daemon::start_with(to).await);
    a.add(&b).await;
    b.add(&a).await;
    (a, b)
}

fn stranger() -> String {
    libp2p::identity::Keypair::generate_ed25519().public().to_peer_id().to_string()
}

fn manual(channel: &str, consumer: &str) -> proto::ListenRequest {
    proto::ListenRequest {
        channel: channel.to_owned(),
        consumer: consumer.to_owned(),
        ack_mode: AckMode::Manual.into(),
        ..proto::ListenRequest::default()
    }
}

fn ack(channel: &str, cursor: u64) -> proto::AckRequest {
    proto::AckRequest { channel: channel.to_owned(), cursor, ..proto::AckRequest::default() }
}

fn queued(peer: &str, message: proto::Message) -> proto::SendRequest {
    proto::SendRequest { wait: Wait::Queued.into(), ..send_to(peer, message) }
}

async fn next(stream: &mut tonic::Streaming<proto::ListenResponse>) -> Result<Vec<proto::Delivery>, Status> {
    loop {
        let frame = timeout(DEADLINE, stream.message()).await.expect("a frame in time")?.expect("an open stream");
        if let Some(Frame::Deliveries(batch)) = frame.frame {
            return Ok(batch.deliveries);
        }
    }
}

/// Messages still go from one to the other.
async fn still_work(a: &Daemon, b: &Daemon) {
    let peer = b.peer_id().await;
    let sent = a.client().await.send(send_to(&peer, message("alive", "", "x"))).await.unwrap().into_inner();
    assert_eq!(sent.state(), MessageState::Stored, "{sent:?}");
}

// Requests

/// Requests that can never work, with the error of each and what it says.
fn bad_sends(peer: &str, stranger: &str) -> Vec<(proto::SendRequest, Code, Vec<String>)> {
    use Code::{InvalidArgument as Invalid, NotFound};
    let one = || message("", "", "x");
    let to = |message| send_to(peer, message);
    let mut entries = one();
    entries.metadata = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let mut large = one();
    large.metadata.insert("k".to_owned(), "v".repeat(16 * 1024));
    let (long, cut, longest) = ("n".repeat(129), &peer[..peer.len() - 1], u64::MAX.to_string());
    let typed = proto::Message { r#type: "t".repeat(257), ..one() };
    let reply = proto::Message { reply_to: "t".repeat(257), ..one() };
    let before = proto::Message { timestamp: -5, ..one() };
    let bare = proto::SendRequest { message: None, ..to(one()) };
    let wait = proto::SendRequest { wait: 77, ..to(one()) };
    let ttl = proto::SendRequest { ttl_ms: u64::MAX, ..to(one()) };
    let path = proto::SendRequest { path: 77, ..to(one()) };
    let prefer = |wait| proto::SendRequest {
        path: proto::PathPolicy::PreferDirect.into(),
        prefer_direct_wait_ms: wait,
        ..to(one())
    };
    let idle = proto::SendRequest { path: proto::PathPolicy::DirectOnly.into(), ..prefer(5) };
    let payload = message("", "", vec![0; (1 << 20) + 1]);
    let case = |request, code, says: &[&str]| (request, code, says.iter().map(ToString::to_string).collect());
    vec![
        case(send_to("", one()), Invalid, &["peer is empty", "give"]),
        case(send_to(cut, one()), Invalid, &["peer", cut, "copied whole"]),
        case(send_to("nobody", one()), NotFound, &["nobody", "peer ls"]),
        // Decoding it as base58 would keep a thread busy for minutes.
        case(send_to(&"1z".repeat(100_000), one()), NotFound, &["1z1z", "peer ls"]),
        case(send_to(stranger, one()), NotFound, &[stranger, "peer add"]),
        case(bare, Invalid, &["message is missing"]),
        case(to(message("", &long, "x")), Invalid, &["message.id", "129", "128"]),
        case(to(message(&long, "", "x")), Invalid, &["message.channel", "129", "128"]),
        case(to(typed), Invalid, &["message.type", "257", "256"]),
        case(to(reply), Invalid, &["message.reply_to", "257", "256"]),
        case(to(entries), Invalid, &["message.metadata", "65", "64"]),
        case(to(large), Invalid, &["message.metadata", "16385", "16384"]),
        case(to(payload), Invalid, &["message.payload", "1048577", "1048576", "max_message_bytes"]),
        case(to(before), Invalid, &["message.timestamp", "-5", "milliseconds"]),
        case(wait, Invalid, &["wait", "77", "WAIT_"]),
        case(path, Invalid, &["path", "77", "PATH_POLICY_ANY (1)"]),
        case(prefer(86_400_001), Invalid, &["prefer_direct_wait_ms", "86400001", "86400000 (24 h)", "give less"]),
        case(idle, Invalid, &["prefer_direct_wait_ms is 5", "PATH_POLICY_PREFER_DIRECT", "leave it 0"]),
        case(ttl, Invalid, &["ttl_ms", &longest, "31536000000 (365 days)", "give less"]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_send_says_what_is_wrong() {
    let (a, b) = pair().await;
    let mut client = a.client().await;
    let (peer, stranger) = (b.peer_id().await, stranger());
    for (request, code, says) in bad_sends(&peer, &stranger) {
        refused(client.send(request).await, code, &says);
    }
    client.block(proto::BlockRequest { peer: stranger.clone() }).await.unwrap();
    let blocked = client.send(send_to(&stranger, message("", "", "x"))).await;
    refused(blocked, Code::FailedPrecondition, &[&stranger, "blocked", "peer add"]);
    client.send(send_to(&peer, message("", "one", "x"))).await.unwrap();
    let other = client.send(send_to(&peer, message("", "one", "y"))).await;
    refused(other, Code::AlreadyExists, &["\"one\"", "use another id"]);
    still_work(&a, &b).await;
    assert_eq!(support::receive(&mut b.client().await, "", 1).await[0].message.as_ref().unwrap().payload, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_of_a_stream_stops_nothing_around_it() {
    let (a, b) = pair().await;
    let (peer, stranger, blocked) = (b.peer_id().await, stranger(), stranger());
    let mut client = a.client().await;
    client.block(proto::BlockRequest { peer: blocked.clone() }).await.unwrap();
    let mut bad: Vec<_> = bad_sends(&peer, &stranger)
        .into_iter()
        .map(|(request, code, says)| (Some(request), code, says))
        .chain([(None, Code::InvalidArgument, vec!["request is missing".to_owned()])])
        .collect();
    let used = message("", "0", "other content");
    bad.push((Some(send_to(&peer, used)), Code::AlreadyExists, vec!["use another id".to_owned()]));
    bad.push((Some(send_to(&blocked, message("", "", "x"))), Code::FailedPrecondition, vec![blocked]));
    let items = bad.iter().enumerate().flat_map(|(n, (request, ..))| {
        let good = send_to(&peer, message("", &n.to_string(), n.to_string()));
        let n = 2 * n as u64;
        [proto::SendItem { r#ref: n, request: Some(good) }, proto::SendItem { r#ref: n + 1, request: request.clone() }]
    });
    let frame = proto::SendStreamRequest { items: items.collect() };
    let (receipts, end) = send_frames(&mut client, vec![frame]).await;
    end.unwrap();
    let (good, refused): (Vec<_>, Vec<_>) = receipts.into_iter().partition(|receipt| receipt.r#ref % 2 == 0);
    let sequences = good.iter().map(|one| (one.r#ref, one.code, one.response.as_ref().unwrap().sequence));
    assert!(sequences.eq((0..bad.len() as u64).map(|n| (2 * n, 0, n + 1))), "{good:?}");
    assert_eq!(refused.len(), bad.len());
    for receipt in refused {
        let (request, code, says) = &bad[receipt.r#ref as usize / 2];
        assert_eq!((receipt.code, &receipt.response), (i32::from(*code), &None), "{request:?}: {receipt:?}");
        for text in says {
            assert!(receipt.error.contains(text.as_str()), "{:?} does not say {text:?}", receipt.error);
        }
    }
    let got = support::receive(&mut b.client().await, "", bad.len()).await;
    assert!(got.iter().map(|one| one.message.as_ref().unwrap().sequence).eq(1..=bad.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_too_many_items_ends_the_stream() {
    let (a, b) = pair().await;
    let peer = b.peer_id().await;
    let mut client = a.client().await;
    let frame = |count: u64| {
        let item =
            |n: u64| proto::SendItem { r#ref: n, request: Some(send_to(&peer, message("", &n.to_string(), ""))) };
        vec![proto::SendStreamRequest { items: (1..=count).map(item).collect() }]
    };
    let (receipts, end) = send_frames(&mut client, frame(4097)).await;
    assert!(receipts.is_empty(), "{receipts:?}");
    refused(end, Code::InvalidArgument, &["items has 4097", "4096", "several frames"]);
    let (receipts, end) = send_frames(&mut client, frame(4096)).await;
    end.unwrap();
    let sequences = receipts.iter().map(|one| (one.r#ref, one.response.as_ref().unwrap().sequence));
    assert!(sequences.eq((1..=4096).map(|n| (n, n))));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bad_requests_say_what_is_wrong() {
    let (a, b) = pair().await;
    let mut client = b.client().await;
    a.client().await.send(send_to(&b.peer_id().await, message("", "", "x"))).await.unwrap();
    let long = "n".repeat(129);
    use Code::{InvalidArgument as Invalid, NotFound};
    refused(client.ack(ack("", 1)).await, NotFound, &["consumer \"default\"", "Listen"]);
    drop(client.listen(manual("", "")).await.unwrap());
    refused(client.ack(ack("", 0)).await, Invalid, &["cursor is 0", "delivery"]);
    refused(client.ack(ack("", 99)).await, Invalid, &["cursor 99", "last delivery", "1"]);
    refused(client.ack(ack("", u64::MAX)).await, Invalid, &["cursor", "last delivery"]);
    refused(client.listen(manual(&long, "")).await, Invalid, &["channel", "129", "128"]);
    refused(client.listen(manual("", &long)).await, Invalid, &["consumer", "129", "128"]);
    let mode = proto::ListenRequest { ack_mode: 9, ..manual("", "x") };
    refused(client.listen(mode.clone()).await, Invalid, &["ack_mode is 9", "ACK_MODE_MANUAL"]);
    refused(client.listen(proto::ListenRequest { peek: true, ..mode }).await, Invalid, &["ack_mode is 9"]);
    let batch = proto::ListenRequest { max_batch: 5000, ..manual("", "x") };
    refused(client.listen(batch).await, Invalid, &["max_batch is 5000", "4096", "ask for fewer"]);
    let page = proto::ListMessagesRequest { page_size: 1001, ..proto::ListMessagesRequest::default() };
    refused(client.list_messages(page).await, Invalid, &["page_size is 1001", "1000", "several pages"]);
    let page = proto::ListPeersRequest { page_size: 501, ..proto::ListPeersRequest::default() };
    refused(client.list_peers(page).await, Invalid, &["page_size is 501", "500", "several pages"]);
    let token = proto::ListMessagesRequest { page_token: "?".to_owned(), ..proto::ListMessagesRequest::default() };
    refused(client.list_messages(token).await, Invalid, &["page_token \"?\"", "ListMessages", "leave it empty"]);
    let token = proto::ListPeersRequest { page_token: "?".to_owned(), ..proto::ListPeersRequest::default() };
    refused(client.list_peers(token).await, Invalid, &["page_token \"?\"", "ListPeers", "leave it empty"]);
    let get = |id: &str| proto::GetMessageRequest { id: id.to_owned(), ..proto::GetMessageRequest::default() };
    refused(client.get_message(get("")).await, Invalid, &["id is empty", "Send"]);
    refused(client.get_message(get("none")).await, NotFound, &["\"none\""]);
    let peer = stranger();
    let add = |address: &str| proto::AddPeerRequest {
        peer: peer.clone(),
        addresses: vec![address.to_owned()],
        ..proto::AddPeerRequest::default()
    };
    refused(
        client.add_peer(add("/ip4/1.2.3/udp/x")).await,
        Invalid,
        &["addresses", "/ip4/1.2.3/udp/x", "give one like"],
    );
    let (own, relay) = (b.peer_id().await, stranger());
    let through = |relay: &str| format!("/ip4/127.0.0.1/tcp/1/p2p/{relay}/p2p-circuit");
    for (address, says) in [
        ("/unix/x", "does not begin with an IP address"),
        ("/ip4/0.0.0.0/tcp/1", "all addresses of a host"),
        ("/ip4/224.0.0.1/tcp/1", "a group"),
        ("/ip6/fe80::1/tcp/1", "link-local"),
        ("/ip4/127.0.0.1/tcp/0", "port is 0"),
        ("/ip4/127.0.0.1/udp/1", "neither of TCP nor of UDP with quic-v1"),
        ("/ip4/127.0.0.1/tcp/1/ws", "neither of TCP nor of UDP with quic-v1"),
        ("/p2p-circuit", "/p2p/RELAY_ID/p2p-circuit"),
        (&through(&own), "this node itself"),
        (&through(&peer), "the peer itself"),
        (&format!("{}/p2p/{peer}/p2p-circuit", through(&relay)), "/p2p/RELAY_ID/p2p-circuit"),
    ] {
        let address = format!("{address}/p2p/{peer}");
        refused(client.add_peer(add(&address)).await, Invalid, &["addresses", "cannot be dialled", says]);
        let target = proto::connect_request::Target::Address(address);
        let connect = proto::ConnectRequest { target: Some(target) };
        refused(client.connect(connect).await, Invalid, &["address \"", "cannot be dialled", says]);
    }
    let others = format!("/ip4/127.0.0.1/tcp/1/p2p/{}", stranger());
    refused(client.add_peer(add(&others)).await, Invalid, &["addresses", "is of peer", &peer]);
    let long = format!("/dns/{}/tcp/1", "n".repeat(1024));
    refused(client.add_peer(add(&long)).await, Invalid, &["addresses", "1035 bytes", "1024", "give one like"]);
    let many = proto::AddPeerRequest { addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned(); 17], ..add("") };
    refused(client.add_peer(many).await, Invalid, &["addresses has 17", "16", "give those"]);
    for number in [42, proto::Trust::Blocked.into()] {
        let trust = proto::AddPeerRequest { trust: number, addresses: Vec::new(), ..add("") };
        let says = format!("trust is {number}");
        refused(client.add_peer(trust).await, Invalid, &[&says, "TRUST_TRUSTED", "call Block"]);
    }
    for (name, bytes) in [("a b".to_owned(), "3 bytes"), ("n".repeat(65), "65 bytes")] {
        let alias = proto::AddPeerRequest { alias: name.clone(), addresses: Vec::new(), ..add("") };
        refused(client.add_peer(alias).await, Invalid, &["alias", &name, bytes, "64", "choose"]);
    }
    let itself = proto::AddPeerRequest { peer: own.clone(), addresses: Vec::new(), ..add("") };
    refused(client.add_peer(itself).await, Invalid, &["peer", &own, "itself"]);
    refused(client.block(proto::BlockRequest { peer: own.clone() }).await, Invalid, &["peer", &own, "name another"]);
    refused(client.ping(proto::PingRequest { peer: own.clone() }).await, Invalid, &["peer", &own, "name another"]);
    let remove = proto::RemovePeerRequest { peer: peer.clone() };
    refused(client.remove_peer(remove).await, NotFound, &[&peer, "not in the address book", "peer ls"]);
    let target = |address: &str| proto::ConnectRequest {
        target: Some(proto::connect_request::Target::Address(address.to_owned())),
    };
    refused(client.connect(target("/ip4/127.0.0.1/tcp/1")).await, Invalid, &["address", "/p2p/PEER_ID", "append"]);
    refused(client.connect(target("?")).await, Invalid, &["address", "no multiaddr"]);
    refused(client.connect(proto::ConnectRequest { target: None }).await, Invalid, &["target is missing"]);
    still_work(&a, &b).await;
    assert_eq!(support::receive(&mut client, "", 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_by_a_listen_that_does_not_say_so() {
    let a = Daemon::start().await;
    let mut client = a.client().await;
    client.send(send_to(&a.peer_id().await, message("", "one", "x"))).await.unwrap();
    let unsaid = proto::ListenRequest::default();
    let says = ["ack_mode is missing", "ACK_MODE_MANUAL", "ACK_MODE_AUTO", "peek"];
    refused(client.listen(unsaid.clone()).await, Code::InvalidArgument, &says);
    let peek = proto::ListenRequest { peek: true, ..unsaid };
    for _ in 0..2 {
        let mut stream = client.listen(peek.clone()).await.unwrap().into_inner();
        assert_eq!(next(&mut stream).await.unwrap()[0].attempt, 1);
    }
    assert_eq!(a.status().await.inbox.unwrap().messages, 1);
}

// Full

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused() {
    let a = Daemon::start_with(limits("max_streams = 4")).await;
    let mut client = a.client().await;
    let mut open = Vec::new();
    for n in 0..4 {
        open.push(client.listen(manual(&n.to_string(), "")).await.unwrap());
    }
    refused(client.listen(manual("x", "")).await, Code::ResourceExhausted, &["max_streams is 4", "raise"]);
    open.pop();
    eventually("room again", || async { a.client().await.listen(manual("x", "")).await.ok() }).await;
}

const SMALL: &str = "max_message_bytes = '64 KiB'\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_refuses_and_keeps_what_it_has() {
    let options = limits(&format!("{SMALL}max_outbox_bytes = '256 KiB'"));
    let (a, mut b) = pair_with(options, loopback()).await;
    let peer = b.peer_id().await;
    b.kill();
    let mut client = a.client().await;
    let mut taken = 0;
    let error = loop {
        match client.send(queued(&peer, message("", &taken.to_string(), vec![1; 60_000]))).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 10, "nothing is refused");
    };
    let facts = error.get_details_error_info().unwrap().metadata;
    let number = |key: &str| facts[key].parse::<u64>().unwrap();
    assert_eq!((facts["limit"].as_str(), facts["owner"].as_str()), ("max_outbox_bytes", "LOCAL"));
    assert!(number("max") == 256 * 1024 && number("used") > 60_000 * (taken - 1), "{facts:?}");
    refused::<()>(Err(error), Code::ResourceExhausted, &["max_outbox_bytes", "262144", "raise the limit"]);
    b.restart().await;
    let got = support::receive(&mut b.client().await, "", taken as usize).await;
    assert!(got.iter().map(|one| one.message.as_ref().unwrap().sequence).eq(1..=taken));
    still_work(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_inbox_holds_the_sender_back() {
    const COUNT: usize = 20;
    for key in ["max_inbox_bytes", "max_peer_bytes"] {
        let (a, b) = pair_with(loopback(), limits(&format!("{SMALL}{key} = '256 KiB'"))).await;
        let peer = b.peer_id().await;
        let mut client = a.client().await;
        for n in 0..COUNT {
            client.send(queued(&peer, message("", &n.to_string(), vec![1; 60_000]))).await.unwrap();
        }
        eventually("the reason", || async {
            let all = a.client().await.list_messages(proto::ListMessagesRequest::default()).await.unwrap().into_inner();
            all.messages.iter().any(|one| one.reason() == Reason::RemoteFull).then_some(())
        })
        .await;
        let mut stream = b.client().await.listen(manual("", "")).await.unwrap().into_inner();
        for n in 0..COUNT {
            let got = next(&mut stream).await.unwrap();
            assert_eq!(got[0].message.as_ref().unwrap().id, n.to_string(), "{key}");
            b.client().await.ack(ack("", got[0].cursor)).await.unwrap();
        }
        eventually("an empty outbox", || async { (a.status().await.outbox.unwrap().messages == 0).then_some(()) })
            .await;
        still_work(&a, &b).await;
    }
}

// Clients

fn resident_mib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// All receipts of a stream of these frames, and how it ended.
async fn send_frames(
    client: &mut Client,
    frames: Vec<proto::SendStreamRequest>,
) -> (Vec<proto::Receipt>, Result<(), Status>) {
    let mut stream = client.send_stream(tokio_stream::iter(frames)).await.unwrap().into_inner();
    let mut receipts = Vec::new();
    loop {
        match timeout(DEADLINE, stream.message()).await.expect("receipts in time") {
            Ok(Some(frame)) => {
                if let Some(proto::send_stream_response::Frame::Receipts(batch)) = frame.frame {
                    receipts.extend(batch.receipts);
                }
            }
            Ok(None) => return (receipts, Ok(())),
            Err(status) => return (receipts, Err(status)),
        }
    }
}

async fn send_many(client: &mut Client, peer: &str, count: usize, size: usize) {
    let item = |n: usize| proto::SendItem {
        r#ref: n as u64,
        request: Some(send_to(peer, message("", &n.to_string(), vec![7; size]))),
    };
    let frames = (0..count.div_ceil(64))
        .map(|frame| proto::SendStreamRequest { items: (frame * 64..count.min((frame + 1) * 64)).map(item).collect() });
    let (receipts, end) = send_frames(client, frames.collect()).await;
    end.unwrap();
    assert!(receipts.iter().all(|one| one.code == 0) && receipts.len() == count, "{receipts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_harms_nobody() {
    const COUNT: usize = 5000;
    let (a, b) = pair().await;
    let idle = proto::ListenRequest { max_batch: 4096, ..manual("", "idle") };
    let unread = b.client().await.listen(idle).await.unwrap();
    let before = resident_mib(&b);
    send_many(&mut a.client().await, &b.peer_id().await, COUNT, 8 * 1024).await;
    assert_eq!(support::receive(&mut b.client().await, "", COUNT).await.len(), COUNT);
    let after = resident_mib(&b);
    assert!(after < before + 120, "{before} MiB grew to {after} MiB");
    drop(unread);
    still_work(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_lose_nothing() {
    let (a, b) = pair().await;
    let peer = b.peer_id().await;
    // Half-way through a stream, receipts unread.
    let (items, requests) = tokio::sync::mpsc::channel(1);
    let stream = a.client().await.send_stream(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap();
    for n in 0..50u64 {
        let request = Some(send_to(&peer, message("", &n.to_string(), "x")));
        items.send(proto::SendStreamRequest { items: vec![proto::SendItem { r#ref: n, request }] }).await.unwrap();
    }
    eventually("some came", || async { (b.status().await.inbox.unwrap().messages > 0).then_some(()) }).await;
    drop((stream, items));
    let mut listen = b.client().await.listen(manual("", "")).await.unwrap().into_inner();
    assert_eq!(next(&mut listen).await.unwrap()[0].attempt, 1);
    drop(listen);
    let mut again = eventually("the consumer is free", || async { b.client().await.listen(manual("", "")).await.ok() })
        .await
        .into_inner();
    let first = next(&mut again).await.unwrap();
    assert_eq!(first[0].message.as_ref().unwrap().sequence, 1);
    still_work(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_message_is_named_and_can_be_passed() {
    let (a, mut b) = pair().await;
    let peer = b.peer_id().await;
    for n in 1..=3 {
        a.client().await.send(send_to(&peer, message("", &n.to_string(), vec![7; 10_000]))).await.unwrap();
    }
    assert!(b.stop().success());
    let path = b.state_dir().join("store.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // Somewhere within the second payload.
    let runs: Vec<usize> =
        (0..bytes.len() - 3000).step_by(512).filter(|at| bytes[*at..at + 3000] == [7; 3000]).collect();
    bytes[runs[runs.len() / 2] + 1500] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    b.restart().await;
    let mut stream = b.client().await.listen(manual("", "")).await.unwrap().into_inner();
    let (mut good, mut damaged) = (0, 0);
    while good + damaged < 3 {
        match timeout(Duration::from_secs(20), next(&mut stream)).await.expect("an answer in time") {
            Ok(batch) => good += batch.len(),
            Err(error) => {
                damaged += 1;
                let info = error.get_details_error_info().unwrap();
                let cursor: u64 = info.metadata["cursor"].parse().unwrap();
                refused::<()>(Err(error), Code::DataLoss, &["damaged", &format!("cursor {cursor}"), "acknowledge"]);
                b.client().await.ack(ack("", cursor)).await.unwrap();
                let open = || async { b.client().await.listen(manual("", "")).await.ok() };
                stream = eventually("the consumer is free", open).await.into_inner();
            }
        }
    }
    assert_eq!((good, damaged), (2, 1));
    still_work(&a, &b).await;
}
