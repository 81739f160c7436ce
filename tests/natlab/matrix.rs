//! Every pair of kinds, several runs each, in labs side by side.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::{Duration, Instant},
};

use clap::ValueEnum;

use crate::{
    expected,
    kind::Kind,
    lab::Lab,
    relays::Relays,
    report,
    run::{Outcome, Places, run},
    site::{Site, Spec},
};

/// What to measure.
pub(crate) struct Plan {
    pub(crate) pairs: Vec<(Kind, Kind)>,
    pub(crate) runs: usize,
    /// Of each peer's line, one way.
    pub(crate) delay: Duration,
    /// Of each relay's line, one way.
    pub(crate) relay_delay: Duration,
    /// Of packets between two peers, one way, in percent.
    pub(crate) loss: f64,
    pub(crate) labs: usize,
    /// Both peers behind one router, not two.
    pub(crate) shared: Option<Shared>,
}

/// How two hosts behind one router may reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shared {
    /// On the LAN.
    Lan,
    /// On the LAN, and by the outer address.
    Hairpin,
    /// By the outer address alone.
    Isolated,
}

/// Runs of each pair, in order; the dialler alternates, beginning with the
/// first of the pair.
pub(crate) type Outcomes = BTreeMap<(Kind, Kind), Vec<Outcome>>;

impl Plan {
    /// The round trip between two peers.
    pub(crate) fn rtt(&self) -> Duration {
        4 * self.delay
    }

    fn spec(&self, kind: Kind) -> Spec {
        // A packet between two peers passes two lines.
        let spec = Spec { delay: self.delay, loss: self.loss / 2.0, ..Spec::new(kind) };
        match self.shared {
            None => spec,
            Some(shared) => {
                let (hairpin, isolated) = (shared != Shared::Lan, shared == Shared::Isolated);
                Spec { hosts: 2, hairpin, isolated, ..spec }
            }
        }
    }

    /// One site for both, or one each.
    fn sites(&self, lab: &Lab, (a, b): (Kind, Kind)) -> Vec<Site> {
        let kinds = if self.shared.is_some() { vec![a] } else { vec![a, b] };
        kinds.into_iter().map(|kind| lab.site(self.spec(kind))).collect()
    }

    /// Some of the sites have nothing but IPv6.
    fn v6(&self) -> bool {
        self.pairs.iter().any(|(a, b)| a.is_v6() || b.is_v6())
    }

    /// Whether a direct connection is to come.
    pub(crate) fn direct(&self, (a, b): (Kind, Kind)) -> bool {
        self.shared.is_some() || expected::direct(a, b)
    }

    /// Whether stock libp2p would have stayed on the relay: also behind one
    /// router that does not send back what is for its own outer address.
    pub(crate) fn stock_loses(&self, (a, b): (Kind, Kind)) -> bool {
        self.shared == Some(Shared::Lan) || expected::stock_loses(a, b)
    }

    /// Connected in every run, and direct in every run where that can be.
    pub(crate) fn met(&self, pair: (Kind, Kind), runs: &[Outcome]) -> bool {
        let direct = self.direct(pair);
        !runs.is_empty() && runs.iter().all(|run| run.connected() && (run.is_direct() || !direct))
    }
}

/// Measures, prints, and says whether all is as expected.
pub(crate) fn matrix(plan: &Plan, json: Option<&std::path::Path>) -> bool {
    let begin = Instant::now();
    let (queue, outcomes) = (Mutex::new(plan.pairs.iter().copied()), Mutex::new(Outcomes::new()));
    std::thread::scope(|scope| {
        for _ in 0..plan.labs.min(plan.pairs.len()) {
            scope.spawn(|| work(plan, begin, &queue, &outcomes));
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    report::print(plan, &outcomes, begin.elapsed());
    if let Some(path) = json {
        std::fs::write(path, report::json(plan, &outcomes)).unwrap();
    }
    outcomes.len() == plan.pairs.len() && outcomes.iter().all(|(pair, runs)| plan.met(*pair, runs))
}

/// One lab's share.
fn work(plan: &Plan, begin: Instant, queue: &Mutex<impl Iterator<Item = (Kind, Kind)>>, outcomes: &Mutex<Outcomes>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lab = Lab::new();
    // Two, so that observed addresses come from two.
    let mut relays = runtime.block_on(Relays::start(&lab, 2, plan.relay_delay, plan.v6()));
    let mut used = false;
    loop {
        let Some((a, b)) = queue.lock().unwrap().next() else { break };
        let mut sites = plan.sites(&lab, (a, b));
        for n in 0..plan.runs {
            if std::mem::replace(&mut used, true) {
                runtime.block_on(relays.forget());
            }
            let one = || runtime.block_on(once(&mut sites, n, &relays.addresses));
            let outcome = catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|_| Outcome {
                trouble: vec!["the run failed; its panic is printed above".to_owned()],
                ..Outcome::default()
            });
            report::progress(plan, (a, b), n, &outcome, begin.elapsed());
            outcomes.lock().unwrap().entry((a, b)).or_default().push(outcome);
        }
    }
    let (strays, overflows) = lab.troubles();
    if overflows > 0 {
        eprintln!("natlab: {overflows} packets met a full queue, {strays} were strays");
    }
    runtime.block_on(relays.end());
}

/// One run, on routers that remember nothing.
async fn once(sites: &mut [Site], n: usize, relays: &[String]) -> Outcome {
    sites.iter_mut().for_each(Site::restore);
    let places = match &*sites {
        [shared] => [(shared, 0), (shared, 1)],
        [a, b, ..] => [(a, 0), (b, 0)],
        [] => panic!("a run needs a site"),
    };
    let [dialler, peer] = if n.is_multiple_of(2) { places } else { [places[1], places[0]] };
    run(&Places { dialler, peer }, relays).await
}
