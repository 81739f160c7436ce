//! What the service manager hears of the daemon (`sd_notify(3)`): that it
//! serves, that it is alive, that it stops. Without one nothing is sent.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use sd_notify::NotifyState;
use tokio::{
    net::UnixStream,
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService as _, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{api::Api, node::Node, proto::p2p_server::P2pServer};

/// How long the API may take to answer for the first time.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// Signs of life in the time that the manager allows without one: one may come
/// late on a busy machine.
const BEATS: u32 = 3;

/// Tells the manager that the daemon serves, once its own socket answers so,
/// then keeps telling that it is alive until `stop`.
///
/// Alive means that the loop which owns the network goes round: whether anybody
/// can be reached does not matter, since no restart would mend that.
pub async fn report(socket: PathBuf, node: Node, stop: CancellationToken) {
    let serving = async {
        match timeout(FIRST_ANSWER, is_serving(socket)).await {
            Ok(Ok(true)) => tell(&[NotifyState::Ready, NotifyState::Status("serving")]),
            Ok(Ok(false)) => tracing::warn!("the API says that it does not serve; the service manager is not told"),
            Ok(Err(error)) => tracing::warn!(%error, "the API could not be asked whether it serves"),
            Err(_) => tracing::warn!("the API does not answer on its own socket"),
        }
        if let Some(allowed) = sd_notify::watchdog_enabled() {
            keep_alive(node, allowed).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = serving => {}
    }
}

/// Tells the manager that the daemon is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("shutting down")]);
}

/// Asks the standard health service on the daemon's own socket.
async fn is_serving(socket: PathBuf) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    let service = P2pServer::<Api>::NAME.to_owned();
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await?;
    Ok(answer.into_inner().status() == ServingStatus::Serving)
}

/// Sends a sign of life each time that the network's loop has answered.
async fn keep_alive(node: Node, allowed: Duration) {
    let rhythm = (allowed / BEATS).max(Duration::from_millis(1));
    let mut ticks = interval(rhythm);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tracing::info!(allowed_ms = u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX), "the service manager watches");
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        if node.beat().await.is_err() {
            return;
        }
        if asked.elapsed() > rhythm {
            tracing::warn!(
                took_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
                "the network's loop was slow"
            );
        }
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
