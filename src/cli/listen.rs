//! `listen`: prints a channel's messages and acknowledges what it printed.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use tokio::time::timeout;
use tonic::Streaming;

use super::{
    args::Global,
    client::{ANSWER, Client, answer, connect},
    errors::Failure,
    json,
    output::{Names, Out, clean, name_of, payload, time},
    peers,
    signals::Signals,
};
use crate::proto::{AckMode, AckRequest, Delivery, ListenRequest, ListenResponse, Message, listen_response::Frame};

/// How long the last acknowledgement may take after Ctrl-C.
const LAST_ACK: Duration = Duration::from_secs(1);
/// Messages a frame, and so a write to stdout and an acknowledgement.
const BATCH: u32 = 256;

const EXAMPLES: &str = "\
A message is acknowledged once it is printed; what was not, comes again. Two
listeners that both want everything use two --consumer names.

Examples:
  p2p-node listen
  p2p-node listen --channel photos --max 1 --json
  p2p-node listen --peek";

/// Arguments of `listen`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ListenArgs {
    /// The channel
    #[arg(long, value_name = "C", default_value = "", hide_default_value = true)]
    channel: String,
    /// On whose behalf: each name gets every message [default: default]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    consumer: String,
    /// Exit after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Print without acknowledging: nothing is consumed
    #[arg(long)]
    peek: bool,
}

/// A stream being printed.
struct Listener {
    client: Client,
    args: ListenArgs,
    /// Aliases by peer id, as they were at the start.
    names: Names,
    /// Messages still to be printed, if there is an end.
    left: Option<u64>,
    /// Cursor of the last message printed, while it is not acknowledged.
    printed: Option<u64>,
    out: Out,
}

/// Prints messages until there were enough, a signal comes or the daemon ends
/// the stream.
pub(super) async fn listen(args: ListenArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let mut signals = Signals::ending()?;
    let mut client = connect(global).await?;
    let names = if out.json() { Names::new() } else { peers::names(&mut client).await? };
    let left = args.max;
    let mut listener = Listener { client, args, names, left, printed: None, out };
    let ended = tokio::select! {
        biased;
        outcome = listener.run() => return outcome,
        signal = signals.wait() => signal,
    };
    // What was printed should not come again, but nobody waits for a stuck
    // daemon after Ctrl-C.
    let _ = timeout(LAST_ACK, listener.ack()).await;
    Err(ended)
}

impl Listener {
    async fn run(&mut self) -> Result<(), Failure> {
        let mut stream = self.open().await?;
        while self.left != Some(0) {
            let response = stream
                .message()
                .await?
                .ok_or_else(|| Failure::Failed("UNAVAILABLE: the daemon ended the stream".to_owned()))?;
            match response.frame {
                Some(Frame::Ready(_)) => self.announce(),
                Some(Frame::Deliveries(deliveries)) => self.take(deliveries.deliveries).await?,
                // A frame of a newer daemon.
                None => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<Streaming<ListenResponse>, Failure> {
        let request = ListenRequest {
            channel: self.args.channel.clone(),
            consumer: self.args.consumer.clone(),
            ack_mode: AckMode::Manual.into(),
            max_batch: self.batch(),
            peek: self.args.peek,
        };
        // No deadline: the answer's head may come with the first frame.
        Ok(self.client.listen(request).await?.into_inner())
    }

    fn batch(&self) -> u32 {
        self.left.map_or(BATCH, |left| u32::try_from(left).unwrap_or(BATCH).min(BATCH))
    }

    /// Tells a person that there is nothing to wait for but messages.
    fn announce(&self) {
        if !io::stderr().is_terminal() || self.out.json() {
            return;
        }
        let channel = match self.args.channel.as_str() {
            "" => "the default channel".to_owned(),
            channel => format!("channel {}", clean(channel)),
        };
        // Only a courtesy.
        let _ = writeln!(io::stderr().lock(), "listening on {channel}; Ctrl-C ends");
    }

    /// Prints a batch, then acknowledges it: never the other way round.
    async fn take(&mut self, mut deliveries: Vec<Delivery>) -> Result<(), Failure> {
        if let Some(left) = self.left {
            deliveries.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let mut text = String::new();
        for delivery in &deliveries {
            text.push_str(&self.line(delivery)?);
            text.push('\n');
        }
        print(self.out, text).await?;
        let count = deliveries.len() as u64;
        self.left = self.left.map(|left| left.saturating_sub(count));
        // Ephemeral messages have no cursor and need no acknowledgement.
        let last = deliveries.iter().map(|delivery| delivery.cursor).max().filter(|&last| last > 0);
        self.printed = last.filter(|_| !self.args.peek);
        self.ack().await
    }

    /// Acknowledges what is printed.
    async fn ack(&mut self) -> Result<(), Failure> {
        let Some(cursor) = self.printed else { return Ok(()) };
        let (channel, consumer) = (self.args.channel.clone(), self.args.consumer.clone());
        answer(ANSWER, self.client.ack(AckRequest { channel, consumer, cursor })).await?;
        self.printed = None;
        Ok(())
    }

    fn line(&self, delivery: &Delivery) -> Result<String, Failure> {
        if self.out.json() {
            return json::line(delivery);
        }
        Ok(delivery.message.as_ref().map_or_else(String::new, |message| text(message, &self.names)))
    }
}

/// Writes away from the runtime, so that a reader that stops reading stops
/// neither the connection nor Ctrl-C.
async fn print(out: Out, text: String) -> Result<(), Failure> {
    let written = tokio::task::spawn_blocking(move || out.bytes(text.as_bytes())).await;
    written.unwrap_or_else(|error| Err(Failure::Failed(format!("cannot write to stdout: {error}"))))
}

/// A message on one line: when, who, where, what kind, what.
fn text(message: &Message, names: &Names) -> String {
    let from = name_of(&message.from, names);
    let at = if message.received_at > 0 { message.received_at } else { message.timestamp };
    let mut line = format!("{}  {}", time(at), clean(&from));
    if !message.channel.is_empty() {
        line.push_str(&format!("  #{}", clean(&message.channel)));
    }
    if !message.r#type.is_empty() {
        line.push_str(&format!("  [{}]", clean(&message.r#type)));
    }
    line.push_str("  ");
    line.push_str(&payload(&message.payload));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_safe_line() {
        let names = Names::from([("12D3KooWabcdefgh".to_owned(), "pi".to_owned())]);
        let mut message = Message {
            from: "12D3KooWabcdefgh".into(),
            received_at: 1_000,
            payload: "21.5\n\x1b[2J".into(),
            ..Default::default()
        };
        assert_eq!(text(&message, &names), "1970-01-01T00:00:01Z  pi  21.5\\n\\u{1b}[2J");
        message.channel = "c\n".into();
        message.r#type = "t\x07".into();
        message.payload = vec![0xff, 0xfe].into();
        message.from = "12D3KooWstuvwxyz".into();
        assert_eq!(text(&message, &names), "1970-01-01T00:00:01Z  …stuvwxyz  #c\\n  [t\\u{7}]  <2 bytes>");
    }
}
