//! The task that owns the swarm.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{PeerId, Swarm, swarm::ConnectionId};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    BoundAddress, ListenAddress, SwarmConfig, SwarmError,
    behaviour::Behaviour,
    circuit,
    external::External,
    find::{
        Find,
        announce::{Announced, Announcements, MAX_ANNOUNCEMENTS},
    },
    join::{ANSWER_QUEUE, Answered, Joins},
    link::{
        self,
        io::{self, LinkEnd},
        steer::Step,
    },
    listen::Listeners,
    peers::{Peers, Told},
    pending::{Opening, Pending, Purpose},
    ping::Measured,
    punch::{self, Exchanges, Heard, Own, Punches, Scope},
    reach::{REPORT_QUEUE, Reach, Report},
    redial::Redial,
    relay::{
        Relays,
        hop::{self, Hops},
    },
    sink::Sink,
    surroundings::Surroundings,
    timers::Timers,
};
use crate::{
    netwatch,
    node::{Command, LinkId, NodeEvent},
    ports::{Control, MappingView},
};

/// Commands that wait; a caller beyond that waits to hand its own over.
pub(super) const COMMAND_QUEUE: usize = 256;
/// Ends of links that wait to be noticed; a link beyond that waits to end.
const ENDED_QUEUE: usize = 256;
/// Pings asked for that are being measured.
const MAX_PINGS: usize = 64;
/// Redials under way at once, so that a large book does not flood the network.
const MAX_REDIALS: usize = 16;
/// How long to wait for bound listeners to name their addresses. They do so at
/// once; an address whose interface is down never does.
const SETTLE: Duration = Duration::from_millis(500);
/// At the end, time for links to write out and for connections to close.
const FAREWELL: Duration = Duration::from_secs(2);
/// Refusals and breaches are logged once in this time.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Owns the swarm and all that is known of the network.
pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    pub(super) sink: Sink,
    pub(super) peers: Peers,
    pub(super) pending: Pending,
    pub(super) redial: Redial,
    pub(super) find: Find,
    pub(super) listeners: Listeners,
    pub(super) relays: Relays,
    circuits_told: Arc<Notify>,
    pub(super) external: External,
    /// How others can reach this node.
    pub(super) reach: Reach,
    reach_reports: mpsc::Receiver<Report>,
    surroundings: Option<mpsc::Receiver<Surroundings>>,
    /// Of the ports that the router forwards, if it is asked.
    pub(super) mapping: Option<Control>,
    /// Until when connections that may be dead are to answer; of those that
    /// are open.
    pub(super) probes: Timers<(PeerId, ConnectionId)>,
    /// When peers are dialled next whose connections are all silent.
    pub(super) rescues: Timers<PeerId>,
    /// The first listener that failed while starting.
    pub(super) failed: Option<SwarmError>,
    /// When a peer's outbound link is to be looked at again.
    steering: Timers<PeerId>,
    pub(super) links: Links,
    ended: mpsc::Receiver<Ended>,
    pub(super) pings: Pings,
    measured: mpsc::Receiver<Measured>,
    pub(super) joins: Joins,
    answered: mpsc::Receiver<Answered>,
    circuits: mpsc::Receiver<circuit::Request>,
    /// What others ask this node for as a relay.
    pub(super) hops: Hops,
    hop_reports: mpsc::Receiver<hop::Report>,
    /// Relays through which peers can be dialled at once.
    pub(super) relays_connected: circuit::Connected,
    pub(super) punches: Punches,
    pub(super) exchanges: Exchanges,
    heard: mpsc::Receiver<Heard>,
    pub(super) punch_own: Own,
    pub(super) scope: Scope,
    pub(super) announcements: Announcements,
    announced: mpsc::Receiver<Announced>,
    pub(super) trust_open: bool,
    pub(super) max_message_bytes: u64,
    /// What the router forwards, if it is asked.
    pub(super) mappings: Option<watch::Receiver<MappingView>>,
    /// Nothing more is to be opened.
    pub(super) draining: bool,
    pub(super) warned: Warned,
    stop: CancellationToken,
}

/// What others ask of the task.
pub(super) struct Queues {
    /// The rest of the daemon.
    pub(super) commands: mpsc::Receiver<Command>,
    /// The transport that dials through relays.
    pub(super) circuits: mpsc::Receiver<circuit::Request>,
}

/// The links that run.
pub(super) struct Links {
    pub(super) live: HashMap<LinkId, LiveLink>,
    pub(super) last: u64,
    /// Bytes come in on links of all peers that are not trusted, together, so
    /// that their number does not matter.
    pub(super) untrusted_budget: Arc<Semaphore>,
    pub(super) ended: mpsc::Sender<Ended>,
    pub(super) running: TaskTracker,
}

/// The pings that run.
pub(super) struct Pings {
    /// One for each.
    pub(super) slots: Arc<Semaphore>,
    pub(super) measured: mpsc::Sender<Measured>,
}

/// When something was logged that could be logged without end.
#[derive(Default)]
pub(super) struct Warned {
    /// A refusal by a limit.
    pub(super) limit: Option<Instant>,
    /// Trouble of a listener.
    pub(super) listener: Option<Instant>,
    /// A relay that refused.
    pub(super) reservation: Option<Instant>,
}

/// A link that runs.
pub(super) struct LiveLink {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) outbound: bool,
    pub(super) cancel: CancellationToken,
}

/// A link has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) link: LinkId,
    pub(super) end: LinkEnd,
}

impl Task {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        relays: Relays,
        scope: Scope,
        config: &SwarmConfig,
        Queues { commands, circuits }: Queues,
        relays_connected: circuit::Connected,
        stop: CancellationToken,
    ) -> (Self, mpsc::Receiver<NodeEvent>) {
        let (sink, events) = Sink::new();
        let (ended_tx, ended) = mpsc::channel(ENDED_QUEUE);
        let (measured_tx, measured) = mpsc::channel(MAX_PINGS);
        let (answered_tx, answered) = mpsc::channel(ANSWER_QUEUE);
        let (announced_tx, announced) = mpsc::channel(MAX_ANNOUNCEMENTS);
        let local = *swarm.local_peer_id();
        let (reports_tx, reach_reports) = mpsc::channel(REPORT_QUEUE);
        let peers = Peers::new(local, config.max_message_bytes, config.trust_open);
        let (hops, hop_reports) = Hops::new();
        let (heard_tx, heard) = mpsc::channel(punch::HEARD_QUEUE);
        let punches = Punches::new(local, Instant::now());
        let links = Links {
            live: HashMap::new(),
            last: 0,
            untrusted_budget: io::budget(config.max_message_bytes),
            ended: ended_tx,
            running: TaskTracker::new(),
        };
        let task = Self {
            swarm,
            commands,
            sink,
            peers,
            pending: Pending::new(),
            redial: Redial::new(),
            find: Find::new(config),
            listeners: Listeners::default(),
            circuits_told: relays.meters.told(),
            relays,
            external: External::new(config),
            reach: Reach::new(config, reports_tx),
            reach_reports,
            surroundings: None,
            mapping: None,
            probes: Timers::new(),
            rescues: Timers::new(),
            failed: None,
            steering: Timers::new(),
            links,
            ended,
            pings: Pings { slots: Arc::new(Semaphore::new(MAX_PINGS)), measured: measured_tx },
            measured,
            joins: Joins::new(answered_tx),
            answered,
            circuits,
            hops,
            hop_reports,
            relays_connected,
            punches,
            exchanges: Exchanges::new(heard_tx),
            heard,
            punch_own: Own::default(),
            scope,
            announcements: Announcements {
                slots: Arc::new(Semaphore::new(MAX_ANNOUNCEMENTS)),
                announced: announced_tx,
            },
            announced,
            trust_open: config.trust_open,
            max_message_bytes: config.max_message_bytes,
            mappings: None,
            draining: false,
            warned: Warned::default(),
            stop,
        };
        (task, events)
    }

    /// Binds all addresses.
    pub(super) fn listen(&mut self, addresses: Vec<ListenAddress>) -> Result<(), SwarmError> {
        let swarm = &mut self.swarm;
        addresses.into_iter().try_for_each(|address| self.listeners.bind(address, |addr| swarm.listen_on(addr)))
    }

    /// Runs until all listeners have named their addresses. A dial before that
    /// would not start from their port, so that what others see of it would say
    /// nothing of theirs.
    pub(super) async fn settle(&mut self) -> Result<(), SwarmError> {
        let deadline = Instant::now() + SETTLE;
        let host = tokio::spawn(netwatch::read());
        self.run_while(deadline, |listeners| !listeners.all_reported()).await;
        if let Ok(Ok(Ok(host))) = timeout_at(deadline, host).await {
            self.run_while(deadline, |listeners| !listeners.all_named(&host)).await;
        }
        self.start_relays(Instant::now());
        self.failed.take().map_or(Ok(()), Err)
    }

    async fn run_while(&mut self, deadline: Instant, unfinished: impl Fn(&Listeners) -> bool) {
        while self.failed.is_none() && unfinished(&self.listeners) {
            let Ok(event) = timeout_at(deadline, self.swarm.select_next_some()).await else { break };
            self.on_swarm_event(event);
        }
    }

    /// Follows what is around the node from now on.
    pub(super) fn surrounded(&mut self, changes: mpsc::Receiver<Surroundings>, mapping: Option<Control>) {
        self.surroundings = Some(changes);
        self.mapping = mapping;
    }

    pub(super) fn bound(&self) -> Vec<BoundAddress> {
        self.listeners.bound()
    }

    pub(super) fn skipped(&self) -> Vec<String> {
        self.listeners.skipped().to_vec()
    }

    /// Runs until it is stopped or nobody can command it any more.
    pub(super) async fn run(mut self) {
        self.begin_finding(Instant::now());
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(ended) = self.ended.recv() => self.on_link_ended(ended),
                Some(measured) = self.measured.recv() => self.on_measured(measured),
                Some(answered) = self.answered.recv() => self.on_join_answered(answered),
                Some(report) = self.reach_reports.recv() => self.on_reach_report(report, Instant::now()),
                Some(change) = next_of(&mut self.surroundings) => self.on_surroundings(change, Instant::now()),
                Some(request) = self.circuits.recv() => self.open_circuit(request),
                Some(report) = self.hop_reports.recv() => self.on_hop(report, Instant::now()),
                Some(heard) = self.heard.recv() => self.on_punch_heard(heard),
                Some(announced) = self.announced.recv() => self.on_announced(announced),
                () = self.circuits_told.notified() => self.on_circuits_due(Instant::now()),
                permit = self.sink.ready() => self.sink.on_ready(permit),
                () = at(deadline) => self.on_deadline(Instant::now()),
                command = self.commands.recv() => if !self.on_command(command) { break },
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
            }
        }
        Box::pin(self.say_farewell()).await;
    }

    /// Lets links write out what is queued, and tells peers that this side
    /// closes: they would notice only after a while.
    async fn say_farewell(mut self) {
        self.links.running.close();
        drop(self.ended);
        let quiet = timeout(FAREWELL, run_until(&mut self.swarm, self.links.running.wait())).await;
        if quiet.is_err() {
            debug!("links were still open at the end");
        }
        for peer in self.peers.ids() {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let deadline = Instant::now() + FAREWELL;
        while self.swarm.connected_peers().next().is_some() {
            if timeout_at(deadline, self.swarm.select_next_some()).await.is_err() {
                break;
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let relays = self.relays.next(Instant::now());
        let asking = self.reach.verdicts.next().filter(|_| !self.draining);
        let all = [
            self.steering.next(),
            self.redial.next(),
            self.pending.next(),
            self.probes.next(),
            self.rescues.next(),
            self.find.next(),
            self.punches.next(),
            relays,
            asking,
        ];
        all.into_iter().flatten().min()
    }

    fn on_deadline(&mut self, now: Instant) {
        self.on_silence(now);
        self.rescue_due(now);
        self.on_relays_due(now);
        self.on_circuits_due(now);
        self.ask_due(now);
        self.punch_due(now);
        while let Some(peer) = self.steering.pop_due(now) {
            self.attend(peer, now);
        }
        while let Some(overdue) = self.pending.pop_overdue(now) {
            self.on_overdue(overdue, now);
        }
        self.on_find_deadline(now);
        let mut begun = 0;
        while let Some(peer) = self.redial.pop_due(now) {
            self.redial_now(peer, begun < MAX_REDIALS, now);
            begun += 1;
        }
    }

    fn redial_now(&mut self, peer: PeerId, room: bool, now: Instant) {
        if self.pending.is_dialling_circuit(&peer) {
            return;
        }
        if !room || !self.pending.has_room_for_dial() {
            return self.redial.postpone(peer, now, rand::random());
        }
        if !self.seek(peer, now) {
            self.redial.failed(peer, now, rand::random());
        }
    }

    /// Does what a peer needs after something changed: its outbound link, its
    /// place among those to be connected, the connection to keep.
    pub(super) fn attend(&mut self, peer: PeerId, now: Instant) {
        self.tell_changes(peer);
        self.punch_attend(&peer, now);
        self.steering.clear(&peer);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let links_allowed = (self.trust_open || entry.is_trusted() || entry.wanted) && !entry.is_blocked();
        entry.steer.allow(links_allowed && !self.draining);
        let should_be_connected = entry.should_be_connected() && !self.draining;
        let connected = !entry.connections.is_empty();
        let (kept, to_keep) = (entry.kept, entry.to_keep());
        entry.kept = to_keep;
        let step = entry.steer.step(now);

        if kept != to_keep {
            self.keep(peer, kept, to_keep);
        }
        match step {
            Step::Open(connection) => self.open_link(peer, connection),
            Step::Wait(at) => self.steering.set(peer, at),
            Step::Rest => {}
        }
        match should_be_connected {
            true if !self.redial.contains(&peer) => {
                self.redial.add(peer, now);
                if connected {
                    self.redial.connected(&peer, now);
                }
            }
            true => {}
            false => self.redial.remove(&peer),
        }
        self.peers.tidy(peer);
    }

    /// Tells others what became different about a peer; that it came or went is
    /// told where that is noticed.
    pub(super) fn tell_changes(&mut self, peer: PeerId) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let now = Told { route: entry.best().map(|best| best.route), on_lan: entry.known.on_lan() };
        let before = std::mem::replace(&mut entry.told, now);
        if let (Some(before), Some(now)) = (before.route, now.route)
            && before != now
        {
            self.sink.push(NodeEvent::Rerouted(peer, now));
        }
        if before.on_lan != now.on_lan {
            self.sink.push(NodeEvent::OnLan(peer, now.on_lan));
        }
    }

    fn keep(&mut self, peer: PeerId, before: Option<ConnectionId>, after: Option<ConnectionId>) {
        for (connection, keep) in [(before, false), (after, true)] {
            if let Some(connection) = connection {
                let keep = keep || self.relays.keep(&peer);
                self.swarm.behaviour_mut().link.keep_alive(peer, connection, keep);
            }
        }
    }

    fn open_link(&mut self, peer: PeerId, connection: ConnectionId) {
        let token = self.pending.opening(Opening { peer, connection, purpose: Purpose::Link });
        self.swarm.behaviour_mut().link.open(peer, connection, link::PROTOCOL, token);
    }

    /// Warns about a peer, but not about each thing that it does.
    pub(super) fn warn_of(&mut self, peer: PeerId, what: &dyn std::fmt::Display) {
        let now = Instant::now();
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        if is_time(&mut entry.warned, now) {
            warn!(%peer, "{what}");
        }
    }
}

/// Whether to log something again that was last logged then.
pub(super) fn is_time(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= WARN_INTERVAL);
    if due {
        *last = Some(now);
    }
    due
}

/// Ready at the time given; never if none is.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The next message, once there is a channel.
async fn next_of<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    channel.as_mut()?.recv().await
}

/// Keeps the swarm going until something else is done.
async fn run_until(swarm: &mut Swarm<Behaviour>, done: impl Future<Output = ()>) {
    let mut done = std::pin::pin!(done);
    loop {
        tokio::select! {
            biased;
            () = &mut done => return,
            _ = swarm.select_next_some() => {}
        }
    }
}
