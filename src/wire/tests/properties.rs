//! What holds for every frame.

use std::sync::Arc;

use bytes::Bytes;
use proptest::{collection, option, prelude::*};
use prost::Message;

use super::{back_bytes, body, decoder, encode_back, encode_forward, forward_bytes, read_back, read_forward};
use crate::{
    types::{Channel, Content, MAX_ROLES, Presence, Seq},
    wire::{
        Back, Data, Ephemeral, EphemeralOutcome, Forward, Full, Hello, LaneState, Limit, MAX_EPOCHS, MAX_GAPS, Open,
        Outcome, Query, Refusal, Skip, Welcome, header, kind,
    },
};

const POSITIONS: std::ops::RangeInclusive<Seq> = 1..=i64::MAX as u64;

fn id() -> impl Strategy<Value = String> {
    // Up to four bytes a character, and at most 128 bytes.
    "\\PC{1,32}"
}

fn channel() -> impl Strategy<Value = Channel> {
    "\\PC{0,32}".prop_map(Arc::from)
}

fn content() -> impl Strategy<Value = Content> {
    let texts = (id(), "\\PC{0,64}", "\\PC{0,64}");
    let metadata = collection::btree_map("\\PC{0,8}", "\\PC{0,16}", 0..8);
    let payload = collection::vec(any::<u8>(), 0..2048).prop_map(Bytes::from);
    (texts, any::<i64>(), metadata, payload).prop_map(|((id, kind, reply_to), timestamp, metadata, payload)| Content {
        id,
        kind,
        reply_to,
        timestamp,
        metadata,
        payload,
    })
}

fn gap() -> impl Strategy<Value = (Seq, Seq)> {
    (POSITIONS, POSITIONS).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn forward() -> impl Strategy<Value = Forward> {
    let hello = any::<(u32, u64)>().prop_map(|(version, features)| Forward::Hello(Hello { version, features })).boxed();
    let open = (
        any::<u32>(),
        channel(),
        any::<u64>(),
        proptest::collection::vec((any::<u64>(), 0..=i64::MAX as u64), 0..=MAX_EPOCHS),
    )
        .prop_map(|(lane, channel, epoch, previous)| Forward::Open(Open { lane, channel, epoch, previous }));
    let data = (any::<(u32, u64, u64, Option<u64>)>(), POSITIONS, content()).prop_map(
        |((lane, tag, ttl_left_ms, after), seq, content)| {
            Forward::Data(Data { lane, seq, tag, ttl_left_ms, after, content })
        },
    );
    let skip = (any::<(u32, u64, bool)>(), gap(), option::of(id()))
        .prop_map(|((lane, tag, lost), (from, to), id)| Forward::Skip(Skip { lane, from, to, tag, lost, id }));
    let query = (any::<u32>(), id()).prop_map(|(lane, id)| Forward::Query(Query { lane, id }));
    let ephemeral = (any::<u64>(), channel(), content())
        .prop_map(|(number, channel, content)| Forward::Ephemeral(Ephemeral { number, channel, content }));
    let roles = collection::vec("[a-zA-Z0-9._-]{1,32}", 0..=MAX_ROLES);
    let presence = ("([a-z0-9._][a-z0-9._-]{0,44})?", roles, "\\PC{0,64}")
        .prop_map(|(name, roles, text)| Forward::Presence(Presence { name, roles, text }));
    prop_oneof![hello, open, data, skip, query, ephemeral, presence, Just(Forward::Bye)]
}

fn back() -> impl Strategy<Value = Back> {
    use EphemeralOutcome::{Busy, Handed, NoConsumer};
    let limit = prop::sample::select(vec![Limit::Inbox, Limit::Peer, Limit::Storage, Limit::Lanes, Limit::Other]);
    let outcomes = prop::sample::select(vec![Handed, NoConsumer, Busy, EphemeralOutcome::Other]);
    let refusal = prop::sample::select(vec![Refusal::Untrusted, Refusal::Other]);
    let high = 0..=i64::MAX as u64;
    let welcome = any::<(u32, u64, u64)>().prop_map(|(version, features, max_message_bytes)| {
        Back::Welcome(Welcome { version, features, max_message_bytes })
    });
    let gap = (1..=u64::from(u32::MAX), 0..=u64::from(u32::MAX)).prop_map(|(first, more)| (first, first + more));
    let gaps = proptest::collection::vec(gap, 0..=MAX_GAPS);
    let state = (any::<(u32, u64)>(), high.clone(), gaps, (high.clone(), high.clone())).prop_map(
        |((lane, tag), high, gaps, (inherited, floor))| {
            Back::LaneState(LaneState { lane, high, tag, gaps, inherited, floor })
        },
    );
    let ack = (any::<u32>(), high).prop_map(|(lane, high)| Back::Ack { lane, high });
    let outcome =
        (any::<(u32, bool)>(), id()).prop_map(|((lane, stored), id)| Back::Outcome(Outcome { lane, id, stored }));
    let full = (any::<u32>(), POSITIONS, limit).prop_map(|(lane, next, limit)| Back::Full(Full { lane, next, limit }));
    let ready = any::<u32>().prop_map(|lane| Back::Ready { lane });
    let result = (any::<u64>(), outcomes).prop_map(|(number, outcome)| Back::EphemeralResult { number, outcome });
    prop_oneof![welcome, refusal.prop_map(Back::Refused), state, ack, outcome, full, ready, result, Just(Back::Bye)]
}

/// The header as prost writes it.
fn prost_bytes(kind: u8, header: &[u8]) -> Vec<u8> {
    fn again<H: Message + Default>(header: &[u8]) -> Vec<u8> {
        H::decode(header).unwrap().encode_to_vec()
    }
    match kind {
        kind::HELLO => again::<header::Hello>(header),
        kind::OPEN => again::<header::Open>(header),
        kind::DATA => again::<header::Data>(header),
        kind::SKIP => again::<header::Skip>(header),
        kind::QUERY => again::<header::Query>(header),
        kind::EPHEMERAL => again::<header::Ephemeral>(header),
        kind::PRESENCE => again::<header::Presence>(header),
        kind::WELCOME => again::<header::Welcome>(header),
        kind::REFUSED => again::<header::Refused>(header),
        kind::LANE_STATE => again::<header::LaneState>(header),
        kind::ACK => again::<header::Ack>(header),
        kind::OUTCOME => again::<header::Outcome>(header),
        kind::FULL => again::<header::Full>(header),
        kind::READY => again::<header::Ready>(header),
        kind::EPHEMERAL_RESULT => again::<header::EphemeralResult>(header),
        _ => again::<header::Bye>(header),
    }
}

/// A frame that ends early is not a frame, wherever it is cut.
fn cut_is_refused<F>(bytes: &[u8], payload: usize, read: impl Fn(Bytes) -> Result<F, super::WireError>) {
    for end in 0..bytes.len() {
        assert_eq!(body(&bytes[..end]).unwrap(), None, "cut at {end}");
    }
    // Nor when a wrong length prefix hides the cut, up to the raw payload.
    for end in 4..bytes.len() - payload {
        assert!(read(Bytes::copy_from_slice(&bytes[4..end])).is_err(), "cut at {end}");
    }
}

proptest! {
    #[test]
    fn forward_frames_come_back(frame in forward()) {
        let encoded = encode_forward(&frame).unwrap();
        let bytes = forward_bytes(&frame);
        prop_assert_eq!(encoded.len(), bytes.len());
        prop_assert_eq!(read_forward(&bytes), frame);
    }

    #[test]
    fn back_frames_come_back(frame in back()) {
        let encoded = encode_back(&frame).unwrap();
        let bytes = back_bytes(&frame);
        prop_assert_eq!(encoded.len(), bytes.len());
        prop_assert_eq!(read_back(&bytes), frame);
    }

    #[test]
    fn headers_are_what_prost_writes(forward in forward(), back in back()) {
        for head in [encode_forward(&forward).unwrap().head, encode_back(&back).unwrap().head] {
            prop_assert_eq!(prost_bytes(head[4], &head[9..]), &head[9..]);
        }
    }

    #[test]
    fn truncated_frames_are_refused(forward in forward(), back in back()) {
        let payload = encode_forward(&forward).unwrap().payload.len();
        cut_is_refused(&forward_bytes(&forward), payload, |body| decoder().forward(body));
        cut_is_refused(&back_bytes(&back), 0, |body| decoder().back(body));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in collection::vec(any::<u8>(), 0..512)) {
        let _ = body(&bytes);
        let _ = decoder().forward(bytes.clone().into());
        let _ = decoder().back(bytes.into());
    }

    /// Gets past the kind and lengths, so that the headers are parsed.
    #[test]
    fn arbitrary_headers_do_no_harm(kind in 0u8..0x50, header in collection::vec(any::<u8>(), 0..512), payload: [u8; 4]) {
        let bytes = super::raw(kind, &header, &payload);
        let _ = decoder().forward(bytes.clone());
        let _ = decoder().back(bytes);
    }

    #[test]
    fn damaged_frames_do_no_harm(frame in forward(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = forward_bytes(&frame);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        if let Ok(Some(body)) = body(&bytes) {
            let _ = decoder().forward(body);
        }
    }
}

/// The payload is never copied: what is read points into the frame.
#[test]
fn payloads_are_slices() {
    let payload = Bytes::from(vec![7; 1024]);
    let content = Content { payload: payload.clone(), ..super::content("m", b"") };
    let frame = Forward::Data(Data { lane: 1, seq: 1, tag: 1, ttl_left_ms: 1, after: None, content });
    let encoded = encode_forward(&frame).unwrap();
    assert_eq!(encoded.payload.as_ptr(), payload.as_ptr());
    let body = Bytes::from(forward_bytes(&frame)).slice(4..);
    let end = body.as_ptr_range().end;
    let Forward::Data(read) = decoder().forward(body).unwrap() else { panic!("another kind") };
    assert_eq!(read.content.payload.as_ptr_range().end, end);
}
