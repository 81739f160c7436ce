//! The log: to stderr, a line an event.

use std::{env, io, io::IsTerminal};

use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, ParseError},
    fmt,
    util::{SubscriberInitExt, TryInitError},
};

/// A filter of the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is no filter.
    #[error("is no log filter ({0}); write a level (error, warn, info, debug, trace), or e.g. info,libp2p=debug")]
    Malformed(#[from] ParseError),
    /// A word that would be taken for the name of a module, of which it would
    /// log everything and nothing of others.
    #[error("{0:?} is no level (error, warn, info, debug, trace, off); for a module of that name write {0}=debug")]
    BareWord(String),
}

/// Reads a filter as the setting `log` has it: a level, or levels by module.
///
/// # Errors
/// See [`FilterError`].
pub fn parse_filter(filter: &str) -> Result<EnvFilter, FilterError> {
    let directives: Vec<&str> = filter.split(',').map(str::trim).collect();
    for directive in &directives {
        let is_word = !directive.contains(['=', '[', ']', '{', '}']) && !directive.is_empty();
        if is_word && directive.parse::<LevelFilter>().is_err() {
            return Err(FilterError::BareWord((*directive).to_owned()));
        }
    }
    // The libraries below tell at info what the daemon tells in its own words,
    // and that of netlink warns of every field that a newer kernel adds.
    let quiet = ["libp2p_swarm=warn", "libp2p_mdns=warn", "netlink_packet_route=error"];
    let levels = || directives.iter().filter_map(|directive| directive.parse::<LevelFilter>().ok());
    let quiet =
        quiet.into_iter().filter(|_| levels().all(|level| level <= LevelFilter::INFO && level >= LevelFilter::WARN));
    let all: Vec<&str> = quiet.chain(directives.iter().copied()).collect();
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    Ok(builder.parse(all.join(","))?)
}

/// Starts logging for the whole process. Under systemd, whose journal has its
/// own, lines have no time.
///
/// # Errors
/// Something logs already.
pub fn init(filter: EnvFilter) -> Result<(), TryInitError> {
    let lines = fmt()
        .compact()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none());
    if env::var_os("JOURNAL_STREAM").is_some() {
        lines.without_time().finish().try_init()
    } else {
        lines.finish().try_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_modules_are_filters() {
        for filter in ["info", "OFF", "warn,libp2p=debug", "p2p_node::swarm=trace", "info, libp2p_swarm=off", ""] {
            assert!(parse_filter(filter).is_ok(), "{filter}");
        }
    }

    #[test]
    fn a_misspelt_level_is_no_module() {
        let error = parse_filter("info,debgu").unwrap_err();
        assert!(error.to_string().starts_with("\"debgu\" is no level"), "{error}");
        let error = parse_filter("libp2p=loud").unwrap_err();
        assert!(error.to_string().contains("write a level"), "{error}");
    }
}
