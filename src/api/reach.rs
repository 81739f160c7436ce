//! NetCheck, ExplainPath, FindPeer.

use libp2p::{Multiaddr, PeerId};
use tonic::{Request, Status};

use super::{
    Api,
    advice::{self, Own},
    convert, time_left,
    view::{self, float_millis, millis, relay_id},
};
use crate::{
    delivery::Outcome,
    node::{DIAL_DEADLINE, NodeError, ReachView},
    proto,
    store::Trust,
};

/// What the words about this node are made from, at one moment.
pub(super) struct Look {
    local: PeerId,
    pub(super) reach: ReachView,
    listen: Vec<Multiaddr>,
    has_servers: bool,
}

impl Look {
    pub(super) fn own(&self) -> Own<'_> {
        let Self { local, reach, listen, has_servers } = self;
        Own { local: *local, reach, listen, has_servers: *has_servers }
    }
}

impl Api {
    /// How this node is reached; `listen` are the addresses it is bound to.
    pub(super) async fn look(&self, listen: Vec<Multiaddr>) -> Result<Look, Status> {
        let (node, settings) = (self.delivery.node(), &self.facts.settings);
        let has_servers = !settings.relay.is_empty() || !settings.bootstrap.is_empty();
        Ok(Look { local: node.local_peer_id(), reach: node.reach().await?, listen, has_servers })
    }

    async fn look_around(&self) -> Result<Look, Status> {
        let listen = self.delivery.node().view().await?.listen;
        self.look(listen).await
    }

    pub(super) async fn check_net(&self) -> Result<proto::NetCheckResponse, Status> {
        let look = self.look_around().await?;
        let (verdict, advice) = (advice::verdict(&look.own()), advice::node(&look.own()));
        let summary = advice::summary_v6(&look.own());
        let Look { local, reach, .. } = look;
        Ok(proto::NetCheckResponse {
            verdict,
            advice: advice.into_iter().map(view::advice).collect(),
            nat_v4: Some(view::nat(&reach.nat_v4)),
            nat_v6: Some(proto::Nat { summary, ..view::nat(&reach.nat_v6) }),
            addresses: reach.addresses.into_iter().map(|address| view::own_address(address, local)).collect(),
            mappings: Some(reach.mappings.as_ref().map(view::mappings).unwrap_or_default()),
            relays: reach.relays.into_iter().map(view::relay).collect(),
            serving: Some(view::serving(&reach.serving)),
        })
    }

    pub(super) async fn explain(
        &self,
        request: proto::ExplainPathRequest,
    ) -> Result<proto::ExplainPathResponse, Status> {
        let id = self.other_peer(&request.peer).await?;
        let look = self.look_around().await?;
        let path = self.delivery.node().path(id).await?;
        let trust = self.delivery.trust(&id);
        let (verdict, advice) = advice::peer(
            &advice::Peer {
                id,
                path: path.as_ref(),
                blocked: trust == Some(Trust::Blocked),
                trusted: self.delivery.is_trusted(&id),
                refuses: self.delivery.why_waiting(&id, None) == Outcome::Untrusted,
            },
            &look.own(),
        );
        let mut answer = proto::ExplainPathResponse {
            peer_id: id.to_string(),
            verdict,
            advice: advice.into_iter().map(view::advice).collect(),
            route: proto::Route::None.into(),
            ..proto::ExplainPathResponse::default()
        };
        let Some(path) = path else { return Ok(answer) };
        if let Some(best) = path.connections.first() {
            answer.route = convert::route(Some(best.route)).into();
            answer.relay_id = relay_id(best.route, &best.address);
            answer.rtt_ms = float_millis(path.rtt);
        }
        answer.connections = path.connections.iter().map(|connection| view::connection(connection, id)).collect();
        answer.addresses = path.addresses.into_iter().map(|address| view::known_address(address, id)).collect();
        answer.punches = path.punches.into_iter().map(|punch| view::punch(punch, id)).collect();
        answer.peer_nat = path.peer_nat.as_ref().map(view::nat);
        answer.dialling = path.dialling;
        answer.next_try_ms = path.next_try.map_or(0, millis);
        Ok(answer)
    }

    pub(super) async fn find_peer_of(
        &self,
        request: Request<proto::FindPeerRequest>,
    ) -> Result<proto::FindPeerResponse, Status> {
        self.check_open()?;
        let left = time_left(&request, DIAL_DEADLINE);
        let id = self.other_peer(&request.get_ref().peer).await?;
        let found = match self.delivery.node().find(id, left).await {
            Ok(found) => found,
            Err(NodeError::NotFound { asked, .. }) => return self.not_found(id, asked).await,
            Err(NodeError::NoAddress(_)) => return self.not_found(id, 0).await,
            Err(error) => return Err(error.into()),
        };
        Ok(proto::FindPeerResponse {
            peer_id: id.to_string(),
            addresses: found.addresses.into_iter().map(|address| view::known_address(address, id)).collect(),
            servers_asked: found.asked,
            hops: found.hops,
            took_ms: float_millis(Some(found.took)),
            detail: String::new(),
        })
    }

    async fn not_found(&self, id: PeerId, servers_asked: u32) -> Result<proto::FindPeerResponse, Status> {
        let look = self.look_around().await?;
        let advice = advice::not_found(id, &look.own(), servers_asked);
        let detail = format!("{}; {}", advice.cause, advice.cures.join("; or "));
        Ok(proto::FindPeerResponse { peer_id: id.to_string(), servers_asked, detail, ..Default::default() })
    }

    /// A peer that is not this node.
    async fn other_peer(&self, name: &str) -> Result<PeerId, Status> {
        let id = self.peer(name).await?;
        if id == self.delivery.node().local_peer_id() {
            let text = format!("peer {id} is this node itself; `p2p-node netcheck` tells of it");
            return Err(super::errors::bad_field("peer", text));
        }
        Ok(id)
    }
}
