//! Messages of `/p2p-node/join/1`: a joiner presents the secret of a ticket,
//! and the inviter answers.
//!
//! One request and one answer on a substream, each a frame of
//!
//! ```text
//! length: u16 big endian, of all that follows
//! body:   postcard
//! ```
//!
//! Bytes behind the known fields are skipped, so that later versions can add
//! some.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::types::Secret;

/// Longest frame either way: a name, what the joiner runs, and its addresses.
pub const MAX_JOIN_BYTES: usize = 1024;
/// Addresses that a joiner tells of itself.
pub const MAX_JOIN_ADDRESSES: usize = 3;
/// Bytes of a joiner's address that are looked at.
const MAX_ADDRESS_BYTES: usize = 256;

/// What a joiner presents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Of the ticket.
    pub secret: Secret,
    /// What the joiner calls itself; not checked yet.
    pub name: String,
    /// What it runs, as in `p2p-node/1.2.3`; not checked yet.
    pub agent: String,
    /// Where it listens; not checked yet.
    addresses: Vec<Vec<u8>>,
}

/// What the inviter says to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// The inviter trusts the joiner: that is on its disk.
    Welcome {
        /// What the inviter calls itself; not checked yet.
        name: String,
        /// The joiner had redeemed this ticket before.
        again: bool,
    },
    /// No ticket of this node has the secret, or none that is still kept.
    Unknown,
    /// Another node redeemed it.
    Used,
    /// It was good once.
    Expired,
    /// Too many tries from where the joiner is; a minute helps.
    TooMany,
    /// The inviter cannot take anybody now; it says why.
    Unable(String),
}

impl JoinRequest {
    /// A request; of the addresses, multiaddrs in binary, the first few that
    /// are not too long are told.
    #[must_use]
    pub fn new(secret: Secret, name: String, agent: String, mut addresses: Vec<Vec<u8>>) -> Self {
        addresses.retain(|address| address.len() <= MAX_ADDRESS_BYTES);
        addresses.truncate(MAX_JOIN_ADDRESSES);
        Self { secret, name, agent, addresses }
    }

    /// Where the joiner says that it listens: multiaddrs in binary, not checked
    /// yet.
    pub fn addresses(&self) -> impl Iterator<Item = &[u8]> {
        let short = self.addresses.iter().filter(|bytes| bytes.len() <= MAX_ADDRESS_BYTES);
        short.take(MAX_JOIN_ADDRESSES).map(Vec::as_slice)
    }
}

/// Reads a frame. The size is looked at before anything is kept.
///
/// # Errors
/// The stream breaks, or what came is no such frame.
pub async fn read<T: DeserializeOwned>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut length = [0; 2];
    io.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_JOIN_BYTES {
        return Err(bad(format!("a frame of {length} bytes; the limit is {MAX_JOIN_BYTES}")));
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    let (message, _) =
        postcard::take_from_bytes(&body).map_err(|error| bad(format!("an unreadable frame: {error}")))?;
    Ok(message)
}

/// Writes a frame.
///
/// # Errors
/// The stream breaks, or the message is larger than [`MAX_JOIN_BYTES`].
pub async fn write<T: Serialize>(io: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let body = postcard::to_allocvec(message).map_err(|error| bad(error.to_string()))?;
    let length = u16::try_from(body.len()).ok().filter(|_| body.len() <= MAX_JOIN_BYTES);
    let length =
        length.ok_or_else(|| bad(format!("a frame of {} bytes; the limit is {MAX_JOIN_BYTES}", body.len())))?;
    let frame = [length.to_be_bytes().as_slice(), &body].concat();
    io.write_all(&frame).await
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    fn written<T: Serialize>(message: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        block_on(write(&mut bytes, message)).unwrap();
        bytes
    }

    fn read_back<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
        block_on(read(&mut Cursor::new(bytes)))
    }

    fn request() -> JoinRequest {
        let addresses = ["/ip4/192.168.1.2/udp/4001/quic-v1", "/ip4/192.168.1.2/tcp/4001"];
        let addresses = addresses.map(|address| address.parse::<libp2p::Multiaddr>().unwrap().to_vec());
        JoinRequest::new(Secret([7; 16]), "pi".into(), "p2p-node/0.1.0".into(), addresses.to_vec())
    }

    #[test]
    fn golden_request() {
        let hex = "0038070707070707070707070707070707070270690e7032702d6e6f64652f302e312e30020b04c0a8010291020fa1cd03\
                   0804c0a80102060fa1";
        let bytes = written(&request());
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), hex);
        assert_eq!(read_back::<JoinRequest>(&bytes).unwrap(), request());
        assert_eq!(request().addresses().count(), 2);
    }

    #[test]
    fn golden_answers() {
        for (answer, hex) in [
            (JoinAnswer::Welcome { name: "pi".into(), again: true }, "00050002706901"),
            (JoinAnswer::Unknown, "000101"),
            (JoinAnswer::Used, "000102"),
            (JoinAnswer::Expired, "000103"),
            (JoinAnswer::TooMany, "000104"),
            (JoinAnswer::Unable("no".into()), "000405026e6f"),
        ] {
            let bytes = written(&answer);
            assert_eq!(data_encoding::HEXLOWER.encode(&bytes), hex, "{answer:?}");
            assert_eq!(read_back::<JoinAnswer>(&bytes).unwrap(), answer);
        }
    }

    #[test]
    fn later_fields_are_skipped_and_later_answers_are_errors() {
        assert_eq!(read_back::<JoinAnswer>(&[0, 4, 1, 9, 9, 9]).unwrap(), JoinAnswer::Unknown);
        assert_eq!(read_back::<JoinAnswer>(&[0, 1, 99]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn size_is_looked_at_first() {
        let error = read_back::<JoinRequest>(&[0xff, 0xff]).unwrap_err();
        assert!(error.to_string().contains("65535 bytes; the limit is 1024"), "{error}");
        let huge = JoinAnswer::Unable("x".repeat(MAX_JOIN_BYTES));
        assert!(block_on(write(&mut Vec::new(), &huge)).is_err());
    }

    #[test]
    fn only_a_few_addresses_are_told_or_heard() {
        let all = vec![vec![1; 300], vec![1], vec![2], vec![3], vec![4]];
        let mut request = JoinRequest::new(Secret([0; 16]), String::new(), String::new(), all.clone());
        assert_eq!(request.addresses, [[1], [2], [3]]);
        request.addresses = all;
        assert_eq!(request.addresses().collect::<Vec<_>>(), [[1], [2], [3]]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            drop(read_back::<JoinAnswer>(&bytes));
            if let Ok(request) = read_back::<JoinRequest>(&bytes) {
                prop_assert!(request.addresses().count() <= MAX_JOIN_ADDRESSES);
            }
        }
    }
}
