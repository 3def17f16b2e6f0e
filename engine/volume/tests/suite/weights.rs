//! Shares by weight of volumes that have their data on the same, in virtual time.

mod channels;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDeviceExt, Device};
use pollux_reactor::{now, sleep};
use pollux_sim::{SimReactor, World};
use pollux_volume::qos::{Backend, Limits, Qos, Rate, ThrottledDevice};

use self::channels::Channels;
use crate::load::{Done, Load, READS, connection, request};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn deep(depth: u16) -> Load {
    Load { depth, ..READS }
}

/// A volume, and what it did.
struct Volume {
    device: Arc<ThrottledDevice>,
    done: Vec<Rc<Done>>,
}

impl Volume {
    fn set_weight(&self, weight: u32) {
        let qos = Qos {
            weight: Some(weight),
            ..self.device.throttle().qos()
        };
        self.device.throttle().set(&qos).unwrap();
    }

    fn stop(&mut self) {
        self.done.drain(..).for_each(|done| done.is_stopped.set(true));
    }

    fn operations(&self) -> u64 {
        self.done.iter().map(|done| done.operations.get()).sum()
    }

    fn bytes(&self) -> u64 {
        self.done.iter().map(|done| done.bytes.get()).sum()
    }
}

struct Bench {
    world: World,
    reactors: Vec<SimReactor>,
    drive: Arc<Channels>,
    backend: Arc<Backend>,
    volumes: Vec<Volume>,
}

impl Bench {
    /// A drive that does 8 requests at a time, of 400 us and more by size: 20,000 of 4 KiB in a second.
    fn new(reactors: usize, volumes: usize) -> Self {
        let world = World::new(11);
        let machine = world.add_machine("one");
        let reactors = (0..reactors).map(|_| world.add_reactor(machine)).collect();
        let mut bench = Self {
            world,
            reactors,
            drive: Channels::new(8, Duration::from_micros(400)),
            backend: Backend::new("drive"),
            volumes: Vec::new(),
        };
        for _ in 0..volumes {
            bench.add_volume();
        }
        bench
    }

    fn weighted(reactors: usize, weights: &[u32]) -> Self {
        let bench = Self::new(reactors, weights.len());
        for (volume, weight) in bench.volumes.iter().zip(weights) {
            volume.set_weight(*weight);
        }
        bench
    }

    fn add_volume(&mut self) -> usize {
        let device = ThrottledDevice::new(self.drive.clone());
        device.throttle().join(Some(&self.backend));
        self.volumes.push(Volume {
            device,
            done: Vec::new(),
        });
        self.volumes.len() - 1
    }

    fn connect(&mut self, volume: usize, reactor: usize, load: Load) {
        let done = Rc::new(Done::default());
        let task = connection(self.volumes[volume].device.clone(), load, done.clone());
        drop(self.world.spawn(self.reactors[reactor], task));
        self.volumes[volume].done.push(done);
    }

    /// Operations in a second of each volume.
    fn operations(&self, span: Duration) -> Vec<f64> {
        let count = || self.volumes.iter().map(Volume::operations);
        let before: Vec<_> = count().collect();
        self.world.run_for(span);
        let each = count().zip(before);
        each.map(|(after, before)| (after - before) as f64 / span.as_secs_f64())
            .collect()
    }

    fn bytes(&self, span: Duration) -> Vec<f64> {
        let count = || self.volumes.iter().map(Volume::bytes);
        let before: Vec<_> = count().collect();
        self.world.run_for(span);
        let each = count().zip(before);
        each.map(|(after, before)| (after - before) as f64 / span.as_secs_f64())
            .collect()
    }

    fn held(&self, volume: usize) -> u64 {
        self.volumes[volume].device.throttle().read().requests
    }
}

#[track_caller]
fn assert_within(found: f64, wanted: f64, part: f64) {
    assert!(
        (found - wanted).abs() <= wanted * part,
        "{found} is not within {} % of {wanted}",
        part * 100.0
    );
}

#[track_caller]
fn assert_shares(found: &[f64], weights: &[u32], part: f64) {
    let sum: f64 = found.iter().sum();
    let all: u32 = weights.iter().sum();
    for (found_one, weight) in found.iter().zip(weights) {
        let wanted = sum * f64::from(*weight) / f64::from(all);
        assert!(
            (found_one - wanted).abs() <= wanted * part,
            "{found:?} is not by {weights:?} within {} %",
            part * 100.0
        );
    }
}

/// What the drive can do, with 4 KiB.
const ALL: f64 = 20_000.0;

#[test]
fn shares_are_by_weight_whatever_the_depths_and_reactors() {
    let weights = [100, 300, 50, 1000];
    let mut bench = Bench::weighted(3, &weights);
    bench.connect(0, 0, deep(256));
    bench.connect(1, 0, deep(16));
    bench.connect(1, 1, deep(64));
    bench.connect(2, 1, deep(128));
    bench.connect(2, 2, deep(128));
    bench.connect(3, 2, deep(64));
    bench.connect(3, 0, deep(32));
    bench.operations(SECOND);
    let found = bench.operations(4 * SECOND);
    assert_shares(&found, &weights, 0.03);
    // And the drive has enough to do.
    assert_within(found.iter().sum(), ALL, 0.05);
    // Without more than that.
    assert!(bench.backend.bound() <= 8 * 16 * 2, "{}", bench.backend.bound());
}

#[test]
fn shares_are_of_cost_whatever_the_sizes() {
    let weights = [100, 100, 200];
    let mut bench = Bench::weighted(2, &weights);
    let blocks = [1, 8, 32];
    for (volume, blocks) in blocks.into_iter().enumerate() {
        let load = Load {
            blocks,
            depth: 128 >> (2 * volume),
            writes: volume == 1,
        };
        bench.connect(volume, volume % 2, load);
        bench.connect(volume, (volume + 1) % 2, load);
    }
    bench.operations(SECOND);
    let bytes = bench.bytes(4 * SECOND);
    let cost = |(bytes, blocks): (&f64, usize)| bytes / 4096.0 * (8.0 + 8.0 / blocks as f64);
    let found: Vec<_> = bytes.iter().zip(blocks).map(cost).collect();
    assert_shares(&found, &weights, 0.04);
}

#[test]
fn what_others_do_not_use_is_given_to_those_who_can() {
    let mut bench = Bench::weighted(2, &[1000, 100, 100]);
    // Asks for little: a request at a time, with pauses by what it takes.
    bench.connect(0, 0, deep(2));
    bench.connect(1, 0, deep(64));
    bench.connect(2, 1, deep(64));
    bench.operations(SECOND);
    let found = bench.operations(3 * SECOND);
    // As many as two at a time can be, but for what is under way when they come.
    assert!(found[0] > 2500.0, "{found:?}");
    assert_shares(&found[1..], &[100, 100], 0.03);
    assert_within(found.iter().sum(), ALL, 0.05);
    // A volume at its limit is not one that waits for its share.
    let limited = Qos {
        total: Limits {
            operations: Some(Rate::new(2000)),
            bytes: None,
        },
        ..bench.volumes[0].device.throttle().qos()
    };
    bench.connect(0, 1, deep(64));
    bench.volumes[0].device.throttle().set(&limited).unwrap();
    bench.operations(SECOND);
    let found = bench.operations(3 * SECOND);
    assert_within(found[0], 2000.0, 0.02);
    assert_within(found.iter().sum(), ALL, 0.05);
}

#[test]
fn a_volume_that_comes_back_has_its_share_at_once_and_no_more() {
    let weights = [100, 100, 200];
    let mut bench = Bench::weighted(2, &weights);
    bench.connect(0, 0, deep(64));
    bench.connect(1, 1, deep(64));
    bench.connect(2, 1, deep(64));
    bench.operations(SECOND);
    for round in 0..4_u32 {
        bench.volumes[2].stop();
        bench.operations(MILLISECOND * 20);
        let found = bench.operations(SECOND * (round + 1));
        assert_shares(&found[..2], &[100, 100], 0.03);
        assert_within(found.iter().sum(), ALL, 0.05);
        bench.connect(2, (round % 2) as usize, deep(64));
        // Within 20 ms, of which the bound may be lower for some.
        bench.operations(MILLISECOND * 20);
        let found = bench.operations(MILLISECOND * 200);
        assert_shares(&found, &weights, 0.06);
    }
}

#[test]
fn one_that_was_alone_owes_nothing() {
    let weights = [1, 10_000];
    let mut bench = Bench::weighted(1, &weights);
    bench.connect(0, 0, deep(64));
    let alone = bench.operations(3 * SECOND);
    assert_within(alone[0], ALL, 0.05);
    assert_eq!(bench.held(0), 0, "alone it has everything");
    bench.connect(1, 0, deep(64));
    bench.operations(SECOND);
    let found = bench.operations(2 * SECOND);
    assert!(found[1] > ALL * 0.9, "{found:?}");
    bench.volumes[1].stop();
    // The other one is not there any more after 50 ms, and what is held passes.
    bench.operations(MILLISECOND * 70);
    let alone = bench.operations(SECOND);
    assert_within(alone[0], ALL, 0.05);
    assert_eq!(bench.volumes[0].device.throttle().read().waiting, 0);
}

#[test]
fn weights_change_while_requests_wait() {
    let mut bench = Bench::weighted(2, &[1, 1000]);
    for volume in 0..2 {
        for reactor in 0..2 {
            let load = Load {
                blocks: if volume == 0 { 32 } else { 1 },
                depth: if volume == 0 { 16 } else { 128 },
                ..READS
            };
            bench.connect(volume, reactor, load);
        }
    }
    bench.operations(SECOND);
    for weights in [[1000, 1000], [10_000, 100], [100, 300]] {
        bench.volumes[0].set_weight(weights[0]);
        bench.volumes[1].set_weight(weights[1]);
        bench.operations(MILLISECOND * 50);
        let bytes = bench.bytes(2 * SECOND);
        let cost = [bytes[0] * (8.0 + 8.0 / 32.0), bytes[1] * 16.0];
        assert_shares(&cost, &weights, 0.05);
    }
    // The last weight goes, and with it all that is held.
    for volume in &bench.volumes {
        volume.device.throttle().set(&Qos::default()).unwrap();
    }
    bench.operations(MILLISECOND * 20);
    let held = bench.held(0) + bench.held(1);
    bench.operations(SECOND);
    assert_eq!(bench.held(0) + bench.held(1), held);
    assert_eq!(bench.backend.outstanding(), 0);
}

#[test]
fn without_weights_nothing_changes() {
    let run = |shared: bool| {
        let mut bench = Bench::new(2, 2);
        for volume in &bench.volumes {
            let backend = Some(&bench.backend).filter(|_| shared);
            volume.device.throttle().join(None);
            volume.device.throttle().join(backend);
        }
        bench.connect(0, 0, deep(96));
        bench.connect(1, 1, deep(32));
        let found = bench.operations(2 * SECOND);
        assert_eq!(bench.held(0) + bench.held(1), 0);
        found
    };
    let found = run(true);
    assert_eq!(found, run(false));
    // By what they have under way, as ever.
    assert_shares(&found, &[96, 32], 0.05);
}

#[test]
fn a_drive_that_becomes_slow_is_shared_all_the_same() {
    let weights = [100, 400];
    let mut bench = Bench::weighted(2, &weights);
    bench.connect(0, 0, deep(128));
    bench.connect(1, 1, deep(64));
    bench.operations(2 * SECOND);
    for (channels, micros) in [(8, 4000), (2, 2000), (24, 1000), (8, 400)] {
        bench.drive.set(channels, Duration::from_micros(micros));
        // Measured within 2 s, and then step by step.
        bench.operations(5 * SECOND);
        let found = bench.operations(4 * SECOND);
        let all = channels as f64 * 1e6 / micros as f64;
        assert_shares(&found, &weights, 0.05);
        assert_within(found.iter().sum(), all, 0.08);
        let bound = bench.backend.bound();
        assert!(bound <= channels as u64 * 16 * 2, "{bound} for {channels}");
    }
}

#[test]
fn what_is_dropped_is_taken_back_and_costs_nothing() {
    let weights = [100, 100];
    let mut bench = Bench::weighted(2, &weights);
    bench.connect(0, 0, deep(64));
    bench.connect(1, 1, deep(64));
    bench.operations(SECOND);
    // Of the first, besides, very many that are not wanted for long.
    let device: Arc<dyn Device> = bench.volumes[0].device.clone();
    let (held, under_way) = (Rc::new(Cell::new(0_u64)), Rc::new(Cell::new(0_u64)));
    let counts = (held.clone(), under_way.clone());
    let task = async move {
        let queue = device.attach().await.unwrap();
        loop {
            let large = Load { blocks: 64, ..READS };
            let all: Vec<_> = (0..20).map(|_| queue.submit(request(large))).collect();
            for completion in &all {
                let of = if completion.is_held() {
                    &counts.0
                } else {
                    &counts.1
                };
                of.set(of.get() + 1);
            }
            // Before the turn of most.
            sleep(Duration::from_micros(20)).await;
            drop(all);
        }
    };
    let task = bench.world.spawn(bench.reactors[0], task);
    let found = bench.operations(SECOND);
    assert!(held.get() > 2000, "{} {}", held.get(), under_way.get());
    // What began before it was dropped has to be paid for, and is no more than its share.
    let lost = under_way.get() as f64;
    assert!(lost < held.get() as f64 * 0.2, "{} {lost}", held.get());
    assert!(found[1] > ALL * 0.45, "{found:?} {lost}");
    drop(task);
    assert!(bench.volumes[1].device.throttle().read().waiting > 0);
}

#[test]
fn flushes_pass_and_so_does_a_request_of_any_size() {
    let mut bench = Bench::weighted(1, &[1, 10_000]);
    bench.connect(1, 0, deep(256));
    let device: Arc<dyn Device> = bench.volumes[0].device.clone();
    let probe = bench.world.spawn(bench.reactors[0], async move {
        let queue = device.attach().await.unwrap();
        sleep(MILLISECOND * 200).await;
        let held: Vec<_> = (0..10).map(|_| queue.submit(request(READS))).collect();
        sleep(MILLISECOND * 20).await;
        let more = queue.submit(request(READS));
        assert!(more.is_held());
        let began = now();
        queue.flush().await.unwrap();
        assert!(now().saturating_since(began) < MILLISECOND);
        drop((held, more));
        let large = Load {
            blocks: 1024,
            ..READS
        };
        queue.submit(request(large)).await.unwrap();
    });
    bench.world.run_for(3 * SECOND);
    assert!(probe.is_ended());
}

#[test]
fn a_volume_that_is_stuck_holds_up_nobody_for_long() {
    let weights = [1000, 100, 100];
    let mut bench = Bench::weighted(2, &weights);
    bench.connect(1, 0, deep(64));
    bench.connect(2, 1, deep(64));
    let stuck = Channels::new(8, Duration::from_micros(400));
    let device = ThrottledDevice::new(stuck.clone());
    device.throttle().join(Some(&bench.backend));
    bench.volumes[0].device = device;
    bench.volumes[0].set_weight(1000);
    bench.connect(0, 0, deep(128));
    bench.connect(0, 1, deep(128));
    bench.operations(SECOND);
    stuck.set_stuck(true);
    // Until what it has under way is written off.
    bench.operations(SECOND);
    let found = bench.operations(2 * SECOND);
    assert_eq!(found[0], 0.0);
    assert_shares(&found[1..], &[100, 100], 0.05);
    assert_within(found.iter().sum(), ALL, 0.05);
    // And it has its share again when it goes on.
    stuck.set_stuck(false);
    bench.operations(SECOND);
    let found = bench.operations(SECOND);
    assert!(found[0] > 5_000.0, "{found:?}");
}

#[test]
fn a_backend_that_is_stuck_is_no_matter_to_others() {
    let mut bench = Bench::weighted(1, &[100, 100]);
    let (stuck, other) = (
        Channels::new(8, Duration::from_micros(400)),
        Backend::new("other"),
    );
    let mut devices = Vec::new();
    for _ in 0..2 {
        let device = ThrottledDevice::new(stuck.clone());
        device.throttle().join(Some(&other));
        let qos = Qos {
            weight: Some(10_000),
            ..Qos::default()
        };
        device.throttle().set(&qos).unwrap();
        let task = connection(device.clone(), READS, Rc::default());
        drop(bench.world.spawn(bench.reactors[0], task));
        devices.push(device);
    }
    bench.connect(0, 0, deep(64));
    bench.connect(1, 0, deep(64));
    bench.operations(SECOND);
    stuck.set_stuck(true);
    let found = bench.operations(SECOND);
    assert_shares(&found, &[100, 100], 0.03);
    assert_within(found.iter().sum(), ALL, 0.05);
    // Nobody waits any more for a volume that is to go.
    for device in &devices {
        device.throttle().lift();
    }
    bench.operations(MILLISECOND * 20);
    assert!(devices.iter().all(|device| device.throttle().read().waiting == 0));
}

#[test]
fn volumes_come_and_go_and_nothing_is_left_behind() {
    let mut bench = Bench::weighted(3, &[100]);
    bench.connect(0, 0, deep(64));
    for round in 0..40_u32 {
        let volume = bench.add_volume();
        bench.volumes[volume].set_weight(1 + round * 50);
        for reactor in 0..3 {
            bench.connect(volume, reactor, deep(1 + (round * 7 % 50) as u16));
        }
        bench.operations(MILLISECOND * 30);
        if round % 3 == 0 {
            bench.volumes[volume].device.throttle().join(None);
        }
        if round % 2 == 0 {
            bench.volumes[volume].stop();
        }
        if bench.volumes.len() > 4 {
            bench.volumes[1].stop();
            let gone = bench.volumes.remove(1);
            if round % 5 == 0 {
                gone.device.throttle().lift();
            }
        }
    }
    bench.volumes.iter_mut().for_each(Volume::stop);
    bench.world.run_for(SECOND);
    assert_eq!(bench.backend.outstanding(), 0);
    for volume in &bench.volumes {
        assert_eq!(volume.device.throttle().read().waiting, 0);
    }
}

#[test]
fn a_reactor_that_stands_still_does_not_hold_up_others() {
    let weights = [100, 100];
    let mut bench = Bench::weighted(2, &weights);
    bench.connect(0, 0, deep(64));
    bench.connect(1, 1, deep(64));
    bench.operations(SECOND);
    bench.world.stall(bench.reactors[0], SECOND);
    // Its volume is there for others for another 50 ms, and nobody waits for it for that long.
    let found = bench.operations(MILLISECOND * 40);
    assert!(found[1] > ALL * 0.3, "{found:?}");
    let found = bench.operations(MILLISECOND * 500);
    assert!(found[1] > ALL * 0.4, "{found:?}");
    bench.operations(SECOND);
    let found = bench.operations(SECOND);
    assert_shares(&found, &weights, 0.05);
}
