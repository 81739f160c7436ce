//! Links open, carry frames, and come back.

use std::{collections::HashSet, time::Duration};

use libp2p::identity::Keypair;
use p2p_node::{
    node::{Direction, NodeEvent, Standing},
    swarm::{ListenAddress, SwarmConfig},
    types::Route,
    wire::{Back, Forward, Hello},
};

use tokio::time::Instant;

use crate::node::{DEADLINE, QUIC, TCP, TestNode, config, data, receive};

async fn trusting_pair() -> (TestNode, TestNode) {
    let (a, b) = (TestNode::start().await, TestNode::start().await);
    a.trust(&b).await;
    b.trust(&a).await;
    (a, b)
}

async fn frames_pass(from: &mut TestNode, to: &mut TestNode) {
    let (out, (tx, mut rx)) = from.outbound(to.id).await;
    let (_, (back_tx, mut back_rx)) = to.inbound(from.id).await;
    assert_eq!(out.route, Route::Lan);
    let sent: Vec<Forward> = [0, 1, 1024, 60_000, 70_000, 1024 * 1024, 1024]
        .into_iter()
        .enumerate()
        .map(|(n, bytes)| data(n as u64 + 1, bytes))
        .collect();
    tx.send(Forward::Hello(Hello { version: 1, features: 0 })).await.unwrap();
    for frame in &sent {
        tx.send(frame.clone()).await.unwrap();
    }
    assert!(matches!(receive(&mut back_rx).await, Some(Forward::Hello(_))));
    for frame in &sent {
        assert_eq!(receive(&mut back_rx).await.as_ref(), Some(frame));
        back_tx.send(Back::Ack { lane: 1, high: 3 }).await.unwrap();
    }
    for _ in &sent {
        assert_eq!(receive(&mut rx).await, Some(Back::Ack { lane: 1, high: 3 }));
    }
    // What is queued is still written when the sending half is dropped.
    tx.send(data(99, 10)).await.unwrap();
    drop(tx);
    assert_eq!(receive(&mut back_rx).await, Some(data(99, 10)));
    assert_eq!(receive(&mut back_rx).await, None);
}

async fn both_ways(quic: bool) {
    let (mut a, mut b) = trusting_pair().await;
    let connected = a.connect(&b, quic).await.unwrap();
    assert!(!connected.already);
    assert_eq!((connected.peer, connected.route), (b.id, Route::Lan));
    assert_eq!(connected.address, b.address(quic));
    frames_pass(&mut a, &mut b).await;
    frames_pass(&mut b, &mut a).await;
    let a_id = a.id;
    a.stop().await;
    b.disconnected(a_id).await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_pass_both_ways_over_quic() {
    both_ways(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_pass_both_ways_over_tcp() {
    both_ways(false).await;
}

/// Links of a node that are open once nothing changes any more.
async fn live_links(node: &mut TestNode) -> (Vec<NodeEvent>, Vec<NodeEvent>) {
    let mut live: (Vec<NodeEvent>, Vec<NodeEvent>) = Default::default();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let new = node.collect(Duration::from_millis(1500)).await;
        let settled = new.is_empty();
        for event in new {
            match &event {
                NodeEvent::Link(link) if matches!(link.direction, Direction::Outbound { .. }) => live.0.push(event),
                NodeEvent::Link(_) => live.1.push(event),
                _ => {}
            }
        }
        live.0.retain(is_live);
        live.1.retain(is_live);
        if settled || Instant::now() > deadline {
            return live;
        }
        // As the layer above does: the youngest takes the place of the others.
        live.0.drain(..live.0.len().saturating_sub(1));
        live.1.drain(..live.1.len().saturating_sub(1));
    }
}

fn is_live(event: &NodeEvent) -> bool {
    match event {
        NodeEvent::Link(link) => match &link.direction {
            Direction::Outbound { tx, .. } => !tx.is_closed(),
            Direction::Inbound { tx, .. } => !tx.is_closed(),
        },
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_dials_end_in_one_link_each_way() {
    for (quic_a, quic_b) in [(true, true), (false, true), (false, false)] {
        let (mut a, mut b) = trusting_pair().await;
        let deadline = Instant::now() + DEADLINE;
        // Dials over TCP come from the ports that are listened on. Two that
        // cross become one connection, which each side takes for its own (RFC
        // 9293, 3.5): both fail then, and are made again, as a redial does.
        while let (Err(error), _) | (_, Err(error)) = tokio::join!(a.connect(&b, quic_a), b.connect(&a, quic_b)) {
            assert!(!quic_a && !quic_b && Instant::now() < deadline, "{error:?}");
        }
        let (of_a, of_b) = tokio::join!(live_links(&mut a), live_links(&mut b));
        assert_eq!((of_a.0.len(), of_a.1.len()), (1, 1), "links of a");
        assert_eq!((of_b.0.len(), of_b.1.len()), (1, 1), "links of b");
        drop((of_a, of_b));
        tokio::join!(a.stop(), b.stop());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_after_a_reconnect_are_younger() {
    let (mut a, mut b) = trusting_pair().await;
    let mut seen = HashSet::new();
    let mut last = None;
    for round in 0..3 {
        a.connect(&b, round % 2 == 0).await.unwrap();
        let (out, (_tx, mut rx)) = a.outbound(b.id).await;
        let (inn, _ends) = a.inbound(b.id).await;
        assert!(seen.insert(out.id) && seen.insert(inn.id));
        assert!(last.is_none_or(|last| out.id > last && inn.id > last));
        last = Some(out.id.max(inn.id));
        assert_eq!(a.node.disconnect(b.id).await.unwrap(), 1);
        assert_eq!(receive(&mut rx).await, None, "round {round}: the link ends with the connection");
        a.disconnected(b.id).await;
        b.disconnected(a.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_closed_by_its_user_is_opened_again() {
    let (mut a, b) = trusting_pair().await;
    a.connect(&b, true).await.unwrap();
    let (first, ends) = a.outbound(b.id).await;
    drop(ends);
    let (second, _ends) = a.outbound(b.id).await;
    assert!(second.id > first.id);
}

/// Within one process the QUIC socket outlives the network a little.
async fn started(config: SwarmConfig, key: Keypair) -> TestNode {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match TestNode::start_as(config.clone(), key.clone()).await {
            Ok(node) => return node,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_peer_is_found_again_after_it_restarted() {
    let mut a = TestNode::start().await;
    let key = Keypair::generate_ed25519();
    let b = TestNode::start_as(config(&[QUIC]), key.clone()).await.unwrap();
    let (id, address) = (b.id, b.address(true));
    a.set(id, Standing::Trusted, true, vec![address.clone()]).await;
    let (first, _ends) = a.outbound(id).await;
    b.stop().await;
    a.disconnected(id).await;
    let mut again = config(&[]);
    again.listen = vec![ListenAddress { addr: address, required: true }];
    let b = started(again, key).await;
    let (second, _ends) = a.outbound(id).await;
    assert!(second.id > first.id);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wanted_peer_is_dialled_and_gets_a_link_without_trust() {
    let (mut a, mut b) = (TestNode::start().await, TestNode::start().await);
    a.set(b.id, Standing::Stranger, false, vec![b.address(false)]).await;
    a.node.want(b.id, true).await.unwrap();
    let (_, _out) = a.outbound(b.id).await;
    let (_, _in) = b.inbound(a.id).await;
    let back = b.collect(Duration::from_secs(2)).await;
    assert!(!back.iter().any(|event| matches!(event, NodeEvent::Link(_))), "b has no reason to open one");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sided_trust_opens_one_link() {
    // In both orders of peer ids: the follower does not wait for ever.
    for _ in 0..4 {
        let (mut a, b) = (TestNode::start().await, TestNode::start().await);
        a.trust(&b).await;
        a.connect(&b, true).await.unwrap();
        let (_, _ends) = a.outbound(b.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_open_trust_everybody_gets_a_link() {
    let open = || {
        let mut open = config(&[TCP]);
        open.trust_open = true;
        TestNode::start_with(open)
    };
    let (mut a, b) = (open().await.unwrap(), open().await.unwrap());
    a.connect(&b, false).await.unwrap();
    let (_, _out) = a.outbound(b.id).await;
    let (_, _in) = a.inbound(b.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_trust_closes_links() {
    let (mut a, b) = trusting_pair().await;
    a.connect(&b, true).await.unwrap();
    let (_, (_tx, mut rx)) = a.outbound(b.id).await;
    a.set(b.id, Standing::Stranger, false, Vec::new()).await;
    assert_eq!(receive(&mut rx).await, None);
    assert_eq!(a.node.view().await.unwrap().connections.untrusted, 1);
}
