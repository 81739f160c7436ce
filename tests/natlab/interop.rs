//! Together with software that is not ours: go-libp2p as the relay, and as the
//! peer punched with.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use p2p_node::proto;

use crate::{
    foreign::{self, Foreign},
    kind::Kind,
    lab::Lab,
    node::{Node, end},
    relays::Relays,
    run::{DIRECT, send},
    site::Spec,
    skip::skip,
    watch::{RouteWatch, is_direct},
};

/// Longest until others can reach a node, and until a connection is direct.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);

/// A cell: what happened after how many milliseconds, or what did not.
type Verdict = Result<String, String>;

/// Runs every cell for each pair, and says whether all were direct.
pub(crate) fn interop(pairs: &[(Kind, Kind)], delay: Duration) -> bool {
    let program = match foreign::build() {
        Ok(program) => program,
        Err(why) => {
            skip("natlab interop", &why);
            return true;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut passed = true;
    for pair in pairs {
        let verdicts = runtime.block_on(async {
            [
                ("go-libp2p is the relay", through(&program, *pair, delay).await),
                ("our dial, go-libp2p behind the second", punch(&program, *pair, delay, Dialler::Ours).await),
                ("its dial, go-libp2p behind the second", punch(&program, *pair, delay, Dialler::Theirs).await),
            ]
        });
        for (cell, verdict) in verdicts {
            let names = format!("{} x {}", pair.0.name(), pair.1.name());
            println!("{names:<48} {cell:<40} {}", verdict.as_ref().unwrap_or_else(|why| why));
            passed &= verdict.is_ok();
        }
    }
    passed
}

/// Two nodes of ours find each other through its relay.
async fn through(program: &Path, (a, b): (Kind, Kind), delay: Duration) -> Verdict {
    let lab = Lab::new();
    let middle = lab.site(Spec { delay, ..Spec::new(Kind::None) });
    let relay = Foreign::start(program, &middle, "relay", &[]).await;
    let address = |transport| format!("/ip4/{}/{transport}/p2p/{}", middle.public(), relay.id);
    let addresses = ["udp/4001/quic-v1", "tcp/4001"].map(address);
    let sites = [a, b].map(|kind| lab.site(Spec { delay, ..Spec::new(kind) }));
    let (a, b) = tokio::join!(Node::start_peer(&sites[0], 0, &addresses), Node::start_peer(&sites[1], 0, &addresses));
    let verdict = async {
        // Such a relay tells nobody where a peer is.
        tokio::join!(know(&a, &b.id, &addresses), know(&b, &a.id, &addresses));
        a.reachable(PATIENCE).await.map_err(|why| format!("not reachable: {why}"))?;
        b.reachable(PATIENCE).await.map_err(|why| format!("not reachable: {why}"))?;
        let watch = RouteWatch::new(&a.client, &b.id).await;
        let dial = Instant::now();
        send(&a, &b.id, "first", DIRECT).await.map_err(|why| format!("first message: {why}"))?;
        let stored = dial.elapsed();
        direct(&watch, dial)
            .await
            .map(|took| format!("stored {} ms, direct {} ms", stored.as_millis(), took.as_millis()))
    };
    let verdict = verdict.await;
    show_logs(&verdict, &[&a, &b]);
    end(vec![a, b]).await;
    verdict
}

#[derive(Clone, Copy)]
enum Dialler {
    Ours,
    Theirs,
}

/// A node of ours and one of theirs, each behind a router, with relays of
/// ours.
async fn punch(program: &Path, (a, b): (Kind, Kind), delay: Duration, dialler: Dialler) -> Verdict {
    let lab = Lab::new();
    let relays = Relays::start(&lab, 2, delay, false).await;
    let sites = [a, b].map(|kind| lab.site(Spec { delay, ..Spec::new(kind) }));
    let ours = Node::start_peer(&sites[0], 0, &relays.addresses).await;
    let mut theirs = Foreign::start(program, &sites[1], "peer", &relays.addresses).await;
    let verdict = async {
        ours.reachable(PATIENCE).await.map_err(|why| format!("not reachable: {why}"))?;
        theirs.wait("reserved", |_| true).await.ok_or("go-libp2p got no reservation")?;
        theirs.wait("punches", |_| true).await.ok_or("go-libp2p does not punch")?;
        know(&ours, &theirs.id, &[]).await;
        let watch = RouteWatch::new(&ours.client, &theirs.id).await;
        let dial = Instant::now();
        let relay = &relays.addresses[0];
        match dialler {
            Dialler::Ours => {
                let address = format!("{relay}/p2p-circuit/p2p/{}", theirs.id);
                let target = Some(proto::connect_request::Target::Address(address));
                let connected = ours.client.clone().connect(proto::ConnectRequest { target }).await;
                connected.map_err(|status| format!("our dial: {}", status.message()))?;
            }
            Dialler::Theirs => {
                let address = format!("{relay}/p2p-circuit/p2p/{}", ours.id);
                theirs.order("connect", &address).await.map_err(|why| format!("its dial: {why}"))?;
            }
        }
        let took = direct(&watch, dial).await?;
        let (_, address) = theirs.direct(&ours.id).await.ok_or("go-libp2p sees no direct connection")?;
        theirs.order("ping", &ours.id).await.map_err(|why| format!("its ping: {why}"))?;
        Ok(format!("direct {} ms, {address}", took.as_millis()))
    };
    let verdict = verdict.await;
    show_logs(&verdict, &[&ours]);
    end(vec![ours]).await;
    relays.end().await;
    verdict
}

fn show_logs(verdict: &Verdict, nodes: &[&Node]) {
    if verdict.is_err() && std::env::var_os("NATLAB_LOGS").is_some() {
        for node in nodes {
            eprintln!("--- {}\n{}", node.id, node.daemon.log());
        }
    }
}

/// Puts a peer into the address book, with its circuits at these relays.
async fn know(node: &Node, peer: &str, relays: &[String]) {
    let request = proto::AddPeerRequest {
        peer: peer.to_owned(),
        addresses: relays.iter().map(|relay| format!("{relay}/p2p-circuit")).collect(),
        ..proto::AddPeerRequest::default()
    };
    node.client.clone().add_peer(request).await.unwrap();
}

/// How long after the dial the route was direct.
async fn direct(watch: &RouteWatch, dial: Instant) -> Result<Duration, String> {
    loop {
        if let Some(at) = watch.first(is_direct) {
            return Ok(at.saturating_duration_since(dial));
        }
        if dial.elapsed() > PATIENCE {
            return Err(format!("not direct: {:?}", watch.now()));
        }
        tokio::time::sleep(POLL).await;
    }
}
