//! `peers` and `peer`: who is there, and the address book.

use std::time::SystemTime;

use clap::{Args, Subcommand};

use super::{
    args::Global,
    client::{ANSWER, Client, answer, connect},
    errors::Failure,
    output::{Names, Out, Table, ago, clean, count, name_of, peer_name, plural, reason, route, rtt, trust},
};
use crate::proto::{AddPeerRequest, BlockRequest, ListPeersRequest, Peer, RemovePeerRequest, Trust};

const ADD_EXAMPLES: &str = "\
The peer must add this node, too, before messages pass both ways.

Examples:
  p2p-node peer add 12D3Koo... --alias pi
  p2p-node peer add 12D3Koo... --address /ip4/192.0.2.1/udp/4001/quic-v1 --pinned";

const WATCH_EXAMPLES: &str = "\
SAYS is what the peer and its apps tell of themselves: its name, roles, a text.

With --watch, peers are printed as they are and then one line for each change;
with --json, each line has cause, peer, invite_id and detail, and the cause of
what was there at the start is CHANGE_CAUSE_UNSPECIFIED.

Examples:
  p2p-node peers --online
  p2p-node peers --watch";

/// Arguments of `peers`.
#[derive(Debug, Args)]
#[command(after_help = WATCH_EXAMPLES)]
pub(super) struct PeersArgs {
    /// Only those online now
    #[arg(long)]
    pub(super) online: bool,
    /// Go on, and print who comes, goes or changes
    #[arg(long)]
    pub(super) watch: bool,
}

/// The address book's commands.
#[derive(Debug, Subcommand)]
pub(super) enum PeerCommand {
    /// Put a peer into the address book and trust it, or change its entry
    Add(AddArgs),
    /// Take a peer out of the address book and stop trusting it
    Rm(OneArgs),
    /// Show the address book
    Ls,
    /// Refuse a peer altogether; `peer add` takes it back
    Block(OneArgs),
}

/// Arguments of `peer add`.
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(super) struct AddArgs {
    /// Its peer id
    peer: String,
    /// A name for it
    #[arg(long, value_name = "A")]
    alias: Option<String>,
    /// Where it can be reached; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    address: Vec<String>,
    /// Keep connected to it; --pinned=false ends that
    #[arg(long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pinned: Option<bool>,
}

/// A peer and nothing else.
#[derive(Debug, Args)]
pub(super) struct OneArgs {
    /// Peer id or alias
    peer: String,
}

/// Shows all peers.
pub(super) async fn list(args: &PeersArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    let peers = fetch(&mut client, args.online).await?;
    if out.json() {
        return objects(&peers, out);
    }
    if peers.is_empty() {
        return out.line(if args.online {
            "no peer is connected"
        } else {
            "no peers yet; `p2p-node peer add` adds one"
        });
    }
    out.bytes(peers_text(&peers, SystemTime::now()).as_bytes())
}

/// Does what a command of the address book says.
pub(super) async fn peer(command: PeerCommand, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    match command {
        PeerCommand::Add(args) => add(args, &mut client, out).await,
        PeerCommand::Rm(args) => remove(args, &mut client, out).await,
        PeerCommand::Ls => book(&mut client, out).await,
        PeerCommand::Block(args) => block(args, &mut client, out).await,
    }
}

async fn add(args: AddArgs, client: &mut Client, out: Out) -> Result<(), Failure> {
    let request = AddPeerRequest {
        peer: args.peer,
        alias: args.alias.unwrap_or_default(),
        addresses: args.address,
        trust: Trust::Unspecified.into(),
        pinned: args.pinned,
    };
    let added = answer(ANSWER, client.add_peer(request)).await?;
    if out.json() {
        return out.object(&added);
    }
    let peer = added.peer.unwrap_or_default();
    let verb = if added.created { "added" } else { "changed" };
    out.line(&format!("{verb} {} ({}), {}", clean(&peer_name(&peer)), clean(&peer.peer_id), trust(peer.trust)))
}

async fn remove(args: OneArgs, client: &mut Client, out: Out) -> Result<(), Failure> {
    let removed = answer(ANSWER, client.remove_peer(RemovePeerRequest { peer: args.peer })).await?;
    if out.json() {
        return out.object(&removed);
    }
    let mut line = format!("removed {}", clean(&removed.peer_id));
    if removed.queued > 0 {
        line.push_str(&format!("; {} for it stay queued", plural(removed.queued, "message")));
    }
    out.line(&line)
}

async fn block(args: OneArgs, client: &mut Client, out: Out) -> Result<(), Failure> {
    let blocked = answer(ANSWER, client.block(BlockRequest { peer: args.peer })).await?;
    if out.json() {
        return out.object(&blocked);
    }
    out.line(&format!("blocked {}", clean(&blocked.peer_id)))
}

async fn book(client: &mut Client, out: Out) -> Result<(), Failure> {
    let mut peers = fetch(client, false).await?;
    // A blocked peer is kept so that it stays refused; it is listed where it
    // can be found again.
    peers.retain(|peer| peer.in_book || peer.trust == i32::from(Trust::Blocked));
    if out.json() {
        return objects(&peers, out);
    }
    if peers.is_empty() {
        return out.line("the address book is empty; `p2p-node peer add` adds a peer");
    }
    out.bytes(book_text(&peers).as_bytes())
}

/// The aliases of the address book.
pub(super) async fn names(client: &mut Client) -> Result<Names, Failure> {
    let named = fetch(client, false).await?.into_iter().filter(|peer| !peer.alias.is_empty());
    Ok(named.map(|peer| (peer.peer_id, peer.alias)).collect())
}

async fn fetch(client: &mut Client, online: bool) -> Result<Vec<Peer>, Failure> {
    let mut peers = Vec::new();
    let mut request = ListPeersRequest { online, ..ListPeersRequest::default() };
    loop {
        let page = answer(ANSWER, client.list_peers(request.clone())).await?;
        peers.extend(page.peers);
        if page.next_page_token.is_empty() {
            return Ok(peers);
        }
        request.page_token = page.next_page_token;
    }
}

fn objects(peers: &[Peer], out: Out) -> Result<(), Failure> {
    peers.iter().try_for_each(|peer| out.object(peer))
}

pub(super) fn peers_text(peers: &[Peer], now: SystemTime) -> String {
    let named = peers.iter().filter(|peer| !peer.alias.is_empty());
    let names: Names = named.map(|peer| (peer.peer_id.clone(), peer.alias.clone())).collect();
    let mut table = Table::new(&["NAME", "TRUST", "ROUTE", "RTT", "LAST SEEN", "QUEUED", "SAYS", "PEER ID"]);
    for peer in peers {
        table.row(vec![
            peer_name(peer),
            trust(peer.trust),
            if peer.online { way(peer, &names) } else { "-".to_owned() },
            if peer.online { rtt(peer.rtt_ms) } else { "-".to_owned() },
            seen(peer, now),
            queued(peer),
            or_dash(says(peer)),
            peer.peer_id.clone(),
        ]);
    }
    table.take()
}

fn book_text(peers: &[Peer]) -> String {
    let mut table = Table::new(&["ALIAS", "TRUST", "PINNED", "SAYS", "PEER ID", "ADDRESSES"]);
    for peer in peers {
        let alias = if peer.alias.is_empty() { "-" } else { &peer.alias };
        let mut row = vec![
            alias.to_owned(),
            trust(peer.trust),
            if peer.pinned { "yes" } else { "no" }.to_owned(),
            or_dash(says(peer)),
            peer.peer_id.clone(),
            peer.addresses.first().cloned().unwrap_or_else(|| "-".to_owned()),
        ];
        table.row(row.clone());
        for address in peer.addresses.iter().skip(1) {
            row = vec![String::new(); row.len() - 1];
            row.push(address.clone());
            table.row(row.clone());
        }
    }
    table.take()
}

/// How the peer is reached, and through whom.
pub(super) fn way(peer: &Peer, names: &Names) -> String {
    let route = route(peer.route);
    if peer.relay_id.is_empty() { route } else { format!("{route} by {}", name_of(&peer.relay_id, names)) }
}

/// What the peer and its apps tell of themselves; its name only where it is
/// called otherwise here.
pub(super) fn says(peer: &Peer) -> String {
    let mut parts = Vec::new();
    if peer.name != peer.alias {
        parts.push(peer.name.clone());
    }
    parts.push(peer.roles.join("+"));
    if !peer.presence.is_empty() {
        parts.push(format!("\"{}\"", peer.presence));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn seen(peer: &Peer, now: SystemTime) -> String {
    match (peer.online, peer.on_lan) {
        (true, _) => "online".to_owned(),
        (false, true) => "on the LAN".to_owned(),
        (false, false) => ago(peer.last_seen, now),
    }
}

fn queued(peer: &Peer) -> String {
    let why = reason(peer.reason);
    if why.is_empty() || peer.queued == 0 { count(peer.queued) } else { format!("{} {why}", count(peer.queued)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Reason, Route};

    #[test]
    fn peers_are_a_table() {
        let peers = [
            Peer {
                peer_id: "12D3KooWabcdefgh".into(),
                alias: "pi".into(),
                trust: Trust::Trusted.into(),
                online: true,
                route: Route::Lan.into(),
                rtt_ms: 0.414,
                name: "raspberry".into(),
                roles: vec!["cam".into(), "server".into()],
                presence: "21 °C".into(),
                ..Default::default()
            },
            Peer {
                peer_id: "12D3KooWstuvwxyz".into(),
                trust: Trust::Known.into(),
                route: Route::None.into(),
                queued: 1200,
                reason: Reason::NotConnected.into(),
                ..Default::default()
            },
        ];
        let expected = "\
NAME       TRUST    ROUTE  RTT      LAST SEEN  QUEUED               SAYS                            PEER ID
pi         trusted  LAN    0.41 ms  online     0                    raspberry, cam+server, \"21 °C\"  12D3KooWabcdefgh
…stuvwxyz  known    -      -        -          1,200 NOT_CONNECTED  -                               12D3KooWstuvwxyz
";
        assert_eq!(peers_text(&peers, SystemTime::now()), expected);
    }

    #[test]
    fn a_relayed_peer_names_its_relay() {
        let relay_id = "12D3KooWabcdefgh".to_owned();
        let peer = Peer { route: Route::Relayed.into(), relay_id: relay_id.clone(), ..Default::default() };
        assert_eq!(way(&peer, &Names::default()), "relayed by …abcdefgh");
        assert_eq!(way(&peer, &[(relay_id, "vps".to_owned())].into()), "relayed by vps");
    }

    #[test]
    fn the_book_lists_each_address() {
        let peers = [Peer { peer_id: "x".into(), addresses: vec!["/a".into(), "/b".into()], ..Default::default() }];
        let expected = "\
ALIAS  TRUST  PINNED  SAYS  PEER ID  ADDRESSES
-      -      no      -     x        /a
                                     /b
";
        assert_eq!(book_text(&peers), expected);
    }
}
