//! Names and limits that every layer shares.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use libp2p::PeerId;
use serde::{Deserialize, Serialize};

/// Most bytes of a message id, a channel or a consumer's name.
pub const MAX_NAME_BYTES: usize = 128;
/// Most bytes of a message's `type` and `reply_to`.
pub const MAX_TYPE_BYTES: usize = 256;
/// Most bytes of the name of a node or of a peer.
pub const MAX_ALIAS_BYTES: usize = 64;
/// Most roles that all apps of a node announce together.
pub const MAX_ROLES: usize = 32;
/// Most bytes of a role.
pub const MAX_ROLE_BYTES: usize = 32;
/// Most bytes of the status text that apps announce.
pub const MAX_PRESENCE_BYTES: usize = 256;
/// Most entries of a message's metadata.
pub const MAX_METADATA_ENTRIES: usize = 64;
/// Most bytes of a message's metadata, keys and values together.
pub const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Most bytes of a message without its payload, encoded: its names, its
/// metadata and room for the encoding itself.
pub const MAX_HEADER_BYTES: usize =
    2 * MAX_NAME_BYTES + 2 * MAX_TYPE_BYTES + MAX_METADATA_BYTES + MAX_METADATA_ENTRIES * 16 + 256;
/// The smallest and largest `max_message_bytes` that can be configured.
pub const MESSAGE_BYTES_RANGE: std::ops::RangeInclusive<u64> = 1024..=64 * 1024 * 1024;

/// Bytes of a ticket's secret: beyond guessing.
pub const SECRET_BYTES: usize = 16;

/// What a joiner presents. Shown once in a ticket, kept as a hash only.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; SECRET_BYTES]);

/// A channel's name. Cheap to clone.
pub type Channel = Arc<str>;

/// Identifies one run of a lane's numbering; random, new after a restore.
pub type Epoch = u64;

/// A position in a lane, from 1.
pub type Seq = u64;

/// The last position a lane can have; far beyond any use, and far from overflow.
pub const MAX_SEQ: Seq = 1 << 62;

/// Random mark of a stored row, by which two sides notice that one of them was
/// restored from an older copy of its store.
pub type Tag = u64;

/// Whether a node or a peer may be called so: what can be typed anywhere
/// without quotes, and is no peer id.
#[must_use]
pub fn is_alias(name: &str) -> bool {
    let fits = (1..=MAX_ALIAS_BYTES).contains(&name.len()) && name.chars().all(fits_alias);
    // A command line would take one that begins with a dash for an option.
    fits && !name.starts_with('-') && name.parse::<PeerId>().is_err()
}

/// The nearest alias to a text; `None` if nothing of it can be used.
#[must_use]
pub fn to_alias(text: &str) -> Option<String> {
    let plain: String = text.chars().take(MAX_ALIAS_BYTES).map(|c| if fits_alias(c) { c } else { '-' }).collect();
    let plain = plain.trim_matches(['-', '.']);
    is_alias(plain).then(|| plain.to_owned())
}

fn fits_alias(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Whether an app may announce a role of this name.
#[must_use]
pub fn is_role(name: &str) -> bool {
    (1..=MAX_ROLE_BYTES).contains(&name.len()) && name.chars().all(fits_alias)
}

/// What a node tells trusted peers of itself and of its apps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presence {
    /// What the node calls itself, see [`is_alias`]; empty if nothing.
    pub name: String,
    /// What its apps are, see [`is_role`]; at most [`MAX_ROLES`].
    pub roles: Vec<String>,
    /// A status text without control characters, of at most
    /// [`MAX_PRESENCE_BYTES`].
    pub text: String,
}

/// What an app hands over: a message without its place in any order.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// Unique per recipient and channel.
    pub id: String,
    /// The app's name for this kind of message.
    pub kind: String,
    /// Id of the message that this one answers; empty if none.
    pub reply_to: String,
    /// Unix milliseconds, as the app says.
    pub timestamp: i64,
    /// Free for the app.
    pub metadata: BTreeMap<String, String>,
    /// Opaque.
    pub payload: Bytes,
}

impl Content {
    /// Bytes this message counts for in queues and quotas: its payload, its
    /// header and a fixed share for the row around them.
    #[must_use]
    pub fn cost(&self) -> u64 {
        /// Index entries and bookkeeping of a row; a queue of empty messages
        /// must fill up too.
        const ROW: usize = 128;
        let metadata: usize = self.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
        (ROW + self.id.len() + self.kind.len() + self.reply_to.len() + metadata + self.payload.len()) as u64
    }
}

impl fmt::Debug for Content {
    /// Leaves the payload and metadata out: they are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// What the inviter keeps of it. Not reversible, and no two secrets share
    /// one, so that looking it up tells nothing by how long that takes.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::hash(&self.0).into()
    }
}

/// How a peer is reached. Ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// A private, link-local or loopback address.
    Lan,
    /// A public address.
    Direct,
    /// Through a relay.
    Relayed,
}

/// Over which routes a message may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathPolicy {
    /// Over any.
    #[default]
    Any,
    /// Through a relay only once there was no other for so many milliseconds.
    PreferDirect(u64),
    /// Never through a relay.
    DirectOnly,
}

/// [`PathPolicy::until`] of what never goes through a relay.
pub const NEVER_RELAYED: u64 = i64::MAX.cast_unsigned();

impl PathPolicy {
    /// Until when no relay may carry it, of the clock that says `now`; 0 if one
    /// may at once.
    #[must_use]
    pub fn until(self, now: u64) -> u64 {
        match self {
            Self::Any => 0,
            Self::PreferDirect(wait) => now.saturating_add(wait).min(NEVER_RELAYED - 1),
            Self::DirectOnly => NEVER_RELAYED,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lan => "LAN",
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_an_alias() {
        let id = PeerId::random().to_string();
        let long = "x".repeat(100);
        for (text, alias) in [
            ("laptop", Some("laptop")),
            ("pi.home.arpa", Some("pi.home.arpa")),
            ("Anna's Mac", Some("Anna-s-Mac")),
            ("\u{202e}evil\n", Some("evil")),
            ("...", None),
            ("", None),
            ("日本", None),
            (id.as_str(), None),
            (long.as_str(), Some(&long[..MAX_ALIAS_BYTES])),
        ] {
            assert_eq!(to_alias(text).as_deref(), alias, "{text:?}");
            assert!(alias.is_none_or(is_alias), "{text:?}");
        }
        assert!(!is_alias(&long) && !is_alias(&id) && !is_alias("a b") && !is_alias("-x"));
    }
}
