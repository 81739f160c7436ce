//! Two daemons and the apps at both ends.

use std::sync::Arc;

use p2p_node::proto::{self, listen_response::Frame, p2p_client::P2pClient};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::load::{self, Arrived, Load, Taken};
use crate::support::{self, Daemon, Options};

/// Channel of messages that are stored.
const DURABLE: &str = "durable";
/// Channel of those that are not.
const LIVE: &str = "live";

/// Two daemons that trust each other, and the receiving app.
pub(crate) struct Product {
    from: P2pClient<Channel>,
    peer: String,
    durable: Arc<Arrived>,
    live: Arc<Arrived>,
    /// Kept running.
    _daemons: (Daemon, Daemon),
}

impl Product {
    /// Starts both on an address of the kind given.
    pub(crate) async fn start(listen: &str) -> Self {
        let daemons = pair(listen).await;
        let peer = daemons.1.peer_id().await;
        let from = P2pClient::new(load::channel(&daemons.0.socket()).await.unwrap());
        let (durable, live) = (Arc::default(), Arc::default());
        for (channel, arrived) in [(DURABLE, &durable), (LIVE, &live)] {
            let client = P2pClient::new(load::channel(&daemons.1.socket()).await.unwrap());
            receive(client, channel, Arc::clone(arrived)).await;
        }
        Self { from, peer, durable, live, _daemons: daemons }
    }

    /// Messages from the one app to the other.
    pub(crate) async fn measure(&self, load: &Load) -> Taken {
        let (channel, arrived) = if load.ephemeral { (LIVE, &self.live) } else { (DURABLE, &self.durable) };
        let load = Load { peer: self.peer.clone(), channel, ..load.clone() };
        load::measure(&load, arrived, |stop| load::send_stream(self.from.clone(), load.clone(), stop)).await
    }
}

/// Two daemons that are connected.
pub(crate) async fn pair(listen: &str) -> (Daemon, Daemon) {
    let options =
        || Options { args: ["--listen", listen, "--no-mdns"].map(ToOwned::to_owned).to_vec(), ..Options::default() };
    let (a, b) = (Daemon::start_with(options()).await, Daemon::start_with(options()).await);
    a.add(&b).await;
    b.add(&a).await;
    let hello = support::send_to(&b.peer_id().await, support::message("hello", "", "hello"));
    let sent = a.client().await.send(hello).await.unwrap().into_inner();
    assert_eq!(sent.state(), proto::MessageState::Stored, "the daemons are not connected: {}", sent.detail);
    (a, b)
}

/// Takes all messages of a channel, for as long as the daemon runs.
async fn receive(mut client: P2pClient<Channel>, channel: &'static str, arrived: Arc<Arrived>) {
    let request = proto::ListenRequest {
        channel: channel.to_owned(),
        ack_mode: proto::AckMode::Manual.into(),
        max_batch: 256,
        ..proto::ListenRequest::default()
    };
    let mut stream = client.listen(request).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("ready");
    let (done, cursors) = watch::channel(0);
    tokio::spawn(acknowledge(client, channel, cursors));
    tokio::spawn(async move {
        while let Ok(Some(frame)) = stream.message().await {
            let Some(Frame::Deliveries(batch)) = frame.frame else { continue };
            let deliveries = batch.deliveries;
            arrived.note(deliveries.iter().filter_map(|delivery| delivery.message.as_ref()).map(|m| &m.payload[..]));
            if let Some(last) = deliveries.last().filter(|last| last.cursor > 0) {
                done.send_replace(last.cursor);
            }
        }
    });
}

/// One acknowledgement at a time, for all that has come by then.
async fn acknowledge(mut client: P2pClient<Channel>, channel: &'static str, mut cursors: watch::Receiver<u64>) {
    while cursors.changed().await.is_ok() {
        let cursor = *cursors.borrow_and_update();
        let ack = proto::AckRequest { channel: channel.to_owned(), cursor, ..proto::AckRequest::default() };
        if client.ack(ack).await.is_err() {
            // The daemon is going down with the benchmark.
            return;
        }
    }
}
