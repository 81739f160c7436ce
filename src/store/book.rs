//! The address book, and addresses that peers were reached at.

use libp2p::{Multiaddr, PeerId};
use rusqlite::{OptionalExtension as _, params};

use super::{Db, StoreError, outbox::peer};

/// Peers in the book.
const MAX_PEERS: i64 = 10_000;
/// Addresses of one peer that were found, not given.
const MAX_FOUND: i64 = 16;
/// Addresses of one peer that were given.
const MAX_GIVEN: i64 = 16;

/// The standing of a peer in the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Known by name only.
    Known,
    /// Its messages are accepted.
    Trusted,
    /// Refused altogether.
    Blocked,
}

impl Trust {
    fn number(self) -> i64 {
        match self {
            Self::Known => 1,
            Self::Trusted => 2,
            Self::Blocked => 3,
        }
    }

    fn from_number(number: i64) -> rusqlite::Result<Self> {
        [Self::Known, Self::Trusted, Self::Blocked]
            .into_iter()
            .find(|trust| trust.number() == number)
            .ok_or(rusqlite::Error::IntegralValueOutOfRange(0, number))
    }
}

/// A peer of the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookPeer {
    /// The peer.
    pub peer: PeerId,
    /// Its name here.
    pub alias: Option<String>,
    /// Its standing.
    pub trust: Trust,
    /// Keep connected.
    pub pinned: bool,
    /// Unix milliseconds; 0 for never.
    pub last_seen: i64,
    /// Given ones first, then those that worked last.
    pub addresses: Vec<Multiaddr>,
}

/// A change to the book; `None` and empty leave what is there.
#[derive(Debug, Clone)]
pub struct BookChange {
    /// The peer.
    pub peer: PeerId,
    /// A new name.
    pub alias: Option<String>,
    /// A new standing.
    pub trust: Trust,
    /// A new wish.
    pub pinned: Option<bool>,
    /// Addresses to add.
    pub addresses: Vec<Multiaddr>,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done {
        /// The peer was not in the book before.
        created: bool,
    },
    /// Another peer has the name.
    AliasTaken(PeerId),
    /// The book, or the peer's list of addresses, is full.
    Full {
        /// What is.
        limit: &'static str,
        /// Allowed.
        max: u64,
    },
}

impl Db {
    /// Adds a peer or changes it.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn put_peer(&mut self, change: &BookChange) -> Result<Changed, StoreError> {
        let id = change.peer.to_bytes();
        let before = self.peer(&change.peer)?;
        if let Some(alias) = &change.alias
            && let Some(holder) = self.peer_by_alias(alias)?
            && holder != change.peer
        {
            return Ok(Changed::AliasTaken(holder));
        }
        if before.is_none() {
            let count: i64 = self.connection.query_row("SELECT count(*) FROM peer", [], |row| row.get(0))?;
            if count >= MAX_PEERS {
                return Ok(Changed::Full { limit: "peers in the address book", max: MAX_PEERS.cast_unsigned() });
            }
        }
        if self.given_with(&id, &change.addresses)? > MAX_GIVEN {
            return Ok(Changed::Full { limit: "addresses of a peer", max: MAX_GIVEN.cast_unsigned() });
        }
        self.connection.execute(
            "INSERT INTO peer VALUES (?1, ?2, ?3, ifnull(?4, 0), 0) ON CONFLICT DO UPDATE SET \
             alias = ifnull(excluded.alias, alias), trust = excluded.trust, pinned = ifnull(?4, pinned)",
            params![id, change.alias, change.trust.number(), change.pinned],
        )?;
        if change.trust != Trust::Trusted {
            self.void_invites(&change.peer)?;
        }
        for address in &change.addresses {
            self.connection.execute(
                "INSERT INTO address VALUES (?1, ?2, 1, 0) ON CONFLICT DO UPDATE SET given = 1",
                params![id, address.to_string()],
            )?;
        }
        Ok(Changed::Done { created: before.is_none() })
    }

    /// How many given addresses a peer would have with these.
    fn given_with(&self, peer: &[u8], added: &[Multiaddr]) -> Result<i64, StoreError> {
        let mut statement = self.connection.prepare("SELECT address FROM address WHERE peer = ?1 AND given = 1")?;
        let mut all: std::collections::BTreeSet<String> =
            statement.query_map([peer], |row| row.get(0))?.collect::<Result<_, _>>()?;
        all.extend(added.iter().map(ToString::to_string));
        Ok(all.len() as i64)
    }

    /// Takes a peer out of the book; false if it was not there. What it sent
    /// and what waits for it stays.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn remove_peer(&mut self, peer: &PeerId) -> Result<bool, StoreError> {
        let id = peer.to_bytes();
        self.void_invites(peer)?;
        self.connection.execute("DELETE FROM address WHERE peer = ?1", [&id])?;
        Ok(self.connection.execute("DELETE FROM peer WHERE peer = ?1", [&id])? > 0)
    }

    /// One peer of the book.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn peer(&self, wanted: &PeerId) -> Result<Option<BookPeer>, StoreError> {
        let found = self
            .connection
            .prepare_cached("SELECT alias, trust, pinned, last_seen FROM peer WHERE peer = ?1")?
            .query_row([wanted.to_bytes()], |row| {
                Ok(BookPeer {
                    peer: *wanted,
                    alias: row.get(0)?,
                    trust: Trust::from_number(row.get(1)?)?,
                    pinned: row.get(2)?,
                    last_seen: row.get(3)?,
                    addresses: Vec::new(),
                })
            })
            .optional()?;
        let Some(mut found) = found else { return Ok(None) };
        found.addresses = self.addresses(wanted)?;
        Ok(Some(found))
    }

    fn addresses(&self, peer: &PeerId) -> Result<Vec<Multiaddr>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT address FROM address WHERE peer = ?1 ORDER BY given DESC, worked_at DESC, address",
        )?;
        let texts: Vec<String> = statement.query_map([peer.to_bytes()], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// The peer of a name.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn peer_by_alias(&self, alias: &str) -> Result<Option<PeerId>, StoreError> {
        let found: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT peer FROM peer WHERE alias = ?1")?
            .query_row([alias], |row| row.get(0))
            .optional()?;
        Ok(found.map(|bytes| peer(&bytes)).transpose()?)
    }

    /// The whole book, by name.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn book(&self) -> Result<Vec<BookPeer>, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT peer FROM peer ORDER BY alias IS NULL, alias, peer")?;
        let ids: Vec<Vec<u8>> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut book = Vec::new();
        for id in ids {
            book.extend(self.peer(&peer(&id)?)?);
        }
        Ok(book)
    }

    /// Notes that a peer of the book is or was connected.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn peer_seen(&mut self, peer: &PeerId, wall: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("UPDATE peer SET last_seen = ?2 WHERE peer = ?1")?
            .execute(params![peer.to_bytes(), wall])?;
        Ok(())
    }

    /// Notes an address that led to a peer of the book.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn address_worked(&mut self, peer: &PeerId, address: &Multiaddr, wall: i64) -> Result<(), StoreError> {
        let id = peer.to_bytes();
        self.connection.execute(
            "INSERT INTO address SELECT ?1, ?2, 0, ?3 WHERE EXISTS (SELECT 1 FROM peer WHERE peer = ?1) \
             ON CONFLICT DO UPDATE SET worked_at = excluded.worked_at",
            params![id, address.to_string(), wall],
        )?;
        self.connection.execute(
            "DELETE FROM address WHERE peer = ?1 AND given = 0 AND address NOT IN \
             (SELECT address FROM address WHERE peer = ?1 AND given = 0 ORDER BY worked_at DESC LIMIT ?2)",
            params![id, MAX_FOUND],
        )?;
        Ok(())
    }
}
