//! Circuits to be dialled once their relay is connected.
//!
//! libp2p's client would dial the relay by itself, over the one address of the
//! circuit, and fail if anyone is dialling it already. It also refuses more
//! than ten circuits being opened over one connection.

use std::collections::HashMap;

use libp2p::{
    PeerId,
    swarm::{ConnectionId, dial_opts::DialOpts},
};

/// Circuits being opened over one relay at once.
const MAX_OPENING: usize = 8;

/// Circuits that wait. As many as dials may be under way, which bounds them.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Errands {
    waiting: Vec<(PeerId, DialOpts)>,
    /// Being opened, and over which relay.
    opening: HashMap<ConnectionId, PeerId>,
}

impl Errands {
    /// A circuit is to be opened over a relay.
    pub(in crate::swarm) fn add(&mut self, relay: PeerId, options: DialOpts) {
        self.waiting.push((relay, options));
    }

    /// A circuit to open now over a relay that is connected.
    pub(in crate::swarm) fn pop(&mut self, relay: &PeerId) -> Option<DialOpts> {
        if self.opening.values().filter(|other| *other == relay).count() >= MAX_OPENING {
            return None;
        }
        let at = self.waiting.iter().position(|(other, _)| other == relay)?;
        let (relay, options) = self.waiting.remove(at);
        self.opening.insert(options.connection_id(), relay);
        Some(options)
    }

    /// A dial ended, one of these or another; the relay if it was.
    pub(in crate::swarm) fn ended(&mut self, id: ConnectionId) -> Option<PeerId> {
        self.opening.remove(&id)
    }

    /// The relay cannot be reached: those that waited for it.
    pub(in crate::swarm) fn give_up(&mut self, relay: &PeerId) -> Vec<ConnectionId> {
        self.waiting.extract_if(.., |(other, _)| other == relay).map(|(_, options)| options.connection_id()).collect()
    }

    /// A circuit is not waited for any longer; whether it was still to be opened.
    pub(in crate::swarm) fn cancel(&mut self, id: ConnectionId) -> bool {
        self.waiting.extract_if(.., |(_, options)| options.connection_id() == id).next().is_some()
    }

    /// Whether any wait for the relay.
    pub(in crate::swarm) fn wait_for(&self, relay: &PeerId) -> bool {
        self.waiting.iter().any(|(other, _)| other == relay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_opened_at_once_and_each_once() {
        let (relay, other) = (PeerId::random(), PeerId::random());
        let mut errands = Errands::default();
        for _ in 0..MAX_OPENING + 2 {
            errands.add(relay, DialOpts::peer_id(PeerId::random()).build());
        }
        assert!(errands.pop(&other).is_none());
        let opened: Vec<_> = std::iter::from_fn(|| errands.pop(&relay)).collect();
        assert_eq!(opened.len(), MAX_OPENING);
        assert_eq!(errands.ended(opened[0].connection_id()), Some(relay));
        assert_eq!(errands.ended(opened[0].connection_id()), None);
        assert!(errands.pop(&relay).is_some() && errands.pop(&relay).is_none());
        assert!(errands.wait_for(&relay));
        let late = DialOpts::peer_id(PeerId::random()).build();
        let id = late.connection_id();
        errands.add(relay, late);
        assert!(errands.cancel(id) && !errands.cancel(id));
        assert!(!errands.cancel(opened[1].connection_id()), "that one is the swarm's");
        assert_eq!(errands.give_up(&relay).len(), 1);
        assert!(!errands.wait_for(&relay));
    }
}
