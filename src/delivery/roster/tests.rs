use futures::FutureExt as _;

use super::{changes::MAX_WAITING, *};

fn info(peer: PeerId, route: Route) -> ConnectionInfo {
    ConnectionInfo { peer, route, address: "/ip4/127.0.0.1/tcp/1".parse().unwrap() }
}

fn causes(watcher: &Watcher) -> Vec<Cause> {
    match lock(&watcher.roster.state).watchers.get_mut(&watcher.number).unwrap().take(usize::MAX) {
        None => Vec::new(),
        Some(News::Changes(all)) => all.into_iter().flat_map(|(_, changes)| changes).map(|c| c.cause).collect(),
        Some(News::Lagged(count)) => panic!("lagged by {count}"),
    }
}

fn later(roster: &Roster, wait: Duration) -> Option<Instant> {
    roster.expire(Instant::now() + wait, |_| true)
}

fn presence(text: &str) -> Presence {
    Presence { text: text.into(), ..Presence::default() }
}

#[test]
fn a_short_absence_is_none() {
    let (roster, peer) = (Arc::new(Roster::default()), PeerId::random());
    let watcher = roster.watch();
    roster.connected(&info(peer, Route::Lan));
    assert_eq!(causes(&watcher), [Cause::Online]);
    roster.disconnected(peer, "lost".into(), false, true);
    assert!(later(&roster, SETTLE / 2).is_some());
    assert!(roster.status(&peer).online);
    roster.connected(&info(peer, Route::Lan));
    assert_eq!(later(&roster, 2 * SETTLE), None);
    assert_eq!(causes(&watcher), []);
    roster.disconnected(peer, "lost".into(), false, true);
    roster.connected(&info(peer, Route::Relayed));
    assert_eq!(causes(&watcher), [Cause::Route]);
    roster.disconnected(peer, "lost".into(), false, true);
    later(&roster, 2 * SETTLE);
    assert_eq!(causes(&watcher), [Cause::Offline]);
    let status = roster.status(&peer);
    assert!(!status.online && status.since > 0 && status.route.is_none());
}

#[test]
fn what_a_peer_told_ends_with_its_link_its_connection_or_its_trust() {
    let (roster, peer) = (Arc::new(Roster::default()), PeerId::random());
    let watcher = roster.watch();
    roster.connected(&info(peer, Route::Lan));
    let tell = |text: &str| assert!(roster.told(peer, presence(text), || true));
    let text = || roster.status(&peer).presence.text;
    tell("a");
    tell("a");
    assert_eq!(causes(&watcher), [Cause::Online, Cause::Presence]);
    roster.unlinked(peer);
    tell("b");
    assert_eq!(later(&roster, 2 * SETTLE), None);
    assert_eq!(text(), "b");
    roster.unlinked(peer);
    later(&roster, 2 * SETTLE);
    assert_eq!(text(), "");
    tell("c");
    causes(&watcher);
    roster.book_changed(peer, false, true);
    assert_eq!((text().as_str(), causes(&watcher)), ("", vec![Cause::Presence, Cause::Book]));
    assert!(roster.told(peer, presence("d"), || false));
    assert_eq!((text().as_str(), causes(&watcher)), ("", vec![]));
    tell("e");
    roster.disconnected(peer, "blocked".into(), true, true);
    assert_eq!((text().as_str(), causes(&watcher)), ("", vec![Cause::Presence, Cause::Offline]));
}

#[test]
fn a_peer_that_tells_without_end_is_noticed() {
    let (roster, peer) = (Roster::default(), PeerId::random());
    roster.connected(&info(peer, Route::Lan));
    let told = (0..1000).take_while(|n| roster.told(peer, presence(&n.to_string()), || true)).count();
    assert!((64..100).contains(&told), "{told}");
    let mut state = lock(&roster.state);
    let slow = state.peers.get_mut(&peer).unwrap();
    let start = Instant::now();
    assert!((1..1000).all(|n| slow.may_tell(start + PRESENCE_INTERVAL * n)));
    let late = start + Duration::from_secs(10_000);
    assert_eq!((0..1000).filter(|_| slow.may_tell(late)).count(), PRESENCE_BURST as usize);
}

#[test]
fn changes_of_one_peer_fold_and_those_of_too_many_are_left_out() {
    let roster = Arc::new(Roster::default());
    let watcher = roster.watch();
    let peer = PeerId::random();
    for n in 0..100 {
        roster.joined(peer, if n % 2 == 0 { "one" } else { "two" });
        roster.book_changed(peer, true, true);
    }
    assert_eq!(causes(&watcher), [Cause::Joined, Cause::Joined, Cause::Book]);
    let peers: Vec<PeerId> = (0..MAX_WAITING + 10).map(|_| PeerId::random()).collect();
    peers.iter().for_each(|peer| roster.on_lan(*peer, true));
    let mut state = lock(&roster.state);
    let waiting = state.watchers.get_mut(&watcher.number).unwrap();
    assert!(waiting.changes.is_empty() && waiting.order.is_empty());
    assert_eq!(waiting.take(1), Some(News::Lagged(peers.len() as u64)));
    assert_eq!(waiting.take(1), None);
    drop(state);
    drop(watcher);
    assert!(lock(&roster.state).watchers.is_empty());
}

#[test]
fn what_was_missed_is_made_good() {
    let roster = Arc::new(Roster::default());
    let [stays, goes, comes] = [(); 3].map(|()| PeerId::random());
    roster.connected(&info(stays, Route::Lan));
    roster.connected(&info(goes, Route::Lan));
    let mut watcher = roster.watch();
    let view = |peer, best| PeerView {
        peer,
        best,
        connections: 0,
        rtt: None,
        lan: Vec::new(),
        addresses: Vec::new(),
        agent: String::new(),
    };
    let best = |route| Some((route, "/ip4/127.0.0.1/tcp/1".parse().unwrap()));
    roster.catch_up(&[view(stays, best(Route::Direct)), view(comes, best(Route::Lan)), view(PeerId::random(), None)]);
    assert_eq!(watcher.next(1).now_or_never(), Some(News::Lagged(3)));
    later(&roster, 2 * SETTLE);
    assert_eq!(causes(&watcher), [Cause::Offline]);
    let online = |peer| roster.status(&peer).online;
    assert_eq!([stays, goes, comes].map(online), [true, false, true]);
    assert_eq!(roster.status(&stays).route, Some(Route::Direct));
}

#[test]
fn strangers_are_waited_for_in_numbers() {
    let roster = Roster::default();
    for n in 0..MAX_SETTLING + 10 {
        let peer = PeerId::random();
        roster.connected(&info(peer, Route::Lan));
        roster.disconnected(peer, String::new(), false, false);
        assert_eq!(roster.status(&peer).online, n < MAX_SETTLING);
    }
    assert_eq!(lock(&roster.state).peers.len(), MAX_SETTLING);
}

#[test]
fn strangers_are_forgotten() {
    let (roster, peer) = (Roster::default(), PeerId::random());
    roster.connected(&info(peer, Route::Lan));
    roster.disconnected(peer, String::new(), false, false);
    roster.expire(Instant::now() + 2 * SETTLE, |_| false);
    let state = lock(&roster.state);
    assert!(state.peers.is_empty() && state.due.is_empty());
}
