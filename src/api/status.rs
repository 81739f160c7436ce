//! Status.

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use tonic::Status;

use super::{
    Api,
    advice::{self, Advice, NEEDS_RELAY, Own, Reachability},
    convert::with_peer,
    view,
};
use crate::{
    delivery::DeliveryError,
    node::{ReachView, RelayState, RelayView, Verdict},
    proto::{self, NodeState},
    store::Fill,
};

impl Api {
    pub(super) async fn condition(&self) -> Result<proto::StatusResponse, Status> {
        let node = self.delivery.node();
        let (local, network) = (node.local_peer_id(), node.view().await?);
        let store = self.delivery.store();
        let (outbox, inbox, lost) = store
            .write(|db| Ok((db.outbox_fill(), db.inbox_fill(), db.lost_by_restore()?)))
            .await
            .map_err(DeliveryError::from)?;
        let degraded = self.delivery.degraded();
        let mut states = vec![NodeState::Listening];
        states.extend(degraded.is_some().then_some(NodeState::Degraded));
        states.extend(self.stop.is_cancelled().then_some(NodeState::Draining));
        let look = self.look(network.listen.clone()).await?;
        states.extend(reach_states(&look.own()));
        let mut problems: Vec<String> = degraded.into_iter().collect();
        problems.extend(advice::node(&look.own()).into_iter().filter(|known| known.code == NEEDS_RELAY).map(line));
        if lost > 0 {
            problems.push(format!("{lost} messages were lost because a store was replaced by an older copy"));
        }
        let connected = network.peers.iter().filter(|peer| peer.best.is_some()).count();
        let settings = &self.facts.settings;
        let counts = network.connections;
        Ok(proto::StatusResponse {
            peer_id: local.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance_id: self.facts.instance_id.clone(),
            started_at: self.facts.started_at,
            uptime_ms: u64::try_from(self.facts.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            states: states.into_iter().map(Into::into).collect(),
            problems,
            listen_addresses: network.listen.iter().map(|address| with_peer(address, local)).collect(),
            peers_connected: u32::try_from(connected).unwrap_or(u32::MAX),
            peers_linked: self.delivery.linked_peers(),
            outbox: Some(queue(outbox, settings.limits.max_outbox_bytes)),
            inbox: Some(queue(inbox, settings.limits.max_inbox_bytes)),
            limits: Some(proto::Limits {
                max_message_bytes: self.options().max_message_bytes,
                max_frame_bytes: self.max_frame_bytes(),
                max_peer_bytes: settings.limits.max_peer_bytes,
                max_streams: settings.limits.max_streams,
            }),
            connections: Some(proto::Connections {
                established: counts.established,
                untrusted: counts.untrusted,
                max_untrusted: counts.max_untrusted,
                max_per_peer: counts.max_per_peer,
                refused: counts.refused,
            }),
            lost_by_restore: lost,
            trust_open: settings.trust_open,
            state_dir: settings.state_dir.display().to_string(),
            name: settings.name.clone(),
            external_addresses: external(&look.reach, local),
            serving: Some(view::serving(&look.reach.serving)),
            relays: look.reach.relays.into_iter().map(view::relay).collect(),
        })
    }
}

/// How far this node is known and reached.
fn reach_states(own: &Own<'_>) -> Vec<NodeState> {
    let (reach, far) = (own.reach, advice::reachability(own));
    let reserved = reach.relays.iter().any(|relay| relay.state == RelayState::Reserved);
    let verified = reach.addresses.iter().any(|address| address.verdict == Verdict::Reachable);
    let states = [
        (reach.finding.bootstrapped, NodeState::Bootstrapped),
        (reserved, NodeState::Reserved),
        (reach.finding.published.is_some(), NodeState::Published),
        (verified, NodeState::Verified),
        (far == Reachability::NeedsRelay, NodeState::NeedsRelay),
    ];
    states.into_iter().filter(|(holds, _)| *holds).map(|(_, state)| state).collect()
}

/// A cause with its cures.
fn line(advice: Advice) -> String {
    format!("{}; {}", advice.cause, advice.cures.join("; or "))
}

/// What others are told.
fn external(reach: &ReachView, local: PeerId) -> Vec<String> {
    let told = reach.addresses.iter().filter(|address| address.advertised).map(|address| address.address.clone());
    let reserved = reach.relays.iter().filter(|relay| relay.state == RelayState::Reserved);
    let circuit = |relay: &RelayView, address: &Multiaddr| {
        address.clone().with(Protocol::P2p(relay.peer)).with(Protocol::P2pCircuit)
    };
    let circuits = reserved.flat_map(|relay| relay.addresses.iter().map(|address| circuit(relay, address)));
    let mut all: Vec<String> = Vec::new();
    for text in told.chain(circuits).map(|address| with_peer(&address, local)) {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

fn queue(fill: Fill, max_bytes: u64) -> proto::Queue {
    proto::Queue { messages: fill.messages, bytes: fill.bytes, max_bytes }
}
