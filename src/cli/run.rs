//! `run`: the daemon itself.

use std::path::PathBuf;

use clap::Args;

use super::{args::Global, errors::Failure};
use crate::{config::Flags, daemon};

const EXAMPLES: &str = "\
Settings come from defaults, then the settings file, then P2P_NODE_* variables,
then these flags.

Examples:
  p2p-node run
  p2p-node run --listen /ip4/0.0.0.0/udp/4001/quic-v1 --log debug
  p2p-node run --relay /dns4/relay.example.org/udp/4001/quic-v1/p2p/12D3KooW...
  p2p-node run --serve on --external /ip4/203.0.113.1/udp/4001/quic-v1
  p2p-node run --state-dir /tmp/a --socket /tmp/a.sock --no-mdns";

/// Flags of `run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Where the node keeps its key and its messages
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Listen here instead of the default addresses; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// An address at which this node is reachable from outside, such as that of
    /// a forwarded port; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    external: Vec<String>,
    /// A node to ask for others; ends in /p2p/PEER_ID; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// A node through which others reach this one when it is behind a NAT;
    /// asked for others too; ends in /p2p/PEER_ID; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    relay: Vec<String>,
    /// Serve others as relay: trusted peers if publicly reachable, everyone, or
    /// nobody
    #[arg(long, value_name = "WHOM", value_parser = ["auto", "on", "off"])]
    serve: Option<String>,
    /// Take messages from peers in the address book, or from everyone
    #[arg(long, value_name = "WHOM", value_parser = ["known", "open"])]
    trust: Option<String>,
    /// Do not look for peers on the local network
    #[arg(long)]
    no_mdns: bool,
    /// Do not ask the router to forward ports to this node
    #[arg(long)]
    no_port_mapping: bool,
    /// What to log, such as "info" or "p2p_node=debug"
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// End when the process of this id, which started this one, ends.
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<i32>,
}

impl RunArgs {
    fn into_flags(self, global: &Global) -> Flags {
        Flags {
            state_dir: self.state_dir,
            listen: self.listen,
            external: self.external,
            bootstrap: self.bootstrap,
            relay: self.relay,
            serve: self.serve,
            trust: self.trust,
            mdns: self.no_mdns.then_some(false),
            port_mapping: self.no_port_mapping.then_some(false),
            log: self.log,
            socket: global.socket(),
            config: global.config(),
        }
    }
}

/// Runs the daemon until it is told to stop.
pub(super) fn run(args: RunArgs, global: Global) -> Result<(), Failure> {
    if let Some(parent) = args.exit_with_parent {
        tie_to_parent(parent)?;
    }
    daemon::run(&args.into_flags(&global)).map_err(|error| {
        let text = error.to_string();
        if error.is_settings() { Failure::Usage(text) } else { Failure::Failed(text) }
    })
}

/// Has the kernel kill this process when its parent dies, however it dies.
#[cfg(target_os = "linux")]
fn tie_to_parent(parent: i32) -> Result<(), Failure> {
    use nix::{
        sys::{prctl, signal::Signal},
        unistd::getppid,
    };

    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| Failure::Failed(format!("cannot follow the parent process: {error}")))?;
    // It may have died before the kernel knew.
    if getppid().as_raw() != parent {
        return Err(Failure::Failed(format!("process {parent} is not the parent of this one")));
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn tie_to_parent(_parent: i32) -> Result<(), Failure> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn flags(line: &str) -> Flags {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        args.into_flags(&cli.global)
    }

    #[test]
    fn flags_reach_the_settings() {
        let flags = flags(
            "p2p-node --config /c run --state-dir /s --listen a --listen b --trust open --no-mdns --no-port-mapping --log info",
        );
        assert_eq!(flags.config, Some(PathBuf::from("/c")));
        assert_eq!(flags.state_dir, Some(PathBuf::from("/s")));
        assert_eq!(flags.listen, ["a", "b"]);
        assert_eq!(flags.trust.as_deref(), Some("open"));
        assert_eq!((flags.mdns, flags.port_mapping), (Some(false), Some(false)));
        assert_eq!(flags.log.as_deref(), Some("info"));
    }

    #[test]
    fn absent_flags_leave_the_settings_alone() {
        let flags = flags("p2p-node run");
        assert!(flags.state_dir.is_none() && flags.listen.is_empty() && flags.trust.is_none());
        assert!(flags.mdns.is_none() && flags.port_mapping.is_none() && flags.log.is_none());
    }
}
