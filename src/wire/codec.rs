//! Frames to bytes and back.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;

use super::{
    check,
    error::WireError,
    fields::{self, Count},
    frames::{Back, Data, Ephemeral, Forward, Full, Hello, LaneState, Open, Outcome, Query, Skip, Welcome},
    header, kind,
};
use crate::types::{Content, MAX_HEADER_BYTES, MAX_METADATA_ENTRIES, MESSAGE_BYTES_RANGE, Presence};

/// Bytes of the length before each frame.
pub const FRAME_PREFIX_BYTES: usize = 4;

/// Kind and header length: what each frame begins with.
const BODY_FIXED_BYTES: usize = 1 + 4;

/// A frame as it is written: `head`, then `payload`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame {
    /// Length prefix, kind, and protobuf header.
    pub head: Bytes,
    /// Follows raw and uncopied; empty for most kinds.
    pub payload: Bytes,
}

/// Reads frames. Knows the largest one allowed before anything is allocated
/// for it, and does no IO.
#[derive(Debug, Clone)]
pub struct Decoder {
    max_message_bytes: u64,
}

impl EncodedFrame {
    /// Bytes on the wire, the length prefix among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Never true of a frame: it has a prefix and a kind at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Writes a frame of the sender.
///
/// # Errors
/// The frame breaks a limit of [`crate::types`], or its payload is over the
/// most that can be configured.
pub fn encode_forward(frame: &Forward) -> Result<EncodedFrame, WireError> {
    check::forward(frame, *MESSAGE_BYTES_RANGE.end())?;
    let payload = match frame {
        Forward::Data(data) => data.content.payload.clone(),
        Forward::Ephemeral(ephemeral) => ephemeral.content.payload.clone(),
        _ => Bytes::new(),
    };
    let mut header = Count::default();
    fields::forward(frame, &mut header);
    let mut head = start(kind::of_forward(frame), header.0, payload.len())?;
    fields::forward(frame, &mut head);
    Ok(EncodedFrame { head: head.into(), payload })
}

/// Writes a frame of the receiver.
///
/// # Errors
/// The frame breaks a limit of [`crate::types`].
pub fn encode_back(frame: &Back) -> Result<EncodedFrame, WireError> {
    check::back(frame)?;
    let mut header = Count::default();
    fields::back(frame, &mut header);
    let mut head = start(kind::of_back(frame), header.0, 0)?;
    fields::back(frame, &mut head);
    Ok(EncodedFrame { head: head.into(), payload: Bytes::new() })
}

/// A buffer with exactly the room of the head, so that turning it into `Bytes`
/// allocates nothing more, filled up to the header.
fn start(kind: u8, header: usize, payload: usize) -> Result<Vec<u8>, WireError> {
    let body = BODY_FIXED_BYTES + header + payload;
    let too_large = |_| WireError::FrameTooLarge { len: body as u64, max: u32::MAX.into() };
    let announced = u32::try_from(body).map_err(too_large)?;
    let header_len = u32::try_from(header).map_err(too_large)?;
    let mut head = Vec::with_capacity(FRAME_PREFIX_BYTES + BODY_FIXED_BYTES + header);
    head.extend_from_slice(&announced.to_be_bytes());
    head.push(kind);
    head.extend_from_slice(&header_len.to_be_bytes());
    Ok(head)
}

/// Numbers two by two; an odd one is paired with 0, which no check lets pass
/// where it would matter.
fn pairs(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers.chunks(2).map(|pair| (pair[0], pair.get(1).copied().unwrap_or(0))).collect()
}

impl Decoder {
    /// Reads frames with a payload of at most `max_message_bytes`.
    #[must_use]
    pub fn new(max_message_bytes: u64) -> Self {
        Self { max_message_bytes }
    }

    /// Bytes that follow the length prefix of a frame.
    ///
    /// # Errors
    /// [`WireError::FrameTooLarge`] and [`WireError::FrameTooShort`].
    pub fn body_len(&self, prefix: [u8; FRAME_PREFIX_BYTES]) -> Result<usize, WireError> {
        let announced = u64::from(u32::from_be_bytes(prefix));
        let max = self.max_message_bytes.saturating_add((BODY_FIXED_BYTES + MAX_HEADER_BYTES) as u64);
        if announced > max {
            return Err(WireError::FrameTooLarge { len: announced, max });
        }
        let len = usize::try_from(announced).map_err(|_| WireError::FrameTooLarge { len: announced, max })?;
        if len < BODY_FIXED_BYTES {
            return Err(WireError::FrameTooShort { len, min: BODY_FIXED_BYTES });
        }
        Ok(len)
    }

    /// Reads a frame of the sender from all that follows its length prefix.
    /// The payload is a slice of `body`.
    ///
    /// # Errors
    /// The frame is malformed, of a kind that no sender writes, or breaks a
    /// limit. The link is of no use then.
    pub fn forward(&self, body: Bytes) -> Result<Forward, WireError> {
        let frame = Split::of(body)?;
        let frame = match frame.kind {
            kind::HELLO => {
                let h: header::Hello = frame.header_alone()?;
                Forward::Hello(Hello { version: h.version, features: h.features })
            }
            kind::OPEN => {
                let h: header::Open = frame.header_alone()?;
                Forward::Open(Open {
                    lane: h.lane,
                    channel: Arc::from(h.channel),
                    epoch: h.epoch,
                    previous: pairs(&h.previous),
                })
            }
            kind::DATA => {
                let h: header::Data = frame.header()?;
                let content = frame.content(h.content)?;
                Forward::Data(Data {
                    lane: h.lane,
                    seq: h.seq,
                    tag: h.tag,
                    ttl_left_ms: h.ttl_left_ms,
                    after: h.after,
                    content,
                })
            }
            kind::SKIP => {
                let h: header::Skip = frame.header_alone()?;
                Forward::Skip(Skip { lane: h.lane, from: h.from, to: h.to, tag: h.tag, lost: h.lost, id: h.id })
            }
            kind::QUERY => {
                let h: header::Query = frame.header_alone()?;
                Forward::Query(Query { lane: h.lane, id: h.id })
            }
            kind::EPHEMERAL => {
                let h: header::Ephemeral = frame.header()?;
                let content = frame.content(h.content)?;
                Forward::Ephemeral(Ephemeral { number: h.number, channel: Arc::from(h.channel), content })
            }
            kind::PRESENCE => {
                let h: header::Presence = frame.header_alone()?;
                Forward::Presence(Presence { name: h.name, roles: h.roles, text: h.text })
            }
            kind::BYE => {
                frame.header_alone::<header::Bye>()?;
                Forward::Bye
            }
            unknown => return Err(WireError::UnknownKind(unknown)),
        };
        check::forward(&frame, self.max_message_bytes)?;
        Ok(frame)
    }

    /// Reads a frame of the receiver from all that follows its length prefix.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn back(&self, body: Bytes) -> Result<Back, WireError> {
        let frame = Split::of(body)?;
        let frame = match frame.kind {
            kind::WELCOME => {
                let h: header::Welcome = frame.header_alone()?;
                Back::Welcome(Welcome {
                    version: h.version,
                    features: h.features,
                    max_message_bytes: h.max_message_bytes,
                })
            }
            kind::REFUSED => {
                let h: header::Refused = frame.header_alone()?;
                Back::Refused(fields::refusal(h.refusal))
            }
            kind::LANE_STATE => {
                let h: header::LaneState = frame.header_alone()?;
                let gaps = pairs(&h.gaps);
                Back::LaneState(LaneState {
                    lane: h.lane,
                    high: h.high,
                    tag: h.tag,
                    gaps,
                    inherited: h.inherited,
                    floor: h.floor,
                })
            }
            kind::ACK => {
                let h: header::Ack = frame.header_alone()?;
                Back::Ack { lane: h.lane, high: h.high }
            }
            kind::OUTCOME => {
                let h: header::Outcome = frame.header_alone()?;
                Back::Outcome(Outcome { lane: h.lane, id: h.id, stored: h.stored })
            }
            kind::FULL => {
                let h: header::Full = frame.header_alone()?;
                Back::Full(Full { lane: h.lane, next: h.next, limit: fields::limit(h.limit) })
            }
            kind::READY => {
                let h: header::Ready = frame.header_alone()?;
                Back::Ready { lane: h.lane }
            }
            kind::EPHEMERAL_RESULT => {
                let h: header::EphemeralResult = frame.header_alone()?;
                Back::EphemeralResult { number: h.number, outcome: fields::outcome(h.outcome) }
            }
            kind::BACK_BYE => {
                frame.header_alone::<header::Bye>()?;
                Back::Bye
            }
            unknown => return Err(WireError::UnknownKind(unknown)),
        };
        check::back(&frame)?;
        Ok(frame)
    }
}

/// A frame cut into its parts.
struct Split {
    kind: u8,
    name: &'static str,
    /// Ends with the header.
    head: Bytes,
    payload: Bytes,
}

impl Split {
    fn of(mut body: Bytes) -> Result<Self, WireError> {
        let Some(&[kind, a, b, c, d]) = body.first_chunk::<BODY_FIXED_BYTES>() else {
            return Err(WireError::FrameTooShort { len: body.len(), min: BODY_FIXED_BYTES });
        };
        let name = kind::name(kind).ok_or(WireError::UnknownKind(kind))?;
        let announced = u32::from_be_bytes([a, b, c, d]) as usize;
        let present = body.len() - BODY_FIXED_BYTES;
        if announced > MAX_HEADER_BYTES {
            let max = MAX_HEADER_BYTES as u64;
            return Err(WireError::TooLong { frame: name, field: "header", len: announced, unit: "bytes", max });
        }
        if announced > present {
            return Err(WireError::HeaderTruncated { frame: name, announced, present });
        }
        let payload = body.split_off(BODY_FIXED_BYTES + announced);
        Ok(Self { kind, name, head: body, payload })
    }

    fn header<H: Message + Default>(&self) -> Result<H, WireError> {
        H::decode(&self.head[BODY_FIXED_BYTES..]).map_err(|source| WireError::Malformed { frame: self.name, source })
    }

    /// The header of a frame that carries no payload.
    fn header_alone<H: Message + Default>(&self) -> Result<H, WireError> {
        if !self.payload.is_empty() {
            return Err(WireError::UnexpectedPayload { frame: self.name, len: self.payload.len() });
        }
        self.header()
    }

    /// The message of a frame that carries a payload.
    fn content(self, header: header::Content) -> Result<Content, WireError> {
        let entries = header.metadata.len();
        if entries > MAX_METADATA_ENTRIES {
            let max = MAX_METADATA_ENTRIES as u64;
            return Err(WireError::TooLong { frame: self.name, field: "metadata", len: entries, unit: "entries", max });
        }
        let mut metadata = BTreeMap::new();
        for header::Entry { key, value } in header.metadata {
            let key_bytes = key.len();
            if metadata.insert(key, value).is_some() {
                return Err(WireError::DuplicateKey { frame: self.name, key_bytes });
            }
        }
        Ok(Content {
            id: header.id,
            kind: header.kind,
            reply_to: header.reply_to,
            timestamp: header.timestamp,
            metadata,
            payload: self.payload,
        })
    }
}
