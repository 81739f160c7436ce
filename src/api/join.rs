//! Invite, Join.

use std::time::Duration;

use tonic::{Request, Status};

use super::{
    Api,
    convert::{self, alias, with_peer},
    errors::{self, bad_field},
    time_left,
};
use crate::{node::JOIN_DEADLINE, proto, ticket::Ticket};

/// How long a ticket is good if nobody says.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(60 * 60);
/// Longest that one may be good: who needs more gives out another.
const MAX_EXPIRY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Api {
    pub(super) async fn invite_one(&self, request: proto::InviteRequest) -> Result<proto::InviteResponse, Status> {
        self.check_open()?;
        let expires = match Duration::from_millis(request.expires_ms) {
            Duration::ZERO => DEFAULT_EXPIRY,
            given if given <= MAX_EXPIRY => given,
            _ => {
                let max = MAX_EXPIRY.as_millis();
                let text = format!("expires_ms is {}; the limit is {max} (30 days)", request.expires_ms);
                return Err(bad_field("expires_ms", text));
            }
        };
        let invitation = self.delivery.invite(expires, alias(&request.alias)?).await?;
        let ticket = &invitation.ticket;
        Ok(proto::InviteResponse {
            ticket: invitation.text,
            invite_id: invitation.id,
            expires_at: i64::try_from(ticket.expires.saturating_mul(1000)).unwrap_or(i64::MAX),
            addresses: ticket.addresses.iter().map(|address| with_peer(address, ticket.inviter)).collect(),
            lan_only: invitation.lan_only,
        })
    }

    pub(super) async fn join_one(&self, request: Request<proto::JoinRequest>) -> Result<proto::JoinResponse, Status> {
        self.check_open()?;
        let left = time_left(&request, JOIN_DEADLINE);
        let request = request.into_inner();
        let ticket = Ticket::decode(&request.ticket).map_err(|error| errors::bad_ticket(&error))?;
        let joined = self.delivery.join(ticket, alias(&request.alias)?, left).await?;
        Ok(proto::JoinResponse {
            peer_id: joined.connected.peer.to_string(),
            alias: joined.alias.unwrap_or_default(),
            route: convert::route(Some(joined.connected.route)).into(),
            address: with_peer(&joined.connected.address, joined.connected.peer),
            already_joined: joined.already,
        })
    }
}
