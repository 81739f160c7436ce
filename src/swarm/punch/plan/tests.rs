//! Plans of both sides of a round.

use std::{collections::HashSet, net::SocketAddr};

use proptest::prelude::*;

use super::{
    super::targets::{MAX_STRANGER_TARGETS, MAX_TARGETS, PREDICTED},
    *,
};
use crate::wire::punch::Nat;

const RTT: Duration = Duration::from_millis(60);

fn quic(kind: CandidateKind, socket: &str) -> Candidate {
    Candidate::new(kind, Transport::Quic, socket.parse().unwrap()).unwrap()
}

fn tcp(kind: CandidateKind, socket: &str) -> Candidate {
    Candidate::new(kind, Transport::Tcp, socket.parse().unwrap()).unwrap()
}

fn side(mapping: Mapping, candidates: &[Candidate]) -> Offer {
    Offer { round: 1, candidates: candidates.to_vec(), nat_v4: Nat { mapping, ..Nat::default() }, ..Offer::default() }
}

fn behind(mapping: Mapping, last: u8) -> Offer {
    let at = format!("192.0.2.{last}:4001");
    let local = format!("192.168.{last}.2:4001");
    use CandidateKind::{Local, Observed};
    side(mapping, &[quic(Observed, &at), tcp(Observed, &at), quic(Local, &local), tcp(Local, &local)])
}

fn terms(leader: bool, round: u32) -> Terms {
    Terms { leader, round, trusted: true, wanted: true, loopback: false, rtt: leader.then_some(RTT) }
}

/// The plans of the side that leads and of the other one.
fn both(leader: &Offer, other: &Offer, round: u32) -> (Plan, Plan) {
    (plan(leader, other, terms(true, round)), plan(other, leader, terms(false, round)))
}

fn acts(plan: &Plan, transport: Transport) -> HashSet<Act> {
    let here = |step: &&Step| step.targets.iter().any(|known| known.transport == transport);
    plan.steps.iter().filter(here).map(|step| step.act).collect()
}

#[track_caller]
fn dials_and_punches(dials: &Plan, punches: &Plan) {
    assert_eq!(acts(dials, Transport::Quic), HashSet::from([Act::Dial]));
    assert_eq!(acts(punches, Transport::Quic), HashSet::from([Act::Punch]));
}

#[test]
fn equals_take_turns() {
    let (one, two) = (behind(Mapping::EndpointIndependent, 1), behind(Mapping::Unknown, 2));
    let (leader, other) = both(&one, &two, 1);
    dials_and_punches(&leader, &other);
    let (leader, other) = both(&one, &two, 2);
    dials_and_punches(&other, &leader);
    let (leader, other) = both(&one, &two, 3);
    dials_and_punches(&leader, &other);
}

#[test]
fn whose_port_nobody_knows_dials() {
    let (hard, easy) = (behind(Mapping::EndpointDependent, 1), behind(Mapping::EndpointIndependent, 2));
    for round in 1..7 {
        let (leader, other) = both(&hard, &easy, round);
        dials_and_punches(&leader, &other);
        let (leader, other) = both(&easy, &hard, round);
        dials_and_punches(&other, &leader);
        assert!(!leader.hopeless && !other.hopeless);
    }
}

#[test]
fn who_can_be_reached_is_dialled_first() {
    let mut open = behind(Mapping::EndpointIndependent, 1);
    open.candidates.push(quic(CandidateKind::Confirmed, "192.0.2.1:5000"));
    open.candidates.push(tcp(CandidateKind::Confirmed, "192.0.2.1:5000"));
    let other = behind(Mapping::EndpointIndependent, 2);
    let (leader, follower) = both(&open, &other, 1);
    dials_and_punches(&follower, &leader);
    let first = follower.steps.iter().find(|step| step.after == Duration::ZERO).unwrap();
    assert_eq!(first.targets[0], quic(CandidateKind::Confirmed, "192.0.2.1:5000"));
    assert!(acts(&follower, Transport::Tcp).contains(&Act::Dial));
    // It could not be reached after all.
    let (leader, follower) = both(&open, &other, 3);
    dials_and_punches(&leader, &follower);
    let public = behind(Mapping::None, 1);
    let (leader, follower) = both(&public, &other, 1);
    dials_and_punches(&follower, &leader);
}

#[test]
fn tcp_comes_later_or_at_once_where_udp_is_blocked() {
    let (mut one, two) = (behind(Mapping::Unknown, 1), behind(Mapping::Unknown, 2));
    let (leader, other) = both(&one, &two, 1);
    for (plan, act) in [(&leader, Act::Open), (&other, Act::Accept)] {
        let step = plan.steps.iter().find(|step| step.act == act).unwrap();
        assert_eq!((step.clock, step.after), (Clock::Synced, TCP_AFTER));
    }
    one.udp_blocked = true;
    let (leader, other) = both(&one, &two, 1);
    for (plan, act) in [(&leader, Act::Open), (&other, Act::Accept)] {
        assert!(acts(plan, Transport::Quic).is_empty());
        let step = plan.steps.iter().find(|step| step.act == act).unwrap();
        assert_eq!((step.clock, step.after), (Clock::Synced, Duration::ZERO));
        assert_eq!(step.targets.len(), 1);
        assert!(plan.words.contains("UDP is blocked"));
    }
}

#[test]
fn a_local_network_is_tried_where_it_may_be_the_same() {
    let here = |plan: &Plan| plan.steps.iter().any(|step| step.targets.iter().any(|known| is_local(known.socket.ip())));
    let (one, two) = (behind(Mapping::Unknown, 1), behind(Mapping::Unknown, 2));
    assert!(!here(&both(&one, &two, 1).0));
    let mut same = behind(Mapping::Unknown, 1);
    same.candidates[2] = quic(CandidateKind::Local, "192.168.1.3:4001");
    let (leader, other) = both(&one, &same, 1);
    assert!(here(&leader) && here(&other));
    // The way round by the router is tried at the same time.
    let hairpin = quic(CandidateKind::Observed, "192.0.2.1:4001");
    assert!(leader.steps.iter().any(|step| step.after.is_zero() && step.targets.contains(&hairpin)));
    assert!(!here(&plan(&one, &same, Terms { trusted: false, ..terms(true, 1) })));
    let host = side(Mapping::Unknown, &[quic(CandidateKind::Local, "127.0.0.1:4001")]);
    assert!(plan(&one, &host, terms(true, 1)).steps.is_empty());
    assert!(here(&plan(&one, &host, Terms { loopback: true, trusted: false, ..terms(true, 1) })));
}

#[test]
fn a_stranger_leads_to_no_address_that_may_stand_for_a_local_one() {
    use CandidateKind::{Confirmed, Local, Observed};
    let mut sly = Vec::new();
    for socket in ["[64:ff9b::c0a8:101]:80", "[2002:c0a8:101::1]:80", "[::c0a8:101]:80", "[::ffff:192.168.1.1]:80"] {
        for kind in [Confirmed, Observed, Local] {
            sly.extend([quic(kind, socket), tcp(kind, socket)]);
        }
    }
    let (mine, theirs) = (behind(Mapping::EndpointIndependent, 1), side(Mapping::Unknown, &sly));
    for (leader, round) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
        let stranger = Terms { trusted: false, ..terms(leader, round) };
        for plan in [plan(&mine, &theirs, stranger), stock(&mine, &theirs, stranger)] {
            assert_eq!(plan.steps, []);
        }
    }
}

#[test]
fn tcp_from_another_port_than_servers_saw_is_expected() {
    let mut theirs = behind(Mapping::Unknown, 2);
    theirs.candidates[1] = tcp(CandidateKind::Observed, "192.0.2.2:50580");
    let plan = |theirs: &Offer| plan(&behind(Mapping::Unknown, 1), theirs, terms(true, 1));
    let ports = |plan: &Plan| -> Vec<_> {
        let open = plan.steps.iter().find(|step| step.act == Act::Open).unwrap();
        open.targets.iter().map(|known| known.socket.port()).collect()
    };
    assert_eq!(ports(&plan(&theirs)), [50580, 4001]);
    theirs.nat_v4.port_kept = Some(false);
    assert_eq!(ports(&plan(&theirs)), [50580]);
}

#[test]
fn ports_ahead_are_expected_of_a_nat_that_counts() {
    let mut counting = behind(Mapping::EndpointDependent, 1);
    counting.nat_v4.port_step = Some(2);
    counting.candidates.push(quic(CandidateKind::Observed, "192.0.2.1:4003"));
    let other = behind(Mapping::EndpointIndependent, 2);
    let punches = plan(&other, &counting, terms(true, 1));
    let ports: Vec<_> = punches.steps[0].targets.iter().map(|known| known.socket.port()).collect();
    assert_eq!(ports[..4], [4001, 4003, 4005, 4007]);
    assert_eq!(ports.len(), 2 + PREDICTED as usize);
    counting.nat_v4.port_step = Some(i32::MIN);
    plan(&other, &counting, terms(true, 1));
}

#[test]
fn a_person_is_told_what_helps() {
    let (hard, other) = (behind(Mapping::EndpointDependent, 1), behind(Mapping::EndpointDependent, 2));
    let plan = plan(&hard, &other, terms(true, 1));
    assert!(plan.hopeless && !plan.steps.is_empty());
    assert!(cause(&hard, &other).contains("port mapping"));
    let easy = behind(Mapping::EndpointIndependent, 3);
    assert!(cause(&hard, &easy).starts_with("this node's NAT"));
    assert!(cause(&easy, &hard).starts_with("the peer's NAT"));
    assert!(cause(&easy, &Offer::default()).contains("no address"));
}

#[test]
fn a_stranger_gets_less() {
    let many: Vec<_> = (1..30).map(|n| quic(CandidateKind::Observed, &format!("192.0.2.{n}:1"))).collect();
    let (one, many) = (behind(Mapping::Unknown, 1), side(Mapping::Unknown, &many));
    let most = |terms| plan(&one, &many, terms).steps.iter().map(|step| step.targets.len()).max();
    assert_eq!(most(terms(true, 1)), Some(MAX_TARGETS));
    assert_eq!(most(Terms { wanted: false, ..terms(true, 1) }), Some(MAX_STRANGER_TARGETS));
    for (leader, round) in [(true, 1), (false, 2)] {
        let terms = Terms { wanted: false, ..terms(leader, round) };
        for plan in [plan(&one, &many, terms), stock(&one, &many, terms)] {
            let dials = plan.steps.iter().filter(|step| step.act == Act::Dial).map(|step| step.targets.len());
            assert!(dials.sum::<usize>() <= 3 * MAX_STRANGER_TARGETS, "{plan:?}");
        }
    }
}

fn any_side() -> impl Strategy<Value = Offer> {
    let mapping = prop_oneof![
        Just(Mapping::Unknown),
        Just(Mapping::None),
        Just(Mapping::EndpointIndependent),
        Just(Mapping::EndpointDependent)
    ];
    let kind = prop_oneof![Just(CandidateKind::Confirmed), Just(CandidateKind::Observed), Just(CandidateKind::Local)];
    let transport = prop_oneof![Just(Transport::Quic), Just(Transport::Tcp)];
    let candidate = (kind, transport, any::<SocketAddr>())
        .prop_filter_map("usable", |(kind, transport, at)| Candidate::new(kind, transport, at));
    (mapping, any::<Option<i32>>(), prop::collection::vec(candidate, 0..32), any::<bool>()).prop_map(
        |(mapping, port_step, candidates, udp_blocked)| Offer {
            candidates,
            nat_v4: Nat { mapping, port_kept: None, port_step },
            udp_blocked,
            ..Offer::default()
        },
    )
}

proptest! {
    /// Both sides never do the same, and never more than a little.
    #[test]
    fn one_dials_and_the_other_does_not(one in any_side(), two in any_side(), round in any::<u32>()) {
        let dials = |mine, theirs, leader| super::dials(mine, theirs, terms(leader, round));
        prop_assert_ne!(dials(&one, &two, true), dials(&two, &one, false));
        let (leader, other) = both(&one, &two, round);
        for step in leader.steps.iter().chain(&other.steps) {
            prop_assert!(step.after < ROUND && !step.targets.is_empty());
            prop_assert!(step.targets.len() <= 2 * MAX_TARGETS + PREDICTED as usize);
            prop_assert!(step.targets.iter().all(|known| !known.socket.ip().is_loopback()));
        }
        prop_assert!(!(acts(&leader, Transport::Tcp).contains(&Act::Open)
            && acts(&other, Transport::Tcp).contains(&Act::Open)));
    }
}
