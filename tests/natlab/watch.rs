//! How a peer is reached, moment by moment, as WatchPeers tells it.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use p2p_node::proto::{self, Route, watch_peers_response::Frame};
use tokio::task::JoinHandle;

use crate::support::Client;

/// Changes of one peer's route since the watch began.
pub(crate) struct RouteWatch {
    changes: Arc<Mutex<Vec<(Instant, Route, String)>>>,
    task: JoinHandle<()>,
}

impl RouteWatch {
    pub(crate) async fn new(client: &Client, peer: &str) -> Self {
        let request = proto::WatchPeersRequest { book_only: false };
        let mut stream = client.clone().watch_peers(request).await.unwrap().into_inner();
        let changes = Arc::new(Mutex::new(Vec::new()));
        let (list, peer) = (Arc::clone(&changes), peer.to_owned());
        let task = tokio::spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                let now = Instant::now();
                let rows = match response.frame {
                    Some(Frame::Snapshot(snapshot)) => {
                        snapshot.peers.into_iter().map(|peer| (peer, String::new())).collect()
                    }
                    Some(Frame::Changes(changes)) => {
                        let rows = changes.changes.into_iter();
                        rows.filter_map(|change| Some((change.peer?, change.detail))).collect()
                    }
                    _ => Vec::new(),
                };
                for (row, detail) in rows.into_iter().filter(|(row, _)| row.peer_id == peer) {
                    let mut list = list.lock().unwrap();
                    if list.last().is_none_or(|(_, route, _)| *route != row.route()) {
                        list.push((now, row.route(), detail));
                    }
                }
            }
        });
        Self { changes, task }
    }

    /// When the peer was first reached by a route that fits.
    pub(crate) fn first(&self, fits: impl Fn(Route) -> bool) -> Option<Instant> {
        self.changes.lock().unwrap().iter().find(|(_, route, _)| fits(*route)).map(|(at, ..)| *at)
    }

    /// Since when the peer has been reached by routes that fit; `None` if it is
    /// not now.
    pub(crate) fn since(&self, fits: impl Fn(Route) -> bool) -> Option<Instant> {
        let changes = self.changes.lock().unwrap();
        changes.iter().rev().take_while(|(_, route, _)| fits(*route)).last().map(|(at, ..)| *at)
    }

    /// The route of now.
    pub(crate) fn now(&self) -> Route {
        self.changes.lock().unwrap().last().map_or(Route::None, |(_, route, _)| *route)
    }
}

impl Drop for RouteWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn is_direct(route: Route) -> bool {
    matches!(route, Route::Direct | Route::Lan)
}
