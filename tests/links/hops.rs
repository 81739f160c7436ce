//! A node as relay of peers that are not of this program: such as do what the
//! specification says, and such as do not.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, identify,
    multiaddr::Protocol,
    noise, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use libp2p_stream::IncomingStreams;
use p2p_node::{
    node::{Serve, ServingView, Standing},
    swarm::RelayLimits,
    wire::circuit::{CircuitError, answer, connect, serve::stop_answer},
};
use tokio::time::{Instant, timeout};

use crate::{
    node::{DEADLINE, QUIC, TCP, TestNode, config},
    raw::RawPeer,
};

const HOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
const STOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");
const RESERVE: &[u8] = b"\x02\x08\x00";
/// STATUS: OK of the stop protocol.
const ACCEPTED: &[u8] = b"\x04\x08\x01\x20\x64";

async fn relay(limits: RelayLimits) -> TestNode {
    TestNode::start_with(p2p_node::swarm::SwarmConfig {
        serve: Serve::On,
        relay_limits: limits,
        ..config(&[QUIC, TCP])
    })
    .await
    .unwrap()
}

async fn serving(relay: &TestNode) -> ServingView {
    relay.node.reach().await.unwrap().serving
}

async fn eventually(relay: &TestNode, fits: impl Fn(&ServingView) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let view = serving(relay).await;
        if fits(&view) {
            return;
        }
        assert!(Instant::now() < deadline, "{view:?}");
        tokio::task::yield_now().await;
    }
}

async fn peer(relay: &TestNode, quic: bool) -> RawPeer {
    RawPeer::connect(relay.id, relay.address(quic)).await
}

/// A stream on which the relay is asked this.
async fn ask(peer: &mut RawPeer, bytes: &[u8]) -> Stream {
    let mut stream = peer.try_open_of(HOP).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// All that comes until the other side ends it, whichever way.
async fn rest(stream: &mut Stream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("ends in time");
    rest
}

async fn refusal(peer: &mut RawPeer, to: PeerId) -> CircuitError {
    let mut stream = ask(peer, &connect(to.to_bytes())).await;
    answer(&rest(&mut stream).await).expect_err("refused")
}

/// A peer with a reservation.
async fn guest(relay: &TestNode, quic: bool) -> (RawPeer, IncomingStreams) {
    let mut guest = peer(relay, quic).await;
    let stops = guest.accept(STOP);
    reserve(&mut guest).await;
    (guest, stops)
}

async fn reserve(guest: &mut RawPeer) {
    let mut stream = ask(guest, RESERVE).await;
    let told = rest(&mut stream).await;
    let (limit, length) = answer(&told).unwrap().expect("whole");
    assert!(length == told.len() && limit.duration.is_some(), "{limit:?}");
}

/// What the relay asks the other end of a circuit, and its stream.
async fn asked(stops: &mut IncomingStreams) -> Stream {
    let (_, mut stream) = timeout(DEADLINE, stops.next()).await.expect("asked in time").unwrap();
    let mut length = [0];
    stream.read_exact(&mut length).await.unwrap();
    let mut question = vec![0; length[0].into()];
    stream.read_exact(&mut question).await.unwrap();
    stream
}

/// Both ends of a circuit.
async fn circuit(caller: &mut RawPeer, to: PeerId, stops: &mut IncomingStreams) -> (Stream, Stream) {
    let mut near = ask(caller, &connect(to.to_bytes())).await;
    let mut far = asked(stops).await;
    far.write_all(ACCEPTED).await.unwrap();
    far.flush().await.unwrap();
    let mut came = Vec::new();
    while answer(&came).unwrap().is_none() {
        let mut byte = [0];
        near.read_exact(&mut byte).await.unwrap();
        came.push(byte[0]);
    }
    (near, far)
}

async fn carries(near: &mut Stream, far: &mut Stream) {
    passes(near, far).await;
    passes(far, near).await;
}

async fn passes(from: &mut Stream, to: &mut Stream) {
    from.write_all(b"hello").await.unwrap();
    from.flush().await.unwrap();
    let mut came = [0; 5];
    timeout(DEADLINE, to.read_exact(&mut came)).await.expect("carried in time").unwrap();
    assert_eq!(&came, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_question_reaches_the_other_end_before_its_answer() {
    let relay = relay(RelayLimits::default()).await;
    for quic in [true, false] {
        let ((host, mut stops), mut caller) = (guest(&relay, quic).await, peer(&relay, quic).await);
        let mut near = ask(&mut caller, &[connect(host.id.to_bytes()), b"hello".to_vec()].concat()).await;
        let mut far = asked(&mut stops).await;
        let mut came = [0; 5];
        timeout(DEADLINE, far.read_exact(&mut came)).await.expect("at once").unwrap();
        assert_eq!((&came, serving(&relay).await.circuits), (b"hello", 0));
        far.write_all(&[ACCEPTED, b"reply"].concat()).await.unwrap();
        far.close().await.unwrap();
        near.close().await.unwrap();
        let told = rest(&mut near).await;
        let (limit, length) = answer(&told).unwrap().expect("whole");
        assert_eq!((limit.bytes, &told[length..]), (Some(1 << 30), &b"reply"[..]));
        assert!(rest(&mut far).await.is_empty());
        eventually(&relay, |view| view.circuits == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_circuit_names_its_status() {
    let limits = RelayLimits { max_circuits_per_peer: 1, max_reservations: 1, ..RelayLimits::default() };
    let relay = relay(limits).await;
    let mut caller = peer(&relay, true).await;
    let nobody = PeerId::random();
    assert_eq!(refusal(&mut caller, nobody).await, CircuitError::NoReservation);
    let (mut host, mut stops) = guest(&relay, false).await;
    let mut full = ask(&mut caller, RESERVE).await;
    assert_eq!(answer(&rest(&mut full).await), Err(CircuitError::LimitExceeded));
    reserve(&mut host).await;

    let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
    carries(&mut near, &mut far).await;
    assert_eq!(refusal(&mut caller, host.id).await, CircuitError::LimitExceeded);
    let view = serving(&relay).await;
    assert_eq!((view.reservations, view.circuits, view.refused), (1, 1, 2));
    drop((near, far));
    eventually(&relay, |view| view.circuits == 0).await;

    // The other end does not want to, or says nonsense, or nothing.
    for (says, told) in [
        (&b"\x05\x08\x01\x20\xca\x01"[..], CircuitError::PermissionDenied),
        (b"\xff\xff\xff\xff", CircuitError::ConnectionFailed),
        (b"\x04\x08", CircuitError::ConnectionFailed),
    ] {
        let mut near = ask(&mut caller, &connect(host.id.to_bytes())).await;
        let mut far = asked(&mut stops).await;
        far.write_all(says).await.unwrap();
        far.close().await.unwrap();
        assert_eq!(answer(&rest(&mut near).await), Err(told), "{says:?}");
        eventually(&relay, |view| view.circuits == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_and_floods_harm_nobody_else() {
    let relay = relay(RelayLimits::default()).await;
    let (host, mut stops) = guest(&relay, true).await;
    let mut caller = peer(&relay, false).await;
    let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
    for quic in [true, false] {
        let mut mad = peer(&relay, quic).await;
        for (bytes, status) in [
            (vec![0xff; 4096], 400),
            (vec![0; 1], 0),
            (b"\x02\x08\x02".to_vec(), 401),
            (b"\x02\x08\x01".to_vec(), 400),
            (connect(b"nobody".to_vec()), 400),
        ] {
            let mut stream = ask(&mut mad, &bytes).await;
            if status > 0 {
                assert_eq!(answer(&rest(&mut stream).await), Err(CircuitError::Other(status)), "{bytes:?}");
            }
        }
        // Half questions take up places of this connection alone.
        let mut halves = Vec::new();
        for _ in 0..64 {
            if let Ok(mut stream) = mad.try_open_of(HOP).await {
                let _ = stream.write_all(b"\x20\x08").await;
                let _ = stream.flush().await;
                halves.push(stream);
            }
        }
        // Thousands of questions, of which it awaits no answer.
        let mut mad = peer(&relay, quic).await;
        for _ in 0..3000 {
            if let Ok(mut stream) = mad.try_open_of(HOP).await {
                let _ = stream.write_all(&connect(host.id.to_bytes())).await;
                let _ = stream.flush().await;
            }
        }
        carries(&mut near, &mut far).await;
        let mut other = peer(&relay, quic).await;
        assert_eq!(refusal(&mut other, PeerId::random()).await, CircuitError::NoReservation);
        drop(mad);
        eventually(&relay, |view| view.circuits == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_before_the_answer_stop_at_the_source() {
    /// What the transport holds on both sides of the source's connection.
    const MOST: usize = 40 << 20;
    let relay = relay(RelayLimits::default()).await;
    for quic in [true, false] {
        let ((host, mut stops), mut caller) = (guest(&relay, quic).await, peer(&relay, quic).await);
        let mut near = ask(&mut caller, &connect(host.id.to_bytes())).await;
        let mut far = asked(&mut stops).await;
        let chunk = vec![7; 64 * 1024];
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_secs(2), near.write_all(&chunk)).await {
            written.unwrap();
            sent += chunk.len();
            assert!(sent < MOST, "{sent} bytes taken and not bounded");
        }
        let mut came = vec![0; 1 << 20];
        let mut early = 0;
        while let Ok(read) = timeout(Duration::from_millis(500), far.read(&mut came)).await {
            early += read.unwrap();
        }
        assert_eq!(early, 16 * 1024);
        far.write_all(ACCEPTED).await.unwrap();
        far.flush().await.unwrap();
        while early < sent {
            early += timeout(DEADLINE, far.read(&mut came)).await.expect("goes on").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn circuits_end_with_the_connection_of_the_reservation() {
    let relay = relay(RelayLimits::default()).await;
    for quic in [true, false] {
        let ((host, mut stops), mut caller) = (guest(&relay, quic).await, peer(&relay, quic).await);
        let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
        carries(&mut near, &mut far).await;
        assert_eq!(relay.node.disconnect(host.id).await.unwrap(), 1);
        assert!(rest(&mut near).await.is_empty() && rest(&mut far).await.is_empty());
        eventually(&relay, |view| (view.circuits, view.reservations) == (0, 0)).await;
        assert_eq!(refusal(&mut caller, host.id).await, CircuitError::NoReservation);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_byte_limit_ends_a_circuit() {
    let relay = relay(RelayLimits { max_circuit_bytes: 100_000, ..RelayLimits::default() }).await;
    let ((host, mut stops), mut caller) = (guest(&relay, true).await, peer(&relay, false).await);
    let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
    carries(&mut near, &mut far).await;
    // It may break while being written.
    let sent = near.write_all(&[7; 200_000]).await;
    drop(sent.and(near.flush().await));
    let came = rest(&mut far).await;
    assert!(came.len() <= 100_000, "{}", came.len());
    rest(&mut near).await;
    eventually(&relay, |view| view.circuits == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_or_calls_itself_leaves_nothing_behind() {
    let relay = relay(RelayLimits { max_circuits_per_peer: 2, ..RelayLimits::default() }).await;
    for quic in [true, false] {
        let ((mut host, mut stops), mut caller) = (guest(&relay, quic).await, peer(&relay, quic).await);
        // More often than circuits may be open.
        for _ in 0..8 {
            let mut near = ask(&mut caller, &connect(host.id.to_bytes())).await;
            let mut far = asked(&mut stops).await;
            near.write_all(b"early").await.unwrap();
            near.flush().await.unwrap();
            far.read_exact(&mut [0; 5]).await.unwrap();
            drop(near);
            assert!(rest(&mut far).await.is_empty());
            drop(far);
            // Until then the relay does not know.
            assert_eq!(refusal(&mut caller, PeerId::random()).await, CircuitError::NoReservation);
        }
        // It resets once it has accepted, with and without the other end's word.
        for word in [&b""[..], b"reply"] {
            let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
            far.write_all(word).await.unwrap();
            far.flush().await.unwrap();
            drop(far);
            let _ = timeout(DEADLINE, near.read_to_end(&mut Vec::new())).await.expect("ends in time");
            // The end of what comes is not that of what goes.
            drop(near);
            eventually(&relay, |view| view.circuits == 0).await;
        }
        let itself = host.id;
        let (mut near, mut far) = circuit(&mut host, itself, &mut stops).await;
        carries(&mut near, &mut far).await;
        drop((near, far));
        assert_eq!(refusal(&mut caller, relay.id).await, CircuitError::NoReservation);
        // One end is done, and the other is not.
        let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
        near.close().await.unwrap();
        assert!(rest(&mut far).await.is_empty());
        passes(&mut far, &mut near).await;
        far.close().await.unwrap();
        assert!(rest(&mut near).await.is_empty());
        eventually(&relay, |view| view.circuits == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_stops_soon_with_circuits_that_are_full_of_bytes() {
    let relay = relay(RelayLimits::default()).await;
    let mut ends = Vec::new();
    for quic in [true, false] {
        let ((host, mut stops), mut caller) = (guest(&relay, quic).await, peer(&relay, quic).await);
        for _ in 0..4 {
            let (mut near, far) = circuit(&mut caller, host.id, &mut stops).await;
            // Nobody reads them at the other end. All are less than what may
            // be on its way on one connection.
            tokio::spawn(async move {
                drop(near.write_all(&[7; 3 << 20]).await);
                near.read_to_end(&mut Vec::new()).await
            });
            ends.push(far);
        }
        // Of one nobody said yes.
        ends.push(ask(&mut caller, &connect(host.id.to_bytes())).await);
        ends.push(asked(&mut stops).await);
        ends.push(ask(&mut caller, b"\x20\x08").await);
        std::mem::forget((host, stops, caller));
    }
    let begun = Instant::now();
    relay.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for mut end in ends {
        let _ = timeout(DEADLINE, end.read_to_end(&mut Vec::new())).await.expect("ends in time");
    }
}

/// More than strangers can hold of anything, whoever they say they are.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_leave_room_for_peers_that_are_trusted() {
    let limits =
        RelayLimits { max_circuits: 8, max_circuits_per_peer: 4, max_reservations: 8, ..RelayLimits::default() };
    let relay = relay(limits).await;
    let (mut host, mut caller) = (peer(&relay, true).await, peer(&relay, true).await);
    let mut stops = host.accept(STOP);
    for friend in [&host, &caller] {
        relay.set(friend.id, Standing::Trusted, false, Vec::new()).await;
    }
    // Reservations.
    let mut strangers = Vec::new();
    for _ in 0..8 {
        let mut stranger = peer(&relay, true).await;
        let mut stream = ask(&mut stranger, RESERVE).await;
        strangers.push((stranger, answer(&rest(&mut stream).await).is_ok()));
    }
    assert_eq!(strangers.iter().filter(|(_, granted)| *granted).count(), 6);
    reserve(&mut host).await;
    // Circuits.
    let mut circuits = Vec::new();
    for n in 0..6 {
        circuits.push(circuit(&mut strangers[n % 2].0, host.id, &mut stops).await);
    }
    assert_eq!(refusal(&mut strangers[2].0, host.id).await, CircuitError::LimitExceeded);
    let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
    carries(&mut near, &mut far).await;
    drop((near, far));
    circuits.clear();
    eventually(&relay, |view| view.circuits == 0).await;
    // Questions being read.
    let mut halves = Vec::new();
    for _ in 0..40 {
        let mut stranger = peer(&relay, true).await;
        for _ in 0..16 {
            let Some(mut stream) = stranger.open_if_taken(HOP).await else { break };
            if stream.write_all(b"\x20\x08").await.is_ok() && stream.flush().await.is_ok() {
                halves.push(stream);
            }
        }
        strangers.push((stranger, false));
    }
    assert!(halves.len() >= 512, "{}: fewer than are read of strangers at once", halves.len());
    let (mut near, mut far) = circuit(&mut caller, host.id, &mut stops).await;
    carries(&mut near, &mut far).await;
}

#[derive(NetworkBehaviour)]
struct Stock {
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
}

fn stock() -> Swarm<Stock> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key, relay| Stock {
            relay,
            identify: identify::Behaviour::new(identify::Config::new("/test".into(), key.public())),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE))
        .build()
}

/// libp2p's own client, as both ends of a circuit.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_libp2p_are_served() {
    let relay = relay(RelayLimits::default()).await;
    for quic in [true, false] {
        let (mut host, mut caller) = (stock(), stock());
        let at: Multiaddr = relay.address(quic).with(Protocol::P2p(relay.id)).with(Protocol::P2pCircuit);
        let (host_id, caller_id) = (*host.local_peer_id(), *caller.local_peer_id());
        host.listen_on(at.clone()).unwrap();
        let reserved = async {
            loop {
                if let SwarmEvent::NewListenAddr { address, .. } = host.select_next_some().await {
                    return address;
                }
            }
        };
        let told = timeout(DEADLINE, reserved).await.expect("reserved in time");
        assert!(told.to_string().contains(&format!("/p2p/{}/p2p-circuit/p2p/{host_id}", relay.id)), "{told}");
        caller.dial(at.with(Protocol::P2p(host_id))).unwrap();
        let met = async {
            let mut met = [false; 2];
            while met != [true; 2] {
                let (at, event, other) = tokio::select! {
                    event = host.select_next_some() => (0, event, caller_id),
                    event = caller.select_next_some() => (1, event, host_id),
                };
                if let SwarmEvent::Behaviour(StockEvent::Identify(identify::Event::Received { peer_id, .. })) = event {
                    met[at] |= peer_id == other;
                }
            }
        };
        timeout(DEADLINE, met).await.expect("met in time");
        assert_eq!(serving(&relay).await.circuits, 1);
        drop((host, caller));
        eventually(&relay, |view| (view.circuits, view.reservations) == (0, 0)).await;
    }
}

#[test]
fn the_answer_of_the_other_end_is_the_one_expected() {
    assert_eq!(stop_answer(ACCEPTED), Ok(Some(ACCEPTED.len())));
}
