//! One network namespace, removed when it goes out of scope.

use std::{fs::File, path::PathBuf, process::Command};

use nix::sched::{CloneFlags, setns};

use crate::sys;

/// Where `ip netns` keeps the names.
pub(crate) const DIRECTORY: &str = "/run/netns";

pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn new(name: &str) -> Self {
        sys::run("ip", &["netns", "add", name], "");
        let netns = Self { name: name.to_owned() };
        // Addresses are used at once, without a search for doubles.
        netns.set(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")]);
        netns.ip("link set lo up");
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs this on a thread inside the namespace. Sockets opened there stay
    /// there, whoever uses them later.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let file = File::open(PathBuf::from(DIRECTORY).join(&self.name)).unwrap();
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        let outcome = std::thread::scope(|scope| scope.spawn(inside).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` on these lines, each a command.
    pub(crate) fn ip(&self, lines: &str) {
        self.run("ip", &["-batch", "-"], lines);
    }

    pub(crate) fn nft(&self, rules: &str) {
        self.run("nft", &["-f", "-"], rules);
    }

    pub(crate) fn run(&self, program: &str, args: &[&str], input: &str) -> String {
        self.enter(|| sys::run(program, args, input))
    }

    /// A command that runs inside, with a /sys of its own as well.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Sets kernel parameters, by their path below /proc/sys/net.
    pub(crate) fn set(&self, parameters: &[(&str, &str)]) {
        self.enter(|| {
            for (name, value) in parameters {
                let path = PathBuf::from("/proc/sys/net").join(name);
                std::fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        });
    }

    /// Makes it forward packets as a router: without redirects, and without a
    /// look at where a packet's source is.
    pub(crate) fn forward(&self) {
        self.set(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ]);
        // Only where the kernel filters what bridges carry.
        self.enter(|| {
            for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
                drop(std::fs::write(PathBuf::from("/proc/sys/net/bridge").join(name), "0"));
            }
        });
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(why) = sys::attempt("ip", &["netns", "del", &self.name], "") {
            eprintln!("natlab: {why}");
        }
    }
}

/// Joins two namespaces by a cable.
pub(crate) fn cable(a: (&Netns, &str), b: (&Netns, &str)) {
    let line = format!("link add {} netns {} type veth peer name {} netns {}", a.1, a.0.name(), b.1, b.0.name());
    sys::run("ip", &["-batch", "-"], &line);
}
