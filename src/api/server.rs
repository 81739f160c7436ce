//! The socket and the gRPC server on it.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::Api;
use crate::proto::{self, p2p_server::P2pServer};

/// Mode of the socket: its owner and its group.
const SOCKET_MODE: u32 = 0o660;
/// Mode of a directory that is made for it.
const DIRECTORY_MODE: u32 = 0o750;
/// HTTP/2 windows. The default of 64 KiB costs a third of the throughput of
/// large messages.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Calls at once on one connection.
const MAX_CALLS: u32 = 4096;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon answers on the socket.
    #[error("socket {} is in use by a running daemon; stop that one, or choose another with --socket", .0.display())]
    InUse(PathBuf),
    /// There is something else in its place.
    #[error("{} is not a socket; remove it, or choose another place with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("socket {}: {source}; check that its directory exists and that this user may write there, or choose another with --socket", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptors of the API are broken.
    #[error("reflection cannot be served: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server failed while it ran.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Binds the socket; one that a dead daemon left behind is replaced.
///
/// # Errors
/// See [`ServeError`].
pub fn bind(path: &Path, group: &str) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Io { path: path.to_owned(), source };
    // The parent of a bare file name is "", which is no place to make.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = parent.filter(|directory| !directory.exists()) {
        fs::create_dir_all(directory).map_err(failed)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(DIRECTORY_MODE)).map_err(failed)?;
    }
    reclaim(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    give_to_group(path, group);
    Ok(listener)
}

fn reclaim(path: &Path) -> Result<(), ServeError> {
    use std::os::unix::fs::FileTypeExt as _;
    let failed = |source| ServeError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(ServeError::NotASocket(path.to_owned())),
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => Err(ServeError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(socket = %path.display(), "replaced a socket that nobody serves");
                fs::remove_file(path).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        },
    }
}

/// Lets the group use the socket, if there is one of that name.
fn give_to_group(path: &Path, group: &str) {
    let found = nix::unistd::Group::from_name(group).ok().flatten();
    let Some(found) = found else {
        tracing::info!(group, "no such group: only this user and its group may use the socket");
        return;
    };
    if let Err(error) = nix::unistd::chown(path, None, Some(found.gid)) {
        tracing::warn!(group, %error, "the socket could not be given to the group");
    }
}

/// Serves the API, health and reflection until `stop`; connections that are
/// open then may finish.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(api: Api, listener: UnixListener, stop: CancellationToken) -> Result<(), ServeError> {
    let frame = usize::try_from(api.max_frame_bytes()).unwrap_or(usize::MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<P2pServer<Api>>().await;
    // Both versions: grpcurl asks for v1 first, older clients only for v1alpha.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let service = P2pServer::new(api).max_decoding_message_size(frame).max_encoding_message_size(frame);
    let incoming = UnixListenerStream::new(listener).map(|stream| {
        stream.inspect(|stream| {
            let credentials = stream.peer_cred().ok();
            let (pid, uid) = (credentials.and_then(|c| c.pid()), credentials.map(|c| c.uid()));
            tracing::debug!(pid, uid, "a client connected");
        })
    });
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_CALLS)
        .tcp_nodelay(true)
        .add_service(health_service)
        .add_service(v1)
        .add_service(v1alpha)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}
