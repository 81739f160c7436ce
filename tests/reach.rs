//! What a node finds out about how others reach it, with two servers in an
//! internet of network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod skip;
mod support;

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use p2p_node::proto;
use support::{Daemon, Options, eventually};

/// Addresses of the hosts, each on a cable of its own to the core.
const SERVERS: [&str; 2] = ["203.0.113.2", "203.0.113.6"];
const WAN: &str = "203.0.113.10";
const PUBLIC: &str = "203.0.113.14";

/// Lets in what belongs to connections made from inside.
const FIREWALL: &str = "
table ip fw {
    chain input {
        type filter hook input priority 0; policy accept;
        iifname \"lo\" accept
        ct state established,related accept
        iifname \"wan\" drop
    }
}
";

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_works_is_told_and_one_that_does_not_is_not() {
    let Some(net) = Internet::new() else { return };
    let servers = net.servers().await;
    let open = net.daemon("public", &[]).await;
    ask(&open, &servers).await;
    for address in [format!("/ip4/{PUBLIC}/udp/4001/quic-v1"), format!("/ip4/{PUBLIC}/tcp/4001")] {
        logged(&open, &["reachable from outside", &address]).await;
    }
    // Others hear of it, and it is no NAT.
    logged(&open, &["found how others see this node", "class=None", PUBLIC]).await;
    drop(open);

    net.filter("public", FIREWALL);
    let closed = net.daemon("public", &[]).await;
    ask(&closed, &servers).await;
    for address in [format!("/ip4/{PUBLIC}/udp/4001/quic-v1"), format!("/ip4/{PUBLIC}/tcp/4001")] {
        for server in &servers {
            let asked = "asked whether an address works";
            logged(&closed, &[asked, &address, &server.peer_id().await, "answer=Unreachable"]).await;
        }
    }
    assert!(!closed.log().contains("reachable from outside"), "{}", closed.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nat_that_changes_the_port_is_independent_of_whom_one_talks_to() {
    let Some(net) = Internet::new() else { return };
    let servers = net.servers().await;
    net.nat(&format!("oifname \"wan\" udp sport 4001 snat to {WAN}:7777\n oifname \"wan\" masquerade"));
    let home = net.daemon("home", &[]).await;
    ask(&home, &servers).await;
    let line = logged(&home, &["found how others see this node", "class=EndpointIndependent"]).await;
    assert!(line.contains("port_kept=Some(false)") && line.contains(WAN), "{line}");
    // The address that the NAT gives it is asked about, not that with the port
    // listened on.
    logged(&home, &[&format!("/ip4/{WAN}/udp/7777/quic-v1"), "answer=Unreachable"]).await;
    assert!(!home.log().contains(&format!("/ip4/{WAN}/udp/4001")), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nat_that_gives_each_destination_another_port_is_dependent() {
    let Some(net) = Internet::new() else { return };
    let servers = net.servers().await;
    net.nat("oifname \"wan\" masquerade random,fully-random");
    let home = net.daemon("home", &[]).await;
    ask(&home, &servers).await;
    let line = logged(&home, &["found how others see this node", "class=EndpointDependent"]).await;
    assert!(line.contains("port_kept=Some(false)") && line.contains(WAN), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_stops_working_is_withdrawn() {
    let Some(net) = Internet::new() else { return };
    let servers = net.servers().await;
    let node = net.daemon("public", &[]).await;
    ask(&node, &servers).await;
    let address = format!("/ip4/{PUBLIC}/udp/4001/quic-v1");
    for server in &servers {
        let asked = "asked whether an address works";
        logged(&node, &[asked, &address, &server.peer_id().await, "answer=Reachable"]).await;
    }
    net.filter("public", FIREWALL);
    // After a change of the network everything is asked again.
    net.ip(&["-n", &net.name("public"), "address", "add", "203.0.113.100/32", "dev", "wan"]);
    logged(&node, &["not reachable from outside any more", &address]).await;
}

/// Keeps connected to both servers, over QUIC.
async fn ask(daemon: &Daemon, servers: &[Daemon; 2]) {
    for (server, ip) in servers.iter().zip(SERVERS) {
        let request = proto::AddPeerRequest {
            peer: server.peer_id().await,
            addresses: vec![format!("/ip4/{ip}/udp/4001/quic-v1")],
            pinned: Some(true),
            ..proto::AddPeerRequest::default()
        };
        daemon.client().await.add_peer(request).await.unwrap();
    }
}

/// Waits for a line of the log that has all of this.
async fn logged(daemon: &Daemon, parts: &[&str]) -> String {
    let what = parts.join(", ");
    eventually(&what, || async {
        let log = daemon.log();
        log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(ToOwned::to_owned)
    })
    .await
}

/// Hosts around a core that forwards, and one behind a router.
struct Internet {
    tag: String,
}

impl Internet {
    /// `None` where that is not possible, which is said.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip::skip("reach", "network namespaces are made as root only");
            return None;
        }
        let net = Self { tag: format!("{:x}", rand::random::<u32>()) };
        for host in HOSTS {
            net.ip(&["netns", "add", &net.name(host)]);
            net.ip(&["-n", &net.name(host), "link", "set", "lo", "up"]);
        }
        for (n, host) in ["server0", "server1", "router", "public"].into_iter().enumerate() {
            let subnet = |last: usize| format!("203.0.113.{}", 4 * n + last);
            net.cable(
                host,
                "wan",
                &format!("{}/30", subnet(2)),
                "core",
                &format!("c{n}"),
                &format!("{}/30", subnet(1)),
            );
            net.ip(&["-n", &net.name(host), "route", "add", "default", "via", &subnet(1)]);
        }
        net.cable("home", "lan", "10.0.0.2/24", "router", "lan", "10.0.0.1/24");
        net.ip(&["-n", &net.name("home"), "route", "add", "default", "via", "10.0.0.1"]);
        for host in ["core", "router"] {
            net.run(host, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        }
        Some(net)
    }

    fn name(&self, host: &str) -> String {
        format!("p2pr{host}{}", self.tag)
    }

    fn cable(&self, a: &str, a_link: &str, a_address: &str, b: &str, b_link: &str, b_address: &str) {
        let (a, b) = (self.name(a), self.name(b));
        self.ip(&["link", "add", a_link, "netns", &a, "type", "veth", "peer", "name", b_link, "netns", &b]);
        for (host, link, address) in [(&a, a_link, a_address), (&b, b_link, b_address)] {
            self.ip(&["-n", host, "address", "add", address, "dev", link]);
            self.ip(&["-n", host, "link", "set", link, "up"]);
        }
    }

    /// How the router translates; it lets in only what belongs to connections
    /// made from inside.
    fn nat(&self, post: &str) {
        self.filter(
            "router",
            &format!(
                "{FIREWALL}
table ip nat {{
    chain pre {{
        type nat hook prerouting priority -100
    }}
    chain post {{
        type nat hook postrouting priority 100
        {post}
    }}
}}
table ip forward {{
    chain forward {{
        type filter hook forward priority 0; policy drop
        iifname \"lan\" accept
        iifname \"wan\" ct state established,related accept
    }}
}}
"
            ),
        );
    }

    fn filter(&self, host: &str, rules: &str) {
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", &self.name(host), "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut nft = nft.spawn().unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "{rules}");
    }

    async fn servers(&self) -> [Daemon; 2] {
        let serve = ["--serve", "on"];
        [self.daemon("server0", &serve).await, self.daemon("server1", &serve).await]
    }

    async fn daemon(&self, host: &str, args: &[&str]) -> Daemon {
        let prefix = ["ip", "netns", "exec", &self.name(host)].map(ToOwned::to_owned).to_vec();
        let common = ["--no-mdns", "--log", "info,p2p_node::swarm=debug"];
        let args = common.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        Daemon::start_with(Options { args, prefix, ..Options::default() }).await
    }

    fn ip(&self, args: &[&str]) {
        let done = Command::new("ip").args(args).output().unwrap();
        assert!(done.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
    }

    fn run(&self, host: &str, command: &[&str]) {
        self.ip(&[&["netns", "exec", &self.name(host)], command].concat());
    }
}

const HOSTS: [&str; 6] = ["core", "server0", "server1", "router", "public", "home"];

impl Drop for Internet {
    fn drop(&mut self) {
        for host in HOSTS {
            drop(Command::new("ip").args(["netns", "delete", &self.name(host)]).output());
        }
    }
}
