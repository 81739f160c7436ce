//! The one place where errors become gRPC statuses.

use std::collections::HashMap;

use libp2p::PeerId;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    delivery::{DeliveryError, InviteError, JoinError},
    node::NodeError,
    store::{Changed, MAX_OPEN_INVITES},
    ticket::TicketError,
};

/// Names the source of error details.
const DOMAIN: &str = "p2p-node";

/// INVALID_ARGUMENT about one field.
pub(super) fn bad_field(field: &str, text: String) -> Status {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation(field, text.clone());
    Status::with_error_details(Code::InvalidArgument, text, details)
}

/// INVALID_ARGUMENT about the size of a page.
pub(super) fn bad_page_size(size: u32, max: u32) -> Status {
    bad_field("page_size", format!("page_size is {size}; the limit is {max}: ask for several pages"))
}

/// INVALID_ARGUMENT about where a page begins.
pub(super) fn bad_page_token(token: &str, call: &str) -> Status {
    let shown = super::convert::shown(token);
    bad_field("page_token", format!("page_token {shown} is not one that {call} gave; leave it empty to begin anew"))
}

/// A status with a reason and facts.
fn with_info(code: Code, text: String, reason: &str, facts: &[(&str, String)]) -> Status {
    let facts: HashMap<String, String> = facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, facts);
    Status::with_error_details(code, text, details)
}

/// RESOURCE_EXHAUSTED by a limit of this node.
pub(super) fn limit(text: String, limit: &str, used: Option<u64>, max: u64) -> Status {
    let mut facts = HashMap::from([
        ("limit".to_owned(), limit.to_owned()),
        ("owner".to_owned(), "LOCAL".to_owned()),
        ("max".to_owned(), max.to_string()),
    ]);
    if let Some(used) = used {
        facts.insert("used".to_owned(), used.to_string());
    }
    let mut details = ErrorDetails::with_error_info("LIMIT", DOMAIN, facts);
    details.add_quota_failure_violation(limit, text.clone());
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

/// NOT_FOUND about a peer.
pub(super) fn unknown_peer(name: &str) -> Status {
    let text = format!(
        "peer {} is neither a peer id nor an alias of the address book; see `p2p-node peer ls`",
        super::convert::shown(name)
    );
    with_info(Code::NotFound, text, "PEER_UNKNOWN", &[])
}

/// NOT_FOUND about a peer that is to be taken out of the book.
pub(super) fn not_in_book(peer: PeerId) -> Status {
    let text = format!("peer {peer} is not in the address book; see `p2p-node peer ls`");
    with_info(Code::NotFound, text, "PEER_NOT_IN_BOOK", &[("peer", peer.to_string())])
}

/// UNAVAILABLE because the daemon stops.
pub(super) fn shutting_down() -> Status {
    with_info(Code::Unavailable, DeliveryError::Closed.to_string(), "SHUTTING_DOWN", &[])
}

/// What stands in the way of a change to the address book.
pub(super) fn book(change: &Changed, alias: &str) -> Status {
    match change {
        Changed::AliasTaken(holder) => {
            let text = format!("alias {alias:?} belongs to peer {holder}; choose another, or remove that peer first");
            alias_taken(text, holder)
        }
        Changed::Full { limit: what, max } => {
            let text = format!(
                "{what}: at most {max}; take out what is old with `p2p-node peer rm`, which forgets a peer and its addresses"
            );
            limit(text, what, None, *max)
        }
        Changed::Done { .. } => Status::internal("the address book did not keep the change"),
    }
}

impl From<DeliveryError> for Status {
    fn from(error: DeliveryError) -> Self {
        let text = error.to_string();
        match error {
            DeliveryError::Conflict { .. } => with_info(Code::AlreadyExists, text, "ID_REUSED", &[]),
            DeliveryError::Full(full) => limit(text, full.limit, Some(full.used), full.max),
            DeliveryError::InboxFull => with_info(
                Code::ResourceExhausted,
                text,
                "LIMIT",
                &[("limit", "inbox".into()), ("owner", "LOCAL".into())],
            ),
            DeliveryError::NoMessage { .. } => with_info(Code::NotFound, text, "MESSAGE_UNKNOWN", &[]),
            DeliveryError::Ambiguous { .. } => with_info(Code::FailedPrecondition, text, "ID_AMBIGUOUS", &[]),
            DeliveryError::Held { pid, .. } => with_info(Code::AlreadyExists, text, "CONSUMER_IN_USE", &[("pid", pid)]),
            DeliveryError::NoConsumer { .. } => with_info(Code::NotFound, text, "CONSUMER_UNKNOWN", &[]),
            DeliveryError::BeyondLast { .. } => bad_field("cursor", text),
            DeliveryError::TooMany { what, used, max, .. } => limit(text, what, Some(used), max),
            DeliveryError::Damaged { cursor, .. } => {
                with_info(Code::DataLoss, text, "MESSAGE_DAMAGED", &[("cursor", cursor.to_string())])
            }
            DeliveryError::NotInBook(peer) => {
                with_info(Code::NotFound, text, "PEER_NOT_IN_BOOK", &[("peer", peer.to_string())])
            }
            DeliveryError::Blocked(peer) => {
                with_info(Code::FailedPrecondition, text, "PEER_BLOCKED", &[("peer", peer.to_string())])
            }
            DeliveryError::Closed => shutting_down(),
            DeliveryError::Store(store) if store.is_full() => {
                let text = format!("the disk is full: {store}; free space, nothing was lost");
                with_info(
                    Code::ResourceExhausted,
                    text,
                    "DISK_FULL",
                    &[("limit", "disk".into()), ("owner", "LOCAL".into())],
                )
            }
            DeliveryError::Store(store) if store.is_damage() => with_info(Code::DataLoss, text, "STORE_DAMAGED", &[]),
            DeliveryError::Store(_) => with_info(Code::Internal, text, "STORE", &[]),
        }
    }
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        let text = error.to_string();
        match error {
            NodeError::Myself(_) => bad_field("peer", text),
            NodeError::Blocked(_) => with_info(Code::FailedPrecondition, text, "PEER_BLOCKED", &[]),
            NodeError::NoAddress(_) => with_info(Code::FailedPrecondition, text, "NO_ADDRESS", &[]),
            NodeError::NotFound { .. } => with_info(Code::Unavailable, text, "NOT_FOUND", &[]),
            NodeError::Unreachable { .. } => with_info(Code::Unavailable, text, "UNREACHABLE", &[]),
            NodeError::Limit(_) => with_info(Code::ResourceExhausted, text, "LIMIT", &[("owner", "LOCAL".into())]),
            NodeError::NotJoined { .. } => with_info(Code::Unavailable, text, "NOT_JOINED", &[]),
            NodeError::NoPong(..) => with_info(Code::Unavailable, text, "NO_PONG", &[]),
            NodeError::Timeout(_) => with_info(Code::DeadlineExceeded, text, "TIMEOUT", &[]),
            NodeError::Closed => shutting_down(),
        }
    }
}

/// INVALID_ARGUMENT about a text that is no ticket.
pub(super) fn bad_ticket(error: &TicketError) -> Status {
    let text = error.to_string();
    let mut details = ErrorDetails::with_error_info("TICKET_MALFORMED", DOMAIN, HashMap::new());
    details.add_bad_request_violation("ticket", text.clone());
    Status::with_error_details(Code::InvalidArgument, text, details)
}

impl From<InviteError> for Status {
    fn from(error: InviteError) -> Self {
        let text = error.to_string();
        match error {
            InviteError::AliasTaken { holder, .. } => alias_taken(text, &holder),
            InviteError::Full => limit(text, "open tickets", Some(MAX_OPEN_INVITES), MAX_OPEN_INVITES),
            InviteError::Ticket(_) => with_info(Code::Internal, text, "TICKET", &[]),
            InviteError::Delivery(error) => error.into(),
        }
    }
}

impl From<JoinError> for Status {
    fn from(error: JoinError) -> Self {
        let text = error.to_string();
        match error {
            JoinError::Own => with_info(Code::InvalidArgument, text, "TICKET_OWN", &[]),
            JoinError::Blocked(peer) => {
                with_info(Code::FailedPrecondition, text, "PEER_BLOCKED", &[("peer", peer.to_string())])
            }
            JoinError::AliasTaken { holder, .. } => alias_taken(text, &holder),
            JoinError::Expired(_) => with_info(Code::FailedPrecondition, text, "TICKET_EXPIRED", &[]),
            JoinError::Used => with_info(Code::FailedPrecondition, text, "TICKET_USED", &[]),
            JoinError::Unknown => with_info(Code::FailedPrecondition, text, "TICKET_UNKNOWN", &[]),
            JoinError::TooMany => with_info(
                Code::ResourceExhausted,
                text,
                "TOO_MANY_TRIES",
                &[("limit", "tries with tickets in a minute".into()), ("owner", "REMOTE".into())],
            ),
            JoinError::Unable(_) => with_info(Code::Unavailable, text, "INVITER_UNABLE", &[]),
            JoinError::Unreachable { .. } => with_info(Code::Unavailable, text, "UNREACHABLE", &[]),
            JoinError::Full { limit: what, max } => limit(text, what, None, max),
            JoinError::Node(error) => error.into(),
            JoinError::Delivery(error) => error.into(),
        }
    }
}

fn alias_taken(text: String, holder: &libp2p::PeerId) -> Status {
    with_info(Code::AlreadyExists, text, "ALIAS_TAKEN", &[("peer", holder.to_string())])
}
