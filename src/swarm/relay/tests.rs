//! The supervisor on a clock of its own.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, swarm::ConnectionId};
use tokio::time::Instant;

use super::{
    candidate::{Health, Kind, Step},
    client::{Change, Client},
};
use crate::{
    node::{PeerAddresses, RelayState, RelayTrouble},
    wire::circuit::CircuitLimit,
};

/// A supervisor, with what it has asked for.
struct World {
    client: Client,
    now: Instant,
    relays: Vec<PeerId>,
    last: usize,
    dials: Vec<(PeerId, Kind, ConnectionId)>,
    asked: Vec<(PeerId, Multiaddr, ListenerId)>,
    kept: Vec<(PeerId, bool)>,
    closed: Vec<ConnectionId>,
}

fn address(relay: usize, kind: Kind) -> Multiaddr {
    let tail = if kind == Kind::Quic { "udp/4001/quic-v1" } else { "tcp/4001" };
    format!("/ip4/8.8.8.{relay}/{tail}").parse().unwrap()
}

fn both(relay: usize) -> Vec<Multiaddr> {
    vec![address(relay, Kind::Quic), address(relay, Kind::Tcp)]
}

impl World {
    fn new(configured: usize) -> Self {
        let relays: Vec<_> = (0..configured).map(|_| PeerId::random()).collect();
        let settings: Vec<_> =
            relays.iter().enumerate().map(|(n, peer)| PeerAddresses { peer: *peer, addresses: both(n) }).collect();
        let client = Client::new(PeerId::random(), &settings);
        let (dials, asked, kept, closed) = (vec![], vec![], vec![], vec![]);
        let mut world = Self { client, now: Instant::now(), relays, last: 0, dials, asked, kept, closed };
        world.steps();
        world
    }

    fn id(&mut self) -> ConnectionId {
        self.last += 1;
        ConnectionId::new_unchecked(self.last)
    }

    fn steps(&mut self) {
        while let Some(step) = self.client.step(self.now) {
            match step {
                Step::Dial { relay, kind, addresses, .. } => {
                    assert!(!addresses.is_empty());
                    let id = self.id();
                    self.client.dialling(relay, kind, id);
                    self.dials.push((relay, kind, id));
                }
                Step::Reserve { relay, at } => {
                    let id = ListenerId::next();
                    self.client.asked(relay, Some(id), self.now, 0.5);
                    self.asked.push((relay, at, id));
                }
                Step::Keep { relay, keep } => self.kept.push((relay, keep)),
                Step::Close(id) => self.closed.push(id),
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.steps();
    }

    fn dialled(&mut self, relay: usize, kind: Kind) -> Option<ConnectionId> {
        let peer = self.relays[relay];
        let at = self.dials.iter().position(|(other, of, _)| *other == peer && *of == kind)?;
        Some(self.dials.remove(at).2)
    }

    fn connect(&mut self, relay: usize, kind: Kind) -> ConnectionId {
        let id = self.dialled(relay, kind).expect("dialled");
        self.client.connected(self.relays[relay], id, &address(relay, kind), self.now);
        self.steps();
        id
    }

    fn refuse(&mut self, relay: usize, kind: Kind) {
        let id = self.dialled(relay, kind).expect("dialled");
        self.client.dial_failed(self.relays[relay], id, &RelayTrouble::NoAnswer, self.now, 0.5);
        self.steps();
    }

    fn grant(&mut self, relay: usize) -> ListenerId {
        let peer = self.relays[relay];
        let at = self.asked.iter().position(|(other, ..)| *other == peer).expect("asked");
        let (.., listener) = self.asked.remove(at);
        assert_eq!(self.client.reserved(peer, CircuitLimit::default()), Some(Change::Reserved));
        self.steps();
        listener
    }

    fn hold(&mut self, relay: usize) -> (ConnectionId, ConnectionId, ListenerId) {
        let quic = self.connect(relay, Kind::Quic);
        let listener = self.grant(relay);
        (quic, self.connect(relay, Kind::Tcp), listener)
    }

    fn close(&mut self, relay: usize, id: ConnectionId) -> Option<Change> {
        let change = self.client.closed(self.relays[relay], id, self.now, 0.5);
        self.steps();
        change
    }

    fn states(&self) -> Vec<RelayState> {
        self.client.views(|_| None).into_iter().map(|view| view.state).collect()
    }
}

#[test]
fn both_transports_at_once_and_the_first_one_reserves() {
    let mut world = World::new(1);
    assert_eq!(world.dials.len(), 2);
    assert!(world.asked.is_empty());
    world.connect(0, Kind::Tcp);
    assert_eq!(world.asked.len(), 1, "without waiting for the other");
    let expected = format!("/ip4/8.8.8.0/tcp/4001/p2p/{}/p2p-circuit", world.relays[0]);
    assert_eq!(world.asked[0].1.to_string(), expected);
    world.connect(0, Kind::Quic);
    world.grant(0);
    world.pass(1000);
    assert!(world.asked.is_empty() && world.dials.is_empty(), "one reservation, one connection of each");
    let circuits: Vec<_> = world.client.circuits().iter().map(ToString::to_string).collect();
    assert_eq!(circuits, [expected.clone(), expected.replace("tcp/4001", "udp/4001/quic-v1")]);
    assert_eq!(world.client.next(world.now), None);
}

#[test]
fn two_relays_are_enough() {
    let mut world = World::new(3);
    assert_eq!(world.dials.len(), 4);
    world.hold(0);
    world.hold(1);
    world.pass(10_000);
    assert!(world.dials.is_empty());
    assert_eq!(world.states(), [RelayState::Reserved, RelayState::Reserved, RelayState::Spare]);
}

#[test]
fn a_slow_relay_does_not_keep_others_from_their_turn() {
    let mut world = World::new(3);
    world.hold(0);
    assert!(world.dialled(2, Kind::Quic).is_none());
    assert_eq!(world.client.next(world.now), Some(world.now + Duration::from_millis(1500)));
    world.pass(1500);
    world.hold(2);
    assert_eq!(world.states(), [RelayState::Reserved, RelayState::Spare, RelayState::Reserved]);
}

#[test]
fn a_lost_relay_is_replaced_at_once_and_looked_for() {
    let mut world = World::new(3);
    let (quic, tcp, listener) = world.hold(0);
    world.hold(1);
    world.pass(60_000);
    assert_eq!(world.close(0, quic), Some(Change::Lost));
    assert_eq!(world.client.circuits().len(), 2, "withdrawn");
    assert_eq!(world.client.listener_closed(listener, None, world.now, 0.5), None, "told already");
    assert_eq!(world.asked.len(), 1, "again on the connection that is left");
    assert_eq!(world.close(0, tcp), None);
    assert!(world.dialled(2, Kind::Quic).is_some() && world.dialled(2, Kind::Tcp).is_some());
    assert!(world.dials.iter().all(|(peer, ..)| *peer == world.relays[0]) && !world.dials.is_empty());
}

#[test]
fn a_relay_that_was_away_for_long_is_asked_ever_less_often() {
    let mut world = World::new(1);
    let (quic, tcp, _) = world.hold(0);
    world.pass(60_000);
    world.close(0, quic);
    world.asked.clear();
    world.close(0, tcp);
    let start = world.now;
    let mut tries = 0;
    while world.now < start + Duration::from_secs(600) {
        for kind in [Kind::Quic, Kind::Tcp] {
            if world
                .dialled(0, kind)
                .map(|id| world.client.dial_failed(world.relays[0], id, &RelayTrouble::NoAnswer, world.now, 0.5))
                .is_some()
            {
                tries += 1;
            }
        }
        let next = world.client.next(world.now).expect("tried again");
        assert!(next <= world.now + Duration::from_secs(75), "{:?}", next - world.now);
        world.now = next.max(world.now);
        world.steps();
    }
    assert!((80..200).contains(&tries), "{tries}");
    world.client.network_changed();
    world.steps();
    assert_eq!(world.dials.len(), 2, "at once");
}

#[test]
fn a_relay_that_refuses_is_asked_again_later_and_another_one_now() {
    let mut world = World::new(3);
    world.hold(0);
    world.connect(1, Kind::Quic);
    let (peer, _, listener) = world.asked.remove(0);
    assert_eq!(peer, world.relays[1]);
    let refused = world.client.listener_closed(listener, Some(RelayTrouble::Full), world.now, 0.5);
    assert_eq!(refused, Some((world.relays[1], None)));
    world.steps();
    assert!(world.asked.is_empty());
    assert!(world.dialled(2, Kind::Quic).is_some());
    assert_eq!(world.client.views(|_| None)[1].trouble, Some(RelayTrouble::Full));
    world.pass(1000);
    assert_eq!(world.asked.len(), 1);
}

#[test]
fn a_connection_on_which_nothing_comes_back_is_not_waited_for() {
    let mut world = World::new(1);
    let quic = world.connect(0, Kind::Quic);
    let tcp = world.connect(0, Kind::Tcp);
    assert_eq!(world.client.next(world.now), Some(world.now + Duration::from_secs(2)));
    world.pass(2000);
    assert_eq!(world.closed, [quic]);
    assert_eq!(world.close(0, quic), None);
    world.asked.clear();
    world.pass(50);
    assert!(world.asked[0].1.to_string().contains("/tcp/"));
    world.grant(0);
    world.pass(950);
    assert!(world.dialled(0, Kind::Quic).is_some());
    world.pass(60_000);
    assert_eq!(world.close(0, tcp), Some(Change::Lost));
}

#[test]
fn a_reservation_that_ends_by_itself_is_made_again_on_the_same_connection() {
    let mut world = World::new(1);
    let (_, _, listener) = world.hold(0);
    let lost = world.client.listener_closed(listener, None, world.now, 0.5);
    assert_eq!(lost, Some((world.relays[0], Some(Change::Lost))));
    world.steps();
    assert!(world.asked.is_empty(), "the connection may be gone as well");
    world.pass(50);
    world.grant(0);
}

#[test]
fn found_relays_stand_in_for_those_of_the_settings() {
    let mut world = World::new(1);
    let found = PeerId::random();
    world.client.offer(found, both(1));
    world.relays.push(found);
    world.steps();
    world.hold(1);
    for kind in [Kind::Quic, Kind::Tcp] {
        world.refuse(0, kind);
    }
    world.client.offer(PeerId::random(), both(2));
    world.steps();
    assert_eq!(world.states(), [RelayState::Waiting, RelayState::Reserved, RelayState::Connecting]);
    world.dials.clear();
    world.pass(1000);
    world.hold(0);
    assert_eq!(world.states()[0], RelayState::Reserved, "also with two others");
}

#[test]
fn found_relays_are_few_and_only_where_they_can_be_dialled() {
    let mut client = Client::new(PeerId::random(), &[]);
    client.offer(PeerId::random(), vec!["/ip4/0.0.0.0/tcp/1".parse().unwrap()]);
    assert!(client.views(|_| None).is_empty());
    for n in 0..100 {
        client.offer(PeerId::random(), both(n));
    }
    assert_eq!(client.views(|_| None).len(), 16);
}

#[test]
fn what_a_relay_tells_of_itself_makes_the_other_transport_possible() {
    let relay = PeerId::random();
    let settings = PeerAddresses { peer: relay, addresses: vec![address(0, Kind::Quic)] };
    let mut client = Client::new(PeerId::random(), &[settings]);
    let now = Instant::now();
    assert!(matches!(client.step(now), Some(Step::Dial { kind: Kind::Quic, .. })));
    client.dialling(relay, Kind::Quic, ConnectionId::new_unchecked(1));
    assert_eq!(client.step(now), None);
    client.learned(&relay, &both(0), true);
    assert!(matches!(client.step(now), Some(Step::Dial { kind: Kind::Tcp, .. })));
}

#[test]
fn a_connection_that_ends_at_once_is_not_dialled_without_a_pause() {
    let mut world = World::new(1);
    let id = world.connect(0, Kind::Quic);
    world.close(0, id);
    assert!(world.dialled(0, Kind::Quic).is_none());
    world.pass(1000);
    assert!(world.dialled(0, Kind::Quic).is_some());
}

/// How often a relay is dialled within ten minutes that takes every connection
/// and then behaves as told.
fn dials_of(mut behave: impl FnMut(&mut World, Kind, ConnectionId)) -> (usize, World) {
    let mut world = World::new(1);
    let start = world.now;
    let mut dials = 0;
    while world.now < start + Duration::from_secs(600) {
        for kind in [Kind::Quic, Kind::Tcp] {
            if let Some(id) = world.dialled(0, kind) {
                dials += 1;
                world.client.connected(world.relays[0], id, &address(0, kind), world.now);
                world.steps();
                behave(&mut world, kind, id);
            }
        }
        for id in std::mem::take(&mut world.closed) {
            world.close(0, id);
        }
        let next = world.client.next(world.now).expect("tried again");
        assert!(next <= world.now + Duration::from_secs(75), "{:?}", next - world.now);
        world.now = next.max(world.now);
        world.steps();
    }
    (dials, world)
}

#[test]
fn a_relay_that_never_answers_is_dialled_ever_less_often() {
    let (dials, _) = dials_of(|_, _, _| {});
    assert!((40..140).contains(&dials), "{dials}");
}

#[test]
fn a_relay_that_drops_connections_is_dialled_ever_less_often() {
    let (dials, mut world) = dials_of(|world, _, id| {
        world.close(0, id);
    });
    assert!((80..200).contains(&dials), "{dials}");
    world.dials.clear();
    for (kind, n) in [(Kind::Quic, 1000), (Kind::Tcp, 1001)] {
        let id = ConnectionId::new_unchecked(n);
        world.client.dialling(world.relays[0], kind, id);
        world.client.connected(world.relays[0], id, &address(0, kind), world.now);
        world.close(0, id);
    }
    assert!(world.dials.is_empty());
    world.client.network_changed();
    world.steps();
    assert_eq!(world.dials.len(), 2, "at once");
}

#[test]
fn a_relay_that_reserves_and_drops_is_dialled_ever_less_often() {
    let (dials, _) = dials_of(|world, _, id| {
        world.client.reserved(world.relays[0], CircuitLimit::default());
        world.close(0, id);
    });
    assert!((80..200).contains(&dials), "{dials}");
}

#[test]
fn a_relay_that_behaves_again_is_forgiven() {
    let (_, mut world) = dials_of(|world, _, id| {
        world.close(0, id);
    });
    world.pass(75_000);
    world.hold(0);
    world.pass(60_000);
    let ids: Vec<_> = (0..=world.last).map(ConnectionId::new_unchecked).collect();
    for id in ids {
        world.close(0, id);
    }
    assert_eq!(world.dials.len(), 2, "at once");
}

#[test]
fn connections_are_kept_as_long_as_the_relay_is_wanted() {
    let mut world = World::new(3);
    let visitor = world.id();
    world.client.connected(world.relays[2], visitor, &address(2, Kind::Tcp), world.now);
    world.steps();
    assert!(world.client.keeps(&world.relays[0]) && !world.client.keeps(&world.relays[2]));
    for kind in [Kind::Quic, Kind::Tcp] {
        world.refuse(0, kind);
    }
    assert_eq!(world.kept, [(world.relays[2], true)]);
    world.client.stop();
    world.pass(100_000);
    assert_eq!(world.client.next(world.now), None);
}

#[test]
fn a_silent_connection_is_replaced_and_closed() {
    let mut world = World::new(1);
    let (quic, tcp, _) = world.hold(0);
    let relay = world.relays[0];
    for id in [quic, tcp] {
        world.client.health(&relay, id, Health::Silent);
    }
    world.steps();
    assert!(world.closed.is_empty(), "none of them is known to work");
    let again = world.connect(0, Kind::Quic);
    assert_eq!(world.closed, [quic, tcp]);
    assert_eq!(world.close(0, quic), Some(Change::Lost));
    world.close(0, tcp);
    assert!(world.dialled(0, Kind::Tcp).is_some(), "at once");
    world.grant(0);
    world.client.health(&relay, again, Health::Asked);
    world.client.health(&relay, again, Health::Fine);
    world.pass(10_000);
    assert_eq!((world.closed.len(), world.states()[0]), (2, RelayState::Reserved));
}

#[test]
fn only_relays_that_were_there_a_while_ago_are_dialled_in_haste() {
    let relay = PeerId::random();
    let settings = PeerAddresses { peer: relay, addresses: vec![address(0, Kind::Quic)] };
    let mut client = Client::new(PeerId::random(), &[settings]);
    let mut now = Instant::now();
    let within = |step| match step {
        Some(Step::Dial { within, .. }) => within,
        other => panic!("{other:?}"),
    };
    assert_eq!(within(client.step(now)), None);
    let id = ConnectionId::new_unchecked(1);
    client.connected(relay, id, &address(0, Kind::Quic), now);
    assert!(matches!(client.step(now), Some(Step::Reserve { .. })));
    client.asked(relay, Some(ListenerId::next()), now, 0.5);
    client.reserved(relay, CircuitLimit::default());
    now += Duration::from_secs(60);
    client.closed(relay, id, now, 0.5);
    assert!(within(client.step(now)).is_some());
    now += Duration::from_secs(600);
    assert_eq!(within(client.step(now)), None, "it may have become slower");
}

#[test]
fn a_foreign_relay_has_one_connection() {
    let mut world = World::new(1);
    let relay = world.relays[0];
    let (quic, tcp, _) = world.hold(0);
    world.client.learned(&relay, &both(0), false);
    world.steps();
    assert_eq!(world.closed, [tcp]);
    world.client.closed(relay, tcp, world.now, 0.5);
    world.pass(60_000);
    assert!(world.dials.is_empty(), "{:?}", world.dials);
    // Both ways are open again when that is gone.
    world.client.closed(relay, quic, world.now, 0.5);
    world.pass(10_000);
    assert!(world.dialled(0, Kind::Quic).is_some() && world.dialled(0, Kind::Tcp).is_some());
}
