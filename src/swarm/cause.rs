//! Why a dial failed, in words for a person.

use std::{error::Error, io};

use libp2p::{
    Multiaddr, PeerId, TransportError, allow_block_list,
    swarm::{ConnectionDenied, DialError},
};

use super::{limits, route::without_peer};
use crate::node::{DialAttempt, NodeError};

/// Most characters of a cause; some libraries nest theirs without end.
const MAX_CAUSE_CHARS: usize = 200;

/// The error of a dial that tried these addresses.
pub(super) fn dial_failure(peer: PeerId, tried: &[Multiaddr], error: &DialError) -> NodeError {
    let unreachable = |attempts| NodeError::Unreachable { peer, attempts };
    let at = |address: &Multiaddr, cause: String| DialAttempt { address: Some(without_peer(address)), cause };
    match error {
        DialError::LocalPeerId { address } => unreachable(vec![at(address, "this node itself answered".to_owned())]),
        DialError::NoAddresses => NodeError::NoAddress(peer),
        DialError::WrongPeerId { obtained, address } => {
            unreachable(vec![at(address, format!("wrong peer id: expected {peer}, got {obtained}"))])
        }
        DialError::Denied { cause } => denied(peer, cause),
        DialError::Transport(errors) => {
            unreachable(errors.iter().map(|(address, error)| at(address, transport_cause(error))).collect())
        }
        DialError::Aborted => unreachable(all(tried, "given up")),
        DialError::DialPeerConditionFalse(_) => unreachable(all(tried, "not tried")),
    }
}

/// The error of a dial that took too long.
pub(super) fn dial_timeout(peer: PeerId, tried: &[Multiaddr]) -> NodeError {
    NodeError::Unreachable { peer, attempts: all(tried, "timed out") }
}

/// A limit that refused a connection, if it was one of this node's.
pub(super) fn exceeded(cause: &ConnectionDenied) -> Option<String> {
    let inner = cause.source()?;
    if let Some(limit) = inner.downcast_ref::<limits::Exceeded>() {
        return Some(limit.to_string());
    }
    let memory = inner.downcast_ref::<libp2p::memory_connection_limits::MemoryUsageLimitExceeded>()?;
    Some(format!("this node's memory limit is reached: {memory}"))
}

/// The innermost cause of an error, in a text of bounded length.
pub(super) fn innermost_text(error: &io::Error) -> String {
    innermost(error).to_string().chars().take(MAX_CAUSE_CHARS).collect()
}

/// The system's own error within one of libp2p's. Some layers hide it from
/// `source()`; its number is then still in the text.
pub(super) fn os_error(error: io::Error) -> io::Error {
    let number = chain(&error).find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
    number.or_else(|| os_number(&error.to_string())).map_or(error, io::Error::from_raw_os_error)
}

/// The number in "… (os error 111)".
fn os_number(text: &str) -> Option<i32> {
    let (_, rest) = text.rsplit_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok()
}

fn denied(peer: PeerId, cause: &ConnectionDenied) -> NodeError {
    if let Some(limit) = exceeded(cause) {
        return NodeError::Limit(limit);
    }
    if cause.source().is_some_and(|inner| inner.is::<allow_block_list::Blocked>()) {
        return NodeError::Blocked(peer);
    }
    let cause = innermost(cause).to_string();
    NodeError::Unreachable { peer, attempts: vec![DialAttempt { address: None, cause }] }
}

fn all(tried: &[Multiaddr], cause: &str) -> Vec<DialAttempt> {
    tried.iter().map(|address| DialAttempt { address: Some(address.clone()), cause: cause.to_owned() }).collect()
}

/// Why one address failed.
pub(super) fn transport_cause(error: &TransportError<io::Error>) -> String {
    let TransportError::Other(error) = error else {
        return "this kind of address is not supported".to_owned();
    };
    if let Some(known) = chain(error).find_map(|error| known_cause(error.downcast_ref::<io::Error>()?.kind())) {
        return known.to_owned();
    }
    let text = innermost(error).to_string();
    if let Some(known) = os_number(&text).and_then(|number| known_cause(io::Error::from_raw_os_error(number).kind())) {
        return known.to_owned();
    }
    let known = [("timed out", "timed out"), ("Timeout", "timed out"), ("no record", "name not found")];
    match known.iter().find(|(part, _)| text.contains(part)) {
        Some((_, cause)) => (*cause).to_owned(),
        None => text.chars().take(MAX_CAUSE_CHARS).collect(),
    }
}

fn known_cause(kind: io::ErrorKind) -> Option<&'static str> {
    Some(match kind {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset => "connection reset by the other side",
        io::ErrorKind::TimedOut => "timed out",
        io::ErrorKind::HostUnreachable => "no route to host",
        io::ErrorKind::NetworkUnreachable => "network unreachable",
        io::ErrorKind::AddrNotAvailable => "this node has no address of that kind",
        io::ErrorKind::UnexpectedEof => "closed by the other side",
        _ => return None,
    })
}

/// The error and its causes. `io::Error` skips the error it wraps in
/// `source()`, so that one is visited on its own.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
    // Deeper than any real one.
    .take(32)
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    chain(error).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_causes_are_short() {
        let nested = |kind: io::ErrorKind| {
            TransportError::Other(io::Error::other(io::Error::other(io::Error::new(kind, "Multiple dial errors"))))
        };
        assert_eq!(transport_cause(&nested(io::ErrorKind::ConnectionRefused)), "connection refused");
        assert_eq!(transport_cause(&nested(io::ErrorKind::TimedOut)), "timed out");
        let hidden = TransportError::Other(io::Error::other("all failed: Connection refused (os error 111)"));
        assert_eq!(transport_cause(&hidden), "connection refused");
        let plain = TransportError::Other(io::Error::other("Handshake with the remote timed out."));
        assert_eq!(transport_cause(&plain), "timed out");
        let long = TransportError::Other(io::Error::other("x".repeat(1000)));
        assert_eq!(transport_cause(&long).len(), MAX_CAUSE_CHARS);
    }
}
