//! `send`: one message to one peer.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    args::Global,
    client::{answer, connect},
    errors::Failure,
    output::{Out, clean, state, why},
    payload::Source,
};
use crate::proto::{self, MessageState, SendRequest, SendResponse};

/// Beyond the time that the daemon may wait for the peer.
const MARGIN: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
A message is on disk here when this returns, and is sent until its time to
live runs out: a peer that is away gets it later. \"queued\" exits 0.

Examples:
  p2p-node send pi 'hello'
  p2p-node send pi --file photo.jpg --type image/jpeg --channel photos
  date | p2p-node send pi --wait queued --json";

/// Arguments of `send`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SendArgs {
    /// Peer id or alias
    peer: String,
    /// The message; without it and --file, all of stdin
    #[arg(conflicts_with = "file")]
    text: Option<String>,
    /// Send what is in this file
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// What kind of message it is, for the app that gets it
    #[arg(long = "type", value_name = "T", default_value = "", hide_default_value = true)]
    kind: String,
    /// The channel; each has an order and an inbox of its own
    #[arg(long, value_name = "C", default_value = "", hide_default_value = true)]
    channel: String,
    /// What to wait for: on this node's disk, or on the peer's
    #[arg(long, value_enum, default_value_t = WaitArg::Stored)]
    wait: WaitArg,
    /// How long to wait for that; the message goes on its way all the same
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: u32,
    /// How long to keep trying [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<u64>,
    /// Its id; the same id never arrives twice [default: a UUID]
    #[arg(long, default_value = "", hide_default_value = true)]
    id: String,
    /// At most once, only to a listener that is there now; never on disk
    #[arg(long)]
    ephemeral: bool,
    /// Over which paths it may go; while it waits for one, so do those behind it
    /// on the channel
    #[arg(long, value_enum, default_value_t = PathArg::Any)]
    path: PathArg,
    /// Id of the message that this one answers
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    reply_to: String,
    /// Something to go with it; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
}

/// What `--wait` takes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum WaitArg {
    Queued,
    Stored,
}

impl From<WaitArg> for proto::Wait {
    fn from(wait: WaitArg) -> Self {
        match wait {
            WaitArg::Queued => Self::Queued,
            WaitArg::Stored => Self::Stored,
        }
    }
}

/// What `--path` takes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PathArg {
    /// Over the best there is
    Any,
    /// Through a relay only if there is no direct path for 5 s
    PreferDirect,
    /// Never through a relay
    DirectOnly,
}

impl From<PathArg> for proto::PathPolicy {
    fn from(path: PathArg) -> Self {
        match path {
            PathArg::Any => Self::Any,
            PathArg::PreferDirect => Self::PreferDirect,
            PathArg::DirectOnly => Self::DirectOnly,
        }
    }
}

/// Sends a message and tells what became of it.
pub(super) async fn send(args: SendArgs, global: &Global, out: Out) -> Result<(), Failure> {
    let metadata = metadata(args.meta)?;
    let source = Source::choose(args.text, args.file)?;
    let mut client = connect(global).await?;
    let message = proto::Message {
        id: args.id,
        r#type: args.kind,
        payload: source.read(&mut client).await?,
        metadata,
        channel: args.channel,
        reply_to: args.reply_to,
        ..Default::default()
    };
    let request = SendRequest {
        peer: args.peer,
        message: Some(message),
        wait: proto::Wait::from(args.wait).into(),
        timeout_ms: args.timeout,
        ttl_ms: args.ttl.unwrap_or(0),
        ephemeral: args.ephemeral,
        path: proto::PathPolicy::from(args.path).into(),
        prefer_direct_wait_ms: 0,
    };
    let limit = Duration::from_millis(args.timeout.into()) + MARGIN;
    let response = answer(limit, client.send(request)).await?;
    if out.json() {
        out.object(&response)?;
    }
    match outcome(&response) {
        Ok(_) if out.json() => Ok(()),
        Ok(line) => out.line(&line),
        Err(text) => Err(Failure::Failed(text)),
    }
}

/// A line for people, or why the message will never arrive.
fn outcome(response: &SendResponse) -> Result<String, String> {
    let id = clean(&response.id);
    let why = why(response.reason, &response.detail);
    let told = |word: &str| {
        let again = if response.duplicate { " (sent before; nothing was sent anew)" } else { "" };
        let why = if why.is_empty() { String::new() } else { format!(": {why} (still trying)") };
        format!("{word:<6}  {id}{why}{again}")
    };
    match MessageState::try_from(response.state) {
        Ok(MessageState::Stored) => Ok(told("stored")),
        Ok(MessageState::Queued) => Ok(told("queued")),
        Ok(MessageState::Sent) => Ok(told("sent")),
        _ => Err(format!("{} {id}{}{why}", state(response.state), if why.is_empty() { "" } else { ": " })),
    }
}

fn metadata(pairs: Vec<(String, String)>) -> Result<HashMap<String, String>, Failure> {
    let mut metadata = HashMap::with_capacity(pairs.len());
    for (key, value) in pairs {
        if metadata.contains_key(&key) {
            return Err(Failure::Usage(format!("--meta: the key {key:?} is given twice")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE".to_owned()),
    }
}

/// Milliseconds to wait. None at all is the least that can be asked for: 0
/// would mean the default.
fn timeout(text: &str) -> Result<u32, String> {
    let millis = millis(text)?.max(1);
    u32::try_from(millis)
        .map_err(|_| format!("at most {}", humantime::format_duration(Duration::from_millis(u32::MAX.into()))))
}

fn ttl(text: &str) -> Result<u64, String> {
    match millis(text)? {
        0 => Err("at least 1ms".to_owned()),
        millis => Ok(millis),
    }
}

fn millis(text: &str) -> Result<u64, String> {
    let duration = humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 10s, 5m or 7d"))?;
    u64::try_from(duration.as_millis()).map_err(|_| "too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Reason;

    fn response(state: MessageState, reason: Reason, detail: &str) -> SendResponse {
        let (state, reason) = (state.into(), reason.into());
        SendResponse { id: "7".into(), state, reason, detail: detail.into(), ..Default::default() }
    }

    #[test]
    fn what_will_still_go_is_a_success() {
        let stored = response(MessageState::Stored, Reason::Unspecified, "");
        assert_eq!(outcome(&stored).unwrap(), "stored  7");
        let queued = response(MessageState::Queued, Reason::Untrusted, "add this node there");
        assert_eq!(outcome(&queued).unwrap(), "queued  7: UNTRUSTED: add this node there (still trying)");
        let queued = response(MessageState::Queued, Reason::Unspecified, "");
        assert_eq!(outcome(&queued).unwrap(), "queued  7");
        let sent = response(MessageState::Sent, Reason::Unspecified, "");
        assert_eq!(outcome(&sent).unwrap(), "sent    7");
        let again = SendResponse { duplicate: true, ..stored };
        assert_eq!(outcome(&again).unwrap(), "stored  7 (sent before; nothing was sent anew)");
    }

    #[test]
    fn what_never_arrives_is_a_failure() {
        let rejected = response(MessageState::Rejected, Reason::TooLarge, "max 5");
        assert_eq!(outcome(&rejected).unwrap_err(), "REJECTED 7: TOO_LARGE: max 5");
        for state in [MessageState::Expired, MessageState::Cancelled, MessageState::Unspecified] {
            assert!(outcome(&response(state, Reason::Unspecified, "")).is_err());
        }
    }

    #[test]
    fn durations_become_milliseconds() {
        assert_eq!(timeout("10s"), Ok(10_000));
        assert_eq!(timeout("0s"), Ok(1));
        assert!(timeout("100d").is_err());
        assert_eq!(ttl("7d"), Ok(604_800_000));
        assert!(ttl("0s").is_err());
        assert!(ttl("10").is_err());
    }

    #[test]
    fn metadata_is_pairs_with_unique_keys() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("=b").is_err() && pair("a").is_err());
        let twice = vec![("a".to_owned(), String::new()), ("a".to_owned(), String::new())];
        assert_eq!(metadata(twice).unwrap_err().status(), 64);
    }
}
