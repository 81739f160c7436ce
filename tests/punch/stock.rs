//! A relay and a client of libp2p alone.

use std::{collections::HashSet, sync::Arc};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, dcutr, identify,
    multiaddr::Protocol,
    noise, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};

use crate::node::{DEADLINE, QUIC, TCP};

pub(crate) struct Relay {
    pub(crate) id: PeerId,
    quic: Multiaddr,
    tcp: Multiaddr,
    reserved: Arc<std::sync::Mutex<HashSet<PeerId>>>,
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(NetworkBehaviour)]
struct Serving {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
}

pub(crate) struct Client {
    pub(crate) id: PeerId,
    events: mpsc::UnboundedReceiver<SwarmEvent<UsingEvent>>,
    dials: mpsc::UnboundedSender<Multiaddr>,
    task: JoinHandle<()>,
}

#[derive(NetworkBehaviour)]
pub(crate) struct Using {
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    dcutr: dcutr::Behaviour,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_behaviour(|key| Serving {
                relay: relay::Behaviour::new(key.public().to_peer_id(), relay::Config::default()),
                identify: identify::Behaviour::new(identify::Config::new("/test".into(), key.public())),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE))
            .build();
        let id = *swarm.local_peer_id();
        let quic = listen(&mut swarm, QUIC).await;
        let tcp = listen(&mut swarm, TCP).await;
        swarm.add_external_address(quic.clone());
        swarm.add_external_address(tcp.clone());
        let (reserved, changed) = (Arc::default(), Arc::new(Notify::new()));
        let (told, notify) = (Arc::clone(&reserved), Arc::clone(&changed));
        let task = tokio::spawn(async move {
            loop {
                let event = swarm.select_next_some().await;
                if let SwarmEvent::Behaviour(ServingEvent::Relay(relay::Event::ReservationReqAccepted {
                    src_peer_id,
                    ..
                })) = event
                {
                    let told: &std::sync::Mutex<HashSet<PeerId>> = &told;
                    told.lock().unwrap().insert(src_peer_id);
                    notify.notify_waiters();
                }
            }
        });
        Self { id, quic, tcp, reserved, changed, task }
    }

    /// Where a peer listens at the relay.
    pub(crate) fn circuit(&self, quic: bool) -> Multiaddr {
        let address = if quic { &self.quic } else { &self.tcp };
        address.clone().with(Protocol::P2p(self.id)).with(Protocol::P2pCircuit)
    }

    pub(crate) async fn reserved(&self, peer: PeerId) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if self.reserved.lock().unwrap().contains(&peer) {
                    return;
                }
                changed.await;
            }
        };
        timeout(DEADLINE, wait).await.expect("reserved in time");
    }
}

async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>, address: &str) -> Multiaddr {
    swarm.listen_on(address.parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

impl Client {
    pub(crate) async fn behind(relay: &Relay, quic: bool) -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key, relay| Using {
                relay,
                identify: identify::Behaviour::new(identify::Config::new("/test".into(), key.public())),
                dcutr: dcutr::Behaviour::new(key.public().to_peer_id()),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE))
            .build();
        let id = *swarm.local_peer_id();
        listen(&mut swarm, if quic { QUIC } else { TCP }).await;
        swarm.listen_on(relay.circuit(quic)).unwrap();
        let (told, events) = mpsc::unbounded_channel();
        let (dials, mut to_dial) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(address) = to_dial.recv() => swarm.dial(address).unwrap(),
                    event = swarm.select_next_some() => drop(told.send(event)),
                }
            }
        });
        relay.reserved(id).await;
        let mut client = Self { id, events, dials, task };
        // Its candidates are what the relay sees.
        client
            .wait(|event| {
                matches!(event, SwarmEvent::Behaviour(UsingEvent::Identify(identify::Event::Received { .. })))
            })
            .await;
        client
    }

    pub(crate) fn dial(&self, address: Multiaddr) {
        self.dials.send(address).unwrap();
    }

    /// Waits for a connection that does not go through the relay.
    pub(crate) async fn direct(&mut self, peer: PeerId) {
        self.wait(|event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => *peer_id == peer && !endpoint.is_relayed(),
            _ => false,
        })
        .await;
    }

    async fn wait(&mut self, fits: impl Fn(&SwarmEvent<UsingEvent>) -> bool) {
        let wait = async { while !fits(&self.events.recv().await.unwrap()) {} };
        timeout(DEADLINE, wait).await.expect("event in time");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
