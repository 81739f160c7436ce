//! The protobuf headers as they are written: from borrowed frames, in two
//! passes over one description, the first to count and the second to write
//! into a buffer of exactly that size.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::frames::{Back, EphemeralOutcome, Forward, Limit, Refusal};
use crate::types::Content;

/// Takes the fields of a header in order. Defaults are left out, as in proto3.
pub(super) trait Fields {
    /// A varint, even if it is the default.
    fn varint(&mut self, tag: u32, value: u64);
    /// Eight bytes, even if they are the default.
    fn eight(&mut self, tag: u32, value: u64);
    /// A text, even if it is empty.
    fn text(&mut self, tag: u32, value: &str);
    /// The key and length of a message whose fields follow.
    fn open(&mut self, tag: u32, len: usize);

    fn uint(&mut self, tag: u32, value: u64) {
        if value != 0 {
            self.varint(tag, value);
        }
    }
    fn fixed(&mut self, tag: u32, value: u64) {
        if value != 0 {
            self.eight(tag, value);
        }
    }
    fn string(&mut self, tag: u32, value: &str) {
        if !value.is_empty() {
            self.text(tag, value);
        }
    }
}

/// Counts bytes.
#[derive(Default)]
pub(super) struct Count(pub(super) usize);

impl Fields for Count {
    fn varint(&mut self, tag: u32, value: u64) {
        self.0 += key_len(tag) + encoded_len_varint(value);
    }
    fn eight(&mut self, tag: u32, _: u64) {
        self.0 += key_len(tag) + 8;
    }
    fn text(&mut self, tag: u32, value: &str) {
        self.open(tag, value.len());
        self.0 += value.len();
    }
    fn open(&mut self, tag: u32, len: usize) {
        self.0 += key_len(tag) + encoded_len_varint(len as u64);
    }
}

/// Writes bytes.
impl Fields for Vec<u8> {
    fn varint(&mut self, tag: u32, value: u64) {
        encode_key(tag, WireType::Varint, self);
        encode_varint(value, self);
    }
    fn eight(&mut self, tag: u32, value: u64) {
        encode_key(tag, WireType::SixtyFourBit, self);
        self.put_u64_le(value);
    }
    fn text(&mut self, tag: u32, value: &str) {
        self.open(tag, value.len());
        self.extend_from_slice(value.as_bytes());
    }
    fn open(&mut self, tag: u32, len: usize) {
        encode_key(tag, WireType::LengthDelimited, self);
        encode_varint(len as u64, self);
    }
}

/// The header of a frame from the sender.
pub(super) fn forward(frame: &Forward, to: &mut impl Fields) {
    match frame {
        Forward::Hello(hello) => {
            to.uint(1, hello.version.into());
            to.uint(2, hello.features);
        }
        Forward::Open(open) => {
            to.uint(1, open.lane.into());
            to.string(2, &open.channel);
            to.fixed(3, open.epoch);
            for (epoch, upto) in &open.previous {
                to.eight(4, *epoch);
                to.eight(4, *upto);
            }
        }
        Forward::Data(data) => {
            to.uint(1, data.lane.into());
            to.uint(2, data.seq);
            to.fixed(3, data.tag);
            to.uint(4, data.ttl_left_ms);
            content(5, &data.content, to);
            if let Some(after) = data.after {
                to.eight(6, after);
            }
        }
        Forward::Skip(skip) => {
            to.uint(1, skip.lane.into());
            to.uint(2, skip.from);
            to.uint(3, skip.to);
            to.fixed(4, skip.tag);
            to.uint(5, skip.lost.into());
            if let Some(id) = &skip.id {
                to.text(6, id);
            }
        }
        Forward::Query(query) => {
            to.uint(1, query.lane.into());
            to.string(2, &query.id);
        }
        Forward::Ephemeral(ephemeral) => {
            to.uint(1, ephemeral.number);
            to.string(2, &ephemeral.channel);
            content(5, &ephemeral.content, to);
        }
        Forward::Presence(presence) => {
            to.string(1, &presence.name);
            for role in &presence.roles {
                to.text(2, role);
            }
            to.string(3, &presence.text);
        }
        Forward::Bye => {}
    }
}

/// The header of a frame from the receiver.
pub(super) fn back(frame: &Back, to: &mut impl Fields) {
    match frame {
        Back::Welcome(welcome) => {
            to.uint(1, welcome.version.into());
            to.uint(2, welcome.features);
            to.uint(3, welcome.max_message_bytes);
        }
        Back::Refused(refusal) => to.uint(1, refusal_number(*refusal).into()),
        Back::LaneState(state) => {
            to.uint(1, state.lane.into());
            to.uint(2, state.high);
            to.fixed(3, state.tag);
            for (first, last) in &state.gaps {
                to.varint(4, *first);
                to.varint(4, *last);
            }
            to.uint(5, state.inherited);
            to.uint(6, state.floor);
        }
        Back::Ack { lane, high } => {
            to.uint(1, (*lane).into());
            to.uint(2, *high);
        }
        Back::Outcome(outcome) => {
            to.uint(1, outcome.lane.into());
            to.string(2, &outcome.id);
            to.uint(3, outcome.stored.into());
        }
        Back::Full(full) => {
            to.uint(1, full.lane.into());
            to.uint(2, full.next);
            to.uint(3, limit_number(full.limit).into());
        }
        Back::Ready { lane } => to.uint(1, (*lane).into()),
        Back::EphemeralResult { number, outcome } => {
            to.uint(1, *number);
            to.uint(2, outcome_number(*outcome).into());
        }
        Back::Bye => {}
    }
}

fn content(tag: u32, content: &Content, to: &mut impl Fields) {
    let mut len = Count::default();
    content_fields(content, &mut len);
    to.open(tag, len.0);
    content_fields(content, to);
}

fn content_fields(content: &Content, to: &mut impl Fields) {
    to.string(1, &content.id);
    to.string(2, &content.kind);
    to.string(3, &content.reply_to);
    // Two's complement, as protobuf writes an int64.
    to.uint(4, content.timestamp as u64);
    for (key, value) in &content.metadata {
        let mut len = Count::default();
        entry(key, value, &mut len);
        to.open(5, len.0);
        entry(key, value, to);
    }
}

fn entry(key: &str, value: &str, to: &mut impl Fields) {
    to.string(1, key);
    to.string(2, value);
}

fn refusal_number(refusal: Refusal) -> u32 {
    match refusal {
        Refusal::Other => 0,
        Refusal::Untrusted => 1,
    }
}

pub(super) fn refusal(number: u32) -> Refusal {
    match number {
        1 => Refusal::Untrusted,
        _ => Refusal::Other,
    }
}

fn limit_number(limit: Limit) -> u32 {
    match limit {
        Limit::Other => 0,
        Limit::Inbox => 1,
        Limit::Peer => 2,
        Limit::Storage => 3,
        Limit::Lanes => 4,
    }
}

pub(super) fn limit(number: u32) -> Limit {
    match number {
        1 => Limit::Inbox,
        2 => Limit::Peer,
        3 => Limit::Storage,
        4 => Limit::Lanes,
        _ => Limit::Other,
    }
}

fn outcome_number(outcome: EphemeralOutcome) -> u32 {
    match outcome {
        EphemeralOutcome::Other => 0,
        EphemeralOutcome::Handed => 1,
        EphemeralOutcome::NoConsumer => 2,
        EphemeralOutcome::Busy => 3,
    }
}

pub(super) fn outcome(number: u32) -> EphemeralOutcome {
    match number {
        1 => EphemeralOutcome::Handed,
        2 => EphemeralOutcome::NoConsumer,
        3 => EphemeralOutcome::Busy,
        _ => EphemeralOutcome::Other,
    }
}
