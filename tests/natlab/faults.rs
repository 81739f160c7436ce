//! What a change of the network costs a steady stream of messages both ways.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;

use crate::{
    kind::Kind,
    lab::Lab,
    node::{Node, end},
    relays::Relays,
    site::{Site, Spec},
    traffic::{Account, Traffic},
    watch::{RouteWatch, is_direct},
};

/// Longest until two fresh daemons exchange messages the way they should.
const STEADY: Duration = Duration::from_secs(30);
/// Time of calm before the fault.
const CALM: Duration = Duration::from_secs(2);
/// Longest until messages flow again.
const RECOVERS: Duration = Duration::from_secs(90);
/// Longest until the route is what it should be again.
const REROUTES: Duration = Duration::from_secs(20);
/// A relay that reboots is away for this long.
const REBOOT: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// The router of the first forgets the mappings that traffic made; where
    /// it changes ports, the next ones are others.
    Flush,
    /// The first gets another public address.
    NewAddress,
    /// The only relay is off for a while; counted from its return.
    RelayReboot,
    /// The relay in use goes for good; another is there.
    RelayGone,
    /// The line of the first carries nothing for a while; counted from its
    /// return.
    LineOut,
    /// The same, by the host's own interface.
    Unplugged,
    /// The router of the first becomes symmetric.
    KindChanged,
}

/// A fault between two kinds of sites.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    fault: Fault,
    a: Kind,
    b: Kind,
}

pub(crate) struct Plan {
    pub(crate) only: Vec<Fault>,
    /// Instead of those chosen for each fault.
    pub(crate) pairs: Option<Vec<(Kind, Kind)>>,
    pub(crate) runs: usize,
    pub(crate) delay: Duration,
    /// How long lines are out.
    pub(crate) out: Duration,
    pub(crate) labs: usize,
    /// For the daemons' logs.
    pub(crate) logs: Option<PathBuf>,
    /// What they log.
    pub(crate) log: String,
}

/// What one run showed.
#[derive(Debug, Default)]
struct Result {
    /// Until messages flowed again, in each direction.
    flows: [Option<Duration>; 2],
    /// Until messages came directly both ways, where they can.
    direct: Option<Duration>,
    route: String,
    accounts: [Account; 2],
    trouble: Option<String>,
}

/// Faults of sites that are directly connected, and of such as need a relay.
fn cases(only: &[Fault], chosen: Option<&[(Kind, Kind)]>) -> Vec<Case> {
    let pairs = |fault| match fault {
        Fault::Flush => vec![
            (Kind::PortRestricted, Kind::PortRestricted),
            (Kind::PortRestrictedChanged, Kind::PortRestricted),
            (Kind::FullConeChanged, Kind::Restricted),
            (Kind::Symmetric, Kind::None),
            (Kind::Symmetric, Kind::PortRestricted),
        ],
        Fault::NewAddress => vec![
            (Kind::PortRestricted, Kind::PortRestricted),
            (Kind::PortRestrictedChanged, Kind::PortRestricted),
            (Kind::Symmetric, Kind::PortRestricted),
            (Kind::Pcp, Kind::PortRestricted),
        ],
        Fault::RelayReboot | Fault::RelayGone => vec![(Kind::Symmetric, Kind::PortRestricted)],
        Fault::LineOut | Fault::Unplugged => {
            vec![(Kind::PortRestricted, Kind::PortRestrictedChanged), (Kind::Symmetric, Kind::PortRestricted)]
        }
        Fault::KindChanged => vec![(Kind::PortRestricted, Kind::PortRestricted), (Kind::FullCone, Kind::Restricted)],
    };
    let pairs = |fault| chosen.map_or_else(|| pairs(fault), <[_]>::to_vec);
    let all = Fault::value_variants().iter().filter(|fault| only.is_empty() || only.contains(fault));
    all.flat_map(|fault| pairs(*fault).into_iter().map(|(a, b)| Case { fault: *fault, a, b })).collect()
}

/// Runs all, prints a line for each, and says whether nothing was lost, doubled
/// or out of order, and everything flowed again.
pub(crate) fn faults(plan: &Plan) -> bool {
    let cases = cases(&plan.only, plan.pairs.as_deref());
    let work: Vec<Case> = cases.iter().flat_map(|case| vec![*case; plan.runs]).collect();
    let (queue, sound) = (Mutex::new(work.iter()), Mutex::new(true));
    println!(
        "{:<13} {:<46} {:>9} {:>9} {:>9}  {:<8} {:>6} {:>5} {:>5} order",
        "fault", "pair", "a to b s", "b to a s", "direct s", "route", "sent", "lost", "twice"
    );
    std::thread::scope(|scope| {
        for _ in 0..plan.labs.min(work.len()) {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let Some(case) = queue.lock().unwrap().next() else { break };
                    let result = runtime.block_on(run(plan, *case));
                    println!("{}", row(*case, &result));
                    *sound.lock().unwrap() &= is_sound(&result);
                }
            });
        }
    });
    sound.into_inner().unwrap()
}

fn is_sound(result: &Result) -> bool {
    let whole = result.accounts.iter().all(|account| account.lost == 0 && account.doubled == 0 && account.ordered);
    result.trouble.is_none() && whole && result.flows.iter().all(Option::is_some)
}

async fn run(plan: &Plan, case: Case) -> Result {
    let lab = Lab::new();
    let count = if case.fault == Fault::RelayReboot { 1 } else { 2 };
    let mut relays = Relays::start_logged(&lab, count, plan.delay, false, &plan.log).await;
    let mut sites = [case.a, case.b].map(|kind| lab.site(Spec { delay: plan.delay, ..Spec::new(kind) }));
    let (a, b) = tokio::join!(
        Node::start_logged(&sites[0], 0, &relays.addresses, &plan.log),
        Node::start_logged(&sites[1], 0, &relays.addresses, &plan.log)
    );
    tokio::join!(a.trust(&b.id), b.trust(&a.id));
    let (mut result, mut struck) = (Result::default(), None);
    for reachable in [a.reachable(STEADY).await, b.reachable(STEADY).await] {
        if let Err(why) = reachable {
            result.trouble = Some(format!("not reachable in time: {why}"));
        }
    }
    let watch = RouteWatch::new(&a.client, &b.id).await;
    let traffic = [Traffic::start(&a, &b).await, Traffic::start(&b, &a).await];
    let direct = crate::expected::direct(case.a, case.b);
    if settle(&traffic, &watch, direct).await {
        let moment = strike(plan, case, &mut relays, &mut sites).await;
        struck = Some(SystemTime::now() - moment.elapsed());
        observe(&mut result, &traffic, case, moment).await;
    } else {
        result.trouble = Some("no steady traffic before the fault".to_owned());
    }
    let [to_b, to_a] = traffic;
    let accounts = tokio::join!(to_b.end(RECOVERS), to_a.end(RECOVERS));
    result.accounts = [accounts.0, accounts.1];
    if let Some(directory) = &plan.logs {
        keep_logs(directory, case, &result, struck, [&a, &b].into_iter().chain(relays.nodes()));
    }
    end(vec![a, b]).await;
    relays.end().await;
    result
}

/// Until messages come both ways over the route that should be, and some time
/// more.
async fn settle(traffic: &[Traffic; 2], watch: &RouteWatch, direct: bool) -> bool {
    let begin = Instant::now();
    let fits = || traffic.iter().all(|one| one.comes_after(begin).is_some()) && (is_direct(watch.now()) || !direct);
    while !fits() {
        if begin.elapsed() > STEADY {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    tokio::time::sleep(CALM).await;
    true
}

/// Does it, and returns the moment from which the time counts.
async fn strike(plan: &Plan, case: Case, relays: &mut Relays, sites: &mut [Site; 2]) -> Instant {
    match case.fault {
        Fault::Flush => sites[0].flush(),
        Fault::NewAddress => sites[0].new_address(),
        Fault::KindChanged => sites[0].change_kind(Kind::Symmetric),
        Fault::RelayGone => {
            let relay = relays.busiest().await;
            relays.power_off(relay);
        }
        Fault::RelayReboot => {
            relays.power_off(0);
            tokio::time::sleep(REBOOT).await;
            relays.power_on(0).await;
        }
        Fault::LineOut => {
            sites[0].outage(true);
            tokio::time::sleep(plan.out).await;
            sites[0].outage(false);
        }
        Fault::Unplugged => {
            sites[0].unplug(0, true);
            tokio::time::sleep(plan.out).await;
            sites[0].unplug(0, false);
        }
    }
    Instant::now()
}

async fn observe(result: &mut Result, traffic: &[Traffic; 2], case: Case, moment: Instant) {
    // After a time without any, the first that comes is one that has waited.
    let outage = matches!(case.fault, Fault::RelayReboot | Fault::LineOut | Fault::Unplugged);
    let flows = |one: &Traffic| if outage { one.comes_after(moment) } else { one.flows_after(moment) };
    while moment.elapsed() < RECOVERS {
        result.flows = [flows(&traffic[0]), flows(&traffic[1])];
        if result.flows.iter().all(Option::is_some) {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let a = if case.fault == Fault::KindChanged { Kind::Symmetric } else { case.a };
    let flowing = Instant::now();
    if crate::expected::direct(a, case.b) {
        let direct = || Some(traffic[0].direct_after(moment)?.max(traffic[1].direct_after(moment)?));
        while direct().is_none() && flowing.elapsed() < REROUTES {
            tokio::time::sleep(POLL).await;
        }
        result.direct = direct();
    }
    result.route = format!("{:?}", traffic[0].route());
}

/// Writes the logs of all daemons into a file.
fn keep_logs<'a>(
    directory: &Path,
    case: Case,
    result: &Result,
    struck: Option<SystemTime>,
    nodes: impl Iterator<Item = &'a Node>,
) {
    let at = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let mut text = format!("{}\n", row(case, result));
    if let Some(struck) = struck {
        text += &format!("struck {:.3} s after the minute\n", at(struck) % 60.0);
    }
    for (name, node) in ["a", "b", "relay 1", "relay 2"].into_iter().zip(nodes) {
        text += &format!("--- {name} {}\n{}", node.id, node.daemon.log());
    }
    let fault = case.fault.to_possible_value().unwrap();
    let name = format!("{}-{}-{}-{:.0}.log", fault.get_name(), case.a.name(), case.b.name(), at(SystemTime::now()));
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join(name), text).unwrap();
}

fn row(case: Case, result: &Result) -> String {
    let seconds = |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.2}", time.as_secs_f64()));
    let sum = |of: fn(&Account) -> usize| result.accounts.iter().map(of).sum::<usize>();
    let fault = case.fault.to_possible_value().unwrap();
    format!(
        "{:<13} {:<46} {:>9} {:>9} {:>9}  {:<8} {:>6} {:>5} {:>5} {} {}",
        fault.get_name(),
        format!("{} x {}", case.a.name(), case.b.name()),
        seconds(result.flows[0]),
        seconds(result.flows[1]),
        seconds(result.direct),
        result.route,
        sum(|account| account.sent),
        sum(|account| account.lost),
        sum(|account| account.doubled),
        if result.accounts.iter().all(|account| account.ordered) { "kept" } else { "BROKEN" },
        result.trouble.as_deref().unwrap_or(""),
    )
}
