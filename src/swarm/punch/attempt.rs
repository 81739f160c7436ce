//! One round with one peer, from the exchange to its end.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};

use libp2p::Multiaddr;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan::{self, Act, Clock, Plan, ROUND, Step, Terms};
use crate::{
    node::PunchView,
    swarm::route::{is_local, is_special},
    wire::punch::{Candidate, CandidateKind, Offer, Transport},
};

/// From the wish to exchange to what the peer brings, at most.
const EXCHANGE: Duration = Duration::from_secs(6);
/// A punch or a TCP dial from both sides that failed at once goes again after
/// this: the other side's packet may have been too early, or what is left of
/// the round before is in the way.
const AGAIN: Duration = Duration::from_millis(80);
/// How often at one address.
const MAX_AGAIN: u32 = 6;
/// Addresses listed of one round.
const MAX_LISTED: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: u64,
    /// This side opened the exchange.
    pub(super) leader: bool,
    /// In libp2p's protocol.
    pub(super) stock: bool,
    pub(super) round: u32,
    pub(super) begun: Instant,
    /// When it is over.
    pub(super) ends: Instant,
    /// What this side brings, once that is said.
    pub(super) mine: Option<Offer>,
    /// What the peer brings.
    pub(super) theirs: Option<Offer>,
    pub(super) plan: Option<Plan>,
    /// What is still to be done, in no order; bounded by the plan.
    schedule: Vec<Task>,
    /// Steps that wait for the peer's SYNC.
    waiting: Vec<Step>,
    /// How often an address was tried again; bounded by the plan.
    again: HashMap<(Act, SocketAddr), u32>,
    tried: Vec<Multiaddr>,
    /// Ends all dials but those within the local network.
    far: CancellationToken,
    /// Ends those.
    near: CancellationToken,
}

#[derive(Debug)]
struct Task {
    at: Instant,
    act: Act,
    targets: Vec<Candidate>,
}

/// Dials to begin; they end with the token.
#[derive(Debug)]
pub(super) struct Dials {
    pub(super) act: Act,
    pub(super) targets: Vec<Candidate>,
    pub(super) token: CancellationToken,
}

/// How a round ended.
#[derive(Debug)]
pub(super) struct Record {
    begun: Instant,
    round: u32,
    words: String,
    tried: Vec<Multiaddr>,
    ended: Option<Duration>,
    outcome: Option<Result<Multiaddr, String>>,
}

impl Attempt {
    pub(super) fn new(id: u64, leader: bool, stock: bool, round: u32, now: Instant) -> Self {
        Self {
            id,
            leader,
            stock,
            round,
            begun: now,
            ends: now + EXCHANGE,
            mine: None,
            theirs: None,
            plan: None,
            schedule: Vec::new(),
            waiting: Vec::new(),
            again: HashMap::new(),
            tried: Vec::new(),
            far: CancellationToken::new(),
            near: CancellationToken::new(),
        }
    }

    /// The exchange begins; addresses known from before are dialled meanwhile.
    pub(super) fn begin(&mut self, mine: Offer, known: &[Candidate], now: Instant) {
        self.mine = Some(mine);
        let early = plan::early(known);
        self.schedule.extend(early.into_iter().map(|step| Task::new(step, now)));
    }

    /// What the peer brings is here.
    pub(super) fn heard(&mut self, theirs: Offer, terms: Terms, now: Instant) {
        let Some(mine) = &self.mine else { return };
        if !self.leader && !self.stock {
            self.round = theirs.round.max(1);
        }
        let terms = Terms { round: self.round, ..terms };
        let plan = if self.stock { plan::stock(mine, &theirs, terms) } else { plan::plan(mine, &theirs, terms) };
        self.schedule.clear();
        for step in plan.steps.iter().cloned() {
            match (step.clock, self.leader) {
                (Clock::Heard, _) => self.schedule.push(Task::new(step, now)),
                (Clock::Synced, true) => {
                    let half = terms.rtt.unwrap_or_default() / 2;
                    self.schedule.push(Task::new(step, now + half));
                }
                (Clock::Synced, false) => self.waiting.push(step),
            }
        }
        self.ends = now + ROUND;
        self.theirs = Some(theirs);
        self.plan = Some(plan);
    }

    /// The peer said SYNC.
    pub(super) fn synced(&mut self, now: Instant) {
        self.schedule.extend(self.waiting.drain(..).map(|step| Task::new(step, now)));
    }

    /// A dial of this round failed. Those that need the other side's packet to
    /// be out go again.
    pub(super) fn failed(&mut self, act: Act, target: Candidate, now: Instant) {
        if act == Act::Dial || now + AGAIN >= self.ends {
            return;
        }
        let again = self.again.entry((act, target.socket)).or_default();
        if *again < MAX_AGAIN {
            *again += 1;
            self.schedule.push(Task { at: now + AGAIN, act, targets: vec![target] });
        }
    }

    /// When something is to be done next.
    pub(super) fn next(&self) -> Instant {
        self.schedule.iter().map(|task| task.at).min().map_or(self.ends, |at| at.min(self.ends))
    }

    /// What is to be dialled now.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Dials> {
        let (position, _) =
            self.schedule.iter().enumerate().filter(|(_, task)| task.at <= now).min_by_key(|(_, task)| task.at)?;
        let Task { act, targets, .. } = self.schedule.swap_remove(position);
        // Dials end in groups, so each is within the local network or not.
        let (near, far): (Vec<_>, Vec<_>) = targets.into_iter().partition(|known| is_local(known.socket.ip()));
        let (targets, token) = match (near.is_empty(), far.is_empty()) {
            (true, _) => (far, self.far.clone()),
            (false, true) => (near, self.near.clone()),
            (false, false) => {
                self.schedule.push(Task { at: now, act, targets: far });
                (near, self.near.clone())
            }
        };
        self.note(&targets);
        Some(Dials { act, targets, token })
    }

    fn note(&mut self, targets: &[Candidate]) {
        for address in targets.iter().map(Candidate::address) {
            if self.tried.len() < MAX_LISTED && !self.tried.contains(&address) {
                self.tried.push(address);
            }
        }
    }

    /// Whether this side had nothing to say that the peer can use.
    pub(super) fn is_blind(&self) -> bool {
        self.mine.as_ref().is_some_and(is_blind)
    }

    /// The same of the peer.
    pub(super) fn is_peer_blind(&self) -> bool {
        self.theirs.as_ref().is_some_and(is_blind)
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.hopeless)
    }

    /// Why it failed, if nothing else is known.
    pub(super) fn cause(&self) -> String {
        match (&self.mine, &self.theirs) {
            (Some(mine), Some(theirs)) if !self.stock => plan::cause(mine, theirs).to_owned(),
            (_, Some(_)) => "nothing came through".to_owned(),
            _ => "the peer did not answer over the relay".to_owned(),
        }
    }

    /// It is over. What is still being dialled is given up, but within the
    /// local network only if that way is there already: it is the better one.
    pub(super) fn end(self, outcome: Result<Multiaddr, String>, near: bool, now: Instant) -> Record {
        self.far.cancel();
        if near || outcome.is_err() {
            self.near.cancel();
        }
        let record = self.record();
        Record { ended: Some(now.saturating_duration_since(self.begun)), outcome: Some(outcome), ..record }
    }

    /// As it stands now.
    pub(super) fn record(&self) -> Record {
        let words = self.plan.as_ref().map_or("asking over the relay", |plan| plan.words.as_str());
        Record {
            begun: self.begun,
            round: self.round,
            words: words.to_owned(),
            tried: self.tried.clone(),
            ended: None,
            outcome: None,
        }
    }
}

impl Task {
    fn new(step: Step, start: Instant) -> Self {
        Self { at: start + step.after, act: step.act, targets: step.targets }
    }
}

impl Record {
    pub(super) fn view(&self, now: Instant) -> PunchView {
        PunchView {
            age: now.saturating_duration_since(self.begun),
            round: self.round,
            plan: self.words.clone(),
            addresses: self.tried.clone(),
            took: self.ended,
            outcome: self.outcome.clone(),
        }
    }
}

/// Whether it holds no address outside the side's own network.
fn is_blind(offer: &Offer) -> bool {
    let far = |known: &Candidate| known.kind != CandidateKind::Local || !is_local(known.socket.ip());
    !offer.candidates.iter().any(far)
}

/// QUIC addresses at which a peer may be, from what is known of it.
pub(super) fn known_quic(addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<Candidate> {
    let mut seen = HashSet::new();
    let known = addresses.into_iter().filter_map(|address| Candidate::of(&address, CandidateKind::Observed));
    known
        .filter(|known| known.transport == Transport::Quic)
        .filter(|known| !is_local(known.socket.ip()) && !is_special(known.socket.ip()))
        .filter(|known| seen.insert(known.socket))
        .collect()
}
