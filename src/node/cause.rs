//! Why something on the network did not work, for programs to decide by and,
//! shown as text, for a person.

use libp2p::PeerId;

/// Why an address did not lead to a peer.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DialCause {
    /// The host answers, and nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The other side ended it, or something on the way.
    #[error("connection reset by the other side")]
    Reset,
    /// The other side ended it in good order.
    #[error("closed by the other side")]
    Closed,
    /// Nothing answered.
    #[error("timed out")]
    TimedOut,
    /// The host, or the last router before it, is not there.
    #[error("no route to host")]
    NoRoute,
    /// No way leads there from this host.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// This host has no address to connect from, of IPv6 for instance.
    #[error("this node has no address of that kind")]
    NoOwnAddress,
    /// The DNS knows no such name.
    #[error("name not found")]
    NameNotFound,
    /// Another node lives there.
    #[error("wrong peer id: expected {expected}, got {obtained}")]
    WrongPeer {
        /// Who was looked for.
        expected: PeerId,
        /// Who answered.
        obtained: PeerId,
    },
    /// It is an address of this node.
    #[error("this node itself answered")]
    Myself,
    /// The relay answered, and the peer is not connected to it.
    #[error("the peer has no reservation at the relay")]
    NotAtRelay,
    /// Others say that the peer is there, which is believed of trusted peers
    /// only.
    #[error("not dialled: only trusted peers are where others say if that is on a local network, or a name")]
    NotBelieved,
    /// No transport of this node takes it.
    #[error("this kind of address is not supported")]
    Unsupported,
    /// The dial ended before it was known.
    #[error("given up")]
    GivenUp,
    /// The dial was not begun.
    #[error("not tried")]
    NotTried,
    /// Something else, in the words of whoever noticed; at most 200 characters
    /// where a library did.
    #[error("{0}")]
    Other(String),
}

/// What is wrong with a relay.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RelayTrouble {
    /// No address of it worked; at most 200 characters.
    #[error("{0}")]
    NotReached(String),
    /// It is connected and does not answer.
    #[error("no answer")]
    NoAnswer,
    /// It was connected.
    #[error("the connection broke")]
    Broke,
    /// It serves others.
    #[error("it refused the reservation")]
    Refused,
    /// It has no room.
    #[error("a limit of it is reached")]
    Full,
    /// The reservation ended by something else; at most 200 characters.
    #[error("{0}")]
    Ended(String),
}
