//! Between the API's types and the daemon's: checks what comes in, and shapes
//! what goes out.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use tonic::Status;

use super::errors::bad_field;
use crate::{
    clock,
    delivery::{Cause, Delivered, Outcome, Sent, State},
    dialable, proto,
    store::{Final, Progress, SentRecord, Trust},
    types::{
        Channel, Content, MAX_ALIAS_BYTES, MAX_METADATA_BYTES, MAX_METADATA_ENTRIES, MAX_NAME_BYTES, MAX_TYPE_BYTES,
        PathPolicy, Route, is_alias,
    },
};

/// Longest multiaddr that is read.
const MAX_ADDRESS_BYTES: usize = 1024;
/// Characters of a peer id: the longest has 42 bytes, 58 in base58; as a CID it
/// is a little longer.
const MAX_PEER_ID_CHARS: usize = 128;
/// Longest of a bad value that is repeated in an error.
const SHOWN: usize = 80;

/// A value as an error shows it: short, and safe to print.
pub(super) fn shown(value: &str) -> String {
    let cut: String = value.chars().take(SHOWN).collect();
    let dots = if cut.len() < value.len() { "…" } else { "" };
    format!("{:?}{dots}", cut)
}

fn text(field: &str, value: &str, max: usize) -> Result<(), Status> {
    if value.len() <= max {
        return Ok(());
    }
    Err(bad_field(field, format!("{field} has {} bytes; the limit is {max}: use a shorter one", value.len())))
}

/// A channel's name.
pub(super) fn channel(field: &str, name: &str) -> Result<Channel, Status> {
    text(field, name, MAX_NAME_BYTES)?;
    Ok(name.into())
}

/// A consumer's name.
pub(super) fn consumer(name: &str) -> Result<String, Status> {
    text("consumer", name, MAX_NAME_BYTES)?;
    Ok(if name.is_empty() { "default".to_owned() } else { name.to_owned() })
}

/// A message id that is looked for.
pub(super) fn message_id(id: &str) -> Result<(), Status> {
    if id.is_empty() {
        return Err(bad_field("id", "id is empty; give the id that Send returned".to_owned()));
    }
    text("id", id, MAX_NAME_BYTES)
}

/// The message of a Send, with whether its timestamp is the app's.
pub(super) fn content(message: proto::Message, max_bytes: u64) -> Result<(Channel, Content, bool), Status> {
    let proto::Message { id, r#type, payload, timestamp, metadata, channel: name, reply_to, .. } = message;
    text("message.id", &id, MAX_NAME_BYTES)?;
    text("message.type", &r#type, MAX_TYPE_BYTES)?;
    text("message.reply_to", &reply_to, MAX_TYPE_BYTES)?;
    let name = channel("message.channel", &name)?;
    if metadata.len() > MAX_METADATA_ENTRIES {
        let text = format!(
            "message.metadata has {} entries; the limit is {MAX_METADATA_ENTRIES}: put the rest into the payload",
            metadata.len()
        );
        return Err(bad_field("message.metadata", text));
    }
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_METADATA_BYTES {
        let text = format!(
            "message.metadata has {bytes} bytes; the limit is {MAX_METADATA_BYTES}: put the rest into the payload"
        );
        return Err(bad_field("message.metadata", text));
    }
    if payload.len() as u64 > max_bytes {
        let text = format!(
            "message.payload has {} bytes; the limit is {max_bytes}: send it in parts, or raise max_message_bytes on both nodes",
            payload.len()
        );
        return Err(bad_field("message.payload", text));
    }
    if timestamp < 0 {
        let text = format!("message.timestamp is {timestamp}; give Unix milliseconds, or 0 for the time of Send");
        return Err(bad_field("message.timestamp", text));
    }
    let content = Content {
        id,
        kind: r#type,
        reply_to,
        timestamp: if timestamp == 0 { clock::wall_ms() } else { timestamp },
        metadata: metadata.into_iter().collect::<BTreeMap<_, _>>(),
        payload,
    };
    Ok((name, content, timestamp != 0))
}

/// The time to live of a Send.
pub(super) fn ttl(ttl_ms: u64, default: Duration) -> Result<u64, Status> {
    const MAX: u64 = 365 * 24 * 60 * 60 * 1000;
    match ttl_ms {
        0 => Ok(u64::try_from(default.as_millis()).unwrap_or(MAX)),
        1..=MAX => Ok(ttl_ms),
        _ => Err(bad_field(
            "ttl_ms",
            format!("ttl_ms is {ttl_ms}; the limit is {MAX} (365 days): give less, or 0 for default_ttl"),
        )),
    }
}

/// The routes of a Send.
pub(super) fn path(policy: i32, wait_ms: u32) -> Result<PathPolicy, Status> {
    use proto::PathPolicy as Asked;
    const DEFAULT_WAIT_MS: u32 = 5_000;
    const MAX_WAIT_MS: u32 = 24 * 60 * 60 * 1000;
    let policy = match Asked::try_from(policy) {
        Ok(Asked::Unspecified | Asked::Any) => PathPolicy::Any,
        Ok(Asked::DirectOnly) => PathPolicy::DirectOnly,
        Ok(Asked::PreferDirect) => {
            if wait_ms > MAX_WAIT_MS {
                let text = format!(
                    "prefer_direct_wait_ms is {wait_ms}; the limit is {MAX_WAIT_MS} (24 h): give less, or use PATH_POLICY_DIRECT_ONLY"
                );
                return Err(bad_field("prefer_direct_wait_ms", text));
            }
            return Ok(PathPolicy::PreferDirect(if wait_ms == 0 { DEFAULT_WAIT_MS } else { wait_ms }.into()));
        }
        Err(_) => {
            let text = format!(
                "path is {policy}, which this version does not know; use PATH_POLICY_ANY (1), PATH_POLICY_PREFER_DIRECT (2) or PATH_POLICY_DIRECT_ONLY (3)"
            );
            return Err(bad_field("path", text));
        }
    };
    if wait_ms > 0 {
        let text = format!(
            "prefer_direct_wait_ms is {wait_ms}; it goes with PATH_POLICY_PREFER_DIRECT only: set path to that, or leave it 0"
        );
        return Err(bad_field("prefer_direct_wait_ms", text));
    }
    Ok(policy)
}

/// A peer id, if the text is one. The work of decoding base58 grows with the
/// square of the length: a text that is too long for any is not looked at.
pub(super) fn peer_id(text: &str) -> Option<PeerId> {
    if text.len() > MAX_PEER_ID_CHARS { None } else { text.parse().ok() }
}

/// A name for a peer.
pub(super) fn alias(name: &str) -> Result<Option<String>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    if is_alias(name) {
        return Ok(Some(name.to_owned()));
    }
    let text = format!(
        "alias is {}, {} bytes long; the limit is {MAX_ALIAS_BYTES}: choose one of letters, digits, \"-\" (not first), \"_\" and \".\" that is no peer id",
        shown(name),
        name.len()
    );
    Err(bad_field("alias", text))
}

/// A multiaddr and the peer id at its end, if it has one.
pub(super) fn address(field: &str, text: &str) -> Result<(Multiaddr, Option<PeerId>), Status> {
    let bad = |cause: &str| {
        let example = "give one like /ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3KooW…";
        Err(bad_field(field, format!("{field} {} is no multiaddr: {cause}; {example}", shown(text))))
    };
    if text.len() > MAX_ADDRESS_BYTES {
        return bad(&format!("it has {} bytes, the limit is {MAX_ADDRESS_BYTES}", text.len()));
    }
    let mut address: Multiaddr = match text.parse() {
        Ok(address) => address,
        Err(error) => return bad(&format!("{error}")),
    };
    let peer = match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            Some(peer)
        }
        _ => None,
    };
    if address.is_empty() {
        return bad("it names no place to dial");
    }
    Ok((address, peer))
}

/// Whether an address can lead to a peer, as seen by the node of the id
/// `local`.
pub(super) fn leads(field: &str, address: &Multiaddr, peer: PeerId, local: PeerId) -> Result<(), Status> {
    let bad = |cause: &str, remedy: &str| {
        let text = shown(&address.to_string());
        Err(bad_field(field, format!("{field} {text} cannot be dialled: {cause}; {remedy}")))
    };
    match dialable::check(address) {
        Ok(Some(relay)) if relay == local => bad("the relay in it is this node itself", "name another relay"),
        Ok(Some(relay)) if relay == peer => {
            bad("the relay in it is the peer itself", "leave out what follows the relay")
        }
        Ok(_) => Ok(()),
        Err(error) => bad(&error.to_string(), "give one like /ip4/203.0.113.7/udp/4001/quic-v1/p2p/12D3KooW…"),
    }
}

/// An address as the API shows it.
pub(super) fn with_peer(address: &Multiaddr, peer: PeerId) -> String {
    address.clone().with(Protocol::P2p(peer)).to_string()
}

pub(super) fn route(route: Option<Route>) -> proto::Route {
    match route {
        Some(Route::Lan) => proto::Route::Lan,
        Some(Route::Direct) => proto::Route::Direct,
        Some(Route::Relayed) => proto::Route::Relayed,
        None => proto::Route::None,
    }
}

pub(super) fn trust(trust: Option<Trust>) -> proto::Trust {
    match trust {
        None => proto::Trust::Unspecified,
        Some(Trust::Known) => proto::Trust::Known,
        Some(Trust::Trusted) => proto::Trust::Trusted,
        Some(Trust::Blocked) => proto::Trust::Blocked,
    }
}

pub(super) fn cause(cause: Cause) -> proto::ChangeCause {
    match cause {
        Cause::Online => proto::ChangeCause::Online,
        Cause::Offline => proto::ChangeCause::Offline,
        Cause::Route => proto::ChangeCause::Route,
        Cause::Presence => proto::ChangeCause::Presence,
        Cause::Book => proto::ChangeCause::Book,
        Cause::Joined => proto::ChangeCause::Joined,
        Cause::Lan => proto::ChangeCause::Lan,
    }
}

fn state(state: State) -> proto::MessageState {
    match state {
        State::Queued => proto::MessageState::Queued,
        State::Sent => proto::MessageState::Sent,
        State::Stored => proto::MessageState::Stored,
        State::Expired => proto::MessageState::Expired,
        State::Cancelled => proto::MessageState::Cancelled,
        State::Rejected => proto::MessageState::Rejected,
    }
}

/// The reason, and the same for a person with what to do about it.
pub(super) fn reason(outcome: Outcome) -> (proto::Reason, &'static str) {
    use proto::Reason;
    match outcome {
        Outcome::Fine => (Reason::Unspecified, ""),
        Outcome::NotConnected => (Reason::NotConnected, "the peer is not connected; it is tried again by itself"),
        Outcome::Untrusted => (
            Reason::Untrusted,
            "the peer does not trust this node: over there, run `p2p-node peer add` with this node's peer id",
        ),
        Outcome::RemoteFull(_) => {
            (Reason::RemoteFull, "the peer's inbox is full; it goes on when apps over there acknowledge messages")
        }
        Outcome::TooLarge => {
            (Reason::TooLarge, "larger than the peer takes; send it in parts, or raise max_message_bytes over there")
        }
        Outcome::NoConsumer => {
            (Reason::NoConsumer, "nobody listens on this channel over there; ephemeral messages are not kept")
        }
        Outcome::Unreachable => {
            (Reason::Unreachable, "the peer was not reached in time; ephemeral messages are not kept")
        }
        Outcome::LinkLost => {
            (Reason::LinkLost, "the link broke before the peer answered; the message may have arrived")
        }
        Outcome::ConsumerBusy => (Reason::ConsumerBusy, "the app that listens over there does not keep up"),
        Outcome::OnlyRelayed => (
            Reason::Path,
            "the peer is reached through a relay only, and a message on this channel waits for a direct path; `p2p-node explain` says what stands in the way",
        ),
        Outcome::NotInBook => (
            Reason::NotInBook,
            "the peer is not in the address book any more; `p2p-node peer add` lets messages to it go on",
        ),
    }
}

/// The answer of a Send.
pub(super) fn send_response(sent: Sent) -> proto::SendResponse {
    let (reason, detail) = reason(sent.outcome);
    proto::SendResponse {
        id: sent.id,
        state: state(sent.state).into(),
        duplicate: sent.duplicate,
        reason: reason.into(),
        detail: detail.to_owned(),
        sequence: sent.seq,
    }
}

/// A message that was sent, with why it waits if it does.
pub(super) fn sent_message(record: SentRecord, waiting: Outcome, now: u64) -> proto::SentMessage {
    use proto::MessageState;
    let end = |done: Final| match done {
        Final::Stored => MessageState::Stored,
        Final::Expired => MessageState::Expired,
        Final::Cancelled => MessageState::Cancelled,
        Final::TooLarge => MessageState::Rejected,
    };
    let (state, pending, outcome) = match record.progress {
        Progress::Queued => (MessageState::Queued, MessageState::Unspecified, waiting),
        // The store notes only that the lane is on a link.
        Progress::Sent if waiting == Outcome::OnlyRelayed => (MessageState::Queued, MessageState::Unspecified, waiting),
        Progress::Sent => (MessageState::Sent, MessageState::Unspecified, waiting),
        Progress::Pending(done) => (MessageState::Sent, end(done), waiting),
        Progress::Done(Final::TooLarge) => (MessageState::Rejected, MessageState::Unspecified, Outcome::TooLarge),
        Progress::Done(done) => (end(done), MessageState::Unspecified, Outcome::Fine),
    };
    let (reason, detail) = reason(outcome);
    proto::SentMessage {
        id: record.id,
        peer: record.peer.to_string(),
        channel: record.channel.to_string(),
        state: state.into(),
        reason: reason.into(),
        detail: detail.to_owned(),
        sequence: record.seq,
        payload_bytes: record.payload_bytes,
        queued_at: record.queued_at,
        ttl_left_ms: record.expires_at.map_or(0, |at| at.saturating_sub(now)),
        pending_outcome: pending.into(),
    }
}

/// A message handed to an app. `from` is the text of its peer, which takes
/// longer to make than all the rest.
pub(super) fn delivery(delivered: Delivered, from: &str, to: &str, channel: &str) -> proto::Delivery {
    let content = &delivered.content;
    let message = proto::Message {
        id: content.id.clone(),
        r#type: content.kind.clone(),
        payload: Bytes::clone(&content.payload),
        timestamp: content.timestamp,
        metadata: content.metadata.clone().into_iter().collect(),
        from: from.to_owned(),
        to: to.to_owned(),
        channel: channel.to_owned(),
        reply_to: content.reply_to.clone(),
        received_at: delivered.received_at,
        sequence: delivered.seq,
        route: route(delivered.route).into(),
    };
    proto::Delivery { message: Some(message), cursor: delivered.cursor, attempt: delivered.attempt }
}
