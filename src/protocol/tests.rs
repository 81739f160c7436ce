//! What a node tells of itself: when, how often, and to whom.

mod handover;
mod messages;

use std::sync::Arc;

use super::{FEATURES, Receiver, ReceiverEffect, ReceiverInput, Sender, SenderEffect, SenderInput, VERSION};
use crate::{
    types::{Presence, Route},
    wire::{Back, FEATURE_PRESENCE, Forward, Hello, Refusal, Welcome},
};

fn presence(text: &str) -> Arc<Presence> {
    Arc::new(Presence { text: text.into(), ..Presence::default() })
}

fn welcome(features: u64) -> SenderInput {
    SenderInput::Frame(1, Back::Welcome(Welcome { version: VERSION, features, max_message_bytes: 1024 }))
}

/// Texts told since the last look.
fn told(sender: &mut Sender) -> Vec<String> {
    let effects = std::iter::from_fn(|| sender.poll());
    let texts = effects.filter_map(|effect| match effect {
        SenderEffect::Send(_, Forward::Presence(presence)) => Some(presence.text),
        _ => None,
    });
    texts.collect()
}

#[test]
fn presence_is_told_after_welcome_and_on_change_but_not_too_often() {
    let mut sender = Sender::new();
    sender.handle(0, SenderInput::Presence(presence("a")));
    sender.handle(0, SenderInput::LinkUp(1, Route::Direct));
    assert!(told(&mut sender).is_empty());
    sender.handle(10, welcome(FEATURES));
    assert_eq!(told(&mut sender), ["a"]);
    assert_eq!(sender.next_tick(), None);
    sender.handle(11, SenderInput::Presence(presence("a")));
    for n in 0..1000 {
        sender.handle(20 + n / 10, SenderInput::Presence(presence(&n.to_string())));
    }
    assert!(told(&mut sender).is_empty());
    assert_eq!(sender.next_tick(), Some(260));
    sender.handle(260, SenderInput::Tick);
    assert_eq!(told(&mut sender), ["999"]);
    assert_eq!(sender.next_tick(), None);
    sender.handle(1000, SenderInput::Presence(presence("b")));
    assert_eq!(told(&mut sender), ["b"]);
    // Each link begins from nothing, and links that come and go are no way
    // around the pace.
    sender.handle(1010, SenderInput::LinkDown(1));
    sender.handle(1020, SenderInput::LinkUp(2, Route::Direct));
    let again = Back::Welcome(Welcome { version: VERSION, features: FEATURES, max_message_bytes: 1024 });
    sender.handle(1030, SenderInput::Frame(2, again));
    assert!(told(&mut sender).is_empty());
    sender.handle(1250, SenderInput::Tick);
    assert_eq!(told(&mut sender), ["b"]);
}

#[test]
fn presence_is_told_only_to_those_who_take_it() {
    let mut sender = Sender::new();
    sender.handle(0, SenderInput::Presence(presence("a")));
    sender.handle(0, SenderInput::LinkUp(1, Route::Direct));
    sender.handle(0, welcome(!FEATURE_PRESENCE));
    sender.handle(1000, SenderInput::Presence(presence("b")));
    assert!(told(&mut sender).is_empty());
    assert_eq!(sender.next_tick(), None);

    let mut refused = Sender::new();
    refused.handle(0, SenderInput::Presence(presence("a")));
    refused.handle(0, SenderInput::LinkUp(1, Route::Direct));
    refused.handle(0, SenderInput::Frame(1, Back::Refused(Refusal::Untrusted)));
    refused.handle(1000, SenderInput::Presence(presence("b")));
    assert!(told(&mut refused).is_empty());
    refused.handle(2000, welcome(FEATURES));
    assert_eq!(told(&mut refused), ["b"]);
}

/// What was told since the last look.
fn heard(receiver: &mut Receiver) -> Vec<String> {
    receiver.handle(ReceiverInput::Flush);
    let effects = std::iter::from_fn(|| receiver.poll());
    let texts = effects.filter_map(|effect| match effect {
        ReceiverEffect::Presence { link: 1, presence } => Some(presence.text),
        _ => None,
    });
    texts.collect()
}

fn receiver(trusted: bool, features: u64) -> Receiver {
    let mut receiver = Receiver::new(1024, trusted);
    receiver.handle(ReceiverInput::LinkUp(1));
    receiver.handle(ReceiverInput::Frame(1, Forward::Hello(Hello { version: VERSION, features })));
    receiver
}

fn tell(receiver: &mut Receiver, text: &str) {
    receiver.handle(ReceiverInput::Frame(1, Forward::Presence(Presence::clone(&presence(text)))));
}

#[test]
fn of_many_presences_at_once_the_last_counts() {
    let mut receiver = receiver(true, FEATURES);
    assert!(heard(&mut receiver).is_empty());
    (0..100).for_each(|n| tell(&mut receiver, &n.to_string()));
    assert_eq!(heard(&mut receiver), ["99"]);
    assert!(heard(&mut receiver).is_empty());
}

#[test]
fn a_peer_that_cannot_tell_is_nothing() {
    assert_eq!(heard(&mut receiver(true, 0)), [""]);
}

#[test]
fn a_presence_of_an_untrusted_peer_does_not_count() {
    let mut receiver = receiver(false, FEATURES);
    tell(&mut receiver, "a");
    assert!(heard(&mut receiver).is_empty());
    receiver.handle(ReceiverInput::Trust(true));
    assert!(heard(&mut receiver).is_empty());
    tell(&mut receiver, "b");
    assert_eq!(heard(&mut receiver), ["b"]);
    tell(&mut receiver, "c");
    receiver.handle(ReceiverInput::Trust(false));
    assert!(heard(&mut receiver).is_empty());
}
