//! proto3 JSON of the API's messages, with the proto's own field names.

use std::{fmt::Write as _, sync::LazyLock};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::{errors::Failure, output::is_unsafe};
use crate::proto;

/// The API's descriptors, decoded once.
static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).ok());

/// A message of the API that commands print.
pub(super) trait Printed: Message {
    /// Its full name in the proto.
    const NAME: &'static str;
}

macro_rules! printed {
    ($($message:ident),+ $(,)?) => {
        $(impl Printed for proto::$message {
            const NAME: &'static str = concat!("p2p.v1.", stringify!($message));
        })+
    };
}

printed!(
    AddPeerResponse,
    BlockResponse,
    ConnectResponse,
    Delivery,
    DisconnectResponse,
    ExplainPathResponse,
    FindPeerResponse,
    InviteResponse,
    JoinResponse,
    NetCheckResponse,
    Peer,
    PeerChange,
    PingResponse,
    RemovePeerResponse,
    SendResponse,
    SentMessage,
    StatusResponse,
);

/// One line of JSON, without its end.
pub(super) fn line<M: Printed>(message: &M) -> Result<String, Failure> {
    encode(message).map_err(|cause| Failure::Failed(format!("cannot write {} as JSON: {cause}", M::NAME)))
}

fn encode<M: Printed>(message: &M) -> Result<String, String> {
    let descriptor = POOL
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(M::NAME))
        .ok_or("it is not in the built-in descriptors")?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).map_err(|error| error.to_string())?;
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
    let mut serializer = serde_json::Serializer::new(Vec::new());
    dynamic.serialize_with_options(&mut serializer, &options).map_err(|error| error.to_string())?;
    let text = String::from_utf8(serializer.into_inner()).map_err(|error| error.to_string())?;
    Ok(escape(text))
}

/// Escapes what JSON allows in strings but a terminal may obey. Outside of
/// strings JSON has none of these.
fn escape(text: String) -> String {
    if !text.contains(is_unsafe) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed<M: Printed>(message: &M) -> Value {
        serde_json::from_str(&line(message).unwrap()).unwrap()
    }

    #[test]
    fn names_defaults_and_numbers_are_as_fixed() {
        let value = parsed(&proto::SendResponse {
            id: "1".into(),
            state: proto::MessageState::Stored.into(),
            sequence: u64::MAX,
            ..Default::default()
        });
        let expected = json!({
            "id": "1", "state": "MESSAGE_STATE_STORED", "duplicate": false,
            "reason": "REASON_UNSPECIFIED", "detail": "", "sequence": "18446744073709551615",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn a_delivery_is_message_cursor_attempt() {
        let message = proto::Message { payload: vec![0xff, 0].into(), timestamp: 7, ..Default::default() };
        let value = parsed(&proto::Delivery { message: Some(message), cursor: 3, attempt: 1 });
        assert_eq!(value["cursor"], "3");
        assert_eq!(value["attempt"], 1);
        assert_eq!(value["message"]["payload"], "/wA=");
        assert_eq!(value["message"]["timestamp"], "7");
        assert_eq!(value["message"]["metadata"], json!({}));
        assert_eq!(value["message"]["received_at"], "0");
        assert_eq!(value.as_object().unwrap().len(), 3);
    }

    #[test]
    fn status_has_its_fixed_names() {
        let value = parsed(&proto::StatusResponse {
            peer_id: "p".into(),
            states: vec![proto::NodeState::Listening.into()],
            ..Default::default()
        });
        assert_eq!(value["peer_id"], "p");
        assert_eq!(value["states"], json!(["NODE_STATE_LISTENING"]));
    }

    #[test]
    fn a_peer_has_its_route() {
        let value = parsed(&proto::Peer { route: proto::Route::None.into(), ..Default::default() });
        assert_eq!(value["route"], "ROUTE_NONE");
        assert_eq!(value["rtt_ms"], 0.0);
    }

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        let id = "a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\n\u{e0001}b";
        let printed = line(&proto::SendResponse { id: id.into(), ..Default::default() }).unwrap();
        assert!(!printed.contains(is_unsafe), "{printed:?}");
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap()["id"], id);
    }

    #[test]
    fn every_printed_message_is_in_the_descriptors() {
        fn check<M: Printed + Default>() {
            assert!(line(&M::default()).is_ok(), "{}", M::NAME);
        }
        check::<proto::AddPeerResponse>();
        check::<proto::BlockResponse>();
        check::<proto::ConnectResponse>();
        check::<proto::Delivery>();
        check::<proto::DisconnectResponse>();
        check::<proto::ExplainPathResponse>();
        check::<proto::FindPeerResponse>();
        check::<proto::InviteResponse>();
        check::<proto::JoinResponse>();
        check::<proto::NetCheckResponse>();
        check::<proto::Peer>();
        check::<proto::PeerChange>();
        check::<proto::PingResponse>();
        check::<proto::RemovePeerResponse>();
        check::<proto::SentMessage>();
        check::<proto::StatusResponse>();
    }
}
