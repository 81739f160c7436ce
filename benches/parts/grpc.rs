//! The least a gRPC service can do with the same frames: it counts the
//! messages of `SendStream` and answers each frame with its receipts.

use std::{convert::Infallible, pin::Pin, sync::Arc, task};

use p2p_node::proto::{self, p2p_client::P2pClient, send_stream_response::Frame};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, StreamingService},
    transport::{Channel, Server},
};

use super::load::{self, Arrived, Load, Taken};

/// The same windows as the daemon's.
const WINDOWS: (u32, u32) = (4 * 1024 * 1024, 8 * 1024 * 1024);

/// A server and a client on one Unix socket.
pub(crate) struct RawGrpc {
    client: P2pClient<Channel>,
    arrived: Arc<Arrived>,
    _dir: TempDir,
}

impl RawGrpc {
    pub(crate) async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("sock");
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let arrived = Arc::<Arrived>::default();
        let server = Server::builder()
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .add_service(Count(arrived.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        let client = P2pClient::new(load::channel(&socket).await.unwrap());
        Self { client, arrived, _dir: dir }
    }

    pub(crate) async fn measure(&self, load: &Load) -> Taken {
        load::measure(load, &self.arrived, |stop| load::send_stream(self.client.clone(), load.clone(), stop)).await
    }
}

#[derive(Clone)]
struct Count(Arc<Arrived>);

impl NamedService for Count {
    const NAME: &'static str = "p2p.v1.P2P";
}

impl Service<http::Request<Body>> for Count {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let count = self.clone();
        Box::pin(async move { Ok(Grpc::new(tonic_prost::ProstCodec::default()).streaming(count, request).await) })
    }
}

impl StreamingService<proto::SendStreamRequest> for Count {
    type Response = proto::SendStreamResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Self::Response, Status>> + Send>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<proto::SendStreamRequest>>) -> Self::Future {
        let arrived = self.0.clone();
        Box::pin(async move {
            let answers = request.into_inner().map(move |frame| Ok(receipts(frame?.items, &arrived)));
            Ok(Response::new(Box::pin(answers) as Self::ResponseStream))
        })
    }
}

fn receipts(items: Vec<proto::SendItem>, arrived: &Arrived) -> proto::SendStreamResponse {
    let messages = items.iter().filter_map(|item| item.request.as_ref()?.message.as_ref());
    arrived.note(messages.map(|message| &message.payload[..]));
    let receipts = items.into_iter().map(|item| {
        let state = proto::MessageState::Stored.into();
        let response = Some(proto::SendResponse { state, ..proto::SendResponse::default() });
        proto::Receipt { r#ref: item.r#ref, response, ..proto::Receipt::default() }
    });
    proto::SendStreamResponse { frame: Some(Frame::Receipts(proto::Receipts { receipts: receipts.collect() })) }
}
