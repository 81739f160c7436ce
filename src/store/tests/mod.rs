//! The store's operations on their own.

mod ids;

use bytes::Bytes;
use libp2p::PeerId;

use super::*;
use crate::{
    protocol::{Inbound, InboundKind, OutRow, RowBody},
    types::{Content, PathPolicy, Route},
    wire::Limit,
};

fn db(options: StoreOptions) -> Db {
    Db::in_memory(options, 1).unwrap()
}

fn content(id: &str, bytes: usize) -> Content {
    Content { id: id.to_owned(), payload: Bytes::from(vec![7; bytes]), ..Content::default() }
}

fn message(peer: PeerId, id: &str, bytes: usize, ttl_ms: u64) -> NewMessage {
    let (path, digest) = (PathPolicy::Any, bytes.to_le_bytes().to_vec());
    NewMessage { peer, channel: "c".into(), content: content(id, bytes), ttl_ms, path, digest }
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
    let kind = InboundKind::Message { content: content(id, 100) };
    Inbound { channel: "c".into(), epoch, seq, tag: seq, kind }
}

fn arrival(peer: PeerId) -> Arrival {
    Arrival { peer, route: Route::Lan, now: 1, wall: 1 }
}

fn lines(db: &Db, table: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM {table}");
    db.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
}

/// Puts in so many messages of a time to live.
fn fill(db: &mut Db, peer: PeerId, count: usize, ttl_ms: u64) -> Queued {
    let mut last = None;
    for _ in 0..count {
        let id = db.random().to_string();
        last = Some(new(db.enqueue(message(peer, &id, 1, ttl_ms), 0, 0).unwrap()));
    }
    last.unwrap()
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
    assert!(
        matches!(
            &rows[..],
            [OutRow { body: RowBody::Tombstone { .. }, .. }, OutRow { body: RowBody::Hole { from: 2 }, .. }]
        ),
        "{rows:?}"
    );
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
    db.forget_sent(0, day).unwrap();
    assert_eq!(record(&db, "a").progress, Progress::Done(Final::Stored));
    db.forget_sent(0, day + 1).unwrap();
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
fn a_store_that_cannot_be_opened_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| Store::open(path, StoreOptions::default()).unwrap_err().to_string();
    for path in [dir.path().to_owned(), dir.path().join("none/store.db")] {
        assert!(open(&path).contains("this user may read and write"), "{}", open(&path));
    }
    let failed = |code| {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        StoreError::open(dir.path(), &error).to_string()
    };
    for (code, remedy) in [
        (rusqlite::ffi::SQLITE_FULL, "make room"),
        (rusqlite::ffi::SQLITE_BUSY, "another program has it open"),
        (rusqlite::ffi::SQLITE_IOERR, "the system's log"),
        (rusqlite::ffi::SQLITE_READONLY, "read and write"),
    ] {
        assert!(failed(code).contains(remedy), "{}", failed(code));
    }
}

#[test]
fn a_hole_in_a_lane_is_told_as_one() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let epoch = new(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap()).epoch;
    for id in ["b", "c", "d", "e", "f"] {
        new(db.enqueue(message(peer, id, 1, 10), 0, 0).unwrap());
    }
    db.connection.execute("DELETE FROM outbox WHERE id IN ('b', 'c', 'e', 'f')", []).unwrap();
    let kinds = |db: &mut Db, from, max_rows| -> Vec<_> {
        let rows = db.load_rows(&peer, "c", epoch, from, u64::MAX, max_rows).unwrap();
        rows.into_iter().map(|row| (row.first(), row.seq, row.tag, matches!(row.body, RowBody::Message(_)))).collect()
    };
    let one_by_one: Vec<_> = [1, 2, 4, 5].into_iter().flat_map(|from| kinds(&mut db, from, 1)).collect();
    let shape: Vec<_> = one_by_one.iter().map(|(first, last, _, message)| (*first, *last, *message)).collect();
    assert_eq!(shape, [(1, 1, true), (2, 3, false), (4, 4, true), (5, 6, false)]);
    assert_eq!(record(&db, "b").progress, Progress::Done(Final::Expired));
    // The peer knows a hole by its tag from now on.
    assert_eq!(kinds(&mut db, 1, 10), one_by_one);
}

#[test]
fn what_expires_while_the_peer_is_away_takes_no_room() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let queued = fill(&mut db, peer, 8_000, 1);
    while !db.expire(2).unwrap().is_empty() {}
    // The first position keeps its tombstone.
    assert!(db.outbox_fill().bytes <= 256 && db.outbox_fill().messages == 0, "{:?}", db.outbox_fill());
    assert_eq!(lines(&db, "outbox"), 1);
    let last = fill(&mut db, peer, 1, DAY);
    db.prepare_lane(&peer, "c", queued.epoch, 0, &[]).unwrap();
    let rows = db.load_rows(&peer, "c", queued.epoch, 1, u64::MAX, 100).unwrap();
    let shape: Vec<_> = rows.iter().map(|row| (row.first(), row.seq)).collect();
    assert_eq!(shape, [(1, 1), (2, 8_000), (8_001, 8_001)]);
    db.acked(&peer, "c", queued.epoch, 8_001, last.row.tag).unwrap();
    assert_eq!((db.outbox_fill(), lines(&db, "outbox")), (Fill::default(), 0));
}

#[test]
fn a_hole_of_a_million_positions_is_read_in_parts() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let epoch = fill(&mut db, peer, 1, DAY).epoch;
    db.connection.execute("UPDATE out_lane SET last = 1000000", []).unwrap();
    fill(&mut db, peer, 1, DAY);
    let (mut next, mut reads) = (1, 0);
    while next <= 1_000_001 {
        let rows = db.load_rows(&peer, "c", epoch, next, u64::MAX, 8192).unwrap();
        assert!(!rows.is_empty() && rows.len() <= 2, "{rows:?}");
        for row in rows {
            assert!(row.first() == next && row.seq - row.first() < 20_000);
            next = row.seq + 1;
        }
        reads += 1;
    }
    assert!((50..60).contains(&reads), "{reads}");
}

const DAY: u64 = 24 * 60 * 60 * 1000;

#[test]
fn a_channel_too_many_is_refused_and_looking_makes_none() {
    let (mut db, peer) = (db(StoreOptions { max_channels: 2, ..StoreOptions::default() }), PeerId::random());
    assert_eq!(db.read_inbox("looked at", 0, 1, 1).unwrap(), InboxPage::default());
    assert_eq!(db.channels().unwrap(), 0);
    for name in ["one", "two", "one"] {
        assert!(matches!(db.open_consumer(name, "app").unwrap(), Opened::Consumer(_)));
    }
    assert_eq!(db.open_consumer("three", "app").unwrap(), Opened::TooManyChannels { used: 2, max: 2 });
    let to = |name: &str| vec![Inbound { channel: name.into(), ..inbound(1, 1, "a") }];
    let done = db.commit_inbound(&arrival(peer), to("three")).unwrap();
    assert_eq!((done.stored, done.lanes[0].refused), (0, Some(Limit::Lanes)));
    assert_eq!(db.open_lane(&peer, "three", 1, &[]).unwrap(), Err(Limit::Lanes));
    // One that an app has made is open to peers.
    assert_eq!(db.commit_inbound(&arrival(peer), to("two")).unwrap().stored, 1);
}

#[test]
fn peers_leave_half_of_the_channels_to_apps() {
    let (mut db, peer) = (db(StoreOptions { max_channels: 4, ..StoreOptions::default() }), PeerId::random());
    let come = |db: &mut Db, name: &str| {
        let batch = vec![Inbound { channel: name.into(), ..inbound(1, 1, name) }];
        db.commit_inbound(&arrival(peer), batch).unwrap().lanes[0].refused
    };
    let came = ["one", "two", "three", "one"].map(|name| come(&mut db, name));
    assert_eq!(came, [None, None, Some(Limit::Lanes), None]);
    assert_eq!(db.open_lane(&peer, "three", 1, &[]).unwrap(), Err(Limit::Lanes));
    for name in ["three", "four"] {
        assert!(matches!(db.open_consumer(name, "app").unwrap(), Opened::Consumer(_)));
    }
    assert!(!db.make_channel("five").unwrap());
    assert_eq!(come(&mut db, "three"), None);
}

#[test]
fn nothing_runs_outside_of_a_transaction() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let mut ran = false;
    let refused = db.isolated(|_| {
        ran = true;
        Ok(())
    });
    assert!(matches!(refused, Err(StoreError::Commit(_))) && !ran);
    db.begin().unwrap();
    db.isolated(|db| db.enqueue(message(peer, "a", 1, 10), 0, 0)).unwrap();
    // As SQLite does when the disk is full.
    db.connection.execute_batch("ROLLBACK").unwrap();
    assert!(db.isolated(|db| db.enqueue(message(peer, "b", 1, 10), 0, 0)).is_err());
    assert!(db.commit().is_err());
    assert_eq!((db.find_sent("a", None, None).unwrap().len(), db.find_sent("b", None, None).unwrap().len()), (0, 0));
    assert_eq!(db.outbox_fill(), Fill::default());
}

#[test]
fn many_starts_while_the_peer_is_away_lose_nothing() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let first = new(db.enqueue(message(peer, "a", 1, 10), 0, 0).unwrap());
    db.prepare_lane(&peer, "c", first.epoch, 0, &[]).unwrap();
    db.acked(&peer, "c", first.epoch, 1, first.row.tag).unwrap();
    for _ in 0..20 {
        db.begin_session().unwrap();
    }
    let lane = db.lanes_to(&peer).unwrap().remove(0);
    assert_eq!((lane.previous, lane.acked), (vec![(first.epoch, 1)], 1));
}
