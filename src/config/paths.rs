//! Where state and socket are when nobody says so.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{Environment, Flags, Origin, Problem, raw::Text};

/// Most bytes of a Unix socket's path: what the kernel's `sockaddr_un` holds
/// beside the terminating zero.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

const NAME: &str = "p2p-node";
const SOCKET: &str = "p2p-node.sock";

/// An absolute path from a variable; the first, where systemd lists several.
pub(super) fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name)?;
    let first = value.as_bytes().split(|byte| *byte == b':').next()?;
    let path = Path::new(std::ffi::OsStr::from_bytes(first));
    // The XDG specification says to ignore relative ones.
    path.is_absolute().then(|| path.to_owned())
}

/// The directory of identity and store.
pub(super) fn state_dir(
    flags: &Flags,
    setting: &Text,
    env: &Environment,
    problems: &mut Vec<Problem>,
) -> Option<PathBuf> {
    let named = flags.state_dir.clone().or_else(|| setting.as_ref().map(|written| PathBuf::from(&written.value)));
    if let Some(path) = named {
        if path.as_os_str().is_empty() {
            let origin = match (&flags.state_dir, setting) {
                (None, Some(written)) => written.origin.clone(),
                _ => Origin::Flag,
            };
            let what = "is empty; name a directory, or leave it out for the default".to_owned();
            problems.push(Problem { key: "state_dir".to_owned(), value: Some(String::new()), origin, what });
            return None;
        }
        return Some(env.current_dir.as_ref().map_or_else(|| path.clone(), |dir| dir.join(&path)));
    }
    let default = default_state_dir(env);
    if default.is_none() {
        let what = "there is no home directory to put it in; set --state-dir, state_dir or P2P_NODE_STATE_DIR";
        let key = "state_dir".to_owned();
        problems.push(Problem { key, value: None, origin: Origin::Default, what: what.to_owned() });
    }
    default
}

fn default_state_dir(env: &Environment) -> Option<PathBuf> {
    if let Some(dir) = &env.state_directory {
        return Some(dir.clone());
    }
    if let Some(dir) = &env.xdg_state_home {
        return Some(dir.join(NAME));
    }
    if env.uid == 0 {
        return Some(Path::new("/var/lib").join(NAME));
    }
    env.home.as_ref().map(|home| home.join(".local/state").join(NAME))
}

/// The socket of the API.
pub(super) fn socket(flags: &Flags, env: &Environment, problems: &mut Vec<Problem>) -> Option<PathBuf> {
    let (path, origin) = match &flags.socket {
        Some(path) => (Some(path.clone()), Origin::Flag),
        None => (default_socket(env), Origin::Default),
    };
    let mut refuse = |value: Option<String>, what: String| {
        problems.push(Problem { key: "socket".to_owned(), value, origin: origin.clone(), what });
        None
    };
    let Some(path) = path else {
        let what =
            "neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; name the socket with --socket or P2P_NODE_SOCKET";
        return refuse(None, what.to_owned());
    };
    let len = path.as_os_str().len();
    let value = Some(path.display().to_string());
    if len == 0 {
        return refuse(value, "is empty; name a file".to_owned());
    }
    if len > MAX_SOCKET_PATH_BYTES {
        let what = format!(
            "has {len} bytes, over the {MAX_SOCKET_PATH_BYTES} that a Unix socket's path may have; \
             name a shorter one with --socket or P2P_NODE_SOCKET"
        );
        return refuse(value, what);
    }
    Some(path)
}

fn default_socket(env: &Environment) -> Option<PathBuf> {
    if let Some(dir) = &env.runtime_directory {
        return Some(dir.join(SOCKET));
    }
    if let Some(dir) = &env.xdg_runtime_dir {
        return Some(dir.join(NAME).join(SOCKET));
    }
    (env.uid == 0).then(|| Path::new("/run").join(NAME).join(SOCKET))
}
