//! What the protocol's machines want from the store, as operations on it.
//!
//! Shared by the tasks of `super::outbound` and `super::inbound` and by the
//! simulation, so that the latter tests what the daemon runs.

use libp2p::PeerId;

use crate::{
    protocol::{ReceiverEffect, ReceiverInput, SenderEffect, SenderInput},
    store::{Arrival, BatchDone, Db, StoreError},
};

/// Runs a sender's wish and returns the answer it waits for, if it does.
/// Effects that are not for the store do nothing.
///
/// # Errors
/// When the store fails.
pub fn run_sender(db: &mut Db, peer: &PeerId, effect: SenderEffect) -> Result<Option<SenderInput>, StoreError> {
    Ok(match effect {
        SenderEffect::Prepare { channel, epoch, request, high, gaps } => {
            let info = db.prepare_lane(peer, &channel, epoch, high, &gaps)?;
            Some(SenderInput::Prepared { channel, request, info })
        }
        SenderEffect::Load { channel, epoch, from, max_bytes, max_rows } => {
            let rows = db.load_rows(peer, &channel, epoch, from, max_bytes, max_rows)?;
            Some(SenderInput::Loaded { channel, epoch, rows })
        }
        SenderEffect::Acked { channel, epoch, seq, tag, .. } => {
            db.acked(peer, &channel, epoch, seq, tag)?;
            None
        }
        SenderEffect::Resolved { channel, id, stored } => {
            db.resolved(peer, &channel, &id, stored)?;
            None
        }
        SenderEffect::Renumber { channel, epoch } => db.renumber(peer, &channel, epoch)?.map(SenderInput::Renumbered),
        SenderEffect::Lost { channel, count } => {
            db.count_lost(peer, &channel, count)?;
            None
        }
        SenderEffect::Reject { channel, epoch, seq, .. } => db
            .reject(peer, &channel, epoch, seq)?
            .map(|buried| SenderInput::Buried { channel, epoch, seq, id: buried.id }),
        SenderEffect::Hide => {
            db.hide_lanes(peer)?;
            None
        }
        SenderEffect::Rescan => Some(SenderInput::Lanes(db.lanes_to(peer)?)),
        SenderEffect::Send(..) | SenderEffect::Close(..) | SenderEffect::EphemeralDone(..) => None,
    })
}

/// Runs a receiver's wish and returns the answer it waits for, with what a
/// batch did. Effects that are not for the store do nothing.
///
/// # Errors
/// When the store fails.
pub fn run_receiver(
    db: &mut Db,
    arrival: &Arrival,
    effect: ReceiverEffect,
) -> Result<Option<(ReceiverInput, Option<BatchDone>)>, StoreError> {
    Ok(match effect {
        ReceiverEffect::OpenLane { link, lane, channel, epoch, previous } => {
            let state = db.open_lane(&arrival.peer, &channel, epoch, &previous)?;
            Some((ReceiverInput::LaneOpened { link, lane, state }, None))
        }
        ReceiverEffect::Commit(batch) => {
            let mut done = db.commit_inbound(arrival, batch)?;
            let lanes = std::mem::take(&mut done.lanes);
            Some((ReceiverInput::Committed(lanes), Some(done)))
        }
        ReceiverEffect::Lookup { link, lane, channel, id } => {
            let stored = db.was_stored(&arrival.peer, &channel, &id)?;
            Some((ReceiverInput::LookedUp { link, lane, id, stored }, None))
        }
        ReceiverEffect::Send(..)
        | ReceiverEffect::Close(..)
        | ReceiverEffect::Ephemeral { .. }
        | ReceiverEffect::Presence { .. } => None,
    })
}
