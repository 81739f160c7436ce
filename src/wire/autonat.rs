//! Messages of AutoNAT v2, `/libp2p/autonat/2/dial-request` and
//! `/libp2p/autonat/2/dial-back`: a node asks another to connect back to it.
//!
//! Each is protobuf behind its length as an unsigned varint; see autonat-v2.md
//! of the libp2p specifications.

use std::io;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use prost::{Enumeration, Message, Oneof};

/// Longest message that is read: 64 addresses, or a chunk of data with room to
/// spare. Others write up to 8 KiB.
pub const MAX_AUTONAT_BYTES: usize = 8192;
/// Bytes of data in one message at most, as the specification says.
pub const MAX_DATA_CHUNK: usize = 4096;
/// Most data that a server may ask for, as the specification says.
pub const MAX_DIAL_DATA: u64 = 100_000;
/// Least that a server asks for.
pub const MIN_DIAL_DATA: u64 = 30_000;

/// Either side, on the stream of a question.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Envelope {
    /// What it is.
    #[prost(oneof = "Body", tags = "1, 2, 3, 4")]
    pub body: Option<Body>,
}

/// What an [`Envelope`] holds.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub enum Body {
    /// Connect back to me.
    #[prost(message, tag = "1")]
    Request(DialRequest),
    /// What came of it.
    #[prost(message, tag = "2")]
    Response(DialResponse),
    /// Not before you have sent so much yourself.
    #[prost(message, tag = "3")]
    DataRequest(DataRequest),
    /// Here is a part of that.
    #[prost(message, tag = "4")]
    Data(Data),
}

/// A node asks to be connected to.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DialRequest {
    /// Multiaddrs in binary, the most important first; not checked yet.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub addresses: Vec<Bytes>,
    /// Comes back over the new connection.
    #[prost(fixed64, tag = "2")]
    pub nonce: u64,
}

/// A server wants to be sent data before it connects to another host than the
/// one that asks.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DataRequest {
    /// The address that it is about to connect to, from 0.
    #[prost(uint32, tag = "1")]
    pub address: u32,
    /// In all.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// Data that means nothing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Data {
    /// At most [`MAX_DATA_CHUNK`].
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// What came of a question.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DialResponse {
    /// A [`Status`].
    #[prost(enumeration = "Status", tag = "1")]
    pub status: i32,
    /// The address that was tried, from 0.
    #[prost(uint32, tag = "2")]
    pub address: u32,
    /// A [`DialStatus`]; only if the status is [`Status::Ok`].
    #[prost(enumeration = "DialStatus", tag = "3")]
    pub dial: i32,
}

/// Whether a server tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Something went wrong over there.
    InternalError = 0,
    /// It has too much to do, or not for you.
    Rejected = 100,
    /// It connects to none of these addresses.
    Refused = 101,
    /// It tried.
    Ok = 200,
}

/// What came of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum DialStatus {
    /// There was none.
    Unused = 0,
    /// It could not connect.
    DialError = 100,
    /// It connected, and could not hand the nonce over.
    DialBackError = 101,
    /// It did.
    Ok = 200,
}

/// The nonce, over the new connection.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DialBack {
    /// As in the request.
    #[prost(fixed64, tag = "1")]
    pub nonce: u64,
}

/// The nonce was taken. The specification knows no other answer.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DialBackResponse {
    /// 0: it was.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

impl From<Body> for Envelope {
    fn from(body: Body) -> Self {
        Self { body: Some(body) }
    }
}

/// Reads a message. The size is looked at before anything is kept.
///
/// # Errors
/// The stream breaks, or what came is no such message.
pub async fn read<T: Message + Default>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = read_length(io).await?;
    if length > MAX_AUTONAT_BYTES {
        return Err(bad(format!("a message of {length} bytes; the limit is {MAX_AUTONAT_BYTES}")));
    }
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await?;
    T::decode(Bytes::from(bytes)).map_err(|error| bad(format!("an unreadable message: {error}")))
}

/// Writes a message.
///
/// # Errors
/// The stream breaks, or the message is larger than [`MAX_AUTONAT_BYTES`].
pub async fn write(io: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let length = message.encoded_len();
    if length > MAX_AUTONAT_BYTES {
        return Err(bad(format!("a message of {length} bytes; the limit is {MAX_AUTONAT_BYTES}")));
    }
    io.write_all(&message.encode_length_delimited_to_vec()).await?;
    io.flush().await
}

/// Two bytes hold more than the limit.
async fn read_length(io: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
    let mut byte = [0];
    io.read_exact(&mut byte).await?;
    let low = usize::from(byte[0]);
    if low < 0x80 {
        return Ok(low);
    }
    io.read_exact(&mut byte).await?;
    let high = usize::from(byte[0]);
    if high >= 0x80 {
        return Err(bad(format!("a message of 16 KiB or more; the limit is {MAX_AUTONAT_BYTES} bytes")));
    }
    Ok((low & 0x7f) | high << 7)
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    fn written(message: &impl Message) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        block_on(write(&mut bytes, message)).unwrap();
        bytes.into_inner()
    }

    fn back<T: Message + Default>(bytes: &[u8]) -> io::Result<T> {
        block_on(read(&mut Cursor::new(bytes)))
    }

    #[track_caller]
    fn golden(message: impl Into<Envelope>, expected: &str) {
        let message = message.into();
        let bytes = written(&message);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
        assert_eq!(back::<Envelope>(&bytes).unwrap(), message);
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let addresses = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
        let nonce = 0x0102_0304_0506_0708;
        golden(Body::Request(DialRequest { addresses, nonce }), "12 0a10 0a026162 0a0163 11 0807060504030201");
        let (status, dial) = (Status::Ok.into(), DialStatus::DialError.into());
        golden(Body::Response(DialResponse { status, address: 1, dial }), "09 1207 08c801 1001 1864");
        golden(Body::DataRequest(DataRequest { address: 1, bytes: 30_000 }), "08 1a06 0801 10b0ea01");
        golden(Body::Data(Data { data: Bytes::from_static(b"xyz") }), "07 2205 0a0378797a");
        assert_eq!(written(&DialBack { nonce }), [9, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(written(&DialBackResponse { status: 0 }), [0]);
    }

    #[test]
    fn a_chunk_of_data_is_no_longer_than_others_read() {
        let data = Envelope::from(Body::Data(Data { data: vec![0; MAX_DATA_CHUNK].into() }));
        assert!(data.encoded_len() <= 4104);
    }

    #[test]
    fn long_messages_are_refused_by_their_length() {
        for start in [[0xff_u8, 0x7f].as_slice(), &[0x81, 0x40], &[0xff, 0xff, 0x03], &[0xff; 10]] {
            let error = back::<Envelope>(start).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{start:?}");
            assert!(error.to_string().contains("8192"), "{error}");
        }
        assert_eq!(back::<Envelope>(&[0x80, 0x40]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let long = Envelope::from(Body::Data(Data { data: vec![0; MAX_AUTONAT_BYTES].into() }));
        assert!(block_on(write(&mut Cursor::new(Vec::new()), &long)).is_err());
    }

    fn body() -> impl Strategy<Value = Body> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (proptest::collection::vec(bytes(), 0..9), any::<u64>())
                .prop_map(|(addresses, nonce)| Body::Request(DialRequest { addresses, nonce })),
            (any::<i32>(), any::<u32>(), any::<i32>())
                .prop_map(|(status, address, dial)| Body::Response(DialResponse { status, address, dial })),
            (any::<u32>(), any::<u64>()).prop_map(|(address, bytes)| Body::DataRequest(DataRequest { address, bytes })),
            bytes().prop_map(|data| Body::Data(Data { data })),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(body in body()) {
            let message = Envelope::from(body);
            prop_assert_eq!(back::<Envelope>(&written(&message)).unwrap(), message);
        }

        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(back::<Envelope>(&bytes));
            drop(back::<DialBack>(&bytes));
            drop(back::<DialBackResponse>(&bytes));
        }
    }
}
