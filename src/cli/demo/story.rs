//! What the demo does and says, step by step.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Figures,
    node::Node,
    traffic::{END, Ear, Load, unfinished},
};
use crate::{
    cli::{
        client::Client,
        errors::Failure,
        output::{Out, clean, count, route, state, why},
    },
    proto::{
        InviteRequest, JoinRequest, Message, MessageState, PingRequest, Route, SendRequest, SendResponse,
        StatusResponse, Wait,
    },
};

/// How long any step may take before something must be wrong.
const STEP: Duration = Duration::from_secs(30);
/// Messages at full speed, and bytes of each.
const FAST: u64 = 5_000;
const FAST_BYTES: usize = 1024;
/// Messages sent to a dead node.
const KEPT: u64 = 1_000;
/// Channels of the steps, so that each hears only its own.
const HELLO: &str = "hello";
const SPEED: &str = "speed";
const OUTAGE: &str = "outage";

const NEXT: &str = "\
Next:
  p2p-node run                                        start a node of your own
  p2p-node invite                                     a ticket for another node...
  p2p-node join TICKET                                ...which joins over there
  p2p-node send NAME 'hello'                          send it a message
  p2p-node listen                                     print what arrives
  p2p-node --help                                     everything else";

/// Two nodes, and what is found out about them.
struct Story<'a> {
    nodes: [&'a mut Node; 2],
    out: Out,
    figures: Figures,
}

/// Tells the whole story; fails if anything is not as it should be.
pub(super) async fn tell(a: &mut Node, b: &mut Node, out: Out) -> Result<(), Failure> {
    let mut story = Story { nodes: [a, b], out, figures: Figures::default() };
    let begin = Instant::now();
    let mut clients = step("starting", story.meet()).await?;
    step("the first messages", story.greet(&mut clients)).await?;
    step("the fast messages", story.hurry(&mut clients)).await?;
    step("the messages for a dead node", story.outage(&mut clients)).await?;
    step("the restart", story.recover()).await?;
    story.end(begin.elapsed())
}

impl Story<'_> {
    /// Starts both and has them know each other.
    async fn meet(&mut self) -> Result<[Client; 2], Failure> {
        self.say("Two nodes start on this machine, each with a store and a socket of its own.")?;
        let [a, b] = &mut self.nodes;
        let ((mut a, a_status), (mut b, b_status)) = tokio::try_join!(a.start(), b.start())?;
        self.introduce("a", &a_status)?;
        self.introduce("b", &b_status)?;
        let ticket = invite(&mut a, "b").await?;
        let characters = ticket.len();
        let joined = b.join(JoinRequest { ticket, alias: "a".to_owned() }).await?.into_inner();
        if joined.peer_id != a_status.peer_id {
            return Err(Failure::Failed(format!("b joined {} instead of a", joined.peer_id)));
        }
        let pong = a.ping(PingRequest { peer: "b".to_owned() }).await?.into_inner();
        if pong.peer_id != b_status.peer_id {
            return Err(Failure::Failed(format!("a pinged b and got an answer from {}", pong.peer_id)));
        }
        let way = route(pong.route);
        self.say(&format!(
            "a makes a ticket of {characters} characters (`invite`), b joins with it (`join`): each trusts the other.\n\
             a pings b: {way}, {:.2} ms there and back.",
            pong.rtt_ms
        ))?;
        self.figures.a = a_status.peer_id;
        self.figures.b = b_status.peer_id;
        self.figures.route = Route::try_from(pong.route).unwrap_or_default().as_str_name().to_owned();
        self.figures.rtt_ms = pong.rtt_ms;
        Ok([a, b])
    }

    /// One message each way.
    async fn greet(&mut self, [a, b]: &mut [Client; 2]) -> Result<(), Failure> {
        let (there, text) = greet(a, "b", b, &self.figures.a).await?;
        self.say(&format!("a -> b: {text:?}, in the hands of b's app after {}.", millis(there)))?;
        let (back, text) = greet(b, "a", a, &self.figures.b).await?;
        self.say(&format!("b -> a: {text:?}, in the hands of a's app after {}.", millis(back)))?;
        self.figures.a_to_b_ms = as_millis(there);
        self.figures.b_to_a_ms = as_millis(back);
        Ok(())
    }

    /// Many messages at full speed, each on both disks.
    async fn hurry(&mut self, [a, b]: &mut [Client; 2]) -> Result<(), Failure> {
        let load = Load { peer: "b", channel: SPEED, messages: FAST, bytes: FAST_BYTES, wait: Wait::Stored };
        let mut ear = Ear::open(b, SPEED).await?;
        let (stored, heard) = tokio::try_join!(load.send(a), ear.hear_numbered(FAST))?;
        self.figures.messages = FAST;
        self.figures.message_bytes = FAST_BYTES;
        self.figures.stored_per_second = rate(FAST, stored);
        self.figures.heard_per_second = rate(FAST, heard);
        self.say(&format!(
            "a -> b: {} messages of {} bytes, each on a's disk and then on b's: {} a second, and b's app got {} a second.",
            count(FAST),
            count(FAST_BYTES as u64),
            count(self.figures.stored_per_second),
            count(self.figures.heard_per_second),
        ))
    }

    /// b dies; a keeps what is for it, then dies too.
    async fn outage(&mut self, [a, _]: &mut [Client; 2]) -> Result<(), Failure> {
        self.nodes[1].kill().await;
        self.say("b is killed (SIGKILL).")?;
        let load = Load { peer: "b", channel: OUTAGE, messages: KEPT, bytes: FAST_BYTES, wait: Wait::Queued };
        let took = load.send(a).await?;
        let waiting = unfinished(a, "b").await?;
        if waiting != KEPT {
            return Err(Failure::Failed(format!("{waiting} messages wait for b, not {KEPT}")));
        }
        self.figures.queued_while_down = waiting;
        self.figures.queued_ms = as_millis(took);
        self.say(&format!(
            "a -> b: {} messages all the same; on a's disk after {}, waiting.",
            count(waiting),
            millis(took)
        ))?;
        self.nodes[0].kill().await;
        self.say("a is killed as well.")
    }

    /// Both come back, and so does everything that was on its way.
    async fn recover(&mut self) -> Result<(), Failure> {
        let [a, b] = &mut self.nodes;
        let ((mut a, a_status), (b, b_status)) = tokio::try_join!(a.start(), b.start())?;
        let begin = Instant::now();
        if a_status.peer_id != self.figures.a || b_status.peer_id != self.figures.b {
            return Err(Failure::Failed("a node came back as another one".to_owned()));
        }
        // On the same channel, so behind all the others.
        let end = Message { r#type: END.to_owned(), channel: OUTAGE.to_owned(), ..Default::default() };
        let mut ear = Ear::open(&b, OUTAGE).await?;
        let (_, arrived) = tokio::try_join!(send(&mut a, "b", end), ear.hear_to_end())?;
        let took = begin.elapsed();
        if arrived != KEPT {
            return Err(Failure::Failed(format!("{arrived} of {KEPT} messages arrived")));
        }
        self.figures.arrived_after_restart = arrived;
        self.figures.recovery_ms = as_millis(took);
        let arrived = count(arrived);
        self.say(&format!("Both start again: all {arrived} arrive, once each and in order, within {}.", millis(took)))
    }

    fn end(&self, took: Duration) -> Result<(), Failure> {
        if self.out.json() {
            let value = serde_json::to_value(&self.figures);
            return self
                .out
                .value(&value.map_err(|error| Failure::Failed(format!("cannot write the figures: {error}")))?);
        }
        self.say(&format!("Done in {:.1} s; nothing is left behind.\n\n{NEXT}", took.as_secs_f64()))
    }

    fn introduce(&self, name: &str, status: &StatusResponse) -> Result<(), Failure> {
        self.say(&format!("  {name} is {}", clean(&status.peer_id)))
    }

    /// Tells a person; a program gets the figures at the end.
    fn say(&self, line: &str) -> Result<(), Failure> {
        if self.out.json() { Ok(()) } else { self.out.line(line) }
    }
}

/// Does a step in bounded time, and names it if it fails.
async fn step<T>(name: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match timeout(STEP, work).await {
        Ok(Err(failure @ (Failure::StdoutClosed | Failure::Signal(_)))) => Err(failure),
        Ok(Err(failure)) => Err(Failure::Failed(format!("{name}: {failure}"))),
        Ok(done) => done,
        Err(_) => Err(Failure::Failed(format!("{name}: not done after {} s", STEP.as_secs()))),
    }
}

async fn invite(client: &mut Client, alias: &str) -> Result<String, Failure> {
    let request = InviteRequest { alias: alias.to_owned(), ..Default::default() };
    Ok(client.invite(request).await?.into_inner().ticket)
}

/// Sends a greeting, hears it on the other side and checks that it is the
/// same; tells how long it took from app to app.
async fn greet(from: &mut Client, to: &str, at: &Client, sender: &str) -> Result<(Duration, String), Failure> {
    let text = format!("hello, {to}");
    let mut ear = Ear::open(at, HELLO).await?;
    let begin = Instant::now();
    let message = Message { payload: text.clone().into(), channel: HELLO.to_owned(), ..Default::default() };
    let heard = async {
        let heard = ear.hear().await?;
        Ok((begin.elapsed(), heard))
    };
    let (_, (took, heard)) = tokio::try_join!(send(from, to, message), heard)?;
    match heard.as_slice() {
        [one] if one.payload == text.as_bytes() && one.from == sender => Ok((took, text)),
        others => Err(Failure::Failed(format!("{} messages arrived that were not {text:?}", others.len()))),
    }
}

/// Sends one message and insists that it is stored.
async fn send(client: &mut Client, peer: &str, message: Message) -> Result<SendResponse, Failure> {
    let request = SendRequest {
        peer: peer.to_owned(),
        message: Some(message),
        wait: Wait::Stored.into(),
        timeout_ms: u32::try_from(STEP.as_millis()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let response = client.send(request).await?.into_inner();
    if response.state == i32::from(MessageState::Stored) {
        return Ok(response);
    }
    let why = why(response.reason, &response.detail);
    Err(Failure::Failed(format!("a message for {peer} is {} {why}", state(response.state))))
}

fn rate(messages: u64, took: Duration) -> u64 {
    (messages as f64 / took.as_secs_f64().max(f64::EPSILON)).round() as u64
}

fn as_millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e5).round() / 100.0
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_not_invented() {
        assert_eq!(rate(5000, Duration::from_millis(500)), 10_000);
        assert_eq!(as_millis(Duration::from_micros(1234)), 1.23);
        assert_eq!(millis(Duration::from_micros(1250)), "1.2 ms");
    }
}
