//! Verdicts on a clock of their own.

use super::{
    super::target::{LONE_FAILURES, STRANGERS_FAILURES},
    *,
};
use crate::node::Verdict;

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

/// A relay would send all away that use it.
#[test]
fn a_proven_address_stays_so_until_a_failure_is_believed() {
    let mut now = Instant::now();
    let mut verdicts = verdicts(1, AddressSource::Mapped, now);
    let proven = |verdicts: &Verdicts| verdicts.get(&quic()).unwrap().is_proven();
    run(&mut verdicts, &mut now, Answer::Reachable);
    verdicts.clear(now);
    assert!(proven(&verdicts), "the network changed");
    for failure in 1..=LONE_FAILURES {
        now = verdicts.next().unwrap();
        let question = verdicts.due(now).unwrap();
        verdicts.answered(&question, Answer::Unreachable, now, 0.5);
        assert_eq!(proven(&verdicts), failure < LONE_FAILURES, "{failure}");
    }
    // A NAT of another kind may show the same address.
    verdicts.retarget(&[], now);
    verdicts.retarget(&[wanted(quic(), AddressSource::Observed)], now);
    run(&mut verdicts, &mut now, Answer::Reachable);
    assert!(proven(&verdicts));
    verdicts.clear(now);
    assert!(!proven(&verdicts));
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
