//! A peer that misuses links harms nobody else.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use p2p_node::{
    node::NodeEvent,
    wire::{Back, Forward, Hello, encode_forward},
};
use tokio::time::{Instant, timeout};

use crate::{
    node::{DEADLINE, TestNode, data, receive},
    raw::RawPeer,
};

/// Two nodes with links between them, which must go on working.
struct Bystanders {
    victim: TestNode,
    out: crate::node::OutboundLink,
    friend_in: crate::node::InboundLink,
    _friend: TestNode,
}

impl Bystanders {
    async fn start() -> Self {
        let (mut victim, mut friend) = (TestNode::start().await, TestNode::start().await);
        victim.trust(&friend).await;
        friend.trust(&victim).await;
        victim.connect(&friend, true).await.unwrap();
        let (_, out) = victim.outbound(friend.id).await;
        let (_, friend_in) = friend.inbound(victim.id).await;
        let _ = victim.inbound(friend.id).await;
        Self { victim, out, friend_in, _friend: friend }
    }

    async fn still_work(&mut self) {
        self.out.0.send(data(1, 1024)).await.unwrap();
        assert_eq!(receive(&mut self.friend_in.1).await, Some(data(1, 1024)));
        self.friend_in.0.send(Back::Ready { lane: 1 }).await.unwrap();
        assert_eq!(receive(&mut self.out.1).await, Some(Back::Ready { lane: 1 }));
    }

    async fn raw(&self, quic: bool) -> RawPeer {
        RawPeer::connect(self.victim.id, self.victim.address(quic)).await
    }
}

async fn write(stream: &mut libp2p::Stream, frame: &Forward) -> std::io::Result<()> {
    let encoded = encode_forward(frame).unwrap();
    stream.write_all(&encoded.head).await?;
    stream.write_all(&encoded.payload).await
}

/// The link is closed by the other side.
async fn ends(stream: &mut libp2p::Stream) {
    let mut rest = Vec::new();
    let end = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("closed in time");
    assert!(end.is_err() || rest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_oversized_frames_close_the_link() {
    let mut all = Bystanders::start().await;
    let too_large = (64u32 << 20).to_be_bytes().to_vec();
    let unknown_kind = [vec![0, 0, 0, 5, 0xee], vec![0; 4]].concat();
    let header_too_long = [vec![0, 0, 0, 5, 1], vec![0xff; 4]].concat();
    for quic in [true, false] {
        for bytes in [vec![0xff; 4096], vec![0; 4], too_large.clone(), unknown_kind.clone(), header_too_long.clone()] {
            let mut raw = all.raw(quic).await;
            let mut stream = raw.open().await;
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
            let (_, (_tx, mut rx)) = all.victim.inbound(raw.id).await;
            assert_eq!(receive(&mut rx).await, None, "{bytes:?}");
            ends(&mut stream).await;
        }
        all.still_work().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_cut_short_ends_the_link() {
    let mut all = Bystanders::start().await;
    let mut raw = all.raw(true).await;
    let mut stream = raw.open().await;
    let encoded = encode_forward(&data(1, 500_000)).unwrap();
    stream.write_all(&encoded.head).await.unwrap();
    stream.write_all(&encoded.payload[..1000]).await.unwrap();
    stream.close().await.unwrap();
    let (_, (_tx, mut rx)) = all.victim.inbound(raw.id).await;
    assert_eq!(receive(&mut rx).await, None);
    all.still_work().await;
}

/// Frames that nobody takes stop at the budget, not in memory.
async fn endless_frames(quic: bool, payload: usize) {
    /// The budget of links, and what the transport holds on both sides.
    const MOST: usize = 64 * 1024 * 1024;
    let mut all = Bystanders::start().await;
    let mut raw = all.raw(quic).await;
    let mut stream = raw.open().await;
    write(&mut stream, &Forward::Hello(Hello { version: 1, features: 0 })).await.unwrap();
    let (_, (_tx, mut rx)) = all.victim.inbound(raw.id).await;
    let (mut sent, mut frames) = (0, 0);
    while let Ok(written) = timeout(Duration::from_secs(2), write(&mut stream, &data(frames + 1, payload))).await {
        written.unwrap();
        sent += payload;
        frames += 1;
        assert!(sent < MOST, "{sent} bytes taken and not bounded");
    }
    all.still_work().await;
    // What came in is whole, and taking it lets more in.
    assert!(matches!(receive(&mut rx).await, Some(Forward::Hello(_))));
    for n in 0..frames {
        assert_eq!(receive(&mut rx).await, Some(data(n + 1, payload)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_large_frames_stop_over_quic() {
    endless_frames(true, 256 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_large_frames_stop_over_tcp() {
    endless_frames(false, 256 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_small_frames_stop() {
    endless_frames(false, 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_no_answers_stalls_only_itself() {
    let mut all = Bystanders::start().await;
    let mut raw = all.raw(true).await;
    let mut stream = raw.open().await;
    write(&mut stream, &Forward::Hello(Hello { version: 1, features: 0 })).await.unwrap();
    stream.flush().await.unwrap();
    let (_, (tx, mut rx)) = all.victim.inbound(raw.id).await;
    let deadline = Instant::now() + DEADLINE;
    // The queue fills up; the sender is told instead of filling memory.
    while timeout(Duration::from_secs(1), tx.send(Back::Ack { lane: 1, high: 1 })).await.is_ok() {
        assert!(Instant::now() < deadline, "answers are never refused");
    }
    all.still_work().await;
    assert!(matches!(receive(&mut rx).await, Some(Forward::Hello(_))));
    drop(stream);
    assert_eq!(receive(&mut rx).await, None, "a stalled link still ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_without_end_are_refused() {
    let mut all = Bystanders::start().await;
    let mut raw = all.raw(false).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        // Refused ones may fail already while being opened.
        if let Ok(mut stream) = raw.try_open().await {
            let _ = write(&mut stream, &Forward::Hello(Hello { version: 1, features: 0 })).await;
            let _ = stream.flush().await;
            streams.push(stream);
        }
    }
    let came = all.victim.collect(Duration::from_secs(1)).await;
    let links = came.iter().filter(|event| matches!(event, NodeEvent::Link(link) if link.peer == raw.id)).count();
    assert!((1..=4).contains(&links), "{links} links open");
    // Dropping them makes room, but not faster than the rate allows.
    drop(came);
    for _ in 0..100 {
        let _ = raw.try_open().await;
    }
    let came = all.victim.collect(Duration::from_secs(1)).await;
    let links = came.iter().filter(|event| matches!(event, NodeEvent::Link(link) if link.peer == raw.id)).count();
    assert!(links <= 12, "{links} more links");
    all.still_work().await;
}
