//! The p2p-node daemon: a libp2p swarm behind a local gRPC socket.
//!
//! `ARCHITECTURE.md` shows where things live and which way they depend on each
//! other; `proto/message.proto` is the reference of the API.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod delivery;
pub mod dialable;
pub mod identity;
pub mod netwatch;
pub mod node;
pub mod ports;
pub mod protocol;
pub mod shutdown;
pub mod store;
pub mod supervisor;
pub mod swarm;
pub mod telemetry;
pub mod ticket;
pub mod types;
pub mod wire;

/// Types and services generated from `proto/message.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("p2p.v1");

    /// The encoded `FileDescriptorSet` of the API.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/p2p.v1.bin"));
}
