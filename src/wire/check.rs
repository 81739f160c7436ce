//! The limits of a frame's fields, held on both ends: a sender must not write
//! what its peer would close the link for.

use super::{
    error::WireError,
    frames::{Back, Forward, MAX_EPOCHS, MAX_GAPS},
};
use crate::types::{
    Content, MAX_ALIAS_BYTES, MAX_METADATA_BYTES, MAX_METADATA_ENTRIES, MAX_NAME_BYTES, MAX_PRESENCE_BYTES,
    MAX_ROLE_BYTES, MAX_ROLES, MAX_TYPE_BYTES, Presence, Seq, is_alias, is_role,
};

/// Largest position in a lane: what the store's integers hold, and far from
/// where adding 1 overflows.
pub(super) const MAX_POSITION: Seq = i64::MAX as u64;

/// Checks all but the size of the whole; `max_payload` in bytes.
pub(super) fn forward(frame: &Forward, max_payload: u64) -> Result<(), WireError> {
    match frame {
        Forward::Hello(_) | Forward::Bye => Ok(()),
        Forward::Open(open) => {
            In("OPEN").at_most("previous", "entries", open.previous.len(), MAX_EPOCHS as u64)?;
            open.previous.iter().try_for_each(|(_, upto)| position(In("OPEN"), "previous", *upto, 0))?;
            name(In("OPEN"), "channel", &open.channel)
        }
        Forward::Data(data) => {
            position(In("DATA"), "seq", data.seq, 1)?;
            content(In("DATA"), &data.content, max_payload)
        }
        Forward::Skip(skip) => {
            position(In("SKIP"), "from", skip.from, 1)?;
            position(In("SKIP"), "to", skip.to, skip.from)?;
            skip.id.as_deref().map_or(Ok(()), |id| message_id(In("SKIP"), id))
        }
        Forward::Query(query) => message_id(In("QUERY"), &query.id),
        Forward::Presence(told) => presence(In("PRESENCE"), told),
        Forward::Ephemeral(ephemeral) => {
            name(In("EPHEMERAL"), "channel", &ephemeral.channel)?;
            content(In("EPHEMERAL"), &ephemeral.content, max_payload)
        }
    }
}

/// Checks a frame from the receiver.
pub(super) fn back(frame: &Back) -> Result<(), WireError> {
    match frame {
        Back::LaneState(state) => {
            position(In("LANE_STATE"), "high", state.high, 0)?;
            position(In("LANE_STATE"), "inherited", state.inherited, 0)?;
            position(In("LANE_STATE"), "floor", state.floor, 0)?;
            In("LANE_STATE").at_most("gaps", "entries", state.gaps.len(), MAX_GAPS as u64)?;
            state.gaps.iter().try_for_each(|&(first, last)| {
                position(In("LANE_STATE"), "gaps", first, 1)?;
                position(In("LANE_STATE"), "gaps", last, first)
            })
        }
        Back::Ack { high, .. } => position(In("ACK"), "high", *high, 0),
        Back::Full(full) => position(In("FULL"), "next", full.next, 1),
        Back::Outcome(outcome) => message_id(In("OUTCOME"), &outcome.id),
        Back::Welcome(_) | Back::Refused(_) | Back::Ready { .. } | Back::EphemeralResult { .. } | Back::Bye => Ok(()),
    }
}

/// The kind of frame that a check is about.
#[derive(Clone, Copy)]
struct In(&'static str);

impl In {
    fn bytes(self, field: &'static str, len: usize, max: u64) -> Result<(), WireError> {
        self.at_most(field, "bytes", len, max)
    }

    fn characters(self, field: &'static str, fits: bool) -> Result<(), WireError> {
        if fits { Ok(()) } else { Err(WireError::Characters { frame: self.0, field }) }
    }

    fn at_most(self, field: &'static str, unit: &'static str, len: usize, max: u64) -> Result<(), WireError> {
        if len as u64 > max { Err(WireError::TooLong { frame: self.0, field, len, unit, max }) } else { Ok(()) }
    }
}

fn content(frame: In, content: &Content, max_payload: u64) -> Result<(), WireError> {
    message_id(frame, &content.id)?;
    frame.bytes("type", content.kind.len(), MAX_TYPE_BYTES as u64)?;
    frame.bytes("reply_to", content.reply_to.len(), MAX_TYPE_BYTES as u64)?;
    frame.at_most("metadata", "entries", content.metadata.len(), MAX_METADATA_ENTRIES as u64)?;
    let metadata = content.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    frame.bytes("metadata", metadata, MAX_METADATA_BYTES as u64)?;
    frame.bytes("payload", content.payload.len(), max_payload)
}

/// Others show this to people and programs: both ends hold it to what the API
/// lets pass.
fn presence(frame: In, presence: &Presence) -> Result<(), WireError> {
    frame.bytes("name", presence.name.len(), MAX_ALIAS_BYTES as u64)?;
    frame.characters("name", presence.name.is_empty() || is_alias(&presence.name))?;
    frame.at_most("roles", "entries", presence.roles.len(), MAX_ROLES as u64)?;
    for role in &presence.roles {
        frame.bytes("roles", role.len(), MAX_ROLE_BYTES as u64)?;
        frame.characters("roles", is_role(role))?;
    }
    frame.bytes("text", presence.text.len(), MAX_PRESENCE_BYTES as u64)?;
    frame.characters("text", !presence.text.chars().any(char::is_control))
}

fn message_id(frame: In, id: &str) -> Result<(), WireError> {
    if id.is_empty() {
        return Err(WireError::Empty { frame: frame.0, field: "id" });
    }
    name(frame, "id", id)
}

fn name(frame: In, field: &'static str, value: &str) -> Result<(), WireError> {
    frame.bytes(field, value.len(), MAX_NAME_BYTES as u64)
}

fn position(frame: In, field: &'static str, value: Seq, min: Seq) -> Result<(), WireError> {
    if (min..=MAX_POSITION).contains(&value) {
        return Ok(());
    }
    Err(WireError::Position { frame: frame.0, field, value, min, max: MAX_POSITION })
}
