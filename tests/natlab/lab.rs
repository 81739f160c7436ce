//! A lab: an internet of its own with sites around it. Several stand side by
//! side on one machine.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::{
    forwarder::{self, Forwarder},
    janitor,
    line::Lines,
    netns::Netns,
    site::{Site, Spec},
};

pub(crate) struct Lab {
    core: Arc<Core>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { core: Arc::new(Core::new()) }
    }

    /// Builds a site; it goes with its last user.
    pub(crate) fn site(&self, spec: Spec) -> Site {
        Site::new(&self.core, spec)
    }

    /// Where files of this lab belong.
    pub(crate) fn directory(&self) -> PathBuf {
        self.core.directory.clone()
    }

    /// Packets with a source or destination that no site has, and packets
    /// dropped because too many were under way.
    pub(crate) fn troubles(&self) -> (u64, u64) {
        let lines = &self.core.lines;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        (read(&lines.strays), read(&lines.overflows))
    }
}

/// The internet between the sites.
pub(crate) struct Core {
    pub(crate) name: String,
    // Ended before the namespace goes.
    _forwarder: Forwarder,
    pub(crate) netns: Netns,
    pub(crate) lines: Arc<Lines>,
    pub(crate) directory: PathBuf,
    numbers: Mutex<BTreeSet<u8>>,
}

impl Core {
    fn new() -> Self {
        let name = janitor::lab_name();
        let netns = Netns::new(&format!("{name}-core"));
        netns.forward();
        let lines = Arc::new(Lines::new());
        let forwarder = Forwarder::start(&netns, Arc::clone(&lines));
        // What comes from a site goes to the forwarder, what comes from there
        // to a site; addresses that nobody has are silent.
        let device = forwarder::DEVICE;
        netns.ip(&format!("link set {device} up txqueuelen 10000"));
        for (family, all) in [("-4", "128.66.0.0/16"), ("-6", "3fff::/20")] {
            let lines = format!(
                "rule add iif {device} lookup main priority 10\nrule add lookup 100 priority 20\n\
                 route add default dev {device} table 100\nroute add blackhole {all}\n"
            );
            netns.run("ip", &[family, "-batch", "-"], &lines);
        }
        let directory = janitor::directory(&name);
        Self { name, _forwarder: forwarder, netns, lines, directory, numbers: Mutex::default() }
    }

    /// Sends what is for a site's new address to it, and what is for the old
    /// one nowhere.
    pub(crate) fn route_v4(&self, site: u8, old: Ipv4Addr, new: Ipv4Addr) {
        self.netns.ip(&format!("route del {old} dev site{site}\nroute add {new} dev site{site}"));
    }

    pub(crate) fn take_number(&self) -> u8 {
        let mut numbers = self.numbers.lock().unwrap();
        let number = (1..=254).find(|number| !numbers.contains(number)).expect("a lab has room for 254 sites");
        numbers.insert(number);
        number
    }

    /// The site is going. Its line goes now; a namespace takes its time.
    pub(crate) fn release_number(&self, number: u8) {
        self.netns.ip(&format!("link del site{number}"));
        self.numbers.lock().unwrap().remove(&number);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
