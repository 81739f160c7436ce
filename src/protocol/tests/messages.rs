//! What becomes of messages at the edges of a link.

use super::super::{OutRow, Prepared, RowBody};
use super::*;
use crate::{
    types::{Channel, Content, Epoch, Seq},
    wire::{LaneState, Outcome, Query, Skip},
};

const EPOCH: Epoch = 7;

fn channel() -> Channel {
    "".into()
}

/// Its tag is 100 more than its position.
fn row(seq: Seq, body: RowBody) -> OutRow {
    OutRow { seq, tag: 100 + seq, expires_at: 1000, body }
}

fn message(id: &str) -> RowBody {
    RowBody::Message(Content { id: id.to_owned(), ..Content::default() })
}

fn tombstone(id: &str) -> RowBody {
    RowBody::Tombstone { id: id.to_owned() }
}

fn prepared(request: u64, last: Seq, unresolved: Vec<(Seq, String)>) -> SenderInput {
    let info = Prepared {
        acked: 0,
        acked_tag: 0,
        last,
        tag_at: None,
        gap_is_message: false,
        unresolved,
        more_unresolved: false,
    };
    SenderInput::Prepared { channel: channel(), request, info: Some(info) }
}

fn loaded(rows: Vec<OutRow>) -> SenderInput {
    SenderInput::Loaded { channel: channel(), epoch: EPOCH, rows }
}

fn back(frame: Back) -> SenderInput {
    SenderInput::Frame(1, frame)
}

/// Gives inputs to a sender; what it does about them.
fn give(sender: &mut Sender, inputs: impl IntoIterator<Item = SenderInput>) -> Vec<SenderEffect> {
    inputs.into_iter().for_each(|input| sender.handle(0, input));
    std::iter::from_fn(|| sender.poll()).collect()
}

/// The frames among what a sender does.
fn frames(effects: Vec<SenderEffect>) -> Vec<Forward> {
    let frame = |effect| match effect {
        SenderEffect::Send(1, frame) => Some(frame),
        _ => None,
    };
    effects.into_iter().filter_map(frame).collect()
}

/// A sender whose store is an older copy, with a message and a tombstone that
/// are not acknowledged; the peer's position is of another history.
fn sender_of_older_store() -> (Sender, Vec<SenderEffect>) {
    let mut sender = Sender::new();
    let lane = super::super::LaneInfo {
        channel: channel(),
        epoch: EPOCH,
        previous: vec![(EPOCH - 1, 0)],
        acked: 0,
        last: 2,
        unresolved: true,
    };
    let state = LaneState { lane: 1, high: 0, inherited: 2, floor: 0, tag: 9, gaps: Vec::new() };
    let inputs = [
        SenderInput::Lanes(vec![lane]),
        SenderInput::LinkUp(1),
        welcome(FEATURES),
        back(Back::LaneState(state)),
        prepared(1, 2, vec![(2, "taken back".to_owned())]),
        loaded(vec![row(1, message("m")), row(2, tombstone("taken back"))]),
    ];
    let effects = give(&mut sender, inputs);
    (sender, effects)
}

/// The peer has a message that was taken back, says so, and its store is then
/// replaced by an older copy: only what is acknowledged counts as lost.
#[test]
fn an_outcome_does_not_count_before_its_position_is_acknowledged() {
    let outcome = || back(Back::Outcome(Outcome { lane: 1, id: "taken back".to_owned(), stored: true }));
    let (mut sender, effects) = sender_of_older_store();
    let sent = frames(effects);
    assert!(!sent.iter().any(|frame| matches!(frame, Forward::Query(Query { .. }))), "{sent:?}");
    assert!(matches!(sent.last(), Some(Forward::Skip(Skip { from: 2, to: 2, lost: false, id: Some(_), .. }))));
    assert!(give(&mut sender, [outcome()]).is_empty());
    let done = give(&mut sender, [back(Back::Ack { lane: 1, high: 2 })]);
    let resolved = matches!(
        &done[..],
        [SenderEffect::Acked { seq: 2, .. }, SenderEffect::Resolved { stored: true, id, .. }] if id == "taken back"
    );
    assert!(resolved, "{done:?}");

    let (mut sender, _) = sender_of_older_store();
    let done = give(&mut sender, [outcome(), SenderInput::LinkDown(1)]);
    assert_eq!(done, [SenderEffect::Hide]);
    assert!(!sender.is_idle());
}
