//! A libp2p peer of the test's own, which does as it likes.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use libp2p_stream::{Control, IncomingStreams};
use tokio::{task::JoinHandle, time::timeout};

use crate::node::DEADLINE;

/// Until a stream counts as one that the node has no room for.
const UNTAKEN: Duration = Duration::from_secs(5);
pub(crate) const LINK: StreamProtocol = StreamProtocol::new("/p2p-node/link/1");

pub(crate) struct RawPeer {
    pub(crate) id: PeerId,
    target: PeerId,
    control: Control,
    task: JoinHandle<()>,
}

impl RawPeer {
    /// Connects to a node.
    pub(crate) async fn connect(target: PeerId, address: Multiaddr) -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_behaviour(|_| libp2p_stream::Behaviour::new())
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE))
            .build();
        let control = swarm.behaviour().new_control();
        let id = *swarm.local_peer_id();
        swarm.dial(address.with_p2p(target).unwrap()).unwrap();
        let task = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self { id, target, control, task }
    }

    pub(crate) async fn open(&mut self) -> Stream {
        self.try_open().await.unwrap()
    }

    pub(crate) async fn try_open(&mut self) -> Result<Stream, libp2p_stream::OpenStreamError> {
        self.try_open_of(LINK).await
    }

    pub(crate) async fn try_open_of(
        &mut self,
        protocol: StreamProtocol,
    ) -> Result<Stream, libp2p_stream::OpenStreamError> {
        timeout(DEADLINE, self.control.open_stream(self.target, protocol)).await.expect("answer in time")
    }

    /// The same from a node that may have no room for it.
    pub(crate) async fn open_if_taken(&mut self, protocol: StreamProtocol) -> Option<Stream> {
        timeout(UNTAKEN, self.control.open_stream(self.target, protocol)).await.ok()?.ok()
    }

    /// Streams of this protocol that the node opens.
    pub(crate) fn accept(&mut self, protocol: StreamProtocol) -> IncomingStreams {
        self.control.accept(protocol).unwrap()
    }
}

impl Drop for RawPeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
