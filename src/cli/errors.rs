//! What can go wrong, how it is told and the exit status it gives.

use std::{
    error::Error,
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::output::clean;

/// The exit statuses that scripts may lean on.
pub(super) mod exit {
    /// All done.
    pub(crate) const DONE: u8 = 0;
    /// The request failed.
    pub(crate) const FAILED: u8 = 1;
    /// Bad usage or configuration (`EX_USAGE`).
    pub(crate) const USAGE: u8 = 64;
    /// No daemon at the socket (`EX_UNAVAILABLE`).
    pub(crate) const NO_DAEMON: u8 = 69;
    /// No permission on the socket (`EX_NOPERM`).
    pub(crate) const NO_PERMISSION: u8 = 77;
    /// Added to the number of a signal, as shells do.
    pub(crate) const SIGNAL: u8 = 128;
}

/// What a quota or an `ErrorInfo` says first, because people ask it first.
const FIRST_KEYS: [&str; 4] = ["limit", "owner", "used", "max"];

/// Why a command ends without success.
#[derive(Debug)]
pub(super) enum Failure {
    /// The daemon refused.
    Rpc(Box<Status>),
    /// The request failed otherwise; the text says why.
    Failed(String),
    /// The arguments or the settings are wrong.
    Usage(String),
    /// Nobody listens at the socket.
    NoDaemon {
        /// That was tried.
        socket: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The socket may not be opened by this user.
    NoPermission {
        /// That was tried.
        socket: PathBuf,
        /// Who may, and how to become one of them.
        remedy: String,
    },
    /// Whoever read stdout has enough.
    StdoutClosed,
    /// Ended by this signal.
    Signal(i32),
}

impl Failure {
    /// The exit status of the process.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Rpc(_) | Self::Failed(_) => exit::FAILED,
            Self::Usage(_) => exit::USAGE,
            Self::NoDaemon { .. } => exit::NO_DAEMON,
            Self::NoPermission { .. } => exit::NO_PERMISSION,
            Self::StdoutClosed => exit::DONE,
            Self::Signal(number) => exit::SIGNAL.saturating_add(u8::try_from(*number).unwrap_or(0)),
        }
    }

    /// Tells it on stderr, unless there is nothing to tell.
    pub(super) fn report(&self) {
        if matches!(self, Self::StdoutClosed | Self::Signal(_)) {
            return;
        }
        // Nothing is left to be done when even stderr is gone.
        let _ = writeln!(io::stderr().lock(), "error: {self}");
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rpc(status) => f.write_str(&rpc_text(status)),
            Self::Failed(text) | Self::Usage(text) => f.write_str(&lines(text)),
            Self::NoDaemon { socket, cause } => write!(
                f,
                "no daemon at {} ({cause})\n  start one with `p2p-node run` or `systemctl start p2p-node`, \
                 or name its socket with --socket or P2P_NODE_SOCKET",
                shown(socket)
            ),
            Self::NoPermission { socket, remedy } => {
                write!(f, "no permission on {}\n  {}", shown(socket), clean(remedy))
            }
            Self::StdoutClosed => f.write_str("stdout is closed"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
        }
    }
}

impl Error for Failure {}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

/// A path, safe to print.
pub(super) fn shown(path: &Path) -> String {
    clean(&path.display().to_string())
}

/// The name of a code as gRPC writes it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Code and message on the first line, a line for each detail after it.
fn rpc_text(status: &Status) -> String {
    // A status that came over the wire has no cause on this side.
    if let Some(cause) = root_cause(status) {
        return format!("UNAVAILABLE: the connection to the daemon broke off ({}); its log may say why", clean(&cause));
    }
    let mut text = format!("{}: {}", code_name(status.code()), lines(status.message()));
    for detail in details(status) {
        text.push_str(&format!("\n  {}", clean(&detail)));
    }
    text
}

/// What broke first, when it was the connection.
fn root_cause(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

/// The `google.rpc` details that the daemon gives.
fn details(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let mut told = Vec::new();
    if let Some(bad) = details.bad_request() {
        told.extend(bad.field_violations.iter().map(|field| format!("field {}: {}", field.field, field.description)));
    }
    if let Some(quota) = details.quota_failure() {
        for violation in &quota.violations {
            told.push(format!("limit {}: {}", violation.subject, violation.description));
            let dimensions = violation.quota_dimensions.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            told.extend(pairs(dimensions.collect()));
        }
    }
    if let Some(precondition) = details.precondition_failure() {
        told.extend(precondition.violations.iter().map(|violation| {
            format!("precondition {} {}: {}", violation.r#type, violation.subject, violation.description)
        }));
    }
    if let Some(info) = details.error_info() {
        told.push(format!("reason: {}", info.reason));
        told.extend(pairs(info.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()));
    }
    told
}

/// Keys and values, the well-known ones first.
fn pairs(mut pairs: Vec<(&str, &str)>) -> Vec<String> {
    let rank = |key: &str| FIRST_KEYS.iter().position(|first| *first == key).unwrap_or(FIRST_KEYS.len());
    pairs.sort_by_key(|&(key, _)| (rank(key), key.to_owned()));
    pairs.into_iter().map(|(key, value)| format!("{key}: {value}")).collect()
}

/// Text of several lines, safe to print, those after the first indented.
fn lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn statuses_are_as_fixed() {
        let no_daemon = Failure::NoDaemon { socket: "/s".into(), cause: io::ErrorKind::NotFound.into() };
        let no_permission = Failure::NoPermission { socket: "/s".into(), remedy: String::new() };
        assert_eq!(Failure::from(Status::not_found("x")).status(), 1);
        assert_eq!(Failure::Failed(String::new()).status(), 1);
        assert_eq!(Failure::Usage(String::new()).status(), 64);
        assert_eq!(no_daemon.status(), 69);
        assert_eq!(no_permission.status(), 77);
        assert_eq!(Failure::StdoutClosed.status(), 0);
        assert_eq!(Failure::Signal(2).status(), 130);
    }

    #[test]
    fn details_follow_the_code() {
        let metadata = [("max", "10"), ("zone", "z"), ("limit", "outbox"), ("used", "9"), ("owner", "LOCAL")];
        let metadata: HashMap<String, String> = metadata.map(|(key, value)| (key.into(), value.into())).into();
        let mut details = ErrorDetails::with_error_info("OUTBOX_FULL", "p2p-node", metadata);
        details.add_bad_request_violation("payload", "too long");
        let status = Status::with_error_details(Code::ResourceExhausted, "the outbox is full", details);
        let expected = "RESOURCE_EXHAUSTED: the outbox is full\n  field payload: too long\n  reason: OUTBOX_FULL\n  \
                        limit: outbox\n  owner: LOCAL\n  used: 9\n  max: 10\n  zone: z";
        assert_eq!(Failure::from(status).to_string(), expected);
    }

    #[test]
    fn what_others_say_is_escaped() {
        let text = Failure::from(Status::unavailable("no\x1b[2J\nsecond")).to_string();
        assert_eq!(text, "UNAVAILABLE: no\\u{1b}[2J\n  second");
    }

    #[test]
    fn a_broken_connection_is_not_an_unknown_error() {
        let mut status = Status::unknown("h2 protocol error");
        status.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::BrokenPipe)));
        let text = Failure::from(status).to_string();
        assert!(text.starts_with("UNAVAILABLE: the connection to the daemon broke off (broken pipe)"), "{text}");
    }

    #[test]
    fn no_daemon_says_how_to_start_one() {
        let failure = Failure::NoDaemon { socket: "/run/x.sock".into(), cause: io::ErrorKind::NotFound.into() };
        let text = failure.to_string();
        assert!(text.contains("/run/x.sock") && text.contains("p2p-node run") && text.contains("--socket"), "{text}");
    }
}
