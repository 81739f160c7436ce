//! The power-cut shim itself: what was synced stays, what was not is gone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod powercut;
mod skip;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
};

use powercut::PowerCut;
use rusqlite::Connection;

const ROLE: &str = "TEST_POWERCUT_ROLE";
const STATE: &str = "TEST_POWERCUT_STATE";

/// Not a test by itself: the process whose power is cut.
#[test]
fn victim() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let state = std::env::var_os(STATE).unwrap();
    match role.as_str() {
        "files" => change_files(Path::new(&state)),
        synchronous => insert_rows(&Path::new(&state).join("store.db"), synchronous),
    }
}

fn change_files(state: &Path) {
    let file = |name: &str| {
        let path = state.join(name);
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    };
    let mut synced = file("synced");
    synced.write_all(b"all of it").unwrap();
    synced.sync_data().unwrap();
    synced.write_all(b", and more").unwrap();
    synced.write_at(b"ALL", 0).unwrap();
    synced.set_len(2).unwrap();
    synced.write_at(b"ABC", 100).unwrap();
    file("unsynced").write_all(b"nothing").unwrap();
    fs::write(state.join("kept"), "overwritten").unwrap();
    OpenOptions::new().append(true).open(state.join("appended")).unwrap().write_all(b" two").unwrap();
    // Renamed before it is synced, the classic mistake; and as it should be.
    fs::write(state.join("new"), "careless").unwrap();
    fs::rename(state.join("new"), state.join("renamed")).unwrap();
    let mut careful = File::create(state.join("new")).unwrap();
    careful.write_all(b"careful").unwrap();
    careful.sync_all().unwrap();
    fs::rename(state.join("new"), state.join("replaced")).unwrap();
    fs::remove_file(state.join("removed")).unwrap();
    eprintln!("1");
    park();
}

fn insert_rows(path: &Path, synchronous: &str) {
    let mut db = Connection::open(path).unwrap();
    db.pragma_update(None, "synchronous", synchronous).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    // Checkpoints often, so that they are cut too.
    db.pragma_update(None, "wal_autocheckpoint", 8).unwrap();
    db.execute("CREATE TABLE IF NOT EXISTS row (n INTEGER PRIMARY KEY, filler BLOB)", ()).unwrap();
    let first: i64 = db.query_row("SELECT ifnull(max(n), 0) FROM row", (), |row| row.get(0)).unwrap();
    for n in first + 1.. {
        let insert = db.transaction().unwrap();
        insert.execute("INSERT INTO row VALUES (?1, zeroblob(1500))", [n]).unwrap();
        insert.commit().unwrap();
        eprintln!("{n}");
    }
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn start(cut: &PowerCut, role: &str, state: &Path) -> (Child, BufReader<ChildStderr>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "victim", "--nocapture"]).env(ROLE, role).env(STATE, state);
    let mut child = cut.follow(&mut command, state).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    (child, said)
}

/// The last number said, reading up to `enough` and then what is left after
/// the cut.
fn run_and_cut(cut: &PowerCut, role: &str, state: &Path, enough: i64) -> i64 {
    let (mut child, mut said) = start(cut, role, state);
    let mut last = 0;
    let mut line = String::new();
    let mut is_cut = false;
    loop {
        line.clear();
        if said.read_line(&mut line).unwrap() == 0 {
            assert!(is_cut, "the process ended by itself");
            return last;
        }
        match line.trim().parse() {
            Ok(number) => last = number,
            Err(_) => panic!("{line}"),
        }
        if last >= enough && !is_cut {
            cut.cut(&mut child);
            is_cut = true;
        }
    }
}

fn shim(test: &str) -> Option<PowerCut> {
    PowerCut::new().map_err(|why| skip::skip(test, &why)).ok()
}

#[test]
fn files_are_as_their_last_sync_left_them() {
    let Some(cut) = shim("files_are_as_their_last_sync_left_them") else { return };
    let state = tempfile::tempdir().unwrap();
    let path = |name: &str| state.path().join(name);
    for (name, content) in [("kept", "old"), ("appended", "one"), ("replaced", "old"), ("removed", "old")] {
        fs::write(path(name), content).unwrap();
    }
    run_and_cut(&cut, "files", state.path(), 1);
    let read = |name: &str| fs::read_to_string(path(name)).unwrap();
    assert_eq!(read("synced"), "all of it");
    assert_eq!(read("unsynced"), "");
    assert_eq!(read("kept"), "old");
    assert_eq!(read("appended"), "one");
    assert_eq!(read("renamed"), "");
    assert_eq!(read("replaced"), "careful");
    assert!(!path("removed").exists() && !path("new").exists());
}

fn rows(state: &Path) -> i64 {
    let db = Connection::open(state.join("store.db")).unwrap();
    let verdict: String = db.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    db.query_row("SELECT count(*) FROM row", (), |row| row.get(0)).unwrap()
}

#[test]
fn sqlite_keeps_what_it_committed() {
    let Some(cut) = shim("sqlite_keeps_what_it_committed") else { return };
    let state = tempfile::tempdir().unwrap();
    let mut committed = 0;
    for round in 1..=10 {
        committed = run_and_cut(&cut, "FULL", state.path(), committed + round * 7);
        let kept = rows(state.path());
        // One more may be on disk that nobody was told of.
        assert!((committed..=committed + 1).contains(&kept), "{kept} of {committed} in round {round}");
        committed = kept;
    }
}

/// Proves that the shim bites: without syncs the rows are gone.
#[test]
fn sqlite_without_syncs_loses_what_it_committed() {
    let Some(cut) = shim("sqlite_without_syncs_loses_what_it_committed") else { return };
    let state = tempfile::tempdir().unwrap();
    let committed = run_and_cut(&cut, "OFF", state.path(), 50);
    assert!(committed >= 50);
    assert_eq!(fs::metadata(state.path().join("store.db")).unwrap().len(), 0);
}
