//! Direct connections with peers that are relayed.
//!
//! [`table`], with an [`entry`] for each, says when to exchange what with whom,
//! [`exchange`] does it on a stream of the relayed connection, [`plan`] says what
//! to do then, [`targets`] where, [`attempt`] when, and [`run`] does it: dials of
//! the swarm, which [`scope`] can give up.
//!
//! ```text
//!            A dialled                         B
//! 0          relayed connection up
//!            OFFER ──────────────────────────▶ relayed connection up
//! 1                                            packets to A's addresses
//!            ◀────────────────────────────────  ANSWER
//! 2          dials B's addresses
//!            SYNC ───────────────────────────▶
//! 3                                            answers the dial
//! 4          direct connection
//! ```
//!
//! The numbers count ways of a packet between the two.

mod attempt;
mod entry;
mod exchange;
mod own;
mod plan;
mod run;
mod scope;
mod table;
mod targets;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

pub(super) use exchange::{HEARD_QUEUE, Heard, PROTOCOL, STOCK};
pub(super) use own::Own;
pub(super) use run::Seen;
pub(super) use scope::{Scope, Scoped};
pub(super) use table::Punches;

/// Exchanges that run.
pub(super) struct Exchanges {
    /// One for each.
    slots: Arc<Semaphore>,
    heard: mpsc::Sender<Heard>,
}

impl Exchanges {
    pub(super) fn new(heard: mpsc::Sender<Heard>) -> Self {
        Self { slots: Arc::new(Semaphore::new(exchange::MAX_EXCHANGES)), heard }
    }
}
