//! The gRPC service: checks requests, hands them down, maps errors.
//!
//! One file per group of calls; `service` ties them to the generated trait.

mod advice;
mod convert;
mod errors;
mod join;
mod messages;
mod peers;
mod presence;
mod reach;
mod server;
mod service;
mod status;
mod streams;
mod view;

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, transport::server::UdsConnectInfo};

use self::convert::peer_id;
pub use self::server::{ServeError, bind, serve};
use crate::{
    config::Settings,
    delivery::{Delivery, DeliveryOptions},
    proto,
};

/// How long before a call's deadline its answer goes out.
const MARGIN: Duration = Duration::from_millis(200);
/// Longest that Send waits if the caller does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// Longest `timeout_ms` that counts.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Room in a gRPC frame for what is around the largest message.
const FRAME_ROOM: u64 = 256 * 1024;
/// Smallest limit of a gRPC frame: what clients have by default.
const MIN_FRAME_BYTES: u64 = 4 * 1024 * 1024;

/// The service's state; clones share it.
#[derive(Debug, Clone)]
pub struct Api {
    delivery: Delivery,
    facts: Arc<Facts>,
    /// Streams that may still be opened.
    streams: Arc<Semaphore>,
    /// Ends streams and refuses new work.
    stop: CancellationToken,
}

/// What does not change while the daemon runs.
#[derive(Debug)]
struct Facts {
    settings: Settings,
    instance_id: String,
    started_at: i64,
    started: Instant,
}

impl Api {
    /// The service over a delivery layer. `stop` ends its streams.
    #[must_use]
    pub fn new(delivery: Delivery, settings: Settings, stop: CancellationToken) -> Self {
        let streams = Arc::new(Semaphore::new(settings.limits.max_streams as usize));
        let facts = Facts {
            settings,
            instance_id: uuid::Uuid::new_v4().to_string(),
            started_at: crate::clock::wall_ms(),
            started: Instant::now(),
        };
        Self { delivery, facts: Arc::new(facts), streams, stop }
    }

    fn options(&self) -> &DeliveryOptions {
        self.delivery.options()
    }

    /// Largest gRPC frame in either direction.
    fn max_frame_bytes(&self) -> u64 {
        (self.options().max_message_bytes + FRAME_ROOM).max(MIN_FRAME_BYTES)
    }

    /// The first frame of most streams.
    fn ready(&self) -> proto::Ready {
        proto::Ready { instance_id: self.facts.instance_id.clone() }
    }

    fn check_open(&self) -> Result<(), Status> {
        if self.stop.is_cancelled() { Err(errors::shutting_down()) } else { Ok(()) }
    }

    /// The peer of an id or an alias.
    async fn peer(&self, name: &str) -> Result<PeerId, Status> {
        if name.is_empty() {
            return Err(errors::bad_field("peer", "peer is empty; give a peer id or an alias".to_owned()));
        }
        if let Some(peer) = peer_id(name) {
            return Ok(peer);
        }
        if let Some(peer) = self.delivery.peer_by_alias(name) {
            return Ok(peer);
        }
        // What begins like a peer id was meant as one.
        if name.starts_with("12D3Koo") || name.starts_with("Qm") {
            let text = format!("peer {} is no valid peer id; check that it was copied whole", convert::shown(name));
            return Err(errors::bad_field("peer", text));
        }
        Err(errors::unknown_peer(name))
    }
}

/// When the caller's deadline is, if it set one.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Instant::now().checked_add(timeout)
}

/// What is left until shortly before the caller's deadline, at most `max`.
fn time_left<T>(request: &Request<T>, max: Duration) -> Duration {
    match deadline(request) {
        Some(at) => at.saturating_duration_since(Instant::now()).saturating_sub(MARGIN).min(max),
        None => max,
    }
}

/// The process at the other end of the socket.
fn caller<T>(request: &Request<T>) -> String {
    let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    credentials.and_then(|cred| cred.pid()).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
}
