//! Where the daemon's socket is, seen from a client.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Where the system's daemon listens.
const SYSTEM: &str = "/run/p2p-node/p2p-node.sock";

/// The socket to use: the one named, else the user's own if there is one, else
/// the system's.
pub(super) fn find(named: Option<PathBuf>) -> PathBuf {
    choose(named, std::env::var_os("XDG_RUNTIME_DIR"), Path::exists)
}

fn choose(named: Option<PathBuf>, runtime_dir: Option<OsString>, exists: impl Fn(&Path) -> bool) -> PathBuf {
    if let Some(named) = named {
        return named;
    }
    runtime_dir
        .map(|dir| Path::new(&dir).join("p2p-node/p2p-node.sock"))
        // A relative directory is invalid by the XDG specification.
        .filter(|path| path.is_absolute() && exists(path))
        .unwrap_or_else(|| PathBuf::from(SYSTEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_socket_wins() {
        assert_eq!(choose(Some("/a".into()), Some("/run/user/1".into()), |_| true), Path::new("/a"));
    }

    #[test]
    fn the_users_own_comes_before_the_systems() {
        let own = Path::new("/run/user/1/p2p-node/p2p-node.sock");
        assert_eq!(choose(None, Some("/run/user/1".into()), |path| path == own), own);
        assert_eq!(choose(None, Some("/run/user/1".into()), |_| false), Path::new(SYSTEM));
        assert_eq!(choose(None, None, |_| true), Path::new(SYSTEM));
    }

    #[test]
    fn an_unset_or_relative_directory_is_ignored() {
        assert_eq!(choose(None, Some("".into()), |_| true), Path::new(SYSTEM));
        assert_eq!(choose(None, Some("run".into()), |_| true), Path::new(SYSTEM));
    }
}
