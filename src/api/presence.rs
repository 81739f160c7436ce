//! WatchPeers and SetPresence.

use std::{collections::HashSet, time::Duration};

use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    Api,
    convert::{self, shown},
    errors::{bad_field, shutting_down},
    streams::Answers,
};
use crate::{
    delivery::{Announcement, Cause, Change, News, Watcher},
    proto::{self, ChangeCause, set_presence_response, watch_peers_response::Frame},
    types::{MAX_PRESENCE_BYTES, MAX_ROLE_BYTES, is_role},
};

/// Rows of one frame: with all their addresses 200 KiB or so, which is what a
/// client that does not read costs.
const MAX_ROWS: usize = 64;
/// Frames that wait for a client to read them.
const FRAMES: usize = 1;
/// Between two frames of changes: what changes meanwhile goes together, so that
/// a restless network costs each watcher little.
const PAUSE: Duration = Duration::from_millis(50);
/// Roles of one SetPresence.
const MAX_ROLES: usize = 8;

type Frames = mpsc::Sender<Result<proto::WatchPeersResponse, Status>>;

/// A client that watches.
struct Watch {
    api: Api,
    watcher: Watcher,
    book_only: bool,
    frames: Frames,
    /// Peers whose rows the client has.
    told: HashSet<PeerId>,
}

impl Api {
    pub(super) fn watch(
        &self,
        request: proto::WatchPeersRequest,
    ) -> Result<Answers<proto::WatchPeersResponse>, Status> {
        let slot = self.stream_slot()?;
        let (frames, answers) = mpsc::channel(FRAMES);
        let ready = Frame::Ready(self.ready());
        // There is room: nothing was sent yet.
        drop(frames.try_send(Ok(frame(ready))));
        let mut watch = Watch {
            api: self.clone(),
            // Before the snapshot: what changes after it is not missed.
            watcher: self.delivery.watch_peers(),
            book_only: request.book_only,
            frames: frames.clone(),
            told: HashSet::new(),
        };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let end = tokio::select! {
                biased;
                () = stop.cancelled() => Err(shutting_down()),
                // The client went away.
                () = frames.closed() => Ok(()),
                end = watch.run() => end,
            };
            if let Err(status) = end {
                // A client that does not read does not read this.
                drop(frames.try_send(Err(status)));
            }
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    pub(super) fn announce(
        &self,
        request: proto::SetPresenceRequest,
    ) -> Result<Answers<proto::SetPresenceResponse>, Status> {
        let slot = self.stream_slot()?;
        let announcement = self.announcement(request)?;
        let (frames, answers) = mpsc::channel(1);
        let ready = proto::SetPresenceResponse { frame: Some(set_presence_response::Frame::Ready(self.ready())) };
        // There is room: nothing was sent yet.
        drop(frames.try_send(Ok(ready)));
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let (_slot, _announcement) = (slot, announcement);
            tokio::select! {
                () = stop.cancelled() => drop(frames.try_send(Err(shutting_down()))),
                () = frames.closed() => {}
            }
        });
        Ok(Box::pin(ReceiverStream::new(answers)))
    }

    fn announcement(&self, request: proto::SetPresenceRequest) -> Result<Announcement, Status> {
        let proto::SetPresenceRequest { roles, text } = request;
        if roles.len() > MAX_ROLES {
            let text = format!("roles has {} entries; the limit is {MAX_ROLES}: announce fewer", roles.len());
            return Err(bad_field("roles", text));
        }
        if let Some(role) = roles.iter().find(|role| !is_role(role)) {
            let text = format!(
                "roles has {}; a role has 1 to {MAX_ROLE_BYTES} letters, digits, \"-\", \"_\" and \".\"",
                shown(role)
            );
            return Err(bad_field("roles", text));
        }
        if text.len() > MAX_PRESENCE_BYTES {
            let text = format!("text has {} bytes; the limit is {MAX_PRESENCE_BYTES}: use a shorter one", text.len());
            return Err(bad_field("text", text));
        }
        if text.chars().any(char::is_control) {
            let text = format!("text is {}; it may have no control characters: leave them out", shown(&text));
            return Err(bad_field("text", text));
        }
        Ok(self.delivery.announce(roles, text)?)
    }
}

impl Watch {
    /// Runs until the store or the network fails.
    async fn run(&mut self) -> Result<(), Status> {
        self.snapshot().await?;
        loop {
            // A place first: what waits meanwhile folds.
            let Ok(place) = self.frames.clone().reserve_owned().await else { return Ok(()) };
            match self.watcher.next(MAX_ROWS).await {
                News::Lagged(changes) => {
                    place.send(Ok(frame(Frame::Lagged(proto::Lagged { changes }))));
                    self.snapshot().await?;
                }
                News::Changes(changed) => {
                    let changes = self.changes(changed).await?;
                    if !changes.is_empty() {
                        place.send(Ok(frame(Frame::Changes(proto::PeerChanges { changes }))));
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends all rows, a part at a time, so that a slow client costs no more
    /// than a part's memory.
    async fn snapshot(&mut self) -> Result<(), Status> {
        self.told.clear();
        let all: Vec<PeerId> = self.api.known(None).await?.into_keys().collect();
        let mut left = all.len();
        let mut parts = all.chunks(MAX_ROWS);
        loop {
            let Ok(place) = self.frames.clone().reserve_owned().await else { return Ok(()) };
            let part = parts.next().unwrap_or_default();
            let known = self.api.known(Some(part)).await?;
            let rows = known.iter().filter(|(_, known)| !self.book_only || known.book.is_some());
            let peers = rows.map(|(id, known)| self.api.row(*id, known)).collect();
            self.told.extend(known.into_iter().filter(|(_, k)| !self.book_only || k.book.is_some()).map(|(id, _)| id));
            left -= part.len();
            place.send(Ok(frame(Frame::Snapshot(proto::PeerSnapshot { peers, last: left == 0 }))));
            if left == 0 {
                return Ok(());
            }
        }
    }

    async fn changes(&mut self, changed: Vec<(PeerId, Vec<Change>)>) -> Result<Vec<proto::PeerChange>, Status> {
        let ids: Vec<PeerId> = changed.iter().map(|(id, _)| *id).collect();
        let known = self.api.known(Some(&ids)).await?;
        let mut told = Vec::new();
        for (id, changes) in changed {
            let known = known.get(&id).filter(|known| !self.book_only || known.book.is_some());
            match known.map(|known| self.api.row(id, known)) {
                Some(row) => {
                    self.told.insert(id);
                    told.extend(
                        changes.into_iter().filter(|change| holds(change, &row)).map(|c| change(c, row.clone())),
                    );
                }
                None if self.told.remove(&id) => told.push(removed(id, changes)),
                None => {}
            }
        }
        Ok(told)
    }
}

/// Whether the row still shows it: a peer that went may be back by now, and
/// then another change that says so is on its way.
fn holds(change: &Change, row: &proto::Peer) -> bool {
    match change.cause {
        Cause::Online => row.online,
        Cause::Offline => !row.online,
        _ => true,
    }
}

fn change(change: Change, row: proto::Peer) -> proto::PeerChange {
    let Change { cause, invite_id, detail } = change;
    proto::PeerChange { cause: convert::cause(cause).into(), peer: Some(row), invite_id, detail }
}

fn removed(id: PeerId, mut changes: Vec<Change>) -> proto::PeerChange {
    let row = proto::Peer { peer_id: id.to_string(), ..proto::Peer::default() };
    let detail = changes.pop().map(|change| change.detail).unwrap_or_default();
    proto::PeerChange { cause: ChangeCause::Removed.into(), peer: Some(row), invite_id: String::new(), detail }
}

fn frame(frame: Frame) -> proto::WatchPeersResponse {
    proto::WatchPeersResponse { frame: Some(frame) }
}
