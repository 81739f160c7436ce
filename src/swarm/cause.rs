//! What went wrong with a dial or a relay, from the errors of libp2p.

use std::{error::Error, io};

use libp2p::{
    Multiaddr, PeerId, TransportError, allow_block_list, noise,
    relay::outbound::hop::{ConnectError, ReserveError},
    swarm::{ConnectionDenied, DialError},
};

use super::{limits, route::without_peer};
use crate::{
    node::{DialAttempt, DialCause, NodeError, RelayTrouble},
    wire::circuit::CircuitError,
};

/// Most characters of a cause; some libraries nest theirs without end.
const MAX_CAUSE_CHARS: usize = 200;

/// The error of a dial that tried these addresses.
pub(super) fn dial_failure(peer: PeerId, tried: &[Multiaddr], error: &DialError) -> NodeError {
    let unreachable = |attempts| NodeError::Unreachable { peer, attempts };
    let at = |address: &Multiaddr, cause: DialCause| DialAttempt { address: Some(without_peer(address)), cause };
    match error {
        DialError::LocalPeerId { address } => unreachable(vec![at(address, DialCause::Myself)]),
        DialError::NoAddresses => NodeError::NoAddress(peer),
        DialError::WrongPeerId { obtained, address } => {
            unreachable(vec![at(address, DialCause::WrongPeer { expected: peer, obtained: *obtained })])
        }
        DialError::Denied { cause } => denied(peer, cause),
        DialError::Transport(errors) => {
            unreachable(errors.iter().map(|(address, error)| at(address, transport_cause(error))).collect())
        }
        DialError::Aborted => unreachable(all(tried, &DialCause::GivenUp)),
        DialError::DialPeerConditionFalse(_) => unreachable(all(tried, &DialCause::NotTried)),
    }
}

/// The error of a dial that took too long.
pub(super) fn dial_timeout(peer: PeerId, tried: &[Multiaddr]) -> NodeError {
    NodeError::Unreachable { peer, attempts: all(tried, &DialCause::TimedOut) }
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

/// Why a relay is not connected.
pub(super) fn not_reached(failure: &NodeError) -> RelayTrouble {
    RelayTrouble::NotReached(shown(&failure.to_string()))
}

/// Why the reservation at a relay ended.
pub(super) fn reservation_ended(error: &io::Error) -> RelayTrouble {
    match find::<ReserveError>(error) {
        Some(ReserveError::Refused) => RelayTrouble::Refused,
        Some(ReserveError::ResourceLimitExceeded) => RelayTrouble::Full,
        _ => RelayTrouble::Ended(shown(&innermost(error).to_string())),
    }
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
    let cause = DialCause::Other(shown(&innermost(cause).to_string()));
    NodeError::Unreachable { peer, attempts: vec![DialAttempt { address: None, cause }] }
}

fn all(tried: &[Multiaddr], cause: &DialCause) -> Vec<DialAttempt> {
    tried.iter().map(|address| DialAttempt { address: Some(address.clone()), cause: cause.clone() }).collect()
}

/// Why one address failed.
pub(super) fn transport_cause(error: &TransportError<io::Error>) -> DialCause {
    let TransportError::Other(error) = error else { return DialCause::Unsupported };
    if is_not_at_relay(error) {
        return DialCause::NotAtRelay;
    }
    if let Some(known) = chain(error).find_map(|error| known_cause(error.downcast_ref::<io::Error>()?.kind())) {
        return known;
    }
    let text = innermost(error).to_string();
    if let Some(known) = os_number(&text).and_then(|number| known_cause(io::Error::from_raw_os_error(number).kind())) {
        return known;
    }
    // These have no types of their own.
    let says = |part| text.contains(part);
    match () {
        () if says("timed out") || says("Timeout") => DialCause::TimedOut,
        () if says("no record") => DialCause::NameNotFound,
        () => DialCause::Other(shown(&text)),
    }
}

/// Whether the relay said that it does not have the peer.
fn is_not_at_relay(error: &io::Error) -> bool {
    matches!(find(error), Some(CircuitError::NoReservation)) || matches!(find(error), Some(ConnectError::NoReservation))
}

fn known_cause(kind: io::ErrorKind) -> Option<DialCause> {
    Some(match kind {
        io::ErrorKind::ConnectionRefused => DialCause::Refused,
        io::ErrorKind::ConnectionReset => DialCause::Reset,
        io::ErrorKind::TimedOut => DialCause::TimedOut,
        io::ErrorKind::HostUnreachable => DialCause::NoRoute,
        io::ErrorKind::NetworkUnreachable => DialCause::NetworkUnreachable,
        io::ErrorKind::AddrNotAvailable => DialCause::NoOwnAddress,
        io::ErrorKind::UnexpectedEof => DialCause::Closed,
        _ => return None,
    })
}

/// The words of a library, in a line of bounded length.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_CAUSE_CHARS).collect()
}

/// The first of this kind among an error and its causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref().or_else(|| within_noise(error)?.downcast_ref()))
}

/// What ended a handshake: it is not among the causes.
fn within_noise<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + Send + Sync + 'static)> {
    match error.downcast_ref()? {
        noise::Error::Io(error) => error.get_ref(),
        _ => None,
    }
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

    fn cause(error: io::Error) -> DialCause {
        transport_cause(&TransportError::Other(error))
    }

    #[test]
    fn nested_causes_are_found() {
        let nested = |kind| io::Error::other(io::Error::other(io::Error::new(kind, "Multiple dial errors")));
        assert_eq!(cause(nested(io::ErrorKind::ConnectionRefused)), DialCause::Refused);
        assert_eq!(cause(nested(io::ErrorKind::TimedOut)), DialCause::TimedOut);
        assert_eq!(cause(io::Error::other("all failed: Connection refused (os error 111)")), DialCause::Refused);
        assert_eq!(cause(io::Error::other("Handshake with the remote timed out.")), DialCause::TimedOut);
    }

    #[test]
    fn words_of_others_are_short() {
        let DialCause::Other(text) = cause(io::Error::other("\u{1b}x\n".repeat(1000))) else { panic!("known") };
        assert_eq!(text, "x".repeat(MAX_CAUSE_CHARS));
    }

    #[test]
    fn what_relays_say_is_known() {
        use libp2p::relay::client::transport::Error as Relay;
        // It is read where the answer to the handshake is awaited.
        let own = io::Error::other(noise::Error::Io(io::Error::other(CircuitError::NoReservation)));
        let stock = io::Error::other(Relay::Connect(ConnectError::NoReservation));
        for error in [own, io::Error::other(stock)] {
            assert_eq!(cause(error), DialCause::NotAtRelay);
        }
        let reserve = |error| reservation_ended(&io::Error::other(Relay::Reservation(error)));
        assert_eq!(reserve(ReserveError::Refused), RelayTrouble::Refused);
        assert_eq!(reserve(ReserveError::ResourceLimitExceeded), RelayTrouble::Full);
        assert_eq!(reserve(ReserveError::Unsupported).to_string(), ReserveError::Unsupported.to_string());
    }
}
