//! Settings: the layers, the fixtures, the example, and the default paths.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use p2p_node::config::{ConfigError, Environment, Flags, MAX_SOCKET_PATH_BYTES, Origin, Settings, load};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/config");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");

/// A user's login, on a machine without a system-wide file.
fn user() -> Environment {
    Environment {
        uid: 1000,
        host_name: Some("pi".into()),
        current_dir: Some("/srv/p2p".into()),
        home: Some("/home/pi".into()),
        xdg_runtime_dir: Some("/run/user/1000".into()),
        system_config: "/nonexistent/p2p-node/config.toml".into(),
        ..Environment::default()
    }
}

fn with_file(path: impl Into<PathBuf>) -> Flags {
    Flags { config: Some(path.into()), ..Flags::default() }
}

fn variables(pairs: &[(&str, &str)]) -> Environment {
    let settings = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Environment { settings, ..user() }
}

fn defaults() -> Settings {
    load(&Flags::default(), &user()).unwrap()
}

#[track_caller]
fn refused(flags: &Flags, env: &Environment) -> ConfigError {
    load(flags, env).unwrap_err()
}

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(FIXTURES).join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().unwrap() != "expect");
    assert!(!files.is_empty(), "no fixtures in {folder}");
    files.sort();
    files
}

#[test]
fn valid_files_load() {
    for file in fixtures("valid") {
        load(&with_file(&file), &user()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

#[test]
fn invalid_files_are_refused_with_all_that_is_wrong() {
    for file in fixtures("invalid") {
        let error = refused(&with_file(&file), &user()).to_string();
        let expect = fs::read_to_string(format!("{}.expect", file.display())).unwrap();
        assert!(!expect.trim().is_empty(), "nothing expected of {}", file.display());
        for text in expect.lines() {
            assert!(error.contains(text), "{}: no {text:?} in:\n{error}", file.display());
        }
    }
}

#[test]
fn each_expectation_belongs_to_a_file() {
    for entry in fs::read_dir(Path::new(FIXTURES).join("invalid")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().unwrap() == "expect" {
            assert!(path.with_extension("").exists(), "{}", path.display());
        }
    }
}

#[test]
fn a_file_sets_everything() {
    let toml = load(&with_file(format!("{FIXTURES}/valid/full.toml")), &user()).unwrap();
    let json = load(&with_file(format!("{FIXTURES}/valid/full.json")), &user()).unwrap();
    assert_eq!(toml, json);
    assert_eq!(toml.name, "sensor-1.attic");
    assert_eq!(toml.state_dir, Path::new("/srv/p2p"));
    assert_eq!(toml.socket_group, "apps");
    let listen: Vec<(String, bool)> = toml.listen.iter().map(|at| (at.addr.to_string(), at.required)).collect();
    assert_eq!(listen, [("/ip4/127.0.0.1/tcp/0".into(), true), ("/ip6/::1/udp/0/quic-v1".into(), true)]);
    assert!(!toml.mdns && !toml.port_mapping && toml.trust_open);
    assert_eq!(toml.log, "warn,p2p_node=debug");
    assert_eq!(toml.default_ttl, Duration::from_secs(365 * 86_400));
    assert_eq!(toml.shutdown_grace, Duration::from_secs(300));
    let limits = toml.limits;
    assert_eq!(limits.max_message_bytes, 64 << 20);
    assert_eq!(limits.max_outbox_bytes, 1 << 40);
    assert_eq!(limits.max_inbox_bytes, 5 << 29);
    assert_eq!(limits.max_peer_bytes, 100_000_000);
    assert_eq!(limits.max_untrusted_connections, 0);
    assert_eq!(limits.max_trusted_connections, 100_000);
    assert_eq!(limits.max_connections_per_peer, 2);
    assert_eq!(limits.max_memory_bytes, Some(64 << 20));
    assert_eq!(limits.max_streams, 10_000);
}

#[test]
fn scalars_of_any_type_are_read() {
    let settings = load(&with_file(format!("{FIXTURES}/valid/scalars.toml")), &user()).unwrap();
    assert_eq!(settings.socket_group, "7");
    assert!(!settings.mdns && !settings.port_mapping);
    assert_eq!(settings.listen.len(), 2);
    assert_eq!(settings.limits.max_streams, 16);
    assert_eq!(settings.limits.max_message_bytes, 2048);
    let settings = load(&Flags::default(), &variables(&[("socket_group", "007")])).unwrap();
    assert_eq!(settings.socket_group, "007");
}

#[test]
fn it_runs_without_a_file() {
    let settings = defaults();
    assert_eq!(settings.state_dir, Path::new("/home/pi/.local/state/p2p-node"));
    assert_eq!(settings.socket, Path::new("/run/user/1000/p2p-node/p2p-node.sock"));
    assert_eq!(settings.listen.len(), 4);
    assert!(settings.listen.iter().all(|listen| !listen.required));
    assert!(settings.mdns && settings.port_mapping && !settings.trust_open);
}

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(load(&with_file(EXAMPLE), &user()).unwrap(), defaults());
}

/// The list of settings is the one that an unknown key is answered with.
#[test]
fn the_example_has_every_setting() {
    let error = refused(&Flags::default(), &variables(&[("zzzzzzzz", "1")])).to_string();
    let (_, known) = error.split_once("the settings are ").unwrap();
    let example = fs::read_to_string(EXAMPLE).unwrap();
    let mut table = String::new();
    let mut written = Vec::new();
    for line in example.lines().map(|line| line.trim_start_matches('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ") {
            written.push(format!("{table}{key}"));
        }
    }
    written.sort_unstable();
    let mut known: Vec<&str> = known.split(", ").collect();
    known.sort_unstable();
    assert_eq!(written, known);
}

#[test]
fn flags_override_variables_and_those_the_file() {
    let mut flags = with_file(format!("{FIXTURES}/valid/full.toml"));
    let env = variables(&[("log", "debug"), ("limits.max_streams", "20"), ("listen", "/ip4/0.0.0.0/tcp/1")]);
    let settings = load(&flags, &env).unwrap();
    assert_eq!(settings.log, "debug");
    assert_eq!(settings.limits.max_streams, 20);
    assert_eq!(settings.limits.max_connections_per_peer, 2, "others of the table stay");
    assert_eq!(settings.listen.len(), 1);
    flags.log = Some("trace".into());
    flags.listen = vec!["/ip4/0.0.0.0/tcp/2".into(), "/ip4/0.0.0.0/tcp/3".into()];
    flags.mdns = Some(true);
    flags.port_mapping = Some(true);
    flags.trust = Some("known".into());
    flags.state_dir = Some("here".into());
    flags.socket = Some("/tmp/s".into());
    let settings = load(&flags, &env).unwrap();
    assert_eq!(settings.log, "trace");
    assert_eq!(settings.listen.len(), 2);
    assert!(settings.mdns && settings.port_mapping && !settings.trust_open);
    assert_eq!(settings.state_dir, Path::new("/srv/p2p/here"));
    assert_eq!(settings.socket, Path::new("/tmp/s"));
}

#[test]
fn problems_say_where_they_were_set() {
    let flags =
        Flags { trust: Some("all".into()), mdns: Some(false), ..with_file(format!("{FIXTURES}/invalid/ranges.toml")) };
    let env = variables(&[("shutdown_grace", "1h"), ("limits.max_stream", "9"), ("log.level", "info")]);
    let error = refused(&flags, &env);
    let text = error.to_string();
    assert!(text.contains("trust = \"all\" (from --trust): must be"), "{text}");
    assert!(text.contains("shutdown_grace = \"1h\" (from P2P_NODE_SHUTDOWN_GRACE): must be"), "{text}");
    assert!(text.contains("(from P2P_NODE_LIMITS__MAX_STREAM): is not a setting"), "{text}");
    assert!(text.contains("did you mean P2P_NODE_LIMITS__MAX_STREAMS?"), "{text}");
    assert!(text.contains("log (from P2P_NODE_LOG): must be a single value"), "{text}");
    assert!(text.contains("ranges.toml): must be from 2 to 64"), "{text}");
    let origins: Vec<&Origin> = error.problems().iter().map(|problem| &problem.origin).collect();
    assert!(origins.contains(&&Origin::Flag) && origins.contains(&&Origin::Env), "{origins:?}");
}

/// The child of the test below, which is this test with variables set.
const CHILD: &str = "TEST_CONFIG_CHILD";

#[test]
fn variables_of_the_process_are_captured() {
    if std::env::var_os(CHILD).is_some() {
        let env = Environment { system_config: PathBuf::new(), ..Environment::capture() };
        let settings = load(&Flags::default(), &env).unwrap();
        assert_eq!(settings.state_dir, Path::new("/state/first"));
        assert_eq!(settings.socket, Path::new("/run/user/7/p2p-node/p2p-node.sock"));
        assert_eq!(settings.socket_group, "007");
        assert!(!settings.name.is_empty());
        assert_eq!(settings.limits.max_streams, 16);
        assert_eq!(settings.listen.len(), 2);
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "variables_of_the_process_are_captured"])
        .env_clear()
        .env(CHILD, "1")
        .env("STATE_DIRECTORY", "/state/first:/state/second")
        .env("RUNTIME_DIRECTORY", "")
        .env("XDG_STATE_HOME", "relative")
        .env("XDG_RUNTIME_DIR", "/run/user/7")
        .env("P2P_NODE_SOCKET", "/not/a/setting")
        .env("P2P_NODE_BIN", "/not/a/setting/either")
        .env("P2P_NODE_CONFIG", "/not/a/setting")
        .env("P2P_NODE_SOCKET_GROUP", "007")
        .env("P2P_NODE_LIMITS__MAX_STREAMS", "16")
        .env("P2P_NODE_LISTEN", "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/udp/0/quic-v1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[test]
fn a_named_file_must_exist() {
    let text = refused(&with_file("/nonexistent/config.toml"), &user()).to_string();
    assert!(text.contains("/nonexistent/config.toml cannot be read: No such file"), "{text}");
    let text = refused(&with_file(FIXTURES), &user()).to_string();
    assert!(text.contains("is not a file"), "{text}");
}

#[test]
fn the_system_file_is_read_if_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let env = Environment { system_config: file.clone(), ..user() };
    assert_eq!(load(&Flags::default(), &env).unwrap(), defaults());
    fs::write(&file, "log = \"warn\"\n").unwrap();
    assert_eq!(load(&Flags::default(), &env).unwrap().log, "warn");
}

#[test]
fn a_node_is_called_as_its_host() {
    let name = |host: Option<&str>| {
        let env = Environment { host_name: host.map(str::to_owned), ..user() };
        load(&Flags::default(), &env).unwrap().name
    };
    assert_eq!(name(Some("pi")), "pi");
    assert_eq!(name(Some("Anna's Mac")), "Anna-s-Mac");
    assert_eq!(name(Some("日本")), "p2p-node");
    assert_eq!(name(None), "p2p-node");
    assert_eq!(load(&Flags::default(), &variables(&[("name", "attic")])).unwrap().name, "attic");
    for bad in ["", "two words", "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp", &"x".repeat(65)] {
        let text = refused(&Flags::default(), &variables(&[("name", bad)])).to_string();
        assert!(text.contains("(from P2P_NODE_NAME): must have 1 to 64 letters"), "{text}");
    }
}

#[test]
fn the_state_directory_is_found() {
    let state = |flags: &Flags, env: Environment| load(flags, &env).unwrap().state_dir;
    let none = Flags::default();
    let named = Flags { state_dir: Some("/flag".into()), ..Flags::default() };
    let set = variables(&[("state_dir", "/set")]);
    assert_eq!(state(&named, set.clone()), Path::new("/flag"));
    let systemd = PathBuf::from("/var/lib/private/p2p-node");
    assert_eq!(state(&none, Environment { state_directory: Some(systemd.clone()), ..set }), Path::new("/set"));
    let env = Environment { state_directory: Some(systemd.clone()), xdg_state_home: Some("/xdg".into()), ..user() };
    assert_eq!(state(&none, env), systemd);
    assert_eq!(state(&none, Environment { xdg_state_home: Some("/xdg".into()), ..user() }), Path::new("/xdg/p2p-node"));
    assert_eq!(state(&none, Environment { uid: 0, ..user() }), Path::new("/var/lib/p2p-node"));
    let homeless = refused(&none, &Environment { home: None, ..user() }).to_string();
    assert!(homeless.contains("set --state-dir"), "{homeless}");
}

#[test]
fn the_socket_is_found() {
    let socket = |env: Environment| load(&Flags::default(), &env).map(|settings| settings.socket);
    let systemd = Environment { runtime_directory: Some("/run/p2p".into()), ..user() };
    assert_eq!(socket(systemd).unwrap(), Path::new("/run/p2p/p2p-node.sock"));
    let root = Environment { uid: 0, xdg_runtime_dir: None, ..user() };
    assert_eq!(socket(root).unwrap(), Path::new("/run/p2p-node/p2p-node.sock"));
    let nowhere = socket(Environment { xdg_runtime_dir: None, ..user() }).unwrap_err().to_string();
    assert!(nowhere.contains("--socket"), "{nowhere}");
}

#[test]
fn a_socket_path_that_the_kernel_would_refuse_is_an_error() {
    let at = |len: usize| Flags { socket: Some(format!("/{}", "s".repeat(len - 1)).into()), ..Flags::default() };
    assert!(load(&at(MAX_SOCKET_PATH_BYTES), &user()).is_ok());
    let text = refused(&at(MAX_SOCKET_PATH_BYTES + 1), &user()).to_string();
    assert!(text.contains("has 108 bytes, over the 107"), "{text}");
    assert!(text.contains("--socket"), "{text}");
}
