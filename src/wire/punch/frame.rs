//! Protobuf messages with their length before them.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest body, in bytes; what libp2p's own protocol says too.
pub const MAX_PUNCH_BYTES: usize = 4096;
/// Bytes of the longest length.
const MAX_LENGTH_BYTES: u32 = 2;

/// Reads a message. The size is looked at before anything is kept.
pub(super) async fn read<T: prost::Message + Default>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = read_length(io).await?;
    if length > MAX_PUNCH_BYTES {
        return Err(bad(format!("a message of {length} bytes; the limit is {MAX_PUNCH_BYTES}")));
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    T::decode(body.as_slice()).map_err(|error| bad(format!("an unreadable message: {error}")))
}

async fn read_length(io: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
    let mut length = 0;
    for position in 0..MAX_LENGTH_BYTES {
        let mut byte = [0];
        io.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << (7 * position);
        if byte[0] & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(bad(format!("a message of more than {MAX_PUNCH_BYTES} bytes")))
}

/// Writes a message and sends it off.
pub(super) async fn write<T: prost::Message>(io: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let frame = message.encode_length_delimited_to_vec();
    if frame.len() > MAX_PUNCH_BYTES {
        return Err(bad(format!("a message of {} bytes; the limit is {MAX_PUNCH_BYTES}", frame.len())));
    }
    io.write_all(&frame).await?;
    io.flush().await
}

pub(super) fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
