//! `status`: the node's own condition.

use super::{
    args::Global,
    client::{ANSWER, answer, connect},
    errors::Failure,
    netcheck::{relay_line, serving_line},
    output::{Out, Table, bytes, clean, count, duration, plural},
};
use crate::proto::{self, NodeState, StatusRequest, StatusResponse};

/// Shows the node's condition.
pub(super) async fn status(global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    let status = answer(ANSWER, client.status(StatusRequest {})).await?;
    if out.json() {
        return out.object(&status);
    }
    out.bytes(text(&status).as_bytes())
}

fn text(status: &StatusResponse) -> String {
    let mut table = Table::default();
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("name", clean(&status.name));
    row("peer id", status.peer_id.clone());
    row("state", states(&status.states));
    row("version", format!("p2p-node {}, up {}", status.version, duration(status.uptime_ms)));
    list("addresses", &status.listen_addresses, &mut row);
    if !status.external_addresses.is_empty() {
        list("told others", &status.external_addresses, &mut row);
    }
    if !status.relays.is_empty() {
        list("relays", &status.relays.iter().map(relay_line).collect::<Vec<_>>(), &mut row);
    }
    if let Some(serving) = status.serving.as_ref().filter(|serving| serving.active) {
        row("serves", serving_line(serving));
    }
    row(
        "peers",
        format!("{} connected, {} linked", count(status.peers_connected.into()), count(status.peers_linked.into())),
    );
    if let Some(connections) = &status.connections {
        row("connections", self::connections(connections));
    }
    row("trust", if status.trust_open { "open: takes messages from everyone" } else { "address book" }.to_owned());
    row("outbox", queue(status.outbox.as_ref()));
    row("inbox", queue(status.inbox.as_ref()));
    row("state dir", status.state_dir.clone());
    if status.lost_by_restore > 0 {
        row("lost", format!("{} by restoring an older copy of a store", plural(status.lost_by_restore, "message")));
    }
    list("problems", &status.problems, &mut row);
    table.take()
}

fn list(name: &str, values: &[String], row: &mut impl FnMut(&str, String)) {
    if values.is_empty() {
        row(name, "none".to_owned());
    }
    for (index, value) in values.iter().enumerate() {
        row(if index == 0 { name } else { "" }, clean(value));
    }
}

fn states(states: &[i32]) -> String {
    let name = |state: &i32| match NodeState::try_from(*state) {
        Ok(NodeState::Listening) => "listening".to_owned(),
        Ok(NodeState::Degraded) => "DEGRADED (see problems)".to_owned(),
        Ok(NodeState::Draining) => "shutting down".to_owned(),
        Ok(NodeState::Bootstrapped) => "bootstrapped".to_owned(),
        Ok(NodeState::Reserved) => "reserved on a relay".to_owned(),
        Ok(NodeState::Published) => "published".to_owned(),
        Ok(NodeState::Verified) => "verified".to_owned(),
        Ok(NodeState::NeedsRelay) => "NEEDS RELAY (see problems)".to_owned(),
        Ok(NodeState::Unspecified) | Err(_) => format!("state {state}"),
    };
    if states.is_empty() { "starting".to_owned() } else { states.iter().map(name).collect::<Vec<_>>().join(", ") }
}

fn connections(connections: &proto::Connections) -> String {
    let mut text = format!(
        "{}, {} of {} untrusted",
        count(connections.established.into()),
        count(connections.untrusted.into()),
        count(connections.max_untrusted.into())
    );
    if connections.refused > 0 {
        text.push_str(&format!(", {} refused by a limit", count(connections.refused)));
    }
    text
}

fn queue(queue: Option<&proto::Queue>) -> String {
    queue.map_or_else(
        || "-".to_owned(),
        |queue| format!("{}, {} of {}", plural(queue.messages, "message"), bytes(queue.bytes), bytes(queue.max_bytes)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_wants_comes_first() {
        let status = StatusResponse {
            name: "pi".into(),
            peer_id: "12D3KooW".into(),
            version: "0.1.0".into(),
            uptime_ms: 61_000,
            states: vec![NodeState::Listening.into(), NodeState::Degraded.into()],
            listen_addresses: vec!["/ip4/1.2.3.4/tcp/1".into(), "/ip4/1.2.3.4/tcp/2".into()],
            problems: vec!["disk\x1b full".into()],
            outbox: Some(proto::Queue { messages: 1, bytes: 2048, max_bytes: 1 << 30 }),
            ..Default::default()
        };
        let text = text(&status);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "name       pi");
        assert_eq!(lines[1], "peer id    12D3KooW");
        assert_eq!(lines[2], "state      listening, DEGRADED (see problems)");
        assert_eq!(lines[3], "version    p2p-node 0.1.0, up 1m 1s");
        assert_eq!(lines[4], "addresses  /ip4/1.2.3.4/tcp/1");
        assert_eq!(lines[5], "           /ip4/1.2.3.4/tcp/2");
        assert!(text.contains("outbox     1 message, 2.0 KiB of 1.0 GiB"), "{text}");
        assert!(text.ends_with("problems   disk\\u{1b} full\n"), "{text}");
    }

    #[test]
    fn an_empty_answer_still_prints() {
        assert!(text(&StatusResponse::default()).contains("problems   none"));
    }
}
