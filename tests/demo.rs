//! The demo: that its figures make sense, and that nothing is left of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal::SIGINT;
use serde_json::Value;
use support::{P2P_NODE, eventually, scrub, signal, wait_exit};
use tempfile::TempDir;

#[test]
fn its_figures_make_sense_and_nothing_is_left() {
    let temp = TempDir::new().unwrap();
    let output = demo(temp.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let [line] = text.lines().collect::<Vec<_>>()[..] else { panic!("not one line: {text}") };
    let figures: Value = serde_json::from_str(line).unwrap();
    let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("{name}: {figures}"));
    for name in [
        "rtt_ms",
        "a_to_b_ms",
        "b_to_a_ms",
        "messages",
        "message_bytes",
        "stored_per_second",
        "heard_per_second",
        "queued_while_down",
        "queued_ms",
        "recovery_ms",
    ] {
        assert!(number(name) > 0.0, "{name}: {figures}");
    }
    assert_eq!(number("arrived_after_restart"), number("queued_while_down"), "{figures}");
    assert!(number("heard_per_second") <= number("stored_per_second") * 1.01, "{figures}");
    assert_eq!(figures["route"], "ROUTE_LAN");
    let [a, b] = ["a", "b"].map(|name| figures[name].as_str().unwrap());
    assert!(a.starts_with("12D3Koo") && b.starts_with("12D3Koo") && a != b, "{figures}");
    assert!(entries(temp.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_short_it_cleans_up_as_well() {
    let temp = TempDir::new().unwrap();
    let mut child = demo(temp.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("two daemons", || async {
        let ours = entries(temp.path());
        let logs = ours.first().map_or(0, |dir| entries(dir).iter().filter(|file| file.ends_with("b.sock")).count());
        (logs > 0).then_some(())
    })
    .await;
    signal(child.id(), SIGINT);
    assert_eq!(wait_exit(&mut child).code(), Some(130));
    assert!(entries(temp.path()).is_empty());
}

fn demo(temp: &Path) -> Command {
    let mut command = Command::new(P2P_NODE);
    scrub(&mut command);
    command.args(["demo", "--json"]).env("TMPDIR", temp).stdin(Stdio::null());
    command
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(directory).map_or_else(|_| Vec::new(), |files| files.map(|file| file.unwrap().path()).collect())
}
