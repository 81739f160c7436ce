//! A framed stream between two libp2p swarms: 4 bytes of length and the
//! message, written 64 KiB at a time; the far end answers with counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, BytesMut};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, noise, swarm::SwarmEvent, tcp, yamux};
use tokio::sync::oneshot;

use super::load::{self, Arrived, Load, MESSAGE_BYTES, Taken, Tally};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bench/1");
/// Bytes of one write and of one read.
const CHUNK: usize = 64 * 1024;

/// Two connected swarms.
pub(crate) struct RawLink {
    control: libp2p_stream::Control,
    peer: PeerId,
    arrived: Arc<Arrived>,
}

impl RawLink {
    pub(crate) async fn start(listen: &str) -> Self {
        let (mut from, mut to) = (swarm(), swarm());
        let (peer, arrived) = (*to.local_peer_id(), Arc::<Arrived>::default());
        let mut incoming = to.behaviour().new_control().accept(PROTOCOL).unwrap();
        let count = arrived.clone();
        tokio::spawn(async move {
            while let Some((_, stream)) = incoming.next().await {
                tokio::spawn(receive(stream, count.clone()));
            }
        });
        to.listen_on(listen.parse().unwrap()).unwrap();
        let (bound, address) = oneshot::channel();
        tokio::spawn(drive(to, Some(bound)));
        from.dial(address.await.unwrap().with_p2p(peer).unwrap()).unwrap();
        let control = from.behaviour().new_control();
        tokio::spawn(drive(from, None));
        Self { control, peer, arrived }
    }

    pub(crate) async fn measure(&self, load: &Load) -> Taken {
        let stream = self.control.clone().open_stream(self.peer, PROTOCOL).await.unwrap();
        load::measure(load, &self.arrived, |stop| send(stream, load.in_flight, stop)).await
    }
}

fn swarm() -> Swarm<libp2p_stream::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_quic()
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(24 * 60 * 60)))
        .build()
}

async fn drive(mut swarm: Swarm<libp2p_stream::Behaviour>, mut bound: Option<oneshot::Sender<Multiaddr>>) {
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await
            && let Some(bound) = bound.take()
        {
            drop(bound.send(address));
        }
    }
}

async fn send(mut stream: Stream, in_flight: usize, stop: &AtomicBool) -> Tally {
    let mut chunk = Vec::with_capacity(CHUNK + MESSAGE_BYTES + 4);
    let (mut answers, mut read) = (BytesMut::new(), [0; 4096]);
    let (mut under_way, mut stored) = (0_usize, 0);
    loop {
        while !stop.load(Ordering::Relaxed) && under_way < in_flight {
            chunk.clear();
            while under_way < in_flight && chunk.len() + MESSAGE_BYTES + 4 <= CHUNK {
                chunk.put_u32_le(MESSAGE_BYTES as u32);
                chunk.put_slice(&load::payload(in_flight));
                under_way += 1;
            }
            stream.write_all(&chunk).await.unwrap();
        }
        stream.flush().await.unwrap();
        if under_way == 0 {
            stream.close().await.unwrap();
            return Tally { stored, refused: 0 };
        }
        let count = stream.read(&mut read).await.unwrap();
        assert!(count > 0, "the stream ended");
        answers.extend_from_slice(&read[..count]);
        while answers.len() >= 4 {
            let done = answers.get_u32_le();
            under_way -= done as usize;
            stored += u64::from(done);
        }
    }
}

async fn receive(mut stream: Stream, arrived: Arc<Arrived>) {
    let (mut buffer, mut read) = (BytesMut::new(), vec![0; CHUNK]);
    loop {
        let count = stream.read(&mut read).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        buffer.extend_from_slice(&read[..count]);
        let mut messages = Vec::new();
        while let Some(length) = buffer.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
            && buffer.len() >= 4 + length
        {
            buffer.advance(4);
            messages.push(buffer.split_to(length).freeze());
        }
        if messages.is_empty() {
            continue;
        }
        arrived.note(messages.iter().map(|message| &message[..]));
        let answer = (messages.len() as u32).to_le_bytes();
        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}
