//! Messages of circuit relay v2, see
//! <https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md>: here the
//! dialling side of the hop protocol, CONNECT and its answer, in [`serve`] the
//! relay's side of both protocols.

pub mod serve;

use std::time::Duration;

use prost::{
    Message,
    encoding::{decode_varint, encoded_len_varint},
};

/// Largest message, as the specification's implementations have it.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// Longest length before a message.
const MAX_LENGTH_BYTES: usize = encoded_len_varint(MAX_MESSAGE_BYTES);
/// Kinds of messages.
const CONNECT: i32 = 1;
const STATUS: i32 = 2;
/// The status of success.
const OK: i32 = 100;

/// What a relay grants a circuit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CircuitLimit {
    /// Longest life; `None`: no limit.
    pub duration: Option<Duration>,
    /// Bytes each way, says the specification; some relays, this one among them,
    /// count both ways together. `None`: no limit.
    pub bytes: Option<u64>,
}

/// Why there is no circuit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CircuitError {
    /// The peer is not there.
    #[error("the peer has no reservation at the relay")]
    NoReservation,
    /// The peer is there and does not answer.
    #[error("the relay could not connect to the peer")]
    ConnectionFailed,
    /// The relay has too much to do.
    #[error("a limit of the relay is reached")]
    LimitExceeded,
    /// The relay does not want to.
    #[error("the relay does not permit it")]
    PermissionDenied,
    /// Something that this version does not know.
    #[error("the relay answers with status {0}")]
    Other(i32),
    /// Not what the specification says.
    #[error("the relay's answer is malformed")]
    Malformed,
}

#[derive(Clone, PartialEq, Message)]
struct HopMessage {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    peer: Option<Peer>,
    #[prost(message, optional, tag = "3")]
    reservation: Option<Reservation>,
    #[prost(message, optional, tag = "4")]
    limit: Option<Limit>,
    #[prost(int32, optional, tag = "5")]
    status: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Peer {
    #[prost(bytes = "vec", required, tag = "1")]
    id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Reservation {
    #[prost(uint64, required, tag = "1")]
    expire: u64,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addresses: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Limit {
    #[prost(uint32, optional, tag = "1")]
    duration: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    data: Option<u64>,
}

/// The bytes that ask a relay for a circuit to a peer of this id.
#[must_use]
pub fn connect(to: Vec<u8>) -> Vec<u8> {
    let peer = Some(Peer { id: to });
    HopMessage { kind: CONNECT, peer, ..HopMessage::default() }.encode_length_delimited_to_vec()
}

/// Reads the answer at the beginning of what came: with success the limit and
/// the answer's length; `None` while it is incomplete.
///
/// # Errors
/// The relay refused, or said something else.
pub fn answer(came: &[u8]) -> Result<Option<(CircuitLimit, usize)>, CircuitError> {
    let Some((message, length)) = first(came).ok_or(CircuitError::Malformed)? else { return Ok(None) };
    let message = HopMessage::decode(message).map_err(|_| CircuitError::Malformed)?;
    if message.kind != STATUS {
        return Err(CircuitError::Malformed);
    }
    match message.status.ok_or(CircuitError::Malformed)? {
        OK => {
            let limit = message.limit.unwrap_or_default();
            let duration = limit.duration.filter(|seconds| *seconds > 0);
            let limit = CircuitLimit {
                duration: duration.map(|seconds| Duration::from_secs(seconds.into())),
                bytes: limit.data.filter(|bytes| *bytes > 0),
            };
            Ok(Some((limit, length)))
        }
        201 => Err(CircuitError::LimitExceeded),
        202 => Err(CircuitError::PermissionDenied),
        203 => Err(CircuitError::ConnectionFailed),
        204 => Err(CircuitError::NoReservation),
        other => Err(CircuitError::Other(other)),
    }
}

/// The message at the beginning of what came, and how much of that it takes
/// with its length before it; `Some(None)` while it is incomplete, `None` if it
/// is too long. Nothing is kept for a length that was only announced.
fn first(came: &[u8]) -> Option<Option<(&[u8], usize)>> {
    let mut rest = came;
    let Ok(length) = decode_varint(&mut rest) else {
        return (came.len() < MAX_LENGTH_BYTES).then_some(None);
    };
    if length > MAX_MESSAGE_BYTES {
        return None;
    }
    let length = usize::try_from(length).ok()?;
    Some(rest.get(..length).map(|message| (message, came.len() - rest.len() + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: i32, limit: Option<Limit>) -> Vec<u8> {
        HopMessage { kind: STATUS, limit, status: Some(status), ..HopMessage::default() }
            .encode_length_delimited_to_vec()
    }

    #[test]
    fn connect_has_the_bytes_of_the_specification() {
        assert_eq!(connect(b"peer".to_vec()), b"\x0a\x08\x01\x12\x06\x0a\x04peer");
    }

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let mut bytes = status(OK, Some(Limit { duration: Some(120), data: Some(1 << 17) }));
        let whole = bytes.len();
        for cut in 0..whole {
            assert_eq!(answer(&bytes[..cut]), Ok(None), "{cut} of {whole}");
        }
        bytes.extend_from_slice(b"what comes behind");
        assert_eq!(
            answer(&bytes),
            Ok(Some((CircuitLimit { duration: Some(Duration::from_secs(120)), bytes: Some(1 << 17) }, whole)))
        );
        let unlimited = status(OK, None);
        assert_eq!(answer(&unlimited), Ok(Some((CircuitLimit::default(), unlimited.len()))));
    }

    #[test]
    fn refusals_are_told_apart() {
        for (code, error) in [
            (201, CircuitError::LimitExceeded),
            (202, CircuitError::PermissionDenied),
            (203, CircuitError::ConnectionFailed),
            (204, CircuitError::NoReservation),
            (400, CircuitError::Other(400)),
        ] {
            assert_eq!(answer(&status(code, None)), Err(error));
        }
    }

    #[test]
    fn nonsense_is_refused_before_it_takes_memory() {
        assert_eq!(answer(&connect(b"peer".to_vec())), Err(CircuitError::Malformed));
        for bytes in [&[0xff; 10][..], &[0x81, 0x20][..], &[1, 0xff][..], &[2, 8, 2][..]] {
            assert_eq!(answer(bytes), Err(CircuitError::Malformed), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_it(bytes: Vec<u8>) {
            drop(answer(&bytes));
        }
    }
}
