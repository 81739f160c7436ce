//! Status.

use tonic::Status;

use super::{Api, convert::with_peer};
use crate::{
    delivery::DeliveryError,
    proto::{self, NodeState},
    store::Fill,
};

impl Api {
    pub(super) async fn condition(&self) -> Result<proto::StatusResponse, Status> {
        let node = self.delivery.node();
        let (local, view) = (node.local_peer_id(), node.view().await?);
        let store = self.delivery.store();
        let (outbox, inbox, lost) = store
            .write(|db| Ok((db.outbox_fill(), db.inbox_fill(), db.lost_by_restore()?)))
            .await
            .map_err(DeliveryError::from)?;
        let degraded = self.delivery.degraded();
        let mut states = vec![NodeState::Listening];
        states.extend(degraded.is_some().then_some(NodeState::Degraded));
        states.extend(self.stop.is_cancelled().then_some(NodeState::Draining));
        let mut problems: Vec<String> = degraded.into_iter().collect();
        if lost > 0 {
            problems.push(format!("{lost} messages were lost because a store was replaced by an older copy"));
        }
        let connected = view.peers.iter().filter(|peer| peer.best.is_some()).count();
        let settings = &self.facts.settings;
        let counts = view.connections;
        Ok(proto::StatusResponse {
            peer_id: local.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance_id: self.facts.instance_id.clone(),
            started_at: self.facts.started_at,
            uptime_ms: u64::try_from(self.facts.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            states: states.into_iter().map(Into::into).collect(),
            problems,
            listen_addresses: view.listen.iter().map(|address| with_peer(address, local)).collect(),
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
        })
    }
}

fn queue(fill: Fill, max_bytes: u64) -> proto::Queue {
    proto::Queue { messages: fill.messages, bytes: fill.bytes, max_bytes }
}
