//! `ping`, `connect` and `disconnect`.

use std::time::Duration;

use clap::Args;
use tokio::time::sleep;
use tonic::Code;

use super::{
    args::Global,
    client::{ANSWER, PEER_ANSWER, answer, connect as open},
    errors::Failure,
    output::{Out, clean, count, plural, route, short_id},
};
use crate::proto::{ConnectRequest, DisconnectRequest, PingRequest, PingResponse, connect_request::Target};

/// Between one ping and the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `ping`.
#[derive(Debug, Args)]
#[command(
    after_help = "It dials if needed, waits up to 10 s, and needs no trust.\n\nExample:\n  p2p-node ping pi --count 5"
)]
pub(super) struct PingArgs {
    /// Peer id or alias
    peer: String,
    /// How often, a second apart
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

/// Arguments of `connect`.
#[derive(Debug, Args)]
#[command(after_help = "It waits up to 10 s and needs no trust.\n\n\
    Examples:\n  p2p-node connect pi\n  p2p-node connect /ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3Koo...")]
pub(super) struct ConnectArgs {
    /// A multiaddr that ends in /p2p/PEER_ID, or a peer id or alias
    #[arg(value_name = "MULTIADDR|PEER")]
    target: String,
}

/// Arguments of `disconnect`.
#[derive(Debug, Args)]
pub(super) struct DisconnectArgs {
    /// Peer id or alias
    peer: String,
}

/// Round trips so far.
#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    rtts: Vec<f64>,
    last: Option<Failure>,
}

impl Tally {
    fn text(&self) -> String {
        let mut text = format!("{} of {} answered", count(self.rtts.len() as u64), count(self.sent.into()));
        if !self.rtts.is_empty() {
            let least = self.rtts.iter().copied().fold(f64::INFINITY, f64::min);
            let most = self.rtts.iter().copied().fold(0.0, f64::max);
            let mean = self.rtts.iter().sum::<f64>() / self.rtts.len() as f64;
            text.push_str(&format!("; rtt min {least:.2}, mean {mean:.2}, max {most:.2} ms"));
        }
        text
    }
}

/// Measures round trips. Succeeds if any ping was answered.
pub(super) async fn ping(args: &PingArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = open(global).await?;
    let mut tally = Tally::default();
    for number in 0..args.count {
        if number > 0 {
            sleep(INTERVAL).await;
        }
        tally.sent += 1;
        match answer(PEER_ANSWER, client.ping(PingRequest { peer: args.peer.clone() })).await {
            Ok(reply) => {
                tally.rtts.push(reply.rtt_ms);
                print_reply(&args.peer, &reply, out)?;
            }
            Err(failure) if args.count > 1 && may_pass(&failure) => {
                failure.report();
                tally.last = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    if args.count > 1 && !out.json() {
        out.line(&tally.text())?;
    }
    match tally.last {
        Some(_) if tally.rtts.is_empty() => {
            Err(Failure::Failed(format!("{} did not answer any ping", clean(&args.peer))))
        }
        _ => Ok(()),
    }
}

/// Connects to a peer.
pub(super) async fn connect(args: ConnectArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = open(global).await?;
    let request = ConnectRequest { target: Some(target(args.target)) };
    let connected = answer(PEER_ANSWER, client.connect(request)).await?;
    if out.json() {
        return out.object(&connected);
    }
    let verb = if connected.already_connected { "already connected" } else { "connected" };
    let (peer, address) = (clean(&connected.peer_id), clean(&connected.address));
    out.line(&format!("{verb} to {peer}: {}, {address}", route(connected.route)))
}

/// Closes all connections to a peer.
pub(super) async fn disconnect(args: DisconnectArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = open(global).await?;
    let request = DisconnectRequest { peer: args.peer.clone() };
    let closed = answer(ANSWER, client.disconnect(request)).await?;
    if out.json() {
        return out.object(&closed);
    }
    out.line(&format!("{}: {} closed", clean(&args.peer), plural(closed.connections.into(), "connection")))
}

/// A multiaddr begins with a slash, a peer id or alias never does.
fn target(text: String) -> Target {
    if text.starts_with('/') { Target::Address(text) } else { Target::Peer(text) }
}

/// Whether the next ping may do better.
fn may_pass(failure: &Failure) -> bool {
    matches!(failure, Failure::Rpc(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded))
}

fn print_reply(peer: &str, reply: &PingResponse, out: Out) -> Result<(), Failure> {
    if out.json() { out.object(reply) } else { out.line(&reply_text(peer, reply)) }
}

fn reply_text(peer: &str, reply: &PingResponse) -> String {
    let name = if peer == reply.peer_id { short_id(peer) } else { peer.to_owned() };
    format!("{}: rtt {:.2} ms, {}, {}", clean(&name), reply.rtt_ms, route(reply.route), clean(&reply.address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Route;

    #[test]
    fn slashes_tell_addresses_from_peers() {
        assert_eq!(target("/ip4/1.2.3.4".into()), Target::Address("/ip4/1.2.3.4".into()));
        assert_eq!(target("pi".into()), Target::Peer("pi".into()));
    }

    #[test]
    fn replies_and_summary_read_well() {
        let reply = PingResponse {
            peer_id: "12D3KooWabcdefgh".into(),
            rtt_ms: 1.236,
            route: Route::Direct.into(),
            address: "/ip4/1.2.3.4".into(),
        };
        assert_eq!(reply_text("pi", &reply), "pi: rtt 1.24 ms, direct, /ip4/1.2.3.4");
        assert_eq!(reply_text("12D3KooWabcdefgh", &reply), "…abcdefgh: rtt 1.24 ms, direct, /ip4/1.2.3.4");
        let tally = Tally { sent: 3, rtts: vec![1.0, 3.0], last: None };
        assert_eq!(tally.text(), "2 of 3 answered; rtt min 1.00, mean 2.00, max 3.00 ms");
        assert_eq!(Tally { sent: 1, ..Tally::default() }.text(), "0 of 1 answered");
    }
}
