//! Messages in the inbox, as consumers read them.

use super::*;

impl Reader {
    /// Reads the inbox of a channel after a cursor: at most so many rows, and
    /// bytes but for the first.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn inbox(&self, channel: i64, after: u64, max_rows: usize, max_bytes: u64) -> Result<InboxPage, StoreError> {
        read_inbox(&self.connection, channel, after, max_rows, max_bytes)
    }

    /// The number of a channel, if anything was ever stored or read there.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn channel(&self, name: &str) -> Result<Option<i64>, StoreError> {
        Ok(find_channel(&self.connection, name)?.map(|(number, _)| number))
    }
}

impl Db {
    /// As [`Reader::inbox`], with what is not committed yet.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn read_inbox(
        &self,
        channel: &str,
        after: u64,
        max_rows: usize,
        max_bytes: u64,
    ) -> Result<InboxPage, StoreError> {
        match find_channel(&self.connection, channel)? {
            Some((channel, _)) => read_inbox(&self.connection, channel, after, max_rows, max_bytes),
            None => Ok(InboxPage::default()),
        }
    }
}

fn read_inbox(
    connection: &Connection,
    channel: i64,
    after: u64,
    max_rows: usize,
    max_bytes: u64,
) -> Result<InboxPage, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT row, seq, received_at, route, cost, o.peer, i.id, kind, reply_to, timestamp, metadata, payload, \
         checksum FROM inbox i JOIN origin o ON o.id = i.origin \
         WHERE row > ?1 AND row <= ?2 ORDER BY row LIMIT ?3",
    )?;
    let mut found = statement.query(params![key(channel, after), key(channel, u64::MAX), max_rows as i64])?;
    let (mut page, mut bytes) = (InboxPage::default(), 0);
    while let Some(row) = found.next()? {
        bytes += row.get::<_, i64>(4)?.cast_unsigned();
        if !page.rows.is_empty() && bytes > max_bytes {
            break;
        }
        let key: i64 = row.get(0)?;
        let Ok(content) = content(row, 6, key, "a message in the inbox") else {
            page.damaged = Some(position(key));
            break;
        };
        page.rows.push(InboxRow {
            cursor: position(key),
            peer: peer(&row.get::<_, Vec<u8>>(5)?)?,
            seq: row.get::<_, i64>(1)?.cast_unsigned(),
            received_at: row.get(2)?,
            route: route_from(row.get(3)?),
            content,
        });
    }
    Ok(page)
}
