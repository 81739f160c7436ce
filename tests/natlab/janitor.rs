//! Removes what labs leave behind: namespaces, the processes in them, and
//! directories. All carry the process id of the program that made them.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns, sys};

/// Of everything that a lab makes.
const PREFIX: &str = "natlab";

static LABS: AtomicU32 = AtomicU32::new(0);

/// A name that no other lab of this machine has.
pub(crate) fn lab_name() -> String {
    format!("{PREFIX}{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed))
}

/// Where a lab keeps its files.
pub(crate) fn directory(lab: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(lab);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Has the directories of daemons made where they are removed, whatever
/// happens.
pub(crate) fn keep_temporary_files() {
    let directory = directory(&format!("{PREFIX}{}-tmp", std::process::id()));
    tempfile::env::override_temp_dir(&directory).unwrap();
}

/// Removes the leftovers of programs that are gone.
pub(crate) fn sweep_dead() {
    sweep(|pid| !is_natlab(pid));
}

/// Removes everything of this program, which is about to end.
pub(crate) fn sweep_own() {
    let own = std::process::id();
    sweep(|pid| pid == own);
}

/// On SIGINT and SIGTERM, everything is removed before the program ends.
pub(crate) fn on_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate()).unwrap();
            let mut interrupt = signal(SignalKind::interrupt()).unwrap();
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        });
        eprintln!("natlab: interrupted, removing the lab");
        sweep_own();
        // Another thread may have been making things meanwhile.
        sweep_own();
        std::process::exit(130);
    });
}

fn sweep(of: impl Fn(u32) -> bool) {
    let ours = |name: &str| owner(name).is_some_and(&of);
    for path in entries(Path::new(netns::DIRECTORY)).filter(|path| ours(&file_name(path))) {
        end_processes(&path);
        drop(sys::attempt("ip", &["netns", "del", &file_name(&path)], ""));
    }
    for path in entries(&std::env::temp_dir()).filter(|path| ours(&file_name(path))) {
        drop(fs::remove_dir_all(path));
    }
}

/// The program's id in `natlab123-0-core`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_natlab(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(PREFIX))
}

/// Ends the processes that live in a namespace of ours.
fn end_processes(namespace: &Path) {
    let Ok(inside) = fs::metadata(namespace) else { return };
    for process in entries(Path::new("/proc")) {
        let Ok(pid) = file_name(&process).parse::<i32>() else { continue };
        let same = fs::metadata(process.join("ns/net"))
            .is_ok_and(|other| (other.dev(), other.ino()) == (inside.dev(), inside.ino()));
        if same && pid.cast_unsigned() != std::process::id() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
