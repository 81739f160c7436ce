//! Where links go, and when.

use super::*;

fn id(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn steer(chooser: bool, now: Instant) -> Steer {
    let mut steer = Steer::new(chooser, now);
    steer.allow(true);
    steer
}

#[test]
fn the_chooser_takes_the_best_and_moves_to_a_better_one() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    assert_eq!(steer.step(now), Step::Rest);
    steer.connected(id(1), Route::Relayed, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    assert_eq!(steer.step(now), Step::Rest, "asked once");
    steer.opened(id(1), LinkId(1), now);
    steer.connected(id(2), Route::Direct, false, now);
    assert_eq!(steer.step(now), Step::Open(id(2)));
    steer.opened(id(2), LinkId(2), now);
    steer.connected(id(3), Route::Direct, true, now);
    assert_eq!(steer.step(now), Step::Wait(now + SETTLE), "no need to hurry");
    assert_eq!(steer.step(now + SETTLE), Step::Open(id(3)));
    steer.opened(id(3), LinkId(3), now + SETTLE);
    steer.connected(id(4), Route::Lan, false, now);
    assert_eq!(steer.step(now + SETTLE), Step::Open(id(4)));
    steer.opened(id(4), LinkId(4), now + SETTLE);
    steer.connected(id(5), Route::Lan, false, now);
    steer.connected(id(6), Route::Direct, true, now);
    assert_eq!(steer.step(now + SETTLE), Step::Rest, "an equal or worse one changes nothing");
}

#[test]
fn another_connection_takes_over_at_once() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Lan, true, now);
    steer.connected(id(2), Route::Direct, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    // The link's end is seen before the connection's.
    steer.ended(LinkId(1), now, 0.5);
    steer.disconnected(id(1), now);
    assert_eq!(steer.step(now), Step::Open(id(2)));
}

#[test]
fn a_doubted_connection_is_left_until_it_answers() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Lan, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    steer.connected(id(2), Route::Lan, true, now);
    assert_eq!(steer.step(now), Step::Rest);
    assert!(steer.doubt(id(1), true));
    assert!(!steer.doubt(id(1), true));
    assert_eq!(steer.step(now), Step::Open(id(2)));
    steer.opened(id(2), LinkId(2), now);
    steer.doubt(id(1), false);
    assert_eq!(steer.step(now), Step::Rest, "the other is as good");
}

#[test]
fn a_follower_leaves_a_doubted_connection_too() {
    let now = Instant::now();
    let mut steer = steer(false, now);
    steer.connected(id(1), Route::Direct, true, now);
    steer.inbound(id(1));
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    steer.connected(id(2), Route::Relayed, true, now);
    assert_eq!(steer.step(now), Step::Rest);
    assert!(!steer.all_doubted());
    steer.doubt(id(1), true);
    assert_eq!(steer.step(now), Step::Open(id(2)));
}

#[test]
fn a_connection_that_ends_soon_is_left_for_another_of_its_kind() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Relayed, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    steer.wear(id(1));
    assert!(!steer.has_fresh());
    assert_eq!(steer.step(now), Step::Rest, "better than none");
    steer.connected(id(2), Route::Relayed, false, now);
    assert!(steer.has_fresh());
    assert_eq!(steer.step(now), Step::Open(id(2)));
}

#[test]
fn a_link_being_opened_on_a_doubted_connection_is_not_waited_for() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Lan, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.connected(id(2), Route::Lan, true, now);
    steer.doubt(id(1), true);
    assert_eq!(steer.step(now), Step::Open(id(2)));
    steer.failed(id(1), false, now, 0.5);
    assert_eq!(steer.step(now), Step::Rest, "the other is still being opened");
    steer.opened(id(2), LinkId(1), now);
    assert_eq!(steer.step(now), Step::Rest);
}

#[test]
fn the_follower_follows() {
    let now = Instant::now();
    let mut steer = steer(false, now);
    steer.connected(id(1), Route::Lan, true, now);
    steer.connected(id(2), Route::Direct, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)), "the chooser will hardly choose another");
    steer.inbound(id(2));
    assert_eq!(steer.step(now), Step::Rest);
    steer.opened(id(1), LinkId(1), now);
    assert_eq!(steer.step(now), Step::Open(id(2)));
    steer.opened(id(2), LinkId(2), now);
    steer.inbound(id(1));
    assert_eq!(steer.step(now), Step::Open(id(1)));
}

#[test]
fn a_follower_settles_before_it_moves_within_a_route() {
    let now = Instant::now();
    let mut steer = steer(false, now);
    steer.connected(id(1), Route::Relayed, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    steer.connected(id(2), Route::Relayed, true, now);
    steer.inbound(id(2));
    assert_eq!(steer.step(now), Step::Wait(now + SETTLE));
    assert_eq!(steer.step(now + SETTLE), Step::Open(id(2)));
    steer.opened(id(2), LinkId(2), now + SETTLE);
    // The chooser may know that the better one is dead.
    steer.connected(id(3), Route::Direct, true, now);
    steer.inbound(id(3));
    assert_eq!(steer.step(now + SETTLE), Step::Open(id(3)));
    steer.opened(id(3), LinkId(3), now + SETTLE);
    steer.inbound(id(1));
    assert_eq!(steer.step(now + SETTLE), Step::Open(id(1)));
}

#[test]
fn a_follower_does_not_move_before_the_chooser() {
    let now = Instant::now();
    let mut steer = steer(false, now);
    steer.connected(id(1), Route::Relayed, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    steer.connected(id(2), Route::Direct, true, now);
    assert_eq!(steer.step(now), Step::Wait(now + GRACE));
    steer.inbound(id(2));
    assert_eq!(steer.step(now), Step::Open(id(2)));
}

#[test]
fn the_follower_chooses_when_no_link_comes() {
    let now = Instant::now();
    let mut steer = steer(false, now);
    steer.connected(id(1), Route::Direct, true, now);
    steer.connected(id(2), Route::Lan, true, now);
    assert_eq!(steer.step(now + GRACE), Step::Open(id(2)));
    steer.opened(id(2), LinkId(1), now + GRACE);
    assert_eq!(steer.step(now + GRACE), Step::Rest);
}

#[test]
fn an_ended_link_is_opened_again_with_patience() {
    let mut now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Lan, true, now);
    for (n, wait) in [25, 50, 100, 200, 400].into_iter().enumerate() {
        assert_eq!(steer.step(now), Step::Open(id(1)));
        steer.opened(id(1), LinkId(n as u64), now);
        steer.ended(LinkId(n as u64), now, 0.5);
        assert_eq!(steer.step(now), Step::Wait(now + ms(wait)));
        now += ms(wait);
    }
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(9), now);
    now += GOOD_LIFE;
    steer.ended(LinkId(9), now, 0.5);
    assert_eq!(steer.step(now), Step::Wait(now + FIRST_WAIT));
}

#[test]
fn a_peer_without_the_protocol_is_asked_rarely() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Lan, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.failed(id(1), true, now, 0.5);
    assert_eq!(steer.step(now), Step::Wait(now + LONGEST_WAIT));
}

#[test]
fn the_end_of_an_old_link_changes_nothing() {
    let now = Instant::now();
    let mut steer = steer(true, now);
    steer.connected(id(1), Route::Direct, true, now);
    assert_eq!(steer.step(now), Step::Open(id(1)));
    steer.opened(id(1), LinkId(1), now);
    steer.connected(id(2), Route::Lan, true, now);
    assert_eq!(steer.step(now), Step::Open(id(2)));
    steer.opened(id(2), LinkId(2), now);
    steer.ended(LinkId(1), now, 0.5);
    steer.disconnected(id(1), now);
    assert_eq!(steer.step(now), Step::Rest);
}

#[test]
fn nothing_is_opened_to_a_peer_not_allowed() {
    let now = Instant::now();
    let mut steer = Steer::new(true, now);
    steer.connected(id(1), Route::Lan, true, now);
    steer.inbound(id(1));
    assert_eq!(steer.step(now + GRACE), Step::Rest);
    steer.allow(true);
    assert_eq!(steer.step(now), Step::Open(id(1)));
}
