//! The table on a clock of its own.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::{
    entry::{
        CHANGE_WAIT, CROSSING, Circuit, Do, GRACE, HOPELESS_WAIT, Interest, KNOWN, LEAST_WAIT, LOSS_WAIT, Speech, WAITS,
    },
    exchange::What,
    plan::ROUND,
    table::{MAX_STRANGERS, Punches, STRANGERS_BURST},
};
use crate::{
    node::PunchView,
    wire::punch::{Candidate, CandidateKind, Mapping, Nat, Offer, Transport},
};

const WANTED: Interest = Interest { trusted: true, wanted: true };

fn offer(last: u8, mapping: Mapping) -> Offer {
    let at = format!("192.0.2.{last}:4001").parse().unwrap();
    Offer {
        round: 1,
        candidates: vec![Candidate::new(CandidateKind::Observed, Transport::Quic, at).unwrap()],
        nat_v4: Nat { mapping, ..Nat::default() },
        ..Offer::default()
    }
}

fn circuit(id: usize, dialled: bool) -> Circuit {
    Circuit { id: ConnectionId::new_unchecked(id), dialled, loopback: false }
}

struct Side {
    punches: Punches,
    local: PeerId,
    peer: PeerId,
    now: Instant,
}

impl Side {
    fn new(dialled: bool) -> Self {
        let (local, peer, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let mut punches = Punches::new(local, now);
        punches.circuit_up(peer, circuit(1, dialled), [], WANTED, now);
        Self { punches, local, peer, now }
    }

    /// The number of the next exchange that this side leads, and whether it
    /// is in libp2p's protocol; time passes until then. Dials are let pass.
    fn led(&mut self, within: Duration) -> Option<(u64, bool)> {
        self.next_lead(within).map(|(attempt, stock, _)| (attempt, stock))
    }

    fn led_on(&mut self, within: Duration) -> Option<(u64, ConnectionId)> {
        self.next_lead(within).map(|(attempt, _, connection)| (attempt, connection))
    }

    fn next_lead(&mut self, within: Duration) -> Option<(u64, bool, ConnectionId)> {
        let end = self.now + within;
        while let Some(at) = self.punches.next().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            if let Some(Do::Lead { attempt, stock, connection, .. }) = self.punches.pop_due(self.now) {
                return Some((attempt, stock, connection));
            }
        }
        None
    }

    fn agree(&mut self, attempt: u64, mapping: Mapping) {
        self.punches.begin(&self.peer, attempt, offer(1, mapping), &[], self.now);
        let what = What::Offer(offer(2, mapping), Some(Duration::from_millis(60)));
        self.punches.heard(self.peer, attempt, what, self.now);
    }

    fn rounds(&self) -> Vec<PunchView> {
        self.punches.rounds(&self.peer, self.now)
    }
}

#[test]
fn of_two_that_begin_at_once_the_lower_id_leads() {
    let side = |first: bool| loop {
        let side = Side::new(true);
        if (side.local.to_bytes() < side.peer.to_bytes()) == first {
            return side;
        }
    };
    for first in [true, false] {
        let mut side = side(first);
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        assert!(side.punches.is_running(&side.peer, attempt));
        // The peer answered, and had begun itself before it did.
        side.agree(attempt, Mapping::EndpointIndependent);
        let on = ConnectionId::new_unchecked(1);
        let other = side.punches.accept(side.peer, on, false, side.now);
        assert_eq!(other.is_none(), first);
        assert_eq!(side.punches.is_running(&side.peer, attempt), first);
    }
    let mut side = side(true);
    let (attempt, _) = side.led(Duration::ZERO).unwrap();
    side.agree(attempt, Mapping::EndpointIndependent);
    side.now += CROSSING;
    let on = ConnectionId::new_unchecked(1);
    assert!(side.punches.accept(side.peer, on, false, side.now).is_some(), "it began anew");
}

#[test]
fn the_side_that_dialled_leads_at_once_and_the_other_after_a_while() {
    let mut dialled = Side::new(true);
    assert!(dialled.led(Duration::ZERO).is_some());
    let mut other = Side::new(false);
    assert!(other.led(GRACE / 2).is_none());
    assert!(other.led(GRACE).is_some());
}

#[test]
fn rounds_follow_and_never_end_while_relayed() {
    let mut side = Side::new(true);
    let mut begun = Vec::new();
    for _ in 0..10 {
        let (attempt, _) = side.led(Duration::from_secs(600)).unwrap();
        begun.push(side.now);
        side.agree(attempt, Mapping::EndpointIndependent);
    }
    let waits: Vec<_> = begun.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64().round() as u64).collect();
    assert_eq!(waits, [3, 3, 13, 33, 63, 123, 303, 303, 303]);
    let rounds = side.rounds();
    assert_eq!(rounds.iter().map(|round| round.round).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    assert!(rounds[0].outcome.as_ref().unwrap().is_err() && rounds[9].outcome.is_none());
}

#[test]
fn what_cannot_work_is_tried_once_and_then_rarely() {
    let mut side = Side::new(true);
    let (attempt, _) = side.led(Duration::ZERO).unwrap();
    side.agree(attempt, Mapping::EndpointDependent);
    let begun = side.now;
    side.led(Duration::from_secs(600)).unwrap();
    assert_eq!((side.now - begun).as_secs(), (WAITS[HOPELESS_WAIT] + ROUND).as_secs());
    let Some(Err(cause)) = side.rounds()[0].outcome.clone() else { panic!("no cause") };
    assert!(cause.contains("port mapping"), "{cause}");
}

#[test]
fn a_direct_connection_ends_it_and_its_loss_begins_it_anew() {
    let mut side = Side::new(true);
    let (attempt, _) = side.led(Duration::ZERO).unwrap();
    side.agree(attempt, Mapping::Unknown);
    let Some(Do::Dial { dials, .. }) = side.punches.pop_due(side.now) else { panic!("no dial") };
    let direct = ConnectionId::new_unchecked(2);
    let address: Multiaddr = "/ip4/192.0.2.2/udp/4001/quic-v1".parse().unwrap();
    side.punches.direct_up(side.peer, direct, &address, false, side.now);
    assert!(dials.token.is_cancelled());
    assert_eq!(side.punches.next(), None);
    assert_eq!(side.rounds()[0].outcome, Some(Ok(address)));
    side.punches.down(side.peer, direct, side.now);
    assert!(side.led(LOSS_WAIT / 2).is_none());
    assert!(side.led(LOSS_WAIT).is_some());
    side.punches.down(side.peer, ConnectionId::new_unchecked(1), side.now);
    assert!(side.led(Duration::from_secs(600)).is_none());
}

#[test]
fn a_direct_connection_from_before_the_relayed_one_is_enough() {
    let (peer, now) = (PeerId::random(), Instant::now());
    let mut punches = Punches::new(PeerId::random(), now);
    let direct = ConnectionId::new_unchecked(2);
    punches.circuit_up(peer, circuit(1, true), [direct], WANTED, now);
    assert_eq!(punches.next(), None);
    punches.down(peer, direct, now);
    assert!(punches.next().is_some());
}

#[test]
fn a_direct_connection_that_is_doubted_is_none() {
    let mut side = Side::new(false);
    let (circuit, direct) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
    let address: Multiaddr = "/ip4/192.0.2.2/udp/4001/quic-v1".parse().unwrap();
    side.punches.direct_up(side.peer, direct, &address, false, side.now);
    assert!(side.punches.accept(side.peer, circuit, false, side.now).is_none(), "the peer may not know of it yet");
    side.punches.doubt(side.peer, direct, true, side.now);
    assert!(side.punches.next().is_some(), "begins anew");
    side.punches.doubt(side.peer, direct, false, side.now);
    assert_eq!(side.punches.next(), None);
    side.now += KNOWN;
    assert!(side.punches.accept(side.peer, circuit, false, side.now).is_some(), "the peer lost it");
}

#[test]
fn a_change_starts_over() {
    let mut side = Side::new(true);
    for _ in 0..5 {
        let (attempt, _) = side.led(Duration::from_secs(600)).unwrap();
        side.agree(attempt, Mapping::Unknown);
    }
    side.led(Duration::ZERO);
    side.now += ROUND;
    assert!(side.led(CHANGE_WAIT).is_none());
    side.punches.changed(side.now);
    let (attempt, _) = side.led(CHANGE_WAIT).unwrap();
    side.agree(attempt, Mapping::Unknown);
    assert_eq!(side.rounds().last().unwrap().round, 1);
    // While a round is under way.
    side.punches.changed(side.now);
    let begun = side.now;
    side.led(ROUND * 2).unwrap();
    assert!(side.now - begun < ROUND + CHANGE_WAIT);
    assert_eq!(side.rounds().last().unwrap().round, 1);
}

/// It is told of the local network now, and tells of its own.
#[test]
fn trust_given_to_a_relayed_peer_starts_over() {
    for dialled in [true, false] {
        let mut side = Side::new(dialled);
        side.punches.set_interest(&side.peer, Interest { trusted: false, ..WANTED }, side.now);
        for _ in 0..6 {
            let (attempt, _) = side.led(Duration::from_secs(600)).unwrap();
            side.agree(attempt, Mapping::EndpointIndependent);
        }
        assert!(side.led(Duration::from_secs(100)).is_none());
        side.punches.set_interest(&side.peer, WANTED, side.now);
        assert!(side.led(GRACE).is_some());
    }
}

#[test]
fn a_side_that_learns_its_address_says_so_at_once() {
    let mut side = Side::new(true);
    let (attempt, _) = side.led(Duration::ZERO).unwrap();
    side.punches.begin(&side.peer, attempt, Offer::default(), &[], side.now);
    side.punches.changed(side.now);
    assert!(side.led(LEAST_WAIT).is_some());
}

#[test]
fn the_lead_is_kept_over_a_restart() {
    for lower in [true, false] {
        let mut side = Side::new(true);
        while (side.local.to_bytes() < side.peer.to_bytes()) != lower {
            side = Side::new(true);
        }
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        side.punches.begin(&side.peer, attempt, Offer::default(), &[], side.now);
        side.punches.changed(side.now);
        // The peer follows what was given up, so nobody would dial.
        let answered = side.punches.accept(side.peer, ConnectionId::new_unchecked(1), false, side.now);
        assert_eq!(answered.is_none(), lower);
        assert_eq!(side.led(LEAST_WAIT).is_some(), lower);
    }
}

#[test]
fn a_follower_that_learns_its_address_leads() {
    for lower in [true, false] {
        let mut side = Side::new(false);
        let mut other = Side::new(true);
        while (side.local.to_bytes() < side.peer.to_bytes()) != lower {
            side = Side::new(false);
        }
        let on = ConnectionId::new_unchecked(1);
        let attempt = side.punches.accept(side.peer, on, false, side.now).unwrap();
        side.punches.begin(&side.peer, attempt, Offer::default(), &[], side.now);
        side.punches.heard(side.peer, attempt, What::Offer(offer(2, Mapping::None), None), side.now);
        side.punches.changed(side.now);
        assert!(side.led(LEAST_WAIT).is_some());
        // The other side leads a round that cannot come to anything.
        let (attempt, _) = other.led(Duration::ZERO).unwrap();
        other.punches.begin(&other.peer, attempt, offer(2, Mapping::None), &[], other.now);
        other.punches.heard(other.peer, attempt, What::Offer(Offer::default(), None), other.now);
        assert!(other.punches.accept(other.peer, on, false, other.now).is_some());
    }
}

#[test]
fn of_two_that_began_at_once_the_lower_leads() {
    for lower in [true, false] {
        let mut side = Side::new(true);
        while (side.local.to_bytes() < side.peer.to_bytes()) != lower {
            side = Side::new(true);
        }
        let (attempt, _) = side.led(Duration::ZERO).unwrap();
        side.punches.begin(&side.peer, attempt, offer(1, Mapping::Unknown), &[], side.now);
        let answered = side.punches.accept(side.peer, ConnectionId::new_unchecked(1), false, side.now);
        assert_eq!(answered.is_none(), lower);
    }
}

#[test]
fn libp2p_alone_is_asked_by_the_side_that_did_not_dial() {
    for dialled in [true, false] {
        let mut side = Side::new(dialled);
        let (attempt, stock) = side.led(GRACE).unwrap();
        assert!(!stock);
        side.punches.refused(&side.peer, attempt, true, String::new(), side.now);
        assert_eq!(side.led(Duration::from_secs(600)).map(|(_, stock)| stock), (!dialled).then_some(true));
        let mut side = Side::new(dialled);
        side.punches.speaks(&side.peer, Speech::Stock, side.now);
        assert_eq!(side.led(Duration::ZERO).map(|(_, stock)| stock), (!dialled).then_some(true));
    }
}

#[test]
fn a_peer_that_begins_to_speak_libp2ps_protocol_is_asked_anew() {
    let mut side = Side::new(false);
    side.punches.speaks(&side.peer, Speech::Stock, side.now);
    let (attempt, _) = side.led(Duration::ZERO).unwrap();
    side.punches.refused(&side.peer, attempt, true, String::new(), side.now);
    assert!(side.led(Duration::from_secs(600)).is_none());
    side.now += Duration::from_secs(600);
    // However often it says so.
    for _ in 0..10 {
        side.punches.speaks(&side.peer, Speech::Neither, side.now);
        side.punches.speaks(&side.peer, Speech::Stock, side.now);
    }
    let (attempt, stock) = side.led(Duration::ZERO).unwrap();
    assert!(stock);
    side.punches.refused(&side.peer, attempt, true, String::new(), side.now);
    side.punches.speaks(&side.peer, Speech::Stock, side.now);
    assert!(side.led(Duration::ZERO).is_none());
    assert!(side.led(CHANGE_WAIT).is_some());
}

#[test]
fn all_rounds_of_libp2p_are_led_where_the_peer_dialled() {
    let mut side = Side::new(false);
    let own = circuit(2, true);
    side.punches.circuit_up(side.peer, own, [], WANTED, side.now);
    side.punches.speaks(&side.peer, Speech::Stock, side.now);
    for _ in 0..4 {
        let (attempt, connection) = side.led_on(Duration::from_secs(600)).unwrap();
        assert_eq!(connection, ConnectionId::new_unchecked(1));
        side.punches.refused(&side.peer, attempt, false, "reset".to_owned(), side.now);
    }
}

#[test]
fn strangers_are_answered_but_few_at_once_and_never_asked() {
    let now = Instant::now();
    let mut punches = Punches::new(PeerId::random(), now);
    let mut answered = 0;
    for n in 0..2 * MAX_STRANGERS {
        let peer = PeerId::random();
        punches.circuit_up(peer, circuit(n, false), [], Interest::default(), now);
        answered += usize::from(punches.accept(peer, ConnectionId::new_unchecked(n), false, now).is_some());
    }
    assert_eq!(answered, MAX_STRANGERS);
    // Not on a connection that is not relayed.
    assert!(punches.accept(PeerId::random(), ConnectionId::new_unchecked(99), false, now).is_none());
    let mut later = now;
    while let Some(at) = punches.next() {
        later = later.max(at);
        assert!(!matches!(punches.pop_due(later), Some(Do::Lead { .. })));
    }
    assert!(later < now + Duration::from_secs(60));
}

#[test]
fn a_stranger_that_begins_again_and_again_is_answered_at_a_rate() {
    let (peer, now) = (PeerId::random(), Instant::now());
    let mut punches = Punches::new(PeerId::random(), now);
    punches.circuit_up(peer, circuit(1, false), [], Interest::default(), now);
    let mut answered = |seconds: u64, times: u32| {
        let at = now + Duration::from_secs(seconds);
        (0..times).filter(|_| punches.accept(peer, ConnectionId::new_unchecked(1), false, at).is_some()).count()
    };
    assert_eq!(answered(0, 100), STRANGERS_BURST as usize);
    assert_eq!(answered(60, 100), 8);
    let mut side = Side::new(false);
    for _ in 0..100 {
        assert!(side.punches.accept(side.peer, ConnectionId::new_unchecked(1), false, side.now).is_some());
    }
}
