//! Settings, in layers: defaults, then a file, then the environment, then
//! flags. Raw settings are read first and validated second; every problem is
//! collected, so that one look at the error is enough.

mod error;
mod paths;
mod raw;
mod settings;

use std::path::{Path, PathBuf};

use figment::{
    Figment,
    providers::{Env, Format, Json, Toml},
    value::Dict,
};

use self::raw::{EnvLayer, FlagLayer};
pub use self::{
    error::{ConfigError, Origin, Problem},
    paths::MAX_SOCKET_PATH_BYTES,
    raw::Flags,
    settings::{Limits, ListenAddress, Settings},
};

/// The file read when none is named. It need not exist.
pub const SYSTEM_CONFIG: &str = "/etc/p2p-node/config.toml";

/// What begins the name of each environment variable that is a setting.
pub const ENV_PREFIX: &str = "P2P_NODE_";

/// What is read from the process, so that loading depends on nothing else.
/// Variables that are unset, empty or (for the paths) not absolute are `None`.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The user that the daemon runs as.
    pub uid: u32,
    /// The name of this host.
    pub host_name: Option<String>,
    /// What relative paths are relative to.
    pub current_dir: Option<PathBuf>,
    /// `$HOME`
    pub home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`
    pub xdg_state_home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `$STATE_DIRECTORY`, the first path of it; systemd sets it.
    pub state_directory: Option<PathBuf>,
    /// `$RUNTIME_DIRECTORY`, the first path of it; systemd sets it.
    pub runtime_directory: Option<PathBuf>,
    /// Variables that begin with [`ENV_PREFIX`]: the key of the setting
    /// ("limits.max_inbox_bytes") and the value.
    pub settings: Vec<(String, String)>,
    /// [`SYSTEM_CONFIG`], except in tests.
    pub system_config: PathBuf,
}

impl Environment {
    /// Reads the process's own.
    #[must_use]
    pub fn capture() -> Self {
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            host_name: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
            current_dir: std::env::current_dir().ok(),
            home: paths::variable("HOME"),
            xdg_state_home: paths::variable("XDG_STATE_HOME"),
            xdg_runtime_dir: paths::variable("XDG_RUNTIME_DIR"),
            state_directory: paths::variable("STATE_DIRECTORY"),
            runtime_directory: paths::variable("RUNTIME_DIRECTORY"),
            // The first two are flags with a variable, not settings; the third
            // tells the client packages which executable to start.
            settings: Env::prefixed(ENV_PREFIX)
                .ignore(&["socket", "config", "bin"])
                .split("__")
                .iter()
                .map(|(key, value)| (key.into_string(), value))
                .collect(),
            system_config: SYSTEM_CONFIG.into(),
        }
    }
}

/// Loads and validates the settings.
///
/// # Errors
/// Everything that is wrong with them, each with where it was set and what to
/// do about it.
pub fn load(flags: &Flags, env: &Environment) -> Result<Settings, ConfigError> {
    let layers = file(flags, env)?.merge(EnvLayer(&env.settings)).merge(FlagLayer(flags));
    // Fails when the file is no TOML or JSON.
    layers.extract::<Dict>().map_err(ConfigError::unreadable)?;
    let mut problems = Vec::new();
    let raw = raw::read(&layers, &mut problems);
    let settings = settings::validate(raw, flags, env, &mut problems);
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(ConfigError::new(problems)),
    }
}

/// The layer of the file: the one named, which must exist, or the system's.
fn file(flags: &Flags, env: &Environment) -> Result<Figment, ConfigError> {
    let (path, named) = match &flags.config {
        Some(path) => (path.as_path(), true),
        None => (env.system_config.as_path(), false),
    };
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(ConfigError::file(path, "is not a file; name a .toml or .json file with --config")),
        Err(_) if !named && !exists(path) => return Ok(Figment::new()),
        Err(error) => {
            return Err(ConfigError::file(path, &format!("cannot be read: {error}; check the path and its mode")));
        }
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Ok(Figment::from(Toml::file_exact(path))),
        Some("json") => Ok(Figment::from(Json::file_exact(path))),
        _ => Err(ConfigError::file(path, "is neither TOML nor JSON by its name; it must end in .toml or .json")),
    }
}

/// Whether there is something at a path, even if it may not be looked at.
fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(true)
}
