//! The durable half of the daemon: one SQLite file with the outbox, the inbox
//! and the address book.
//!
//! [`Db`] has every operation as a plain function; [`Store`] runs them on a
//! thread of their own, many to a transaction, and answers after the commit.
//! The file is not encrypted.

mod book;
mod channels;
mod consumers;
mod db;
mod error;
mod inbox;
mod invite;
mod lines;
mod outbox;
mod row;
mod schema;
mod thread;

pub use book::{BookChange, BookPeer, Changed, Trust};
pub use channels::MAX_CHANNELS;
pub use consumers::{Acknowledged, ConsumerState, Opened};
pub use db::{Db, Fill, Reader, StoreOptions, Synchronous};
pub use error::StoreError;
pub use inbox::{Arrival, BatchDone, InboxPage, InboxRow};
pub use invite::{Friend, Invited, MAX_OPEN_INVITES, NewInvite, Redeemed};
pub use lines::{MAX_ALL_LINES, MAX_LINES};
pub use outbox::{
    Buried, CHANNELS_LIMIT, Enqueued, Final, NewMessage, OutboxLimit, PageStart, Progress, Queued, SentRecord,
};
pub use thread::Store;

#[cfg(test)]
mod tests;
