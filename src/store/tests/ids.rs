//! Ids that are remembered: for how long, how many, and at what cost.

use super::*;

/// An arrival at a time.
fn at(peer: PeerId, now: u64) -> Arrival {
    Arrival { now, ..arrival(peer) }
}

/// A message whose content is its name and a byte.
fn inbound_of(epoch: u64, seq: u64, id: &str, byte: u8) -> Inbound {
    let content = Content { payload: Bytes::from(vec![byte]), ..content(id, 0) };
    Inbound { channel: "c".into(), epoch, seq, tag: seq, kind: InboundKind::Message { content } }
}

/// What a sender says of positions that it knows to be here.
fn known_upto(epoch: u64, to: u64) -> Inbound {
    let kind = InboundKind::Gap { to, lost: false, id: None };
    Inbound { channel: "c".into(), epoch, seq: 1, tag: to, kind }
}

fn tombstone(epoch: u64, seq: u64, id: &str) -> Inbound {
    let kind = InboundKind::Gap { to: seq, lost: false, id: Some(id.to_owned()) };
    Inbound { channel: "c".into(), epoch, seq, tag: seq, kind }
}

#[test]
fn an_id_reused_after_its_window_is_delivered() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let stored = |db: &mut Db, batch| db.commit_inbound(&at(peer, 5), batch).unwrap().stored;
    // In one numbering each position is a message of its own, whatever its id.
    assert_eq!(stored(&mut db, vec![inbound_of(1, 1, "a", 1), inbound_of(1, 2, "a", 1)]), 2);
    assert_eq!(stored(&mut db, vec![inbound_of(1, 3, "a", 2)]), 1);
    // After a start of the sender, which knows what is here.
    assert_eq!(stored(&mut db, vec![known_upto(2, 3), inbound_of(2, 4, "a", 2)]), 1);
    // From an older copy of the sender's store: this one is here already,
    assert_eq!(stored(&mut db, vec![known_upto(3, 3), inbound_of(3, 4, "a", 2)]), 0);
    // and once its sender knows that, the id can be used again;
    assert_eq!(stored(&mut db, vec![inbound_of(3, 5, "a", 2)]), 1);
    // but this one only has the name of what is here.
    assert_eq!(stored(&mut db, vec![known_upto(4, 3), inbound_of(4, 4, "a", 3)]), 1);
    assert_eq!(lines(&db, "seen"), 1);
}

#[test]
fn an_app_that_repeats_a_message_to_a_sender_set_back_doubles_nothing() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let first = Content { timestamp: 1, ..content("a", 10) };
    let again = Content { timestamp: 2, ..first.clone() };
    let message = |epoch, seq, content| Inbound { kind: InboundKind::Message { content }, ..inbound(epoch, seq, "") };
    assert_eq!(db.commit_inbound(&arrival(peer), vec![message(1, 1, first)]).unwrap().stored, 1);
    let batch = vec![inbound(2, 1, "other"), message(2, 2, again)];
    assert_eq!(db.commit_inbound(&arrival(peer), batch).unwrap().stored, 1);
}

#[test]
fn a_tombstone_of_a_reused_id_is_not_taken_for_the_first_message() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    db.commit_inbound(&arrival(peer), vec![inbound(1, 1, "a"), inbound(1, 2, "b")]).unwrap();
    let done = db.commit_inbound(&arrival(peer), vec![tombstone(1, 3, "a")]).unwrap();
    assert_eq!(done.lanes[0].outcomes, [("a".to_owned(), false)]);
    assert!(!db.was_stored(&peer, "c", "a").unwrap());
    // A sender set back does not know of "b".
    let done = db.commit_inbound(&arrival(peer), vec![known_upto(2, 1), tombstone(2, 2, "b")]).unwrap();
    assert_eq!(done.lanes[0].outcomes, [("b".to_owned(), true)]);
}

#[test]
fn ids_that_came_in_are_kept_for_a_month_and_in_bounds() {
    let options = StoreOptions { max_lines: 1000, max_all_lines: 1500, ..StoreOptions::default() };
    let (mut db, peers) = (db(options), [PeerId::random(), PeerId::random()]);
    for peer in peers {
        for seq in (1..=5000).step_by(100) {
            let batch = (seq..seq + 100).map(|seq| inbound(1, seq, &seq.to_string())).collect();
            db.commit_inbound(&at(peer, seq), batch).unwrap();
            assert!(lines(&db, "seen") < 3000);
        }
    }
    let pass = |db: &mut Db, now| {
        let mut next = Some(0);
        while let Some(after) = next {
            next = db.forget_seen(after, now).unwrap();
        }
    };
    pass(&mut db, 5000);
    assert_eq!(lines(&db, "seen"), 1500);
    assert!(db.was_stored(&peers[0], "c", "5000").unwrap() && !db.was_stored(&peers[0], "c", "4000").unwrap());
    pass(&mut db, 4801 + 30 * DAY);
    assert_eq!(lines(&db, "seen"), 200);
    pass(&mut db, 4901 + 30 * DAY);
    assert_eq!((lines(&db, "seen"), db.lines.seen), (0, 0));
}

#[test]
fn peers_without_lines_take_no_share_of_them() {
    let options = StoreOptions { max_lines: 1000, max_all_lines: 1000, ..StoreOptions::default() };
    let mut db = db(options);
    for _ in 0..100 {
        let gone = PeerId::random();
        let queued = fill(&mut db, gone, 1, 1);
        db.acked(&gone, "c", queued.epoch, 1, queued.row.tag).unwrap();
        db.commit_inbound(&arrival(gone), vec![inbound(1, 1, "a")]).unwrap();
    }
    assert_eq!((db.lines.lanes, db.lines.origins), (100, 100));
    db.forget_sent(0, DAY + 1).unwrap();
    db.forget_sent(64, DAY + 1).unwrap();
    let peer = PeerId::random();
    let queued = fill(&mut db, peer, 3000, 10 * DAY);
    db.acked(&peer, "c", queued.epoch, 3000, queued.row.tag).unwrap();
    while db.forget_sent(0, 0).unwrap() == Some(100) {}
    assert_eq!((lines(&db, "sent"), db.lines.lanes), (1000, 1));
}

#[test]
fn what_was_sent_is_kept_in_bounds_unless_it_is_not_finished() {
    let options = StoreOptions { max_lines: 1000, max_all_lines: 5000, ..StoreOptions::default() };
    let (mut db, peer) = (db(options), PeerId::random());
    let mut last = None;
    for number in 1..=5000 {
        let queued = new(db.enqueue(message(peer, &number.to_string(), 1, DAY), 0, 0).unwrap());
        if number == 10 {
            // One whose outcome only the peer knows.
            db.prepare_lane(&peer, "c", queued.epoch, 0, &[]).unwrap();
            assert!(db.cancel(&record(&db, "10")).unwrap().1.is_some());
        }
        if number == 4000 {
            assert_eq!(lines(&db, "sent"), 4000);
            db.acked(&peer, "c", queued.epoch, 4000, queued.row.tag).unwrap();
        }
        last = Some(queued);
    }
    // The trimming has caught up, but for one step.
    assert!(lines(&db, "sent") < 4000);
    let pass = |db: &mut Db, now| {
        let mut next = Some(0);
        while let Some(after) = next {
            next = db.forget_sent(after, now).unwrap();
        }
    };
    pass(&mut db, 0);
    // The youngest, which all wait, and the one.
    assert_eq!((lines(&db, "sent"), db.lines.sent), (1001, 1001));
    assert_eq!(record(&db, "10").progress, Progress::Pending(Final::Cancelled));
    let last = last.unwrap();
    db.acked(&peer, "c", last.epoch, 5000, last.row.tag).unwrap();
    db.resolved(&peer, "c", "10", false).unwrap();
    pass(&mut db, DAY);
    assert_eq!(lines(&db, "sent"), 1000);
    pass(&mut db, DAY + 1);
    assert_eq!((lines(&db, "sent"), db.lines.sent), (0, 0));
    // An id that is forgotten can be used for something else.
    assert_eq!(new(db.enqueue(message(peer, "10", 2, DAY), 0, 0).unwrap()).row.seq, 5001);
}

/// Steps of SQLite's machine that one statement took since it was asked last.
fn steps(db: &Db, sql: &str) -> i32 {
    db.connection.prepare_cached(sql).unwrap().reset_status(rusqlite::StatementStatus::VmStep)
}

#[test]
fn a_backlog_does_not_make_each_message_dearer() {
    let options = StoreOptions { max_lines: 1000, ..StoreOptions::default() };
    let (mut db, peer) = (db(options), PeerId::random());
    let all = |db: &Db| {
        let (acked, last) = (outbox::FORGET_ACKED, outbox::FORGET_FINAL);
        steps(db, acked) + steps(db, last)
    };
    fill(&mut db, peer, 2048, DAY);
    all(&db);
    fill(&mut db, peer, 1024, DAY);
    let few = all(&db);
    fill(&mut db, peer, 8192, DAY);
    all(&db);
    fill(&mut db, peer, 1024, DAY);
    assert!(all(&db) <= few, "{few}");
    // What waits is kept; what has ended is not, wherever it stands.
    assert_eq!(lines(&db, "sent"), 12_288);
    fill(&mut db, peer, 5000, 1);
    while !db.expire(2).unwrap().is_empty() {}
    db.forget_sent(0, 0).unwrap();
    let before = lines(&db, "sent");
    while db.forget_sent(0, 0).unwrap() == Some(0) {}
    assert!(before < 17_288 && lines(&db, "sent") == 12_288 + 1000, "{}", lines(&db, "sent"));
}

#[test]
fn lines_that_must_stay_are_not_looked_at_again_and_again() {
    let options = StoreOptions { max_lines: 100, ..StoreOptions::default() };
    let (mut db, peer) = (db(options), PeerId::random());
    let epoch = fill(&mut db, peer, 1, 1).epoch;
    db.prepare_lane(&peer, "c", epoch, 0, &[]).unwrap();
    fill(&mut db, peer, 3999, 1);
    // All may be with the peer.
    while !db.expire(2).unwrap().is_empty() {}
    let last = fill(&mut db, peer, 6000, DAY);
    db.acked(&peer, "c", epoch, last.row.seq, last.row.tag).unwrap();
    while db.forget_sent(0, 0).unwrap() == Some(0) {}
    fill(&mut db, peer, 1024, DAY);
    let line = db
        .connection
        .query_row("SELECT min(seq) FROM (SELECT row & 0xffffffff AS seq FROM sent)", [], |row| row.get::<_, i64>(0))
        .unwrap();
    // They stay, nothing behind them does, and nobody reads them.
    assert_eq!((line, lines(&db, "sent")), (1, 4000 + 1024));
    steps(&db, outbox::FORGET_ACKED);
    fill(&mut db, peer, 1024, DAY);
    assert!(steps(&db, outbox::FORGET_ACKED) < 100);
    // One that is known is forgotten.
    let id: String = db.connection.query_row("SELECT id FROM sent ORDER BY row LIMIT 1", [], |row| row.get(0)).unwrap();
    db.resolved(&peer, "c", &id, false).unwrap();
    db.forget_sent(0, 0).unwrap();
    assert_eq!(lines(&db, "sent"), 3999 + 2048);
}

#[test]
fn messages_of_a_lane_are_looked_up_together() {
    let (mut db, peer) = (db(StoreOptions::default()), PeerId::random());
    let ids = ["a", "b", "c", "d"];
    let queued = ids.map(|id| new(db.enqueue(message(peer, id, 1, DAY), 0, 0).unwrap()));
    db.cancel(&record(&db, "c")).unwrap();
    db.prepare_lane(&peer, "c", queued[0].epoch, 0, &[]).unwrap();
    db.cancel(&record(&db, "b")).unwrap();
    db.acked(&peer, "c", queued[0].epoch, 1, queued[0].row.tag).unwrap();
    let mut named: Vec<_> = ids.iter().zip(1..).map(|(id, seq)| (seq, (*id).to_owned())).collect();
    named.extend([(4, "other".to_owned()), (9, "none".to_owned())]);
    let (epoch, found) = db.progress_of(&peer, "c", &named).unwrap();
    assert_eq!(epoch, queued[0].epoch);
    let known = ids.map(|id| Some(record(&db, id).progress));
    assert_eq!((&found[..4], &found[4..]), (&known[..], &[None, None][..]));
    assert_eq!(known[3], Some(Progress::Sent));
}
