//! Replicated volumes: many seeds, and deliberate mistakes that the checks must find.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

mod ports;

use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_sim::scenarios::SCENARIOS;
use pollux_sim::scenarios::mirror::{Parts, exercise_mirror};
use pollux_sim::{CampaignOptions, Run, run_campaign};
use pollux_volume::membership::{Epoch, Membership, MembershipStore, StoreFuture};
use pollux_volume::replica::{Commanding, Granted, OpeningSnapshot, Promising, ReplicaCommand, ReplicaPort};
use ports::Port;
use uuid::Uuid;

/// Seeds that each mistake is looked for with.
const SEEDS: u64 = 30;

/// The same for mistakes that take an old target which is cut off and goes on.
const LEASE_SEEDS: u64 = 100;

/// Seeds of the test of flushes.
const FLUSH_SEEDS: u64 = 80;

fn pass(name: &str, seeds: u64) {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
    let options = CampaignOptions {
        seeds: 0..seeds,
        jobs: 2,
        repeat_every: 20,
        failures_max: 1,
    };
    let summary = run_campaign(scenario, &options, |seed| format!("seed {seed}"), |_, _| {});
    assert_eq!(summary.failures, []);
    assert_eq!((summary.runs, summary.repeated), (seeds, seeds / 20));
}

#[test]
fn a_hundred_seeds_pass() {
    pass("mirror", 100);
}

#[test]
fn forty_seeds_of_few_faults_that_come_often_pass() {
    pass("mirror-swarm", 40);
}

#[test]
fn twenty_seeds_with_snapshots_pass() {
    pass("mirror-snapshots", 20);
}

/// What these seeds have to exercise, or they look at nothing: the rare things that lost data once, and what
/// everything else is built upon.
#[test]
fn the_rare_things_come() {
    let always = [
        "volume opened",
        "target superseded",
        "opening superseded",
        "replica joined",
    ];
    let rare = ["replica without room", "write taken back", "last replica failed"];
    let more = ["taken over during a resync", "replicas differed at open"];
    let holes = ["hole told by a remote replica", "blocks copied as holes"];
    let snapshots = ["snapshot cut", "snapshot given", "volume grown", "roll-back done"];
    let taken_over = ["roll-back taken over"];
    let given_holes = ["blocks of snapshots given as holes"];
    let cases: [(&str, u64, &[&[&str]]); 3] = [
        ("mirror", 60, &[&always, &rare, &more, &holes]),
        ("mirror-swarm", 64, &[&always, &rare, &holes]),
        (
            "mirror-snapshots",
            24,
            &[&always, &snapshots, &taken_over, &holes, &given_holes],
        ),
    ];
    for (name, seeds, wanted) in cases {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
        let options = CampaignOptions {
            seeds: 0..seeds,
            jobs: 2,
            repeat_every: 0,
            failures_max: 1,
        };
        let summary = run_campaign(scenario, &options, |seed| format!("seed {seed}"), |_, _| {});
        assert_eq!(summary.failures, []);
        for what in wanted.iter().copied().flatten() {
            let (_, times) = summary.reached[what];
            assert!(times > 0, "{name}: {what} never came: {:?}", summary.reached);
        }
    }
}

/// Replicas whose promises say something else.
struct OtherPromises {
    port: Rc<dyn ReplicaPort>,
    change: fn(Granted) -> Granted,
}

impl ReplicaPort for OtherPromises {
    fn promise(&self, epoch: Epoch) -> Promising {
        let (promising, change) = (self.port.promise(epoch), self.change);
        Box::pin(async move { promising.await.map(change) })
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        self.port.command(epoch, command)
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        self.port.open_snapshot(epoch, cut)
    }

    fn is_local(&self) -> bool {
        self.port.is_local()
    }
}

/// Whether one of some seeds finds a mistake.
fn is_found_within(seeds: u64, parts: impl Fn() -> Parts) -> bool {
    (0..seeds).any(|seed| exercise_mirror(&Run::of_seed(seed), parts()).is_err())
}

#[test]
fn a_target_that_does_not_wait_for_the_lease_of_another_one_is_found() {
    // Nobody had been heard of for long; and leases last longer than most promises are waited for.
    let change = |granted| Granted {
        quiet: Duration::MAX,
        ..granted
    };
    let parts = || Parts {
        port: Rc::new(move |port| Rc::new(OtherPromises { port, change })),
        lease: Rc::new(|_, lease| 4 * lease),
        ..Parts::default()
    };
    assert!(is_found_within(LEASE_SEEDS, parts));
}

#[test]
fn targets_that_read_on_without_answers_are_found() {
    // Every other one takes a lease for longer than those that wait for it.
    let parts = || Parts {
        lease: Rc::new(|number, lease| {
            if number % 2 == 0 {
                lease
            } else {
                Duration::from_secs(3600)
            }
        }),
        ..Parts::default()
    };
    assert!(is_found_within(LEASE_SEEDS, parts));
}

/// A quarter of so many seeds have to find a mistake.
fn require_found_by_a_quarter(seeds: u64, parts: impl Fn() -> Parts) {
    let runs = (0..seeds).map(|seed| exercise_mirror(&Run::of_seed(seed), parts()));
    let found = runs.filter(Result::is_err).count() as u64;
    assert!(found > seeds / 4, "found by {found} of {seeds}");
}

/// What a replica with a mistake makes of each request.
type Act = fn(&Rc<dyn BlockDevice>, Request) -> Completion;

fn with_replicas(act: Act) -> Parts {
    let port = move |port| {
        Rc::new(Port {
            port,
            act: Rc::new(act),
        }) as Rc<dyn ReplicaPort>
    };
    Parts {
        port: Rc::new(port),
        ..Parts::default()
    }
}

#[test]
fn replicas_that_do_not_refuse_an_old_target_are_found() {
    let act: Act = |device, request| {
        let read = match &request {
            Request::Read { into, .. } => Some(into.len()),
            _ => None,
        };
        let completion = device.submit(request);
        Completion::from_future(async move {
            match (completion.await, read) {
                (Err(IoError::Fenced), Some(bytes)) => {
                    Ok(Reply::zeros(pollux_hugepages::Buffer::from_heap(bytes)))
                }
                (Err(IoError::Fenced), None) => Ok(Reply::Done),
                (result, _) => result,
            }
        })
    };
    require_found_by_a_quarter(SEEDS, || with_replicas(act));
}

#[test]
fn intents_that_are_not_kept_are_found() {
    let act: Act = |device, request| {
        let geometry = device.geometry();
        let ratio = 4096 / u64::from(geometry.block_bytes);
        // The two slots of the region map.
        let map = 6 * ratio..8 * ratio;
        match &request {
            Request::Write { block, .. } if map.contains(block) => Completion::done(),
            _ => device.submit(request),
        }
    };
    require_found_by_a_quarter(SEEDS, || with_replicas(act));
}

#[test]
fn flushes_that_do_not_reach_the_replicas_are_found() {
    let act: Act = |device, request| match request {
        Request::Flush => Completion::done(),
        request => device.submit(request),
    };
    // A flush that does nothing is only seen when all in-sync replicas lose their power soon after, and zeros
    // that are lost over zeros are not seen at all: more seeds, not to hang on the luck of a few.
    require_found_by_a_quarter(FLUSH_SEEDS, || with_replicas(act));
}

/// A store that says yes to every smaller set, and forgets it.
struct Forgetful(Rc<dyn MembershipStore>);

impl MembershipStore for Forgetful {
    fn load(&self, volume: Uuid) -> StoreFuture<Membership> {
        self.0.load(volume)
    }

    fn compare_and_swap(&self, next: Membership) -> StoreFuture<()> {
        let store = self.0.clone();
        Box::pin(async move {
            let before = store.load(next.volume).await?;
            if next.in_sync().len() < before.in_sync().len() {
                return Ok(());
            }
            store.compare_and_swap(next).await
        })
    }
}

#[test]
fn a_store_that_forgets_is_found() {
    let parts = || Parts {
        store: Rc::new(|store| Rc::new(Forgetful(store))),
        ..Parts::default()
    };
    assert!(is_found_within(SEEDS, parts));
}
