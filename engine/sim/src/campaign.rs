//! Scenarios, and running many seeds of them.
//!
//! A [`Scenario`] is a function from a seed to success or a failure. Crates above this one define theirs; the
//! binary `pollux-sim` lists them all. A campaign runs a range of seeds on several threads, each world on one
//! of them, and runs some seeds twice to see that they repeat.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::{World, WorldOptions};

/// One run of a scenario.
#[derive(Debug, Clone)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// The command that runs it again.
    pub replay: String,
}

impl Run {
    /// A run outside of a campaign, as in a test.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            seed,
            replay: format!("the same with seed {seed}"),
        }
    }

    /// A world with the seed of the run, which tells how to replay when it fails.
    pub fn world(&self, options: WorldOptions) -> World {
        let replay = Some(self.replay.clone());
        World::with_options(self.seed, WorldOptions { replay, ..options })
    }
}

/// How often things came in a run, by what they are called; also those that did not.
pub type Reached = BTreeMap<&'static str, u64>;

/// A run that found nothing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How long it took in virtual time.
    pub virtual_time: Duration,
    /// The hash of everything that happened.
    pub trace_hash: u64,
    /// What it exercised.
    pub reached: Reached,
}

impl Finished {
    /// The end of a world.
    pub fn of(world: &World) -> Self {
        Self {
            virtual_time: Duration::from_nanos(world.now().as_nanos()),
            trace_hash: world.trace_hash(),
            reached: Reached::new(),
        }
    }
}

/// Something to simulate.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Runs it; a panic is a failure as well as an error.
    pub run: fn(&Run) -> Result<Finished, String>,
}

/// How to run a campaign.
#[derive(Debug, Clone)]
pub struct CampaignOptions {
    /// Which seeds.
    pub seeds: Range<u64>,
    /// Worlds side by side.
    pub jobs: usize,
    /// Every so many seeds one is run twice, and has to do the same; 0 for never.
    pub repeat_every: u64,
    /// Failures after which no more seeds are begun.
    pub failures_max: u64,
}

/// A seed that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was wrong.
    pub message: String,
    /// The command that runs it again.
    pub replay: String,
}

/// How a campaign went, or goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Seeds that were run.
    pub runs: u64,
    /// Seeds that were run twice.
    pub repeated: u64,
    /// Those that failed, by seed.
    pub failures: Vec<Failure>,
    /// Virtual time of all runs that found nothing wrong.
    pub virtual_time: Duration,
    /// What these exercised: in how many runs a thing came, and how often altogether.
    pub reached: BTreeMap<&'static str, (u64, u64)>,
}

impl Summary {
    /// Seeds an hour, when these took `elapsed` of real time, which a simulation knows nothing of.
    pub fn seeds_per_hour(&self, elapsed: Duration) -> u64 {
        let nanos = elapsed.as_nanos().max(1);
        u64::try_from(u128::from(self.runs) * 3_600_000_000_000 / nanos).unwrap_or(u64::MAX)
    }
}

/// Runs a scenario with many seeds. `replay` tells the command for a seed; `report` is called after every
/// run, with the failure if it was one.
pub fn run_campaign(
    scenario: &Scenario,
    options: &CampaignOptions,
    replay: impl Fn(u64) -> String + Sync,
    mut report: impl FnMut(&Summary, Option<&Failure>),
) -> Summary {
    let next = AtomicU64::new(options.seeds.start);
    let stop = AtomicBool::new(false);
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..options.jobs.max(1) {
            let (sender, next, stop, replay) = (sender.clone(), &next, &stop, &replay);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= options.seeds.end {
                        return;
                    }
                    let run = Run {
                        seed,
                        replay: replay(seed),
                    };
                    let twice = options.repeat_every > 0 && seed.is_multiple_of(options.repeat_every);
                    // The campaign listens until all its threads have ended.
                    let _ = sender.send((run_seed(scenario, &run, twice), run, twice));
                }
            });
        }
        drop(sender);
        for (result, run, twice) in results {
            summary.runs += 1;
            summary.repeated += u64::from(twice);
            let failure = match result {
                Ok(finished) => {
                    summary.virtual_time += finished.virtual_time;
                    for (what, times) in finished.reached {
                        let (runs, all) = summary.reached.entry(what).or_default();
                        *runs += u64::from(times > 0);
                        *all += times;
                    }
                    None
                }
                Err(message) => Some(Failure {
                    seed: run.seed,
                    message,
                    replay: run.replay,
                }),
            };
            summary.failures.extend(failure.clone());
            if summary.failures.len() as u64 >= options.failures_max {
                stop.store(true, Ordering::Relaxed);
            }
            report(&summary, failure.as_ref());
        }
    });
    summary.failures.sort_by_key(|failure| failure.seed);
    summary
}

/// Runs one seed, or the same seed twice.
fn run_seed(scenario: &Scenario, run: &Run, twice: bool) -> Result<Finished, String> {
    let once = || {
        catch_unwind(AssertUnwindSafe(|| (scenario.run)(run)))
            .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_message(&*panic))))
    };
    let first = once()?;
    if twice {
        let second = once()?;
        if first != second {
            return Err(format!("does not repeat: {first:?}, then {second:?}"));
        }
    }
    Ok(first)
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn finished(trace_hash: u64) -> Finished {
        Finished {
            virtual_time: Duration::from_secs(1),
            trace_hash,
            reached: Reached::from([("odd", trace_hash % 2), ("never", 0)]),
        }
    }

    fn options(seeds: Range<u64>) -> CampaignOptions {
        CampaignOptions {
            seeds,
            jobs: 2,
            repeat_every: 2,
            failures_max: 100,
        }
    }

    fn run(scenario: fn(&Run) -> Result<Finished, String>, options: &CampaignOptions) -> Summary {
        let scenario = Scenario {
            name: "test",
            about: "",
            run: scenario,
        };
        run_campaign(&scenario, options, |seed| format!("again {seed}"), |_, _| {})
    }

    #[test]
    fn runs_every_seed_once_and_some_twice() {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let summary = run(
            |run| {
                RUNS.fetch_add(1, Ordering::Relaxed);
                Ok(finished(run.seed))
            },
            &options(10..30),
        );
        assert_eq!(
            (summary.runs, summary.repeated, summary.failures.len()),
            (20, 10, 0)
        );
        assert_eq!(RUNS.load(Ordering::Relaxed), 30);
        assert_eq!(summary.virtual_time, Duration::from_secs(20));
        let reached = [("never", (0, 0)), ("odd", (10, 10))];
        assert_eq!(summary.reached, BTreeMap::from(reached));
        assert_eq!(
            summary.seeds_per_hour(Duration::from_secs(1)),
            summary.runs * 3600
        );
    }

    #[test]
    fn errors_panics_and_differences_are_failures() {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let summary = run(
            |run| match run.seed {
                3 => Err("wrong".to_owned()),
                5 => panic!("seed {}", 5),
                6 => Ok(finished(COUNT.fetch_add(1, Ordering::Relaxed))),
                seed => Ok(finished(seed)),
            },
            &options(0..8),
        );
        let failures: Vec<_> = summary
            .failures
            .iter()
            .map(|failure| (failure.seed, failure.message.as_str()))
            .collect();
        assert_eq!(failures[..2], [(3, "wrong"), (5, "panicked: seed 5")]);
        assert_eq!(failures[2].0, 6);
        assert!(failures[2].1.starts_with("does not repeat"));
        assert_eq!(summary.failures[0].replay, "again 3");
    }

    #[test]
    fn stops_after_enough_failures() {
        let options = CampaignOptions {
            jobs: 1,
            failures_max: 3,
            ..options(0..1_000_000)
        };
        let summary = run(|_| Err(String::new()), &options);
        assert!(summary.runs < 1_000_000);
    }
}
