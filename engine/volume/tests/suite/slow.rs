//! Replicas that are far slower than others: taken out, tested, let back in, given up; and those that are
//! not.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::BlockDeviceExt;
use pollux_reactor::{now, sleep};
use pollux_volume::membership::{Membership, ReplicaState};
use pollux_volume::mirror::{Mirror, Pace, SlowOptions};

use crate::common::{BLOCKS, Cluster, REGION, VOLUME, data, id};

/// Times as slow as usual: a write takes 4 to 16 ms.
const SLOWDOWN: u32 = 400;

/// A window longer than the longest flush of a slow drive: in a shorter one, chance makes one replica look
/// far slower than another that is as slow.
const LONG_WINDOW: Duration = Duration::from_millis(500);

fn cluster(replicas: usize, min_in_sync: u8) -> Cluster {
    let mut cluster = Cluster::new(11, replicas);
    cluster.options.slow = SlowOptions {
        factor: 5,
        floor: Duration::from_millis(2),
        window: Duration::from_millis(100),
        windows: 3,
        test_pause: Duration::from_millis(200),
        outs_max: 2,
        outs_within: Duration::from_secs(600),
    };
    let record = cluster.store.inner.get(VOLUME).unwrap();
    let next = Membership {
        min_in_sync,
        ..record.next()
    };
    cluster.store.inner.swap(next).unwrap();
    cluster
}

/// Writes from several hosts until it is dropped.
struct Load {
    is_over: Rc<Cell<bool>>,
    written: Rc<Cell<u64>>,
    longest: Rc<Cell<Duration>>,
}

impl Load {
    fn start(cluster: &Cluster, mirror: &Mirror) -> Self {
        Self::start_on(cluster, mirror, BLOCKS)
    }

    /// Only on so many blocks.
    fn start_on(cluster: &Cluster, mirror: &Mirror, blocks: u64) -> Self {
        let load = Self {
            is_over: Rc::default(),
            written: Rc::default(),
            longest: Rc::default(),
        };
        for host in 0..8 {
            let (device, is_over) = (mirror.device(), load.is_over.clone());
            let (written, longest) = (load.written.clone(), load.longest.clone());
            drop(cluster.world.spawn(cluster.reactor, async move {
                let mut block = host;
                while !is_over.get() {
                    let began = now();
                    device.write(block, data(host as u8 + 1), false).await.unwrap();
                    longest.set(longest.get().max(now().saturating_since(began)));
                    written.set(written.get() + 1);
                    block = (block + 8) % blocks;
                    sleep(Duration::from_millis(8)).await;
                }
            }));
        }
        load
    }

    /// How many writes there are in a second.
    fn speed(&self, cluster: &Cluster) -> u64 {
        let before = self.written.get();
        cluster.world.run_for(Duration::from_millis(200));
        (self.written.get() - before) * 5
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.set(true);
    }
}

fn slow_down(cluster: &Cluster, index: usize, slowdown: u32) {
    cluster.drives[index].change_faults(|faults| faults.slowdown = slowdown);
}

fn pace(mirror: &Mirror, index: usize) -> Pace {
    let found = mirror
        .replicas()
        .into_iter()
        .find(|replica| replica.id == id(index));
    found.unwrap().pace
}

#[test]
fn a_slow_replica_is_taken_out_tested_and_let_back_in() {
    let cluster = cluster(3, 1);
    let mirror = cluster.open();
    let load = Load::start(&cluster, &mirror);
    cluster.world.run_for(Duration::from_millis(500));
    assert_eq!((cluster.in_sync(), pace(&mirror, 2)), (3, Pace::Well));
    slow_down(&cluster, 2, SLOWDOWN);
    cluster.wait_in_sync(2);
    assert!(matches!(pace(&mirror, 2), Pace::Out { .. }));
    assert_eq!((mirror.counters().slow, mirror.counters().failures), (1, 1));
    // Hosts do not wait for it any more.
    assert!(load.speed(&cluster) > 600);
    // It is tested, and is as slow as before.
    cluster.world.run_for(Duration::from_secs(8));
    assert!(
        matches!(
            pace(&mirror, 2),
            Pace::Out {
                failed_tests: 1..,
                ..
            }
        ),
        "{:?}",
        pace(&mirror, 2)
    );
    assert_eq!(cluster.in_sync(), 2);
    let status = mirror.replicas();
    assert!(status[2].missed_bytes > 0 && status[2].state == ReplicaState::Behind);
    slow_down(&cluster, 2, 1);
    cluster.wait_in_sync(3);
    assert_eq!(pace(&mirror, 2), Pace::Well);
    drop(load);
    cluster.world.run_for(Duration::from_secs(2));
    cluster.assert_identical(&[0, 1, 2]);
}

#[test]
fn a_replica_that_never_answers_is_taken_out_before_its_requests_time_out() {
    let cluster = cluster(3, 1);
    let mirror = cluster.open();
    let load = Load::start(&cluster, &mirror);
    cluster.world.run_for(Duration::from_millis(300));
    cluster.drives[1].change_faults(|faults| faults.stuck = true);
    cluster.wait_in_sync(2);
    // Those who wait look now and then.
    cluster.world.run_for(Duration::from_millis(200));
    assert!(load.speed(&cluster) > 600);
    assert!(
        load.longest.get() < Duration::from_secs(1),
        "{:?}",
        load.longest.get()
    );
    // It is not slow, and comes back as soon as it answers.
    assert_eq!((pace(&mirror, 1), mirror.counters().slow), (Pace::Well, 0));
    cluster.drives[1].change_faults(|faults| faults.stuck = false);
    cluster.wait_in_sync(3);
    assert!(cluster.options.request_timeout > Duration::from_secs(4));
}

#[test]
fn no_more_are_taken_out_than_can_be_done_without() {
    for (replicas, min_in_sync) in [(2, 2), (3, 3), (1, 1)] {
        let cluster = cluster(replicas, min_in_sync);
        let mirror = cluster.open();
        let load = Load::start(&cluster, &mirror);
        cluster.world.run_for(Duration::from_millis(300));
        slow_down(&cluster, replicas - 1, SLOWDOWN);
        cluster.world.run_for(Duration::from_secs(3));
        assert_eq!((cluster.in_sync(), mirror.counters().failures), (replicas, 0));
        let is_known = matches!(pace(&mirror, replicas - 1), Pace::Slow(3..));
        assert_eq!(is_known, replicas > 1);
        assert!(load.written.get() > 0);
    }
}

#[test]
fn who_is_as_slow_as_everybody_is_not_slow() {
    let mut cluster = cluster(3, 1);
    cluster.options.slow.window = LONG_WINDOW;
    let mirror = cluster.open();
    let _load = Load::start(&cluster, &mirror);
    (0..3).for_each(|index| slow_down(&cluster, index, SLOWDOWN));
    cluster.world.run_for(Duration::from_secs(5));
    // Nor is one of two that are.
    slow_down(&cluster, 0, 1);
    cluster.world.run_for(Duration::from_secs(5));
    assert_eq!((cluster.in_sync(), mirror.counters().failures), (3, 0));
}

#[test]
fn who_is_short_of_resources_is_not_slow() {
    let cluster = cluster(3, 1);
    let mirror = cluster.open();
    let load = Load::start(&cluster, &mirror);
    cluster.drives[2].change_faults(|faults| {
        faults.shortage_probability = 0.5;
        faults.slowdown = SLOWDOWN;
    });
    cluster.world.run_for(Duration::from_secs(5));
    assert_eq!((cluster.in_sync(), mirror.counters().failures), (3, 0));
    assert!(load.written.get() > 0);
}

#[test]
fn who_is_slow_again_and_again_is_given_up_until_it_is_needed() {
    let mut cluster = cluster(3, 2);
    cluster.options.slow.window = LONG_WINDOW;
    let mirror = cluster.open();
    let _load = Load::start(&cluster, &mirror);
    for _ in 0..2 {
        slow_down(&cluster, 2, SLOWDOWN);
        cluster.wait_in_sync(2);
        slow_down(&cluster, 2, 1);
        cluster.wait_in_sync(3);
    }
    slow_down(&cluster, 2, SLOWDOWN);
    cluster.wait_in_sync(2);
    assert_eq!(pace(&mirror, 2), Pace::GivenUp);
    slow_down(&cluster, 2, 1);
    cluster.world.run_for(Duration::from_secs(20));
    assert_eq!((cluster.in_sync(), mirror.counters().slow), (2, 3));
    // With another one lost, writes would wait without it.
    cluster.paths[1].cut.set(true);
    cluster.world.run_for(Duration::from_secs(5));
    let record = cluster.store.inner.get(VOLUME).unwrap();
    let in_sync: Vec<_> = record.in_sync().iter().map(|slot| slot.index()).collect();
    assert_eq!(in_sync, [0, 2]);
}

#[test]
fn a_replica_that_only_a_resync_makes_slow_is_back_in_the_end() {
    let mut cluster = cluster(3, 1);
    // A region and a half in a second, of sixteen.
    cluster.options.resync_bytes_per_second = Some(48 << 10);
    cluster.options.slow.window = Duration::from_secs(1);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        for block in 0..BLOCKS {
            device.write(block, data(7), false).await.unwrap();
        }
    });
    // It misses all of the volume, and then hosts write some blocks all the time, which are copied first.
    cluster.paths[2].cut.set(true);
    cluster.with(&mirror, async |device| {
        for block in 0..BLOCKS {
            device.write(block, data(8), false).await.unwrap();
        }
    });
    let _load = Load::start_on(&cluster, &mirror, REGION);
    cluster.paths[2].cut.set(false);
    let (mut times_out, outs_max) = (0, u64::from(cluster.options.slow.outs_max));
    for _ in 0..6000 {
        let status = mirror.replicas();
        if cluster.in_sync() == 3 {
            break;
        }
        slow_down(&cluster, 2, if status[2].is_resyncing { SLOWDOWN } else { 1 });
        times_out = mirror.counters().slow;
        assert_ne!(status[2].pace, Pace::GivenUp, "after {times_out} times");
        cluster.world.run_for(Duration::from_millis(10));
    }
    assert_eq!(cluster.in_sync(), 3, "{:?}", mirror.replicas());
    assert!(times_out > outs_max, "it was not slow often enough: {times_out}");
}

#[test]
fn windows_before_a_replica_failed_do_not_count_when_it_is_back() {
    let cluster = cluster(3, 1);
    let mirror = cluster.open();
    let _load = Load::start(&cluster, &mirror);
    slow_down(&cluster, 2, SLOWDOWN);
    for _ in 0..100 {
        if matches!(pace(&mirror, 2), Pace::Slow(2)) {
            break;
        }
        cluster.world.run_for(Duration::from_millis(10));
    }
    assert_eq!(pace(&mirror, 2), Pace::Slow(2));
    cluster.paths[2].cut.set(true);
    cluster.wait_in_sync(2);
    assert_eq!(pace(&mirror, 2), Pace::Well);
    cluster.paths[2].cut.set(false);
    slow_down(&cluster, 2, 1);
    cluster.wait_in_sync(3);
    assert_eq!((pace(&mirror, 2), mirror.counters().slow), (Pace::Well, 0));
}

#[test]
fn a_slow_local_replica_is_not_read_from() {
    let cluster = cluster(2, 2);
    let mirror = cluster.open();
    let _load = Load::start(&cluster, &mirror);
    slow_down(&cluster, 0, SLOWDOWN);
    cluster.world.run_for(Duration::from_secs(1));
    assert!(matches!(pace(&mirror, 0), Pace::Slow(_)));
    let before = cluster.drives[0].counters().reads;
    cluster.with(&mirror, async |device| {
        for block in 0..60 {
            device.read(block, data(0)).await.unwrap();
        }
    });
    // But for some that only ask whether it has promised to somebody else meanwhile.
    assert!(cluster.drives[0].counters().reads < before + 20);
}

#[test]
fn an_idle_volume_is_not_looked_at() {
    let cluster = cluster(3, 1);
    let mirror = cluster.open();
    cluster.with(&mirror, async |device| {
        device.write(1, data(1), false).await.unwrap();
    });
    // All that is retired in the background has come to its end.
    cluster.world.run_for(Duration::from_secs(10));
    let before = cluster.world.trace_entries();
    cluster.world.run_for(Duration::from_secs(10));
    let turns = cluster.world.trace_entries() - before;
    assert!(turns < 60, "{turns}");
}
