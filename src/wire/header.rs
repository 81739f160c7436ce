//! The protobuf headers as they are read. Fields that a newer version adds are
//! skipped; absent ones have their default.
//!
//! Writing does not go through these types: prost encodes owned strings only,
//! so that each frame would be copied once to be written. [`super::fields`]
//! writes the same bytes from borrowed frames, and a test compares the two.

/// Of HELLO.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(uint64, tag = "2")]
    pub(super) features: u64,
}

/// Of OPEN.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Open {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
    #[prost(fixed64, tag = "3")]
    pub(super) epoch: u64,
    /// Epoch and position in turn.
    #[prost(fixed64, repeated, packed = "false", tag = "4")]
    pub(super) previous: Vec<u64>,
}

/// Of DATA.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Data {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) tag: u64,
    #[prost(uint64, tag = "4")]
    pub(super) ttl_left_ms: u64,
    #[prost(message, required, tag = "5")]
    pub(super) content: Content,
    #[prost(fixed64, optional, tag = "6")]
    pub(super) after: Option<u64>,
}

/// Of SKIP.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Skip {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(uint64, tag = "2")]
    pub(super) from: u64,
    #[prost(uint64, tag = "3")]
    pub(super) to: u64,
    #[prost(fixed64, tag = "4")]
    pub(super) tag: u64,
    #[prost(bool, tag = "5")]
    pub(super) lost: bool,
    #[prost(string, optional, tag = "6")]
    pub(super) id: Option<String>,
}

/// Of QUERY.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Query {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(string, tag = "2")]
    pub(super) id: String,
}

/// Of EPHEMERAL.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ephemeral {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
    #[prost(string, tag = "2")]
    pub(super) channel: String,
    #[prost(message, required, tag = "5")]
    pub(super) content: Content,
}

/// Of PRESENCE.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Presence {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) roles: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) text: String,
}

/// Of both kinds of BYE.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Bye {}

/// A message without its payload.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Content {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) kind: String,
    #[prost(string, tag = "3")]
    pub(super) reply_to: String,
    #[prost(int64, tag = "4")]
    pub(super) timestamp: i64,
    /// On the wire the same as `map<string, string>`; a list, so that a key
    /// given twice is seen.
    #[prost(message, repeated, tag = "5")]
    pub(super) metadata: Vec<Entry>,
}

/// An entry of the metadata.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Entry {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// Of WELCOME.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(uint64, tag = "2")]
    pub(super) features: u64,
    #[prost(uint64, tag = "3")]
    pub(super) max_message_bytes: u64,
}

/// Of REFUSED.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Refused {
    #[prost(uint32, tag = "1")]
    pub(super) refusal: u32,
}

/// Of LANE_STATE.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LaneState {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(uint64, tag = "2")]
    pub(super) high: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) tag: u64,
    /// First and last position of each gap in turn.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub(super) gaps: Vec<u64>,
    #[prost(uint64, tag = "5")]
    pub(super) inherited: u64,
    #[prost(uint64, tag = "6")]
    pub(super) floor: u64,
}

/// Of ACK.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ack {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(uint64, tag = "2")]
    pub(super) high: u64,
}

/// Of OUTCOME.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Outcome {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(string, tag = "2")]
    pub(super) id: String,
    #[prost(bool, tag = "3")]
    pub(super) stored: bool,
}

/// Of FULL.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Full {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
    #[prost(uint64, tag = "2")]
    pub(super) next: u64,
    #[prost(uint32, tag = "3")]
    pub(super) limit: u32,
}

/// Of READY.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ready {
    #[prost(uint32, tag = "1")]
    pub(super) lane: u32,
}

/// Of EPHEMERAL_RESULT.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EphemeralResult {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
    #[prost(uint32, tag = "2")]
    pub(super) outcome: u32,
}
