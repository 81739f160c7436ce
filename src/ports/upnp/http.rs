//! HTTP with a router: one exchange a connection, bounded in size and time.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONNECTION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::soap::Fault;

/// One exchange, connecting included.
const DEADLINE: Duration = Duration::from_secs(4);
/// Descriptions of routers are 4 to 10 KiB.
const MAX_BODY: usize = 64 * 1024;
/// Of the head of an answer.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Fetches a text.
pub(super) async fn get(local: Ipv4Addr, host: SocketAddrV4, path: &str) -> Result<String, Fault> {
    let request = Request::builder().method(Method::GET).uri(path);
    match exchange(local, host, request, String::new()).await? {
        (StatusCode::OK, text) => Ok(text),
        (status, _) => Err(Fault::Status(status.as_u16())),
    }
}

/// Sends a SOAP envelope; the status and what came back.
pub(super) async fn post(
    local: Ipv4Addr,
    host: SocketAddrV4,
    path: &str,
    action: &str,
    body: String,
) -> Result<(StatusCode, String), Fault> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("SOAPAction", action)
        .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"");
    exchange(local, host, request, body).await
}

async fn exchange(
    local: Ipv4Addr,
    host: SocketAddrV4,
    request: hyper::http::request::Builder,
    body: String,
) -> Result<(StatusCode, String), Fault> {
    let request = request
        .header(HOST, host.to_string())
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| Fault::Odd("it names a path that is none"))?;
    let all = async {
        let stream = connect(local, host).await.map_err(|error| Fault::Connection(error.to_string()))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(|error| broken(&error))?.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    Fault::Odd("it answers too much")
                } else {
                    Fault::Connection("cut short".into())
                }
            })?;
            let text = String::from_utf8(body.to_bytes().into()).map_err(|_| Fault::Odd("it answers no text"))?;
            Ok((head.status, text))
        };
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // What came before the end is still there to be read.
            _ = connection => answer.await,
        }
    };
    timeout(DEADLINE, all).await.unwrap_or(Err(Fault::Connection("no answer in time".into())))
}

async fn connect(local: Ipv4Addr, host: SocketAddrV4) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // The address that mappings are made for is the one asked from.
    socket.bind(SocketAddr::from((local, 0)))?;
    socket.connect(SocketAddr::V4(host)).await
}

fn broken(error: &hyper::Error) -> Fault {
    // Its text has nothing of the router's.
    Fault::Connection(error.to_string())
}
