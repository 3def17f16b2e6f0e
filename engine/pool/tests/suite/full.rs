//! Full pools and tiny ones: what needs space says that there is none, everything else goes on, freeing heals
//! it, nothing is left behind, and no power cut matters.

use std::rc::Rc;

use crate::common::{Bench, Drives, TINY, options, short_journal};
use crate::history::{BLOCK, check_state, data, record_in, values_of};
use pollux_device::{BlockDeviceExt, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::{Pool, PoolOptions, Space, VolumeOptions};
use pollux_sim::{CutPoints, PowerLoss};

async fn make(drives: &Drives, background: bool) -> Rc<Pool> {
    let options = PoolOptions {
        background,
        ..options()
    };
    Pool::create("tank", drives.attach().await, &short_journal(), options)
        .await
        .unwrap()
}

/// Everything that was deleted is given back, and what was freed can be used.
async fn settle(pool: &Rc<Pool>) -> Space {
    pool.reclaim().await.unwrap();
    for _ in 0..3 {
        pool.checkpoint().await.unwrap();
    }
    assert_eq!(pool.stopped(), None);
    pool.space()
}

/// Writes blocks until there is no space; how many it was.
async fn fill(pool: &Rc<Pool>, name: &str, value: u64, step: u64) -> u64 {
    let volume = pool.open_volume(name).unwrap();
    let mut written = 0;
    loop {
        match volume.write(written * step, data(value, 1), false).await {
            Ok(()) => written += 1,
            Err(IoError::CapacityExceeded) => return written,
            Err(error) => panic!("{error}"),
        }
    }
}

fn sizes(devices: usize) -> Vec<u64> {
    [TINY, TINY + 5 * 65536, 2 * TINY, TINY + 65536 / 2][..devices].to_vec()
}

#[test]
fn what_needs_no_space_goes_on_in_a_full_pool() {
    for (devices, background) in [(1, false), (2, true), (3, false), (4, true)] {
        let bench = Bench::of_sizes(1, &sizes(devices));
        bench.run(move |drives| async move {
            let pool = make(&drives, background).await;
            pool.create_volume("a", &VolumeOptions::new(100_000))
                .await
                .unwrap();
            pool.create_volume("b", &VolumeOptions::new(1_000)).await.unwrap();
            let before = settle(&pool).await;
            // One block of each slot, so that each takes an extent.
            let written = fill(&pool, "a", 1, 16).await;
            assert!(
                written * 65536 * 10 > before.free_bytes * 8,
                "{written} of {before:?}"
            );
            let volume = pool.open_volume("a").unwrap();
            // Overwrites, other blocks of the same extents, reads, flushes.
            for slot in 0..written {
                volume.write(slot * 16, data(2, 1), slot % 7 == 0).await.unwrap();
                volume.write(slot * 16 + 3, data(3, 2), false).await.unwrap();
            }
            volume.flush().await.unwrap();
            for slot in 0..written {
                let mut expected = [0; 16];
                (expected[0], expected[3], expected[4]) = (2, 3, 3);
                let bytes = volume
                    .read(slot * 16, Buffer::from_heap(16 * BLOCK))
                    .await
                    .unwrap();
                for (bytes, expected) in bytes.chunks(BLOCK).zip(expected) {
                    assert_eq!(crate::history::value_of(bytes), Ok(expected));
                }
            }
            // What shares and what deletes.
            pool.snapshot("a", "s", 0).await.unwrap();
            pool.clone_snapshot("s", "c", 0).await.unwrap();
            pool.resize("b", 2_000, false).await.unwrap();
            pool.rename("b", "d").await.unwrap();
            assert_eq!(
                volume.write(0, data(4, 1), false).await,
                Err(IoError::CapacityExceeded)
            );
            let bytes = volume.read(0, Buffer::from_heap(BLOCK)).await.unwrap();
            assert_eq!(crate::history::value_of(&bytes), Ok(2));
            pool.delete("c").await.unwrap();
            pool.delete("s").await.unwrap();
            settle(&pool).await;
            volume.write(0, data(4, 1), false).await.unwrap();
            // Deallocation heals it.
            volume.deallocate(16, 16 * 16).await.unwrap();
            volume.flush().await.unwrap();
            let other = pool.open_volume("d").unwrap();
            for slot in 0..3 {
                other.write(slot * 16, data(5, 1), false).await.unwrap();
            }
            drop((volume, other));
            for name in ["a", "d"] {
                pool.delete(name).await.unwrap();
            }
            let after = settle(&pool).await;
            assert_eq!(
                after.free_bytes + after.metadata_bytes,
                before.free_bytes + before.metadata_bytes
            );
            assert!(pool.check().await.unwrap().is_sound());
            pool.export().await.unwrap();
        });
    }
}

#[test]
fn two_hundred_rounds_of_filling_and_freeing_leave_nothing_behind() {
    let bench = Bench::of_sizes(2, &sizes(2));
    bench.run(move |drives| async move {
        let mut pool = make(&drives, false).await;
        pool.create_volume("a", &VolumeOptions::new(10_000))
            .await
            .unwrap();
        let empty = settle(&pool).await;
        let all = empty.free_bytes + empty.metadata_bytes;
        let mut metadata = Vec::new();
        for round in 0..200 {
            let written = match round % 4 {
                // Deallocated.
                0 => {
                    let written = fill(&pool, "a", round, 16).await;
                    let volume = pool.open_volume("a").unwrap();
                    volume.deallocate(0, 10_000).await.unwrap();
                    written
                }
                // Deleted.
                1 => {
                    pool.create_volume("b", &VolumeOptions::new(10_000))
                        .await
                        .unwrap();
                    let written = fill(&pool, "b", round, 16).await;
                    pool.delete("b").await.unwrap();
                    written
                }
                // Held by snapshots, which are deleted in one order or the other.
                2 => {
                    pool.create_volume("b", &VolumeOptions::new(10_000))
                        .await
                        .unwrap();
                    let mut written = 0;
                    for snapshot in 0..3 {
                        let volume = pool.open_volume("b").unwrap();
                        for slot in 0..5 {
                            volume
                                .write((slot + snapshot) * 16, data(round, 1), false)
                                .await
                                .unwrap();
                            written += 1;
                        }
                        drop(volume);
                        pool.snapshot("b", &format!("s{snapshot}"), 0).await.unwrap();
                    }
                    pool.clone_snapshot("s1", "c", 0).await.unwrap();
                    let _ = fill(&pool, "c", round, 16).await;
                    for name in ["s1", "b", "s0", "c", "s2"] {
                        pool.delete(name).await.unwrap();
                        if round % 8 == 2 {
                            pool.reclaim().await.unwrap();
                        }
                    }
                    let _ = fill(&pool, "a", round, 16).await;
                    written
                }
                // And over an import.
                _ => {
                    let written = fill(&pool, "a", round, 16).await;
                    if round % 8 == 3 {
                        pool.export().await.unwrap();
                    }
                    pool = Pool::import(drives.attach().await, options()).await.unwrap().0;
                    let volume = pool.open_volume("a").unwrap();
                    volume.deallocate(0, 10_000).await.unwrap();
                    written
                }
            };
            assert!(written > 10, "round {round}");
            if round % 4 == 2 {
                pool.open_volume("a")
                    .unwrap()
                    .deallocate(0, 10_000)
                    .await
                    .unwrap();
            }
            let space = settle(&pool).await;
            assert_eq!(
                (space.freeing_bytes, space.total_bytes),
                (0, empty.total_bytes),
                "round {round}"
            );
            // Pages share extents, in one way or another: those may be a few more or less, and do not grow.
            metadata.push(space.metadata_bytes / 65536);
            assert_eq!(space.free_bytes + space.metadata_bytes, all, "round {round}");
            if round % 20 == 0 {
                let volume = pool.open_volume("a").unwrap();
                assert_eq!(values_of(&volume, "a", 1_000).await.unwrap(), vec![0; 1_000]);
                assert!(pool.check().await.unwrap().is_sound(), "round {round}");
            }
        }
        let (early, late) = metadata.split_at(40);
        assert!(late.iter().max() <= early.iter().max(), "{metadata:?}");
        pool.delete("a").await.unwrap();
        let after = settle(&pool).await;
        assert!(after.free_bytes >= empty.free_bytes, "{after:?}");
    });
}

/// Random histories in pools that are nearly full all the time, cut at every write.
fn check_almost_full(seeds: std::ops::Range<u64>) {
    let (mut states, mut refused) = (0, 0);
    for seed in seeds {
        let bench = Bench::of_sizes(seed, &sizes(1 + seed as usize % 4)[seed as usize % 4..]);
        let recorded = record_in(&bench, 80, &short_journal(), Some((4 + seed % 7) * 65536));
        refused += recorded.refused;
        let losses = [PowerLoss::LoseAll, PowerLoss::Torn, PowerLoss::Reordered];
        let losses = &losses[seed as usize % 3..=seed as usize % 3];
        for state in recorded.recorder.crash_states(seed, CutPoints::Writes, losses) {
            states += 1;
            check_state(&bench, &recorded, state, &format!("seed {seed}, almost full"));
        }
    }
    assert!(states > 1_000, "{states}");
    assert!(refused > 10, "{refused} steps had no space");
}

#[test]
fn a_power_cut_of_a_pool_that_is_almost_full_loses_nothing_1() {
    check_almost_full(0..6);
}

#[test]
fn a_power_cut_of_a_pool_that_is_almost_full_loses_nothing_2() {
    check_almost_full(6..12);
}
