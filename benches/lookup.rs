//! How far a search goes: hops and messages to find one of many by its id.
//!
//! Server nodes in one process, over libp2p's memory transport, set up as the
//! daemon sets up its own. Their tables are those of nodes that have met every
//! server once: what of it fits into the buckets. Nodes that serve nobody, as
//! those behind a NAT, publish where they are and look for each other. Nothing
//! sleeps: a search has ended when its last event is there.
//!
//! `cargo bench --bench lookup`, or `cargo bench --bench lookup -- 25 50` for
//! other sizes.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    core::{
        transport::MemoryTransport,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo, Version},
    },
    identity::Keypair,
    kad::{self, GetProvidersOk, InboundRequest, QueryId, QueryResult, QueryStats, store::RecordStore as _},
    multiaddr::Protocol,
    swarm,
    swarm::SwarmEvent,
    yamux,
};
use p2p_node::{
    node::Overlay,
    swarm::find::{self, Origin, Store},
};
use rand::seq::SliceRandom as _;
use tokio::sync::{mpsc, oneshot};

/// Servers, unless others are named.
const SIZES: [usize; 4] = [25, 50, 100, 200];
/// Nodes that look for each other, besides the servers.
const CLIENTS: usize = 8;
/// Searches measured for each size: each client looks for some others.
const SEARCHES: usize = 40;
/// Longest that one search may take; it takes a fraction of that.
const LIMIT: Duration = Duration::from_secs(30);

type Node = Swarm<kad::Behaviour<Store>>;
type Job = Box<dyn FnOnce(&mut Node) + Send>;

/// All nodes, each in a task of its own.
struct Net {
    ids: Vec<PeerId>,
    jobs: Vec<mpsc::Sender<Job>>,
    progress: mpsc::Receiver<Progress>,
    /// Nodes in the order in which they were asked for providers.
    asked: Arc<Mutex<Vec<usize>>>,
}

/// Both sides say who they are. Encryption would take nearly all of the time
/// and change no number.
#[derive(Clone)]
struct Introduction(PeerId);

/// A query of a node went on.
struct Progress {
    id: QueryId,
    node: usize,
    found: BTreeSet<PeerId>,
    stats: QueryStats,
    last: bool,
}

#[tokio::main]
async fn main() {
    let named: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if named.is_empty() { SIZES.to_vec() } else { named };
    println!(
        "| servers | in a table, median | hops p50 / max | messages until found p50 / max | until the end p50 / max | to publish p50 / max | found |"
    );
    println!("|---|---|---|---|---|---|---|");
    for size in sizes {
        println!("{}", measure(size).await);
    }
}

/// One row of the table.
async fn measure(size: usize) -> String {
    let mut net = Net::new(size).await;
    let (mut hops, mut first, mut all, mut publish, mut found) = (vec![], vec![], vec![], vec![], 0);
    for client in 0..CLIENTS {
        publish.push(net.publish(size + client).await);
    }
    for search in 0..SEARCHES {
        let (from, step) = (search % CLIENTS, 1 + search / CLIENTS % (CLIENTS - 1));
        let (from, to) = (size + from, size + (from + step) % CLIENTS);
        let (hop, until_found, until_end) = net.search(from, to).await;
        found += usize::from(hop.is_some());
        hops.extend(hop);
        first.extend(until_found);
        all.push(until_end);
    }
    let mut tables = Vec::new();
    for node in 0..size {
        let count = |node: &mut Node| node.behaviour_mut().kbuckets().map(|bucket| bucket.num_entries()).sum();
        tables.push(net.ask(node, count).await);
    }
    let (table, _) = middle_and_end(tables);
    let shown: Vec<String> = [hops, first, all, publish]
        .into_iter()
        .map(|column| {
            let (median, most) = middle_and_end(column);
            format!("{median} / {most}")
        })
        .collect();
    format!("| {size} | {table} | {} | {found} of {SEARCHES} |", shown.join(" | "))
}

fn middle_and_end(mut all: Vec<usize>) -> (usize, usize) {
    all.sort_unstable();
    (all.get(all.len() / 2).copied().unwrap_or_default(), all.last().copied().unwrap_or_default())
}

impl Net {
    async fn new(size: usize) -> Self {
        let (sender, progress) = mpsc::channel(1024);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (mut ids, mut jobs, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..size + CLIENTS {
            let (mut node, address) = node(index < size).await;
            ids.push(*node.local_peer_id());
            node.add_external_address(address.clone());
            addresses.push(address);
            let (job, queue) = mpsc::channel(16);
            jobs.push(job);
            tokio::spawn(run(node, index, queue, sender.clone(), asked.clone()));
        }
        let net = Self { ids, jobs, progress, asked };
        for index in 0..size + CLIENTS {
            let mut others: Vec<_> = net.ids.iter().copied().zip(addresses.iter().cloned()).take(size).collect();
            others.shuffle(&mut rand::rng());
            net.ask(index, move |node| {
                for (peer, address) in others {
                    node.behaviour_mut().add_address(&peer, address);
                }
                end_bootstrap(node);
            })
            .await;
        }
        net
    }

    /// Has a node do something.
    async fn ask<T: Send + 'static>(&self, node: usize, job: impl FnOnce(&mut Node) -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |node| drop(reply.send(job(node))));
        self.jobs[node].send(job).await.ok();
        answer.await.unwrap()
    }

    /// A node tells those nearest to it where it is; the messages that took.
    async fn publish(&mut self, node: usize) -> usize {
        let key = find::key(&self.ids[node]);
        let query = {
            let key = key.clone();
            self.ask(node, move |node| node.behaviour_mut().start_providing(key).unwrap()).await
        };
        let stats = self.until_end(node, query, |_| {}).await;
        // It ended when all was sent, which has still to arrive.
        let until = Instant::now() + LIMIT;
        while self.holders(&key).await.is_empty() {
            assert!(Instant::now() < until, "nobody took what was published");
            tokio::task::yield_now().await;
        }
        stats.num_requests() as usize
    }

    /// One looks for another: hops and messages to the first answer that names
    /// it, and messages until the search ended.
    async fn search(&mut self, from: usize, to: usize) -> (Option<usize>, Option<usize>, usize) {
        let (own, target) = (self.ids[from], self.ids[to]);
        let key = find::key(&target);
        let known = self.closest(from, &key, own).await;
        self.asked.lock().unwrap().clear();
        let query = {
            let key = key.clone();
            self.ask(from, move |node| node.behaviour_mut().get_providers(key)).await
        };
        let asked = self.asked.clone();
        let mut first = None;
        let stats = self
            .until_end(from, query, |progress| {
                if first.is_none() && progress.found.contains(&target) {
                    first = Some((progress.stats.num_requests() as usize, asked.lock().unwrap().len()));
                }
            })
            .await;
        let Some((messages, answered)) = first else { return (None, None, stats.num_requests() as usize) };
        // How deep each one asked lies below those known at the beginning.
        let holders = self.holders(&key).await;
        let mut depth: BTreeMap<usize, usize> = BTreeMap::new();
        let asked: Vec<usize> = self.asked.lock().unwrap().iter().copied().take(answered).collect();
        for node in asked {
            let mut level = usize::from(known.contains(&self.ids[node]));
            if level == 0 {
                let mut tellers = Vec::new();
                for (teller, below) in &depth {
                    if self.closest(*teller, &key, own).await.contains(&self.ids[node]) {
                        tellers.push(*below);
                    }
                }
                level = 1 + tellers.into_iter().min().unwrap_or(1);
            }
            depth.insert(node, level);
        }
        let hops = depth.iter().filter(|(node, _)| holders.contains(node)).map(|(_, level)| *level).min();
        (hops, Some(messages), stats.num_requests() as usize)
    }

    /// Those that a node names to another when asked for this key; of its own
    /// table, those that it asks first.
    async fn closest(&self, node: usize, key: &kad::RecordKey, asker: PeerId) -> BTreeSet<PeerId> {
        let key = kad::KBucketKey::new(key.clone());
        self.ask(node, move |node| {
            node.behaviour_mut().find_closest_local_peers(&key, &asker).map(|peer| peer.node_id).collect()
        })
        .await
    }

    /// Nodes that keep a record for another.
    async fn holders(&self, key: &kad::RecordKey) -> BTreeSet<usize> {
        let mut holders = BTreeSet::new();
        for (index, own) in self.ids.iter().copied().enumerate() {
            let key = key.clone();
            let records = self.ask(index, move |node| node.behaviour_mut().store_mut().providers(&key)).await;
            if records.iter().any(|record| record.provider != own) {
                holders.insert(index);
            }
        }
        holders
    }

    /// Runs until a query of a node has ended.
    async fn until_end(&mut self, node: usize, query: QueryId, mut look: impl FnMut(&Progress)) -> QueryStats {
        loop {
            let progress = tokio::time::timeout(LIMIT, self.progress.recv()).await.unwrap().unwrap();
            if (progress.node, progress.id) == (node, query) {
                look(&progress);
                if progress.last {
                    return progress.stats;
                }
            }
        }
    }
}

impl UpgradeInfo for Introduction {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/introduction/1")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<S> for Introduction {
    type Output = (PeerId, S);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<(PeerId, S)>>;

    fn upgrade_inbound(self, mut stream: S, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            let own = self.0.to_bytes();
            let mut other = vec![0; own.len()];
            stream.write_all(&own).await?;
            stream.flush().await?;
            stream.read_exact(&mut other).await?;
            let peer = PeerId::from_bytes(&other).map_err(io::Error::other)?;
            Ok((peer, stream))
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<S> for Introduction {
    type Output = (PeerId, S);
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<(PeerId, S)>>;

    fn upgrade_outbound(self, stream: S, info: Self::Info) -> Self::Future {
        self.upgrade_inbound(stream, info)
    }
}

/// A node that listens.
async fn node(server: bool) -> (Node, Multiaddr) {
    let id = Keypair::generate_ed25519().public().to_peer_id();
    let transport = MemoryTransport::new()
        .upgrade(Version::V1)
        .authenticate(Introduction(id))
        .multiplex(yamux::Config::default())
        .boxed();
    let mut behaviour = kad::Behaviour::with_config(id, Store::new(id), find::config(Overlay::Private));
    behaviour.set_mode(Some(if server { kad::Mode::Server } else { kad::Mode::Client }));
    // No connection ends while it is measured.
    let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(10 * LIMIT);
    let mut node = Swarm::new(transport, behaviour, id, config);
    node.listen_on(Protocol::Memory(0).into()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = node.select_next_some().await {
            return (node, address);
        }
    }
}

/// Kademlia looks for servers by itself when it knows few. Here it has met all
/// of them already.
fn end_bootstrap(node: &mut Node) {
    if let Ok(id) = node.behaviour_mut().bootstrap()
        && let Some(mut query) = node.behaviour_mut().query_mut(&id)
    {
        query.finish();
    }
}

async fn run(
    mut node: Node,
    index: usize,
    mut jobs: mpsc::Receiver<Job>,
    progress: mpsc::Sender<Progress>,
    asked: Arc<Mutex<Vec<usize>>>,
) {
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => job(&mut node),
                None => return,
            },
            event = node.select_next_some() => match event {
                // As the daemon does.
                SwarmEvent::Behaviour(kad::Event::InboundRequest {
                    request: InboundRequest::AddProvider { record: Some(record) },
                }) => {
                    node.behaviour_mut().store_mut().keep(record, Origin::Other, Instant::now());
                }
                SwarmEvent::Behaviour(kad::Event::InboundRequest { request: InboundRequest::GetProvider { .. } }) => {
                    asked.lock().unwrap().push(index);
                }
                SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed {
                    id,
                    result: QueryResult::Bootstrap(_),
                    ..
                }) => {
                    if let Some(mut query) = node.behaviour_mut().query_mut(&id) {
                        query.finish();
                    }
                }
                SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, stats, step }) => {
                    let found = match result {
                        QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                            providers.into_iter().collect()
                        }
                        _ => BTreeSet::new(),
                    };
                    drop(progress.send(Progress { id, node: index, found, stats, last: step.last }).await);
                }
                _ => {}
            },
        }
    }
}
