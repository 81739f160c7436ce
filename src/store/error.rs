//! What can go wrong with the store.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a store operation failed. Nothing of a failed operation is on disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said so.
    #[error("the store failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file is damaged.
    #[error(
        "the store {0} is damaged ({cause}); it is left as it is. Put a backup in its place, or begin with an empty store: stop the daemon, move {0} and the files that begin with that name to a directory elsewhere, start again, and add the peers again. What is readable of it can be looked at with: sqlite3 FILE .dump",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        cause: String,
    },
    /// The file cannot be opened.
    #[error("the store {} cannot be opened: {cause}; {remedy}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite or the system said.
        cause: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The file belongs to another program.
    #[error("the store's file belongs to another program; choose another state directory with --state-dir")]
    Foreign,
    /// The file is of a later version.
    #[error("the store's file has version {found}, this daemon knows up to {known}; use a newer p2p-node")]
    Newer {
        /// Version of the file.
        found: i64,
        /// Newest version known.
        known: i64,
    },
    /// A row does not match its checksum.
    #[error("{0} does not match its checksum: the disk or the file is damaged")]
    Checksum(String),
    /// A message to oneself finds the inbox full.
    #[error("the inbox is full")]
    InboxFull,
    /// The store is closed or its thread is gone.
    #[error("the store is closed")]
    Closed,
    /// The batch in which the operation ran could not be committed.
    #[error("the store could not commit: {0}")]
    Commit(String),
}

const PERMISSIONS: &str =
    "check that it is a file in a directory that exists, and that this user may read and write both";
const SPACE: &str = "make room on its disk, or raise this user's quota";
const IN_USE: &str = "another program has it open: stop that one, or choose another state directory with --state-dir";
const DISK: &str = "look for errors of the disk in the system's log";
const SYSTEM: &str = "try again once the system has the memory, threads and open files that it lacks";

impl StoreError {
    /// The file at `path` cannot be opened, as SQLite says.
    pub(super) fn open(path: &Path, error: &rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let remedy = match error.sqlite_error_code() {
            Some(Code::DiskFull) => SPACE,
            Some(Code::DatabaseBusy | Code::DatabaseLocked | Code::FileLockingProtocolFailed) => IN_USE,
            Some(
                Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly | Code::AuthorizationForStatementDenied,
            ) => PERMISSIONS,
            Some(Code::OutOfMemory) => SYSTEM,
            _ => DISK,
        };
        Self::Open { path: path.to_owned(), cause: error.to_string(), remedy }
    }

    /// The file at `path` cannot be opened, as the system says.
    pub(super) fn open_io(path: &Path, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let remedy = match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded => SPACE,
            Kind::PermissionDenied
            | Kind::NotFound
            | Kind::IsADirectory
            | Kind::NotADirectory
            | Kind::ReadOnlyFilesystem => PERMISSIONS,
            Kind::WouldBlock | Kind::OutOfMemory => SYSTEM,
            _ => DISK,
        };
        Self::Open { path: path.to_owned(), cause: error.to_string(), remedy }
    }

    /// The disk, or the quota on it, is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::Commit(cause) => cause.contains("disk is full"),
            _ => false,
        }
    }

    /// The file, or a row of it, is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
            ),
            Self::Damaged { .. } | Self::Checksum(_) => true,
            _ => false,
        }
    }
}
