//! What can go wrong with the store.

use std::path::PathBuf;

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
    #[error("the store {} cannot be opened: {cause}; check that it is a file which this user may read and write", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite or the system said.
        cause: String,
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

impl StoreError {
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
