//! Port mapping with a real router's software, miniupnpd, between namespaces:
//! two hosts at home, their router, and the internet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod netns;
mod skip;
mod support;

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    process::Child,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use netns::Namespace;
use p2p_node::ports::{self, BadAddress, Handle, Mapped, MappingView, Method, PortsConfig};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than any search or retry that a test waits for.
const DEADLINE: Duration = Duration::from_secs(20);
/// Mappings by UPnP are looked after once a minute.
const CHECKED: Duration = Duration::from_secs(75);
const PUBLIC: &str = "128.66.0.7";
const PRIVATE: &str = "10.9.0.7";

/// What the router's software does.
const ALL: &str = "enable_natpmp=yes\nenable_upnp=yes\n";
const PMP: &str = "enable_natpmp=yes\nenable_upnp=no\n";
const UPNP: &str = "enable_natpmp=no\nenable_upnp=yes\n";

/// Chains that miniupnpd fills.
const CHAINS: &str = "
table inet filter {
    chain miniupnpd {
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        jump miniupnpd
        iifname \"lan\" accept
        ct state established,related accept
    }
    chain prerouting_miniupnpd {
    }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting_miniupnpd {
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
        oifname \"wan\" masquerade
    }
}
";

/// A home with two hosts, behind a router, on the internet.
struct Home {
    hosts: [Namespace; 2],
    router: Namespace,
    internet: Namespace,
    software: Option<Child>,
    /// External ports that it forwards.
    allowed: &'static str,
    directory: TempDir,
}

impl Home {
    fn new(external: &str) -> Result<Self, String> {
        let hosts = [Namespace::new("a")?, Namespace::new("b")?];
        let (router, internet) = (Namespace::new("router")?, Namespace::new("net")?);
        router.ip(&["link", "add", "lan", "type", "bridge"])?;
        router.ip(&["address", "add", "192.168.88.1/24", "dev", "lan"])?;
        router.ip(&["link", "set", "lan", "up"])?;
        for (at, host) in hosts.iter().enumerate() {
            let port = format!("lan{at}");
            router.cable(&port, host, "eth0")?;
            router.ip(&["link", "set", &port, "master", "lan"])?;
            host.ip(&["address", "add", &format!("192.168.88.{}/24", at + 2), "dev", "eth0"])?;
            host.ip(&["route", "add", "default", "via", "192.168.88.1"])?;
        }
        router.cable("wan", &internet, "eth0")?;
        router.ip(&["address", "add", &format!("{external}/24"), "dev", "wan"])?;
        let far = format!("{}.1", external.rsplit_once('.').unwrap().0);
        internet.ip(&["address", "add", &format!("{far}/24"), "dev", "eth0"])?;
        router.ip(&["route", "add", "default", "via", &far])?;
        router.output(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        router.nft(CHAINS)?;
        let directory = tempfile::tempdir().unwrap();
        Ok(Self { hosts, router, internet, software: None, allowed: "1024-65535", directory })
    }

    /// With miniupnpd running.
    fn with(external: &str, settings: &str) -> Result<Self, String> {
        let mut home = Self::new(external)?;
        home.start(settings)?;
        Ok(home)
    }

    fn start(&mut self, settings: &str) -> Result<(), String> {
        let file = self.directory.path().join("miniupnpd.conf");
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nport=0\n{settings}system_uptime=no\nsecure_mode=yes\n\
             uuid=00000000-0000-4000-8000-000000000001\nfriendly_name=Test Router\n\
             upnp_table_name=filter\nupnp_nat_table_name=filter\nupnp_forward_chain=miniupnpd\n\
             upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n\
             allow {ports} 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            ports = self.allowed,
        );
        fs::write(&file, text).unwrap();
        let log = File::create(self.directory.path().join("log")).unwrap();
        let pid = self.directory.path().join("pid");
        let mut command = self.router.command("miniupnpd");
        command.args(["-d", "-f"]).arg(&file).arg("-P").arg(pid);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        if !has("miniupnpd") {
            return Err("no miniupnpd command".to_owned());
        }
        self.software = Some(command.spawn().map_err(|error| error.to_string())?);
        // It writes this when all its sockets are bound.
        let last = if settings.contains("natpmp=yes") { "Listening for NAT-PMP" } else { "HTTP listening" };
        let end = Instant::now() + DEADLINE;
        while !self.log().contains(last) {
            assert!(Instant::now() < end, "miniupnpd does not start:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// As when it loses power: nothing is said, all is forgotten.
    fn pull_the_plug(&mut self) {
        if let Some(mut software) = self.software.take() {
            software.kill().unwrap();
            software.wait().unwrap();
        }
        self.router.nft(&format!("flush ruleset\n{CHAINS}")).unwrap();
    }

    /// Lets datagrams of one of two protocols at one port not through.
    fn drop_version(&self, version: u8) {
        let rules = format!(
            "table inet versions {{\nchain input {{\ntype filter hook input priority 0; policy accept;\n\
             iifname \"lan\" udp dport 5351 @th,64,8 {version} drop\n}}\n}}\n"
        );
        self.router.nft(&rules).unwrap();
    }

    /// What the router forwards.
    fn forwards(&self) -> Vec<String> {
        let rules = self.router.output(&["nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd"]).unwrap();
        rules.lines().filter(|line| line.contains("dnat")).map(|line| line.trim().to_owned()).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("rules: {:#?}\nlog of the router:\n{}", self.forwards(), self.log());
        }
        if let Some(mut software) = self.software.take() {
            drop(software.kill());
            drop(software.wait());
        }
    }
}

fn has(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|directory| directory.join(program).exists())
}

/// Port mapping of UDP and TCP port 4001.
struct Running {
    handle: Handle,
    stop: CancellationToken,
}

impl Running {
    fn start() -> Self {
        let stop = CancellationToken::new();
        let config = PortsConfig { tcp: vec![4001], udp: vec![4001], secret: [7; 32].into() };
        Self { handle: ports::spawn(&config, stop.clone()), stop }
    }

    /// The first view that fits.
    async fn until(&mut self, within: Duration, fits: impl Fn(&MappingView) -> bool) -> MappingView {
        let found =
            timeout(within, self.handle.view.wait_for(|view| fits(view))).await.map(|view| view.unwrap().clone());
        found.unwrap_or_else(|_| panic!("not in time: {:#?}", self.handle.view.borrow()))
    }

    async fn settled(&mut self) -> MappingView {
        self.until(DEADLINE, |view| view.settled).await
    }

    async fn both(&mut self) -> [Mapped; 2] {
        let view = self.until(DEADLINE, |view| view.settled).await;
        let mapped: Vec<Mapped> = view.ports.iter().filter_map(|port| port.mapped.clone()).collect();
        mapped.try_into().unwrap_or_else(|_| panic!("{view:#?}"))
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.handle.task).await.expect("ends in time").unwrap();
    }
}

/// Polls until it holds.
async fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

macro_rules! home {
    ($made:expr) => {
        match $made {
            Ok(home) => home,
            Err(why) => return skip::skip("ports", &why),
        }
    };
}

/// Both ports are mapped as asked, reach the host, and are removed at the end.
fn maps_and_removes(home: &Home, method: Method) {
    home.hosts[0].run(|| async {
        let listener = TcpListener::bind("0.0.0.0:4001").unwrap();
        let mut running = Running::start();
        let begun = Instant::now();
        for mapped in running.both().await {
            assert!(mapped.usable && mapped.method == method, "{mapped:?}");
            assert_eq!(mapped.external.to_string(), format!("{PUBLIC}:4001"));
            assert!(mapped.expires > Instant::now() + Duration::from_secs(60), "{mapped:?}");
        }
        eprintln!("{method}: both ports after {:?}", begun.elapsed());
        let view = running.handle.view.borrow().clone();
        assert_eq!(view.gateway, Some("192.168.88.1".parse().unwrap()));
        let told: Vec<String> = view.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("/ip4/{PUBLIC}/udp/4001/quic-v1"), format!("/ip4/{PUBLIC}/tcp/4001")]);
        if method == Method::Upnp {
            assert_eq!(view.router.as_deref(), Some("Test Router"));
        }
        assert_eq!(home.forwards().len(), 2, "{:?}", home.forwards());
        home.internet.run(|| async {
            tokio::net::TcpStream::connect((PUBLIC, 4001)).await.unwrap();
        });
        listener.accept().unwrap();
        running.end().await;
        assert!(home.forwards().is_empty(), "{:?}", home.forwards());
    });
}

#[test]
fn pcp_maps_and_removes() {
    let home = home!(Home::with(PUBLIC, PMP));
    home.drop_version(0);
    maps_and_removes(&home, Method::Pcp);
}

#[test]
fn nat_pmp_maps_and_removes() {
    let home = home!(Home::with(PUBLIC, PMP));
    home.drop_version(2);
    maps_and_removes(&home, Method::NatPmp);
}

#[test]
fn upnp_maps_and_removes() {
    let home = home!(Home::with(PUBLIC, UPNP));
    maps_and_removes(&home, Method::Upnp);
}

#[test]
fn a_router_that_speaks_all_is_asked_by_the_best() {
    let home = home!(Home::with(PUBLIC, ALL));
    maps_and_removes(&home, Method::Pcp);
}

/// The second host at home gets other ports for the same ones.
fn takes_another_port(home: &Home) {
    home.hosts[0].run(|| async {
        let mut first = Running::start();
        first.both().await;
        home.hosts[1].run(|| async {
            let mut second = Running::start();
            for mapped in second.both().await {
                assert!(mapped.usable && mapped.external.port() != 4001, "{mapped:?}");
                let to = format!("dport {}", mapped.external.port());
                assert!(home.forwards().iter().any(|rule| rule.contains(&to)), "{:?}", home.forwards());
            }
            assert_eq!(home.forwards().len(), 4, "{:?}", home.forwards());
            second.end().await;
        });
        assert_eq!(home.forwards().len(), 2, "those of the first stay: {:?}", home.forwards());
        first.end().await;
        assert!(home.forwards().is_empty(), "{:?}", home.forwards());
    });
}

#[test]
fn a_port_that_is_taken_becomes_another_by_pcp() {
    takes_another_port(&home!(Home::with(PUBLIC, PMP)));
}

#[test]
fn a_port_that_is_taken_becomes_another_by_nat_pmp() {
    let home = home!(Home::with(PUBLIC, PMP));
    home.drop_version(2);
    takes_another_port(&home);
}

#[test]
fn a_port_that_is_taken_becomes_another_by_upnp() {
    takes_another_port(&home!(Home::with(PUBLIC, UPNP)));
}

/// Some routers leave only a range to their hosts.
fn keeps_to_the_range(settings: &str) {
    let mut home = home!(Home::new(PUBLIC));
    home.allowed = "4100-4999";
    home.start(settings).unwrap();
    home.hosts[0].run(|| async {
        let mut running = Running::start();
        for mapped in running.both().await {
            assert!(mapped.usable && (4100..5000).contains(&mapped.external.port()), "{mapped:?}");
        }
        running.end().await;
        assert!(home.forwards().is_empty(), "{:?}", home.forwards());
    });
}

#[test]
fn a_port_out_of_the_allowed_range_becomes_another_by_pcp() {
    keeps_to_the_range(PMP);
}

#[test]
fn a_port_out_of_the_allowed_range_becomes_another_by_upnp() {
    keeps_to_the_range(UPNP);
}

/// The whole daemon: maps when it starts, again when its host moves, and gives
/// back at the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_settings_maps_and_gives_back() {
    let home = home!(Home::with(PUBLIC, ALL));
    let prefix = ["ip", "netns", "exec", &home.hosts[0].name].map(ToOwned::to_owned).to_vec();
    let mut daemon = support::Daemon::start_with(support::Options { prefix, ..Default::default() }).await;
    eventually("mapped", DEADLINE, || home.forwards().len() == 2).await;
    home.hosts[0].ip(&["address", "delete", "192.168.88.2/24", "dev", "eth0"]).unwrap();
    home.hosts[0].ip(&["address", "add", "192.168.88.44/24", "dev", "eth0"]).unwrap();
    home.hosts[0].ip(&["route", "add", "default", "via", "192.168.88.1"]).unwrap();
    let moved = || home.forwards().iter().filter(|rule| rule.contains("192.168.88.44:4001")).count() == 2;
    let begun = Instant::now();
    eventually("mapped to the new address", DEADLINE, moved).await;
    eprintln!("the host moved: {:?}", begun.elapsed());
    assert!(daemon.stop().success());
    let left = home.forwards().into_iter().filter(|rule| rule.contains("192.168.88.44")).count();
    assert_eq!(left, 0, "{:?}", home.forwards());
}

/// A mapping left behind is known again; under another name it would be refused.
#[test]
fn a_daemon_that_was_killed_takes_its_mappings_over() {
    let home = home!(Home::with(PUBLIC, PMP));
    home.drop_version(0);
    home.hosts[0].run(|| async {
        let mut killed = Running::start();
        killed.both().await;
        killed.handle.task.abort();
        assert_eq!(home.forwards().len(), 2);
        let mut next = Running::start();
        for mapped in next.both().await {
            assert_eq!((mapped.method, mapped.external.port()), (Method::Pcp, 4001), "{mapped:?}");
        }
        next.end().await;
        assert!(home.forwards().is_empty(), "{:?}", home.forwards());
    });
}

/// On the internet itself there is no router to ask.
#[test]
fn a_host_with_a_public_address_asks_nobody() {
    let home = home!(Home::with(PUBLIC, ALL));
    home.internet.ip(&["route", "add", "default", "via", PUBLIC]).unwrap();
    home.internet.run(|| async {
        let mut running = Running::start();
        let view = running.settled().await;
        let error = view.ports[0].detail();
        assert!(error.contains("128.66.0.1: nothing has to be mapped"), "{error}");
        running.end().await;
    });
}

#[test]
fn a_router_behind_another_nat_is_told() {
    let home = home!(Home::with(PRIVATE, ALL));
    home.hosts[0].run(|| async {
        let mut running = Running::start();
        let view = running.settled().await;
        assert!(view.addresses().is_empty(), "{view:#?}");
        for port in &view.ports {
            assert!(port.is_behind_nat() && port.detail().contains("behind another NAT"), "{view:#?}");
        }
        running.end().await;
    });
}

#[test]
fn peers_that_see_another_address_tell_of_another_nat() {
    let home = home!(Home::with(PUBLIC, PMP));
    home.hosts[0].run(|| async {
        let mut running = Running::start();
        running.both().await;
        running.handle.observed(Some("128.66.9.9".parse().unwrap()));
        let view = running.until(DEADLINE, |view| view.addresses().is_empty()).await;
        let reason = view.ports[0].detail();
        assert!(reason.contains("behind another NAT") && reason.contains("128.66.9.9"), "{reason}");
        running.handle.observed(Some(PUBLIC.parse().unwrap()));
        running.until(DEADLINE, |view| view.addresses().len() == 2).await;
        running.end().await;
    });
}

/// What a router that restarted says of itself is heard at once.
#[test]
fn a_router_that_restarts_is_asked_again() {
    let mut home = home!(Home::with(PUBLIC, PMP));
    netns::run_in(&home.hosts[0].name.clone(), || async {
        let mut running = Running::start();
        running.both().await;
        home.pull_the_plug();
        assert!(home.forwards().is_empty());
        home.start(PMP).unwrap();
        let begun = Instant::now();
        eventually("mapped again", DEADLINE, || home.forwards().len() == 2).await;
        eprintln!("after a restart: {:?}", begun.elapsed());
        running.end().await;
    });
}

/// UPnP has no word for it, and its port is another one afterwards.
#[test]
fn a_upnp_router_that_restarts_is_asked_again() {
    let mut home = home!(Home::with(PUBLIC, UPNP));
    netns::run_in(&home.hosts[0].name.clone(), || async {
        let mut running = Running::start();
        running.both().await;
        home.pull_the_plug();
        home.start(UPNP).unwrap();
        let begun = Instant::now();
        eventually("mapped again", CHECKED, || home.forwards().len() == 2).await;
        eprintln!("after a restart, by UPnP: {:?}", begun.elapsed());
        running.end().await;
    });
}

#[test]
fn a_refresh_maps_again_at_once() {
    let home = home!(Home::with(PUBLIC, ALL));
    netns::run_in(&home.hosts[0].name.clone(), || async {
        let mut running = Running::start();
        running.both().await;
        home.router.nft(&format!("flush ruleset\n{CHAINS}")).unwrap();
        // The host moves to another address.
        home.hosts[0].ip(&["address", "delete", "192.168.88.2/24", "dev", "eth0"]).unwrap();
        home.hosts[0].ip(&["address", "add", "192.168.88.44/24", "dev", "eth0"]).unwrap();
        home.hosts[0].ip(&["route", "add", "default", "via", "192.168.88.1"]).unwrap();
        let begun = Instant::now();
        running.handle.refresh();
        let to_the_new_one = || home.forwards().iter().filter(|rule| rule.contains("192.168.88.44:4001")).count();
        eventually("mapped again", DEADLINE, || to_the_new_one() == 2).await;
        eprintln!("after a refresh: {:?}", begun.elapsed());
        running.end().await;
    });
}

#[test]
fn a_silent_router_and_none_at_all_are_told() {
    let home = home!(Home::new(PUBLIC));
    home.hosts[0].run(|| async {
        let mut running = Running::start();
        let begun = Instant::now();
        let view = running.settled().await;
        eprintln!("a router that offers nothing: {:?}", begun.elapsed());
        let error = view.ports[0].detail();
        assert!(error.contains("192.168.88.1 answers neither PCP, NAT-PMP nor UPnP"), "{error}");
        home.hosts[0].ip(&["route", "delete", "default"]).unwrap();
        running.handle.refresh();
        let none = |view: &MappingView| view.ports[0].detail().contains("no default route");
        running.until(DEADLINE, none).await;
        running.end().await;
    });
}

/// A router of a carrier that gives out addresses of its own network.
#[test]
fn a_mapping_to_a_shared_address_is_kept_and_not_told() {
    let home = home!(Home::new(PUBLIC));
    let ready = Barrier::new(2);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| home.router.run(|| async { carrier(&ready, &done) }));
        ready.wait();
        home.hosts[0].run(|| async {
            let mut running = Running::start();
            for mapped in running.both().await {
                assert!(!mapped.usable && mapped.external.to_string() == "100.64.3.2:4444", "{mapped:?}");
                assert!(mapped.reason.is_some_and(BadAddress::is_behind_nat), "{mapped:?}");
            }
            assert!(running.handle.view.borrow().addresses().is_empty());
            running.end().await;
        });
    });
}

/// Says so when the test is over, however it ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Speaks NAT-PMP until it is told to stop.
fn carrier(ready: &Barrier, done: &AtomicBool) {
    let socket = UdpSocket::bind("192.168.88.1:5351").unwrap();
    ready.wait();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut question = [0; 100];
    while !done.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
        let mut answer = match question[..length] {
            [0, 0] => vec![0, 128, 0, 0, 0, 0, 0, 9, 100, 64, 3, 2],
            [0, operation @ 1..=2, _, _, high, low, ..] => {
                vec![0, 128 | operation, 0, 0, 0, 0, 0, 9, high, low, 17, 92, 0, 0, 1, 0]
            }
            _ => vec![0, 128, 0, 1, 0, 0, 0, 9],
        };
        if question[..length].ends_with(&[0, 0, 0, 0]) && length == 12 {
            answer[10..].fill(0);
        }
        socket.send_to(&answer, from).unwrap();
    }
}

/// A box that calls itself a router and never ends its answer.
#[test]
fn a_description_without_end_is_given_up() {
    let home = home!(Home::new(PUBLIC));
    let ready = Barrier::new(3);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| home.router.run(|| async { endless(&ready, &done) }));
        scope.spawn(|| home.router.run(|| async { lures(&ready, &done) }));
        ready.wait();
        home.hosts[0].run(|| async {
            let mut running = Running::start();
            let view = running.settled().await;
            assert!(view.addresses().is_empty() && view.ports[0].error.is_some(), "{view:#?}");
            running.end().await;
        });
    });
}

fn lures(ready: &Barrier, done: &AtomicBool) {
    let socket = UdpSocket::bind("192.168.88.1:1900").unwrap();
    ready.wait();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while !done.load(Ordering::Relaxed) {
        let Ok((_, from)) = socket.recv_from(&mut [0; 2000]) else { continue };
        let answer = "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.88.1:5000/desc.xml\r\n\r\n";
        socket.send_to(answer.as_bytes(), from).unwrap();
    }
}

fn endless(ready: &Barrier, done: &AtomicBool) {
    let listener = TcpListener::bind("192.168.88.1:5000").unwrap();
    ready.wait();
    listener.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        drop(stream.read(&mut [0; 1000]));
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n\r\n<root>"));
        while let Ok(length) = stream.write(&[b'a'; 8192]) {
            sent += length;
            assert!(sent < 64 << 20, "it is all taken");
        }
    }
    assert!(sent > 0, "nobody asked");
}
