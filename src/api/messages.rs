//! Send, Ack, GetMessage, ListMessages, Cancel.

use std::time::Duration;

use libp2p::PeerId;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{
    Api, DEFAULT_WAIT, MAX_WAIT,
    convert::{self, channel, sent_message},
    errors::{bad_field, bad_page_size, bad_page_token},
    time_left,
};
use crate::{
    delivery::SendSpec,
    proto::{self, Wait},
    store::{PageStart, SentRecord},
};

/// Messages of one page, if the caller does not say, and at most.
const PAGE: (u32, u32) = (100, 1000);
/// Longest that Cancel waits for the peer's answer.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// A checked Send.
pub(super) struct Checked {
    pub(super) spec: SendSpec,
    pub(super) wait: Wait,
    pub(super) ephemeral: bool,
}

/// The peer named last, for messages of one frame: mostly all go to one, and
/// to read a peer id takes long, to look up an alias longer.
#[derive(Default)]
pub(super) struct Names(Option<(String, PeerId)>);

impl Names {
    async fn peer(&mut self, api: &Api, name: String) -> Result<PeerId, Status> {
        if let Some((known, peer)) = &self.0
            && *known == name
        {
            return Ok(*peer);
        }
        let peer = api.peer(&name).await?;
        self.0 = Some((name, peer));
        Ok(peer)
    }
}

impl Api {
    /// Checks one message to send.
    pub(super) async fn check_send(&self, request: proto::SendRequest, names: &mut Names) -> Result<Checked, Status> {
        let wait = match Wait::try_from(request.wait) {
            Ok(Wait::Unspecified) => Wait::Stored,
            Ok(wait) => wait,
            Err(_) => {
                let text = format!(
                    "wait is {}, which this version does not know; use WAIT_QUEUED (1) or WAIT_STORED (2)",
                    request.wait
                );
                return Err(bad_field("wait", text));
            }
        };
        let Some(message) = request.message else {
            return Err(bad_field("message", "message is missing; give at least an empty one".to_owned()));
        };
        let peer = names.peer(self, request.peer).await?;
        let (channel, content, dated) = convert::content(message, self.options().max_message_bytes)?;
        let ttl_ms = convert::ttl(request.ttl_ms, self.facts.settings.default_ttl)?;
        let path = convert::path(request.path, request.prefer_direct_wait_ms)?;
        let spec = SendSpec { peer, channel, content, dated, ttl_ms, path };
        Ok(Checked { spec, wait, ephemeral: request.ephemeral })
    }

    pub(super) async fn send_one(&self, request: Request<proto::SendRequest>) -> Result<proto::SendResponse, Status> {
        self.check_open()?;
        let asked = match request.get_ref().timeout_ms {
            0 => DEFAULT_WAIT,
            ms => Duration::from_millis(ms.into()),
        };
        let until = Instant::now() + time_left(&request, asked.min(MAX_WAIT));
        let Checked { spec, wait, ephemeral } = self.check_send(request.into_inner(), &mut Names::default()).await?;
        if ephemeral {
            return Ok(convert::send_response(self.delivery.send_ephemeral(spec, until).await?.end().await?));
        }
        let pending = match self.delivery.send(vec![spec]).await?.pop() {
            Some(answer) => answer?,
            None => return Err(Status::internal("the store gave no answer")),
        };
        let sent = match wait {
            Wait::Queued => pending.sent,
            Wait::Unspecified | Wait::Stored => {
                tokio::select! {
                    sent = self.delivery.wait(pending.clone(), until) => sent,
                    // It is on disk; the answer says how far it came.
                    () = self.stop.cancelled() => pending.sent,
                }
            }
        };
        Ok(convert::send_response(sent))
    }

    pub(super) async fn acknowledge(&self, request: proto::AckRequest) -> Result<proto::AckResponse, Status> {
        let channel = channel("channel", &request.channel)?;
        let consumer = convert::consumer(&request.consumer)?;
        if request.cursor == 0 {
            let text = "cursor is 0; give the cursor of a delivery (ephemeral messages need no Ack)".to_owned();
            return Err(bad_field("cursor", text));
        }
        let cursor = self.delivery.ack(&channel, &consumer, request.cursor).await?;
        Ok(proto::AckResponse { cursor })
    }

    pub(super) async fn get_sent(&self, request: proto::GetMessageRequest) -> Result<proto::SentMessage, Status> {
        convert::message_id(&request.id)?;
        let (peer, channel) = self.optional(request.peer, request.channel).await?;
        Ok(self.shown(self.delivery.find(&request.id, peer, channel).await?))
    }

    pub(super) async fn cancel_one(
        &self,
        request: Request<proto::CancelRequest>,
    ) -> Result<proto::SentMessage, Status> {
        let until = Instant::now() + time_left(&request, CANCEL_WAIT);
        let request = request.into_inner();
        convert::message_id(&request.id)?;
        let (peer, channel) = self.optional(request.peer, request.channel).await?;
        Ok(self.shown(self.delivery.cancel(&request.id, peer, channel, until).await?))
    }

    pub(super) async fn list_sent(
        &self,
        request: proto::ListMessagesRequest,
    ) -> Result<proto::ListMessagesResponse, Status> {
        let (default, max) = PAGE;
        let size = match request.page_size {
            0 => default,
            size if size <= max => size,
            size => return Err(bad_page_size(size, max)),
        };
        let start = match request.page_token.as_str() {
            "" => PageStart::default(),
            token => PageStart(token.parse().map_err(|_| bad_page_token(token, "ListMessages"))?),
        };
        let name = Some(request.peer).filter(|name| !name.is_empty());
        let (peer, channel) = self.optional(name, request.channel).await?;
        let (records, next) = self.delivery.list(peer, channel, start, size as usize).await?;
        Ok(proto::ListMessagesResponse {
            messages: records.into_iter().map(|record| self.shown(record)).collect(),
            next_page_token: next.map_or_else(String::new, |start| start.0.to_string()),
        })
    }

    /// A peer and a channel that a request may leave out.
    async fn optional(
        &self,
        peer: Option<String>,
        name: Option<String>,
    ) -> Result<(Option<libp2p::PeerId>, Option<crate::types::Channel>), Status> {
        let peer = match peer {
            Some(name) => Some(self.peer(&name).await?),
            None => None,
        };
        Ok((peer, name.map(|name| channel("channel", &name)).transpose()?))
    }

    fn shown(&self, record: SentRecord) -> proto::SentMessage {
        let waiting = self.delivery.why_waiting(&record.peer, Some((&record.channel, record.seq)));
        sent_message(record, waiting, self.delivery.now())
    }
}
