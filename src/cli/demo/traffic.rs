//! Messages of the demo: sent in numbers, and checked as they arrive.

use std::time::{Duration, Instant};

use tokio_stream::iter;
use tonic::Streaming;

use crate::{
    cli::{
        client::Client,
        errors::{Failure, code_name},
        output::{state, why},
    },
    proto::{
        AckMode, AckRequest, Deliveries, ListMessagesRequest, ListenRequest, ListenResponse, Message, MessageState,
        Receipt, SendItem, SendRequest, SendStreamRequest, Wait, listen_response, send_stream_response,
    },
};

/// Messages a frame, either way.
const BATCH: u64 = 256;
/// Of the number that each payload begins with.
const NUMBER_BYTES: usize = 8;
/// Type of the message that ends a row of numbered ones.
pub(super) const END: &str = "end";

/// Many numbered messages to one peer.
#[derive(Clone)]
pub(super) struct Load {
    /// Alias of the recipient.
    pub(super) peer: &'static str,
    pub(super) channel: &'static str,
    pub(super) messages: u64,
    /// Of each payload; room for the number at least.
    pub(super) bytes: usize,
    pub(super) wait: Wait,
}

impl Load {
    /// Sends all of them on one stream and checks each receipt.
    pub(super) async fn send(&self, client: &mut Client) -> Result<Duration, Failure> {
        let begin = Instant::now();
        let load = self.clone();
        let frames = (0..self.messages).step_by(BATCH as usize).map(move |first| load.frame(first));
        let mut stream = client.send_stream(iter(frames)).await?.into_inner();
        let mut seen = vec![false; usize::try_from(self.messages).unwrap_or(0)];
        while let Some(response) = stream.message().await? {
            if let Some(send_stream_response::Frame::Receipts(receipts)) = response.frame {
                receipts.receipts.iter().try_for_each(|receipt| self.check(receipt, &mut seen))?;
            }
        }
        match seen.iter().position(|seen| !seen) {
            Some(number) => Err(Failure::Failed(format!("message {number} got no receipt"))),
            None => Ok(begin.elapsed()),
        }
    }

    fn frame(&self, first: u64) -> SendStreamRequest {
        let last = (first + BATCH).min(self.messages);
        SendStreamRequest { items: (first..last).map(|number| self.item(number)).collect() }
    }

    fn item(&self, number: u64) -> SendItem {
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(self.bytes.max(NUMBER_BYTES), b'.');
        let message = Message { payload: payload.into(), channel: self.channel.to_owned(), ..Default::default() };
        let request = SendRequest {
            peer: self.peer.to_owned(),
            message: Some(message),
            wait: self.wait.into(),
            ..Default::default()
        };
        SendItem { r#ref: number, request: Some(request) }
    }

    fn check(&self, receipt: &Receipt, seen: &mut [bool]) -> Result<(), Failure> {
        let number = receipt.r#ref;
        if receipt.code != 0 {
            let code = code_name(receipt.code.into());
            return Err(Failure::Failed(format!("message {number} was refused: {code}: {}", receipt.error)));
        }
        let response = receipt.response.clone().unwrap_or_default();
        let expected = match self.wait {
            Wait::Queued => [MessageState::Queued, MessageState::Sent].as_slice(),
            Wait::Stored | Wait::Unspecified => [MessageState::Stored].as_slice(),
        };
        if !expected.iter().any(|&expected| response.state == i32::from(expected)) {
            let (state, why) = (state(response.state), why(response.reason, &response.detail));
            return Err(Failure::Failed(format!("message {number} is {state} {why}")));
        }
        match usize::try_from(number).ok().and_then(|number| seen.get_mut(number)) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Failure::Failed(format!("a receipt too many, for message {number}"))),
        }
        Ok(())
    }
}

/// Checks that numbered messages arrive once each and in order.
#[derive(Debug, Default)]
pub(super) struct Order {
    next: u64,
}

impl Order {
    /// How many arrived.
    pub(super) fn arrived(&self) -> u64 {
        self.next
    }

    /// Takes the number of a payload, and complains if it is not the next.
    pub(super) fn take(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let number = payload.first_chunk::<NUMBER_BYTES>().map(|bytes| u64::from_be_bytes(*bytes));
        match number {
            Some(number) if number == self.next => {
                self.next += 1;
                Ok(())
            }
            Some(number) if number < self.next => {
                Err(Failure::Failed(format!("message {number} arrived twice, or out of order")))
            }
            Some(number) => Err(Failure::Failed(format!("message {} is missing before {number}", self.next))),
            None => Err(Failure::Failed(format!("a message of {} bytes has no number", payload.len()))),
        }
    }
}

/// An app that listens on a channel and acknowledges each batch.
pub(super) struct Ear {
    client: Client,
    channel: &'static str,
    stream: Streaming<ListenResponse>,
}

impl Ear {
    /// Opens the stream and waits until it is in force.
    pub(super) async fn open(client: &Client, channel: &'static str) -> Result<Self, Failure> {
        let mut client = client.clone();
        let request = ListenRequest {
            channel: channel.to_owned(),
            ack_mode: AckMode::Manual.into(),
            max_batch: BATCH as u32,
            ..Default::default()
        };
        let mut stream = client.listen(request).await?.into_inner();
        match stream.message().await?.and_then(|response| response.frame) {
            Some(listen_response::Frame::Ready(_)) => Ok(Self { client, channel, stream }),
            _ => Err(Failure::Failed("the first frame of Listen was not `ready`".to_owned())),
        }
    }

    /// The next messages, acknowledged.
    pub(super) async fn hear(&mut self) -> Result<Vec<Message>, Failure> {
        let deliveries = self.deliveries().await?;
        let cursor = deliveries.iter().map(|delivery| delivery.cursor).max().unwrap_or(0);
        let request = AckRequest { channel: self.channel.to_owned(), cursor, ..Default::default() };
        self.client.ack(request).await?;
        Ok(deliveries.into_iter().filter_map(|delivery| delivery.message).collect())
    }

    /// Hears numbered messages until there are so many.
    pub(super) async fn hear_numbered(&mut self, messages: u64) -> Result<Duration, Failure> {
        let begin = Instant::now();
        let mut order = Order::default();
        while order.arrived() < messages {
            self.hear().await?.iter().try_for_each(|message| order.take(&message.payload))?;
        }
        Ok(begin.elapsed())
    }

    /// Hears numbered messages until one says that it ends them; tells how
    /// many there were.
    pub(super) async fn hear_to_end(&mut self) -> Result<u64, Failure> {
        let mut order = Order::default();
        loop {
            for message in self.hear().await? {
                if message.r#type == END {
                    return Ok(order.arrived());
                }
                order.take(&message.payload)?;
            }
        }
    }

    async fn deliveries(&mut self) -> Result<Vec<crate::proto::Delivery>, Failure> {
        loop {
            let response = self.stream.message().await?;
            let response = response.ok_or_else(|| Failure::Failed("the daemon ended the stream".to_owned()))?;
            if let Some(listen_response::Frame::Deliveries(Deliveries { deliveries })) = response.frame {
                return Ok(deliveries);
            }
        }
    }
}

/// How many messages to a peer are not finished.
pub(super) async fn unfinished(client: &mut Client, peer: &str) -> Result<u64, Failure> {
    let mut request = ListMessagesRequest { peer: peer.to_owned(), page_size: 1000, ..Default::default() };
    let mut number = 0;
    loop {
        let page = client.list_messages(request.clone()).await?.into_inner();
        number += page.messages.len() as u64;
        if page.next_page_token.is_empty() {
            return Ok(number);
        }
        request.page_token = page.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SendResponse;

    fn load(wait: Wait) -> Load {
        Load { peer: "b", channel: "c", messages: 300, bytes: 1024, wait }
    }

    fn receipt(number: u64, state: MessageState) -> Receipt {
        let response = SendResponse { state: state.into(), ..Default::default() };
        Receipt { r#ref: number, response: Some(response), ..Default::default() }
    }

    #[test]
    fn frames_hold_every_message_once() {
        let load = load(Wait::Stored);
        let numbers: Vec<_> =
            [0, BATCH].iter().flat_map(|&first| load.frame(first).items).map(|item| item.r#ref).collect();
        assert_eq!(numbers, (0..300).collect::<Vec<_>>());
        let message = load.item(7).request.unwrap().message.unwrap();
        assert_eq!(message.payload.len(), 1024);
        let mut order = Order { next: 7 };
        order.take(&message.payload).unwrap();
    }

    #[test]
    fn loss_doubles_and_disorder_are_noticed() {
        let mut order = Order::default();
        order.take(&0_u64.to_be_bytes()).unwrap();
        assert!(order.take(&0_u64.to_be_bytes()).is_err());
        assert!(order.take(&2_u64.to_be_bytes()).is_err());
        assert!(order.take(b"short").is_err());
        order.take(&1_u64.to_be_bytes()).unwrap();
        assert_eq!(order.arrived(), 2);
    }

    #[test]
    fn receipts_are_checked() {
        let mut seen = vec![false; 300];
        let stored = load(Wait::Stored);
        stored.check(&receipt(1, MessageState::Stored), &mut seen).unwrap();
        assert!(stored.check(&receipt(1, MessageState::Stored), &mut seen).is_err());
        assert!(stored.check(&receipt(300, MessageState::Stored), &mut seen).is_err());
        assert!(stored.check(&receipt(2, MessageState::Queued), &mut seen).is_err());
        assert!(stored.check(&Receipt { code: 8, ..Default::default() }, &mut seen).is_err());
        load(Wait::Queued).check(&receipt(2, MessageState::Queued), &mut seen).unwrap();
    }
}
