//! A volume with three replicas on engines that are processes of their own, under verified load: engines are
//! killed and come back, targets take over from each other, replicas are replaced, all engines are killed at
//! once. The targets are in this process, so that one that was superseded lives on and tries what it can.
//!
//! Without arguments it is short. The long run:
//!
//! ```text
//! cargo test --release -p pollux-engine --test replication -- \
//!     --failovers 200 --resyncs 500 --replacements 50 --kills 20
//! ```

#[path = "../common/mod.rs"]
mod common;

mod cluster;
mod load;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use cluster::{Cluster, ENGINES, Target, wait_until};
use load::Random;
use pollux_volume::mirror::StopReason;

/// How often each thing is to happen.
#[derive(Debug, Parser)]
struct Arguments {
    /// Targets that take the volume over from one that serves it.
    #[arg(long, default_value_t = 3)]
    failovers: u32,
    /// Engines that are killed and come back.
    #[arg(long, default_value_t = 2)]
    resyncs: u32,
    /// Replicas that are replaced by new ones.
    #[arg(long, default_value_t = 1)]
    replacements: u32,
    /// Kills of all engines at once.
    #[arg(long, default_value_t = 1)]
    kills: u32,
    /// Times that the volume is made larger.
    #[arg(long, default_value_t = 1)]
    growths: u32,
    /// How long clients work between two events, in ms.
    #[arg(long, default_value_t = 60)]
    work_ms: u64,
    /// What the order of events follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the targets' log goes.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// As cargo gives it.
    #[arg(long, short, hide = true)]
    quiet: bool,
    /// Does nothing but name itself, as cargo asks of tests.
    #[arg(long, hide = true)]
    list: bool,
    /// A part of the name of the test.
    #[arg(hide = true)]
    filter: Option<String>,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Failover,
    Resync,
    Replacement,
    Kill,
    Growth,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Resync => "resync",
            Self::Replacement => "replacement",
            Self::Kill => "kill of all",
            Self::Growth => "growth",
        }
    }
}

/// All events, in an order that looks like none.
fn events(arguments: &Arguments, random: &mut Random) -> Vec<Event> {
    let mut all: Vec<Event> = [
        (Event::Failover, arguments.failovers),
        (Event::Resync, arguments.resyncs),
        (Event::Replacement, arguments.replacements),
        (Event::Kill, arguments.kills),
        (Event::Growth, arguments.growths),
    ]
    .into_iter()
    .flat_map(|(event, count)| std::iter::repeat_n(event, count as usize))
    .collect();
    for at in (1..all.len()).rev() {
        all.swap(at, random.next() as usize % (at + 1));
    }
    all
}

struct Run {
    cluster: Cluster,
    random: Random,
    work: Duration,
}

impl Run {
    fn work(&mut self) {
        let share = self.random.next() as u32 % 100;
        std::thread::sleep(self.work * (50 + share) / 100);
    }

    fn serve(&mut self) -> Target {
        let target = self.cluster.open();
        target.start_load(self.random.next() >> 9);
        target
    }

    fn engine(&mut self) -> usize {
        self.random.next() as usize % ENGINES
    }

    /// A new target takes over. The old one may be alive, and may be gone without a word.
    fn fail_over(&mut self, old: Target) -> Target {
        let generation = old.load.generation;
        let is_alive = !self.random.next().is_multiple_of(3);
        // Sometimes with a replica that is away, and that the new target has not heard of.
        let away = self.random.next().is_multiple_of(4).then(|| self.engine());
        if let Some(index) = away {
            self.cluster.kill(index);
        }
        let old = is_alive.then_some(old);
        let new = self.serve();
        self.work();
        if let Some(old) = old {
            wait_until("a target that was superseded stops", || old.stopped().is_some());
            let stopped = old.stopped();
            if stopped != Some(StopReason::Superseded) {
                let model = &self.cluster.model;
                model.mismatch(format!(
                    "target {generation} stopped with {stopped:?} when it was superseded"
                ));
            }
            wait_until("its clients are told", || old.load.has_ended());
        }
        if let Some(index) = away {
            self.cluster.start(index);
        }
        self.cluster.wait_in_sync();
        new
    }

    /// An engine is killed, is away for a while, and comes back.
    fn resync(&mut self) {
        let index = self.engine();
        self.cluster.kill(index);
        let store = &self.cluster.store;
        wait_until("the set shrinks", || store.in_sync() == ENGINES - 1);
        self.work();
        self.cluster.start(index);
        self.cluster.wait_in_sync();
    }

    /// All engines are killed in the middle of everything, and come back.
    fn kill_all(&mut self, old: Target) -> Target {
        self.cluster.kill_all();
        for index in 0..ENGINES {
            self.cluster.start(index);
        }
        wait_until("a target without its replicas stops", || old.stopped().is_some());
        wait_until("its clients are told", || old.load.has_ended());
        self.cluster.model.power_lost();
        let new = self.serve();
        self.cluster.wait_in_sync();
        new
    }
}

/// Tells a person.
pub fn tell(what: std::fmt::Arguments<'_>) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stdout(), "{what}");
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        tell(format_args!("replication: test"));
        return ExitCode::SUCCESS;
    }
    if let Some(path) = &arguments.log {
        let file = std::fs::File::create(path).expect("the file of the log");
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(file)
            .init();
    }
    let started = Instant::now();
    let mut random = Random(arguments.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let events = events(&arguments, &mut random);
    let mut run = Run {
        cluster: Cluster::new(),
        random,
        work: Duration::from_millis(arguments.work_ms),
    };
    let mut target = run.serve();
    let mut longest: BTreeMap<&str, Duration> = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        run.work();
        let begun = Instant::now();
        tracing::info!(number, event = event.name(), "event");
        match event {
            Event::Failover => target = run.fail_over(target),
            Event::Resync => run.resync(),
            Event::Replacement => {
                let index = run.engine();
                run.cluster.replace(index, &target);
                run.cluster.wait_in_sync();
            }
            Event::Kill => target = run.kill_all(target),
            Event::Growth => run.cluster.grow(&target),
        }
        let took = longest.entry(event.name()).or_default();
        *took = begun.elapsed().max(*took);
        if number % 20 == 19 {
            tell(format_args!(
                "{} of {} events, {:?}",
                number + 1,
                events.len(),
                run.cluster.model.totals()
            ));
        }
    }
    run.work();
    target.stop_load();
    let errors = target.load.errors();
    if !errors.is_empty() {
        run.cluster
            .model
            .mismatch(format!("clients of the last target were told {errors:?}"));
    }
    drop(target);
    run.cluster.compare_replicas();
    let totals = run.cluster.model.totals();
    run.cluster.end();
    tell(format_args!(
        "{} failovers, {} resyncs, {} replacements, {} kills of all, {} growths in {:.0?}: {totals:?}",
        arguments.failovers,
        arguments.resyncs,
        arguments.replacements,
        arguments.kills,
        arguments.growths,
        started.elapsed()
    ));
    tell(format_args!(
        "the longest of each, until all replicas were in sync: {longest:.1?}"
    ));
    match totals.mismatches {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
