//! The relay's side of circuits: the hop protocol, on which it is asked, and
//! the stop protocol, on which it asks whoever a circuit leads to.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{CONNECT, CircuitLimit, HopMessage, Limit, OK, Peer, Reservation, STATUS, first};

/// The kind of a question for a reservation.
const RESERVE: i32 = 0;
/// Kinds of messages of the stop protocol.
const STOP_CONNECT: i32 = 0;
const STOP_STATUS: i32 = 1;
/// Addresses told with a reservation together: with all else they fit into a
/// message.
const MAX_ADDRESS_BYTES: usize = 3584;

/// What a client asks its relay for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Circuits to the client are to be let through.
    Reserve,
    /// A circuit to the peer of this id; not checked yet.
    Connect(Vec<u8>),
}

/// Why a relay does not do what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(i32)]
pub enum Refusal {
    /// It does not serve this client.
    #[error("this relay gives no reservation")]
    ReservationRefused = 200,
    /// It has too much to do, or the client asks too much.
    #[error("a limit of this relay is reached")]
    LimitExceeded = 201,
    /// Not in this way.
    #[error("this relay does not permit it")]
    PermissionDenied = 202,
    /// The other end does not answer, or does not want to.
    #[error("the peer could not be connected to")]
    ConnectionFailed = 203,
    /// The other end is not there.
    #[error("the peer has no reservation here")]
    NoReservation = 204,
    /// Not what the specification says.
    #[error("the message is malformed")]
    Malformed = 400,
    /// Not a message of a client.
    #[error("the message is not one of a client")]
    Unexpected = 401,
}

#[derive(Clone, PartialEq, Message)]
struct StopMessage {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    peer: Option<Peer>,
    #[prost(message, optional, tag = "3")]
    limit: Option<Limit>,
    #[prost(int32, optional, tag = "4")]
    status: Option<i32>,
}

impl From<CircuitLimit> for Limit {
    fn from(limit: CircuitLimit) -> Self {
        let duration = limit.duration.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        Self { duration, data: limit.bytes }
    }
}

/// Reads the question at the beginning of what came, and its length; `None`
/// while it is incomplete.
///
/// # Errors
/// [`Refusal::Malformed`] or [`Refusal::Unexpected`].
pub fn request(came: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    let Some((message, length)) = first(came).ok_or(Refusal::Malformed)? else { return Ok(None) };
    let message = HopMessage::decode(message).map_err(|_| Refusal::Malformed)?;
    let request = match message.kind {
        RESERVE => Request::Reserve,
        CONNECT => Request::Connect(message.peer.ok_or(Refusal::Malformed)?.id),
        _ => return Err(Refusal::Unexpected),
    };
    Ok(Some((request, length)))
}

/// Says no.
#[must_use]
pub fn refuse(refusal: Refusal) -> Vec<u8> {
    status(HopMessage { status: Some(refusal as i32), ..HopMessage::default() })
}

/// Says that the circuit is up, and what it may carry.
#[must_use]
pub fn connected(limit: CircuitLimit) -> Vec<u8> {
    status(HopMessage { status: Some(OK), limit: Some(limit.into()), ..HopMessage::default() })
}

/// Grants a reservation until then, at these addresses in binary, of which as
/// many are told as fit, and says what circuits may carry.
#[must_use]
pub fn reserved(until: SystemTime, addresses: Vec<Vec<u8>>, limit: CircuitLimit) -> Vec<u8> {
    let expire = until.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut room = MAX_ADDRESS_BYTES;
    let fits = |address: &Vec<u8>| {
        // Each has its tag and its length before it.
        let fits = room.checked_sub(address.len() + 3);
        fits.inspect(|left| room = *left).is_some()
    };
    let addresses = addresses.into_iter().take_while(fits).collect();
    let reservation = Some(Reservation { expire, addresses });
    status(HopMessage { status: Some(OK), reservation, limit: Some(limit.into()), ..HopMessage::default() })
}

fn status(message: HopMessage) -> Vec<u8> {
    HopMessage { kind: STATUS, ..message }.encode_length_delimited_to_vec()
}

/// The bytes that ask for a circuit to be accepted which the peer of this id
/// wants.
#[must_use]
pub fn stop_connect(from: Vec<u8>, limit: CircuitLimit) -> Vec<u8> {
    let (peer, limit) = (Some(Peer { id: from }), Some(limit.into()));
    StopMessage { kind: STOP_CONNECT, peer, limit, status: None }.encode_length_delimited_to_vec()
}

/// Reads the answer to that at the beginning of what came: its length if the
/// circuit was accepted; `None` while it is incomplete.
///
/// # Errors
/// What to tell the peer that wants the circuit.
pub fn stop_answer(came: &[u8]) -> Result<Option<usize>, Refusal> {
    let Some((message, length)) = first(came).ok_or(Refusal::ConnectionFailed)? else { return Ok(None) };
    let message = StopMessage::decode(message).map_err(|_| Refusal::ConnectionFailed)?;
    match message.status {
        Some(OK) if message.kind == STOP_STATUS => Ok(Some(length)),
        Some(201) => Err(Refusal::LimitExceeded),
        Some(202) => Err(Refusal::PermissionDenied),
        _ => Err(Refusal::ConnectionFailed),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{
        super::{CircuitError, MAX_MESSAGE_BYTES, answer, connect},
        *,
    };

    const LIMIT: CircuitLimit = CircuitLimit { duration: Some(Duration::from_secs(120)), bytes: Some(1 << 17) };

    fn stop_status(status: i32) -> Vec<u8> {
        let message = StopMessage { kind: STOP_STATUS, status: Some(status), ..StopMessage::default() };
        message.encode_length_delimited_to_vec()
    }

    #[test]
    fn messages_have_the_bytes_of_the_specification() {
        assert_eq!(refuse(Refusal::NoReservation), b"\x05\x08\x02\x28\xcc\x01");
        assert_eq!(connected(LIMIT), b"\x0c\x08\x02\x22\x06\x08\x78\x10\x80\x80\x08\x28\x64");
        assert_eq!(
            stop_connect(b"peer".to_vec(), LIMIT),
            b"\x12\x08\x00\x12\x06\x0a\x04peer\x1a\x06\x08\x78\x10\x80\x80\x08"
        );
        assert_eq!(stop_status(100), b"\x04\x08\x01\x20\x64");
        assert_eq!(connected(CircuitLimit::default()), b"\x06\x08\x02\x22\x00\x28\x64");
    }

    #[test]
    fn a_question_is_read_once_it_is_whole() {
        for (bytes, expected) in [
            (b"\x02\x08\x00".to_vec(), Request::Reserve),
            (connect(b"peer".to_vec()), Request::Connect(b"peer".to_vec())),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(request(&bytes[..cut]), Ok(None));
            }
            let more = [bytes.clone(), b"early".to_vec()].concat();
            assert_eq!(request(&more), Ok(Some((expected, bytes.len()))));
        }
    }

    #[test]
    fn nonsense_is_told_from_what_is_out_of_place() {
        assert_eq!(request(&refuse(Refusal::Malformed)), Err(Refusal::Unexpected));
        assert_eq!(request(b"\x02\x08\x07"), Err(Refusal::Unexpected));
        for bytes in [&b"\x02\x08\x01"[..], b"\x01\xff", &[0xff; 3], &[0x81, 0x20]] {
            assert_eq!(request(bytes), Err(Refusal::Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn the_answer_of_the_other_end_is_told_on() {
        let mut bytes = stop_status(100);
        let whole = bytes.len();
        assert_eq!(stop_answer(&bytes[..whole - 1]), Ok(None));
        bytes.extend_from_slice(b"noise");
        assert_eq!(stop_answer(&bytes), Ok(Some(whole)));
        for (status, told) in [
            (201, Refusal::LimitExceeded),
            (202, Refusal::PermissionDenied),
            (204, Refusal::ConnectionFailed),
            (400, Refusal::ConnectionFailed),
        ] {
            assert_eq!(stop_answer(&stop_status(status)), Err(told));
        }
        for bytes in [stop_connect(b"peer".to_vec(), LIMIT), vec![0xff; 9], vec![1, 0xff], vec![0]] {
            assert_eq!(stop_answer(&bytes), Err(Refusal::ConnectionFailed), "{bytes:?}");
        }
    }

    #[test]
    fn as_many_addresses_are_told_as_fit() {
        for (count, size) in [(0, 0), (3, 60), (1000, 60), (50, 300), (1, 5000)] {
            let until = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let bytes = reserved(until, vec![vec![7; size]; count], LIMIT);
            let (message, length) = first(&bytes).expect("not too long").expect("whole");
            assert_eq!(length, bytes.len());
            assert!(message.len() as u64 <= MAX_MESSAGE_BYTES, "{}", message.len());
            let message = HopMessage::decode(message).unwrap();
            let told = message.reservation.unwrap();
            assert_eq!(told.addresses.len(), count.min(MAX_ADDRESS_BYTES / (size + 3)));
            assert_eq!(told.expire, 1_800_000_000);
        }
    }

    fn limit() -> impl Strategy<Value = CircuitLimit> {
        (proptest::option::of(1_u32..), proptest::option::of(1_u64..)).prop_map(|(seconds, bytes)| CircuitLimit {
            duration: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            bytes,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(limit in limit(), id in proptest::collection::vec(any::<u8>(), 0..64)) {
            let bytes = connected(limit);
            prop_assert_eq!(answer(&bytes), Ok(Some((limit, bytes.len()))));
            let bytes = connect(id.clone());
            prop_assert_eq!(request(&bytes), Ok(Some((Request::Connect(id.clone()), bytes.len()))));
            let bytes = stop_connect(id.clone(), limit);
            let (message, _) = first(&bytes).unwrap().unwrap();
            let read = StopMessage::decode(message).unwrap();
            prop_assert_eq!((read.peer.unwrap().id, read.limit), (id, Some(limit.into())));
        }

        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop((request(&bytes), stop_answer(&bytes)));
        }
    }

    #[test]
    fn clients_understand_refusals() {
        assert_eq!(answer(&refuse(Refusal::LimitExceeded)), Err(CircuitError::LimitExceeded));
        assert_eq!(answer(&refuse(Refusal::PermissionDenied)), Err(CircuitError::PermissionDenied));
        assert_eq!(answer(&refuse(Refusal::ConnectionFailed)), Err(CircuitError::ConnectionFailed));
        assert_eq!(answer(&refuse(Refusal::NoReservation)), Err(CircuitError::NoReservation));
    }
}
