//! The command line of the lab.

use clap::{Parser, Subcommand};

use crate::kind::Kind;

/// Networks of namespaces with routers of every kind, and daemons in them.
/// Needs root, iproute2, nftables, conntrack and miniupnpd.
#[derive(Parser)]
#[command(name = "natlab")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) mode: Mode,
}

#[derive(Subcommand)]
pub(crate) enum Mode {
    /// Probes each kind of site with plain sockets and compares it with what
    /// it should be.
    Prove {
        /// Only these kinds.
        #[arg(long, value_delimiter = ',')]
        only: Vec<Kind>,
        /// Labs side by side.
        #[arg(long, default_value_t = 4)]
        labs: usize,
    },
    /// Builds one site of each of these kinds, says where, and keeps them until
    /// interrupted, to look around by `ip netns exec`.
    Hold {
        /// What to build.
        #[arg(required = true)]
        kinds: Vec<Kind>,
        /// Hosts of a site behind a router.
        #[arg(long, default_value_t = 1)]
        hosts: u8,
        /// Milliseconds between a site and the middle of the internet.
        #[arg(long, default_value_t = 15)]
        delay: u64,
    },
    /// Removes what labs left behind that were killed.
    Clean,
}
