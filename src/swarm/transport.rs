//! Builds the swarm: transports, their timeouts, and the behaviours.

use std::{io, num::NonZeroU8, time::Duration};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    PeerId, Swarm, Transport, allow_block_list,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    dns, identify,
    identity::{Keypair, PublicKey},
    mdns, memory_connection_limits, noise, ping, quic, relay, swarm, tcp, yamux,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::{
    SwarmConfig, SwarmError,
    addresses::MAX_DIAL_ADDRESSES,
    behaviour::Behaviour,
    circuit, find, introduce, join, limits, link,
    punch::{Scope, Scoped},
    relay::meter::Meters,
};

/// What identify says of this program.
const AGENT: &str = concat!("p2p-node/", env!("CARGO_PKG_VERSION"));
/// What identify says of its family of protocols.
const PROTOCOL: &str = "/p2p-node/1";

/// One attempt at one address; a second less than a command may take, so that
/// the caller still hears the cause.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(9);
/// Setting up QUIC: within the above.
const QUIC_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);
/// A connection is dead when the other host let this pass without a packet
/// although it owes one. Long enough to change from one access point to another
/// and to send a lost packet again half a dozen times; short enough that nobody
/// waits long for a message on its way to a peer that was switched off. Packets
/// count and not answers of the peer's program: those of a slow disk, or behind
/// megabytes on a slow line, take longer. TCP also gives up when the peer's
/// program reads nothing for so long while data waits: one that hangs.
const SILENCE: Duration = Duration::from_secs(6);
/// A quiet QUIC connection makes the other side owe a packet this often, so
/// that a dead peer is noticed within ten seconds. Costs about 3 MB a day; a
/// longer time would let a phone's radio sleep only beyond some ten seconds.
/// Also keeps UDP mappings of NATs, whose common timeout is 30 s.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(4);
/// The same of TCP. Unlike QUIC's, a probe that is lost is not sent again before
/// the next one: four of them fit into the silence.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// From one probe to the next.
const TCP_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that this side closes is forgotten at once. Otherwise the system
/// remembers it for a minute, in which nothing can be dialled from the port
/// listened on to the same address: after a restart relays would see another
/// port, and no peer could punch to it. What is not yet on its way then is lost,
/// as it may be with any connection that ends; links send it again.
const TCP_LINGER: Duration = Duration::ZERO;
/// An unused connection is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Substreams of one connection.
const MAX_STREAMS: usize = 256;
/// Substreams of one connection that are being negotiated from outside.
const MAX_NEGOTIATING: usize = 32;
/// Unread bytes of one QUIC substream: a round trip of 60 ms at 1 Gbit/s.
const QUIC_STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// Unread bytes of one QUIC connection.
const QUIC_CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// How often each connection is measured. Dead hosts are noticed without it;
/// this notices programs that hang, and costs a packet.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A ping without answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often peers tell each other what they are, besides when it changes.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(300);
/// How long others on the local network believe what this node announced.
const MDNS_TTL: Duration = Duration::from_secs(360);
/// How often peers on the local network are asked for. A newcomer finds the
/// others at once, and they find it with their next question; anybody's
/// question postpones everybody's, as all hear the answers.
const MDNS_QUERY_INTERVAL: Duration = Duration::from_secs(30);

/// Builds the swarm. Must run within tokio.
///
/// # Errors
/// [`SwarmError::Noise`].
pub(super) fn build(
    config: &SwarmConfig,
    keypair: Keypair,
    early: circuit::Circuits,
    scope: Scope,
    meters: Meters,
) -> Result<Swarm<Behaviour>, SwarmError> {
    let public = keypair.public();
    let local = public.to_peer_id();
    let (circuits, relay_client) = relay::client::new(local);
    let more = meters.clone();
    let early = early.map(move |circuit, endpoint| meters.meter_early(circuit, &endpoint));
    let circuits = circuits.map(move |circuit, endpoint| more.meter(circuit, &endpoint));
    let circuits = secured(early, &keypair)?.or_transport(secured(circuits, &keypair)?);
    let circuits = circuits.map(|either, _| either.into_inner());
    let transport = circuits.or_transport(with_names(&keypair)?).map(|either, _| either.into_inner());
    let transport = TransportTimeout::new(transport, CONNECTION_TIMEOUT).boxed();
    let transport = Scoped::new(transport, scope).boxed();
    let behaviour = behaviour(config, &public, relay_client);
    Ok(Swarm::new(transport, behaviour, local, swarm_config()))
}

/// Resolves names with the system's settings, or not at all where there are
/// none: a public resolver should not be told without being asked.
fn with_names(keypair: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    match dns::tokio::Transport::system(plain(keypair)?) {
        Ok(transport) => Ok(transport.boxed()),
        Err(error) => {
            warn!(%error, "names in addresses cannot be resolved: the system has no resolver settings");
            let nothing = dns::ResolverConfig::from_parts(None, Vec::new(), Vec::new());
            Ok(dns::tokio::Transport::custom(plain(keypair)?, nothing, dns::ResolverOpts::default()).boxed())
        }
    }
}

/// QUIC, and TCP with Noise and yamux.
fn plain(keypair: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let config = tcp::Config::new().nodelay(true).linger(Some(TCP_LINGER));
    let tcp = tcp::tokio::Transport::new(config).map(|stream: tcp::tokio::TcpStream, _| {
        // Without it a dead connection is noticed by pings, later.
        if let Err(error) = notice_silence(&stream.0) {
            debug!(%error, "a TCP connection takes no timeouts");
        }
        stream
    });
    let tcp = secured(tcp, keypair)?;
    let quic = quic::tokio::Transport::new(quic_config(quic::Config::new(keypair)))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed())
}

/// Noise and yamux over a plain stream, without waiting for what need not be
/// waited for.
fn secured<T>(transport: T, keypair: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error>
where
    T: Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
{
    let noise = noise::Config::new(keypair)?;
    let secured = transport.upgrade(Version::V1Lazy).authenticate(noise).multiplex(yamux_config());
    Ok(secured.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed())
}

/// Makes the system probe a quiet connection, and give up one on which nothing
/// is acknowledged: it alone sees the other host's packets.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(TCP_KEEP_ALIVE).with_interval(TCP_PROBE_INTERVAL);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(SILENCE))
}

fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config
}

fn quic_config(mut config: quic::Config) -> quic::Config {
    config.handshake_timeout = QUIC_HANDSHAKE_TIMEOUT;
    config.max_idle_timeout = SILENCE.as_millis() as u32;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = MAX_STREAMS as u32;
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    config
}

fn swarm_config() -> swarm::Config {
    swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_TIMEOUT)
        // Saves a round trip for each substream.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_max_negotiating_inbound_streams(MAX_NEGOTIATING)
        .with_dial_concurrency_factor(NonZeroU8::new(MAX_DIAL_ADDRESSES as u8).unwrap_or(NonZeroU8::MIN))
}

fn behaviour(config: &SwarmConfig, public: &PublicKey, relay_client: relay::client::Behaviour) -> Behaviour {
    Behaviour {
        blocked: allow_block_list::Behaviour::default(),
        limits: limits::Behaviour::new(config.limits, own_nodes(config)),
        memory: config.max_memory_bytes.map(memory_connection_limits::Behaviour::with_max_bytes).into(),
        identify: introduce::Behaviour::new(
            identify::Config::new(PROTOCOL.to_owned(), public.clone())
                .with_agent_version(AGENT.to_owned())
                .with_interval(IDENTIFY_INTERVAL)
                .with_push_listen_addr_updates(true)
                // Addresses are kept in the table of peers.
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
        mdns: if config.mdns { mdns(public.to_peer_id()).into() } else { None.into() },
        find: find::behaviour::Behaviour::new(
            public.to_peer_id(),
            config.network,
            config.trust_open,
            config.bootstrap.iter().chain(&config.relays),
        ),
        relay_client,
        link: link::behaviour::Behaviour::new(),
        join: join::behaviour(MAX_STREAMS),
    }
}

/// Nodes that the settings name.
fn own_nodes(config: &SwarmConfig) -> impl Iterator<Item = PeerId> {
    config.relays.iter().chain(&config.bootstrap).map(|node| node.peer)
}

/// A host without multicast still has everything else.
fn mdns(local: PeerId) -> Option<mdns::tokio::Behaviour> {
    let config = mdns::Config { ttl: MDNS_TTL, query_interval: MDNS_QUERY_INTERVAL, enable_ipv6: false };
    mdns::tokio::Behaviour::new(config, local)
        .inspect_err(|error| warn!(%error, "peers on the local network are not found"))
        .ok()
}
