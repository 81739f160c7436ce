//! What is wrong with the settings, for the person who wrote them.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::ENV_PREFIX;

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting, such as `limits.max_inbox_bytes`; empty if it is about a
    /// whole file.
    pub key: String,
    /// What it is set to, if it is set.
    pub value: Option<String>,
    /// Where it is set.
    pub origin: Origin,
    /// What is wrong, the limit, and the remedy.
    pub what: String,
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env,
    /// A flag of the command line.
    Flag,
}

impl ConfigError {
    /// There is at least one problem in it.
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// A file as a whole is wrong.
    pub(super) fn file(path: &Path, what: &str) -> Self {
        let origin = Origin::File(path.to_owned());
        Self::new(vec![Problem { key: String::new(), value: None, origin, what: what.to_owned() }])
    }

    /// A file cannot be parsed.
    pub(super) fn unreadable(error: figment::Error) -> Self {
        let problem = |error: figment::Error| {
            let path = error.metadata.as_ref().and_then(|from| from.source.as_ref()?.file_path());
            let origin = path.map_or(Origin::Default, |path| Origin::File(path.to_owned()));
            let what = format!("cannot be parsed: {}", error.kind.to_string().trim_end());
            Problem { key: String::new(), value: None, origin, what }
        };
        Self::new(error.into_iter().map(problem).collect())
    }

    /// All of them.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "bad configuration: {one}"),
            many => {
                write!(f, "bad configuration, {} problems:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            return match &self.origin {
                Origin::File(path) => write!(f, "{} {}", path.display(), self.what),
                _ => f.write_str(&self.what),
            };
        }
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value:?}")?;
        }
        match &self.origin {
            Origin::Default => {}
            Origin::File(path) => write!(f, " (in {})", path.display())?,
            Origin::Env => write!(f, " (from {})", env_name(&self.key))?,
            Origin::Flag => write!(f, " (from {})", flag_name(&self.key))?,
        }
        write!(f, ": {}", self.what)
    }
}

/// The variable that sets a key.
pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

fn flag_name(key: &str) -> String {
    match key {
        "mdns" => "--no-mdns".to_owned(),
        "port_mapping" => "--no-port-mapping".to_owned(),
        key => format!("--{}", key.replace('_', "-")),
    }
}
