//! The command line as scripts see it, where it needs no daemon: exit
//! statuses, help, version and completions.

// Clippy's own exception for tests does not reach the helpers.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn p2p_node(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_p2p-node"))
        .args(arguments)
        .env_remove("P2P_NODE_SOCKET")
        .env_remove("P2P_NODE_CONFIG")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn bad_usage_is_64() {
    for arguments in [&["nothing"][..], &[], &["send"], &["run", "--trust", "maybe"], &["ping", "pi", "--count", "0"]] {
        let output = p2p_node(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_and_version_are_0() {
    for arguments in [&["--help"][..], &["help", "send"], &["listen", "--help"], &["--version"], &["version"]] {
        let output = p2p_node(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn version_in_both_forms() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&p2p_node(&["version"])), format!("p2p-node {version}\n"));
    let json: serde_json::Value = serde_json::from_str(&stdout(&p2p_node(&["version", "--json"]))).unwrap();
    assert_eq!(json, serde_json::json!({ "version": version }));
}

#[test]
fn no_daemon_is_69_for_every_command_that_needs_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for command in [
        &["status"][..],
        &["peers"],
        &["peers", "--watch"],
        &["send", "pi", "hello"],
        &["listen"],
        &["queue", "ls"],
        &["queue", "rm", "1"],
        &["ping", "pi"],
        &["connect", "pi"],
        &["find", "pi"],
        &["explain", "pi"],
        &["netcheck"],
        &["disconnect", "pi"],
        &["peer", "add", "pi"],
        &["peer", "rm", "pi"],
        &["peer", "ls"],
        &["peer", "block", "pi"],
    ] {
        let output = p2p_node(&[&["--socket", socket], command].concat());
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(69), "{command:?}: {told}");
        assert!(told.contains(socket) && told.contains("p2p-node run"), "{command:?}: {told}");
    }
}

#[test]
fn the_environment_names_the_socket() {
    let output = Command::new(env!("CARGO_BIN_EXE_p2p-node"))
        .arg("status")
        .env("P2P_NODE_SOCKET", "/nowhere/named.sock")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(stderr(&output).contains("/nowhere/named.sock"));
}

#[test]
fn completions_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = p2p_node(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("p2p-node"), "{shell}");
    }
    assert_eq!(p2p_node(&["completions", "none"]).status.code(), Some(64));
}
