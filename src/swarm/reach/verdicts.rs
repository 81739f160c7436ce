//! Which addresses of this node work, by servers that connected back to them;
//! and when to ask again.
//!
//! An address is asked about when it appears, again from time to time, and
//! soon after a server could not reach it. One that others were told of is
//! withdrawn when two hosts say so, or one three times where there is no other.
//! Anybody can say so: where there is a server that the user confided in, it is
//! asked before strangers are believed.

use std::{collections::HashMap, time::Duration};

use libp2p::{PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::place::{Host, Place, Transport};
use crate::node::{AddressSource, Verdict};

/// Addresses that are asked about: two transports, two families, an interface,
/// a mapping and what is observed of each.
const MAX_TARGETS: usize = 16;
/// Verdicts kept of one address.
const MAX_VERDICTS: usize = 4;
/// Servers known at once.
const MAX_SERVERS: usize = 64;
/// Questions under way at once, so that a network change makes no storm.
pub(super) const MAX_ASKING: usize = 2;
/// An address that works is asked about again after about so long.
const CANARY: Duration = Duration::from_secs(600);
/// One that does not.
const HOPELESS: Duration = Duration::from_secs(1800);
/// After a first verdict another server is asked.
const SECOND_OPINION: Duration = Duration::from_secs(5);
/// First wait after a server gave no verdict; it doubles up to [`CANARY`].
const NO_VERDICT: Duration = Duration::from_secs(5);
/// Failures in a row after which one host alone is believed.
const LONE_FAILURES: usize = 3;
/// The same for strangers alone, where a server that the user confided in gives
/// no verdict.
const STRANGERS_FAILURES: usize = 6;

/// See the module. Time and chance are passed in.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Verdicts {
    targets: HashMap<Place, Target>,
    servers: HashMap<ConnectionId, Server>,
}

/// A connection with a peer that answers such questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Server {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) host: Host,
    pub(in crate::swarm) transport: Transport,
    /// The connection is IPv6.
    pub(in crate::swarm) v6: bool,
    /// The user named it, or trusts it.
    pub(in crate::swarm) confided: bool,
}

/// An address of this node.
#[derive(Debug, Clone)]
pub(in crate::swarm) struct Target {
    pub(in crate::swarm) source: AddressSource,
    /// The settings say that it works.
    assumed: bool,
    /// The newest last; one of each peer.
    pub(in crate::swarm) verdicts: Vec<Said>,
    /// Others are told of it.
    pub(in crate::swarm) advertised: bool,
    /// When to ask; `None` while a server is asked or there is none.
    next: Option<Instant>,
    asking: Option<PeerId>,
    /// Servers in a row that gave no verdict.
    silent: u32,
    /// Verdicts in a row that it does not work.
    failures: usize,
    /// When a server connected last.
    worked: Option<Instant>,
    /// Said that an address that the settings name does not work.
    complained: bool,
}

/// An address to ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) struct Wanted {
    pub(in crate::swarm) place: Place,
    pub(in crate::swarm) source: AddressSource,
    /// The settings say that it works: others are told of it whatever servers
    /// say.
    pub(in crate::swarm) assumed: bool,
}

/// What a server said of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Said {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) host: Host,
    pub(in crate::swarm) reachable: bool,
    /// This node had sent packets to that host from the very socket, which a
    /// NAT may take for a reason to let the host in.
    pub(in crate::swarm) contacted: bool,
    /// The user named that peer, or trusts it.
    pub(in crate::swarm) confided: bool,
    pub(in crate::swarm) at: Instant,
}

/// A question to put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Question {
    pub(in crate::swarm) place: Place,
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) connection: ConnectionId,
    pub(in crate::swarm) host: Host,
    pub(in crate::swarm) contacted: bool,
    pub(in crate::swarm) confided: bool,
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) enum Answer {
    /// The server connected.
    Reachable,
    /// It could not.
    Unreachable,
    /// It did not try, or did not answer.
    NoVerdict,
}

/// What is to be done about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) enum Change {
    /// Others are to be told of it.
    Confirmed,
    /// Others are no longer to be told of it; with the cause.
    Failed(String),
}

impl Target {
    fn new(source: AddressSource, now: Instant) -> Self {
        Self {
            source,
            assumed: false,
            verdicts: Vec::new(),
            advertised: false,
            next: Some(now),
            asking: None,
            silent: 0,
            failures: 0,
            worked: None,
            complained: false,
        }
    }

    /// As things are. One server that fails is not believed yet.
    pub(in crate::swarm) fn verdict(&self) -> Verdict {
        if self.verdicts.iter().any(|said| said.reachable) {
            Verdict::Reachable
        } else if !self.verdicts.is_empty() {
            Verdict::Unreachable
        } else if self.assumed {
            Verdict::Assumed
        } else {
            Verdict::Unknown
        }
    }

    /// A server got in that had no reason but the address, or the settings say
    /// that anybody can.
    pub(in crate::swarm) fn is_proven(&self) -> bool {
        let nat = self.source == AddressSource::Observed;
        self.assumed || self.verdicts.iter().any(|said| said.reachable && !(nat && said.contacted))
    }

    /// Servers that connected to it.
    pub(in crate::swarm) fn verified_by(&self) -> Vec<PeerId> {
        self.verdicts.iter().filter(|said| said.reachable).map(|said| said.peer).collect()
    }

    fn take(&mut self, said: Said) {
        if said.reachable {
            self.worked = Some(said.at);
            (self.failures, self.complained) = (0, false);
        } else {
            self.failures += 1;
        }
        self.silent = 0;
        self.verdicts.retain(|other| other.peer != said.peer);
        if self.verdicts.len() >= MAX_VERDICTS {
            self.verdicts.remove(0);
        }
        self.verdicts.push(said);
    }

    /// Verdicts of those that could not connect since one could.
    fn failing(&self) -> impl Iterator<Item = &Said> {
        self.verdicts.iter().filter(|said| !said.reachable && self.worked.is_none_or(|at| said.at > at))
    }

    /// Whether to believe that it does not work. `others`: another host could
    /// be asked; `confidants`: so could someone that the user confided in.
    fn is_refuted(&self, others: bool, confidants: bool) -> bool {
        if !others {
            return self.failures >= LONE_FAILURES;
        }
        let confided = self.failing().any(|said| said.confided);
        different_hosts(self.failing()) >= 2 && (confided || !confidants || self.failures >= STRANGERS_FAILURES)
    }

    /// It is believed not to work: what is to be told. An address that the
    /// settings name stays.
    fn fail(&mut self) -> Option<Change> {
        self.verdicts.retain(|said| !said.reachable);
        let told = match self.assumed {
            true => !std::mem::replace(&mut self.complained, true),
            false => std::mem::replace(&mut self.advertised, false),
        };
        let by: Vec<String> = self.verdicts.iter().map(|said| said.peer.to_string()).collect();
        told.then(|| Change::Failed(format!("could not be reached by {}", by.join(", "))))
    }
}

impl Verdicts {
    /// The addresses to ask about, the most promising first. Those that are not
    /// among them any more are forgotten.
    pub(in crate::swarm) fn retarget(&mut self, wanted: &[Wanted], now: Instant) {
        let wanted = &wanted[..wanted.len().min(MAX_TARGETS)];
        self.targets.retain(|place, _| wanted.iter().any(|other| other.place == *place));
        for Wanted { place, source, assumed } in wanted {
            let target = self.targets.entry(*place).or_insert_with(|| Target::new(*source, now));
            (target.source, target.assumed) = (*source, *assumed);
            // Whoever confirms it.
            target.advertised |= assumed;
        }
    }

    /// A connection with a server; whoever waited for one is asked about.
    pub(in crate::swarm) fn server(&mut self, connection: ConnectionId, server: Server, now: Instant) {
        if self.servers.len() >= MAX_SERVERS && !self.servers.contains_key(&connection) && !self.make_room(&server) {
            return;
        }
        if self.servers.insert(connection, server).is_none() {
            for target in self.targets.values_mut().filter(|target| target.asking.is_none()) {
                target.next.get_or_insert(now);
            }
        }
    }

    /// Forgets a stranger for a server that the user confided in.
    fn make_room(&mut self, newcomer: &Server) -> bool {
        let stranger = self.servers.iter().find(|(_, server)| newcomer.confided && !server.confided);
        let Some(id) = stranger.map(|(id, _)| *id) else { return false };
        self.servers.remove(&id).is_some()
    }

    /// A connection is gone.
    pub(in crate::swarm) fn closed(&mut self, connection: ConnectionId) {
        self.servers.remove(&connection);
    }

    /// Forgets all verdicts and asks about every address again: the network is
    /// another one. What others were told stays until it fails.
    pub(in crate::swarm) fn clear(&mut self, now: Instant) {
        for target in self.targets.values_mut() {
            target.verdicts.clear();
            (target.silent, target.failures) = (0, 0);
            if target.asking.is_none() {
                target.next = Some(now);
            }
        }
    }

    /// When there is something to ask.
    pub(in crate::swarm) fn next(&self) -> Option<Instant> {
        if self.asking() >= MAX_ASKING {
            return None;
        }
        self.targets.values().filter_map(|target| target.next).min()
    }

    /// A question that is due. The caller puts it and comes back with
    /// [`Self::answered`].
    pub(in crate::swarm) fn due(&mut self, now: Instant) -> Option<Question> {
        while self.asking() < MAX_ASKING {
            let due = self.targets.iter().filter(|(_, target)| target.next.is_some_and(|at| at <= now));
            let place = *due.min_by_key(|(place, target)| (target.next, **place))?.0;
            let server = self.server_for(&place);
            let target = self.targets.get_mut(&place)?;
            target.next = None;
            let Some(connection) = server else { continue };
            let server = self.servers.get(&connection)?;
            target.asking = Some(server.peer);
            let contacted = contacted(self.servers.values(), server, &place);
            let Server { peer, ref host, confided, .. } = *server;
            return Some(Question { place, peer, connection, host: host.clone(), contacted, confided });
        }
        None
    }

    /// The server to ask: of the same family, one that said nothing of this
    /// address yet, or longest ago; rather one that this node did not contact
    /// from the same socket. After a failure one that the user confided in
    /// comes first, unless the last one asked gave no verdict.
    fn server_for(&self, place: &Place) -> Option<ConnectionId> {
        let target = self.targets.get(place)?;
        let busy: Vec<PeerId> = self.targets.values().filter_map(|target| target.asking).collect();
        let fits = |server: &Server| server.v6 == place.is_v6() && !busy.contains(&server.peer);
        let said = |server: &Server| {
            let same = |said: &&Said| said.peer == server.peer || said.host.may_be(&server.host);
            target.verdicts.iter().filter(same).map(|said| said.at).max()
        };
        let failed = |server: &Server| target.failing().any(|said| said.peer == server.peer);
        let settle = target.failures > 0 && target.silent == 0;
        let rank = |(id, server): &(&ConnectionId, &Server)| {
            let settles = settle && server.confided && !failed(server);
            (!settles, said(server), contacted(self.servers.values(), server, place), **id)
        };
        self.servers.iter().filter(|(_, server)| fits(server)).min_by_key(rank).map(|(id, _)| *id)
    }

    /// A question was answered, or not. `jitter` is between 0 and 1.
    pub(in crate::swarm) fn answered(
        &mut self,
        question: &Question,
        answer: Answer,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        let (others, confidants) = (self.has_other(question), self.has_confidant(question));
        let Some(target) = self.targets.get_mut(&question.place) else {
            self.wake(now);
            return None;
        };
        target.asking = None;
        let said = Said {
            peer: question.peer,
            host: question.host.clone(),
            reachable: answer == Answer::Reachable,
            contacted: question.contacted,
            confided: question.confided,
            at: now,
        };
        let (wait, change) = match answer {
            Answer::Reachable => {
                target.take(said);
                let change = (!std::mem::replace(&mut target.advertised, true)).then_some(Change::Confirmed);
                let enough = !others || different_hosts(target.verdicts.iter()) >= 2;
                (if enough { CANARY } else { SECOND_OPINION }, change)
            }
            Answer::Unreachable => {
                target.take(said);
                let believed = target.is_refuted(others, confidants);
                let change = believed.then(|| target.fail()).flatten();
                (if believed { HOPELESS } else { SECOND_OPINION }, change)
            }
            Answer::NoVerdict => {
                target.silent += 1;
                (NO_VERDICT.saturating_mul(1 << target.silent.min(8)).min(CANARY), None)
            }
        };
        target.next = Some(now + wait.mul_f64(0.8 + 0.4 * jitter));
        self.wake(now);
        change
    }

    /// Addresses that found every server busy.
    fn wake(&mut self, now: Instant) {
        for target in self.targets.values_mut().filter(|target| target.asking.is_none()) {
            target.next.get_or_insert(now);
        }
    }

    /// All addresses that are asked about.
    pub(in crate::swarm) fn targets(&self) -> impl Iterator<Item = (&Place, &Target)> {
        self.targets.iter()
    }

    /// One of them.
    pub(in crate::swarm) fn get(&self, place: &Place) -> Option<&Target> {
        self.targets.get(place)
    }

    fn asking(&self) -> usize {
        self.targets.values().filter(|target| target.asking.is_some()).count()
    }

    /// Whether another host could be asked.
    fn has_other(&self, question: &Question) -> bool {
        self.servers.values().any(|server| server.v6 == question.place.is_v6() && !server.host.may_be(&question.host))
    }

    /// Whether someone could be asked that the user confided in.
    fn has_confidant(&self, question: &Question) -> bool {
        self.servers.values().any(|server| server.v6 == question.place.is_v6() && server.confided)
    }
}

fn different_hosts<'a>(all: impl Iterator<Item = &'a Said>) -> usize {
    let mut hosts: Vec<&Host> = Vec::new();
    for said in all {
        if !hosts.iter().any(|host| host.may_be(&said.host)) {
            hosts.push(&said.host);
        }
    }
    hosts.len()
}

/// Whether packets go to the server's host from the socket of the address, so
/// that a NAT may let it in for that.
fn contacted<'a>(mut all: impl Iterator<Item = &'a Server>, server: &Server, place: &Place) -> bool {
    all.any(|other| other.transport == place.transport && other.host.may_be(&server.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::of(&text.parse().unwrap()).unwrap()
    }

    fn quic() -> Place {
        place("/ip4/1.2.3.4/udp/4001/quic-v1")
    }

    /// Servers at 8.8.8.1, 8.8.8.2 and so on, one connection each.
    fn verdicts(servers: u8, source: AddressSource, now: Instant) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for n in 1..=servers {
            verdicts.server(connection(n.into()), server(n, Transport::Tcp), now);
        }
        verdicts.retarget(&[wanted(quic(), source)], now);
        verdicts
    }

    fn wanted(place: Place, source: AddressSource) -> Wanted {
        Wanted { place, source, assumed: source == AddressSource::Configured }
    }

    fn connection(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn server(n: u8, transport: Transport) -> Server {
        let host = Host::Ip([8, 8, 8, n].into());
        Server { peer: PeerId::random(), host, transport, v6: false, confided: false }
    }

    /// Asks what is due until nothing is for a minute; which hosts were asked.
    fn run(verdicts: &mut Verdicts, now: &mut Instant, answer: Answer) -> (Vec<Host>, Vec<Change>) {
        let end = *now + Duration::from_secs(60);
        let (mut asked, mut changes) = (Vec::new(), Vec::new());
        while let Some(at) = verdicts.next().filter(|at| *at < end) {
            *now = at.max(*now);
            let Some(question) = verdicts.due(*now) else { continue };
            asked.push(question.host.clone());
            changes.extend(verdicts.answered(&question, answer, *now, 0.5));
        }
        (asked, changes)
    }

    #[test]
    fn what_works_is_told_and_asked_about_again() {
        let mut now = Instant::now();
        let mut verdicts = verdicts(3, AddressSource::Mapped, now);
        let (asked, changes) = run(&mut verdicts, &mut now, Answer::Reachable);
        assert_eq!((asked.len(), changes), (2, vec![Change::Confirmed]));
        assert_ne!(asked[0], asked[1]);
        let target = verdicts.get(&quic()).unwrap();
        assert!(target.advertised && target.is_proven());
        assert_eq!((target.verdict(), target.verified_by().len()), (Verdict::Reachable, 2));
        let next = verdicts.next().unwrap();
        assert!(next > now + CANARY / 2 && next < now + CANARY * 2);
        now = next;
        assert_ne!(verdicts.due(now).unwrap().host, asked[1]);
    }

    #[test]
    fn two_hosts_withdraw_one_does_not() {
        let mut now = Instant::now();
        let mut verdicts = verdicts(2, AddressSource::Mapped, now);
        run(&mut verdicts, &mut now, Answer::Reachable);
        now = verdicts.next().unwrap();
        let question = verdicts.due(now).unwrap();
        assert_eq!(verdicts.answered(&question, Answer::Unreachable, now, 0.5), None);
        assert_eq!(verdicts.get(&quic()).unwrap().verdict(), Verdict::Reachable);
        let (asked, changes) = run(&mut verdicts, &mut now, Answer::Unreachable);
        assert_ne!(asked, [question.host]);
        assert!(matches!(&changes[..], [Change::Failed(cause)] if cause.contains(&question.peer.to_string())));
        let target = verdicts.get(&quic()).unwrap();
        assert_eq!((target.verdict(), target.advertised), (Verdict::Unreachable, false));
        assert!(verdicts.next().unwrap() > now + HOPELESS / 2);
    }

    #[test]
    fn a_server_that_never_gets_in_does_not_withdraw_what_others_reach() {
        let mut now = Instant::now();
        let mut verdicts = verdicts(2, AddressSource::Mapped, now);
        let blind = Host::Ip([8, 8, 8, 1].into());
        let mut asked = 0;
        for _ in 0..40 {
            now = verdicts.next().unwrap().max(now);
            let question = verdicts.due(now).unwrap();
            asked += 1;
            let answer = if question.host == blind { Answer::Unreachable } else { Answer::Reachable };
            let change = verdicts.answered(&question, answer, now, 0.5);
            assert!(!matches!(change, Some(Change::Failed(_))), "after {asked}");
        }
        assert!(now > Instant::now() + CANARY * 15, "not asked all the time");
    }

    /// Ten strangers at as many hosts, and one server that the user named.
    fn among_strangers(now: Instant) -> (Verdicts, Host) {
        let mut verdicts = verdicts(10, AddressSource::Mapped, now);
        let named = Server { confided: true, ..server(100, Transport::Tcp) };
        verdicts.server(connection(100), named.clone(), now);
        (verdicts, named.host)
    }

    /// Strangers say that it does not work, the named server says this; what
    /// changed after so many questions.
    fn strangers_lie(verdicts: &mut Verdicts, named: &Host, truth: Answer, questions: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..questions {
            let now = verdicts.next().unwrap();
            let question = verdicts.due(now).unwrap();
            let answer = if question.host == *named { truth } else { Answer::Unreachable };
            changes.extend(verdicts.answered(&question, answer, now, 0.5));
        }
        changes
    }

    #[test]
    fn strangers_who_lie_withdraw_nothing_while_a_confidant_gets_in() {
        let (mut verdicts, named) = among_strangers(Instant::now());
        let changes = strangers_lie(&mut verdicts, &named, Answer::Reachable, 100);
        assert_eq!(changes, [Change::Confirmed]);
        assert!(verdicts.get(&quic()).unwrap().advertised);
    }

    #[test]
    fn strangers_do_not_crowd_a_confidant_out() {
        let now = Instant::now();
        let mut verdicts = verdicts(200, AddressSource::Mapped, now);
        assert_eq!(verdicts.servers.len(), MAX_SERVERS);
        for n in 201..=210 {
            let confidant = Server { confided: true, ..server(n, Transport::Tcp) };
            verdicts.server(connection(n.into()), confidant, now);
        }
        assert_eq!(verdicts.servers.len(), MAX_SERVERS);
        assert_eq!(verdicts.servers.values().filter(|server| server.confided).count(), 10);
    }

    #[test]
    fn strangers_are_believed_where_the_confidant_agrees_or_says_nothing() {
        for (truth, questions) in [(Answer::Unreachable, 3), (Answer::NoVerdict, 2 * STRANGERS_FAILURES)] {
            let (mut verdicts, named) = among_strangers(Instant::now());
            strangers_lie(&mut verdicts, &named, Answer::Reachable, 2);
            assert!(verdicts.get(&quic()).unwrap().advertised);
            let changes = strangers_lie(&mut verdicts, &named, truth, questions);
            assert!(matches!(&changes[..], [Change::Failed(_)]), "{truth:?}: {changes:?}");
        }
    }

    #[test]
    fn a_lone_server_is_believed_after_three_failures() {
        let mut now = Instant::now();
        let mut verdicts = verdicts(1, AddressSource::Mapped, now);
        assert_eq!(run(&mut verdicts, &mut now, Answer::Reachable).1, [Change::Confirmed]);
        now = verdicts.next().unwrap();
        let (asked, changes) = run(&mut verdicts, &mut now, Answer::Unreachable);
        assert_eq!((asked.len(), changes.len()), (LONE_FAILURES, 1));
    }

    #[test]
    fn no_verdict_changes_nothing_and_is_asked_for_ever_more_rarely() {
        let mut now = Instant::now();
        let start = now;
        let mut verdicts = verdicts(2, AddressSource::Mapped, now);
        run(&mut verdicts, &mut now, Answer::Reachable);
        for _ in 0..20 {
            now = verdicts.next().unwrap();
            let question = verdicts.due(now).unwrap();
            assert_eq!(verdicts.answered(&question, Answer::NoVerdict, now, 0.5), None);
        }
        assert_eq!(verdicts.get(&quic()).unwrap().verdict(), Verdict::Reachable);
        assert!(now > start + CANARY * 10);
    }

    #[test]
    fn what_the_settings_name_is_told_and_never_withdrawn() {
        let mut now = Instant::now();
        let mut verdicts = verdicts(2, AddressSource::Configured, now);
        assert_eq!(verdicts.get(&quic()).unwrap().verdict(), Verdict::Assumed);
        let (_, changes) = run(&mut verdicts, &mut now, Answer::Unreachable);
        assert!(matches!(&changes[..], [Change::Failed(_)]));
        now = verdicts.next().unwrap();
        assert!(run(&mut verdicts, &mut now, Answer::Unreachable).1.is_empty(), "said once");
        assert!(verdicts.get(&quic()).unwrap().advertised);
    }

    #[test]
    fn a_host_that_was_contacted_proves_nothing_of_a_nat() {
        let mut now = Instant::now();
        let mut verdicts = Verdicts::default();
        verdicts.server(connection(1), server(1, Transport::Quic), now);
        verdicts.server(connection(2), server(1, Transport::Tcp), now);
        verdicts.retarget(&[wanted(quic(), AddressSource::Observed)], now);
        run(&mut verdicts, &mut now, Answer::Reachable);
        let target = verdicts.get(&quic()).unwrap();
        assert!(target.advertised && !target.is_proven());
        // One that was contacted over TCP only is preferred for the next time.
        verdicts.server(connection(3), server(3, Transport::Quic), now);
        verdicts.server(connection(4), server(4, Transport::Tcp), now);
        now = verdicts.next().unwrap();
        let question = verdicts.due(now).unwrap();
        assert_eq!((question.connection, question.contacted), (connection(4), false));
        verdicts.answered(&question, Answer::Reachable, now, 0.5);
        assert!(verdicts.get(&quic()).unwrap().is_proven());
    }

    #[test]
    fn addresses_wait_for_a_server_of_their_family() {
        let now = Instant::now();
        let mut verdicts = verdicts(0, AddressSource::Interface, now);
        assert_eq!((verdicts.due(now), verdicts.next()), (None, None));
        verdicts.server(connection(1), Server { v6: true, ..server(1, Transport::Tcp) }, now);
        assert_eq!((verdicts.due(now), verdicts.next()), (None, None));
        verdicts.server(connection(2), server(2, Transport::Tcp), now);
        assert_eq!(verdicts.due(now).unwrap().connection, connection(2));
    }

    #[test]
    fn few_questions_at_once_and_one_to_each_server() {
        let now = Instant::now();
        let mut verdicts = verdicts(1, AddressSource::Interface, now);
        let ports = (1..=100).map(|port| wanted(place(&format!("/ip4/1.2.3.4/tcp/{port}")), AddressSource::Interface));
        verdicts.retarget(&ports.collect::<Vec<_>>(), now);
        assert_eq!(verdicts.targets().count(), MAX_TARGETS);
        let first = verdicts.due(now).unwrap();
        assert_eq!(verdicts.due(now), None);
        verdicts.answered(&first, Answer::NoVerdict, now, 0.5);
        assert_ne!(verdicts.due(now).unwrap().place, first.place);
        for n in 2..=9 {
            verdicts.server(connection(n.into()), server(n, Transport::Tcp), now);
        }
        assert!(verdicts.due(now).is_some());
        assert_eq!((verdicts.due(now), verdicts.next()), (None, None));
    }

    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let mut now = Instant::now();
        let mut verdicts = verdicts(2, AddressSource::Mapped, now);
        run(&mut verdicts, &mut now, Answer::Reachable);
        verdicts.clear(now);
        assert_eq!(verdicts.get(&quic()).unwrap().verdict(), Verdict::Unknown);
        assert!(verdicts.get(&quic()).unwrap().advertised);
        assert_eq!(verdicts.next(), Some(now));
        verdicts.retarget(&[], now);
        assert_eq!((verdicts.targets().count(), verdicts.next()), (0, None));
    }
}
