//! The power is cut at every write that random histories make on the drives: what was durable is there,
//! what was not is old or new, every snapshot is what it was, and nothing leaks.

use crate::common::Bench;
use crate::history::{check_state, record};
use pollux_sim::{CutPoints, PowerLoss};

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::LoseAll,
    PowerLoss::KeepAll,
    PowerLoss::Reordered,
    PowerLoss::Torn,
];

fn check_run(seed: u64, drives: usize, steps: u64) -> u64 {
    let bench = Bench::new(seed, drives);
    let recorded = record(&bench, steps);
    let mut states = 0;
    for state in recorded.recorder.crash_states(seed, CutPoints::Writes, &LOSSES) {
        states += 1;
        check_state(&bench, &recorded, state, &format!("seed {seed}, {drives} drives"));
    }
    states
}

/// Runs of so many seeds, in as many tests as there are cores for.
fn check_seeds(seeds: std::ops::Range<u64>) {
    let states: u64 = seeds.map(|seed| check_run(seed, 1 + seed as usize % 2, 60)).sum();
    assert!(states > 8_000, "{states}");
}

#[test]
fn a_power_cut_anywhere_leaves_what_was_durable_and_nothing_leaks_1() {
    check_seeds(0..9);
}

#[test]
fn a_power_cut_anywhere_leaves_what_was_durable_and_nothing_leaks_2() {
    check_seeds(10..19);
}

#[test]
fn a_power_cut_anywhere_leaves_what_was_durable_and_nothing_leaks_3() {
    check_seeds(20..29);
}

#[test]
fn a_power_cut_anywhere_leaves_what_was_durable_and_nothing_leaks_4() {
    check_seeds(30..39);
}
