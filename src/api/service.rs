//! The generated trait, each call one line.

use tonic::{Request, Response, Status, Streaming};

use super::{Api, streams::Answers};
use crate::proto::{self, p2p_server::P2p};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl P2p for Api {
    type SendStreamStream = Answers<proto::SendStreamResponse>;
    type ListenStream = Answers<proto::ListenResponse>;
    type WatchPeersStream = Answers<proto::WatchPeersResponse>;
    type SetPresenceStream = Answers<proto::SetPresenceResponse>;

    async fn send(&self, request: Request<proto::SendRequest>) -> Answer<proto::SendResponse> {
        self.send_one(request).await.map(Response::new)
    }

    async fn send_stream(
        &self,
        request: Request<Streaming<proto::SendStreamRequest>>,
    ) -> Answer<Self::SendStreamStream> {
        self.send_many(request).await.map(Response::new)
    }

    async fn listen(&self, request: Request<proto::ListenRequest>) -> Answer<Self::ListenStream> {
        self.listen_to(request).await.map(Response::new)
    }

    async fn ack(&self, request: Request<proto::AckRequest>) -> Answer<proto::AckResponse> {
        self.acknowledge(request.into_inner()).await.map(Response::new)
    }

    async fn get_message(&self, request: Request<proto::GetMessageRequest>) -> Answer<proto::GetMessageResponse> {
        let message = Some(self.get_sent(request.into_inner()).await?);
        Ok(Response::new(proto::GetMessageResponse { message }))
    }

    async fn list_messages(&self, request: Request<proto::ListMessagesRequest>) -> Answer<proto::ListMessagesResponse> {
        self.list_sent(request.into_inner()).await.map(Response::new)
    }

    async fn cancel(&self, request: Request<proto::CancelRequest>) -> Answer<proto::CancelResponse> {
        let message = Some(self.cancel_one(request).await?);
        Ok(Response::new(proto::CancelResponse { message }))
    }

    async fn list_peers(&self, request: Request<proto::ListPeersRequest>) -> Answer<proto::ListPeersResponse> {
        self.peers(request.into_inner()).await.map(Response::new)
    }

    async fn connect(&self, request: Request<proto::ConnectRequest>) -> Answer<proto::ConnectResponse> {
        self.connect_to(request).await.map(Response::new)
    }

    async fn disconnect(&self, request: Request<proto::DisconnectRequest>) -> Answer<proto::DisconnectResponse> {
        self.disconnect_from(request.into_inner()).await.map(Response::new)
    }

    async fn ping(&self, request: Request<proto::PingRequest>) -> Answer<proto::PingResponse> {
        self.ping_peer(request).await.map(Response::new)
    }

    async fn add_peer(&self, request: Request<proto::AddPeerRequest>) -> Answer<proto::AddPeerResponse> {
        self.add(request.into_inner()).await.map(Response::new)
    }

    async fn remove_peer(&self, request: Request<proto::RemovePeerRequest>) -> Answer<proto::RemovePeerResponse> {
        self.remove(request.into_inner()).await.map(Response::new)
    }

    async fn block(&self, request: Request<proto::BlockRequest>) -> Answer<proto::BlockResponse> {
        self.block_peer(request.into_inner()).await.map(Response::new)
    }

    async fn invite(&self, request: Request<proto::InviteRequest>) -> Answer<proto::InviteResponse> {
        self.invite_one(request.into_inner()).await.map(Response::new)
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Answer<proto::JoinResponse> {
        self.join_one(request).await.map(Response::new)
    }

    async fn watch_peers(&self, request: Request<proto::WatchPeersRequest>) -> Answer<Self::WatchPeersStream> {
        self.watch(request.into_inner()).map(Response::new)
    }

    async fn set_presence(&self, request: Request<proto::SetPresenceRequest>) -> Answer<Self::SetPresenceStream> {
        self.announce(request.into_inner()).map(Response::new)
    }

    async fn find_peer(&self, request: Request<proto::FindPeerRequest>) -> Answer<proto::FindPeerResponse> {
        self.find_peer_of(request).await.map(Response::new)
    }

    async fn net_check(&self, _: Request<proto::NetCheckRequest>) -> Answer<proto::NetCheckResponse> {
        self.check_net().await.map(Response::new)
    }

    async fn explain_path(&self, request: Request<proto::ExplainPathRequest>) -> Answer<proto::ExplainPathResponse> {
        self.explain(request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Answer<proto::StatusResponse> {
        self.condition().await.map(Response::new)
    }
}
