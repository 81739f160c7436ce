//! The store's operations on their own.

use bytes::Bytes;
use libp2p::PeerId;

use super::*;
use crate::{
    protocol::{Inbound, InboundKind, RowBody},
    types::{Content, Route},
    wire::Limit,
};

fn db(options: StoreOptions) -> Db {
    Db::in_memory(options, 1).unwrap()
}

fn content(id: &str, bytes: usize) -> Content {
    Content { id: id.to_owned(), payload: Bytes::from(vec![7; bytes]), ..Content::default() }
}

fn message(peer: PeerId, id: &str, bytes: usize, ttl_ms: u64) -> NewMessage {
    NewMessage { peer, channel: "c".into(), content: content(id, bytes), ttl_ms, digest: bytes.to_le_bytes().to_vec() }
}

fn new(enqueued: Enqueued) -> Queued {
    match enqueued {
        Enqueued::New(queued) => queued,
        other => panic!("{other:?}"),
    }
}

fn record(db: &Db, id: &str) -> SentRecord {
    db.find_sent(id, None, None).unwrap().pop().unwrap()
}

fn inbound(epoch: u64, seq: u64, id: &str) -> Inbound {
    let kind = InboundKind::Message { content: content(id, 100), ttl_left_ms: 1 };
    Inbound { channel: "c".into(), epoch, seq, tag: seq, kind }
}

fn arrival(peer: PeerId) -> Arrival {
    Arrival { peer, route: Route::Lan, now: 1, wall: 1 }
}

#[test]
fn the_same_id_is_a_duplicate_or_a_conflict() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    assert_eq!(new(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap()).row.seq, 1);
    assert!(matches!(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap(), Enqueued::Duplicate(_)));
    assert!(matches!(db.enqueue(message(peer, "a", 2, 10), 0, 0).unwrap(), Enqueued::Conflict));
    // Another recipient has ids of its own.
    new(db.enqueue(message(PeerId::random(), "a", 2, 10), 0, 0).unwrap());
    assert_eq!(db.find_sent("a", None, None).unwrap().len(), 2);
}

#[test]
fn a_refused_message_uses_no_position() {
    let (mut db, peer) = (db(StoreOptions { max_peer_bytes: 1000, ..StoreOptions::default() }), PeerId::random());
    new(db.enqueue(message(peer, "a", 500, 10), 0, 0).unwrap());
    let Enqueued::Full(limit) = db.enqueue(message(peer, "b", 500, 10), 0, 0).unwrap() else { panic!("taken") };
    assert_eq!((limit.limit, limit.max), ("max_peer_bytes", 1000));
    assert_eq!(new(db.enqueue(message(peer, "c", 1, 10), 0, 0).unwrap()).row.seq, 2);
}

#[test]
fn cancelling_is_final_only_before_the_peer_can_have_seen_it() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let epoch = new(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap()).epoch;
    db.prepare_lane(&peer, "c", epoch, 0, &[]).unwrap();
    db.hide_lanes(&peer).unwrap();
    new(db.enqueue(message(peer, "b", 1, 10), 0, 0).unwrap());
    for (id, progress) in [("a", Progress::Pending(Final::Cancelled)), ("b", Progress::Done(Final::Cancelled))] {
        let asked = record(&db, id);
        let (after, buried) = db.cancel(&asked).unwrap();
        assert_eq!(after.unwrap().progress, progress);
        assert!(buried.is_some());
    }
    db.resolved(&peer, "c", "a", true).unwrap();
    assert_eq!(record(&db, "a").progress, Progress::Done(Final::Stored));
    let rows = db.load_rows(&peer, "c", epoch, 1, u64::MAX, 10).unwrap();
    assert!(rows.iter().all(|row| matches!(row.body, RowBody::Tombstone { .. })) && rows.len() == 2);
}

#[test]
fn expiry_takes_what_is_due_and_frees_its_bytes() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    new(db.enqueue(message(peer, "soon", 10_000, 10), 0, 0).unwrap());
    new(db.enqueue(message(peer, "late", 10_000, 1000), 0, 0).unwrap());
    assert_eq!(db.next_expiry().unwrap(), Some(10));
    let before = db.outbox_fill().bytes;
    assert_eq!(db.expire(10).unwrap().len(), 1);
    assert!(db.outbox_fill().bytes < before - 9_000);
    assert_eq!(record(&db, "soon").progress, Progress::Done(Final::Expired));
    assert_eq!(db.next_expiry().unwrap(), Some(1000));
}

#[test]
fn finished_messages_are_forgotten_after_their_time() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let queued = new(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap());
    new(db.enqueue(message(peer, "b", 1, 10), 0, 0).unwrap());
    db.acked(&peer, "c", queued.epoch, 1, queued.row.tag).unwrap();
    let day = 24 * 60 * 60 * 1000;
    db.forget_sent("", 100, day).unwrap();
    assert_eq!(record(&db, "a").progress, Progress::Done(Final::Stored));
    db.forget_sent("", 100, day + 1).unwrap();
    assert_eq!(db.find_sent("a", None, None).unwrap(), []);
    // What waits is kept, however long.
    assert_eq!(record(&db, "b").progress, Progress::Queued);
}

#[test]
fn the_inbox_takes_positions_in_order_and_ids_once() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let done =
        db.commit_inbound(&arrival(peer), vec![inbound(1, 1, "a"), inbound(1, 3, "c"), inbound(1, 2, "b")]).unwrap();
    assert_eq!((done.stored, done.lanes[0].high), (2, 2));
    // Under a new numbering, what is known is passed over.
    let done = db.commit_inbound(&arrival(peer), vec![inbound(2, 1, "b"), inbound(2, 2, "c")]).unwrap();
    assert_eq!((done.stored, done.lanes[0].high), (1, 2));
    let ids: Vec<_> = db.read_inbox("c", 0, 10, u64::MAX).unwrap().rows.into_iter().map(|row| row.content.id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[test]
fn a_full_inbox_refuses_from_a_position_on_and_frees_up() {
    let options = StoreOptions { max_inbox_bytes: 600, ..StoreOptions::default() };
    let (mut db, peer) = (db(options), PeerId::random());
    let batch = (1..=4).map(|seq| inbound(1, seq, &seq.to_string())).collect();
    let done = db.commit_inbound(&arrival(peer), batch).unwrap();
    assert_eq!((done.lanes[0].high, done.lanes[0].refused), (2, Some(Limit::Inbox)));
    assert!(matches!(db.open_consumer("c", "app").unwrap(), Opened::Consumer(_)));
    assert_eq!(db.acknowledge("c", "app", 2).unwrap(), Acknowledged::At { cursor: 2, freed: true });
    assert_eq!(db.inbox_fill(), Fill::default());
    let done = db.commit_inbound(&arrival(peer), vec![inbound(1, 3, "3")]).unwrap();
    assert_eq!((done.stored, done.channels.values().next()), (1, Some(&3)));
}

#[test]
fn messages_wait_for_every_consumer() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    db.open_consumer("c", "one").unwrap();
    db.open_consumer("c", "two").unwrap();
    db.commit_inbound(&arrival(peer), vec![inbound(1, 1, "a")]).unwrap();
    assert_eq!(db.acknowledge("c", "one", 1).unwrap(), Acknowledged::At { cursor: 1, freed: false });
    assert_eq!(db.acknowledge("c", "two", 2).unwrap(), Acknowledged::Beyond { last: 1 });
    assert_eq!(db.acknowledge("c", "three", 1).unwrap(), Acknowledged::NoConsumer);
    assert_eq!(db.acknowledge("c", "two", 1).unwrap(), Acknowledged::At { cursor: 1, freed: true });
}

#[test]
fn an_operation_that_fails_leaves_nothing() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    db.begin().unwrap();
    let failed: Result<(), _> = db.isolated(|db| {
        db.enqueue(message(peer, "a", 1, 10), 0, 0)?;
        Err(StoreError::Closed)
    });
    assert!(failed.is_err());
    db.isolated(|db| db.enqueue(message(peer, "b", 1, 10), 0, 0)).unwrap();
    db.commit().unwrap();
    assert_eq!(db.find_sent("a", None, None).unwrap(), []);
    assert_eq!((record(&db, "b").seq, db.outbox_fill().messages), (1, 1));
}

#[test]
fn the_book_keeps_names_unique() {
    let mut db = db(StoreOptions::default());
    let (one, two) = (PeerId::random(), PeerId::random());
    let change = |peer, alias: &str| BookChange {
        peer,
        alias: Some(alias.to_owned()),
        trust: Trust::Trusted,
        pinned: None,
        addresses: Vec::new(),
    };
    assert_eq!(db.put_peer(&change(one, "pi")).unwrap(), Changed::Done { created: true });
    assert_eq!(db.put_peer(&change(two, "pi")).unwrap(), Changed::AliasTaken(one));
    assert_eq!(db.put_peer(&change(one, "home")).unwrap(), Changed::Done { created: false });
    assert_eq!(db.peer_by_alias("home").unwrap(), Some(one));
    assert!(db.remove_peer(&one).unwrap() && !db.remove_peer(&one).unwrap());
}

#[test]
fn a_foreign_or_newer_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    drop(Db::open(&path, StoreOptions::default()).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Db::open(&path, StoreOptions::default()), Err(StoreError::Newer { found: 99, .. })));
    connection.pragma_update(None, "application_id", 1).unwrap();
    assert!(matches!(Db::open(&path, StoreOptions::default()), Err(StoreError::Foreign)));
    drop(connection);
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let error = Db::open(&path, StoreOptions::default()).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("store.db"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![1; 8192]);
}

#[test]
fn a_hole_in_a_lane_becomes_tombstones() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let epoch = new(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap()).epoch;
    for id in ["b", "c", "d"] {
        new(db.enqueue(message(peer, id, 1, 10), 0, 0).unwrap());
    }
    db.connection.execute("DELETE FROM outbox WHERE id IN ('b', 'd')", []).unwrap();
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let from = kinds.len() as u64 + 1;
        for row in db.load_rows(&peer, "c", epoch, from, 1, 1).unwrap() {
            kinds.push((row.seq, matches!(row.body, RowBody::Message(_))));
        }
    }
    assert_eq!(kinds, [(1, true), (2, false), (3, true)]);
    assert_eq!(record(&db, "b").progress, Progress::Done(Final::Expired));
    assert_eq!(db.load_rows(&peer, "c", epoch, 4, 1, 1).unwrap().len(), 1);
}
