//! Looking after messages that were sent: what became of them, and taking them
//! back.

use libp2p::PeerId;
use tokio::time::{Instant, timeout_at};

use super::{
    Delivery, DeliveryError, Outcome,
    progress::{LaneProgress, lock},
};
use crate::{
    protocol::PeerState,
    store::{Buried, Db, Fill, Final, PageStart, Progress, SentRecord},
    types::{Channel, Epoch, Seq},
};

impl Delivery {
    /// Why messages to a peer are not getting on, or one of them, named by its
    /// channel and its position there.
    #[must_use]
    pub fn why_waiting(&self, peer: &PeerId, message: Option<(&str, Seq)>) -> Outcome {
        if !self.inner.is_trusted(peer) {
            return Outcome::NotInBook;
        }
        let peers = lock(&self.inner.peers);
        let Some(outbox) = peers.get(peer) else { return Outcome::NotConnected };
        match outbox.progress.state() {
            PeerState::Down | PeerState::Greeting => Outcome::NotConnected,
            PeerState::Refused(_) => Outcome::Untrusted,
            PeerState::Up => {
                let refused = match message {
                    Some((channel, _)) => outbox.progress.refused(channel),
                    None => outbox.progress.any_refused(),
                };
                match refused {
                    Some(limit) => Outcome::RemoteFull(limit),
                    None if outbox.progress.is_held(message) => Outcome::OnlyRelayed,
                    None => Outcome::Fine,
                }
            }
        }
    }

    /// What is known of a message that was sent from here.
    ///
    /// # Errors
    /// [`DeliveryError::NoMessage`], [`DeliveryError::Ambiguous`], or a failure
    /// of the store.
    pub async fn find(
        &self,
        id: &str,
        peer: Option<PeerId>,
        channel: Option<Channel>,
    ) -> Result<SentRecord, DeliveryError> {
        let key = id.to_owned();
        let found = self.inner.store.write(move |db| db.find_sent(&key, peer.as_ref(), channel.as_deref())).await?;
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(self.overlay(record)),
            (Some(_), Some(_)) => Err(DeliveryError::Ambiguous { id: id.to_owned() }),
            (None, _) => Err(DeliveryError::NoMessage { id: id.to_owned() }),
        }
    }

    /// Where messages of one lane stand, each named by its position and id;
    /// `None` for those that are forgotten. And the lane's present numbering.
    pub(super) async fn progress_of(
        &self,
        peer: PeerId,
        channel: Channel,
        messages: Vec<(Seq, String)>,
    ) -> Result<(Epoch, Vec<Option<Progress>>), DeliveryError> {
        let seqs: Vec<Seq> = messages.iter().map(|(seq, _)| *seq).collect();
        let name = channel.clone();
        let (epoch, mut found) = self.inner.store.write(move |db| db.progress_of(&peer, &name, &messages)).await?;
        let lane = self.lane_now(&peer, &channel);
        for (seq, progress) in seqs.into_iter().zip(&mut found) {
            if let (Some(lane), Some(progress)) = (lane, progress)
                && lane.has_stored(epoch, seq, *progress)
            {
                *progress = Progress::Done(Final::Stored);
            }
        }
        Ok((epoch, found))
    }

    fn lane_now(&self, peer: &PeerId, channel: &str) -> Option<LaneProgress> {
        Some(lock(&self.inner.peers).get(peer)?.progress.lane(channel))
    }

    /// What the peer acknowledged and the store has not written yet.
    fn overlay(&self, mut record: SentRecord) -> SentRecord {
        if let Some(lane) = self.lane_now(&record.peer, &record.channel)
            && lane.has_stored(record.epoch, record.seq, record.progress)
        {
            record.progress = Progress::Done(Final::Stored);
            record.expires_at = None;
        }
        record
    }

    /// A page of messages that are not finished.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(
        &self,
        peer: Option<PeerId>,
        channel: Option<Channel>,
        start: PageStart,
        size: usize,
    ) -> Result<(Vec<SentRecord>, Option<PageStart>), DeliveryError> {
        let (records, next) =
            self.inner.store.write(move |db| db.list_outbox(peer.as_ref(), channel.as_deref(), start, size)).await?;
        let waiting = records.into_iter().map(|record| self.overlay(record));
        Ok((waiting.filter(|record| !matches!(record.progress, Progress::Done(_))).collect(), next))
    }

    /// Messages and bytes that wait, per peer.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn waiting(&self) -> Result<Vec<(PeerId, Fill)>, DeliveryError> {
        Ok(self.inner.store.write(|db| db.outbox_by_peer()).await?)
    }

    /// The same of some peers, without looking at the others.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn waiting_for(&self, peers: Vec<PeerId>) -> Result<Vec<(PeerId, Fill)>, DeliveryError> {
        let read = move |db: &mut Db| peers.iter().map(|peer| Ok((*peer, db.outbox_of(peer)?))).collect();
        Ok(self.inner.store.write(read).await?)
    }

    /// Takes a message back; waits until `deadline` for the peer to say
    /// whether it has it.
    ///
    /// # Errors
    /// As [`Delivery::find`].
    pub async fn cancel(
        &self,
        id: &str,
        peer: Option<PeerId>,
        channel: Option<Channel>,
        deadline: Instant,
    ) -> Result<SentRecord, DeliveryError> {
        let record = self.find(id, peer, channel).await?;
        let outbox = self.inner.outbox(&record.peer);
        let mut watch = outbox.progress.watch();
        let asked = record.clone();
        let (after, _) = self
            .inner
            .store
            .write_then(
                move |db| db.cancel(&asked),
                self.inner.disturb_then(|(_, buried): &(Option<SentRecord>, Option<Buried>)| buried.as_slice()),
            )
            .await?;
        let mut record = after.map_or(record, |after| self.overlay(after));
        while matches!(record.progress, Progress::Pending(_)) && outbox.is_up() {
            if !matches!(timeout_at(deadline, watch.changed()).await, Ok(Ok(()))) {
                break;
            }
            record = self.find(&record.id, Some(record.peer), Some(record.channel.clone())).await?;
        }
        Ok(record)
    }
}
