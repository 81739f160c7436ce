//! ListPeers, Connect, Disconnect, Ping, AddPeer, RemovePeer, Block.

use std::collections::{BTreeMap, HashSet};

use libp2p::PeerId;
use tonic::{Request, Status};

use super::{
    Api,
    convert::{self, address, alias, with_peer},
    errors::{self, bad_field, bad_page_size, bad_page_token},
    time_left,
    view::relay_id,
};
use crate::{
    node::{DIAL_DEADLINE, DialTarget, PeerView},
    proto,
    store::{BookChange, BookPeer, Fill, Trust},
};

/// Peers of one page: with all their addresses they fit into a gRPC frame.
const MAX_PAGE: u32 = 500;
/// Addresses of one AddPeer.
const MAX_ADDRESSES: usize = 16;

/// What is known of a peer, from all sides.
#[derive(Default)]
pub(super) struct Known {
    pub(super) book: Option<BookPeer>,
    view: Option<PeerView>,
    queued: Fill,
}

impl Api {
    pub(super) async fn peers(&self, request: proto::ListPeersRequest) -> Result<proto::ListPeersResponse, Status> {
        let known = self.known(None).await?;
        let mut peers: Vec<proto::Peer> = known.iter().map(|(id, known)| self.row(*id, known)).collect();
        peers.retain(|peer| peer.online || !request.online);
        // Those with a name first, then the book, then strangers.
        peers.sort_by_key(|peer| (peer.alias.is_empty(), peer.alias.clone(), !peer.in_book, peer.peer_id.clone()));
        let (size, start) = page(&request)?;
        let next = (peers.len() > start.saturating_add(size)).then(|| (start + size).to_string());
        let peers = peers.into_iter().skip(start).take(size).collect();
        Ok(proto::ListPeersResponse { peers, next_page_token: next.unwrap_or_default() })
    }

    /// What is known of all peers, or of some; those of whom nothing is known
    /// are left out.
    pub(super) async fn known(&self, only: Option<&[PeerId]>) -> Result<BTreeMap<PeerId, Known>, Status> {
        let wanted = only.map(|only| only.iter().collect::<HashSet<_>>());
        let asked = |peer: &PeerId| wanted.as_ref().is_none_or(|wanted| wanted.contains(peer));
        let mut known: BTreeMap<PeerId, Known> = BTreeMap::new();
        let (book, waiting) = match only {
            Some(only) => {
                (self.delivery.book_peers(only.to_vec()).await?, self.delivery.waiting_for(only.to_vec()).await?)
            }
            None => (self.delivery.book().await?, self.delivery.waiting().await?),
        };
        for peer in book {
            let id = peer.peer;
            known.entry(id).or_default().book = Some(peer);
        }
        for view in self.views(only).await? {
            let id = view.peer;
            known.entry(id).or_default().view = Some(view);
        }
        for (peer, queued) in waiting {
            // A peer that is in no list still has messages waiting.
            if known.contains_key(&peer) || queued.messages > 0 {
                known.entry(peer).or_default().queued = queued;
            }
        }
        // One that was connected a moment ago.
        for peer in self.delivery.online_peers().into_iter().filter(asked) {
            known.entry(peer).or_default();
        }
        known.remove(&self.delivery.node().local_peer_id());
        Ok(known)
    }

    async fn views(&self, only: Option<&[PeerId]>) -> Result<Vec<PeerView>, Status> {
        let node = self.delivery.node();
        let Some(only) = only else { return Ok(node.view().await?.peers) };
        Ok(node.view_peers(only.to_vec()).await?)
    }

    pub(super) fn row(&self, id: PeerId, known: &Known) -> proto::Peer {
        let status = self.delivery.peer_status(&id);
        let (book, view) = (known.book.as_ref(), known.view.as_ref());
        let best = view.and_then(|view| view.best.as_ref());
        let counters = self.delivery.counters(&id);
        let waiting = known.queued.messages > 0;
        let reason =
            if waiting { convert::reason(self.delivery.why_waiting(&id, None)).0 } else { proto::Reason::Unspecified };
        proto::Peer {
            peer_id: id.to_string(),
            alias: book.and_then(|book| book.alias.clone()).unwrap_or_default(),
            trust: convert::trust(book.map(|book| book.trust)).into(),
            pinned: book.is_some_and(|book| book.pinned),
            in_book: book.is_some(),
            online: status.online || best.is_some(),
            route: convert::route(best.map(|(route, _)| *route).or(status.route)).into(),
            rtt_ms: view.and_then(|view| view.rtt).map_or(0.0, |rtt| rtt.as_secs_f64() * 1000.0),
            last_seen: book.map_or(0, |book| book.last_seen),
            addresses: addresses(id, book, view),
            on_lan: view.is_some_and(|view| !view.lan.is_empty()),
            agent: view.map_or_else(String::new, |view| view.agent.clone()),
            connections: view.map_or(0, |view| view.connections),
            queued: known.queued.messages,
            queued_bytes: known.queued.bytes,
            sent: counters.sent,
            received: counters.received,
            reason: reason.into(),
            name: status.presence.name,
            roles: status.presence.roles,
            presence: status.presence.text,
            online_since: status.since,
            relay_id: best.map_or_else(String::new, |(route, address)| relay_id(*route, address)),
        }
    }

    async fn peer_row(&self, id: PeerId) -> Result<proto::Peer, Status> {
        let known = self.known(Some(&[id])).await?;
        Ok(self.row(id, known.get(&id).unwrap_or(&Known::default())))
    }

    pub(super) async fn connect_to(
        &self,
        request: Request<proto::ConnectRequest>,
    ) -> Result<proto::ConnectResponse, Status> {
        self.check_open()?;
        let left = time_left(&request, DIAL_DEADLINE);
        let target = match request.into_inner().target {
            Some(proto::connect_request::Target::Peer(name)) => DialTarget::Peer(self.peer(&name).await?),
            Some(proto::connect_request::Target::Address(text)) => match address("address", &text)? {
                (address, Some(peer)) => {
                    convert::leads("address", &address, peer, self.delivery.node().local_peer_id())?;
                    DialTarget::Address(peer, address)
                }
                (_, None) => {
                    let text =
                        format!("address {} does not end in /p2p/PEER_ID; append the peer's id", convert::shown(&text));
                    return Err(bad_field("address", text));
                }
            },
            None => return Err(bad_field("target", "target is missing; give peer or address".to_owned())),
        };
        let connected = self.delivery.node().connect(target, left).await?;
        Ok(proto::ConnectResponse {
            peer_id: connected.peer.to_string(),
            route: convert::route(Some(connected.route)).into(),
            address: with_peer(&connected.address, connected.peer),
            already_connected: connected.already,
        })
    }

    pub(super) async fn disconnect_from(
        &self,
        request: proto::DisconnectRequest,
    ) -> Result<proto::DisconnectResponse, Status> {
        let peer = self.peer(&request.peer).await?;
        let connections = self.delivery.node().disconnect(peer).await?;
        Ok(proto::DisconnectResponse { connections })
    }

    pub(super) async fn ping_peer(&self, request: Request<proto::PingRequest>) -> Result<proto::PingResponse, Status> {
        self.check_open()?;
        let left = time_left(&request, DIAL_DEADLINE);
        let peer = self.peer(&request.get_ref().peer).await?;
        let pong = self.delivery.node().ping(peer, left).await?;
        Ok(proto::PingResponse {
            peer_id: peer.to_string(),
            rtt_ms: pong.rtt.as_secs_f64() * 1000.0,
            route: convert::route(Some(pong.connected.route)).into(),
            address: with_peer(&pong.connected.address, peer),
        })
    }

    pub(super) async fn add(&self, request: proto::AddPeerRequest) -> Result<proto::AddPeerResponse, Status> {
        self.check_open()?;
        let peer = self.peer(&request.peer).await?;
        if peer == self.delivery.node().local_peer_id() {
            let text = format!("peer {peer} is this node itself; messages to it work without an entry");
            return Err(bad_field("peer", text));
        }
        let trust = match proto::Trust::try_from(request.trust) {
            Ok(proto::Trust::Unspecified | proto::Trust::Trusted) => Trust::Trusted,
            Ok(proto::Trust::Known) => Trust::Known,
            Ok(proto::Trust::Blocked) | Err(_) => {
                let text =
                    format!("trust is {}; use TRUST_TRUSTED (2) or TRUST_KNOWN (1), or call Block", request.trust);
                return Err(bad_field("trust", text));
            }
        };
        if request.addresses.len() > MAX_ADDRESSES {
            let text = format!(
                "addresses has {} entries; the limit is {MAX_ADDRESSES}: give those that work best",
                request.addresses.len()
            );
            return Err(bad_field("addresses", text));
        }
        let mut addresses = Vec::new();
        for text in &request.addresses {
            match address("addresses", text)? {
                (_, Some(other)) if other != peer => {
                    let text = format!(
                        "addresses {} is of peer {other}, not of {peer}; leave it out, or add it to that peer",
                        convert::shown(text)
                    );
                    return Err(bad_field("addresses", text));
                }
                (address, _) => {
                    convert::leads("addresses", &address, peer, self.delivery.node().local_peer_id())?;
                    addresses.push(address);
                }
            }
        }
        let name = alias(&request.alias)?;
        let change = BookChange { peer, alias: name, trust, pinned: request.pinned, addresses };
        match self.delivery.put_peer(change).await? {
            Ok(entry) => {
                tracing::info!(%peer, alias = entry.peer.alias, trusted = trust == Trust::Trusted, "peer put into the address book");
                if trust == Trust::Trusted {
                    self.delivery.connect_soon(peer);
                }
                Ok(proto::AddPeerResponse { peer: Some(self.peer_row(peer).await?), created: entry.created })
            }
            Err(obstacle) => Err(errors::book(&obstacle, &request.alias)),
        }
    }

    pub(super) async fn remove(&self, request: proto::RemovePeerRequest) -> Result<proto::RemovePeerResponse, Status> {
        let peer = self.peer(&request.peer).await?;
        let queued = self.peer_row(peer).await?.queued;
        if !self.delivery.remove_peer(peer).await? {
            return Err(errors::not_in_book(peer));
        }
        tracing::info!(%peer, queued, "peer taken out of the address book");
        Ok(proto::RemovePeerResponse { peer_id: peer.to_string(), queued })
    }

    pub(super) async fn block_peer(&self, request: proto::BlockRequest) -> Result<proto::BlockResponse, Status> {
        let peer = self.peer(&request.peer).await?;
        if peer == self.delivery.node().local_peer_id() {
            return Err(bad_field("peer", format!("peer {peer} is this node itself; name another")));
        }
        let change =
            BookChange { peer, alias: None, trust: Trust::Blocked, pinned: Some(false), addresses: Vec::new() };
        self.delivery.put_peer(change).await?.map_err(|obstacle| errors::book(&obstacle, ""))?;
        tracing::info!(%peer, "peer blocked");
        Ok(proto::BlockResponse { peer_id: peer.to_string() })
    }
}

/// Size and start of a page of peers.
fn page(request: &proto::ListPeersRequest) -> Result<(usize, usize), Status> {
    let size = match request.page_size {
        0 => MAX_PAGE,
        size if size <= MAX_PAGE => size,
        size => return Err(bad_page_size(size, MAX_PAGE)),
    };
    let start = match request.page_token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| bad_page_token(token, "ListPeers"))?,
    };
    Ok((size as usize, start))
}

/// Each address once: the book's, those of the local network, the rest.
fn addresses(id: PeerId, book: Option<&BookPeer>, view: Option<&PeerView>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let book = book.iter().flat_map(|book| &book.addresses).collect::<Vec<_>>();
    let seen = view.iter().flat_map(|view| view.lan.iter().chain(&view.addresses)).collect::<Vec<_>>();
    for address in book.into_iter().chain(seen) {
        let text = with_peer(address, id);
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}
