//! miniupnpd on a router: UPnP-IGD, or PCP and NAT-PMP.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::{kind::Igd, netns::Netns};

/// Longest start.
const STARTS: Duration = Duration::from_secs(10);

pub(crate) struct Miniupnpd {
    child: Child,
}

impl Miniupnpd {
    /// Starts it on the router's `lan`, for mappings at this outer address,
    /// and waits until it answers.
    pub(crate) fn start(netns: &Netns, protocol: Igd, outer: Ipv4Addr, directory: &Path) -> Self {
        let yes_if = |own: Igd| if own == protocol { "yes" } else { "no" };
        let (upnp, pcp) = (yes_if(Igd::Upnp), yes_if(Igd::Pcp));
        let file = |suffix: &str| directory.join(format!("{}.{suffix}", netns.name()));
        let conf = format!(
            "ext_ifname=wan\next_ip={outer}\nlistening_ip=lan\nport=5000\n\
             enable_upnp={upnp}\nenable_natpmp={pcp}\nsecure_mode=yes\nsystem_uptime=no\n\
             upnp_table_name=lab\nupnp_nat_table_name=lab\n\
             uuid=00000000-0000-4000-8000-{:012x}\nnotify_interval=30\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            u32::from(outer)
        );
        fs::write(file("conf"), conf).unwrap();
        let log = File::create(file("log")).unwrap();
        let mut command = netns.command("miniupnpd");
        command.arg("-d").arg("-f").arg(file("conf")).arg("-P").arg(file("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut miniupnpd = Self { child: command.spawn().unwrap() };
        miniupnpd.wait(netns, &file("log"));
        miniupnpd
    }

    /// Until it has its socket: SSDP or PCP, by the table of UDP sockets.
    fn wait(&mut self, netns: &Netns, log: &Path) {
        let deadline = Instant::now() + STARTS;
        // Ports 1900 and 5351 as the kernel prints them.
        let listens = || {
            let sockets = netns.enter(|| fs::read_to_string("/proc/thread-self/net/udp")).unwrap_or_default();
            [":076C ", ":14E7 "].iter().any(|port| sockets.contains(port))
        };
        while !listens() {
            let ended = self.child.try_wait().unwrap();
            let said = || fs::read_to_string(log).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "miniupnpd ({ended:?}): {}", said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Miniupnpd {
    fn drop(&mut self) {
        // It removes its rules only on a gentle end; the router replaces them.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
