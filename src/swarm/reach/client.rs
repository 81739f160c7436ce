//! Asks a server to connect back to this node, and takes the nonce that comes
//! over the new connection.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use libp2p::Multiaddr;
use tokio::time::timeout;

use super::verdicts::Answer;
use crate::wire::autonat::{
    Body, Data, DialBack, DialBackResponse, DialRequest, DialResponse, DialStatus, Envelope, MAX_DATA_CHUNK,
    MAX_DIAL_DATA, Status, read, write,
};

/// From the question to the answer: data that the server may want first, over
/// a slow line, and the longest dial.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(40);
/// The nonce, once its stream is open.
const NONCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions of a server before it answers: how much data it wants.
const MAX_TURNS: usize = 2;

/// Nonces of questions under way, and whether they came back. As many as there
/// are questions.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm) struct Nonces(Arc<Mutex<HashMap<u64, bool>>>);

/// A nonce that is waited for.
#[derive(Debug)]
struct Nonce {
    value: u64,
    all: Nonces,
}

impl Nonces {
    fn draw(&self) -> Nonce {
        let value = rand::random();
        self.with(|all| all.insert(value, false));
        Nonce { value, all: self.clone() }
    }

    /// Whether any is waited for.
    pub(in crate::swarm) fn any(&self) -> bool {
        self.with(|all| !all.is_empty())
    }

    fn came_back(&self, nonce: u64) -> bool {
        self.with(|all| all.get_mut(&nonce).map(|heard| *heard = true)).is_some()
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<u64, bool>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Nonce {
    fn heard(&self) -> bool {
        self.all.with(|all| all.get(&self.value).copied().unwrap_or_default())
    }
}

impl Drop for Nonce {
    fn drop(&mut self) {
        self.all.with(|all| all.remove(&self.value));
    }
}

/// Asks about one address. A nonce that came back is proof, whatever the server
/// says; what it says of success is none.
pub(in crate::swarm) async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &Multiaddr,
    nonces: &Nonces,
) -> Answer {
    let nonce = nonces.draw();
    let said = timeout(QUESTION_TIMEOUT, question(stream, address, nonce.value)).await;
    let said = said.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match said {
        _ if nonce.heard() => Answer::Reachable,
        Ok(response) if response.status() == Status::Ok && response.dial() == DialStatus::DialError => {
            Answer::Unreachable
        }
        Ok(response) => {
            tracing::debug!(%address, ?response, "a server did not connect back");
            Answer::NoVerdict
        }
        Err(error) => {
            tracing::debug!(%address, %error, "a server said nothing of an address");
            Answer::NoVerdict
        }
    }
}

async fn question(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &Multiaddr,
    nonce: u64,
) -> io::Result<DialResponse> {
    let addresses = vec![Bytes::from(address.to_vec())];
    write(&mut stream, &Envelope::from(Body::Request(DialRequest { addresses, nonce }))).await?;
    for _ in 0..MAX_TURNS {
        match read::<Envelope>(&mut stream).await?.body {
            Some(Body::Response(response)) => {
                // The answer stands, however the stream ends.
                let _ = stream.close().await;
                return Ok(response);
            }
            Some(Body::DataRequest(wanted)) if wanted.bytes <= MAX_DIAL_DATA => pay(&mut stream, wanted.bytes).await?,
            _ => break,
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not an answer, or too much asked for"))
}

/// Sends what a server wants before it connects to another host than the one
/// that it sees.
async fn pay(stream: &mut (impl AsyncWrite + Unpin), mut bytes: u64) -> io::Result<()> {
    let chunk = Bytes::from_static(&[0; MAX_DATA_CHUNK]);
    while bytes > 0 {
        let length = bytes.min(MAX_DATA_CHUNK as u64);
        let data = chunk.slice(..length as usize);
        write(stream, &Envelope::from(Body::Data(Data { data }))).await?;
        bytes -= length;
    }
    Ok(())
}

/// Takes a nonce that a server brings. One that nobody waits for has no answer.
pub(in crate::swarm) async fn take_nonce(stream: impl AsyncRead + AsyncWrite + Unpin, nonces: Nonces) {
    let taken = timeout(NONCE_TIMEOUT, read_nonce(stream, &nonces)).await;
    if !matches!(taken, Ok(Ok(()))) {
        tracing::debug!(?taken, "a connection back brought no nonce");
    }
}

async fn read_nonce(mut stream: impl AsyncRead + AsyncWrite + Unpin, nonces: &Nonces) -> io::Result<()> {
    let DialBack { nonce } = read(&mut stream).await?;
    if !nonces.came_back(nonce) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "nobody waits for this nonce"));
    }
    write(&mut stream, &DialBackResponse { status: 0 }).await?;
    stream.close().await
}
