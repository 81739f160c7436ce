//! Limits, and who is let in, on a clock of its own.

use super::*;

fn asker(peer: PeerId, connection: usize) -> Asker {
    let connection = ConnectionId::new_unchecked(connection);
    Asker { peer, connection, ip: Some("6.6.6.6".parse().unwrap()), relayed: false }
}

fn server(limits: RelayLimits) -> Server {
    Server::new(Serve::On, limits)
}

#[test]
fn the_mode_decides_whom_it_serves() {
    let now = Instant::now();
    let [friend, stranger] = [1, 2].map(|id| asker(PeerId::random(), id));
    let (refused, denied) = (Err(Refusal::ReservationRefused), Err(Refusal::PermissionDenied));
    for (mode, public, to_friend, to_stranger) in [
        (Serve::On, false, Ok(()), Ok(())),
        (Serve::Auto, false, denied, denied),
        (Serve::Auto, true, Ok(()), refused),
        (Serve::Off, true, denied, denied),
    ] {
        let mut server = Server::new(mode, RelayLimits::default());
        server.set_public(public);
        server.set_trusted(friend.peer, true);
        assert_eq!(server.is_active(), to_friend.is_ok(), "{mode:?} {public}");
        assert_eq!(server.reserve(&friend, now).map(drop), to_friend, "{mode:?} {public}");
        assert_eq!(server.reserve(&stranger, now).map(drop), to_stranger, "{mode:?} {public}");
        let relayed = Asker { relayed: true, ..friend };
        assert_eq!(server.reserve(&relayed, now), Err(Refusal::PermissionDenied));
        let called = server.connect(&stranger, friend.peer, now).map(drop);
        assert_eq!(called, to_friend, "anyone calls those who are let in");
        server.set_trusted(friend.peer, false);
        assert_eq!(server.reserve(&friend, now).map(drop), to_stranger, "{mode:?} {public}");
    }
}

#[test]
fn guests_leave_with_their_connections_or_when_their_time_is_over() {
    let now = Instant::now();
    let limits = RelayLimits::default();
    let mut server = server(limits);
    let (one, two) = (PeerId::random(), PeerId::random());
    for (asker, after) in [(asker(one, 1), 0), (asker(one, 2), 0), (asker(two, 3), 0), (asker(one, 1), 9)] {
        let granted = server.reserve(&asker, now + Duration::from_secs(after));
        assert_eq!(granted, Ok(limits.reservation_duration));
    }
    assert_eq!(server.view().reservations, 3);
    assert_eq!(server.ways_to(&one), [1, 2].map(ConnectionId::new_unchecked), "the youngest first");
    assert_eq!(server.next(), Some(now + limits.reservation_duration));
    assert_eq!(server.expire(now + limits.reservation_duration), [two]);
    assert_eq!(server.view().reservations, 1);
    assert!(server.is_guest(&one) && !server.is_guest(&two));
    assert!(!server.closed(one, ConnectionId::new_unchecked(2)));
    assert!(server.closed(one, ConnectionId::new_unchecked(1)));
    assert!(!server.is_guest(&one) && server.next().is_none());
}

#[test]
fn reservations_have_limits_and_can_be_renewed_at_them() {
    let now = Instant::now();
    let mut server = server(RelayLimits { max_reservations: 2, ..RelayLimits::default() });
    let (one, two, three) = (PeerId::random(), PeerId::random(), PeerId::random());
    server.reserve(&asker(one, 1), now).unwrap();
    server.reserve(&asker(two, 2), now).unwrap();
    assert_eq!(server.reserve(&asker(three, 3), now), Err(Refusal::LimitExceeded));
    server.reserve(&asker(two, 2), now).unwrap();
    assert_eq!((server.view().reservations, server.view().refused), (2, 1));
    assert!(server.closed(two, ConnectionId::new_unchecked(2)));
    server.reserve(&asker(three, 3), now).unwrap();
}

#[test]
fn a_guest_that_comes_back_before_its_connection_is_known_to_be_dead_is_let_in() {
    let now = Instant::now();
    let mut full = server(RelayLimits { max_reservations: 2, ..RelayLimits::default() });
    let (one, two) = (PeerId::random(), PeerId::random());
    for asker in [asker(one, 1), asker(two, 2), asker(one, 3)] {
        full.reserve(&asker, now).unwrap();
    }
    assert_eq!(full.view().reservations, 2);
    assert_eq!(full.ways_to(&one), [3].map(ConnectionId::new_unchecked));
    assert!(full.is_guest(&two), "others lose nothing");

    let mut server = server(RelayLimits::default());
    for id in 0..6 {
        server.reserve(&asker(one, id), now).unwrap();
    }
    assert_eq!(server.ways_to(&one), [5, 4, 3, 2].map(ConnectionId::new_unchecked));
    assert_eq!(server.view().refused, 0);
}

#[test]
fn a_peer_that_asks_without_end_is_refused_and_nobody_else() {
    let now = Instant::now();
    let mut server = server(RelayLimits::default());
    let (mad, sane) = (PeerId::random(), PeerId::random());
    let granted = (0..1000).filter(|_| server.reserve(&asker(mad, 1), now).is_ok()).count();
    assert_eq!(granted, 60);
    server.reserve(&asker(sane, 2), now).unwrap();
    let mut asked = 0;
    while let Ok((id, _)) = server.connect(&asker(mad, 1), sane, now) {
        server.ended(id);
        asked += 1;
    }
    assert_eq!(asked, 256);
    server.connect(&asker(PeerId::random(), 3), sane, now).unwrap();
    assert_eq!(server.view().refused, 941);
    server.connect(&asker(mad, 1), sane, now + Duration::from_secs(1)).unwrap();
}

#[test]
fn one_household_cannot_take_all_that_is_given() {
    let now = Instant::now();
    let mut server = server(RelayLimits::default());
    let six = |n: u16| {
        let ip = Some(format!("2001:db8:0:1::{n:x}").parse().unwrap());
        Asker { ip, ..asker(PeerId::random(), n.into()) }
    };
    let granted = (0..1000).filter(|n| server.reserve(&six(*n), now).is_ok()).count();
    assert_eq!(granted, 256, "a /64 is one");
    server.reserve(&asker(PeerId::random(), 9999), now).unwrap();
}

#[test]
fn circuits_have_limits_of_which_callers_use_up_their_own() {
    let now = Instant::now();
    let limits = RelayLimits { max_circuits: 5, max_circuits_per_peer: 2, ..RelayLimits::default() };
    let mut server = server(limits);
    let (host, one, two, three) = (PeerId::random(), PeerId::random(), PeerId::random(), PeerId::random());
    assert_eq!(server.connect(&asker(one, 1), host, now).map(drop), Err(Refusal::NoReservation));
    assert_eq!(server.view().refused, 0);
    server.reserve(&asker(host, 9), now).unwrap();
    let (first, _) = server.connect(&asker(one, 1), host, now).unwrap();
    server.connect(&asker(one, 2), host, now).unwrap();
    assert_eq!(server.connect(&asker(one, 1), host, now).map(drop), Err(Refusal::LimitExceeded));
    for id in [3, 4] {
        server.connect(&asker(two, id), host, now).unwrap();
    }
    server.reserve(&asker(three, 5), now).unwrap();
    server.connect(&asker(host, 9), three, now).unwrap();
    assert_eq!(server.connect(&asker(three, 5), host, now).map(drop), Err(Refusal::LimitExceeded));
    assert_eq!((server.view().circuits, server.view().refused), (0, 2));
    server.up(first);
    assert_eq!(server.view().circuits, 1);
    server.ended(first);
    assert_eq!(server.view().circuits, 0);
    server.connect(&asker(one, 1), host, now).unwrap();
}

#[test]
fn circuits_end_with_the_connections_of_both_ends() {
    let now = Instant::now();
    let mut server = server(RelayLimits::default());
    let (host, caller) = (PeerId::random(), PeerId::random());
    for id in [1, 2] {
        server.reserve(&asker(host, id), now).unwrap();
    }
    let mut tokens = Vec::new();
    for (from, to) in [(3, 2), (4, 1), (3, 1)] {
        let (id, token) = server.connect(&asker(caller, from), host, now).unwrap();
        assert!(server.lead(id, ConnectionId::new_unchecked(to)));
        tokens.push(token);
    }
    let cancelled = |tokens: &[CancellationToken]| tokens.iter().map(|token| token.is_cancelled()).collect::<Vec<_>>();
    server.closed(host, ConnectionId::new_unchecked(2));
    assert_eq!(cancelled(&tokens), [true, false, false]);
    server.closed(caller, ConnectionId::new_unchecked(4));
    assert_eq!(cancelled(&tokens), [true, true, false]);
    drop(server);
    assert_eq!(cancelled(&tokens), [true; 3]);
}
