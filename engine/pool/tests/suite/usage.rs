//! What volumes and snapshots are said to use: what is unique to one is what its deletion gives back.

use std::rc::Rc;

use crate::common::{Bench, options};
use pollux_device::{BlockDeviceExt, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::layout::EXTENT_BYTES;
use pollux_pool::layout::volume::VolumeKind;
use pollux_pool::{CreateOptions, Pool, Usage, VolumeOptions};
use pollux_sim::Random;

const BLOCK: usize = 4096;
/// Two leaves of a map and a bit.
const BLOCKS: u64 = 1100;

async fn pool_of(bench_drives: crate::common::Drives) -> Rc<Pool> {
    let create = CreateOptions::default();
    Pool::create("tank", bench_drives.attach().await, &create, options())
        .await
        .unwrap()
}

/// Bytes of extents with data, but for a constant.
async fn data_bytes(pool: &Rc<Pool>) -> u64 {
    pool.reclaim().await.unwrap();
    for _ in 0..2 {
        pool.checkpoint().await.unwrap();
    }
    let space = pool.space();
    assert_eq!(space.freeing_bytes, 0);
    space.total_bytes - space.free_bytes - space.metadata_bytes
}

async fn usages(pool: &Rc<Pool>) -> Vec<(String, Usage)> {
    let mut all = Vec::new();
    for entry in pool.volumes() {
        let usage = pool.usage(&entry.name).await.unwrap();
        assert_eq!(pool.usage(&entry.name).await.unwrap(), usage, "asked again");
        assert!(usage.unique_bytes <= usage.used_bytes);
        all.push((entry.name, usage));
    }
    all
}

#[test]
fn a_snapshot_shares_all_until_something_is_written() {
    let bench = Bench::new(1, 1);
    bench.run(|drives| async move {
        let pool = pool_of(drives).await;
        pool.create_volume("a", &VolumeOptions::new(BLOCKS))
            .await
            .unwrap();
        assert_eq!(pool.usage("a").await.unwrap(), Usage::default());
        let volume = pool.open_volume("a").unwrap();
        volume
            .write(0, Buffer::from_heap(160 * BLOCK), false)
            .await
            .unwrap();
        let extents = |used: u64, unique: u64| Usage {
            used_bytes: used * EXTENT_BYTES,
            unique_bytes: unique * EXTENT_BYTES,
        };
        assert_eq!(pool.usage("a").await.unwrap(), extents(10, 10));
        pool.snapshot("a", "s", 0).await.unwrap();
        assert_eq!(pool.usage("a").await.unwrap(), extents(10, 0));
        assert_eq!(pool.usage("s").await.unwrap().shared_bytes(), 10 * EXTENT_BYTES);
        // One block: a fresh extent beside the one that is shared.
        volume.write(17, Buffer::from_heap(BLOCK), false).await.unwrap();
        assert_eq!(pool.usage("a").await.unwrap(), extents(11, 1));
        // A whole slot: the shared extent is no longer reached from here.
        volume
            .write(32, Buffer::from_heap(16 * BLOCK), false)
            .await
            .unwrap();
        assert_eq!(pool.usage("a").await.unwrap(), extents(11, 2));
        assert_eq!(pool.usage("s").await.unwrap(), extents(10, 1));
        // Overwritten in place.
        volume
            .write(32, Buffer::from_heap(16 * BLOCK), false)
            .await
            .unwrap();
        assert_eq!(pool.usage("a").await.unwrap(), extents(11, 2));
    });
}

/// Two snapshots, of which the newer one has all from the older one, a clone of each, and everybody has
/// written all anew: nothing is held for snapshots that are gone, in whatever order they go.
#[test]
fn deleted_snapshots_hold_nothing_that_nobody_sees() {
    let orders = [["older", "newer"], ["newer", "older"]];
    for (order, is_reclaimed_at_once) in orders
        .into_iter()
        .flat_map(|order| [(order, true), (order, false)])
    {
        let bench = Bench::new(1, 2);
        bench.run(move |drives| async move {
            let pool = pool_of(drives).await;
            let empty = data_bytes(&pool).await;
            let extents = async || (data_bytes(&pool).await - empty) / EXTENT_BYTES;
            let options = VolumeOptions::new(BLOCKS);
            pool.create_volume("volume", &options).await.unwrap();
            let write = async |name: &str, blocks: usize| {
                let volume = pool.open_volume(name).unwrap();
                let data = Buffer::from_heap(blocks * BLOCK);
                volume.write(0, data, false).await.unwrap();
            };
            write("volume", 640).await;
            pool.snapshot("volume", "older", 0).await.unwrap();
            pool.clone_snapshot("older", "of older", 0).await.unwrap();
            pool.snapshot("volume", "newer", 0).await.unwrap();
            pool.clone_snapshot("newer", "of newer", 0).await.unwrap();
            // One has a slot of it still, which is not freed.
            for (name, blocks) in [("volume", 640), ("of older", 640), ("of newer", 624)] {
                write(name, blocks).await;
            }
            assert_eq!(extents().await, 4 * 40 - 1);
            for name in order {
                pool.delete(name).await.unwrap();
                if is_reclaimed_at_once {
                    pool.reclaim().await.unwrap();
                }
            }
            assert_eq!(extents().await, 3 * 40, "{order:?}");
            assert_eq!(pool.deleting(), 2, "both are there still, for their clones");
            assert!(pool.check().await.unwrap().is_sound());
            pool.delete("of older").await.unwrap();
            pool.delete("volume").await.unwrap();
            assert_eq!(extents().await, 40);
            assert_eq!(pool.deleting(), 0);
            let usage = pool.usage("of newer").await.unwrap();
            assert_eq!((usage.unique_bytes, usage.shared_bytes()), (40 * EXTENT_BYTES, 0));
        });
    }
}

/// A snapshot that is gone, and its volume and clone that have written all anew since: what it had is found
/// once there is no space left.
#[test]
fn what_deleted_snapshots_hold_is_looked_for_when_space_is_short() {
    let bench = Bench::new(1, 1);
    bench.run(|drives| async move {
        let pool = pool_of(drives).await;
        let write_all = async |name: &str, slots: u64| {
            let volume = pool.open_volume(name).unwrap();
            for slot in 0..slots {
                let data = Buffer::from_heap(16 * BLOCK);
                if let Err(error) = volume.write(slot * 16, data, false).await {
                    assert_eq!(error, IoError::CapacityExceeded);
                    return slot;
                }
            }
            slots
        };
        pool.create_volume("volume", &VolumeOptions::new(BLOCKS))
            .await
            .unwrap();
        write_all("volume", 40).await;
        pool.snapshot("volume", "snapshot", 0).await.unwrap();
        pool.clone_snapshot("snapshot", "clone", 0).await.unwrap();
        pool.delete("snapshot").await.unwrap();
        let before = data_bytes(&pool).await;
        write_all("volume", 40).await;
        write_all("clone", 40).await;
        assert_eq!(data_bytes(&pool).await, before + 80 * EXTENT_BYTES);
        pool.create_volume("other", &VolumeOptions::new(1 << 20))
            .await
            .unwrap();
        let slots = write_all("other", 1 << 16).await;
        assert!(slots < 1 << 16);
        let full = data_bytes(&pool).await;
        assert_eq!(full, before + (40 + slots) * EXTENT_BYTES);
        // Pages of the maps may take a few of them.
        assert!(write_all("other", slots + 40).await > slots + 32);
    });
}

#[test]
fn what_is_unique_is_what_deletion_gives_back() {
    let mut deletions = 0;
    for seed in 0..12 {
        let bench = Bench::new(seed, 1 + seed as usize % 2);
        let mut random = bench.world.random("usage", 0);
        deletions += bench.run(move |drives| async move {
            let pool = pool_of(drives).await;
            pool.create_volume("v0", &VolumeOptions::new(BLOCKS))
                .await
                .unwrap();
            let mut deletions = 0;
            for step in 1..120 {
                deletions += act(&pool, &mut random, step).await;
            }
            deletions
        });
    }
    assert!(deletions > 40, "{deletions}");
}

/// Does something; how many were deleted and compared.
async fn act(pool: &Rc<Pool>, random: &mut Random, step: u64) -> u64 {
    let entries = pool.volumes();
    let Some(entry) = random.pick(&entries).cloned() else {
        let options = VolumeOptions::new(BLOCKS);
        pool.create_volume(&format!("v{step}"), &options).await.unwrap();
        return 0;
    };
    let is_volume = entry.kind == VolumeKind::Volume;
    match random.within(0..=9) {
        0 | 1 if is_volume => {
            pool.snapshot(&entry.name, &format!("s{step}"), 0).await.unwrap();
        }
        0 | 1 => {
            pool.clone_snapshot(&entry.name, &format!("v{step}"), 0)
                .await
                .unwrap();
        }
        2 => {
            let before = data_bytes(pool).await;
            let usage = pool.usage(&entry.name).await.unwrap();
            pool.delete(&entry.name).await.unwrap();
            let after = data_bytes(pool).await;
            assert_eq!(before - after, usage.unique_bytes, "step {step}: {}", entry.name);
            return 1;
        }
        3 => {
            let all = usages(pool).await;
            let unique: u64 = all.iter().map(|(_, usage)| usage.unique_bytes).sum();
            assert!(unique <= data_bytes(pool).await, "step {step}");
        }
        4 if is_volume => {
            let volume = pool.open_volume(&entry.name).unwrap();
            let first = random.within(0..=BLOCKS - 100);
            volume.deallocate(first, random.within(1..=100)).await.unwrap();
        }
        _ if is_volume => {
            let volume = pool.open_volume(&entry.name).unwrap();
            let blocks = random.within(1..=40);
            let first = random.within(0..=BLOCKS - blocks);
            let data = Buffer::from_heap(blocks as usize * BLOCK);
            volume.write(first, data, false).await.unwrap();
        }
        _ => {}
    }
    0
}
