//! Tests of the codec.

mod golden;
mod limits;
mod properties;

use bytes::Bytes;

use super::{Back, Decoder, EncodedFrame, FRAME_PREFIX_BYTES, Forward, WireError, encode_back, encode_forward};
use crate::types::Content;

const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;

fn decoder() -> Decoder {
    Decoder::new(MAX_MESSAGE_BYTES)
}

fn joined(frame: &EncodedFrame) -> Vec<u8> {
    [&frame.head[..], &frame.payload[..]].concat()
}

/// What a reader does with bytes of which there may be too few: `None` asks
/// for more.
fn body(bytes: &[u8]) -> Result<Option<Bytes>, WireError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<FRAME_PREFIX_BYTES>() else {
        return Ok(None);
    };
    let len = decoder().body_len(*prefix)?;
    Ok((rest.len() >= len).then(|| Bytes::copy_from_slice(&rest[..len])))
}

fn forward_bytes(frame: &Forward) -> Vec<u8> {
    joined(&encode_forward(frame).unwrap())
}

fn back_bytes(frame: &Back) -> Vec<u8> {
    joined(&encode_back(frame).unwrap())
}

fn read_forward(bytes: &[u8]) -> Forward {
    decoder().forward(body(bytes).unwrap().unwrap()).unwrap()
}

fn read_back(bytes: &[u8]) -> Back {
    decoder().back(body(bytes).unwrap().unwrap()).unwrap()
}

/// The body of a frame made by hand.
fn raw(kind: u8, header: &[u8], payload: &[u8]) -> Bytes {
    let len = (header.len() as u32).to_be_bytes();
    Bytes::from([&[kind], &len[..], header, payload].concat())
}

fn content(id: &str, payload: &[u8]) -> Content {
    Content { id: id.into(), payload: Bytes::copy_from_slice(payload), ..Content::default() }
}
