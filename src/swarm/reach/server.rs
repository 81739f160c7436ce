//! Connects back to nodes that ask for it.
//!
//! Whoever asks names the addresses. Only public ones are tried, never a name,
//! an own address or one of the local network; another host than the one that
//! asks only after it sent more than a connection costs; and so often. A
//! question that is refused is answered as such: silence or a failure would be
//! taken for a verdict.

use std::{collections::HashMap, io, net::IpAddr, sync::Arc, time::Duration};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use libp2p::{Multiaddr, PeerId, Stream, multiaddr::Protocol, swarm::ConnectionId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{Report, place::Place};
use crate::{
    swarm::{
        link::bucket::Bucket,
        route::{is_special, route},
    },
    types::Route,
    wire::autonat::{
        Body, DataRequest, DialBack, DialBackResponse, DialResponse, DialStatus, Envelope, MAX_DIAL_DATA,
        MIN_DIAL_DATA, Status, read, write,
    },
};

/// Questions looked at at once: each is one dial.
pub(super) const MAX_SERVED: usize = 16;
/// Questions of one host at once, and then one in the interval: a node has a
/// handful of addresses, asks about them when its network changes, and a few
/// nodes may be behind one address.
const HOST_BURST: u32 = 24;
const HOST_INTERVAL: Duration = Duration::from_secs(5);
/// Questions of all hosts.
const ALL_BURST: u32 = 100;
const ALL_INTERVAL: Duration = Duration::from_millis(100);
/// Hosts whose questions are counted. Beyond, the one that asked longest ago is
/// forgotten; the limit on all holds.
const MAX_HOSTS: usize = 1024;
/// Addresses of a question that are looked at.
const MAX_LOOKED_AT: usize = 16;
/// Chunks in which data may come: others send a few KiB in each.
const MAX_CHUNKS: usize = 1000;
/// The question, once its stream is open.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The data, over a slow line.
const DATA_TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than a dial takes.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Handing the nonce over, and the answer.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection back stays: the client may have begun something on it.
pub(in crate::swarm) const LINGER: Duration = Duration::from_secs(5);

/// What is served now.
#[derive(Debug)]
pub(in crate::swarm) struct Serving {
    slots: Arc<Semaphore>,
    hosts: HashMap<IpAddr, (Bucket, Instant)>,
    all: Bucket,
    /// Connections back that are being made; at most [`MAX_SERVED`].
    dials: HashMap<ConnectionId, DialBackJob>,
}

/// Whoever asks.
#[derive(Debug, Clone)]
pub(in crate::swarm) struct Client {
    pub(in crate::swarm) peer: PeerId,
    /// Where it was seen.
    pub(in crate::swarm) ip: IpAddr,
    /// Of this host, which are not to be connected to.
    pub(in crate::swarm) own_ips: Vec<IpAddr>,
}

/// A connection back is to be made, and a stream opened on it.
#[derive(Debug)]
pub(in crate::swarm) struct DialBackJob {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) address: Multiaddr,
    pub(in crate::swarm) reply: Reply,
}

/// Takes the stream and its connection, or why there is none; `None`: nothing
/// that the client's address is to blame for.
pub(in crate::swarm) type Reply = oneshot::Sender<Result<(Stream, ConnectionId), Option<DialStatus>>>;

impl Serving {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(MAX_SERVED)),
            hosts: HashMap::new(),
            all: Bucket::new(ALL_BURST, ALL_INTERVAL, now.into_std()),
            dials: HashMap::new(),
        }
    }

    /// Lets a question of a host in, unless there are too many.
    pub(in crate::swarm) fn admit(&mut self, ip: IpAddr, now: Instant) -> Option<OwnedSemaphorePermit> {
        let key = origin(ip);
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(&key) {
            let oldest = self.hosts.iter().min_by_key(|(_, (_, last))| *last).map(|(ip, _)| *ip);
            oldest.and_then(|oldest| self.hosts.remove(&oldest));
        }
        let full = || (Bucket::new(HOST_BURST, HOST_INTERVAL, now.into_std()), now);
        let (host, last) = self.hosts.entry(key).or_insert_with(full);
        *last = now;
        let admitted = host.take(now.into_std()) && self.all.take(now.into_std());
        if admitted { self.slots.clone().try_acquire_owned().ok() } else { None }
    }

    /// A connection back is being made.
    pub(in crate::swarm) fn dialling(&mut self, id: ConnectionId, job: DialBackJob) {
        self.dials.insert(id, job);
    }

    /// It was made, or could not be; `None`: it was none of these.
    pub(in crate::swarm) fn dialled(&mut self, id: ConnectionId) -> Option<DialBackJob> {
        self.dials.remove(&id)
    }
}

/// A /64 of IPv6: who has one address of it has all.
pub(in crate::swarm) fn origin(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::from((ip.to_bits() >> 64 << 64).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Says that there is too much to do.
pub(in crate::swarm) async fn reject(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let answer = async {
        read::<Envelope>(&mut stream).await?;
        respond(&mut stream, response(Status::Rejected)).await
    };
    // The client may be gone.
    let _ = timeout(REQUEST_TIMEOUT, answer).await;
}

/// Reads a question, does what it asks for, and answers. Returns the connection
/// back, if there is one.
pub(in crate::swarm) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    client: Client,
    reports: &mpsc::Sender<Report>,
) -> Option<ConnectionId> {
    let (outcome, connection) = match look(&mut stream, &client).await {
        Ok(Ok((nonce, index, address))) => connect(&client, nonce, index, address, reports).await,
        Ok(Err(refusal)) => (response(refusal), None),
        Err(error) => {
            tracing::debug!(peer = %client.peer, %error, "no question about an address");
            return None;
        }
    };
    let answered = timeout(HANDOVER_TIMEOUT, respond(&mut stream, outcome)).await;
    tracing::debug!(peer = %client.peer, ?outcome, ?answered, "connected back for a peer, or tried");
    connection
}

/// The nonce and the address to connect to, once that is paid for where it has
/// to be.
async fn look(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    client: &Client,
) -> io::Result<Result<(u64, u32, Multiaddr), Status>> {
    let envelope = in_time(REQUEST_TIMEOUT, read::<Envelope>(stream)).await?;
    let Some(Body::Request(request)) = envelope.body else { return Ok(Err(Status::Rejected)) };
    let addresses = request.addresses.iter().take(MAX_LOOKED_AT);
    let parsed = addresses.map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok());
    let mut usable = parsed.zip(0..).filter_map(|(address, index)| Some((client.place(&address?)?, index)));
    let Some((place, index)) = usable.next() else { return Ok(Err(Status::Refused)) };
    if place.ip() != client.ip {
        in_time(DATA_TIMEOUT, collect(stream, index)).await?;
    }
    Ok(Ok((request.nonce, index, place.address())))
}

impl Client {
    /// Without it, a failure would be this node's own.
    fn has_global_v6(&self) -> bool {
        let v6 = self.own_ips.iter().filter(|ip| ip.is_ipv6());
        v6.into_iter().any(|ip| route(&Multiaddr::from(*ip)) == Route::Direct)
    }

    /// The address, if this node connects to such.
    fn place(&self, address: &Multiaddr) -> Option<Place> {
        let other_peer = address.iter().any(|part| matches!(part, Protocol::P2p(peer) if peer != self.peer));
        let place = Place::of(address).filter(|_| !other_peer)?;
        let public = route(&place.address()) == Route::Direct && !is_special(place.ip());
        let own = self.own_ips.contains(&place.ip());
        (public && !own && (!place.is_v6() || self.has_global_v6())).then_some(place)
    }
}

/// Has the client send more than a connection to somebody else costs.
async fn collect(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), address: u32) -> io::Result<()> {
    let bytes = rand::random_range(MIN_DIAL_DATA..=MAX_DIAL_DATA);
    write(stream, &Envelope::from(Body::DataRequest(DataRequest { address, bytes }))).await?;
    let mut left = bytes;
    for _ in 0..MAX_CHUNKS {
        let Some(Body::Data(chunk)) = read::<Envelope>(stream).await?.body else { break };
        left = left.saturating_sub(chunk.data.len() as u64);
        if left == 0 {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not the data asked for"))
}

/// Has the connection made, and hands the nonce over on it.
async fn connect(
    client: &Client,
    nonce: u64,
    index: u32,
    address: Multiaddr,
    reports: &mpsc::Sender<Report>,
) -> (DialResponse, Option<ConnectionId>) {
    let (reply, dialled) = oneshot::channel();
    let job = DialBackJob { peer: client.peer, address, reply };
    if reports.send(Report::DialBack(job)).await.is_err() {
        return (response(Status::InternalError), None);
    }
    let (dial, connection) = match timeout(DIAL_TIMEOUT, dialled).await {
        Ok(Ok(Ok((stream, connection)))) => {
            let handed = timeout(HANDOVER_TIMEOUT, hand_over(stream, nonce)).await;
            let dial = if matches!(handed, Ok(Ok(()))) { DialStatus::Ok } else { DialStatus::DialBackError };
            (dial, Some(connection))
        }
        Ok(Ok(Err(Some(status)))) => (status, None),
        Ok(Ok(Err(None)) | Err(_)) => return (response(Status::InternalError), None),
        Err(_) => (DialStatus::DialError, None),
    };
    (DialResponse { status: Status::Ok.into(), address: index, dial: dial.into() }, connection)
}

async fn hand_over(mut stream: Stream, nonce: u64) -> io::Result<()> {
    write(&mut stream, &DialBack { nonce }).await?;
    read::<DialBackResponse>(&mut stream).await?;
    stream.close().await
}

fn response(status: Status) -> DialResponse {
    DialResponse { status: status.into(), address: 0, dial: DialStatus::Unused.into() }
}

async fn respond(stream: &mut (impl AsyncWrite + Unpin), response: DialResponse) -> io::Result<()> {
    write(stream, &Envelope::from(Body::Response(response))).await?;
    stream.close().await
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
