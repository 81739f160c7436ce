//! Appends to SQLite, each batch on the disk before the next.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use tempfile::TempDir;

use super::load::{MESSAGE_BYTES, Taken};

/// Appends rows in batches of a size, in a new file.
pub(crate) async fn measure(batch: usize, length: Duration) -> Taken {
    tokio::task::spawn_blocking(move || append(batch, length)).await.unwrap()
}

fn append(batch: usize, length: Duration) -> Taken {
    let dir = TempDir::new().unwrap();
    let mut connection = Connection::open(dir.path().join("store.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    // As the daemon's store: 16 MiB between checkpoints.
    connection.pragma_update(None, "wal_autocheckpoint", 4096).unwrap();
    connection.execute("CREATE TABLE message (at INTEGER PRIMARY KEY, body BLOB NOT NULL)", []).unwrap();
    let body = [7; MESSAGE_BYTES];
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < length {
        let transaction = connection.transaction().unwrap();
        {
            let mut insert = transaction.prepare_cached("INSERT INTO message (body) VALUES (?1)").unwrap();
            for _ in 0..batch {
                insert.execute([&body[..]]).unwrap();
            }
        }
        transaction.commit().unwrap();
        count += batch;
    }
    Taken { rate: count as f64 / began.elapsed().as_secs_f64(), ..Taken::default() }
}
