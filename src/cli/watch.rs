//! `peers --watch`: who is there, and then who comes, goes and changes.

use std::{
    collections::HashSet,
    io::{self, IsTerminal as _, Write as _},
    time::SystemTime,
};

use super::{
    args::Global,
    client::connect,
    errors::Failure,
    output::{Out, clean, peer_name, route, rtt, time, trust},
    peers::{peers_text, says},
    signals::Signals,
};
use crate::{
    clock,
    proto::{ChangeCause, Peer, PeerChange, WatchPeersRequest, WatchPeersResponse, watch_peers_response::Frame},
};

/// What has been printed so far.
struct Watch {
    /// Only those online, and those that go offline.
    online: bool,
    /// A table of all comes first, for a person.
    table: bool,
    out: Out,
    /// Parts of a snapshot that is not complete.
    snapshot: Vec<Peer>,
    known: HashSet<String>,
}

/// Prints peers until a signal comes or the daemon ends the stream.
pub(super) async fn watch(online: bool, global: &Global, out: Out) -> Result<(), Failure> {
    let mut signals = Signals::ending()?;
    let mut client = connect(global).await?;
    let table = io::stdout().is_terminal() && !out.json();
    let mut watch = Watch { online, table, out, snapshot: Vec::new(), known: HashSet::new() };
    let run = async {
        let mut stream = client.watch_peers(WatchPeersRequest { book_only: false }).await?.into_inner();
        loop {
            let frame = stream.message().await?;
            let frame = frame.ok_or_else(|| Failure::Failed("UNAVAILABLE: the daemon ended the stream".to_owned()))?;
            // Away from the runtime: a reader that stops reading must not
            // stop Ctrl-C.
            let printed = tokio::task::spawn_blocking(move || (watch.take(frame), watch)).await;
            let (done, back) = printed.map_err(|error| Failure::Failed(format!("cannot write to stdout: {error}")))?;
            done?;
            watch = back;
        }
    };
    tokio::select! {
        biased;
        outcome = run => outcome,
        signal = signals.wait() => Err(signal),
    }
}

impl Watch {
    fn take(&mut self, response: WatchPeersResponse) -> Result<(), Failure> {
        match response.frame {
            Some(Frame::Snapshot(part)) => {
                self.snapshot.extend(part.peers);
                if part.last { self.replace() } else { Ok(()) }
            }
            Some(Frame::Changes(changes)) => changes.changes.iter().try_for_each(|change| self.print(change)),
            Some(Frame::Lagged(lagged)) => {
                // Only a courtesy.
                let _ = writeln!(io::stderr().lock(), "too slow: {} changes were left out", lagged.changes);
                Ok(())
            }
            // The daemon is ready, or a frame of a newer one.
            Some(Frame::Ready(_)) | None => Ok(()),
        }
    }

    /// Prints a complete snapshot. After one before it, what is in both may be
    /// printed again, and what is not in this one is gone.
    fn replace(&mut self) -> Result<(), Failure> {
        let mut peers = std::mem::take(&mut self.snapshot);
        peers.sort_by_key(|peer| (peer.alias.is_empty(), peer.alias.clone(), !peer.in_book, peer.peer_id.clone()));
        let now: HashSet<String> = peers.iter().map(|peer| peer.peer_id.clone()).collect();
        let gone: Vec<String> = self.known.difference(&now).cloned().collect();
        for peer_id in gone {
            let peer = Some(Peer { peer_id, ..Peer::default() });
            self.print(&PeerChange { cause: ChangeCause::Removed.into(), peer, ..PeerChange::default() })?;
        }
        self.known = now;
        if self.table {
            peers.retain(|peer| peer.online || !self.online);
            return self.out.bytes(peers_text(&peers, SystemTime::now()).as_bytes());
        }
        peers.into_iter().try_for_each(|peer| self.print(&PeerChange { peer: Some(peer), ..PeerChange::default() }))
    }

    fn print(&mut self, change: &PeerChange) -> Result<(), Failure> {
        let Some(peer) = &change.peer else { return Ok(()) };
        let cause = ChangeCause::try_from(change.cause).unwrap_or_default();
        if cause == ChangeCause::Removed {
            self.known.remove(&peer.peer_id);
        } else {
            self.known.insert(peer.peer_id.clone());
        }
        let goes = matches!(cause, ChangeCause::Offline | ChangeCause::Removed);
        if self.online && !peer.online && !goes {
            return Ok(());
        }
        if self.out.json() {
            return self.out.object(change);
        }
        let what = clean(&what(cause, peer, change));
        self.out.line(&format!("{}  {}  {what}", time(clock::wall_ms()), clean(&peer_name(peer))))
    }
}

/// A change in words.
fn what(cause: ChangeCause, peer: &Peer, change: &PeerChange) -> String {
    let told = says(peer);
    match cause {
        ChangeCause::Offline if change.detail.is_empty() => "offline".to_owned(),
        ChangeCause::Offline => format!("offline: {}", change.detail),
        ChangeCause::Route => format!("now {}", reached(peer)),
        ChangeCause::Presence if told.is_empty() => "says nothing any more".to_owned(),
        ChangeCause::Presence => format!("says {told}"),
        ChangeCause::Book if !peer.in_book => "not in the address book any more".to_owned(),
        ChangeCause::Book => {
            format!("in the address book: {}{}", trust(peer.trust), if peer.pinned { ", pinned" } else { "" })
        }
        ChangeCause::Joined => format!("joined by invitation {}", change.invite_id),
        ChangeCause::Lan if peer.on_lan => "seen on the LAN".to_owned(),
        ChangeCause::Lan => "not seen on the LAN any more".to_owned(),
        ChangeCause::Removed => "gone".to_owned(),
        ChangeCause::Online | ChangeCause::Unspecified => {
            let mut words = vec![if peer.online { format!("online, {}", reached(peer)) } else { "offline".to_owned() }];
            words.extend((!told.is_empty()).then(|| format!("says {told}")));
            words.join(", ")
        }
    }
}

fn reached(peer: &Peer) -> String {
    if peer.rtt_ms > 0.0 { format!("{}, {}", route(peer.route), rtt(peer.rtt_ms)) } else { route(peer.route) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Route, Trust};

    #[test]
    fn changes_are_said_in_words() {
        let peer = Peer {
            online: true,
            route: Route::Lan.into(),
            rtt_ms: 0.4,
            trust: Trust::Trusted.into(),
            in_book: true,
            roles: vec!["server".into(), "cam".into()],
            presence: "21 °C".into(),
            ..Peer::default()
        };
        let change = PeerChange { detail: "timed out".into(), invite_id: "i1".into(), ..PeerChange::default() };
        for (cause, expected) in [
            (ChangeCause::Online, "online, LAN, 0.40 ms, says server+cam, \"21 °C\""),
            (ChangeCause::Offline, "offline: timed out"),
            (ChangeCause::Route, "now LAN, 0.40 ms"),
            (ChangeCause::Presence, "says server+cam, \"21 °C\""),
            (ChangeCause::Book, "in the address book: trusted"),
            (ChangeCause::Joined, "joined by invitation i1"),
            (ChangeCause::Lan, "not seen on the LAN any more"),
            (ChangeCause::Removed, "gone"),
        ] {
            assert_eq!(what(cause, &peer, &change), expected);
        }
        let away = Peer::default();
        let bare = PeerChange::default();
        for (cause, expected) in [
            (ChangeCause::Unspecified, "offline"),
            (ChangeCause::Offline, "offline"),
            (ChangeCause::Presence, "says nothing any more"),
            (ChangeCause::Book, "not in the address book any more"),
        ] {
            assert_eq!(what(cause, &away, &bare), expected);
        }
    }
}
