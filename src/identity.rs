//! The node's key: an Ed25519 key pair in the state directory.
//!
//! The file holds the protobuf encoding that libp2p defines for private keys
//! (68 bytes), so that other libp2p tools read it. The peer id is derived from
//! the key: whoever has the file is this node, and losing it means becoming
//! another peer for everybody.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use libp2p::identity::{KeyType, Keypair};

/// Name of the key file in the state directory.
pub const KEY_FILE: &str = "identity.key";

/// Owner may read and write; nobody else anything.
const KEY_MODE: u32 = 0o600;
/// Bits of group and others.
const LOOSE_BITS: u32 = 0o077;
/// An Ed25519 key takes 68 bytes; anything far longer is not one and is not
/// read into memory.
const MAX_KEY_FILE_BYTES: u64 = 1024;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Others could read the key.
    #[error(
        "key file {path} has mode {mode:04o}: others can read or write the node's private key; run `chmod 600 {path}`"
    )]
    LooseMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is there and holds no key.
    #[error(
        "key file {path} does not hold an Ed25519 key ({cause}); restore it from a backup. Do not delete it lightly: without it the node gets a new peer id and every peer has to add it again"
    )]
    Corrupt {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

/// Loads the key of a state directory, or creates one on the first start.
///
/// # Errors
/// See [`IdentityError`]. A file that is there is never replaced.
pub fn load_or_create(state_dir: &Path) -> Result<Keypair, IdentityError> {
    let path = state_dir.join(KEY_FILE);
    match File::open(&path) {
        Ok(file) => load(file, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(state_dir, &path),
        Err(source) => Err(IdentityError::Io { action: "open key file", path, source }),
    }
}

fn load(file: File, path: &Path) -> Result<Keypair, IdentityError> {
    let failed = |source| IdentityError::Io { action: "read key file", path: path.to_owned(), source };
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & LOOSE_BITS != 0 {
        return Err(IdentityError::LooseMode { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    decode(&bytes).map_err(|cause| IdentityError::Corrupt { path: path.to_owned(), cause })
}

fn decode(bytes: &[u8]) -> Result<Keypair, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    if bytes.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(format!("it is longer than {MAX_KEY_FILE_BYTES} bytes"));
    }
    let keypair = Keypair::from_protobuf_encoding(bytes).map_err(|error| error.to_string())?;
    if keypair.key_type() != KeyType::Ed25519 {
        return Err(format!("it holds a key of type {}", keypair.key_type()));
    }
    Ok(keypair)
}

/// Writes a new key beside its place and links it there, so that a crash
/// leaves either no key file or a whole one, and a file that another process
/// made meanwhile is not replaced.
fn create(state_dir: &Path, path: &Path) -> Result<Keypair, IdentityError> {
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair
        .to_protobuf_encoding()
        .map_err(|error| IdentityError::Corrupt { path: path.to_owned(), cause: error.to_string() })?;
    let temporary = state_dir.join(format!("{KEY_FILE}.{}.tmp", std::process::id()));
    let result = write_and_link(&temporary, path, &bytes);
    // No longer needed once linked, nor after a failure.
    let _ = fs::remove_file(&temporary);
    match result {
        Ok(()) => sync_dir(state_dir).map(|()| keypair),
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            load_or_create(state_dir)
        }
        Err(error) => Err(error),
    }
}

fn write_and_link(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let failed = |action: &'static str| move |source| IdentityError::Io { action, path: temporary.to_owned(), source };
    let _ = fs::remove_file(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(KEY_MODE)
        .open(temporary)
        .map_err(failed("create key file"))?;
    file.write_all(bytes).map_err(failed("write key file"))?;
    file.sync_all().map_err(failed("write key file"))?;
    fs::hard_link(temporary, path).map_err(|source| IdentityError::Io {
        action: "create key file",
        path: path.to_owned(),
        source,
    })
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| IdentityError::Io {
        action: "write state directory",
        path: dir.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key_path(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join(KEY_FILE)
    }

    #[test]
    fn the_same_key_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        let second = load_or_create(dir.path()).unwrap();
        assert_eq!(first.public(), second.public());
    }

    #[test]
    fn a_new_key_is_private_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        assert_eq!(fs::metadata(key_path(&dir)).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_readable_key_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path()).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o644] {
            fs::set_permissions(key_path(&dir), fs::Permissions::from_mode(mode)).unwrap();
            let error = load_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
            assert!(error.contains(&format!("chmod 600 {}", key_path(&dir).display())), "{error}");
        }
    }

    #[test]
    fn a_broken_file_is_kept_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = {
            load_or_create(dir.path()).unwrap();
            fs::read(key_path(&dir)).unwrap()
        };
        for broken in [Vec::new(), b"garbage".to_vec(), good[..good.len() - 1].to_vec(), vec![0; 4096]] {
            fs::write(key_path(&dir), &broken).unwrap();
            let error = load_or_create(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("Do not delete it lightly"), "{error}");
            assert_eq!(fs::read(key_path(&dir)).unwrap(), broken);
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load_or_create(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
