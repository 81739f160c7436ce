//! The composition root.

/// Why the daemon did not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings are wrong; the text says which and how to cure it.
    #[error("{0}")]
    Settings(String),
    /// Something else; the text says what to do.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    /// Whether the settings are to blame, which has an exit status of its own.
    #[must_use]
    pub fn is_settings(&self) -> bool {
        matches!(self, Self::Settings(_))
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// When it cannot start, or cannot go on.
pub fn run(flags: crate::config::Flags) -> Result<(), RunError> {
    Err(RunError::Failed(format!("this build has no daemon to run with {flags:?}")))
}
