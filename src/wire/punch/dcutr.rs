//! Messages of libp2p's own protocol, as its specification has them
//! (libp2p/specs, relay/DCUtR.md).

use std::{collections::HashSet, io};

use futures::{AsyncRead, AsyncWrite};
use libp2p::Multiaddr;

use super::{
    Candidate, CandidateKind, MAX_CANDIDATES,
    frame::{self, bad},
};

const CONNECT: i32 = 100;
const SYNC: i32 = 300;

/// A message of `/libp2p/dcutr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Where the sender may be reached.
    Connect(Vec<Candidate>),
    /// Dial now.
    Sync,
}

/// On the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct HolePunch {
    #[prost(int32, optional, tag = "1")]
    kind: Option<i32>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addresses: Vec<Vec<u8>>,
}

/// Reads a message. Addresses of other kinds than those of [`Candidate`], and
/// those beyond the first [`MAX_CANDIDATES`], are left out; the others count as
/// observed.
///
/// # Errors
/// The stream breaks, or what came is no such message.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Message> {
    let punch: HolePunch = frame::read(io).await?;
    match punch.kind {
        Some(CONNECT) => {
            let mut seen = HashSet::new();
            let addresses = punch.addresses.into_iter().take(MAX_CANDIDATES);
            let candidates = addresses.filter_map(|bytes| {
                let address = Multiaddr::try_from(bytes).ok()?;
                Candidate::of(&address, CandidateKind::Observed)
            });
            Ok(Message::Connect(candidates.filter(|candidate| seen.insert(*candidate)).collect()))
        }
        Some(SYNC) => Ok(Message::Sync),
        kind => Err(bad(format!("a message of kind {kind:?}, which is unknown here"))),
    }
}

/// Writes a message.
///
/// # Errors
/// The stream breaks.
pub async fn write(io: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    let punch = match message {
        Message::Connect(candidates) => HolePunch {
            kind: Some(CONNECT),
            addresses: candidates.iter().take(MAX_CANDIDATES).map(|known| known.address().to_vec()).collect(),
        },
        Message::Sync => HolePunch { kind: Some(SYNC), addresses: Vec::new() },
    };
    frame::write(io, &punch).await
}
