//! Does what the table says, and tells it what happens.

use libp2p::{
    Multiaddr, PeerId, Stream,
    core::ConnectedPoint,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::debug;

use super::{
    attempt::{Dials, known_quic},
    entry::{Circuit, Do, Interest, Speech},
    exchange::{Exchange, Heard, PROTOCOL, STOCK},
    own::nat_view,
    plan::Act,
};
use crate::{
    node::{NatView, PunchView},
    swarm::{
        link::behaviour::OpenError,
        pending::{Opening, Purpose},
        route::is_loopback,
        task::Task,
    },
    types::Route,
};

/// What of a peer's path is known here.
pub(in crate::swarm) struct Seen {
    pub(in crate::swarm) punches: Vec<PunchView>,
    pub(in crate::swarm) peer_nat: Option<NatView>,
    pub(in crate::swarm) next_try: Option<std::time::Duration>,
}

impl Task {
    /// A connection is up. Tells whether its address leads to the peer without
    /// the peer's help.
    pub(in crate::swarm) fn punch_connected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
        route: Route,
        now: Instant,
    ) -> bool {
        let act = self.punches.dialled(id);
        if endpoint.is_relayed() {
            let through = match endpoint {
                ConnectedPoint::Dialer { address, .. } => address,
                ConnectedPoint::Listener { local_addr, .. } => local_addr,
            };
            let circuit = Circuit { id, dialled: endpoint.is_dialer(), loopback: is_loopback(through) };
            let direct: Vec<_> =
                self.peers.get(&peer).map(|entry| entry.working_direct().collect()).unwrap_or_default();
            self.punches.circuit_up(peer, circuit, direct, self.punch_interest(&peer), now);
            self.punch_due(now);
        } else {
            let address = crate::swarm::route::without_peer(endpoint.get_remote_address());
            self.punches.direct_up(peer, id, &address, route == Route::Lan, now);
        }
        act.is_none() || route == Route::Lan
    }

    /// What a peer is to this node may have become different.
    pub(in crate::swarm) fn punch_attend(&mut self, peer: &PeerId, now: Instant) {
        self.punches.set_interest(peer, self.punch_interest(peer), now);
    }

    fn punch_interest(&self, peer: &PeerId) -> Interest {
        let Some(entry) = self.peers.get(peer).filter(|entry| !entry.is_blocked() && !self.draining) else {
            return Interest::default();
        };
        let asked = entry.connections.iter().any(|known| known.dialled && known.route == Route::Relayed);
        let trusted = entry.is_trusted();
        Interest { trusted, wanted: trusted || self.trust_open || entry.wanted || asked }
    }

    /// A peer told which protocols it speaks.
    pub(in crate::swarm) fn punch_identified(&mut self, peer: PeerId, info: &libp2p::identify::Info, now: Instant) {
        let speech = match () {
            () if info.protocols.contains(&PROTOCOL) => Speech::Ours,
            () if info.protocols.contains(&STOCK) => Speech::Stock,
            () => Speech::Neither,
        };
        self.punches.speaks(&peer, speech, now);
        self.punch_due(now);
    }

    /// The peer began an exchange.
    pub(in crate::swarm) fn punch_accepted(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        stock: bool,
        stream: Stream,
        place: OwnedSemaphorePermit,
        now: Instant,
    ) {
        let Ok(slot) = self.exchanges.slots.clone().try_acquire_owned() else {
            return debug!(%peer, "too many exchanges for direct connections");
        };
        let Some(attempt) = self.punches.accept(peer, connection, stock, now) else {
            return debug!(%peer, "an exchange for a direct connection is not answered");
        };
        if self.peers.get(&peer).is_some_and(|entry| entry.direct().is_some()) {
            // The peer knows of none that works.
            self.suspect_peer(peer, now);
        }
        self.exchange(peer, attempt, false, stock, stream, (slot, Some(place)), now);
    }

    /// The stream of an exchange that this side leads is open.
    pub(in crate::swarm) fn punch_opened(
        &mut self,
        peer: PeerId,
        attempt: u64,
        stock: bool,
        stream: Stream,
        now: Instant,
    ) {
        if !self.punches.is_running(&peer, attempt) {
            return debug!(%peer, "the peer was faster to begin an exchange");
        }
        match self.exchanges.slots.clone().try_acquire_owned() {
            Ok(slot) => self.exchange(peer, attempt, true, stock, stream, (slot, None), now),
            Err(_) => self.punch_refused(peer, attempt, None, now),
        }
    }

    /// It could not be opened.
    pub(in crate::swarm) fn punch_refused(
        &mut self,
        peer: PeerId,
        attempt: u64,
        error: Option<&OpenError>,
        now: Instant,
    ) {
        let unsupported = matches!(error, Some(OpenError::Unsupported(_)));
        let cause = error.map_or_else(|| "no exchange was possible".to_owned(), ToString::to_string);
        self.punches.refused(&peer, attempt, unsupported, cause, now);
        self.punch_due(now);
    }

    #[expect(clippy::too_many_arguments, reason = "what an exchange consists of")]
    fn exchange(
        &mut self,
        peer: PeerId,
        attempt: u64,
        leader: bool,
        stock: bool,
        stream: Stream,
        places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
        now: Instant,
    ) {
        let mine = self.own_offer(&peer, now);
        let known = if leader { self.punch_known(&peer) } else { Vec::new() };
        self.punches.begin(&peer, attempt, mine.clone(), &known, now);
        let heard = self.exchanges.heard.clone();
        tokio::spawn(async move {
            Exchange { peer, attempt, leader, stock, mine, heard }.run(stream).await;
            drop(places);
        });
    }

    /// Where the peer was, or is said to be.
    fn punch_known(&self, peer: &PeerId) -> Vec<crate::wire::punch::Candidate> {
        let told = self.punches.theirs(peer).into_iter().flat_map(|theirs| &theirs.candidates);
        let told = told.map(|known| known.address());
        let known: Vec<Multiaddr> = self.peers.get(peer).map(|entry| entry.addresses()).unwrap_or_default();
        known_quic(told.chain(known))
    }

    /// An exchange came further.
    pub(in crate::swarm) fn on_punch_heard(&mut self, heard: Heard) {
        let now = Instant::now();
        let Heard { peer, attempt, what } = heard;
        debug!(%peer, ?what, "direct connection");
        self.punches.heard(peer, attempt, what, now);
        self.punch_due(now);
    }

    /// Does all that is to be done now.
    pub(in crate::swarm) fn punch_due(&mut self, now: Instant) {
        while let Some(due) = self.punches.pop_due(now) {
            match due {
                Do::Lead { peer, connection, attempt, stock } => {
                    let purpose = Purpose::Punch { attempt, stock };
                    let token = self.pending.opening(Opening { peer, connection, purpose });
                    let protocol = if stock { STOCK } else { PROTOCOL };
                    self.swarm.behaviour_mut().link.open(peer, connection, protocol, token);
                }
                Do::Dial { peer, attempt, dials } => self.punch_dial(peer, attempt, dials),
            }
        }
    }

    fn punch_dial(&mut self, peer: PeerId, attempt: u64, dials: Dials) {
        let Dials { act, targets, token } = dials;
        // One dial for all ends with the first connection; what depends on the
        // other side's packets is tried again for each on its own.
        let groups: Vec<_> = match act {
            Act::Dial => vec![targets],
            Act::Punch | Act::Open | Act::Accept => targets.into_iter().map(|target| vec![target]).collect(),
        };
        for group in groups {
            let Some(target) = group.first().copied().filter(|_| self.punches.has_room()) else { return };
            let options = DialOpts::peer_id(peer).condition(PeerCondition::Always);
            let options = options.addresses(group.iter().map(|target| target.address()).collect());
            let options = match act {
                Act::Dial | Act::Open => options.build(),
                // The transport punches if it is to listen on a port of its own.
                Act::Punch => options.override_role().allocate_new_port().build(),
                Act::Accept => options.override_role().build(),
            };
            let id = options.connection_id();
            debug!(%peer, ?act, to = ?group.iter().map(|target| target.socket).collect::<Vec<_>>(), "direct connection");
            match self.scope.within(&token, || self.swarm.dial(options)) {
                Ok(()) => self.punches.dialling(id, peer, attempt, act, target),
                Err(error) => debug!(%peer, %error, "direct connection"),
            }
        }
    }

    /// A dial failed; `false` if it was no dial of a punch.
    pub(in crate::swarm) fn punch_dial_failed(&mut self, id: ConnectionId, now: Instant) -> bool {
        self.punches.dial_failed(id, now)
    }

    /// What is known of the way to a peer.
    pub(in crate::swarm) fn punch_view(&self, peer: &PeerId, now: Instant) -> Seen {
        Seen {
            punches: self.punches.rounds(peer, now),
            peer_nat: self.punches.theirs(peer).map(nat_view),
            next_try: self.punches.next_try(peer, now),
        }
    }
}
