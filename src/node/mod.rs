//! The network as the rest of the daemon sees it: a cheap handle with commands
//! in and events out. The task behind it lives in [`crate::swarm`].

mod cause;
mod command;
mod error;
mod event;
mod handle;
mod reach;

pub use cause::{DialCause, RelayTrouble};
pub use command::{Command, DialTarget, PeerPolicy, Standing};
pub use error::{DialAttempt, NodeError};
pub use event::{ConnectionInfo, Direction, JoinAttempt, Link, LinkId, NodeEvent, Received};
pub use handle::{
    Connected, ConnectionCounts, DIAL_DEADLINE, Found, JOIN_DEADLINE, Joined, NetworkView, Node, PeerView, Pong,
    Reachable,
};
pub use reach::{
    AddressSource, AddressView, ConnectionView, FindView, KnownAddressView, KnownSource, NatClass, NatView, Overlay,
    PathView, PeerAddresses, PunchView, ReachView, RelayState, RelayView, Serve, ServingView, Verdict, relay_of,
};
