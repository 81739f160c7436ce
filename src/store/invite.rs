//! Tickets that this node gave out, and who redeemed them.

use libp2p::{Multiaddr, PeerId};
use rusqlite::{OptionalExtension as _, params};

use super::{BookChange, BookPeer, Changed, Db, StoreError, Trust, outbox::peer};
use crate::types::{MAX_ALIAS_BYTES, to_alias};

/// Tickets that nobody redeemed and that are still good.
pub const MAX_OPEN_INVITES: u64 = 1024;
/// All that are kept, so that those who come too late are told so.
const MAX_INVITES: i64 = 4096;
/// How long one is kept after its end.
const KEEP_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Bytes of a hash that name its ticket: no two of this node's share them.
const ID_BYTES: usize = 8;

/// A ticket to be given out.
#[derive(Debug, Clone)]
pub struct NewInvite {
    /// Of its secret.
    pub hash: [u8; 32],
    /// What to call whoever redeems it.
    pub alias: Option<String>,
    /// Store time, in milliseconds.
    pub expires_at: u64,
}

/// What came of giving one out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invited {
    /// It is kept, under this name.
    Done(String),
    /// Another peer has the alias.
    AliasTaken(PeerId),
    /// There are [`MAX_OPEN_INVITES`].
    Full,
}

/// A peer that is to be trusted, for a ticket went from one side to the other.
#[derive(Debug, Clone)]
pub struct Friend {
    /// The peer.
    pub peer: PeerId,
    /// What to call it, if the user said so.
    pub alias: Option<String>,
    /// What it calls itself.
    pub name: String,
    /// Where it may be.
    pub addresses: Vec<Multiaddr>,
}

/// What came of a secret that a peer presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redeemed {
    /// The peer is trusted.
    Welcome {
        /// Its entry of the book.
        entry: BookPeer,
        /// Names the ticket.
        invite_id: String,
        /// It had redeemed the ticket before.
        again: bool,
    },
    /// No ticket has the secret.
    Unknown,
    /// Another peer redeemed it.
    Used,
    /// It was good until before now.
    Expired,
    /// The book has no room.
    Full {
        /// Of what there is no more.
        limit: &'static str,
        /// Allowed.
        max: u64,
    },
}

/// What names a ticket: the beginning of its hash.
fn invite_id(hash: &[u8; 32]) -> String {
    hash[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Db {
    /// Keeps a ticket that is to be given out.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn add_invite(&mut self, invite: &NewInvite, now: u64) -> Result<Invited, StoreError> {
        if let Some(alias) = &invite.alias
            && let Some(holder) = self.peer_by_alias(alias)?
        {
            return Ok(Invited::AliasTaken(holder));
        }
        let open: i64 = self.connection.query_row(
            "SELECT count(*) FROM invite WHERE peer IS NULL AND expires_at > ?1",
            [now.cast_signed()],
            |row| row.get(0),
        )?;
        if open.cast_unsigned() >= MAX_OPEN_INVITES {
            return Ok(Invited::Full);
        }
        // Room for one more: first go those that ended longest ago.
        self.connection.execute(
            "DELETE FROM invite WHERE hash IN (SELECT hash FROM invite WHERE peer IS NOT NULL OR expires_at <= ?1 \
             ORDER BY expires_at LIMIT max(0, (SELECT count(*) FROM invite) - ?2 + 1))",
            params![now.cast_signed(), MAX_INVITES],
        )?;
        self.connection.execute(
            "INSERT INTO invite VALUES (?1, ?2, ?3, NULL)",
            params![invite.hash, invite.alias, invite.expires_at.cast_signed()],
        )?;
        Ok(Invited::Done(invite_id(&invite.hash)))
    }

    /// Binds a ticket to the first peer that presents its secret, and puts that
    /// peer into the book as trusted.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn redeem(&mut self, hash: &[u8; 32], mut friend: Friend, now: u64, wall: i64) -> Result<Redeemed, StoreError> {
        let found = self
            .connection
            .query_row("SELECT alias, expires_at, peer FROM invite WHERE hash = ?1", [hash], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
            })
            .optional()?;
        let Some((alias, expires_at, holder)) = found else { return Ok(Redeemed::Unknown) };
        let holder = holder.map(|bytes| peer(&bytes)).transpose()?;
        match holder {
            Some(holder) if holder != friend.peer => return Ok(Redeemed::Used),
            None if expires_at.cast_unsigned() <= now => return Ok(Redeemed::Expired),
            _ => {}
        }
        // Blocked after its connection was made; it is told nothing.
        if self.peer(&friend.peer)?.is_some_and(|entry| entry.trust == Trust::Blocked) {
            return Ok(Redeemed::Unknown);
        }
        let again = holder.is_some();
        if let Some(alias) = alias.filter(|_| !again) {
            friend.alias = Some(self.free_alias(&alias, &friend.peer)?);
        }
        let entry = match self.befriend(&friend, wall)? {
            Ok(entry) => entry,
            Err(Changed::Full { limit, max }) => return Ok(Redeemed::Full { limit, max }),
            // The alias was free in this very transaction.
            Err(_) => return Ok(Redeemed::Unknown),
        };
        self.connection
            .execute("UPDATE invite SET peer = ?2 WHERE hash = ?1", params![hash, friend.peer.to_bytes()])?;
        Ok(Redeemed::Welcome { entry, invite_id: invite_id(hash), again })
    }

    /// Puts a peer into the book as trusted, under the alias that the user
    /// chose, else under the one it has, else under its own name or one near
    /// it. `Err` of the inner result is what stands in the way.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn befriend(&mut self, friend: &Friend, wall: i64) -> Result<Result<BookPeer, Changed>, StoreError> {
        let named = self.peer(&friend.peer)?.is_some_and(|entry| entry.alias.is_some());
        let alias = match (&friend.alias, to_alias(&friend.name)) {
            (Some(alias), _) => Some(alias.clone()),
            (None, Some(name)) if !named => Some(self.free_alias(&name, &friend.peer)?),
            (None, _) => None,
        };
        let change =
            BookChange { peer: friend.peer, alias, trust: Trust::Trusted, pinned: None, addresses: Vec::new() };
        let changed = self.put_peer(&change)?;
        // As found, not as given: those have a limit that an entry which is
        // joined again and again would reach.
        for address in &friend.addresses {
            self.address_worked(&friend.peer, address, wall)?;
        }
        match (changed, self.peer(&friend.peer)?) {
            (Changed::Done { .. }, Some(entry)) => Ok(Ok(entry)),
            (obstacle, _) => Ok(Err(obstacle)),
        }
    }

    /// Forgets tickets that ended long ago.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn forget_invites(&mut self, now: u64) -> Result<usize, StoreError> {
        let before = now.saturating_sub(KEEP_MS).cast_signed();
        Ok(self.connection.execute("DELETE FROM invite WHERE expires_at < ?1", [before])?)
    }

    /// Ends the tickets that a peer redeemed: who lost trust does not get it
    /// back by presenting an old one again.
    pub(super) fn void_invites(&mut self, peer: &PeerId) -> Result<(), StoreError> {
        self.connection.prepare_cached("DELETE FROM invite WHERE peer = ?1")?.execute([peer.to_bytes()])?;
        Ok(())
    }

    /// The alias, or the first of `alias-2`, `alias-3` and so on that no other
    /// peer has.
    fn free_alias(&self, alias: &str, wanted_by: &PeerId) -> Result<String, StoreError> {
        let mut candidate = alias.to_owned();
        let mut number = 1_u32;
        while self.peer_by_alias(&candidate)?.is_some_and(|holder| holder != *wanted_by) {
            number += 1;
            let suffix = format!("-{number}");
            let room = MAX_ALIAS_BYTES.saturating_sub(suffix.len());
            // An alias is ASCII.
            candidate = format!("{}{suffix}", alias.get(..room).unwrap_or(alias));
        }
        Ok(candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    const HOUR: u64 = 60 * 60 * 1000;

    fn db() -> Db {
        Db::in_memory(StoreOptions::default(), 1).unwrap()
    }

    fn invite(db: &mut Db, secret: u8, alias: Option<&str>) -> Invited {
        let alias = alias.map(str::to_owned);
        db.add_invite(&NewInvite { hash: [secret; 32], alias, expires_at: HOUR }, 0).unwrap()
    }

    fn friend(peer: PeerId, name: &str) -> Friend {
        Friend { peer, alias: None, name: name.into(), addresses: vec!["/ip4/192.168.1.2/tcp/1".parse().unwrap()] }
    }

    fn redeem(db: &mut Db, secret: u8, peer: PeerId, now: u64) -> Redeemed {
        db.redeem(&[secret; 32], friend(peer, "pi"), now, 5).unwrap()
    }

    #[test]
    fn a_ticket_is_of_its_first_holder_for_ever() {
        let (mut db, first, second) = (db(), PeerId::random(), PeerId::random());
        assert_eq!(invite(&mut db, 1, None), Invited::Done("0101010101010101".into()));
        assert_eq!(redeem(&mut db, 2, first, 1), Redeemed::Unknown);
        for again in [false, true] {
            match redeem(&mut db, 1, first, if again { 2 * HOUR } else { 1 }) {
                Redeemed::Welcome { entry, again: told, invite_id } => {
                    assert_eq!((entry.trust, entry.alias.as_deref()), (Trust::Trusted, Some("pi")));
                    assert_eq!((told, invite_id.as_str()), (again, "0101010101010101"));
                    assert_eq!(entry.addresses.len(), 1);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(redeem(&mut db, 1, second, 1), Redeemed::Used);
        assert_eq!(db.peer(&second).unwrap(), None);
    }

    #[test]
    fn after_its_time_it_is_expired_and_later_forgotten() {
        let (mut db, peer) = (db(), PeerId::random());
        invite(&mut db, 1, None);
        assert_eq!(redeem(&mut db, 1, peer, HOUR), Redeemed::Expired);
        assert_eq!(db.forget_invites(HOUR + KEEP_MS).unwrap(), 0);
        assert_eq!(db.forget_invites(HOUR + KEEP_MS + 1).unwrap(), 1);
        assert_eq!(redeem(&mut db, 1, peer, 1), Redeemed::Unknown);
        assert_eq!(db.book().unwrap(), []);
    }

    #[test]
    fn who_lost_trust_does_not_get_it_back() {
        type Lose = fn(&mut Db, PeerId);
        let demote: Lose = |db, peer| {
            for trust in [Trust::Known, Trust::Trusted] {
                let change = BookChange { peer, alias: None, trust, pinned: None, addresses: Vec::new() };
                db.put_peer(&change).unwrap();
            }
        };
        let remove: Lose = |db, peer| assert!(db.remove_peer(&peer).unwrap());
        for lose in [demote, remove] {
            let (mut db, peer) = (db(), PeerId::random());
            invite(&mut db, 1, None);
            redeem(&mut db, 1, peer, 1);
            lose(&mut db, peer);
            assert_eq!(redeem(&mut db, 1, peer, 1), Redeemed::Unknown);
        }
        let (mut db, peer) = (db(), PeerId::random());
        invite(&mut db, 1, None);
        let blocked = BookChange { peer, alias: None, trust: Trust::Blocked, pinned: None, addresses: Vec::new() };
        db.put_peer(&blocked).unwrap();
        assert_eq!(redeem(&mut db, 1, peer, 1), Redeemed::Unknown);
        assert_eq!(db.peer(&peer).unwrap().unwrap().trust, Trust::Blocked);
    }

    #[test]
    fn names_do_not_clash() {
        let mut db = db();
        let long = "x".repeat(MAX_ALIAS_BYTES);
        let mut alias_of = |secret: u8, wanted: Option<&str>, name: &str| {
            assert!(matches!(invite(&mut db, secret, wanted), Invited::Done(_)));
            match db.redeem(&[secret; 32], friend(PeerId::random(), name), 1, 5).unwrap() {
                Redeemed::Welcome { entry, .. } => entry.alias,
                other => panic!("{other:?}"),
            }
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(alias_of(1, None, "pi"), some("pi"));
        assert_eq!(alias_of(2, None, "pi"), some("pi-2"));
        assert_eq!(alias_of(3, None, "p\u{1b}i"), some("p-i"));
        assert_eq!(alias_of(4, None, "pi"), some("pi-3"));
        assert_eq!(alias_of(5, Some("attic"), "pi"), some("attic"));
        assert_eq!(alias_of(6, None, "\u{202e}"), None);
        assert_eq!(alias_of(7, None, &long), some(&long));
        assert_eq!(alias_of(8, None, &long), some(&format!("{}-2", &long[..62])));
        assert!(matches!(invite(&mut db, 9, Some("attic")), Invited::AliasTaken(_)));
    }

    #[test]
    fn a_peer_keeps_the_name_it_has_unless_another_was_chosen() {
        let (mut db, peer) = (db(), PeerId::random());
        let change = |alias: &str| BookChange {
            peer,
            alias: Some(alias.into()),
            trust: Trust::Known,
            pinned: Some(true),
            addresses: Vec::new(),
        };
        db.put_peer(&change("anna")).unwrap();
        let entry = db.befriend(&friend(peer, "pi"), 5).unwrap().unwrap();
        assert_eq!((entry.alias.as_deref(), entry.trust, entry.pinned), (Some("anna"), Trust::Trusted, true));
        let entry = db.befriend(&Friend { alias: Some("bob".into()), ..friend(peer, "pi") }, 5).unwrap().unwrap();
        assert_eq!(entry.alias.as_deref(), Some("bob"));
        let other = Friend { alias: Some("bob".into()), ..friend(PeerId::random(), "pi") };
        assert_eq!(db.befriend(&other, 5).unwrap(), Err(Changed::AliasTaken(peer)));
    }

    #[test]
    fn open_tickets_are_bounded_and_closed_ones_make_room() {
        let mut db = db();
        let new = |number: u64, expires_at: u64| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            NewInvite { hash, alias: None, expires_at }
        };
        for number in 0..MAX_OPEN_INVITES {
            assert!(matches!(db.add_invite(&new(number, HOUR), 0).unwrap(), Invited::Done(_)));
        }
        assert_eq!(db.add_invite(&new(9999, HOUR), 0).unwrap(), Invited::Full);
        for round in 1..6 {
            let now = round * HOUR;
            for number in 0..MAX_OPEN_INVITES {
                let invite = new(round * MAX_OPEN_INVITES + number, now + HOUR);
                assert!(matches!(db.add_invite(&invite, now).unwrap(), Invited::Done(_)));
            }
        }
        let kept: i64 = db.connection.query_row("SELECT count(*) FROM invite", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, MAX_INVITES);
    }
}
