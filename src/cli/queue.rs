//! `queue`: messages that are on their way out.

use std::time::SystemTime;

use clap::{Args, Subcommand};

use super::{
    args::Global,
    client::{ANSWER, Client, answer, connect},
    errors::Failure,
    output::{Names, Out, Table, ago, bytes, clean, duration, name_of, state, why},
    peers,
};
use crate::proto::{CancelRequest, ListMessagesRequest, MessageState, SentMessage};

/// Messages a page: the most that the daemon gives.
const PAGE: u32 = 1000;

/// The queue's commands.
#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// List messages that are not finished, oldest first
    Ls(LsArgs),
    /// Take back a message that the peer has not stored yet
    Rm(RmArgs),
}

/// Arguments of `queue ls`.
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only those for this peer: id or alias
    #[arg(long, value_name = "P")]
    peer: Option<String>,
    /// Only those of this channel
    #[arg(long, value_name = "C")]
    channel: Option<String>,
}

/// Arguments of `queue rm`.
#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// The message's id
    id: String,
    /// Its recipient, if the id alone does not tell: id or alias
    #[arg(long, value_name = "P")]
    peer: Option<String>,
    /// Its channel, if the id alone does not tell
    #[arg(long, value_name = "C")]
    channel: Option<String>,
}

/// Does what a command of the queue says.
pub(super) async fn queue(command: QueueCommand, global: &Global, out: Out) -> Result<(), Failure> {
    let mut client = connect(global).await?;
    match command {
        QueueCommand::Ls(args) => list(args, &mut client, out).await,
        QueueCommand::Rm(args) => cancel(args, &mut client, out).await,
    }
}

/// Prints page by page, so that a long queue needs no memory here.
async fn list(args: LsArgs, client: &mut Client, out: Out) -> Result<(), Failure> {
    let mut request = ListMessagesRequest {
        peer: args.peer.unwrap_or_default(),
        channel: args.channel,
        page_size: PAGE,
        page_token: String::new(),
    };
    let mut table = Table::new(&["STATE", "PEER", "CHANNEL", "QUEUED", "SIZE", "TTL LEFT", "ID", "WHY"]);
    let names = if out.json() { Names::new() } else { peers::names(client).await? };
    let mut empty = true;
    loop {
        let page = answer(ANSWER, client.list_messages(request.clone())).await?;
        empty &= page.messages.is_empty();
        if out.json() {
            page.messages.iter().try_for_each(|message| out.object(message))?;
        } else if !page.messages.is_empty() {
            page.messages.iter().for_each(|message| table.row(row(message, &names, SystemTime::now())));
            out.bytes(table.take().as_bytes())?;
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if empty && !out.json() { out.line("nothing is waiting") } else { Ok(()) }
}

async fn cancel(args: RmArgs, client: &mut Client, out: Out) -> Result<(), Failure> {
    let request = CancelRequest { id: args.id, peer: args.peer, channel: args.channel };
    let message = answer(ANSWER, client.cancel(request)).await?.message.unwrap_or_default();
    if out.json() {
        out.object(&message)?;
    }
    match outcome(&message) {
        Ok(_) if out.json() => Ok(()),
        Ok(line) => out.line(&line),
        Err(text) => Err(Failure::Failed(text)),
    }
}

/// A line for people, or why the message was not taken back.
fn outcome(message: &SentMessage) -> Result<String, String> {
    let id = clean(&message.id);
    let pending = message.pending_outcome != i32::from(MessageState::Unspecified);
    match MessageState::try_from(message.state) {
        Ok(MessageState::Cancelled) => Ok(format!("cancelled  {id}")),
        Ok(MessageState::Stored) => Err(format!("STORED {id}: the peer has it already")),
        Ok(MessageState::Queued | MessageState::Sent) if pending => {
            Ok(format!("stopped  {id}: not sent any more; it may have arrived before, the peer will be asked"))
        }
        Ok(MessageState::Expired | MessageState::Rejected) => {
            Ok(format!("{}  {id}: it was over before", state(message.state).to_lowercase()))
        }
        _ => Err(format!("{} {id}: not taken back", state(message.state))),
    }
}

fn row(message: &SentMessage, names: &Names, now: SystemTime) -> Vec<String> {
    let pending = match message.pending_outcome {
        0 => String::new(),
        outcome => format!("→{}", state(outcome)),
    };
    vec![
        format!("{}{pending}", state(message.state)),
        name_of(&message.peer, names),
        if message.channel.is_empty() { "-".to_owned() } else { message.channel.clone() },
        ago(message.queued_at, now),
        bytes(message.payload_bytes),
        duration(message.ttl_left_ms),
        message.id.clone(),
        why(message.reason, &message.detail),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Reason;

    fn message(state: MessageState, pending: MessageState) -> SentMessage {
        SentMessage { id: "7".into(), state: state.into(), pending_outcome: pending.into(), ..Default::default() }
    }

    #[test]
    fn taking_back_tells_what_became_of_it() {
        use MessageState as S;
        assert_eq!(outcome(&message(S::Cancelled, S::Unspecified)).unwrap(), "cancelled  7");
        assert!(outcome(&message(S::Sent, S::Cancelled)).unwrap().contains("peer will be asked"));
        assert!(outcome(&message(S::Expired, S::Unspecified)).is_ok());
        assert_eq!(outcome(&message(S::Stored, S::Unspecified)).unwrap_err(), "STORED 7: the peer has it already");
        assert!(outcome(&message(S::Queued, S::Unspecified)).is_err());
    }

    #[test]
    fn rows_say_why() {
        let message = SentMessage {
            peer: "12D3KooW".into(),
            reason: Reason::NotConnected.into(),
            detail: "being dialled".into(),
            payload_bytes: 2048,
            ttl_left_ms: 60_000,
            ..message(MessageState::Queued, MessageState::Unspecified)
        };
        let names = Names::from([("12D3KooW".to_owned(), "pi".to_owned())]);
        let row = row(&message, &names, SystemTime::now());
        assert_eq!(row, ["QUEUED", "pi", "-", "-", "2.0 KiB", "1m 0s", "7", "NOT_CONNECTED: being dialled"]);
    }
}
