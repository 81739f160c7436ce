//! Tells one server where this node can be reached.
//!
//! Kademlia's own way drops the stream as soon as it has sent the message, which
//! nobody answers. Protocols are agreed on while messages are on their way here:
//! the server then finds the stream stopped before it has read the message.

use std::{io, sync::Arc, time::Duration};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Multiaddr, PeerId};
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::key;

/// Servers told at once; the nearest and those of the settings are fewer.
pub(in crate::swarm) const MAX_ANNOUNCEMENTS: usize = 32;
/// A server that does not take it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// ADD_PROVIDER.
const ADD_PROVIDER: i32 = 2;
/// CONNECTED.
const CONNECTED: i32 = 1;

/// A message of Kademlia, as far as it is written here.
#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    providers: Vec<Provider>,
}

/// A peer within it.
#[derive(Clone, PartialEq, prost::Message)]
struct Provider {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    addresses: Vec<Vec<u8>>,
    #[prost(int32, tag = "3")]
    connection: i32,
}

/// The announcements that run.
#[derive(Debug)]
pub(in crate::swarm) struct Announcements {
    /// One for each.
    pub(in crate::swarm) slots: Arc<Semaphore>,
    pub(in crate::swarm) announced: mpsc::Sender<Announced>,
}

/// A server was told, or could not be.
#[derive(Debug)]
pub(in crate::swarm) struct Announced {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) result: io::Result<()>,
}

/// The message.
pub(in crate::swarm) fn message(local: &PeerId, addresses: &[Multiaddr]) -> Vec<u8> {
    let provider = Provider {
        id: local.to_bytes(),
        addresses: addresses.iter().map(Multiaddr::to_vec).collect(),
        connection: CONNECTED,
    };
    let message = Message { kind: ADD_PROVIDER, key: key(local).to_vec(), providers: vec![provider] };
    message.encode_length_delimited_to_vec()
}

/// Sends it, and waits until the server has read it all.
pub(in crate::swarm) async fn send(stream: impl AsyncRead + AsyncWrite + Unpin, message: &[u8]) -> io::Result<()> {
    timeout(TIMEOUT, write_and_wait(stream, message)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

async fn write_and_wait(mut stream: impl AsyncRead + AsyncWrite + Unpin, message: &[u8]) -> io::Result<()> {
    stream.write_all(message).await?;
    stream.close().await?;
    match stream.read(&mut [0; 1]).await {
        // However it ends the stream, it had the message before.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the specification has it: the length, then 08 02 (ADD_PROVIDER), 12
    /// (the key), 4a (a provider with 0a, its id, 12, an address, and 18 01).
    #[test]
    fn the_message_is_that_of_the_specification() {
        let local: PeerId = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp".parse().unwrap();
        let id = local.to_bytes();
        let address = [4, 1, 2, 3, 4, 6, 0, 80];
        let mut provider = [&[0x0a, id.len() as u8][..], &id, &[0x12, address.len() as u8], &address].concat();
        provider.extend([0x18, 0x01]);
        let mut expected = [&[0x08, 0x02, 0x12, id.len() as u8][..], &id, &[0x4a, provider.len() as u8]].concat();
        expected.extend(provider);
        expected.insert(0, expected.len() as u8);
        assert_eq!(message(&local, &["/ip4/1.2.3.4/tcp/80".parse().unwrap()]), expected);
    }
}
