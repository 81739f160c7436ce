//! Two nodes, each with the protocol's machines on a real store in memory,
//! under loss, crashes, restores of older copies, expiry, cancellation, loss
//! of trust and changing connections. A seed decides all of it.
//!
//! `SIMULATION_SEEDS=10000 cargo test --release --test simulation` runs the
//! long form; `SIMULATION_SEED=17` runs one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod oracle;
mod world;

use world::{Plant, World};

/// Seeds of the short form.
const SEEDS: u64 = 400;

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn nothing_is_lost_doubled_or_out_of_order() {
    let seeds = seeds();
    let mut totals = oracle::Counts::default();
    for seed in seeds.clone() {
        match World::new(seed, Plant::None).run() {
            Ok(counts) => totals += counts,
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    println!("seeds {}..{}: {totals:?}", seeds.start, seeds.end);
    // The run must have met what it is about.
    if seeds.end - seeds.start >= 100 {
        assert!(totals.crashes > 0 && totals.rollbacks > 0 && totals.cancelled > 0 && totals.expired > 0);
        assert!(totals.lost_by_restore > 0 && totals.links > 0 && totals.rejected > 0);
        assert!(totals.pending_resolved > 0 && totals.refused_full > 0 && totals.holes > 0 && totals.held > 0);
        assert!(totals.early > 0);
    }
}

#[test]
fn a_store_swapped_under_a_running_node_begins_a_new_epoch() {
    for seed in 0..50 {
        let counts = World::new(seed, Plant::None).run_with_swapped_store().unwrap();
        assert!(counts.renumbered > 0, "seed {seed}: {counts:?}");
    }
}

#[test]
fn many_starts_while_the_peer_is_away_lose_nothing() {
    for seed in 0..50 {
        let counts = World::new(seed, Plant::None).run_with_many_starts().unwrap();
        assert!(counts.lost_by_restore == 0 && counts.crashes >= 29, "seed {seed}: {counts:?}");
    }
}

#[test]
fn what_expires_while_the_peer_is_away_holds_nothing_up() {
    for seed in 0..20 {
        let counts = World::new(seed, Plant::None).run_with_a_peer_long_away().unwrap();
        assert!(counts.holes > 0 && counts.expired >= 150 && counts.stored > 0, "seed {seed}: {counts:?}");
    }
}

#[test]
fn an_id_reused_after_its_window_is_delivered() {
    for seed in 0..50 {
        let (stored, arrived) = World::new(seed, Plant::None).run_with_reused_ids().unwrap();
        assert_eq!(stored, arrived, "seed {seed}");
    }
}

fn caught_by(plant: Plant) -> (u64, String) {
    for seed in 0..2_000 {
        if let Err(error) = World::new(seed, plant).run() {
            return (seed, error);
        }
    }
    panic!("{plant:?} was not caught by 2000 seeds");
}

#[test]
fn a_planted_ack_before_commit_is_caught() {
    let (seed, error) = caught_by(Plant::AckBeforeCommit);
    println!("ack before commit: caught by seed {seed}: {error}");
}

#[test]
fn a_planted_reuse_of_sequences_after_a_restore_is_caught() {
    let (seed, error) = caught_by(Plant::SequenceReused);
    println!("sequence reused after restore: caught by seed {seed}: {error}");
}

#[test]
fn a_planted_skip_that_is_not_acked_is_caught() {
    let (seed, error) = caught_by(Plant::SkipNotAcked);
    println!("SKIP not acked: caught by seed {seed}: {error}");
}
