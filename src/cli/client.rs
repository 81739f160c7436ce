//! The way to the daemon.

use std::{
    future::Future,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{
    args::Global,
    errors::{Failure, shown},
    socket,
};
use crate::proto::p2p_client::P2pClient;

/// The largest frame either way: the largest message that can be configured,
/// and room for what goes with it.
const MAX_FRAME_BYTES: usize = 72 * 1024 * 1024;
/// HTTP/2 windows of a stream and of all; the 64 KiB of the standard cost a
/// third of the rate at large messages.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// How long an answer may take that the daemon gives from memory or disk. A
/// backstop: only a stuck daemon takes so long.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// How long an answer may take that needs the peer, beyond the daemon's own
/// deadline (10 s), so that its error arrives rather than ours.
pub(super) const PEER_ANSWER: Duration = Duration::from_secs(15);

/// A connection to the daemon.
pub(super) type Client = P2pClient<Channel>;

/// Connects to the daemon of the socket that flags and environment name.
pub(super) async fn connect(global: &Global) -> Result<Client, Failure> {
    connect_to(&socket::find(global.socket())).await
}

/// Connects to the daemon at a socket.
pub(super) async fn connect_to(socket: &Path) -> Result<Client, Failure> {
    // Opened here, not by the channel, which would hide what went wrong.
    let stream = UnixStream::connect(socket).await.map_err(|error| refused(socket, error))?;
    let mut first = Some(stream);
    let path = socket.to_owned();
    let connector = service_fn(move |_| open(first.take(), path.clone()));
    let channel = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Failure::Failed(format!("cannot speak gRPC with {}: {error}", shown(socket))))?;
    Ok(P2pClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES).max_encoding_message_size(MAX_FRAME_BYTES))
}

async fn open(first: Option<UnixStream>, path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    match first {
        Some(stream) => Ok(TokioIo::new(stream)),
        None => UnixStream::connect(path).await.map(TokioIo::new),
    }
}

/// Waits for an answer, but not for ever.
pub(super) async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::Failed(format!(
            "DEADLINE_EXCEEDED: the daemon did not answer within {}; its log may say why",
            humantime::format_duration(limit)
        ))),
    }
}

fn refused(socket: &Path, cause: io::Error) -> Failure {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::NoPermission { socket: socket.to_owned(), remedy: permission_remedy(socket) }
        }
        io::ErrorKind::InvalidInput => {
            Failure::Usage(format!("socket: {} cannot be a socket's path: {cause}", shown(socket)))
        }
        _ => Failure::NoDaemon { socket: socket.to_owned(), cause },
    }
}

/// Who may open a socket, and how to become one of them. The directory stands
/// in for a socket that cannot even be looked at.
fn permission_remedy(socket: &Path) -> String {
    let owner = std::fs::metadata(socket).or_else(|_| std::fs::metadata(socket.parent().unwrap_or(socket)));
    match owner {
        Ok(owner) => remedy_for(Gid::from_raw(owner.gid())),
        Err(error) => format!("its directory cannot be looked at ({error}); ask whoever runs the daemon for its group"),
    }
}

fn remedy_for(gid: Gid) -> String {
    let group = Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name);
    if gid.as_raw() == 0 {
        return format!("it belongs to group {group}: use sudo, or start the daemon where a group p2p-node exists");
    }
    let user = User::from_uid(Uid::effective()).ok().flatten().map_or_else(|| "$USER".to_owned(), |user| user.name);
    format!("it belongs to group {group}: `sudo usermod -aG {group} {user}`, then log in again")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    async fn failure(socket: &Path) -> Failure {
        connect_to(socket).await.map(|_| ()).unwrap_err()
    }

    #[tokio::test]
    async fn nothing_there_is_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(failure(&dir.path().join("none.sock")).await.status(), 69);
    }

    #[tokio::test]
    async fn a_dead_socket_or_a_file_is_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let dead = dir.path().join("dead.sock");
        drop(UnixListener::bind(&dead).unwrap());
        assert_eq!(failure(&dead).await.status(), 69);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(failure(&file).await.status(), 69);
    }

    #[tokio::test]
    async fn a_path_too_long_is_bad_usage() {
        assert_eq!(failure(Path::new(&format!("/{}", "x".repeat(200)))).await.status(), 64);
    }

    #[test]
    fn no_permission_names_the_group() {
        let failure = refused(Path::new("/etc/shadow"), io::ErrorKind::PermissionDenied.into());
        assert_eq!(failure.status(), 77);
        assert!(failure.to_string().contains("group"), "{failure}");
        assert!(remedy_for(Gid::from_raw(4_000_000)).contains("usermod -aG 4000000"));
        assert!(!remedy_for(Gid::from_raw(0)).contains("usermod"));
    }
}
