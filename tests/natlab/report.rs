//! What the matrix found, for people and as JSON.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use crate::{
    expected::{self, MATRIX},
    kind::Kind,
    matrix::{Outcomes, Plan},
    run::{Outcome, millis},
};

/// Width of a column of the square.
const COLUMN: usize = 12;

/// A line for each run as it ends, so long after the first began.
pub(crate) fn progress(plan: &Plan, (a, b): (Kind, Kind), n: usize, outcome: &Outcome, since: Duration) {
    let (from, to) = if n.is_multiple_of(2) { (a, b) } else { (b, a) };
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
    println!(
        "{:>6.1} run {}/{} {:>23} -> {:<23} online {:>5} {:>5}  stored {:>6}  relayed {:>6}  direct {:>6} {:<4} {}",
        since.as_secs_f64(),
        n + 1,
        plan.runs,
        from.name(),
        to.name(),
        ms(outcome.online[0]),
        ms(outcome.online[1]),
        ms(outcome.stored),
        ms(outcome.relayed),
        ms(outcome.direct),
        outcome.transport.unwrap_or("-"),
        outcome.trouble.join("; ")
    );
}

pub(crate) fn print(plan: &Plan, outcomes: &Outcomes, took: Duration) {
    println!();
    square(plan, outcomes);
    println!();
    pairs(plan, outcomes);
    println!();
    classes(plan, outcomes);
    verdict(plan, outcomes, took);
}

/// The matrix itself: direct runs of all, or what is wrong.
fn square(plan: &Plan, outcomes: &Outcomes) {
    let shown: Vec<Kind> =
        MATRIX.into_iter().filter(|kind| outcomes.keys().any(|(a, b)| [a, b].contains(&kind))).collect();
    print!("{:<24}", "");
    for kind in &shown {
        print!("{:<COLUMN$}", kind.name().chars().take(COLUMN - 1).collect::<String>());
    }
    println!();
    for a in &shown {
        print!("{:<24}", a.name());
        for b in &shown {
            let runs = outcomes.get(&(*a, *b)).or_else(|| outcomes.get(&(*b, *a)));
            print!("{:<COLUMN$}", runs.map_or(String::new(), |runs| cell(plan, (*a, *b), runs)));
        }
        println!();
    }
    println!("direct/runs with the transport; \"relay\": as it must be; \"!\": not as expected");
}

fn cell(plan: &Plan, pair: (Kind, Kind), runs: &[Outcome]) -> String {
    let connected = runs.iter().filter(|run| run.connected()).count();
    let direct = runs.iter().filter(|run| run.is_direct()).count();
    let mark = if plan.met(pair, runs) { "" } else { "!" };
    if connected < runs.len() {
        return format!("{connected}/{} conn{mark}", runs.len());
    }
    if direct == 0 && !plan.direct(pair) {
        return format!("{connected}/{} relay", runs.len());
    }
    format!("{direct}/{} {}{mark}", runs.len(), transports(runs))
}

fn transports(runs: &[Outcome]) -> String {
    let mut seen: Vec<_> = runs.iter().filter_map(|run| run.transport).collect();
    seen.sort_unstable();
    seen.dedup();
    if seen.is_empty() { "-".to_owned() } else { seen.join("+") }
}

/// A line for each pair: expected, got, and how fast.
fn pairs(plan: &Plan, outcomes: &Outcomes) {
    println!(
        "{:<48} {:<10} {:<9} {:<7} {:<9} {:<6} {:>9} {:>11} {:>10}",
        "pair", "expected", "connected", "direct", "transport", "stock", "first ms", "upgrade ms", "direct ms"
    );
    for ((a, b), runs) in outcomes {
        let count = |is: fn(&Outcome) -> bool| format!("{}/{}", runs.iter().filter(|run| is(run)).count(), runs.len());
        let p50 = |value: fn(&Outcome) -> Option<f64>| {
            of_runs(runs, value).map_or("-".to_owned(), |(p50, _)| format!("{p50:.0}"))
        };
        println!(
            "{:<48} {:<10} {:<9} {:<7} {:<9} {:<6} {:>9} {:>11} {:>10}{}",
            format!("{} x {}", a.name(), b.name()),
            if plan.direct((*a, *b)) { "direct" } else { "relayed" },
            count(Outcome::connected),
            count(Outcome::is_direct),
            transports(runs),
            if plan.stock_loses((*a, *b)) { "loses" } else { "-" },
            p50(|run| run.stored),
            p50(Outcome::upgrade),
            p50(|run| run.direct),
            if plan.met((*a, *b), runs) { "" } else { "   NOT AS EXPECTED" },
        );
        for (n, run) in runs.iter().enumerate().filter(|(_, run)| !run.trouble.is_empty()) {
            println!("    run {}: {}", n + 1, run.trouble.join("; "));
        }
    }
    println!("(medians; a round trip is {:.0} ms)", millis(plan.rtt()));
}

/// Median and 95th percentile by class, in milliseconds and round trips.
fn classes(plan: &Plan, outcomes: &Outcomes) {
    let mut by_class: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
    for ((a, b), runs) in outcomes {
        let class = format!("{:?}", expected::class(*a, *b));
        let stays = if plan.direct((*a, *b)) { "" } else { ", relayed" };
        by_class.entry(class + stays).or_default().extend(runs.iter().cloned());
        by_class.entry("all".to_owned()).or_default().extend(runs.iter().cloned());
    }
    println!(
        "{:<22} {:>5}  {:<26} {:<26} {:<26} {:<20}",
        "class", "runs", "dial to first message", "relayed to direct", "dial to direct", "start to reachable"
    );
    for (class, runs) in by_class {
        let figures = |value: fn(&Outcome) -> Option<f64>| {
            of_runs(&runs, value).map_or("-".to_owned(), |(p50, p95)| {
                let trips = |ms: f64| ms / millis(plan.rtt()).max(0.001);
                format!("{p50:.0}/{p95:.0} ms {:.1}/{:.1} rt", trips(p50), trips(p95))
            })
        };
        println!(
            "{class:<22} {:>5}  {:<26} {:<26} {:<26} {:<20}",
            runs.len(),
            figures(|run| run.stored),
            figures(Outcome::upgrade),
            figures(|run| run.direct),
            figures(|run| run.online[0])
        );
    }
    println!("(p50/p95)");
}

fn verdict(plan: &Plan, outcomes: &Outcomes, took: Duration) {
    let runs: Vec<&Outcome> = outcomes.values().flatten().collect();
    let lost = outcomes.keys().filter(|(a, b)| plan.stock_loses((*a, *b))).count();
    let wrong: Vec<_> = outcomes.iter().filter(|((a, b), runs)| !plan.met((*a, *b), runs)).collect();
    println!(
        "\n{} pairs, {} runs in {:.1} min: connected in {}, direct in {}. Stock libp2p would have stayed relayed in {lost} \
         of the pairs that can be direct.",
        outcomes.len(),
        runs.len(),
        took.as_secs_f64() / 60.0,
        runs.iter().filter(|run| run.connected()).count(),
        runs.iter().filter(|run| run.is_direct()).count(),
    );
    if wrong.is_empty() {
        println!("All as expected.");
    } else {
        let names: Vec<_> = wrong.iter().map(|((a, b), _)| format!("{} x {}", a.name(), b.name())).collect();
        println!("NOT AS EXPECTED: {}", names.join(", "));
    }
}

/// Everything, for other programs.
pub(crate) fn json(plan: &Plan, outcomes: &Outcomes) -> String {
    let pairs: Vec<_> = outcomes
        .iter()
        .map(|((a, b), runs)| {
            json!({
                "a": a.name(), "b": b.name(), "class": format!("{:?}", expected::class(*a, *b)),
                "expected_direct": plan.direct((*a, *b)), "stock_loses": plan.stock_loses((*a, *b)),
                "as_expected": plan.met((*a, *b), runs), "runs": runs,
            })
        })
        .collect();
    let whole = json!({
        "delay_ms": millis(plan.delay), "relay_delay_ms": millis(plan.relay_delay), "loss_percent": plan.loss,
        "rtt_ms": millis(plan.rtt()), "pairs": pairs,
    });
    format!("{whole:#}\n")
}

/// Median and 95th percentile of those that have the value.
fn of_runs(runs: &[Outcome], value: fn(&Outcome) -> Option<f64>) -> Option<(f64, f64)> {
    percentiles(runs.iter().filter_map(value).collect())
}

/// Median and 95th percentile.
pub(crate) fn percentiles(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some((at(50)?, at(95)?))
}
