//! `netcheck`: can others reach this node, and what stands in the way.

use std::{collections::HashSet, time::SystemTime};

use super::{
    args::Global,
    client::{ANSWER, answer, connect},
    errors::Failure,
    output::{Out, Table, ago, bytes, clean, count, duration, rtt, short_id},
};
use crate::proto::{
    AddressSource, Advice, MappingProtocol, Nat, NetCheckRequest, NetCheckResponse, OwnAddress, PortMapping,
    PortMappings, Relay, RelayState, ServeMode, Serving, Verdict,
};

/// What `netcheck --help` adds.
pub(super) const HELP: &str = "\
Marks of addresses: \"ok\" others connected to it, \"no\" others tried and could
not, \"?\" nobody tried, \"set\" the settings say so. A NAT that is \"?\" is not
known yet: two servers have to tell what they see, so it needs relays or
bootstrap nodes.

It tells what is known; nothing is sent for it.";

/// Shows how this node is reached.
pub(super) async fn netcheck(global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    let check = answer(ANSWER, client.net_check(NetCheckRequest {})).await?;
    if out.json() {
        return out.object(&check);
    }
    out.bytes(text(&check, SystemTime::now()).as_bytes())
}

fn text(check: &NetCheckResponse, now: SystemTime) -> String {
    let mut text = format!("{}\n\n", clean(&check.verdict));
    let mut table = Table::default();
    for (name, nat) in [("NAT, IPv4", &check.nat_v4), ("NAT, IPv6", &check.nat_v6)] {
        table.row(vec![name.to_owned(), nat.as_ref().map_or_else(|| "-".to_owned(), nat_line)]);
    }
    rows("addresses", check.addresses.iter().map(|address| address_line(address, now)), &mut table);
    if let Some(mappings) = check.mappings.as_ref().filter(|mappings| !mappings.ports.is_empty()) {
        rows("mappings", mapping_lines(mappings, now), &mut table);
    }
    rows("relays", check.relays.iter().map(relay_line), &mut table);
    table.row(vec!["serves".to_owned(), check.serving.as_ref().map_or_else(|| "-".to_owned(), serving_line)]);
    text.push_str(&table.take());
    text.push_str(&advice_text(&check.advice));
    text
}

/// Rows under one name; one that says so if there are none.
pub(super) fn rows(name: &str, lines: impl IntoIterator<Item = String>, table: &mut Table) {
    let mut name = name.to_owned();
    for line in lines {
        table.row(vec![std::mem::take(&mut name), line]);
    }
    if !name.is_empty() {
        table.row(vec![name, "none".to_owned()]);
    }
}

/// What is wrong, each with its cures below it.
pub(super) fn advice_text(advice: &[Advice]) -> String {
    let (mut text, mut told) = (String::new(), HashSet::new());
    for known in advice {
        text.push_str(&format!("\n{}: {}\n", clean(&known.code), clean(&known.cause)));
        let new: Vec<&String> = known.cures.iter().filter(|cure| told.insert(*cure)).collect();
        for cure in &new {
            text.push_str(&format!("  - {}\n", clean(cure)));
        }
        if new.len() < known.cures.len() {
            text.push_str(if new.is_empty() { "  - as above\n" } else { "  - or as above\n" });
        }
    }
    text
}

/// A NAT in a line.
pub(super) fn nat_line(nat: &Nat) -> String {
    nat.summary.clone()
}

fn address_line(address: &OwnAddress, now: SystemTime) -> String {
    let mark = match Verdict::try_from(address.verdict) {
        Ok(Verdict::Reachable) => "ok ",
        Ok(Verdict::Unreachable) => "no ",
        Ok(Verdict::Assumed) => "set",
        Ok(Verdict::Unspecified) | Err(_) => "?  ",
    };
    let mut notes = vec![source(address.source).to_owned()];
    if !address.verified_by.is_empty() {
        let by: Vec<String> = address.verified_by.iter().map(|peer| short_id(peer)).collect();
        let when = if address.verified_at > 0 { format!(" {}", ago(address.verified_at, now)) } else { String::new() };
        notes.push(format!("tried by {}{when}", by.join(" and ")));
    }
    if !address.advertised {
        notes.push("not told to others".to_owned());
    }
    notes.extend((!address.detail.is_empty()).then(|| address.detail.clone()));
    format!("{mark} {}  ({})", bare(&address.address), notes.join(", "))
}

/// Without the node's own id at its end, which all of them have.
pub(super) fn bare(address: &str) -> &str {
    address.rsplit_once("/p2p/").map_or(address, |(bare, _)| bare)
}

fn source(source: i32) -> &'static str {
    match AddressSource::try_from(source) {
        Ok(AddressSource::Interface) => "own interface",
        Ok(AddressSource::Configured) => "setting",
        Ok(AddressSource::Observed) => "seen by servers",
        Ok(AddressSource::Mapped) => "port mapping",
        Ok(AddressSource::Relay) => "relay",
        Ok(AddressSource::Unspecified) | Err(_) => "unknown source",
    }
}

fn mapping_lines(mappings: &PortMappings, now: SystemTime) -> Vec<String> {
    let router = if mappings.router.is_empty() { String::new() } else { format!(" ({})", mappings.router) };
    let gateway = if mappings.gateway.is_empty() { "no router" } else { &mappings.gateway };
    let asked = if mappings.settled { "" } else { ", still asking" };
    let mut lines = vec![format!("router {gateway}{router}{asked}")];
    lines.extend(mappings.ports.iter().map(|port| mapping_line(port, now)));
    lines
}

fn mapping_line(port: &PortMapping, now: SystemTime) -> String {
    let transport = if port.udp { "UDP" } else { "TCP" };
    let detail = if port.detail.is_empty() { String::new() } else { format!(": {}", port.detail) };
    if port.external.is_empty() {
        return format!("no  {transport} {}{detail}", port.internal_port);
    }
    let protocol = match MappingProtocol::try_from(port.protocol) {
        Ok(MappingProtocol::Upnp) => "UPnP",
        Ok(MappingProtocol::NatPmp) => "NAT-PMP",
        Ok(MappingProtocol::Pcp) => "PCP",
        Ok(MappingProtocol::Unspecified) | Err(_) => "unknown protocol",
    };
    let mark = if port.usable { "ok" } else { "no" };
    let left = left(port.expires_at, now);
    format!("{mark}  {transport} {} is {} outside  ({protocol}{left}){detail}", port.internal_port, port.external)
}

fn left(unix_millis: i64, now: SystemTime) -> String {
    let now =
        now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    match u64::try_from(unix_millis.saturating_sub(now)) {
        Ok(left) if unix_millis > 0 => format!(", for {} more", duration(left)),
        _ => String::new(),
    }
}

/// A relay in a line.
pub(super) fn relay_line(relay: &Relay) -> String {
    let (mark, state) = match RelayState::try_from(relay.state) {
        Ok(RelayState::Reserved) => ("ok", "reserved"),
        Ok(RelayState::Spare) => ("ok", "spare"),
        Ok(RelayState::Connecting) => ("..", "connecting"),
        Ok(RelayState::Reserving) => ("..", "asking"),
        Ok(RelayState::Waiting) => ("no", "failed, tried again"),
        Ok(RelayState::Unspecified) | Err(_) => ("? ", "unknown state"),
    };
    let mut notes = vec![state.to_owned()];
    notes.extend((relay.rtt_ms > 0.0).then(|| rtt(relay.rtt_ms)));
    if relay.state == i32::from(RelayState::Reserved) {
        notes.push(limits(relay.max_circuit_bytes, relay.max_circuit_ms));
    }
    notes.extend((!relay.detail.is_empty()).then(|| relay.detail.clone()));
    format!("{mark}  {}  ({})", relay.peer_id, notes.join(", "))
}

fn limits(max_bytes: u64, max_ms: u64) -> String {
    match (max_bytes, max_ms) {
        (0, 0) => "without limits".to_owned(),
        (0, _) => format!("at most {} a connection", duration(max_ms)),
        (_, 0) => format!("at most {} a connection", bytes(max_bytes)),
        _ => format!("at most {} and {} a connection", bytes(max_bytes), duration(max_ms)),
    }
}

/// What the node does for others in a line.
pub(super) fn serving_line(serving: &Serving) -> String {
    let mode = match ServeMode::try_from(serving.mode) {
        Ok(ServeMode::Auto) => "trusted peers, where it is publicly reachable",
        Ok(ServeMode::On) => "everyone",
        Ok(ServeMode::Off) => "nobody",
        Ok(ServeMode::Unspecified) | Err(_) => "-",
    };
    if !serving.active {
        return if serving.mode == i32::from(ServeMode::Off) { mode.to_owned() } else { format!("{mode}: not now") };
    }
    let refused = if serving.refused > 0 { format!(", {} refused", count(serving.refused)) } else { String::new() };
    format!(
        "{mode}: {} of {} reservations, {} of {} connections, {}{refused}",
        count(serving.reservations.into()),
        count(serving.max_reservations.into()),
        count(serving.circuits.into()),
        count(serving.max_circuits.into()),
        limits(serving.max_circuit_bytes, serving.max_circuit_ms),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_first_and_cures_last() {
        let check = NetCheckResponse {
            verdict: "not reachable from outside".into(),
            nat_v4: Some(Nat { summary: "a NAT, seen as 128.66.0.7".into(), ..Nat::default() }),
            addresses: vec![
                OwnAddress {
                    address: "/ip4/128.66.0.7/udp/4001/quic-v1/p2p/12D3KooWx".into(),
                    source: AddressSource::Mapped.into(),
                    verdict: Verdict::Unreachable.into(),
                    verified_by: vec!["12D3KooWabcdefgh".into()],
                    advertised: true,
                    ..OwnAddress::default()
                },
                OwnAddress {
                    address: "/ip4/192.168.1.5/tcp/4001/p2p/12D3KooWx".into(),
                    source: AddressSource::Interface.into(),
                    ..OwnAddress::default()
                },
            ],
            mappings: Some(PortMappings {
                gateway: "192.168.1.1".into(),
                settled: true,
                ports: vec![PortMapping {
                    udp: true,
                    internal_port: 4001,
                    protocol: MappingProtocol::Pcp.into(),
                    external: "128.66.0.7:4001".into(),
                    usable: true,
                    ..PortMapping::default()
                }],
                ..PortMappings::default()
            }),
            relays: vec![Relay {
                peer_id: "12D3KooWrelay".into(),
                state: RelayState::Waiting.into(),
                detail: "timed\x1b out".into(),
                ..Relay::default()
            }],
            serving: Some(Serving { mode: ServeMode::Off.into(), ..Serving::default() }),
            advice: ["A", "B"]
                .map(|code| {
                    let cures = vec!["do this".into(), "or that".into()];
                    Advice { code: code.into(), cause: "is so".into(), cures }
                })
                .to_vec(),
            ..NetCheckResponse::default()
        };
        let expected = "\
not reachable from outside

NAT, IPv4  a NAT, seen as 128.66.0.7
NAT, IPv6  -
addresses  no  /ip4/128.66.0.7/udp/4001/quic-v1  (port mapping, tried by …abcdefgh)
           ?   /ip4/192.168.1.5/tcp/4001  (own interface, not told to others)
mappings   router 192.168.1.1
           ok  UDP 4001 is 128.66.0.7:4001 outside  (PCP)
relays     no  12D3KooWrelay  (failed, tried again, timed\\u{1b} out)
serves     nobody

A: is so
  - do this
  - or that

B: is so
  - as above
";
        assert_eq!(text(&check, SystemTime::now()), expected);
    }

    #[test]
    fn an_empty_answer_still_prints() {
        assert!(text(&NetCheckResponse::default(), SystemTime::now()).contains("relays     none"));
    }

    #[test]
    fn a_relay_that_serves_shows_its_limits() {
        let serving = Serving {
            mode: ServeMode::On.into(),
            active: true,
            reservations: 2,
            max_reservations: 1024,
            circuits: 1,
            max_circuits: 256,
            max_circuit_ms: 3_600_000,
            refused: 3,
            ..Serving::default()
        };
        let expected = "everyone: 2 of 1,024 reservations, 1 of 256 connections, at most 1h 0m a connection, 3 refused";
        assert_eq!(serving_line(&serving), expected);
        let relay = Relay { state: RelayState::Reserved.into(), rtt_ms: 12.0, ..Relay::default() };
        assert_eq!(relay_line(&relay), "ok    (reserved, 12.00 ms, without limits)");
    }
}
