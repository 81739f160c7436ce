//! What becomes of messages at the edges of a link.

use super::super::{Accepted, Inbound, InboundKind, OutRow, Prepared, RowBody};
use super::*;
use crate::{
    types::{Channel, Content, Epoch, Route, Seq, Tag},
    wire::{Data, LaneState, Open, Outcome, Query, Skip},
};

const EPOCH: Epoch = 7;

fn channel() -> Channel {
    "".into()
}

/// Its tag is 100 more than its position.
fn row(seq: Seq, body: RowBody) -> OutRow {
    OutRow { seq, tag: 100 + seq, expires_at: 1000, direct_until: 0, body }
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

/// Gives frames that came together to a receiver; what it does about them.
fn take(receiver: &mut Receiver, frames: Vec<Forward>) -> Vec<ReceiverEffect> {
    frames.into_iter().for_each(|frame| receiver.handle(ReceiverInput::Frame(1, frame)));
    receiver.handle(ReceiverInput::Flush);
    std::iter::from_fn(|| receiver.poll()).collect()
}

/// The store of a receiver says where the first lane stands; what it does.
fn accept(receiver: &mut Receiver, high: Seq, tag: Tag, inherited: Seq, floor: Seq) -> Vec<ReceiverEffect> {
    let state = Ok(Accepted { high, tag, gaps: Vec::new(), inherited, floor });
    receiver.handle(ReceiverInput::LaneOpened { link: 1, lane: 1, state });
    std::iter::from_fn(|| receiver.poll()).collect()
}

/// Positions of the messages among what a receiver commits.
fn committed(effects: &[ReceiverEffect]) -> Vec<Seq> {
    let batches = effects.iter().filter_map(|effect| match effect {
        ReceiverEffect::Commit(batch) => Some(batch),
        _ => None,
    });
    let is_message = |item: &&Inbound| matches!(item.kind, InboundKind::Message { .. });
    batches.flatten().filter(is_message).map(|item| item.seq).collect()
}

fn data(seq: Seq, after: Option<Tag>) -> Forward {
    let content = Content { id: seq.to_string(), ..Content::default() };
    Forward::Data(Data { lane: 1, seq, tag: 100 + seq, ttl_left_ms: 1000, after, content })
}

fn open() -> Forward {
    Forward::Open(Open { lane: 1, channel: channel(), epoch: EPOCH, previous: Vec::new() })
}

/// A sender with a new link and the first message of a new lane, and the
/// frames that it sends before it hears of the peer.
fn sender_with_first() -> (Sender, Vec<Forward>) {
    let mut sender = Sender::new();
    let first = row(1, message("m"));
    let appended = SenderInput::Appended { channel: channel(), epoch: EPOCH, row: first.clone() };
    let sent = give(
        &mut sender,
        [SenderInput::LinkUp(1, Route::Direct), appended, prepared(1, 1, Vec::new()), loaded(vec![first])],
    );
    (sender, frames(sent))
}

#[test]
fn the_first_message_of_a_new_lane_is_stored_after_one_way() {
    let (_, sent) = sender_with_first();
    assert!(matches!(&sent[..], [Forward::Hello(_), Forward::Open(_), Forward::Data(_)]), "{sent:?}");
    // All of that comes at once; nothing goes back before it is stored.
    let mut receiver = Receiver::new(1024, true);
    receiver.handle(ReceiverInput::LinkUp(1));
    let asked = take(&mut receiver, sent);
    assert!(matches!(asked.last(), Some(ReceiverEffect::OpenLane { lane: 1, .. })), "{asked:?}");
    assert_eq!(committed(&accept(&mut receiver, 0, 0, 0, 0)), [1]);
}

#[test]
fn a_message_sent_early_is_sent_again_and_counts_once() {
    let (mut sender, sent) = sender_with_first();
    let mut receiver = receiver(true, FEATURES);
    take(&mut receiver, sent.into_iter().skip(1).collect());
    accept(&mut receiver, 0, 0, 0, 0);
    let state = LaneState { lane: 1, high: 0, inherited: 0, floor: 0, tag: 0, gaps: Vec::new() };
    let inputs = [
        welcome(FEATURES),
        back(Back::LaneState(state)),
        // Before the store has told.
        back(Back::Ack { lane: 1, high: 1 }),
        prepared(2, 1, Vec::new()),
    ];
    let done = give(&mut sender, inputs);
    let acked = |effect: &&SenderEffect| matches!(effect, SenderEffect::Acked { seq: 1, tag: 101, count: 1, .. });
    assert_eq!(done.iter().filter(acked).count(), 1, "{done:?}");
    assert!(sender.is_idle());
    // One that was sent again before the acknowledgement came.
    assert!(take(&mut receiver, vec![data(1, None)]).is_empty());
    assert_eq!(committed(&take(&mut receiver, vec![data(2, None)])), [2]);
}

#[test]
fn a_message_sent_early_is_taken_only_where_it_fits() {
    let after = |after| vec![open(), data(1, Some(0)), data(2, Some(after)), data(3, Some(102))];
    // Where the store stands: high, its tag, inherited and floor.
    for (stands, sent, taken) in [
        ((0, 0, 0, 0), after(101), vec![1, 2, 3]),
        ((0, 0, 0, 0), after(9), vec![1]),
        ((1, 101, 0, 0), after(101), vec![2, 3]),
        ((1, 9, 0, 0), after(101), vec![]),
        ((3, 103, 0, 0), after(101), vec![]),
        // It goes on from an earlier numbering: the first is not the first.
        ((0, 9, 4, 0), after(101), vec![]),
        ((0, 0, 0, 4), after(101), vec![]),
    ] {
        let (high, tag, inherited, floor) = stands;
        let mut held = receiver(true, FEATURES);
        take(&mut held, sent.clone());
        assert_eq!(committed(&accept(&mut held, high, tag, inherited, floor)), taken, "{stands:?}");
        let mut late = receiver(true, FEATURES);
        take(&mut late, sent[..1].to_vec());
        accept(&mut late, high, tag, inherited, floor);
        let effects = take(&mut late, sent[1..].to_vec());
        assert_eq!(committed(&effects), taken, "{stands:?}");
        let closed = effects.iter().any(|effect| matches!(effect, ReceiverEffect::Close(..)));
        assert!(!closed, "{effects:?}");
    }
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
        SenderInput::LinkUp(1, Route::Direct),
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
