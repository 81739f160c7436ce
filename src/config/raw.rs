//! Settings as they were written: texts, each with where it comes from.
//!
//! A scalar of any type is read as its text and parsed when it is validated.
//! So `log = 5`, `P2P_NODE_MDNS=true` and `--log 5` go one way and fail with
//! the same words, and a group called `007` keeps its zeros.

use std::path::PathBuf;

use figment::{
    Error, Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Tag, Value},
};

use super::{Origin, Problem, error::env_name};

/// What the command line sets; `None` and empty leave the lower layers alone.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--listen`, which replaces the default addresses.
    pub listen: Vec<String>,
    /// `--external`
    pub external: Vec<String>,
    /// `--bootstrap`
    pub bootstrap: Vec<String>,
    /// `--relay`
    pub relay: Vec<String>,
    /// `--serve`
    pub serve: Option<String>,
    /// `--trust`
    pub trust: Option<String>,
    /// `--no-mdns` is `Some(false)`.
    pub mdns: Option<bool>,
    /// `--no-port-mapping` is `Some(false)`.
    pub port_mapping: Option<bool>,
    /// `--log`
    pub log: Option<String>,
    /// `--socket` or `P2P_NODE_SOCKET`
    pub socket: Option<PathBuf>,
    /// `--config` or `P2P_NODE_CONFIG`
    pub config: Option<PathBuf>,
}

/// A setting that was written somewhere.
#[derive(Debug, Clone)]
pub(super) struct Written<T> {
    pub(super) key: &'static str,
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// All settings, as far as they were written.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) name: Text,
    pub(super) state_dir: Text,
    pub(super) socket_group: Text,
    pub(super) listen: Option<Written<Vec<String>>>,
    pub(super) external: Option<Written<Vec<String>>>,
    pub(super) bootstrap: Option<Written<Vec<String>>>,
    pub(super) relay: Option<Written<Vec<String>>>,
    pub(super) serve: Text,
    pub(super) network: Text,
    pub(super) mdns: Text,
    pub(super) port_mapping: Text,
    pub(super) trust: Text,
    pub(super) log: Text,
    pub(super) default_ttl: Text,
    pub(super) shutdown_grace: Text,
    pub(super) max_message_bytes: Text,
    pub(super) max_outbox_bytes: Text,
    pub(super) max_inbox_bytes: Text,
    pub(super) max_peer_bytes: Text,
    pub(super) max_untrusted_connections: Text,
    pub(super) max_trusted_connections: Text,
    pub(super) max_connections_per_peer: Text,
    pub(super) max_memory_bytes: Text,
    pub(super) max_streams: Text,
    pub(super) relay_reservations: Text,
    pub(super) relay_reservation_duration: Text,
    pub(super) relay_circuits: Text,
    pub(super) relay_circuits_per_peer: Text,
    pub(super) relay_circuit_bytes: Text,
    pub(super) relay_circuit_duration: Text,
}

pub(super) type Text = Option<Written<String>>;

/// Takes every known setting out of the layers. Unknown ones, and those of the
/// wrong shape, are problems.
pub(super) fn read(layers: &Figment, problems: &mut Vec<Problem>) -> Raw {
    let mut reader = Reader { layers, known: Vec::new(), problems };
    let raw = Raw {
        name: reader.text("name"),
        state_dir: reader.text("state_dir"),
        socket_group: reader.text("socket_group"),
        listen: reader.list("listen"),
        external: reader.list("external"),
        bootstrap: reader.list("bootstrap"),
        relay: reader.list("relay"),
        serve: reader.text("serve"),
        network: reader.text("network"),
        mdns: reader.text("mdns"),
        port_mapping: reader.text("port_mapping"),
        trust: reader.text("trust"),
        log: reader.text("log"),
        default_ttl: reader.text("default_ttl"),
        shutdown_grace: reader.text("shutdown_grace"),
        max_message_bytes: reader.text("limits.max_message_bytes"),
        max_outbox_bytes: reader.text("limits.max_outbox_bytes"),
        max_inbox_bytes: reader.text("limits.max_inbox_bytes"),
        max_peer_bytes: reader.text("limits.max_peer_bytes"),
        max_untrusted_connections: reader.text("limits.max_untrusted_connections"),
        max_trusted_connections: reader.text("limits.max_trusted_connections"),
        max_connections_per_peer: reader.text("limits.max_connections_per_peer"),
        max_memory_bytes: reader.text("limits.max_memory_bytes"),
        max_streams: reader.text("limits.max_streams"),
        relay_reservations: reader.text("limits.relay_reservations"),
        relay_reservation_duration: reader.text("limits.relay_reservation_duration"),
        relay_circuits: reader.text("limits.relay_circuits"),
        relay_circuits_per_peer: reader.text("limits.relay_circuits_per_peer"),
        relay_circuit_bytes: reader.text("limits.relay_circuit_bytes"),
        relay_circuit_duration: reader.text("limits.relay_circuit_duration"),
    };
    reader.refuse_unknown();
    raw
}

struct Reader<'a> {
    layers: &'a Figment,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn text(&mut self, key: &'static str) -> Text {
        let (value, origin) = self.find(key)?;
        match scalar(&value) {
            Some(value) => Some(Written { key, value, origin }),
            None => self.shape(key, origin, "must be a single value, not a list or a table"),
        }
    }

    /// A list of texts, or one text with commas.
    fn list(&mut self, key: &'static str) -> Option<Written<Vec<String>>> {
        let (value, origin) = self.find(key)?;
        let items = match &value {
            Value::Array(_, items) => items.iter().map(scalar).collect(),
            one => scalar(one).map(|text| text.split(',').map(|item| item.trim().to_owned()).collect()),
        };
        match items {
            Some(value) => Some(Written { key, value, origin }),
            None => self.shape(key, origin, "must be a list of texts"),
        }
    }

    fn find(&mut self, key: &'static str) -> Option<(Value, Origin)> {
        self.known.push(key);
        let value = self.layers.find_value(key).ok()?;
        let origin = origin(self.layers, value.tag());
        // JSON's null.
        (!matches!(value, Value::Empty(..))).then_some((value, origin))
    }

    fn shape<T>(&mut self, key: &str, origin: Origin, what: &str) -> Option<T> {
        self.problems.push(Problem { key: key.to_owned(), value: None, origin, what: what.to_owned() });
        None
    }

    fn refuse_unknown(self) {
        let Ok(profiles) = self.layers.data() else { return };
        for (name, value) in profiles.into_values().flatten() {
            unknown(self.layers, &self.known, name, &value, self.problems);
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Char(_, char) => Some(char.to_string()),
        Value::Bool(_, bool) => Some(bool.to_string()),
        Value::Num(_, number) => number
            .to_u128()
            .map(|number| number.to_string())
            .or_else(|| number.to_i128().map(|number| number.to_string()))
            .or_else(|| number.to_f64().map(|number| number.to_string())),
        Value::Empty(..) | Value::Dict(..) | Value::Array(..) => None,
    }
}

fn unknown(layers: &Figment, known: &[&str], path: String, value: &Value, problems: &mut Vec<Problem>) {
    if known.contains(&path.as_str()) {
        return;
    }
    let is_table = known.iter().any(|key| key.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.')));
    match value {
        Value::Dict(_, entries) if is_table => {
            for (name, value) in entries {
                unknown(layers, known, format!("{path}.{name}"), value, problems);
            }
        }
        other => {
            let origin = origin_of(layers, other);
            let what = if is_table {
                "must be a table".to_owned()
            } else if path == "socket" || path == "config" {
                format!("is not set in a file; use --{path} or {}", env_name(&path))
            } else {
                format!("is not a setting; {}", suggestion(known, &path, &origin))
            };
            problems.push(Problem { key: path, value: None, origin, what });
        }
    }
}

fn suggestion(known: &[&str], key: &str, origin: &Origin) -> String {
    /// Below this, a suggestion is a guess that misleads.
    const LEAST_SIMILARITY: f64 = 0.6;
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let similarity = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(candidate, key);
        // The right name in the wrong table.
        whole.max(strsim::normalized_damerau_levenshtein(&last(candidate), &last(key)))
    };
    let nearest = known
        .iter()
        .map(|candidate| (similarity(candidate), candidate))
        .filter(|(similarity, _)| *similarity >= LEAST_SIMILARITY)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((_, key)) if *origin == Origin::Env => format!("did you mean {}?", env_name(key)),
        Some((_, key)) => format!("did you mean {key}?"),
        None => format!("the settings are {}", known.join(", ")),
    }
}

/// Where a value, or the first value of a table, comes from.
fn origin_of(layers: &Figment, value: &Value) -> Origin {
    match value {
        Value::Dict(tag, entries) => {
            entries.values().next().map_or_else(|| origin(layers, *tag), |value| origin_of(layers, value))
        }
        other => origin(layers, other.tag()),
    }
}

fn origin(layers: &Figment, tag: Tag) -> Origin {
    let Some(metadata) = layers.get_metadata(tag) else { return Origin::Default };
    match metadata.source.as_ref().and_then(|source| source.file_path()) {
        Some(path) => Origin::File(path.to_owned()),
        None if metadata.name == EnvLayer::NAME => Origin::Env,
        None => Origin::Flag,
    }
}

/// The layer of the environment. Values stay texts: figment's own layer would
/// read `007` as 7.
pub(super) struct EnvLayer<'a>(pub(super) &'a [(String, String)]);

impl EnvLayer<'_> {
    const NAME: &'static str = "environment";
}

impl Provider for EnvLayer<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(Self::NAME)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut layer = Dict::new();
        for (key, value) in self.0 {
            insert(&mut layer, key, value);
        }
        Ok(Map::from([(Profile::Default, layer)]))
    }
}

fn insert(table: &mut Dict, key: &str, value: &str) {
    let Some((name, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value.into());
        return;
    };
    let mut inner = match table.remove(name) {
        Some(Value::Dict(_, inner)) => inner,
        _ => Dict::new(),
    };
    insert(&mut inner, rest, value);
    table.insert(name.to_owned(), inner.into());
}

/// The layer of the command line.
pub(super) struct FlagLayer<'a>(pub(super) &'a Flags);

impl Provider for FlagLayer<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named("flags")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let flags = self.0;
        let mut layer = Dict::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                layer.insert(key.to_owned(), value);
            }
        };
        set("listen", (!flags.listen.is_empty()).then(|| flags.listen.clone().into()));
        for (key, list) in [("external", &flags.external), ("bootstrap", &flags.bootstrap), ("relay", &flags.relay)] {
            set(key, (!list.is_empty()).then(|| list.clone().into()));
        }
        set("serve", flags.serve.clone().map(Value::from));
        set("trust", flags.trust.clone().map(Value::from));
        set("mdns", flags.mdns.map(Value::from));
        set("port_mapping", flags.port_mapping.map(Value::from));
        set("log", flags.log.clone().map(Value::from));
        Ok(Map::from([(Profile::Default, layer)]))
    }
}
