//! Signals that end a command.

use std::future::poll_fn;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::errors::Failure;

/// Signals being waited for, instead of dying of them.
pub(super) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Ctrl-C, and being told to end.
    pub(super) fn ending() -> Result<Self, Failure> {
        Self::of(&[SignalKind::interrupt(), SignalKind::terminate()])
    }

    /// The above, and the terminal's going away.
    pub(super) fn all() -> Result<Self, Failure> {
        Self::of(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()])
    }

    fn of(kinds: &[SignalKind]) -> Result<Self, Failure> {
        let registered = kinds.iter().map(|&kind| Ok((kind.as_raw_value(), signal(kind)?))).collect::<Result<_, _>>();
        registered
            .map(Self)
            .map_err(|error: std::io::Error| Failure::Failed(format!("cannot wait for signals: {error}")))
    }

    /// Waits for the first of them. Can be dropped and called again.
    pub(super) async fn wait(&mut self) -> Failure {
        let number = poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        });
        Failure::Signal(number.await)
    }
}
