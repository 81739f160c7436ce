//! Nodes that know only each other's id, and a server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use p2p_node::proto::{self, MessageState};
use support::{Daemon, Options, eventually, message, receive, send_to};

/// A node that answers the others.
async fn server() -> Daemon {
    let mut options = support::loopback();
    options.args.extend(["--serve".to_owned(), "on".to_owned()]);
    Daemon::start_with(options).await
}

/// Where a daemon listens, with its id.
async fn full_address(daemon: &Daemon) -> String {
    daemon.status().await.listen_addresses.remove(0)
}

fn node_of(server: &str) -> Options {
    let mut options = support::loopback();
    options.args.extend(["--bootstrap".to_owned(), server.to_owned()]);
    options
}

async fn add_by_id(daemon: &Daemon, peer: &str) {
    let request = proto::AddPeerRequest { peer: peer.to_owned(), ..proto::AddPeerRequest::default() };
    daemon.client().await.add_peer(request).await.unwrap();
}

async fn send(from: &Daemon, to: &str, id: &str) {
    let sent = from.client().await.send(send_to(to, message("", id, id))).await.unwrap().into_inner();
    if sent.state() == MessageState::Stored {
        return;
    }
    eventually("the message to be stored", || async {
        let request = proto::GetMessageRequest { id: id.to_owned(), peer: Some(to.to_owned()), channel: None };
        let known = from.client().await.get_message(request).await.unwrap().into_inner();
        (known.message.unwrap().state() == MessageState::Stored).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_each_other_by_id_alone() {
    let server = server().await;
    let address = full_address(&server).await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Daemon::start_with(node_of(&address)).await);
    }
    let mut ids = Vec::new();
    for node in &nodes {
        ids.push(node.peer_id().await);
    }
    for (node, own) in nodes.iter().zip(&ids) {
        for peer in ids.iter().filter(|peer| *peer != own) {
            add_by_id(node, peer).await;
        }
    }
    for (n, (node, own)) in nodes.iter().zip(&ids).enumerate() {
        for peer in ids.iter().filter(|peer| *peer != own) {
            send(node, peer, &format!("from-{n}")).await;
        }
    }
    for node in &nodes {
        assert_eq!(receive(&mut node.client().await, "", 2).await.len(), 2);
    }
}

/// Over some other connection than those of the product: what a stranger sends
/// to a server.
mod stranger {
    use std::time::Duration;

    use futures::StreamExt as _;
    use libp2p::{
        Multiaddr, PeerId, Swarm, SwarmBuilder, kad,
        kad::store::{MemoryStore, RecordStore as _},
        multiaddr::Protocol,
        swarm::SwarmEvent,
    };

    pub(crate) struct Stranger(pub(crate) Swarm<kad::Behaviour<MemoryStore>>);

    impl Stranger {
        pub(crate) fn new(server: &Multiaddr) -> Self {
            let mut swarm = SwarmBuilder::with_new_identity()
                .with_tokio()
                .with_quic()
                .with_behaviour(|key| {
                    let config = kad::Config::new(p2p_node::swarm::find::protocol(p2p_node::node::Overlay::Private));
                    let id = key.public().to_peer_id();
                    kad::Behaviour::with_config(id, MemoryStore::new(id), config)
                })
                .unwrap()
                .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
                .build();
            swarm.behaviour_mut().set_mode(Some(kad::Mode::Server));
            let Some(Protocol::P2p(peer)) = server.iter().last() else { panic!("{server}") };
            swarm.behaviour_mut().add_address(&peer, server.clone());
            swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
            Self(swarm)
        }

        /// Claims to provide what is under a key, at these addresses.
        pub(crate) async fn claim(&mut self, key: kad::RecordKey, addresses: &[&str]) {
            for address in addresses {
                self.0.add_external_address(address.parse().unwrap());
            }
            let query = self.0.behaviour_mut().start_providing(key).unwrap();
            self.finish(query).await;
        }

        /// Puts a value that nobody asked for.
        pub(crate) async fn put(&mut self, value: Vec<u8>) {
            let key = kad::RecordKey::new(&rand::random::<[u8; 32]>());
            let record = kad::Record::new(key, value);
            let query = self.0.behaviour_mut().put_record(record, kad::Quorum::One).unwrap();
            self.finish(query).await;
        }

        /// Where the server says that a peer is.
        pub(crate) async fn providers(&mut self, key: kad::RecordKey) -> Vec<PeerId> {
            self.0.behaviour_mut().store_mut().remove(&key);
            let query = self.0.behaviour_mut().get_providers(key);
            let mut found = Vec::new();
            loop {
                if let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) =
                    self.0.select_next_some().await
                    && id == query
                {
                    if let kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders {
                        providers, ..
                    })) = result
                    {
                        found.extend(providers);
                    }
                    if step.last {
                        return found;
                    }
                }
            }
        }

        async fn finish(&mut self, query: kad::QueryId) {
            loop {
                if let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, step, .. }) =
                    self.0.select_next_some().await
                    && id == query
                    && step.last
                {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_stand_in_for_a_peer_or_push_it_out() {
    let server = server().await;
    let address = full_address(&server).await;
    let (a, b) = (Daemon::start_with(node_of(&address)).await, Daemon::start_with(node_of(&address)).await);
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    let target: libp2p::PeerId = b_id.parse().unwrap();
    let own_key = p2p_node::swarm::find::key(&target);
    let at: libp2p::Multiaddr = address.parse().unwrap();
    for _ in 0..5 {
        let mut stranger = stranger::Stranger::new(&at);
        stranger.claim(own_key.clone(), &["/ip4/127.0.0.1/udp/9/quic-v1", "/ip4/10.255.255.1/tcp/9"]).await;
        // Of its own it may have one, and no others.
        for _ in 0..20 {
            stranger.claim(libp2p::kad::RecordKey::new(&rand::random::<[u8; 32]>()), &[]).await;
        }
        stranger.put(vec![7; 1000]).await;
    }
    let mut stranger = stranger::Stranger::new(&at);
    let answer = stranger.providers(own_key).await;
    assert!(answer.iter().all(|peer| *peer == target), "{answer:?}");
    add_by_id(&a, &b_id).await;
    add_by_id(&b, &a_id).await;
    send(&a, &b_id, "hello").await;
    assert_eq!(receive(&mut b.client().await, "", 1).await.len(), 1);
}

/// A peer can say that it is anywhere, so that whoever looks for it knocks
/// there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_leads_nobody_into_the_local_network() {
    let server = server().await;
    let address = full_address(&server).await;
    let a = Daemon::start_with(node_of(&address)).await;
    let (lan, name) = ("/ip4/10.255.255.1/tcp/9", "/dns4/router.invalid/tcp/80");
    let here = format!("/ip4/{}/tcp/0", support::own_ip());
    let args = ["--no-mdns", "--listen", &here, "--external", lan, "--external", name, "--bootstrap", &address];
    let args = args.map(ToOwned::to_owned).to_vec();
    let mut stranger = Daemon::start_with(Options { args, ..Options::default() }).await;
    let id = stranger.peer_id().await;
    let told = || String::from_utf8(a.cli(&["find", &id]).stdout).unwrap();
    eventually("a record of it", || async { told().contains(lan).then_some(()) }).await;
    stranger.kill();
    let tried = || String::from_utf8(a.cli(&["ping", &id]).stderr).unwrap();
    let text = eventually("a reason", || async { Some(tried()).filter(|text| text.contains("/tcp/")) }).await;
    for address in [lan, name] {
        assert!(!text.contains(address) || text.contains(&format!("{address}: not dialled")), "{text}");
    }
    // Trusted, it is believed.
    add_by_id(&a, &id).await;
    let dialled = |text: &String| text.contains(lan) && text.contains(name) && !text.contains("not dialled");
    eventually("an attempt there", || async { Some(tried()).filter(dialled) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_restarted_is_told_again() {
    let mut server = server().await;
    let address = full_address(&server).await;
    let (a, b) = (Daemon::start_with(node_of(&address)).await, Daemon::start_with(node_of(&address)).await);
    let (a_id, b_id) = (a.peer_id().await, b.peer_id().await);
    server.kill();
    server.restart().await;
    assert_eq!(full_address(&server).await, address);
    add_by_id(&a, &b_id).await;
    add_by_id(&b, &a_id).await;
    send(&a, &b_id, "hello").await;
    assert_eq!(receive(&mut b.client().await, "", 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_nobody_knows_is_said_to_be_unknown() {
    let server = server().await;
    let address = full_address(&server).await;
    let a = Daemon::start_with(node_of(&address)).await;
    let alone = Daemon::start().await;
    let nobody = libp2p::PeerId::random().to_string();
    let text = |daemon: &Daemon| String::from_utf8(daemon.cli(&["ping", &nobody]).stderr).unwrap();
    let unknown = eventually("an answer of the server", || async {
        let text = text(&a);
        text.contains("none of the 1 servers").then_some(text)
    })
    .await;
    assert!(unknown.contains("`bootstrap` or `relay`"), "{unknown}");
    let text = text(&alone);
    assert!(text.contains("set `bootstrap` or `relay`"), "{text}");
}
