//! From a signal to an orderly end.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process that a signal ended: 128 + its number.
const STATUS_OF_SIGNAL: i32 = 128;

/// The end of the process, asked for by SIGTERM or SIGINT.
#[derive(Debug, Clone)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Cancelled by the first signal.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

/// Handles SIGTERM and SIGINT from now on. The first one cancels the token; a
/// second one ends the process at once, with status 143 or 130, even if no
/// task gets to run. To be called once, within the runtime.
///
/// # Errors
/// The system refuses the handlers.
pub fn install() -> io::Result<Shutdown> {
    let signalled = Arc::new(AtomicBool::new(false));
    // Handlers run in the order of registration: the first signal finds the
    // flag unset by both.
    for number in [SIGTERM, SIGINT] {
        flag::register_conditional_shutdown(number, STATUS_OF_SIGNAL + number, Arc::clone(&signalled))?;
    }
    for number in [SIGTERM, SIGINT] {
        flag::register(number, Arc::clone(&signalled))?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: shutting down; a second one ends at once");
        cancelled.cancel();
    });
    Ok(Shutdown { token })
}
