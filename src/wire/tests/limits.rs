//! Frames that break a limit, and the errors that say which.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;

use super::{MAX_MESSAGE_BYTES, content, decoder, encode_back, encode_forward, forward_bytes, raw, read_forward};
use crate::{
    types::{
        Content, MAX_HEADER_BYTES, MAX_METADATA_BYTES, MAX_METADATA_ENTRIES, MAX_NAME_BYTES, MAX_PRESENCE_BYTES,
        MAX_ROLES, MAX_TYPE_BYTES, MESSAGE_BYTES_RANGE, Presence,
    },
    wire::{
        Back, Data, Ephemeral, Forward, Full, LaneState, Limit, Open, Outcome, Query, Skip, WireError, header, kind,
    },
};

fn data(content: Content) -> Forward {
    Forward::Data(Data { lane: 1, seq: 1, tag: 1, ttl_left_ms: 1, after: None, content })
}

/// `data` as a peer that checks nothing would write it.
fn unchecked(content: header::Content, payload: &[u8]) -> Bytes {
    let header = header::Data { lane: 1, seq: 1, tag: 1, ttl_left_ms: 1, after: None, content };
    raw(kind::DATA, &header.encode_to_vec(), payload)
}

fn entries(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|n| (format!("k{n}"), String::new()))
}

/// Refused on both ends with the same error; gives its text.
#[track_caller]
fn refused(content: Content) -> String {
    let written = encode_forward(&data(content.clone())).unwrap_err();
    let metadata = content.metadata.into_iter().map(|(key, value)| header::Entry { key, value }).collect();
    let sent = header::Content {
        id: content.id,
        kind: content.kind,
        reply_to: content.reply_to,
        timestamp: content.timestamp,
        metadata,
    };
    let read = decoder().forward(unchecked(sent, &content.payload)).unwrap_err();
    assert_eq!(written, read);
    read.to_string()
}

#[test]
fn the_largest_message_fits() {
    let value = "v".repeat(MAX_METADATA_BYTES / MAX_METADATA_ENTRIES - 3);
    let full = Content {
        id: "i".repeat(MAX_NAME_BYTES),
        kind: "t".repeat(MAX_TYPE_BYTES),
        reply_to: "r".repeat(MAX_TYPE_BYTES),
        timestamp: -1,
        metadata: (0..MAX_METADATA_ENTRIES).map(|n| (format!("k{n:02}"), value.clone())).collect(),
        payload: Bytes::from(vec![7; MAX_MESSAGE_BYTES as usize]),
    };
    let largest = Forward::Data(Data {
        lane: u32::MAX,
        seq: i64::MAX as u64,
        tag: u64::MAX,
        ttl_left_ms: u64::MAX,
        after: Some(u64::MAX),
        content: full.clone(),
    });
    let channel = Arc::from("c".repeat(MAX_NAME_BYTES));
    let ephemeral = Forward::Ephemeral(Ephemeral { number: u64::MAX, channel, content: full });
    for frame in [largest, ephemeral] {
        let head = encode_forward(&frame).unwrap().head.len();
        assert!(head <= 9 + MAX_HEADER_BYTES, "{head}");
        assert_eq!(read_forward(&forward_bytes(&frame)), frame);
    }
}

#[test]
fn long_fields_are_refused_by_name_length_and_limit() {
    let id = refused(content(&"i".repeat(129), b""));
    assert_eq!(id, "id of a frame DATA has 129 bytes, over the limit of 128");
    let kind = refused(Content { kind: "t".repeat(257), ..content("m", b"") });
    assert_eq!(kind, "type of a frame DATA has 257 bytes, over the limit of 256");
    let reply_to = refused(Content { reply_to: "r".repeat(257), ..content("m", b"") });
    assert_eq!(reply_to, "reply_to of a frame DATA has 257 bytes, over the limit of 256");
    let metadata = refused(Content { metadata: entries(65).collect(), ..content("m", b"") });
    assert_eq!(metadata, "metadata of a frame DATA has 65 entries, over the limit of 64");
    let large = BTreeMap::from([("k".into(), "v".repeat(MAX_METADATA_BYTES))]);
    let metadata = refused(Content { metadata: large, ..content("m", b"") });
    assert_eq!(metadata, "metadata of a frame DATA has 16385 bytes, over the limit of 16384");
    let channel = Open { lane: 1, channel: Arc::from("c".repeat(129)), epoch: 1, previous: vec![] };
    let error = encode_forward(&Forward::Open(channel)).unwrap_err();
    assert_eq!(error.to_string(), "channel of a frame OPEN has 129 bytes, over the limit of 128");
}

#[test]
fn an_empty_id_is_refused() {
    assert_eq!(refused(content("", b"")), "id of a frame DATA is empty");
    let no_id = String::new;
    for frame in [
        Forward::Query(Query { lane: 1, id: no_id() }),
        Forward::Skip(Skip { lane: 1, from: 1, to: 1, tag: 1, lost: false, id: Some(no_id()) }),
    ] {
        assert!(matches!(encode_forward(&frame), Err(WireError::Empty { field: "id", .. })));
    }
    let outcome = Back::Outcome(Outcome { lane: 1, id: no_id(), stored: true });
    assert!(matches!(encode_back(&outcome), Err(WireError::Empty { field: "id", .. })));
}

#[test]
fn a_key_given_twice_is_refused() {
    let entry = |value: &str| header::Entry { key: "key".into(), value: value.into() };
    let twice = header::Content { id: "m".into(), metadata: vec![entry("a"), entry("b")], ..Default::default() };
    let error = decoder().forward(unchecked(twice, b"")).unwrap_err();
    assert_eq!(error, WireError::DuplicateKey { frame: "DATA", key_bytes: 3 });
}

#[test]
fn a_payload_over_the_limit_is_refused() {
    let at = vec![0; MAX_MESSAGE_BYTES as usize];
    assert!(decoder().forward(Bytes::from(forward_bytes(&data(content("m", &at)))).slice(4..)).is_ok());
    let over = vec![0; MAX_MESSAGE_BYTES as usize + 1];
    let error = decoder().forward(Bytes::from(forward_bytes(&data(content("m", &over)))).slice(4..)).unwrap_err();
    assert_eq!(error.to_string(), "payload of a frame DATA has 1048577 bytes, over the limit of 1048576");
    let most = vec![0; *MESSAGE_BYTES_RANGE.end() as usize + 1];
    assert!(matches!(
        encode_forward(&data(content("m", &most))),
        Err(WireError::TooLong { field: "payload", max: 67_108_864, .. })
    ));
}

#[test]
fn a_presence_beyond_its_limits_is_refused_on_both_ends() {
    let told = |name: &str, roles: &[&str], text: &str| Presence {
        name: name.into(),
        roles: roles.iter().map(ToString::to_string).collect(),
        text: text.into(),
    };
    let long = "x".repeat(MAX_PRESENCE_BYTES + 1);
    let id = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
    for (presence, text) in [
        (told(&"n".repeat(65), &[], ""), "name of a frame PRESENCE has 65 bytes, over the limit of 64"),
        (told("a b", &[], ""), "name of a frame PRESENCE has characters that are not allowed there"),
        (told(id, &[], ""), "name of a frame PRESENCE has characters that are not allowed there"),
        (told("", &["r"; MAX_ROLES + 1], ""), "roles of a frame PRESENCE has 33 entries, over the limit of 32"),
        (told("", &[&"r".repeat(33)], ""), "roles of a frame PRESENCE has 33 bytes, over the limit of 32"),
        (told("", &[""], ""), "roles of a frame PRESENCE has characters that are not allowed there"),
        (told("", &["é"], ""), "roles of a frame PRESENCE has characters that are not allowed there"),
        (told("", &[], &long), "text of a frame PRESENCE has 257 bytes, over the limit of 256"),
        (told("", &[], "a\u{1b}[2J"), "text of a frame PRESENCE has characters that are not allowed there"),
        (told("", &[], "\u{85}"), "text of a frame PRESENCE has characters that are not allowed there"),
    ] {
        let Presence { name, roles, text: words } = presence.clone();
        let header = header::Presence { name, roles, text: words }.encode_to_vec();
        assert_eq!(encode_forward(&Forward::Presence(presence)).unwrap_err().to_string(), text);
        assert_eq!(decoder().forward(raw(kind::PRESENCE, &header, b"")).unwrap_err().to_string(), text);
    }
}

#[test]
fn positions_are_checked() {
    let skip = |from, to| Forward::Skip(Skip { lane: 1, from, to, tag: 1, lost: false, id: None });
    let over = i64::MAX as u64 + 1;
    assert!(encode_forward(&skip(4, 4)).is_ok());
    for frame in [
        skip(5, 4),
        skip(0, 4),
        skip(1, over),
        Forward::Data(Data { lane: 1, seq: 0, tag: 1, ttl_left_ms: 1, after: None, content: content("m", b"") }),
        Forward::Data(Data { lane: 1, seq: over, tag: 1, ttl_left_ms: 1, after: None, content: content("m", b"") }),
    ] {
        assert!(matches!(encode_forward(&frame), Err(WireError::Position { .. })), "{frame:?}");
    }
    for frame in [
        Back::Ack { lane: 1, high: over },
        Back::LaneState(LaneState { lane: 1, high: over, tag: 1, gaps: vec![], inherited: 0, floor: 0 }),
        Back::LaneState(LaneState { lane: 1, high: 9, tag: 1, gaps: vec![(3, 2)], inherited: 0, floor: 0 }),
        Back::Full(Full { lane: 1, next: 0, limit: Limit::Inbox }),
    ] {
        assert!(matches!(encode_back(&frame), Err(WireError::Position { .. })), "{frame:?}");
    }
    let read = decoder().forward(raw(kind::SKIP, b"\x08\x01\x10\x05\x18\x04", b"")).unwrap_err();
    assert_eq!(read.to_string(), format!("to of a frame SKIP is 4; it must be from 5 to {}", i64::MAX));
}

#[test]
fn a_payload_where_none_belongs_is_refused() {
    for kind in [kind::HELLO, kind::OPEN, kind::SKIP, kind::QUERY, kind::BYE, kind::PRESENCE] {
        let error = decoder().forward(raw(kind, b"", b"x")).unwrap_err();
        assert!(matches!(error, WireError::UnexpectedPayload { len: 1, .. }), "{error}");
    }
    for kind in kind::WELCOME..=kind::BACK_BYE {
        let error = decoder().back(raw(kind, b"", b"x")).unwrap_err();
        assert!(matches!(error, WireError::UnexpectedPayload { len: 1, .. }), "{error}");
    }
}

#[test]
fn unknown_kinds_and_those_of_the_other_direction_are_refused() {
    for kind in [0x00, 0x09, 0x41, 0x49, 0xff] {
        assert_eq!(decoder().forward(raw(kind, b"", b"")), Err(WireError::UnknownKind(kind)));
    }
    for kind in [0x00, 0x01, 0x07, 0x4a, 0xff] {
        assert_eq!(decoder().back(raw(kind, b"", b"")), Err(WireError::UnknownKind(kind)));
    }
}

#[test]
fn the_announced_length_is_checked_before_anything_else() {
    let max = MAX_MESSAGE_BYTES + MAX_HEADER_BYTES as u64 + 5;
    let len = |bytes: u64| decoder().body_len(u32::try_from(bytes).unwrap().to_be_bytes());
    assert_eq!(len(5), Ok(5));
    assert_eq!(len(max), Ok(max as usize));
    assert_eq!(len(max + 1), Err(WireError::FrameTooLarge { len: max + 1, max }));
    assert_eq!(len(u32::MAX.into()), Err(WireError::FrameTooLarge { len: u32::MAX.into(), max }));
    assert_eq!(len(4), Err(WireError::FrameTooShort { len: 4, min: 5 }));
    assert_eq!(len(0), Err(WireError::FrameTooShort { len: 0, min: 5 }));
}

#[test]
fn the_header_is_checked_before_it_is_parsed() {
    let long = vec![0; MAX_HEADER_BYTES + 1];
    let error = decoder().forward(raw(kind::DATA, &long, b"")).unwrap_err();
    assert!(matches!(error, WireError::TooLong { field: "header", .. }), "{error}");
    let cut = Bytes::from_static(&[kind::DATA, 0, 0, 0, 3, 8, 1]);
    let error = decoder().forward(cut).unwrap_err();
    assert_eq!(error, WireError::HeaderTruncated { frame: "DATA", announced: 3, present: 2 });
    let error = decoder().forward(raw(kind::DATA, b"\xff", b"")).unwrap_err();
    assert!(matches!(error, WireError::Malformed { frame: "DATA", .. }), "{error}");
}
