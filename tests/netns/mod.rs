//! Hosts and routers as network namespaces, for tests as root. Everything is
//! removed when a value is dropped.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::{fs::File, io::Write as _, process::Command, process::Stdio, thread};

use nix::sched::{CloneFlags, setns};

/// A network namespace with its loopback up.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// `Err` says why that is not possible here. Names of interfaces are at
    /// most 15 characters; those of namespaces are free.
    pub(crate) fn new(role: &str) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("network namespaces are made as root only".to_owned());
        }
        let namespace = Self { name: format!("p2pn-{role}-{:x}", rand::random::<u32>()) };
        run(&["ip", "netns", "add", &namespace.name])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Joins the two with a cable: interface `near` here, `far` there, both up.
    pub(crate) fn cable(&self, near: &str, other: &Self, far: &str) -> Result<(), String> {
        run(&[
            "ip",
            "link",
            "add",
            near,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            far,
            "netns",
            &other.name,
        ])?;
        self.ip(&["link", "set", near, "up"])?;
        other.ip(&["link", "set", far, "up"])
    }

    /// `ip` of iproute2 on this host.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<(), String> {
        run(&[&["ip", "-n", &self.name], args].concat())
    }

    /// A program on this host; its output.
    pub(crate) fn output(&self, args: &[&str]) -> Result<String, String> {
        output(&[&["ip", "netns", "exec", &self.name], args].concat())
    }

    /// To start a program on this host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Loads rules on this host.
    pub(crate) fn nft(&self, rules: &str) -> Result<(), String> {
        let mut nft = self
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| format!("no nft command: {error}"))?;
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        let done = nft.wait().unwrap();
        done.success().then_some(()).ok_or_else(|| "nft refuses the rules".to_owned())
    }

    /// Runs a future on this host: its sockets are of this namespace.
    pub(crate) fn run<F: Future<Output = ()>>(&self, future: impl FnOnce() -> F + Send) {
        run_in(&self.name, future);
    }
}

/// Runs a future in the namespace of this name.
pub(crate) fn run_in<F: Future<Output = ()>>(name: &str, future: impl FnOnce() -> F + Send) {
    let inside = || {
        let namespace = File::open(format!("/run/netns/{name}")).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future());
    };
    let ended = thread::scope(|scope| scope.spawn(inside).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(run(&["ip", "netns", "delete", &self.name]));
    }
}

fn run(args: &[&str]) -> Result<(), String> {
    output(args).map(drop)
}

fn output(args: &[&str]) -> Result<String, String> {
    match Command::new(args[0]).args(&args[1..]).output() {
        Err(error) => Err(format!("no {} command: {error}", args[0])),
        Ok(done) if done.status.success() => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        Ok(done) => Err(format!("{}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim())),
    }
}
