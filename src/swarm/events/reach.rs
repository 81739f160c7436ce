//! What others see of this node, and which of its addresses work.

use std::net::IpAddr;

use libp2p::{
    PeerId, Stream,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use crate::{
    node::{AddressSource, NatClass, NatView, Verdict},
    ports::Control,
    swarm::{
        pending::{Opening, Purpose},
        reach::{
            self, Report,
            client::{ask, take_nonce},
            place::Place,
            server::{DialBackJob, LINGER, reject, serve},
            target::{Change, Target},
            verdicts::{Answer, Question},
        },
        surroundings::Surroundings,
        task::Task,
    },
    wire::autonat::DialStatus,
};

impl Task {
    /// Addresses came or went, or a server told what it sees.
    pub(in crate::swarm) fn on_reach_changed(&mut self, now: Instant) {
        self.reach.set_listen(self.listeners.addresses());
        self.reach.refresh(now);
        self.swarm.behaviour_mut().find.set_seen(self.reach.seen(now));
        self.log_nat(now);
        self.tell_mapping(now);
        self.tell_reach();
        self.ask_due(now);
    }

    /// Once for each kind of NAT that is found.
    fn log_nat(&mut self, now: Instant) {
        for v6 in [false, true] {
            let nat = self.reach.nat(v6, now);
            let before = std::mem::replace(&mut self.reach.logged[usize::from(v6)], (nat.class, nat.public_ip));
            if let Some(public_ip) = nat.public_ip
                && nat.class != NatClass::Unknown
                && before != (nat.class, Some(public_ip))
            {
                let NatView { class, port_kept, port_step, .. } = nat;
                info!(?class, %public_ip, ?port_kept, ?port_step, "found how others see this node");
            }
        }
    }

    pub(in crate::swarm) fn on_surroundings(&mut self, change: Surroundings, now: Instant) {
        match change {
            Surroundings::Network => self.on_network_changed(now),
            Surroundings::Mapped(mapped) => {
                self.reach.set_mapped(&mapped);
                self.on_reach_changed(now);
            }
        }
    }

    /// An interface, an address or the default route came or went: what was
    /// seen and tried before says little now.
    fn on_network_changed(&mut self, now: Instant) {
        self.redial.network_changed(now, rand::random);
        self.relays.client.network_changed();
        self.reach.network_changed(now);
        self.on_reach_changed(now);
        self.tend_relays(now);
        self.punches.changed(now);
        self.punch_due(now);
        // Connections from an address that is gone say nothing of it.
        self.suspect_all(now);
    }

    /// A router that gives another address than this is behind another NAT.
    fn tell_mapping(&self, now: Instant) {
        if let (Some(mapping), Some(IpAddr::V4(ip))) = (&self.mapping, self.reach.nat(false, now).public_ip) {
            mapping.observed(Some(ip));
        }
    }

    /// Tells the rest which addresses others are to know, and whom to serve.
    fn tell_reach(&mut self) {
        self.external.set_verified(self.reach.confirmed());
        self.tell_external();
        self.set_public(self.reach.is_public());
        self.punch_own_changed(Instant::now());
    }

    /// Puts the questions that are due.
    pub(in crate::swarm) fn ask_due(&mut self, now: Instant) {
        while !self.draining
            && let Some(question) = self.reach.verdicts.due(now)
        {
            let Question { peer, connection, .. } = question;
            let opening = Opening { peer, connection, purpose: Purpose::Verify(Box::new(question)) };
            let token = self.pending.opening(opening);
            self.swarm.behaviour_mut().link.open(peer, connection, reach::DIAL_REQUEST, token);
        }
    }

    /// The stream for a question is open. Bounded by the questions under way.
    pub(super) fn put_question(&mut self, stream: Stream, question: Question) {
        let (nonces, reports) = (self.reach.nonces.clone(), self.reach.reports.clone());
        tokio::spawn(async move {
            let answer = ask(stream, &question.place.address(), &nonces).await;
            // The task may be gone.
            let _ = reports.send(Report::Answered(question, answer)).await;
        });
    }

    pub(in crate::swarm) fn on_reach_report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Answered(question, answer) => self.on_answer(&question, answer, now),
            Report::DialBack(job) => self.dial_back(job),
            Report::Served(peer, connection) => self.close_served(peer, connection),
        }
    }

    pub(super) fn on_answer(&mut self, question: &Question, answer: Answer, now: Instant) {
        let address = question.place.address();
        debug!(%address, peer = %question.peer, ?answer, "asked whether an address works");
        let before = self.reach.verdicts.get(&question.place).map(Target::verdict);
        match self.reach.verdicts.answered(question, answer, now, rand::random()) {
            Some(Change::Confirmed) => info!(%address, by = %question.peer, "reachable from outside"),
            Some(Change::Failed(cause)) => {
                self.on_failed(question.place, &cause);
            }
            None if answer == Answer::Reachable && before == Some(Verdict::Assumed) => {
                info!(%address, by = %question.peer, "reachable from outside");
            }
            None => {}
        }
        self.tell_reach();
        self.ask_due(now);
    }

    /// Servers could not connect to an address that others were told of.
    fn on_failed(&self, place: Place, cause: &str) {
        let (address, target) = (place.address(), self.reach.verdicts.get(&place));
        if target.is_some_and(|target| target.advertised) {
            warn!(%address, %cause, "the settings say that this address works, but it does not");
        } else {
            info!(%address, %cause, "not reachable from outside any more");
        }
        if target.is_some_and(|target| target.source == AddressSource::Mapped) {
            // Routers forget.
            self.mapping.iter().for_each(Control::refresh);
        }
    }

    /// A peer connected back and brings a nonce.
    pub(super) fn take_nonce(&self, connection: ConnectionId, stream: Stream, place: OwnedSemaphorePermit) {
        let nonces = self.reach.nonces.clone();
        if self.reach.is_direct(connection) && nonces.any() {
            tokio::spawn(async move {
                take_nonce(stream, nonces).await;
                drop(place);
            });
        }
    }

    /// A peer asks to be connected to. Bounded by the places on its connection
    /// and by what is served at once.
    pub(super) fn connect_back(
        &mut self,
        connection: ConnectionId,
        stream: Stream,
        place: OwnedSemaphorePermit,
        now: Instant,
    ) {
        let Some(client) = self.reach.client(connection).filter(|_| self.relays.server.is_active()) else { return };
        let slot = if self.draining { None } else { self.reach.serving.admit(client.ip, now) };
        let reports = self.reach.reports.clone();
        tokio::spawn(async move {
            match slot {
                Some(slot) => {
                    let peer = client.peer;
                    let served = serve(stream, client, &reports).await;
                    drop((slot, place));
                    if let Some(connection) = served {
                        sleep(LINGER).await;
                        // The task may be gone.
                        let _ = reports.send(Report::Served(peer, connection)).await;
                    }
                }
                None => reject(stream).await,
            }
        });
    }

    /// From another port than the one that the peer knows, which its NAT may
    /// let in.
    fn dial_back(&mut self, job: DialBackJob) {
        let options = DialOpts::peer_id(job.peer)
            .condition(PeerCondition::Always)
            .addresses(vec![job.address.clone()])
            .allocate_new_port()
            .build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => self.reach.serving.dialling(id, job),
            Err(error) => drop(job.reply.send(Err(blame(&error)))),
        }
    }

    /// The connection is there: the nonce goes over it.
    pub(super) fn on_dialled_back(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(job) = self.reach.serving.dialled(connection) else { return };
        let token = self.pending.opening(Opening { peer, connection, purpose: Purpose::DialBack(job.reply) });
        self.swarm.behaviour_mut().link.open(peer, connection, reach::DIAL_BACK, token);
    }

    /// Whether the dial that failed was for a peer that asked.
    pub(in crate::swarm) fn on_dial_back_failed(&mut self, id: ConnectionId, error: &DialError) -> bool {
        let Some(job) = self.reach.serving.dialled(id) else { return false };
        debug!(peer = %job.peer, address = %job.address, %error, "could not connect back");
        // The client may be gone.
        let _ = job.reply.send(Err(blame(error)));
        true
    }

    /// The connection back is of no more use, unless links run on it.
    fn close_served(&mut self, peer: PeerId, connection: ConnectionId) {
        if self.peers.get(&peer).is_none_or(|entry| !entry.steer.is_allowed()) {
            self.swarm.close_connection(connection);
        }
    }
}

/// What the failure says of the peer's address; nothing if it is of this node's
/// own making.
fn blame(error: &DialError) -> Option<DialStatus> {
    match error {
        DialError::Transport(_) | DialError::WrongPeerId { .. } => Some(DialStatus::DialError),
        _ => None,
    }
}
