//! Two daemons without any settings, each on a host of its own, joined by a
//! cable that is pulled and put back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod flow;
mod skip;
mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use flow::{ids, ids_to_marker, listen, mark, numbered, queue_all, read_to_marker, store_all};
use p2p_node::proto;
use support::{Daemon, Options, eventually};
use tokio::time::timeout;

/// How long the cable is out, unless `LINK_DOWN_SECONDS` says otherwise: in CI
/// long enough for QUIC to give its connection up.
const LINK_DOWN: Duration = Duration::from_secs(30);
const LINK_DOWN_IN_CI: Duration = Duration::from_secs(18);

/// A peer on a dead line is offline after ten seconds; the rest is for a busy
/// machine. TCP by itself would take a quarter of an hour.
const OFFLINE: Duration = Duration::from_secs(30);
/// Messages flow again after the next dial, or the next question on the LAN.
const BACK: Duration = Duration::from_secs(45);

/// Messages each way while it is out.
const WAITING: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn peers_on_a_cable_find_each_other_and_outlast_its_absence() {
    let lan = match Lan::new() {
        Ok(lan) => lan,
        Err(why) => return skip::skip("lan", &why),
    };
    let a = Daemon::start_with(lan.host(0)).await;
    let b = Daemon::start_with(lan.host(1)).await;
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    sees_on_lan(&a, &b_id).await;
    sees_on_lan(&b, &a_id).await;
    trust(&a, &b_id).await;
    trust(&b, &a_id).await;

    let (at_a, at_b) = (a.client().await, b.client().await);
    store_all(&at_a, numbered(&b_id, "", "before", 0..5)).await;
    store_all(&at_b, numbered(&a_id, "", "before", 0..5)).await;
    let row = peer(&a, &b_id).await.unwrap();
    assert_eq!((row.route(), row.on_lan), (proto::Route::Lan, true), "{row:?}");
    mark(&at_a, &b_id, "").await;
    mark(&at_b, &a_id, "").await;
    for to in [&at_a, &at_b] {
        assert_eq!(ids_to_marker(to, "").await, ids(&numbered("", "", "before", 0..5)));
    }

    let (mut to_a, mut to_b) = (listen(&at_a, "cut").await, listen(&at_b, "cut").await);
    lan.cable("down");
    let (for_a, for_b) = (numbered(&a_id, "cut", "", 0..WAITING), numbered(&b_id, "cut", "", 0..WAITING));
    let expected = ids(&for_a);
    queue_all(&at_a, for_b).await;
    queue_all(&at_b, for_a).await;
    let (early_a, early_b) = tokio::join!(timeout(link_down(), to_a.message()), timeout(link_down(), to_b.message()));
    assert!(early_a.is_err() && early_b.is_err(), "{early_a:?} {early_b:?}");

    lan.cable("up");
    let (read_a, read_b) = tokio::join!(
        async {
            mark(&at_b, &a_id, "cut").await;
            read_to_marker(&at_a, &mut to_a).await
        },
        async {
            mark(&at_a, &b_id, "cut").await;
            read_to_marker(&at_b, &mut to_b).await
        }
    );
    for read in [read_a, read_b] {
        assert_eq!(read.into_iter().map(|message| message.id).collect::<Vec<_>>(), expected);
    }
}

/// Nothing but the ticket tells where the other one is.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_all_that_two_hosts_need() {
    let lan = match Lan::new() {
        Ok(lan) => lan,
        Err(why) => return skip::skip("lan", &why),
    };
    let host = |at: usize| Options { args: vec!["--no-mdns".to_owned()], ..lan.host(at) };
    let (mut a, b) = (Daemon::start_with(host(0)).await, Daemon::start_with(host(1)).await);
    let invitation = a.client().await.invite(proto::InviteRequest::default()).await.unwrap().into_inner();
    assert!(invitation.lan_only && invitation.addresses.len() <= 3, "{invitation:?}");
    assert!(invitation.addresses[0].starts_with("/ip4/192.168.77.1/udp/4001/quic-v1/"), "{invitation:?}");
    assert!(invitation.addresses.iter().all(|address| address.starts_with("/ip4/192.168.77.1/")), "{invitation:?}");
    let request = proto::JoinRequest { ticket: invitation.ticket, ..proto::JoinRequest::default() };
    let joined = b.client().await.join(request).await.unwrap().into_inner();
    assert_eq!((joined.route(), joined.peer_id.clone()), (proto::Route::Lan, a.peer_id().await), "{joined:?}");
    store_all(&b.client().await, numbered(&joined.peer_id, "", "", 0..3)).await;
    // The inviter, restarted, finds the joiner by what that told when it joined.
    a.kill();
    a.restart().await;
    store_all(&a.client().await, numbered(&b.peer_id().await, "", "", 0..3)).await;
}

fn link_down() -> Duration {
    let set = std::env::var("LINK_DOWN_SECONDS").ok().map(|text| Duration::from_secs(text.parse().unwrap()));
    set.unwrap_or(if std::env::var_os("CI").is_some() { LINK_DOWN_IN_CI } else { LINK_DOWN })
}

/// TCP, where nothing says that the cable is out. Its peer is offline soon, with
/// and without messages under way, and back with the cable.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_behind_a_pulled_cable_is_soon_offline_over_tcp() {
    let lan = match Lan::new() {
        Ok(lan) => lan,
        Err(why) => return skip::skip("lan", &why),
    };
    let tcp = |host| {
        let mut options = lan.host(host);
        options.args.extend(["--listen", "/ip4/0.0.0.0/tcp/4001"].map(ToOwned::to_owned));
        options
    };
    let (a, b) = (Daemon::start_with(tcp(0)).await, Daemon::start_with(tcp(1)).await);
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    a.add(&b).await;
    b.add(&a).await;
    let (at_a, at_b) = (a.client().await, b.client().await);
    store_all(&at_a, numbered(&b_id, "", "before", 0..1)).await;
    store_all(&at_b, numbered(&a_id, "", "before", 0..1)).await;

    for (round, busy) in [false, true].into_iter().enumerate() {
        lan.cable("down");
        let cut = Instant::now();
        if busy {
            queue_all(&at_a, numbered(&b_id, "", "cut", 0..5)).await;
        }
        for (daemon, other) in [(&a, &b_id), (&b, &a_id)] {
            eventually("offline", || async {
                let row = peer(daemon, other).await.expect("in the book");
                (row.route() == proto::Route::None).then_some(())
            })
            .await;
            assert!(cut.elapsed() < OFFLINE, "{:?} in round {round}", cut.elapsed());
        }
        lan.cable("up");
        let up = Instant::now();
        store_all(&at_a, numbered(&b_id, "", &format!("after-{round}"), 0..5)).await;
        store_all(&at_b, numbered(&a_id, "", &format!("after-{round}"), 0..5)).await;
        assert!(up.elapsed() < BACK, "{:?} in round {round}", up.elapsed());
    }
}

async fn peer(daemon: &Daemon, id: &str) -> Option<proto::Peer> {
    let peers = daemon.client().await.list_peers(proto::ListPeersRequest::default()).await.unwrap().into_inner();
    peers.peers.into_iter().find(|row| row.peer_id == id)
}

async fn sees_on_lan(daemon: &Daemon, id: &str) {
    let row =
        eventually("the other one on the LAN", || async { peer(daemon, id).await.filter(|row| row.on_lan) }).await;
    assert!(!row.in_book && row.trust() != proto::Trust::Trusted, "listed, not trusted: {row:?}");
}

async fn trust(daemon: &Daemon, id: &str) {
    let request = proto::AddPeerRequest { peer: id.to_owned(), ..proto::AddPeerRequest::default() };
    daemon.client().await.add_peer(request).await.unwrap();
}

/// Two network namespaces with a veth pair between them.
struct Lan {
    hosts: [String; 2],
}

impl Lan {
    /// `Err` says why that is not possible here.
    fn new() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("network namespaces are made as root only".to_owned());
        }
        let tag: u32 = rand::random();
        let lan = Self { hosts: ["a", "b"].map(|name| format!("p2pn{name}{tag:x}")) };
        for host in &lan.hosts {
            ip(&["netns", "add", host])?;
        }
        let [a, b] = &lan.hosts;
        ip(&["link", "add", "lan0", "netns", a, "type", "veth", "peer", "name", "lan0", "netns", b])?;
        for (host, address) in [(a, "192.168.77.1/24"), (b, "192.168.77.2/24")] {
            ip(&["-n", host, "address", "add", address, "dev", "lan0"])?;
            ip(&["-n", host, "link", "set", "lo", "up"])?;
            ip(&["-n", host, "link", "set", "lan0", "up"])?;
        }
        Ok(lan)
    }

    /// How to start a daemon on one of the hosts, with no setting at all.
    fn host(&self, at: usize) -> Options {
        let prefix = ["ip", "netns", "exec", &self.hosts[at]].map(ToOwned::to_owned).to_vec();
        Options { prefix, ..Options::default() }
    }

    fn cable(&self, state: &str) {
        ip(&["-n", &self.hosts[0], "link", "set", "lan0", state]).unwrap();
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in &self.hosts {
            // One that was never made cannot be removed.
            drop(ip(&["netns", "delete", host]));
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    match Command::new("ip").args(args).output() {
        Err(error) => Err(format!("no ip command: {error}")),
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim())),
    }
}
