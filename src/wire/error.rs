//! What can be wrong with a frame.

use prost::DecodeError;

/// Why a frame cannot be written, or was refused. Holds lengths and numbers
/// only, never what the frame carried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length prefix announces more than may be allocated.
    #[error("a frame of {len} bytes is over the limit of {max}")]
    FrameTooLarge {
        /// As announced.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// No frame is so short.
    #[error("a frame of {len} bytes is too short; it has at least {min}")]
    FrameTooShort {
        /// Bytes there are.
        len: usize,
        /// Bytes there must be.
        min: usize,
    },
    /// A kind that this version, or this direction of a link, does not have.
    #[error("frame kind {0:#04x} is unknown here")]
    UnknownKind(u8),
    /// The frame ends before its header does.
    #[error("a frame {frame} announces {announced} bytes of header and has {present}")]
    HeaderTruncated {
        /// Kind of frame.
        frame: &'static str,
        /// Bytes announced.
        announced: usize,
        /// Bytes there are.
        present: usize,
    },
    /// The header is no protobuf message of the frame's kind.
    #[error("the header of a frame {frame} is malformed: {source}")]
    Malformed {
        /// Kind of frame.
        frame: &'static str,
        /// What protobuf says.
        source: DecodeError,
    },
    /// A field has more bytes, or entries, than allowed.
    #[error("{field} of a frame {frame} has {len} {unit}, over the limit of {max}")]
    TooLong {
        /// Kind of frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Size it has.
        len: usize,
        /// What is counted.
        unit: &'static str,
        /// The limit.
        max: u64,
    },
    /// A field that must not be empty is.
    #[error("{field} of a frame {frame} is empty")]
    Empty {
        /// Kind of frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// A field has characters that it may not have, or none.
    #[error("{field} of a frame {frame} has characters that are not allowed there")]
    Characters {
        /// Kind of frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// A position in a lane is outside of `min` to `max`.
    #[error("{field} of a frame {frame} is {value}; it must be from {min} to {max}")]
    Position {
        /// Kind of frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
    },
    /// Two entries of the metadata have one key.
    #[error("metadata of a frame {frame} has a key of {key_bytes} bytes twice")]
    DuplicateKey {
        /// Kind of frame.
        frame: &'static str,
        /// Length of the key.
        key_bytes: usize,
    },
    /// There are bytes behind the header of a frame that carries no payload.
    #[error("a frame {frame} carries no payload, but has {len} bytes of it")]
    UnexpectedPayload {
        /// Kind of frame.
        frame: &'static str,
        /// Bytes there are.
        len: usize,
    },
}
