//! The tables, and how older files become newer ones.

use rusqlite::Connection;

use super::StoreError;

/// "p2pn": says whose file this is.
const APPLICATION_ID: i32 = 0x7032_706e;

/// Each step turns a file of version `n` into one of version `n + 1`.
const MIGRATIONS: &[&str] = &[V1, V2];

/// Positions of a lane or of an inbox share a key with its number: the lower
/// bits hold the position, so that each is one run of one table.
pub(super) const POSITION_BITS: u32 = 40;

const V1: &str = "
-- Marks of this file: clock, clean stop, ports.
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;

-- The address book.
CREATE TABLE peer (
    peer BLOB PRIMARY KEY,
    alias TEXT UNIQUE,
    trust INTEGER NOT NULL,
    pinned INTEGER NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE address (
    peer BLOB NOT NULL,
    address TEXT NOT NULL,
    given INTEGER NOT NULL,
    worked_at INTEGER NOT NULL,
    PRIMARY KEY (peer, address)
) STRICT, WITHOUT ROWID;

-- Outgoing: a lane per (peer, channel), a row per position that the peer has
-- not acknowledged, and for a while a line per id.
CREATE TABLE out_lane (
    id INTEGER PRIMARY KEY,
    peer BLOB NOT NULL,
    channel TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    previous BLOB NOT NULL DEFAULT x'',
    used INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT 0,
    acked_tag INTEGER NOT NULL DEFAULT 0,
    last INTEGER NOT NULL DEFAULT 0,
    exposed INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    lines INTEGER NOT NULL DEFAULT 0,
    UNIQUE (peer, channel)
) STRICT;
CREATE TABLE outbox (
    row INTEGER PRIMARY KEY,
    tag INTEGER NOT NULL,
    buried INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    reply_to TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    metadata BLOB NOT NULL,
    payload BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_expiry ON outbox (expires_at) WHERE buried = 0;
-- Keyed as the outbox is: the oldest of a lane are one run.
CREATE TABLE sent (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    digest BLOB NOT NULL,
    final INTEGER NOT NULL,
    pending INTEGER NOT NULL,
    payload_bytes INTEGER NOT NULL,
    queued_at INTEGER NOT NULL,
    keep_until INTEGER NOT NULL
) STRICT;
CREATE INDEX sent_id ON sent (id);
CREATE INDEX sent_pending ON sent (row) WHERE pending != 0;
-- Those whose end is known although the peer has not acknowledged them, and
-- some more; few of all.
CREATE INDEX sent_final ON sent (row) WHERE final != 0;

-- Incoming: an origin per (peer, channel), a lane per epoch of it, the ids it
-- sent for a while, and what the apps have not consumed.
CREATE TABLE origin (
    id INTEGER PRIMARY KEY,
    peer BLOB NOT NULL,
    channel INTEGER NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    line INTEGER NOT NULL DEFAULT 0,
    lines INTEGER NOT NULL DEFAULT 0,
    UNIQUE (peer, channel)
) STRICT;
CREATE TABLE in_lane (
    origin INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    high INTEGER NOT NULL,
    tag INTEGER NOT NULL,
    gaps BLOB NOT NULL,
    base INTEGER NOT NULL,
    opened INTEGER NOT NULL,
    PRIMARY KEY (origin, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE seen (
    row INTEGER PRIMARY KEY,
    origin INTEGER NOT NULL,
    id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    mark INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    UNIQUE (origin, id)
) STRICT;
CREATE TABLE channel (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    last INTEGER NOT NULL DEFAULT 0,
    by_peer INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX channel_by_peer ON channel (id) WHERE by_peer = 1;
CREATE TABLE inbox (
    row INTEGER PRIMARY KEY,
    origin INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    route INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    reply_to TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    metadata BLOB NOT NULL,
    payload BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE consumer (
    channel INTEGER NOT NULL,
    name TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    attempts BLOB NOT NULL,
    PRIMARY KEY (channel, name)
) STRICT, WITHOUT ROWID;

-- Tickets: the hash of the secret, what to call whoever redeems it, until when
-- (in store time), and who did.
CREATE TABLE invite (
    hash BLOB PRIMARY KEY,
    alias TEXT,
    expires_at INTEGER NOT NULL,
    peer BLOB
) STRICT, WITHOUT ROWID;
";

/// Until when no relay may carry a message, in store time.
const V2: &str = "
ALTER TABLE outbox ADD COLUMN direct_until INTEGER NOT NULL DEFAULT 0;
";

/// Refuses a file that is newer or not ours; returns its version. Only reads.
pub(super) fn check(connection: &Connection) -> Result<i64, StoreError> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let owner: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let newest = MIGRATIONS.len() as i64;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (tables > 0 || version > 0) && owner != APPLICATION_ID {
        return Err(StoreError::Foreign);
    }
    if version > newest {
        return Err(StoreError::Newer { found: version, known: newest });
    }
    Ok(version)
}

/// Brings a file to the newest version.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let version = check(connection)?;
    for (index, step) in MIGRATIONS.iter().enumerate().skip(usize::try_from(version).unwrap_or(0)) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;
    use crate::{
        store::{Db, Enqueued, NewMessage, StoreOptions},
        types::{Content, NEVER_RELAYED, PathPolicy},
    };

    #[test]
    fn a_file_of_version_1_keeps_its_messages() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        let peer = PeerId::random();
        let message = |id: &str, path| {
            let content = Content { id: id.into(), ..Content::default() };
            NewMessage { peer, channel: "".into(), content, ttl_ms: 1000, path, digest: Vec::new() }
        };
        let mut db = Db::open(&file, StoreOptions::default()).unwrap();
        let Enqueued::New(old) = db.enqueue(message("old", PathPolicy::Any), 0, 0).unwrap() else { panic!("refused") };
        drop(db);
        let connection = Connection::open(&file).unwrap();
        connection.execute_batch("ALTER TABLE outbox DROP COLUMN direct_until; PRAGMA user_version = 1").unwrap();
        drop(connection);
        let mut db = Db::open(&file, StoreOptions::default()).unwrap();
        db.enqueue(message("new", PathPolicy::DirectOnly), 0, 0).unwrap();
        db.enqueue(message("soon", PathPolicy::PreferDirect(5)), 10, 0).unwrap();
        let rows = db.load_rows(&peer, "", old.epoch, 1, u64::MAX, 10).unwrap();
        let until: Vec<u64> = rows.iter().map(|row| row.direct_until).collect();
        assert_eq!(until, [0, NEVER_RELAYED, 15]);
    }
}
