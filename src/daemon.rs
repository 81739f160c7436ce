//! The composition root: settings in, a running daemon, and its end.
//!
//! Start: lock of the state directory, identity, store, clock, network,
//! delivery, API. End, in the opposite order and within a grace: streams of
//! the API end, links flush, the network closes, the store closes.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use libp2p::{Multiaddr, identity::Keypair, multiaddr::Protocol};
use tokio::{net::UnixListener, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Api, ServeError},
    clock::{Reading, StoreClock},
    config::{self, ConfigError, Environment, Flags, Settings},
    delivery::{Delivery, DeliveryError, DeliveryOptions, read_mark, write_mark},
    identity::{self, IdentityError},
    shutdown,
    store::{Reader, Store, StoreError, StoreOptions, Synchronous},
    supervisor,
    swarm::{self, BoundAddress, ConnectionLimits, Network, RelayLimits, SwarmConfig, SwarmError},
    telemetry,
};

/// The store's file in the state directory.
const STORE_FILE: &str = "store.db";
/// Held locked while a daemon uses the state directory.
const LOCK_FILE: &str = "lock";
/// Mode of a state directory that is made.
const STATE_MODE: u32 = 0o700;
/// Mark in the store: the ports that the system chose for addresses with
/// port 0.
const PORTS_MARK: &str = "ports";
/// Share of the grace that open calls get before their connections are cut.
const CALLS_SHARE: u32 = 3;

/// Why the daemon did not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings are wrong; each problem is listed.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error("state directory {}: {source}; check that this user may write there, or choose another with --state-dir", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has the state directory.
    #[error("state directory {} is in use by another daemon; stop that one, or choose another with --state-dir", .0.display())]
    StateInUse(PathBuf),
    /// The identity cannot be loaded.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network cannot be started.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// The API cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Delivery cannot be started.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// The system refuses something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The network ended by itself.
    #[error("the network failed: {0}")]
    Network(String),
}

impl RunError {
    /// Whether the settings are to blame, which has an exit status of its own.
    #[must_use]
    pub fn is_settings(&self) -> bool {
        matches!(self, Self::Settings(_))
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub fn run(flags: &Flags) -> Result<(), RunError> {
    run_with(flags, Synchronous::Full)
}

/// As [`run`], with another rule for when a commit counts. For tests that show
/// what [`Synchronous::Normal`] loses.
///
/// # Errors
/// As [`run`].
pub fn run_with(flags: &Flags, synchronous: Synchronous) -> Result<(), RunError> {
    let settings = config::load(flags, &Environment::capture())?;
    if let Ok(filter) = telemetry::parse_filter(&settings.log)
        && let Err(error) = telemetry::init(filter)
    {
        // Logging was set up before, by whoever runs this as a library.
        tracing::debug!(%error, "the log stays as it was set up");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "the runtime cannot be started", source })?;
    let result = runtime.block_on(Daemon::live(settings, synchronous));
    // Whatever still runs was given its time.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// All parts of a running daemon.
struct Daemon {
    settings: Settings,
    delivery: Delivery,
    network: Network,
    threads: Vec<JoinHandle<()>>,
    stop_swarm: CancellationToken,
    listener: UnixListener,
    /// Keeps the state directory locked.
    _lock: File,
}

impl Daemon {
    async fn live(settings: Settings, synchronous: Synchronous) -> Result<(), RunError> {
        let shutdown =
            shutdown::install().map_err(|source| RunError::System { what: "signals cannot be caught", source })?;
        let started = tokio::time::Instant::now();
        let daemon = Box::pin(Self::start(settings, synchronous)).await?;
        tracing::info!(
            peer_id = %daemon.delivery.node().local_peer_id(),
            socket = %daemon.settings.socket.display(),
            state_dir = %daemon.settings.state_dir.display(),
            version = env!("CARGO_PKG_VERSION"),
            took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "p2p-node serves"
        );
        daemon.serve(shutdown.token()).await
    }

    async fn start(settings: Settings, synchronous: Synchronous) -> Result<Self, RunError> {
        let lock = lock_state(&settings.state_dir)?;
        let keypair = identity::load_or_create(&settings.state_dir)?;
        // Before the network: two daemons must not answer for one identity.
        let listener = api::bind(&settings.socket, &settings.socket_group)?;
        let path = settings.state_dir.join(STORE_FILE);
        let (store, threads) = Store::open(&path, store_options(&settings, synchronous))?;
        let (clean, mark, ports) =
            store.write(|db| Ok((db.begin_session()?, read_mark(db)?, db.mark(PORTS_MARK)?))).await?;
        let clock = start_clock(mark).await?;
        let stop_swarm = CancellationToken::new();
        let ports = ports.as_deref().unwrap_or_default();
        let network = start_network(&settings, keypair, ports, &stop_swarm).await?;
        remember_ports(&store, &settings, &network.bound).await?;
        let options = DeliveryOptions {
            max_message_bytes: settings.limits.max_message_bytes,
            trust_open: settings.trust_open,
            name: settings.name.clone(),
        };
        let delivery = Delivery::new(store, network.node.clone(), Arc::new(clock), options).await?;
        if !clean {
            check_in_background(delivery.clone(), path);
        }
        Ok(Self { settings, delivery, network, threads, stop_swarm, listener, _lock: lock })
    }

    async fn serve(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self { settings, delivery, network, threads, stop_swarm, listener, _lock } = self;
        let Network { node, events, task, ports, .. } = network;
        delivery.tell_book().await?;
        let mut failures = delivery.start(events).await?;
        let (grace, socket) = (settings.shutdown_grace, settings.socket.clone());
        let api = Api::new(delivery.clone(), settings, stop.clone());
        let mut server = tokio::spawn(api::serve(api, listener, stop.clone()));
        tokio::spawn(supervisor::report(socket.clone(), node.clone(), stop.clone()));
        let mut served = false;
        let failure = tokio::select! {
            // A stop ends the server too, perhaps before this is looked at.
            biased;
            () = stop.cancelled() => None,
            Some(cause) = failures.recv() => Some(RunError::Network(cause)),
            ended = &mut server => {
                served = true;
                Some(match ended {
                    Ok(Ok(())) => RunError::Network("the API ended by itself".to_owned()),
                    Ok(Err(error)) => error.into(),
                    Err(error) => RunError::Network(format!("the API's task failed: {error}")),
                })
            }
        };
        tracing::info!(grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), "shutting down");
        supervisor::stopping();
        stop.cancel();
        // Calls get a part of the grace; a client that keeps its connection
        // open would hold the server for ever.
        if !served && timeout(grace / CALLS_SHARE, &mut server).await.is_err() {
            server.abort();
            tracing::info!("connections of clients that were still open are cut");
        }
        let flush = async {
            // A network that failed needs no drain.
            drop(node.drain().await);
            delivery.drain().await;
            stop_swarm.cancel();
            drop(task.await);
            if let Some(ports) = ports {
                drop(ports.task.await);
            }
        };
        if timeout(grace / CALLS_SHARE, flush).await.is_err() {
            tracing::warn!("links did not flush in time; what was not acknowledged is sent again");
            stop_swarm.cancel();
        }
        close_store(&delivery, threads, grace / CALLS_SHARE).await;
        // Only a convenience: the next start replaces it too.
        drop(fs::remove_file(socket));
        tracing::info!("stopped");
        failure.map_or(Ok(()), Err)
    }
}

fn lock_state(directory: &Path) -> Result<File, RunError> {
    let failed = |source| RunError::StateDir { path: directory.to_owned(), source };
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(failed)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(STATE_MODE)).map_err(failed)?;
    }
    let lock =
        File::options().create(true).truncate(false).write(true).open(directory.join(LOCK_FILE)).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(RunError::StateInUse(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn store_options(settings: &Settings, synchronous: Synchronous) -> StoreOptions {
    StoreOptions {
        max_outbox_bytes: settings.limits.max_outbox_bytes,
        max_inbox_bytes: settings.limits.max_inbox_bytes,
        max_peer_bytes: settings.limits.max_peer_bytes,
        synchronous,
        ..StoreOptions::default()
    }
}

async fn start_clock(mark: Option<crate::clock::ClockMark>) -> Result<StoreClock, RunError> {
    let what = "the machine's clocks cannot be read";
    let read = move || {
        let reading = Reading::take(mark.as_ref())?;
        Ok(StoreClock::resume(mark.as_ref(), &reading))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(clock)) => Ok(clock),
        Ok(Err(source)) => Err(RunError::System { what, source }),
        Err(error) => Err(RunError::System { what, source: io::Error::other(error) }),
    }
}

fn swarm_config(settings: &Settings, listen: Vec<swarm::ListenAddress>) -> SwarmConfig {
    let limits = &settings.limits;
    SwarmConfig {
        listen,
        external: settings.external.clone(),
        bootstrap: settings.bootstrap.clone(),
        relays: settings.relay.clone(),
        serve: settings.serve,
        relay_limits: RelayLimits {
            max_reservations: limits.relay_reservations,
            reservation_duration: limits.relay_reservation_duration,
            max_circuits: limits.relay_circuits,
            max_circuits_per_peer: limits.relay_circuits_per_peer,
            max_circuit_bytes: limits.relay_circuit_bytes,
            max_circuit_duration: limits.relay_circuit_duration,
        },
        network: settings.network,
        mdns: settings.mdns,
        port_mapping: settings.port_mapping,
        trust_open: settings.trust_open,
        max_message_bytes: limits.max_message_bytes,
        limits: ConnectionLimits {
            max_untrusted: limits.max_untrusted_connections,
            max_trusted: limits.max_trusted_connections,
            max_per_peer: limits.max_connections_per_peer,
            ..ConnectionLimits::default()
        },
        max_memory_bytes: limits.max_memory_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
    }
}

/// Binds the ports that the system chose before for addresses with port 0, so
/// that addresses which peers remember stay true; others if those are taken.
async fn start_network(
    settings: &Settings,
    keypair: Keypair,
    ports: &str,
    stop: &CancellationToken,
) -> Result<Network, RunError> {
    let wanted = remembered(settings, ports);
    let listen: Vec<_> = settings.listen.iter().map(|at| (at.addr.clone(), at.required)).collect();
    if listen != wanted {
        match swarm::spawn(swarm_config(settings, addresses(wanted)), keypair.clone(), stop.clone()).await {
            Ok(network) => return Ok(network),
            Err(error) => tracing::warn!(%error, "a port of the last start is taken; the system chooses another"),
        }
    }
    Ok(swarm::spawn(swarm_config(settings, addresses(listen)), keypair, stop.clone()).await?)
}

fn addresses(listen: Vec<(Multiaddr, bool)>) -> Vec<swarm::ListenAddress> {
    listen.into_iter().map(|(addr, required)| swarm::ListenAddress { addr, required }).collect()
}

fn has_port_zero(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(0) | Protocol::Tcp(0)))
}

/// The addresses of the settings, with what is remembered in place of port 0.
fn remembered(settings: &Settings, ports: &str) -> Vec<(Multiaddr, bool)> {
    let known: Vec<(&str, &str)> = ports.lines().filter_map(|line| line.split_once(' ')).collect();
    let bound = |address: &Multiaddr| {
        let text = address.to_string();
        known.iter().find(|(asked, _)| *asked == text).and_then(|(_, bound)| bound.parse().ok())
    };
    settings.listen.iter().map(|at| (bound(&at.addr).unwrap_or_else(|| at.addr.clone()), at.required)).collect()
}

async fn remember_ports(store: &Store, settings: &Settings, bound: &[BoundAddress]) -> Result<(), RunError> {
    let asked: Vec<String> =
        settings.listen.iter().map(|at| &at.addr).filter(|at| has_port_zero(at)).map(ToString::to_string).collect();
    // Those that were bound as remembered are known already.
    let fresh: Vec<String> = bound
        .iter()
        .filter(|address| asked.contains(&address.asked.to_string()))
        .map(|address| format!("{} {}", address.asked, address.bound))
        .collect();
    if fresh.is_empty() {
        return Ok(());
    }
    Ok(store.write(move |db| db.set_mark(PORTS_MARK, &fresh.join("\n"))).await?)
}

/// After a stop out of order the file is read whole, while the daemon serves.
fn check_in_background(delivery: Delivery, path: PathBuf) {
    delivery.set_degraded(Some("the store is being checked after a stop out of order; no action is needed".to_owned()));
    tokio::task::spawn_blocking(move || {
        let verdict = Reader::open(&path).and_then(|reader| reader.check());
        delivery.set_degraded(match verdict {
            Ok(None) => None,
            Ok(Some(damage)) => {
                let damaged = StoreError::Damaged { path, cause: damage };
                tracing::error!(error = %damaged, "the store is damaged");
                Some(damaged.to_string())
            }
            Err(error) => Some(format!("the store could not be checked: {error}")),
        });
    });
}

async fn close_store(delivery: &Delivery, threads: Vec<JoinHandle<()>>, grace: Duration) {
    let mark = delivery.clock_mark();
    let close = async {
        if let Err(error) = delivery.store().write(move |db| write_mark(db, &mark)).await {
            tracing::warn!(%error, "the clock was not noted in the store");
        }
        delivery.store().close().await;
    };
    if timeout(grace, close).await.is_err() {
        tracing::warn!("the store did not close in time; it is checked at the next start");
    }
    // The writing thread has answered; the reading one ends with its handles.
    drop(threads);
}
