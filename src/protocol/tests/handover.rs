//! Ephemeral messages while the link moves.

use super::super::{EphemeralEnd, LinkNumber, Millis};
use super::*;
use crate::{
    types::Content,
    wire::{Ephemeral, EphemeralOutcome},
};

fn ephemeral(key: u64) -> SenderInput {
    SenderInput::Ephemeral { key, channel: "".into(), content: Content::default(), direct_until: 0, deadline: 5000 }
}

fn welcomed(link: LinkNumber) -> SenderInput {
    let welcome = Welcome { version: VERSION, features: 0, max_message_bytes: 1024 };
    SenderInput::Frame(link, Back::Welcome(welcome))
}

fn up(link: LinkNumber) -> SenderInput {
    SenderInput::LinkUp(link, Route::Direct)
}

fn result(link: LinkNumber, number: u64) -> SenderInput {
    SenderInput::Frame(link, Back::EphemeralResult { number, outcome: EphemeralOutcome::Handed })
}

/// What a sender did: messages as (link, number), links closed, ends as told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Did {
    sent: Vec<(LinkNumber, u64)>,
    closed: Vec<LinkNumber>,
    ended: Vec<(u64, EphemeralEnd)>,
}

const HANDED: EphemeralEnd = EphemeralEnd::Answered(EphemeralOutcome::Handed);

fn give(sender: &mut Sender, now: Millis, inputs: impl IntoIterator<Item = SenderInput>) -> Did {
    inputs.into_iter().for_each(|input| sender.handle(now, input));
    let mut did = Did::default();
    for effect in std::iter::from_fn(|| sender.poll()) {
        match effect {
            SenderEffect::Send(link, Forward::Ephemeral(message)) => did.sent.push((link, message.number)),
            SenderEffect::Close(link, _) => did.closed.push(link),
            SenderEffect::EphemeralDone(key, end) => did.ended.push((key, end)),
            _ => {}
        }
    }
    did
}

#[test]
fn a_message_on_its_way_ends_on_the_link_that_it_was_sent_on() {
    let mut sender = Sender::new();
    let did = give(&mut sender, 0, [up(1), welcomed(1), ephemeral(10), ephemeral(11)]);
    assert_eq!(did, Did { sent: vec![(1, 1), (1, 2)], ..Did::default() });
    // Those that follow wait for these, whichever link is next.
    assert_eq!(give(&mut sender, 10, [up(2), welcomed(2), ephemeral(12), result(1, 1)]).ended, [(10, HANDED)]);
    assert_eq!(give(&mut sender, 20, [up(3), welcomed(3)]).closed, [2]);
    assert!(!sender.awaits_answer(), "of the link in use");
    let did = give(&mut sender, 30, [result(1, 2)]);
    assert_eq!(did, Did { sent: vec![(3, 3)], closed: vec![1], ended: vec![(11, HANDED)] });
    assert_eq!(give(&mut sender, 40, [result(3, 3)]).ended, [(12, HANDED)]);
    assert_eq!(give(&mut sender, 50, [up(4)]).closed, [3], "nothing to wait for");
}

#[test]
fn a_link_that_was_replaced_and_says_nothing_is_given_up() {
    let mut sender = Sender::new();
    give(&mut sender, 0, [up(1), welcomed(1), ephemeral(10)]);
    give(&mut sender, 100, [up(2), welcomed(2), ephemeral(11)]);
    assert_eq!(sender.next_tick(), Some(1100));
    let did = give(&mut sender, 1100, [SenderInput::Tick]);
    assert_eq!(did, Did { sent: vec![(2, 2)], closed: vec![1], ended: vec![(10, EphemeralEnd::LinkLost)] });
    // Or is gone; the one in use may go meanwhile.
    give(&mut sender, 1200, [up(3), welcomed(3)]);
    assert!(give(&mut sender, 1300, [SenderInput::LinkDown(3)]).ended.is_empty());
    assert_eq!(give(&mut sender, 1400, [SenderInput::LinkDown(2)]).ended, [(11, EphemeralEnd::LinkLost)]);
}

fn message(link: LinkNumber, number: u64) -> ReceiverInput {
    let message = Ephemeral { number, channel: "".into(), content: Content::default() };
    ReceiverInput::Frame(link, Forward::Ephemeral(message))
}

fn hello(link: LinkNumber) -> ReceiverInput {
    ReceiverInput::Frame(link, Forward::Hello(Hello { version: VERSION, features: FEATURES }))
}

fn take(receiver: &mut Receiver, inputs: impl IntoIterator<Item = ReceiverInput>) -> Vec<ReceiverEffect> {
    inputs.into_iter().for_each(|input| receiver.handle(input));
    std::iter::from_fn(|| receiver.poll()).collect()
}

fn closed(effects: &[ReceiverEffect]) -> Vec<LinkNumber> {
    let closed = effects.iter().filter_map(|effect| match effect {
        ReceiverEffect::Close(link, _) => Some(*link),
        _ => None,
    });
    closed.collect()
}

#[test]
fn the_rest_of_a_replaced_link_is_heard_and_answered() {
    let mut receiver = Receiver::new(1024, true);
    let up = ReceiverInput::LinkUp;
    assert!(closed(&take(&mut receiver, [up(1), hello(1), up(2)])).is_empty());
    let late = take(&mut receiver, [message(1, 7)]);
    assert!(matches!(late[..], [ReceiverEffect::Ephemeral { link: 1, number: 7, .. }]), "{late:?}");
    let done = ReceiverInput::EphemeralDone { link: 1, number: 7, outcome: EphemeralOutcome::Handed };
    let answer = take(&mut receiver, [done]);
    assert!(matches!(answer[..], [ReceiverEffect::Send(1, Back::EphemeralResult { number: 7, .. })]), "{answer:?}");
    // One at a time, and none that has said nothing yet.
    assert_eq!(closed(&take(&mut receiver, [hello(2), up(3)])), [1]);
    assert_eq!(closed(&take(&mut receiver, [up(4)])), [3]);
    assert!(take(&mut receiver, [message(1, 8), message(3, 8), ReceiverInput::LinkDown(2), message(2, 8)]).is_empty());
}

#[test]
fn whoever_lost_trust_is_not_heard_on_an_old_link() {
    let mut receiver = Receiver::new(1024, true);
    let up = ReceiverInput::LinkUp;
    let effects = take(&mut receiver, [up(1), hello(1), up(2), ReceiverInput::Trust(false), message(1, 7)]);
    assert_eq!(closed(&effects), [1]);
    assert!(!effects.iter().any(|effect| matches!(effect, ReceiverEffect::Ephemeral { .. })));
}

#[test]
fn a_link_kept_for_a_while_ends_with_the_younger_one() {
    // Over two connections they may come in another order than they were opened
    // in, and then the sender goes on with the one that is kept.
    for ending in [ReceiverInput::LinkDown(2), ReceiverInput::Frame(2, Forward::Bye)] {
        let mut receiver = Receiver::new(1024, true);
        let up = ReceiverInput::LinkUp;
        let effects = take(&mut receiver, [up(1), hello(1), up(2), hello(2), ending]);
        assert!(closed(&effects).contains(&1));
        take(&mut receiver, [up(3), hello(3)]);
        assert!(receiver.is_up());
    }
}
