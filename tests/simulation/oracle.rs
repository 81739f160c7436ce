//! What must hold at the end of a run, and what it met on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
};

/// What a run met.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) stored: u64,
    pub(crate) cancelled: u64,
    pub(crate) expired: u64,
    pub(crate) rejected: u64,
    pub(crate) pending_resolved: u64,
    pub(crate) crashes: u64,
    pub(crate) rollbacks: u64,
    pub(crate) links: u64,
    pub(crate) renumbered: u64,
    pub(crate) refused_full: u64,
    pub(crate) lost_by_restore: u64,
    /// Holes that the peer was told of.
    pub(crate) holes: u64,
    /// Times that lanes began to wait for a direct link.
    pub(crate) held: u64,
    /// Messages that were taken before their lane was open.
    pub(crate) early: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.stored += other.stored;
        self.cancelled += other.cancelled;
        self.expired += other.expired;
        self.rejected += other.rejected;
        self.pending_resolved += other.pending_resolved;
        self.crashes += other.crashes;
        self.rollbacks += other.rollbacks;
        self.links += other.links;
        self.renumbered += other.renumbered;
        self.refused_full += other.refused_full;
        self.lost_by_restore += other.lost_by_restore;
        self.holes += other.holes;
        self.held += other.held;
        self.early += other.early;
    }
}

/// One arrival in a node's inbox, as its app would log it.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) channel: String,
    pub(crate) id: String,
}

/// Knowledge about the messages of one direction that no restore takes back.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    /// Order in which the sender's app handed over, by id.
    pub(crate) order: BTreeMap<String, u64>,
    /// The last epoch under which the receiver was given an id.
    pub(crate) epochs: BTreeMap<String, u64>,
    /// Ids that were in the receiver's store before it was restored.
    pub(crate) rolled_back: BTreeSet<String>,
    /// Positions that the receiver counted as lost by a restore.
    pub(crate) lost: u64,
    pub(crate) sender_restored: bool,
}

/// How the sender sees a message at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Stored,
    Cancelled,
    Expired,
    Rejected,
    Unfinished,
}

/// Checks one direction: what the sender believes against what arrived.
pub(crate) fn check(direction: &Direction, ends: &BTreeMap<String, End>, log: &[Arrived]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<(String, u64), (u64, String)> = BTreeMap::new();
    for arrived in log {
        if !seen.insert(arrived.id.clone()) {
            return Err(format!("doubled: {}", arrived.id));
        }
        let Some(&order) = direction.order.get(&arrived.id) else {
            return Err(format!("never sent: {}", arrived.id));
        };
        let epoch = direction.epochs.get(&arrived.id).copied().unwrap_or_default();
        let lane = (arrived.channel.clone(), epoch);
        if let Some((before, id)) = last.get(&lane)
            && *before >= order
        {
            return Err(format!("out of order on {lane:?}: {} after {id}", arrived.id));
        }
        last.insert(lane, (order, arrived.id.clone()));
    }
    let mut missing = 0;
    for (id, end) in ends {
        let arrived = seen.contains(id);
        match end {
            End::Unfinished => return Err(format!("never finished: {id}")),
            End::Stored if !arrived => {
                if !direction.rolled_back.contains(id) {
                    return Err(format!("lost: {id} counts as stored"));
                }
                missing += 1;
            }
            // A receiver that is restored to and fro may have told that it
            // does not have it, and have it again later.
            End::Cancelled | End::Expired | End::Rejected
                if arrived && !direction.sender_restored && !direction.rolled_back.contains(id) =>
            {
                return Err(format!("{id} ended as {end:?} and arrived all the same"));
            }
            _ => {}
        }
    }
    if missing > direction.lost {
        return Err(format!("{missing} messages missing, {} counted as lost by restore", direction.lost));
    }
    Ok(())
}
