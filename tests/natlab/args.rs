//! The command line of the lab.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand, ValueEnum as _};

use crate::{expected, faults::Fault, kind::Kind, matrix::Shared};

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
    /// Proves all kinds and connects a few pairs: what cargo's tests run.
    Check,
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
    /// Connects daemons of every pair of kinds through two relays, and says in
    /// how many runs that became a direct connection, and how fast.
    Matrix {
        /// Runs of each pair.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Milliseconds between a peer and the middle of the internet, each
        /// way: between two peers it is twice that.
        #[arg(long, default_value_t = 15.0)]
        delay: f64,
        /// The same between a relay and the middle; that of a peer if not
        /// said.
        #[arg(long)]
        relay_delay: Option<f64>,
        /// Percent of packets lost between two peers, each way.
        #[arg(long, default_value_t = 0.0)]
        loss: f64,
        /// Labs side by side.
        #[arg(long, default_value_t = 3)]
        labs: usize,
        /// Only these pairs, such as "symmetric:upnp"; a kind alone stands for
        /// its pairs with all.
        #[arg(long, value_delimiter = ',')]
        only: Vec<Selection>,
        /// Both peers behind one router, each kind that is one.
        #[arg(long)]
        shared: Option<Shared>,
        /// Write all figures there.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Changes the network under a steady stream of durable messages, and says
    /// after how many seconds they flow again, and whether all came once.
    Faults {
        /// Only these.
        #[arg(long, value_delimiter = ',')]
        only: Vec<Fault>,
        /// Runs of each case.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// As of `matrix`.
        #[arg(long, default_value_t = 15.0)]
        delay: f64,
        /// Seconds that a line is out.
        #[arg(long, default_value_t = 60)]
        out: u64,
        /// Labs side by side.
        #[arg(long, default_value_t = 3)]
        labs: usize,
        /// Between these, instead of the pairs chosen for each fault.
        #[arg(long, value_delimiter = ',')]
        pairs: Vec<Selection>,
        /// Keeps the daemons' logs of each run here, with the moment of the
        /// fault.
        #[arg(long)]
        logs: Option<PathBuf>,
        /// What the daemons log.
        #[arg(long, default_value = "info")]
        log: String,
    },
    /// Many daemons with one relay: each sends to every other by its id.
    Crowd {
        /// Daemons beside the relay.
        #[arg(long, default_value_t = 60)]
        nodes: usize,
        /// Where each is.
        #[arg(long, default_value = "port-restricted")]
        kind: Kind,
        /// As of `matrix`.
        #[arg(long, default_value_t = 15.0)]
        delay: f64,
    },
    /// Has go-libp2p as the relay between each pair, then as the second of it.
    Interop {
        /// As `--only` of `matrix`.
        #[arg(default_value = "port-restricted:port-restricted", value_delimiter = ',')]
        pairs: Vec<Selection>,
        /// As of `matrix`.
        #[arg(long, default_value_t = 15.0)]
        delay: f64,
    },
    /// Prints what `netcheck` and `explain` tell the user of the first of each
    /// pair.
    Netcheck {
        /// As `--only` of `matrix`.
        #[arg(required = true)]
        pairs: Vec<Selection>,
        /// As of `matrix`.
        #[arg(long, default_value_t = 15.0)]
        delay: f64,
        /// Relays that both know.
        #[arg(long, default_value_t = 2)]
        relays: usize,
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

/// A pair of the matrix, or a kind with all others.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    kind: Kind,
    other: Option<Kind>,
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, other) = text.split_once(':').map_or((text, None), |(kind, other)| (kind, Some(other)));
        let other = other.map(|name| Kind::from_str(name, false)).transpose()?;
        Ok(Self { kind: Kind::from_str(kind, false)?, other })
    }
}

/// The pairs selected; all of the matrix if none is. A pair may name kinds that
/// are not in the matrix. Behind one router, both are of the same kind.
pub(crate) fn pairs(only: &[Selection], shared: Option<Shared>) -> Vec<(Kind, Kind)> {
    if let Some(shared) = shared {
        let kinds = expected::MATRIX.into_iter().filter(|kind| kind.translates());
        let fits = |kind: &Kind| shared == Shared::Lan || kind.takes_hairpin();
        let chosen = |kind: &Kind| only.is_empty() || only.iter().any(|selection| selection.kind == *kind);
        return kinds.filter(fits).filter(chosen).map(|kind| (kind, kind)).collect();
    }
    let mut pairs = Vec::new();
    for Selection { kind, other } in only {
        match other {
            Some(other) => pairs.push((*kind, *other)),
            None => pairs.extend(expected::pairs().into_iter().filter(|(a, b)| [a, b].contains(&kind))),
        }
    }
    if only.is_empty() { expected::pairs() } else { pairs }
}

/// Milliseconds of the command line.
pub(crate) fn delay(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1000.0)
}
