//! What can be typed.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::OsStringValueParser};

use super::{
    explain, join, listen::ListenArgs, netcheck, peers, queue::QueueCommand, reach, run::RunArgs, send::SendArgs, shell,
};

const EXAMPLES: &str = "\
Examples:
  p2p-node demo                            see it work, without any setup
  p2p-node run                             start a node in this terminal
  p2p-node status                          what is my peer id, am I connected?
  p2p-node netcheck                        can others reach this node?
  p2p-node invite                          let another node join this one...
  p2p-node join MFRGG...                   ...over there
  p2p-node send pi 'hello'                 send it a message
  p2p-node listen                          print what arrives

Exit status: 0 done, 1 the request failed, 64 bad usage or configuration,
69 no daemon at the socket, 77 no permission on the socket.";

/// Messages between peers: the node and its command line.
#[derive(Debug, Parser)]
#[command(name = "p2p-node", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags of every command, before or after its name.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// The daemon's socket [default: $XDG_RUNTIME_DIR/p2p-node/p2p-node.sock,
    /// else /run/p2p-node/p2p-node.sock]
    #[arg(long, global = true, value_name = "PATH", env = "P2P_NODE_SOCKET", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new())]
    socket: Option<OsString>,
    /// The daemon's settings file, TOML or JSON [default:
    /// /etc/p2p-node/config.toml, if there]
    #[arg(long, global = true, value_name = "FILE", env = "P2P_NODE_CONFIG", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new())]
    config: Option<OsString>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Global {
    /// The socket that was named. An empty name is none: that is how a shell
    /// or a unit file unsets a variable.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        non_empty(self.socket.as_ref())
    }

    /// The settings file that was named.
    pub(super) fn config(&self) -> Option<PathBuf> {
        non_empty(self.config.as_ref())
    }
}

fn non_empty(value: Option<&OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the node in the foreground
    Run(RunArgs),
    #[command(flatten)]
    Client(ClientCommand),
    /// Print the version
    Version,
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Write the man pages into a directory; for packages
    #[command(hide = true)]
    Man(shell::ManArgs),
}

/// Commands that talk to a daemon.
#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// See two nodes at work on this machine, without any setup
    Demo,
    /// Show the node's own condition
    Status,
    /// Show all peers: known, connected and seen on the local network
    Peers(peers::PeersArgs),
    /// Let another node join: print a ticket for it
    Invite(join::InviteArgs),
    /// Join the node that made a ticket
    Join(join::JoinArgs),
    /// Send a message to a peer
    Send(SendArgs),
    /// Print messages as they arrive
    Listen(ListenArgs),
    /// Look after messages that are on their way out
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Measure the round trip to a peer
    Ping(reach::PingArgs),
    /// Connect to a peer now
    Connect(reach::ConnectArgs),
    /// Look for a peer by its id
    Find(explain::FindArgs),
    /// Tell why a peer is reached as it is, and what would change that
    Explain(explain::ExplainArgs),
    /// Tell whether others can reach this node, and what stands in the way
    #[command(after_help = netcheck::HELP)]
    Netcheck,
    /// Close all connections to a peer
    Disconnect(reach::DisconnectArgs),
    /// Keep the address book: who is known and trusted
    #[command(subcommand)]
    Peer(peers::PeerCommand),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn globals_work_on_both_sides() {
        for line in ["p2p-node --socket /x --json status", "p2p-node status --socket /x --json"] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.global.socket(), Some(PathBuf::from("/x")), "{line}");
            assert!(cli.global.json, "{line}");
        }
        let cli = parse("p2p-node peer ls --json").unwrap();
        assert!(cli.global.json);
    }

    #[test]
    fn empty_socket_is_none() {
        let cli = Cli::try_parse_from(["p2p-node", "--socket", "", "status"]).unwrap();
        assert_eq!(cli.global.socket(), None);
    }

    #[test]
    fn fixed_command_lines_parse() {
        for line in [
            "p2p-node run --state-dir /s --listen /ip4/0.0.0.0/tcp/1 --listen /ip4/0.0.0.0/tcp/2 --trust open --no-mdns --no-port-mapping --log info --external /ip4/1.2.3.4/tcp/1 --bootstrap /ip4/1.2.3.4/tcp/1/p2p/x --relay /ip4/1.2.3.4/tcp/1/p2p/x --serve on",
            "p2p-node demo",
            "p2p-node peers --online --watch",
            "p2p-node ping pi --count 3",
            "p2p-node connect /ip4/127.0.0.1/tcp/1/p2p/x",
            "p2p-node disconnect pi",
            "p2p-node find pi",
            "p2p-node explain pi",
            "p2p-node netcheck",
            "p2p-node send pi hello --path any",
            "p2p-node send pi hello --path prefer-direct",
            "p2p-node send pi hello --path direct-only",
            "p2p-node send pi hello --type t --channel c --wait queued --timeout 10s --ttl 7d --id 1 --ephemeral --reply-to 2 --meta a=b --meta c=d=e",
            "p2p-node send pi --file /x --wait stored",
            "p2p-node listen --channel c --consumer n --max 3 --peek",
            "p2p-node invite",
            "p2p-node invite --expires 10m --alias laptop",
            "p2p-node join MFRGG --alias pi",
            "p2p-node join MFRGG ABC",
            "p2p-node join -",
            "p2p-node queue ls --peer pi --channel c",
            "p2p-node queue rm 1 --peer pi --channel c",
            "p2p-node peer add x --alias a --address /ip4/1.2.3.4/tcp/1 --address /ip4/1.2.3.4/tcp/2 --pinned",
            "p2p-node peer rm x",
            "p2p-node peer ls",
            "p2p-node peer block x",
            "p2p-node version",
            "p2p-node completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err().map(|error| error.to_string()));
        }
    }

    #[test]
    fn bad_command_lines_are_refused() {
        for line in [
            "p2p-node",
            "p2p-node nothing",
            "p2p-node run --trust maybe",
            "p2p-node send",
            "p2p-node invite --expires soon",
            "p2p-node join",
            "p2p-node send pi hello --file /x",
            "p2p-node send pi hello --wait consumed",
            "p2p-node send pi hello --meta novalue",
            "p2p-node send pi hello --timeout soon",
            "p2p-node send pi hello --path relayed",
            "p2p-node explain",
            "p2p-node listen --max 0",
            "p2p-node ping pi --count 0",
            "p2p-node status extra",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
