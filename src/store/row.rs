//! Messages as columns: metadata in one blob, a checksum over the whole row.

use std::collections::BTreeMap;

use bytes::Bytes;
use rusqlite::Row;

use super::{StoreError, schema::POSITION_BITS};
use crate::types::{Content, Seq};

/// Key of a position in a lane or an inbox.
pub(super) fn key(number: i64, position: Seq) -> i64 {
    (number << POSITION_BITS) | position.min((1 << POSITION_BITS) - 1).cast_signed()
}

/// The position in a key.
pub(super) fn position(key: i64) -> Seq {
    (key & ((1 << POSITION_BITS) - 1)).cast_unsigned()
}

/// The number of the lane or channel in a key.
pub(super) fn owner(key: i64) -> i64 {
    key >> POSITION_BITS
}

pub(super) fn encode_metadata(metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = Vec::new();
    for text in metadata.iter().flat_map(|(key, value)| [key, value]) {
        // Texts are bounded by MAX_METADATA_BYTES, far below u32.
        out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

fn decode_metadata(mut bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *bytes = rest;
        std::str::from_utf8(text).ok()
    }
    let mut metadata = BTreeMap::new();
    while !bytes.is_empty() {
        let key = text(&mut bytes)?;
        let value = text(&mut bytes)?;
        metadata.insert(key.to_owned(), value.to_owned());
    }
    Some(metadata)
}

/// CRC-32 over what an app sees of a message.
pub(super) struct ContentSum(crc32fast::Hasher);

impl ContentSum {
    pub(super) fn of(content: &Content, metadata: &[u8]) -> Self {
        let mut hash = crc32fast::Hasher::new();
        for part in [content.id.as_bytes(), content.kind.as_bytes(), content.reply_to.as_bytes(), metadata] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(&content.payload);
        Self(hash)
    }

    /// Tells two messages of one id apart. Without the timestamp: a message
    /// that an app hands over again without one gets another.
    pub(super) fn mark(&self) -> i64 {
        i64::from(self.0.clone().finalize())
    }

    /// With the rest of a row, and its key.
    pub(super) fn checksum(&self, key: i64, timestamp: i64) -> i64 {
        let mut hash = self.0.clone();
        hash.update(&timestamp.to_le_bytes());
        hash.update(&key.to_le_bytes());
        i64::from(hash.finalize())
    }
}

/// CRC-32 over all that an app would see of a row, and its key.
pub(super) fn checksum(key: i64, content: &Content, metadata: &[u8]) -> i64 {
    ContentSum::of(content, metadata).checksum(key, content.timestamp)
}

/// Reads a message from columns `first..first + 7`: id, kind, reply_to,
/// timestamp, metadata, payload, checksum.
pub(super) fn content(row: &Row<'_>, first: usize, key: i64, what: &str) -> Result<Content, StoreError> {
    let metadata = row.get_ref(first + 4)?.as_blob().map_err(rusqlite::Error::from)?;
    let content = Content {
        id: row.get(first)?,
        kind: row.get(first + 1)?,
        reply_to: row.get(first + 2)?,
        timestamp: row.get(first + 3)?,
        metadata: decode_metadata(metadata).ok_or_else(|| StoreError::Checksum(what.to_owned()))?,
        payload: Bytes::copy_from_slice(row.get_ref(first + 5)?.as_blob().map_err(rusqlite::Error::from)?),
    };
    let stored: i64 = row.get(first + 6)?;
    if checksum(key, &content, metadata) == stored { Ok(content) } else { Err(StoreError::Checksum(what.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives() {
        let metadata: BTreeMap<_, _> =
            [("a".to_owned(), String::new()), ("ключ".to_owned(), "värde".to_owned())].into();
        assert_eq!(decode_metadata(&encode_metadata(&metadata)), Some(metadata));
        assert_eq!(decode_metadata(&[1, 0, 0, 0]), None);
        assert_eq!(decode_metadata(&[255; 9]), None);
    }

    #[test]
    fn keys_take_apart() {
        let key = key(7, 9);
        assert_eq!((owner(key), position(key)), (7, 9));
    }
}
