//! `explain` and `find`: the way to a peer.

use std::time::SystemTime;

use clap::Args;

use super::{
    args::Global,
    client::{ANSWER, PEER_ANSWER, answer, connect},
    errors::Failure,
    netcheck::{advice_text, bare, nat_line, rows},
    output::{Out, Table, ago, clean, count, duration, plural, route, rtt, short_id},
};
use crate::proto::{
    ExplainPathRequest, ExplainPathResponse, FindPeerRequest, FindPeerResponse, KnownAddress, KnownSource,
    PathConnection, PunchRound, TryOutcome,
};

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "It tells what is known; nothing is dialled for it. `connect` tries once more.\n\n\
    Example:\n  p2p-node explain pi")]
pub(super) struct ExplainArgs {
    /// Peer id or alias
    peer: String,
}

/// Arguments of `find`.
#[derive(Debug, Args)]
#[command(
    after_help = "It waits up to 10 s, needs no trust and does not connect. Nothing found: exit status 1.\n\nExample:\n  p2p-node find 12D3Koo..."
)]
pub(super) struct FindArgs {
    /// Peer id or alias
    peer: String,
}

/// Tells why a peer is reached as it is.
pub(super) async fn explain(args: ExplainArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    let path = answer(ANSWER, client.explain_path(ExplainPathRequest { peer: args.peer })).await?;
    if out.json() {
        return out.object(&path);
    }
    out.bytes(text(&path, SystemTime::now()).as_bytes())
}

/// Looks for a peer by its id.
pub(super) async fn find(args: FindArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    let found = answer(PEER_ANSWER, client.find_peer(FindPeerRequest { peer: args.peer })).await?;
    let nothing = found.addresses.is_empty();
    if out.json() {
        out.object(&found)?;
    } else if !nothing {
        out.bytes(found_text(&found, SystemTime::now()).as_bytes())?;
    }
    if nothing { Err(Failure::Failed(clean(&found.detail))) } else { Ok(()) }
}

fn text(path: &ExplainPathResponse, now: SystemTime) -> String {
    let mut text = format!("{}: {}\n\n", clean(&path.peer_id), clean(&path.verdict));
    let mut table = Table::default();
    rows("connections", path.connections.iter().map(|known| connection_line(known, path.rtt_ms)), &mut table);
    rows("addresses", path.addresses.iter().map(|address| address_line(address, now)), &mut table);
    if !path.punches.is_empty() {
        rows("punches", path.punches.iter().map(|round| punch_line(round, now)), &mut table);
    }
    if let Some(nat) = &path.peer_nat {
        table.row(vec!["peer's NAT".to_owned(), nat_line(nat)]);
    }
    if path.dialling || path.next_try_ms > 0 {
        let next = if path.dialling { "now".to_owned() } else { format!("in {}", duration(path.next_try_ms)) };
        table.row(vec!["next try".to_owned(), next]);
    }
    text.push_str(&table.take());
    text.push_str(&advice_text(&path.advice));
    text
}

fn connection_line(known: &PathConnection, rtt_ms: f64) -> String {
    let mark = if known.in_use { "*" } else { " " };
    let mut notes = vec![format!("for {}", duration(known.age_ms))];
    notes.push(if known.dialled { "dialled here" } else { "dialled there" }.to_owned());
    notes.extend((known.in_use && rtt_ms > 0.0).then(|| rtt(rtt_ms)));
    let through = if known.relay_id.is_empty() { String::new() } else { format!(" by {}", short_id(&known.relay_id)) };
    format!("{mark} {}{through}  {}  ({})", route(known.route), bare(&known.address), notes.join(", "))
}

fn address_line(address: &KnownAddress, now: SystemTime) -> String {
    let (mark, came) = match TryOutcome::try_from(address.outcome) {
        Ok(TryOutcome::Worked) => ("ok", format!("worked {}", ago(address.tried_at, now))),
        Ok(TryOutcome::Failed) => ("no", format!("{}, {}", address.cause, ago(address.tried_at, now))),
        Ok(TryOutcome::Unspecified) | Err(_) => ("? ", "not tried".to_owned()),
    };
    format!("{mark}  {}  ({}; {came})", bare(&address.address), source(address.source))
}

fn source(source: i32) -> &'static str {
    match KnownSource::try_from(source) {
        Ok(KnownSource::Lan) => "seen on the LAN",
        Ok(KnownSource::Book) => "address book",
        Ok(KnownSource::Worked) => "worked before",
        Ok(KnownSource::Peer) => "told by the peer",
        Ok(KnownSource::Found) => "found",
        Ok(KnownSource::Relay) => "relay",
        Ok(KnownSource::Unspecified) | Err(_) => "unknown source",
    }
}

fn punch_line(round: &PunchRound, now: SystemTime) -> String {
    let took = if round.took_ms > 0.0 { format!(" after {:.0} ms", round.took_ms) } else { String::new() };
    let (mark, came) = match TryOutcome::try_from(round.outcome) {
        Ok(TryOutcome::Worked) => ("ok", format!("connected{took}: {}", bare(&round.address))),
        Ok(TryOutcome::Failed) => ("no", format!("failed{took}: {}", round.cause)),
        Ok(TryOutcome::Unspecified) | Err(_) => ("..", "running".to_owned()),
    };
    format!("{mark}  round {}, {}: {}; {came}", round.round, ago(round.began_at, now), round.plan)
}

fn found_text(found: &FindPeerResponse, now: SystemTime) -> String {
    let mut text = String::new();
    for address in &found.addresses {
        text.push_str(&format!("{}\n", clean(&address_line(address, now))));
    }
    let asked = plural(found.servers_asked.into(), "server");
    text.push_str(&format!("{asked} asked, {} hops, {:.0} ms\n", count(found.hops.into()), found.took_ms));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Advice, Nat, Route};

    #[test]
    fn a_relayed_peer_is_explained() {
        let path = ExplainPathResponse {
            peer_id: "12D3KooWabcdefgh".into(),
            verdict: "connected through a relay: why".into(),
            route: Route::Relayed.into(),
            rtt_ms: 31.5,
            connections: vec![PathConnection {
                route: Route::Relayed.into(),
                address: "/ip4/1.2.3.4/x".into(),
                dialled: true,
                age_ms: 61_000,
                in_use: true,
                relay_id: "12D3KooWrelay234".into(),
            }],
            addresses: vec![KnownAddress {
                address: "/ip4/5.6.7.8/y".into(),
                source: KnownSource::Peer.into(),
                tried_at: i64::MAX,
                outcome: TryOutcome::Failed.into(),
                cause: "timed\x1b out".into(),
                ..KnownAddress::default()
            }],
            punches: vec![PunchRound {
                began_at: i64::MAX,
                round: 2,
                plan: "both dial".into(),
                took_ms: 1500.0,
                outcome: TryOutcome::Failed.into(),
                cause: "no answer".into(),
                ..PunchRound::default()
            }],
            peer_nat: Some(Nat { summary: "a symmetric NAT".into(), ..Nat::default() }),
            next_try_ms: 30_000,
            advice: vec![Advice { code: "C".into(), cause: "is so".into(), cures: vec!["do this".into()] }],
            ..ExplainPathResponse::default()
        };
        let expected = "\
12D3KooWabcdefgh: connected through a relay: why

connections  * relayed by …relay234  /ip4/1.2.3.4/x  (for 1m 1s, dialled here, 31.50 ms)
addresses    no  /ip4/5.6.7.8/y  (told by the peer; timed\\u{1b} out, 0ms ago)
punches      no  round 2, 0ms ago: both dial; failed after 1500 ms: no answer
peer's NAT   a symmetric NAT
next try     in 30s

C: is so
  - do this
";
        assert_eq!(text(&path, SystemTime::now()), expected);
    }

    #[test]
    fn an_empty_answer_still_prints() {
        let text = text(&ExplainPathResponse::default(), SystemTime::now());
        assert!(text.contains("connections  none") && text.contains("addresses    none"), "{text}");
    }

    #[test]
    fn what_was_found_is_listed() {
        let found = FindPeerResponse {
            addresses: vec![KnownAddress {
                address: "/a".into(),
                source: KnownSource::Found.into(),
                ..Default::default()
            }],
            servers_asked: 3,
            hops: 2,
            took_ms: 31.2,
            ..FindPeerResponse::default()
        };
        let expected = "?   /a  (found; not tried)\n3 servers asked, 2 hops, 31 ms\n";
        assert_eq!(found_text(&found, SystemTime::now()), expected);
    }
}
