//! Frames of the link protocol `/p2p-node/link/1`. The messages of
//! `/p2p-node/join/1` are in [`join`], those with which a direct connection is
//! arranged in [`punch`], those of AutoNAT v2 in [`autonat`].
//!
//! A link is one substream for one direction of messages. The side that opened
//! it is the *sender*; what it writes is a [`Forward`] frame, what comes back
//! is a [`Back`] frame. A frame on the wire is
//!
//! ```text
//! length: u32 big endian, of all that follows
//! kind:   u8
//! header: u32 big endian length, then that many bytes of protobuf
//! payload: the rest (DATA and EPHEMERAL only; empty otherwise)
//! ```
//!
//! The payload is last and raw so that it is never copied to be encoded.
//!
//! Both ends hold every frame to the limits of [`crate::types`]; positions in
//! a lane are at most `i64::MAX`, so that neither a store's integers nor the
//! addition of 1 can overflow. Header fields that a reader does not know are
//! skipped and unknown numbers of an enum read as `Other`.
//!
//! A kind of frame that came after version 1 has a bit in the features of HELLO
//! and WELCOME, and is sent only to a side that has shown the bit. Unknown bits
//! are ignored, so old and new go together, and an unknown kind remains what it
//! is: a breach, for which the link is closed.

pub mod autonat;
mod check;
pub mod circuit;
mod codec;
mod error;
mod fields;
mod frames;
mod header;
pub mod join;
mod kind;
pub mod punch;
#[cfg(test)]
mod tests;

pub use codec::{Decoder, EncodedFrame, FRAME_PREFIX_BYTES, encode_back, encode_forward};
pub use error::WireError;
pub use frames::{
    Back, Data, Ephemeral, EphemeralOutcome, FEATURE_PRESENCE, Forward, Full, Hello, LaneState, Limit, MAX_EPOCHS,
    MAX_GAPS, Open, Outcome, Query, Refusal, Skip, Welcome,
};
