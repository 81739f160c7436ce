//! Notices that the host's network changed: an interface up or down, an
//! address or a default route that came or went, and a resume from sleep.
//!
//! ```text
//! netlink notices ──▶ task.rs ── quiet for 250 ms ──▶ kernel.rs reads all
//! boot clock, sleep.rs ─┘                               │
//!                            state.rs compares ◀────────┘ ──▶ NetworkChange
//! ```
//!
//! A notice only says *when* to look: what is compared is the whole state,
//! read again, so that a lost notice or a burst of them costs nothing.

mod kernel;
mod sleep;
mod state;
mod task;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use state::{Gateway, Interface, InterfaceAddress, NetState, NetworkChange};

/// Changes that wait for their reader. While one waits, later ones are folded
/// into the next.
const CHANGES: usize = 1;

/// The running watch.
#[derive(Debug)]
pub struct NetWatch {
    /// The network as it is; the first state was read before this was made.
    pub state: watch::Receiver<NetState>,
    /// What changed, after the first state. A slow reader gets fewer and
    /// larger ones, and misses nothing.
    pub changes: mpsc::Receiver<NetworkChange>,
}

/// Why the network cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum NetWatchError {
    /// The system gives no netlink socket.
    #[error("the kernel's notices of network changes cannot be had: {0}")]
    Socket(std::io::Error),
    /// The kernel did not say what interfaces and routes there are.
    #[error("the kernel does not tell the host's {what}: {cause}")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// What it answered.
        cause: String,
    },
}

/// Starts to watch. Ends when `stop` is cancelled.
///
/// # Errors
/// The system gives no netlink socket, or no answer on it.
pub async fn spawn(stop: CancellationToken) -> Result<NetWatch, NetWatchError> {
    let kernel = kernel::Kernel::watch()?;
    let first = kernel.read().await?;
    let (state, state_out) = watch::channel(first);
    let (changes, changes_out) = mpsc::channel(CHANGES);
    tokio::spawn(task::run(kernel, state, changes, stop));
    Ok(NetWatch { state: state_out, changes: changes_out })
}

/// Reads the network once, without watching it.
///
/// # Errors
/// As [`spawn`].
pub async fn read() -> Result<NetState, NetWatchError> {
    kernel::Kernel::open()?.read().await
}
