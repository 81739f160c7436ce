//! Where `send` takes its payload from.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{
    client::{ANSWER, Client, answer},
    errors::{Failure, shown},
};
use crate::{proto::StatusRequest, types::MESSAGE_BYTES_RANGE};

/// A payload that may still have to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Given as an argument.
    Text(String),
    /// A file's content.
    File(PathBuf),
    /// All of stdin.
    Stdin,
}

impl Source {
    /// Chooses the source; nobody is left waiting for a person to type what
    /// was never asked for.
    pub(super) fn choose(text: Option<String>, file: Option<PathBuf>) -> Result<Self, Failure> {
        match (text, file) {
            (Some(text), _) => Ok(Self::Text(text)),
            (None, Some(file)) => Ok(Self::File(file)),
            (None, None) if io::stdin().is_terminal() => Err(Failure::Usage(
                "send: no message; give it as an argument, with --file FILE, or on stdin".to_owned(),
            )),
            (None, None) => Ok(Self::Stdin),
        }
    }

    /// Reads the payload, up to what the daemon takes.
    pub(super) async fn read(self, client: &mut Client) -> Result<Bytes, Failure> {
        match self {
            // The daemon judges it: it is in memory already.
            Self::Text(text) => Ok(text.into()),
            Self::File(path) => {
                let max = limit(client).await?;
                let unreadable = |error: io::Error| Failure::Usage(format!("--file {}: {error}", shown(&path)));
                let file = tokio::fs::File::open(&path).await.map_err(unreadable)?;
                let length = file.metadata().await.map_err(unreadable)?.len();
                if length > max {
                    return Err(too_large(&shown(&path), max));
                }
                read_all(file, max).await.map_err(unreadable)?.ok_or_else(|| too_large(&shown(&path), max))
            }
            Self::Stdin => {
                let max = limit(client).await?;
                let read = read_all(tokio::io::stdin(), max).await;
                let read = read.map_err(|error| Failure::Failed(format!("cannot read stdin: {error}")))?;
                read.ok_or_else(|| too_large("stdin", max))
            }
        }
    }
}

/// What the daemon takes, and never more than any daemon can.
async fn limit(client: &mut Client) -> Result<u64, Failure> {
    let status = answer(ANSWER, client.status(StatusRequest {})).await?;
    let largest = *MESSAGE_BYTES_RANGE.end();
    Ok(status.limits.map_or(largest, |limits| limits.max_message_bytes.min(largest)))
}

/// Reads to the end, or `None` if that is further than `max`.
async fn read_all(source: impl AsyncRead + Unpin, max: u64) -> io::Result<Option<Bytes>> {
    let mut payload = Vec::new();
    source.take(max + 1).read_to_end(&mut payload).await?;
    Ok((payload.len() as u64 <= max).then(|| payload.into()))
}

fn too_large(what: &str, max: u64) -> Failure {
    Failure::Failed(format!(
        "INVALID_ARGUMENT: payload: {what} is larger than {max} bytes, the daemon's max_message_bytes; \
         send it in parts, or raise that setting on both nodes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_or_a_file_is_taken_as_it_is() {
        assert_eq!(Source::choose(Some("x".into()), None).unwrap(), Source::Text("x".into()));
        assert_eq!(Source::choose(None, Some("/f".into())).unwrap(), Source::File("/f".into()));
    }

    #[tokio::test]
    async fn reading_stops_at_the_limit() {
        assert_eq!(read_all(&b"1234"[..], 4).await.unwrap().unwrap(), &b"1234"[..]);
        assert_eq!(read_all(&b"12345"[..], 4).await.unwrap(), None);
        assert_eq!(read_all(tokio::io::repeat(0), 1000).await.unwrap(), None);
        assert_eq!(read_all(&b""[..], 4).await.unwrap().unwrap(), &b""[..]);
    }
}
