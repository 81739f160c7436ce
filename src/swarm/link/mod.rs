//! Links: long-lived substreams cut into frames, one per direction and peer.
//!
//! [`steer`] decides on which connection the outbound link runs, [`behaviour`]
//! and [`handler`] open and accept the substreams, [`io`] moves the frames.

pub(super) mod behaviour;
pub(super) mod bucket;
mod handler;
pub(super) mod io;
mod reader;
pub(super) mod steer;
mod writer;

use libp2p::StreamProtocol;

use super::{circuit, punch, reach};

/// The protocol of links.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/p2p-node/link/1");
/// All protocols of which streams are accepted here.
pub(super) static ACCEPTED: [StreamProtocol; 4] = [PROTOCOL, reach::DIAL_BACK, punch::PROTOCOL, punch::STOCK];
/// Those of which streams are accepted only while this node serves others.
pub(super) static SERVED: [StreamProtocol; 2] = [reach::DIAL_REQUEST, circuit::HOP];
