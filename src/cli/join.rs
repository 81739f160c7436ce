//! `invite` and `join`: two machines, one ticket.

use std::{
    io::{self, IsTerminal as _, Read as _},
    time::Duration,
};

use clap::Args;
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use tonic::Streaming;

use super::{
    args::Global,
    client::{ANSWER, Client, answer, connect},
    errors::Failure,
    output::{Out, clean, peer_name, route, short_id},
    signals::Signals,
};
use crate::{
    proto::{
        ChangeCause, InviteRequest, InviteResponse, JoinRequest, JoinResponse, Peer, PeerChange, WatchPeersRequest,
        WatchPeersResponse, watch_peers_response::Frame,
    },
    ticket::MAX_TICKET_CHARS,
};

const INVITE_EXAMPLES: &str = "\
A ticket is good for one node. Hand it over by a way that nobody else reads.

Without a terminal, or with --json, it prints a JSON object and ends; the ticket
in it stays good. Whoever has the ticket can join: one that got into the wrong hands
cannot be called back, so let it expire soon.

Examples:
  p2p-node invite
  p2p-node invite --expires 10m --alias laptop
  ssh pi p2p-node invite | p2p-node join -";

const JOIN_EXAMPLES: &str = "\
It waits up to 30 s. Capitals, blanks and line ends in the ticket do not matter.

Examples:
  p2p-node join MFRGG...
  p2p-node join - < ticket          out of sight of others on this machine";

/// How long joining may take, beyond the daemon's own deadline (30 s), so that
/// its error arrives rather than ours.
const JOIN_ANSWER: Duration = Duration::from_secs(35);
/// Bytes of stdin that are looked at: a ticket with room for blanks.
const MAX_STDIN: u64 = 16 * MAX_TICKET_CHARS as u64;
/// Black on white, whatever the terminal's colours are: a QR code with the
/// colours swapped is not read by every camera.
const BLACK_ON_WHITE: &str = "\x1b[30;107m";
const WAITING: &str = "Waiting for it to join. Ctrl-C ends the waiting; the ticket stays good.";
const PLAIN: &str = "\x1b[0m";

/// Arguments of `invite`.
#[derive(Debug, Args)]
#[command(after_help = INVITE_EXAMPLES)]
pub(super) struct InviteArgs {
    /// How long the ticket is good, up to 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// What to call the node that joins [default: what it calls itself]
    #[arg(long, value_name = "A")]
    alias: Option<String>,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
#[command(after_help = JOIN_EXAMPLES)]
pub(super) struct JoinArgs {
    /// The ticket, or the object that `p2p-node invite` printed; `-` reads it
    /// from stdin
    #[arg(required = true, value_name = "TICKET")]
    ticket: Vec<String>,
    /// What to call the node that invites [default: what it calls itself]
    #[arg(long, value_name = "A")]
    alias: Option<String>,
}

/// Makes a ticket.
pub(super) async fn invite(args: InviteArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let expires_ms = u64::try_from(args.expires.as_millis()).unwrap_or(u64::MAX);
    if expires_ms == 0 {
        return Err(Failure::Usage("--expires is less than a millisecond; give a time such as 10m".to_owned()));
    }
    let mut client = connect(global).await?;
    let waits = io::stdout().is_terminal() && !out.json();
    // Before the ticket is there, so that nobody joins unseen.
    let changes = if waits { Some(changes(&mut client).await?) } else { None };
    let request = InviteRequest { expires_ms, alias: args.alias.unwrap_or_default() };
    let invitation = answer(ANSWER, client.invite(request)).await?;
    let Some(changes) = changes else { return out.object(&invitation) };
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    out.line(&invitation_text(&invitation, args.expires, colours)?)?;
    out.line(WAITING)?;
    let mut signals = Signals::ending()?;
    tokio::select! {
        biased;
        joined = joined(changes, &invitation.invite_id) => out.line(&arrived_text(&joined?)),
        signal = signals.wait() => Err(signal),
        () = tokio::time::sleep(args.expires) => {
            Err(Failure::Failed("nobody joined in time: the ticket has expired; make another".to_owned()))
        }
    }
}

async fn changes(client: &mut Client) -> Result<Streaming<WatchPeersResponse>, Failure> {
    let mut stream = client.watch_peers(WatchPeersRequest { book_only: true }).await?.into_inner();
    // Ready: it hears of all that happens from now on.
    stream.message().await?;
    Ok(stream)
}

/// Waits until somebody joins with this ticket.
async fn joined(mut changes: Streaming<WatchPeersResponse>, invite_id: &str) -> Result<Peer, Failure> {
    while let Some(frame) = changes.message().await? {
        let Some(Frame::Changes(some)) = frame.frame else { continue };
        let ours = |change: &PeerChange| change.cause() == ChangeCause::Joined && change.invite_id == invite_id;
        if let Some(change) = some.changes.into_iter().find(ours) {
            return Ok(change.peer.unwrap_or_default());
        }
    }
    Err(Failure::Failed("UNAVAILABLE: the daemon ended the stream; the ticket stays good".to_owned()))
}

fn arrived_text(peer: &Peer) -> String {
    let (name, id) = (clean(&peer_name(peer)), clean(&peer.peer_id));
    let to = if peer.alias.is_empty() { &id } else { &name };
    format!(
        "{name} joined ({id}), {}\n\nBoth nodes trust each other. Next:\n  p2p-node send {to} 'hello'",
        route(peer.route)
    )
}

/// Redeems a ticket.
pub(super) async fn join(args: JoinArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let text = if args.ticket == ["-"] { from_stdin()? } else { args.ticket.concat() };
    let ticket = ticket_in(text)?;
    let mut client = connect(global).await?;
    let request = JoinRequest { ticket, alias: args.alias.unwrap_or_default() };
    let joined = answer(JOIN_ANSWER, client.join(request)).await?;
    if out.json() {
        return out.object(&joined);
    }
    out.line(&joined_text(&joined))
}

/// The ticket of a text that is one, or the JSON that holds one.
fn ticket_in(text: String) -> Result<String, Failure> {
    if !text.trim_start().starts_with('{') {
        return Ok(text);
    }
    let object: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Failure::Usage(format!("what was given as ticket is damaged JSON: {error}")))?;
    let ticket = object.get("ticket").and_then(serde_json::Value::as_str);
    ticket.map(ToOwned::to_owned).ok_or_else(|| {
        Failure::Usage("what was given as ticket is JSON without one; give what `p2p-node invite` printed".to_owned())
    })
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_STDIN).read_to_string(&mut text);
    read.map_err(|error| Failure::Failed(format!("cannot read the ticket from stdin: {error}")))?;
    Ok(text)
}

fn invitation_text(invitation: &InviteResponse, expires: Duration, colours: bool) -> Result<String, Failure> {
    let ticket = clean(&invitation.ticket);
    let reach = if invitation.addresses.is_empty() {
        "This node has no address now: the other machine must be on the same local network.\n"
    } else if invitation.lan_only {
        "LAN only: the other machine must be on the same local network.\n"
    } else {
        ""
    };
    Ok(format!(
        "Ticket for one node, good for {}:\n\n{ticket}\n\n{}\n\nOn the other machine, type\n\n  p2p-node join {ticket}\n\n{reach}",
        humantime::format_duration(expires),
        qr_code(&ticket, colours)?,
    ))
}

/// The QR code of a ticket, two of its rows in a line.
fn qr_code(ticket: &str, colours: bool) -> Result<String, Failure> {
    // The checksum notices what error correction would correct.
    let code = QrCode::with_error_correction_level(ticket, EcLevel::L)
        .map_err(|error| Failure::Failed(format!("cannot draw the QR code: {error}")))?;
    let (dark, light) = if colours { (Dense1x2::Dark, Dense1x2::Light) } else { (Dense1x2::Light, Dense1x2::Dark) };
    let drawn = code.render::<Dense1x2>().dark_color(dark).light_color(light).build();
    if !colours {
        return Ok(drawn);
    }
    let lines: Vec<String> = drawn.lines().map(|line| format!("{BLACK_ON_WHITE}{line}{PLAIN}")).collect();
    Ok(lines.join("\n"))
}

fn joined_text(joined: &JoinResponse) -> String {
    let name = if joined.alias.is_empty() { short_id(&joined.peer_id) } else { joined.alias.clone() };
    let name = clean(&name);
    let to = if joined.alias.is_empty() { clean(&joined.peer_id) } else { name.clone() };
    let verb = if joined.already_joined { "already joined" } else { "joined" };
    let (peer, way, address) = (clean(&joined.peer_id), route(joined.route), clean(&joined.address));
    format!(
        "{verb} {name} ({peer})\nconnected: {way}, {address}\n\nBoth nodes trust each other. Next:\n  \
         p2p-node send {to} 'hello'\n  p2p-node listen"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Route;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_ticket_is_found_in_what_invite_prints() {
        for text in ["ABC", " ABC\n", r#"{"ticket":"ABC","lan_only":true}"#, " {\n\"ticket\": \"ABC\"}\n"] {
            assert_eq!(ticket_in(text.to_owned()).ok().as_deref().map(str::trim), Some("ABC"), "{text}");
        }
        for text in ["{", "{}", r#"{"ticket":1}"#] {
            assert!(ticket_in(text.to_owned()).is_err(), "{text}");
        }
    }

    fn invitation() -> InviteResponse {
        InviteResponse {
            ticket: "A".repeat(150),
            invite_id: "1".into(),
            expires_at: i64::MAX,
            addresses: vec!["/ip4/1.2.3.4".into()],
            lan_only: false,
        }
    }

    #[test]
    fn a_qr_code_fits_a_terminal() {
        for ticket in ["A".repeat(150), "7".repeat(MAX_TICKET_CHARS)] {
            let drawn = qr_code(&ticket, false).unwrap();
            let width = drawn.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(width <= 80 && drawn.lines().count() <= 40, "{width} x {}", drawn.lines().count());
            let coloured = qr_code(&ticket, true).unwrap();
            assert!(coloured.lines().all(|line| line.starts_with(BLACK_ON_WHITE) && line.ends_with(PLAIN)));
        }
    }

    #[test]
    fn an_invitation_says_what_to_type() {
        let text = invitation_text(&invitation(), HOUR, false).unwrap();
        assert!(text.contains(&format!("  p2p-node join {}\n", "A".repeat(150))), "{text}");
        assert!(text.starts_with("Ticket for one node, good for 1h:") && !text.contains("LAN only"), "{text}");
        let text = invitation_text(&InviteResponse { lan_only: true, ..invitation() }, HOUR, false).unwrap();
        assert!(text.contains("LAN only: the other machine must be on the same local network."), "{text}");
    }

    #[test]
    fn a_join_says_with_whom_and_how() {
        let joined = JoinResponse {
            peer_id: "12D3KooWabcdefgh".into(),
            alias: "pi".into(),
            route: Route::Lan.into(),
            address: "/ip4/192.168.1.2".into(),
            already_joined: false,
        };
        let text = joined_text(&joined);
        assert!(text.starts_with("joined pi (12D3KooWabcdefgh)\nconnected: LAN, /ip4/192.168.1.2\n"), "{text}");
        assert!(text.contains("p2p-node send pi 'hello'"), "{text}");
        let again = joined_text(&JoinResponse { alias: String::new(), already_joined: true, ..joined });
        assert!(again.starts_with("already joined …abcdefgh (12D3"), "{again}");
        assert!(again.contains("p2p-node send 12D3KooWabcdefgh"), "{again}");
    }
}
