//! Every pair of kinds, several runs each, in labs side by side.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::{Duration, Instant},
};

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
        Spec { delay: self.delay, loss: self.loss / 2.0, ..Spec::new(kind) }
    }
}

/// Measures, prints, and says whether all is as expected.
pub(crate) fn matrix(plan: &Plan, json: Option<&std::path::Path>) -> bool {
    let begin = Instant::now();
    let (queue, outcomes) = (Mutex::new(plan.pairs.iter().copied()), Mutex::new(Outcomes::new()));
    std::thread::scope(|scope| {
        for _ in 0..plan.labs.min(plan.pairs.len()) {
            scope.spawn(|| work(plan, &queue, &outcomes));
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    report::print(plan, &outcomes, begin.elapsed());
    if let Some(path) = json {
        std::fs::write(path, report::json(plan, &outcomes)).unwrap();
    }
    outcomes.len() == plan.pairs.len() && outcomes.iter().all(|((a, b), runs)| as_expected(*a, *b, runs))
}

/// Connected in every run, and direct in every run where that can be.
pub(crate) fn as_expected(a: Kind, b: Kind, runs: &[Outcome]) -> bool {
    let direct = expected::direct(a, b);
    !runs.is_empty() && runs.iter().all(|run| run.connected() && (run.is_direct() || !direct))
}

/// One lab's share.
fn work(plan: &Plan, queue: &Mutex<impl Iterator<Item = (Kind, Kind)>>, outcomes: &Mutex<Outcomes>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lab = Lab::new();
    // Two, so that observed addresses come from two.
    let relays = runtime.block_on(Relays::start(&lab, 2, plan.relay_delay));
    loop {
        let Some((a, b)) = queue.lock().unwrap().next() else { break };
        let mut sites = [a, b].map(|kind| lab.site(plan.spec(kind)));
        for n in 0..plan.runs {
            let one = || runtime.block_on(once(&mut sites, n, &relays.addresses));
            let outcome = catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|_| Outcome {
                trouble: vec!["the run failed; its panic is printed above".to_owned()],
                ..Outcome::default()
            });
            report::progress(plan, (a, b), n, &outcome);
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
async fn once(sites: &mut [Site; 2], n: usize, relays: &[String]) -> Outcome {
    sites.iter_mut().for_each(Site::restore);
    let [a, b] = &*sites;
    let (dialler, peer) = if n.is_multiple_of(2) { (a, b) } else { (b, a) };
    run(&Places { dialler: (dialler, 0), peer: (peer, 0) }, relays).await
}
