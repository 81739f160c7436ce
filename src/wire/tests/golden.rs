//! The bytes of each kind of frame. These are a contract between versions: a
//! test here that fails means that older nodes cannot be talked to any more.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{back_bytes, decoder, forward_bytes, raw, read_back, read_forward};
use crate::{
    types::{Content, Presence},
    wire::{
        Back, Data, Ephemeral, EphemeralOutcome, Forward, Full, Hello, LaneState, Limit, Open, Outcome, Query, Refusal,
        Skip, Welcome,
    },
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unspaced(hex: &str) -> String {
    hex.split_whitespace().collect()
}

#[track_caller]
fn forward(frame: Forward, expected: &str) {
    let bytes = forward_bytes(&frame);
    assert_eq!(hex(&bytes), unspaced(expected));
    assert_eq!(read_forward(&bytes), frame);
}

#[track_caller]
fn back(frame: Back, expected: &str) {
    let bytes = back_bytes(&frame);
    assert_eq!(hex(&bytes), unspaced(expected));
    assert_eq!(read_back(&bytes), frame);
}

fn message() -> Content {
    Content {
        id: "m1".into(),
        kind: "t".into(),
        reply_to: "m0".into(),
        timestamp: 300,
        metadata: BTreeMap::from([("a".into(), "b".into()), ("c".into(), String::new())]),
        payload: Bytes::from_static(b"hi"),
    }
}

#[test]
fn hello() {
    forward(Forward::Hello(Hello { version: 1, features: 0 }), "00000007 01 00000002 0801");
    forward(Forward::Hello(Hello { version: 2, features: 128 }), "0000000a 01 00000005 0802 108001");
}

#[test]
fn open() {
    let open = Open { lane: 3, channel: Arc::from("chat"), epoch: 0x0102_0304_0506_0708, previous: vec![(1, 2)] };
    forward(
        Forward::Open(open),
        "00000028 02 00000023 0803 120463686174 190807060504030201 210100000000000000 210200000000000000",
    );
    let unnamed = Open { lane: 0, channel: Arc::from(""), epoch: 0, previous: vec![] };
    forward(Forward::Open(unnamed), "00000005 02 00000000");
}

#[test]
fn data() {
    let data =
        Data { lane: 3, seq: 300, tag: 0x1122_3344_5566_7788, ttl_left_ms: 1000, after: None, content: message() };
    forward(
        Forward::Data(data),
        "00000035 03 0000002e
         0803 10ac02 198877665544332211 20e807
         2a1b 0a026d31 120174 1a026d30 20ac02 2a060a0161120162 2a030a0163
         6869",
    );
}

#[test]
fn early_data() {
    let content = Content { id: "m".into(), ..Content::default() };
    let data = Data { lane: 1, seq: 1, tag: 2, ttl_left_ms: 3, after: Some(0), content };
    let header = "0801 1001 190200000000000000 2003 2a03 0a016d 310000000000000000";
    forward(Forward::Data(data), &format!("00000022 03 0000001d {header}"));
}

#[test]
fn skip() {
    let skip = Skip { lane: 3, from: 4, to: 5, tag: 1, lost: true, id: None };
    forward(Forward::Skip(skip), "00000016 04 00000011 0803 1004 1805 210100000000000000 2801");
    let asked = Skip { lane: 3, from: 4, to: 4, tag: 1, lost: false, id: Some("m".into()) };
    forward(Forward::Skip(asked), "00000017 04 00000012 0803 1004 1804 210100000000000000 32016d");
}

#[test]
fn query() {
    forward(Forward::Query(Query { lane: 3, id: "m1".into() }), "0000000b 05 00000006 0803 12026d31");
}

#[test]
fn ephemeral() {
    let ephemeral = Ephemeral { number: 7, channel: Arc::from("c"), content: message() };
    forward(
        Forward::Ephemeral(ephemeral),
        "00000029 06 00000022
         0807 120163
         2a1b 0a026d31 120174 1a026d30 20ac02 2a060a0161120162 2a030a0163
         6869",
    );
}

#[test]
fn presence() {
    let told = Presence { name: "pi".into(), roles: vec!["server".into(), "a.b".into()], text: "21 °C".into() };
    forward(Forward::Presence(told), "0000001e 08 00000019 0a027069 1206736572766572 1203612e62 1a063231 20c2b043");
    forward(Forward::Presence(Presence::default()), "00000005 08 00000000");
}

#[test]
fn bye() {
    forward(Forward::Bye, "00000005 07 00000000");
    back(Back::Bye, "00000005 49 00000000");
}

#[test]
fn welcome() {
    let welcome = Welcome { version: 1, features: 0, max_message_bytes: 1024 * 1024 };
    back(Back::Welcome(welcome), "0000000b 41 00000006 0801 18808040");
}

#[test]
fn refused() {
    back(Back::Refused(Refusal::Other), "00000005 42 00000000");
    back(Back::Refused(Refusal::Untrusted), "00000007 42 00000002 0801");
}

#[test]
fn lane_state() {
    let state = LaneState { lane: 3, high: 9, tag: 1, gaps: vec![(2, 3), (5, 5)], inherited: 0, floor: 0 };
    back(Back::LaneState(state), "0000001a 43 00000015 0803 1009 190100000000000000 2002 2003 2005 2005");
    back(
        Back::LaneState(LaneState { lane: 3, high: 0, tag: 0, gaps: vec![], inherited: 7, floor: 6 }),
        "0000000b 43 00000006 0803 2807 3006",
    );
}

#[test]
fn ack() {
    back(Back::Ack { lane: 3, high: 300 }, "0000000a 44 00000005 0803 10ac02");
}

#[test]
fn outcome() {
    let outcome = Outcome { lane: 3, id: "m1".into(), stored: true };
    back(Back::Outcome(outcome), "0000000d 45 00000008 0803 12026d31 1801");
}

#[test]
fn full() {
    for (limit, hex) in [
        (Limit::Other, "00000009 46 00000004 0803 1009"),
        (Limit::Inbox, "0000000b 46 00000006 0803 1009 1801"),
        (Limit::Peer, "0000000b 46 00000006 0803 1009 1802"),
        (Limit::Storage, "0000000b 46 00000006 0803 1009 1803"),
        (Limit::Lanes, "0000000b 46 00000006 0803 1009 1804"),
    ] {
        back(Back::Full(Full { lane: 3, next: 9, limit }), hex);
    }
}

#[test]
fn ready() {
    back(Back::Ready { lane: 3 }, "00000007 47 00000002 0803");
}

#[test]
fn ephemeral_result() {
    for (outcome, hex) in [
        (EphemeralOutcome::Other, "00000007 48 00000002 0807"),
        (EphemeralOutcome::Handed, "00000009 48 00000004 0807 1001"),
        (EphemeralOutcome::NoConsumer, "00000009 48 00000004 0807 1002"),
        (EphemeralOutcome::Busy, "00000009 48 00000004 0807 1003"),
    ] {
        back(Back::EphemeralResult { number: 7, outcome }, hex);
    }
}

/// Field 15, unknown here, as a varint, a text and a fixed64.
#[test]
fn fields_of_newer_versions_are_skipped() {
    let hello = Forward::Hello(Hello { version: 2, features: 0 });
    let unknown = [b"\x08\x02\x78\x05" as &[u8], b"\x7a\x01x\x08\x02", b"\x79\x01\x02\x03\x04\x05\x06\x07\x08\x08\x02"];
    for header in unknown {
        assert_eq!(decoder().forward(raw(0x01, header, b"")).unwrap(), hello);
    }
}

#[test]
fn numbers_of_newer_versions_are_other() {
    let read = |kind, header: &[u8]| decoder().back(raw(kind, header, b"")).unwrap();
    assert_eq!(read(0x42, b"\x08\x63"), Back::Refused(Refusal::Other));
    assert_eq!(read(0x46, b"\x08\x03\x10\x09\x18\x63"), Back::Full(Full { lane: 3, next: 9, limit: Limit::Other }));
    let other = Back::EphemeralResult { number: 7, outcome: EphemeralOutcome::Other };
    assert_eq!(read(0x48, b"\x08\x07\x10\x63"), other);
}
