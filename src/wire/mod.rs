//! Frames of the link protocol `/p2p-node/link/1`.
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

mod codec;
mod frames;

// pub use codec
pub use frames::{
    Back, Data, Ephemeral, EphemeralOutcome, Forward, Full, Hello, LaneState, Limit, Open, Outcome, Query, Refusal,
    Skip, Welcome,
};
