//! The numbers of the frame kinds. Those of the two directions differ, so that
//! a frame read on the wrong end of a link is refused by its kind.

use super::frames::{Back, Forward};

pub(super) const HELLO: u8 = 0x01;
pub(super) const OPEN: u8 = 0x02;
pub(super) const DATA: u8 = 0x03;
pub(super) const SKIP: u8 = 0x04;
pub(super) const QUERY: u8 = 0x05;
pub(super) const EPHEMERAL: u8 = 0x06;
pub(super) const BYE: u8 = 0x07;
pub(super) const PRESENCE: u8 = 0x08;

pub(super) const WELCOME: u8 = 0x41;
pub(super) const REFUSED: u8 = 0x42;
pub(super) const LANE_STATE: u8 = 0x43;
pub(super) const ACK: u8 = 0x44;
pub(super) const OUTCOME: u8 = 0x45;
pub(super) const FULL: u8 = 0x46;
pub(super) const READY: u8 = 0x47;
pub(super) const EPHEMERAL_RESULT: u8 = 0x48;
pub(super) const BACK_BYE: u8 = 0x49;

pub(super) fn of_forward(frame: &Forward) -> u8 {
    match frame {
        Forward::Hello(_) => HELLO,
        Forward::Open(_) => OPEN,
        Forward::Data(_) => DATA,
        Forward::Skip(_) => SKIP,
        Forward::Query(_) => QUERY,
        Forward::Ephemeral(_) => EPHEMERAL,
        Forward::Presence(_) => PRESENCE,
        Forward::Bye => BYE,
    }
}

pub(super) fn of_back(frame: &Back) -> u8 {
    match frame {
        Back::Welcome(_) => WELCOME,
        Back::Refused(_) => REFUSED,
        Back::LaneState(_) => LANE_STATE,
        Back::Ack { .. } => ACK,
        Back::Outcome(_) => OUTCOME,
        Back::Full(_) => FULL,
        Back::Ready { .. } => READY,
        Back::EphemeralResult { .. } => EPHEMERAL_RESULT,
        Back::Bye => BACK_BYE,
    }
}

/// Name of a kind in errors; none if it is unknown.
pub(super) fn name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        HELLO => "HELLO",
        OPEN => "OPEN",
        DATA => "DATA",
        SKIP => "SKIP",
        QUERY => "QUERY",
        EPHEMERAL => "EPHEMERAL",
        PRESENCE => "PRESENCE",
        BYE | BACK_BYE => "BYE",
        WELCOME => "WELCOME",
        REFUSED => "REFUSED",
        LANE_STATE => "LANE_STATE",
        ACK => "ACK",
        OUTCOME => "OUTCOME",
        FULL => "FULL",
        READY => "READY",
        EPHEMERAL_RESULT => "EPHEMERAL_RESULT",
        _ => return None,
    })
}
