//! Settings.

use std::path::PathBuf;

/// What the command line of `run` says; what it leaves out comes from the
/// environment, the file or the defaults.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Where identity and store live.
    pub state_dir: Option<PathBuf>,
    /// Multiaddrs to listen on; if any, they replace the configured ones.
    pub listen: Vec<String>,
    /// `known` or `open`.
    pub trust: Option<String>,
    /// Whether to look for peers on the local network.
    pub mdns: Option<bool>,
    /// A tracing filter.
    pub log: Option<String>,
    /// The gRPC socket.
    pub socket: Option<PathBuf>,
    /// The settings file.
    pub config: Option<PathBuf>,
}
