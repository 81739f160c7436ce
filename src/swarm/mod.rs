//! The network: one task owns the libp2p swarm.
//!
//! ```text
//! commands (Node) ──▶ task.rs ──▶ events (NodeEvent)
//!                      │  ▲
//!            commands.rs  events/                  what the task does
//!                      │  │
//!   peers.rs  pending.rs  redial.rs  listen.rs      its tables
//!   dial.rs  find/  relay/  circuit.rs              ways to others
//!   introduce.rs  audience.rs                       what which of them is told
//!   reach/  external.rs  surroundings.rs            ways to here
//!   punch/  probe.rs                                better ways, and dead ones
//!                      │  │
//!                 behaviour.rs                      the swarm's parts
//!                      │
//!          link/{steer,behaviour,handler,io}.rs     substreams for messages
//!          join.rs                                  tickets presented
//! ```
//!
//! Nothing waits in the task but its one `select`; dials, pings and the frames
//! of links run elsewhere and come back as messages.

mod addresses;
mod audience;
mod behaviour;
mod cause;
mod circuit;
mod commands;
mod config;
mod dial;
mod error;
mod events;
mod external;
pub mod find;
mod introduce;
mod join;
mod limits;
mod link;
mod listen;
mod peers;
mod pending;
mod ping;
#[cfg(test)]
mod pipe;
mod probe;
mod punch;
mod reach;
mod redial;
mod relay;
mod route;
mod sink;
mod surroundings;
mod task;
mod timers;
mod transport;
mod view;

use libp2p::identity::Keypair;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use config::{BoundAddress, ListenAddress, SwarmConfig};
pub use error::SwarmError;
pub use limits::ConnectionLimits;
pub use relay::RelayLimits;
use relay::{Relays, meter::Meters, server::Server};

use crate::{
    node::{Node, NodeEvent},
    ports,
};

/// The running network.
#[derive(Debug)]
pub struct Network {
    /// For commands.
    pub node: Node,
    /// What happens.
    pub events: mpsc::Receiver<NodeEvent>,
    /// The task that owns the swarm. It ends when the token is cancelled.
    pub task: JoinHandle<()>,
    /// Addresses asked for, with the ports that the system chose.
    pub bound: Vec<BoundAddress>,
    /// Default addresses that could not be bound, with the cause.
    pub skipped: Vec<String>,
    /// Ports that the router forwards; `None` if it is not asked. Ends when the
    /// token is cancelled, too.
    pub ports: Option<ports::Handle>,
}

/// Starts the network. When this returns, all listeners are bound.
///
/// Cancelling `stop` ends it: links get a moment to write out what is queued,
/// connections are closed, and the task ends. Drop the links first.
///
/// # Errors
/// An address cannot be bound, or the system refuses something else that the
/// network cannot do without; see [`SwarmError`].
pub async fn spawn(config: SwarmConfig, keypair: Keypair, stop: CancellationToken) -> Result<Network, SwarmError> {
    let relays = circuit::Connected::default();
    let (early, circuits) = circuit::Circuits::new(relays.clone());
    let (scope, meters) = (punch::Scope::default(), Meters::default());
    for server in config.relays.iter().chain(&config.bootstrap) {
        scope.show_port(&server.addresses);
    }
    let swarm = transport::build(&config, keypair.clone(), early, scope.clone(), meters.clone())?;
    let local = *swarm.local_peer_id();
    let (commands, command_queue) = mpsc::channel(task::COMMAND_QUEUE);
    let (task, events) = task::Task::new(
        swarm,
        Relays::new(local, Server::new(config.serve, config.relay_limits), meters, &config.relays),
        scope,
        &config,
        task::Queues { commands: command_queue, circuits },
        relays,
        stop.clone(),
    );
    // Boxed, for it is large.
    let mut task = Box::new(task);
    task.listen(config.listen)?;
    task.settle().await?;
    let (bound, skipped) = (task.bound(), task.skipped());
    let (changes, surroundings) = mpsc::channel(surroundings::CHANGE_QUEUE);
    let ports = if config.port_mapping { surroundings::map_ports(&bound, &keypair, &changes, &stop) } else { None };
    task.mappings = ports.as_ref().map(|handle| handle.view.clone());
    surroundings::watch_network(ports.as_ref().map(ports::Handle::control), changes, stop);
    task.surrounded(surroundings, ports.as_ref().map(ports::Handle::control));
    let task = tokio::spawn(task.run());
    Ok(Network { node: Node::new(local, commands), events, task, bound, skipped, ports })
}
