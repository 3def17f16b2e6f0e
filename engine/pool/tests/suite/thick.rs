//! Thick volumes: whatever takes the rest of a pool, and whatever becomes of snapshots, every write to one
//! finds space, also after a crash; and what would break that is refused.

use std::rc::Rc;

use crate::common::{Bench, Drives, TINY, options, short_journal};
use crate::history::{data, model_at, record_in, values_of, verify_imported, write_all_thick};
use pollux_device::{BlockDeviceExt, IoError};
use pollux_pool::layout::label::{Label, THICK};
use pollux_pool::{Pool, PoolError, Unreadable, VolumeOptions};
use pollux_reactor::{spawn, yield_now};
use pollux_sim::{CutPoints, PowerLoss};

const SLOT: u64 = 65536;

fn sizes(devices: usize) -> Vec<u64> {
    [2 * TINY, TINY + 5 * SLOT, TINY][..devices].to_vec()
}

async fn make(drives: &Drives) -> Rc<Pool> {
    drives.pool(&short_journal()).await
}

async fn import(drives: &Drives) -> Rc<Pool> {
    Pool::import(drives.attach().await, options()).await.unwrap().0
}

fn thick(slots: u64) -> VolumeOptions {
    VolumeOptions {
        thick: true,
        ..VolumeOptions::new(slots * 16)
    }
}

/// Writes a block of each slot until there is no space; how many slots that were.
async fn fill(pool: &Rc<Pool>, name: &str) -> u64 {
    let volume = pool.open_volume(name).unwrap();
    let slots = volume.entry().unwrap().slots();
    for slot in 0..slots {
        match volume.write(slot * 16, data(7, 1), false).await {
            Ok(()) => {}
            Err(IoError::CapacityExceeded) => return slot,
            Err(error) => panic!("{error}"),
        }
    }
    slots
}

async fn settle(pool: &Rc<Pool>) {
    pool.reclaim().await.unwrap();
    for _ in 0..2 {
        pool.checkpoint().await.unwrap();
    }
    let check = pool.check().await.unwrap();
    assert!(check.is_sound(), "{check:?}");
}

#[test]
fn every_write_finds_space_beside_snapshots_deletions_and_imports() {
    for devices in 1..=3 {
        let bench = Bench::of_sizes(1, &sizes(devices));
        bench.run(|drives| async move {
            let pool = make(&drives).await;
            pool.create_volume("thin", &VolumeOptions::new(1 << 20))
                .await
                .unwrap();
            let before = pool.space();
            pool.create_volume("thick", &thick(10)).await.unwrap();
            let space = pool.space();
            assert_eq!(space.free_bytes + space.set_aside_bytes, before.free_bytes);
            assert!(
                (10 * SLOT..14 * SLOT).contains(&space.set_aside_bytes),
                "{space:?}"
            );
            // Of a full pool, and nothing is set aside any more.
            assert!(fill(&pool, "thin").await > 10);
            assert_eq!(fill(&pool, "thick").await, 10);
            assert_eq!(pool.space().set_aside_bytes, 0);
            assert_eq!(pool.volume("thick").unwrap().covered_slots, 10);
            // A snapshot would want it all again.
            let refused = pool.snapshot("thick", "s", 0).await;
            assert!(
                matches!(refused, Err(PoolError::NoRoomForThick { .. })),
                "{refused:?}"
            );
            pool.snapshot("thin", "u", 0).await.unwrap();
            pool.delete("u").await.unwrap();
            // Part of the thin one goes; a checkpoint is made where that is all that is missing.
            let thin = pool.open_volume("thin").unwrap();
            thin.deallocate(0, 25 * 16).await.unwrap();
            pool.reclaim().await.unwrap();
            pool.snapshot("thick", "s", 0).await.unwrap();
            assert_eq!(pool.volume("thick").unwrap().covered_slots, 0);
            fill(&pool, "thin").await;
            assert_eq!(fill(&pool, "thick").await, 10);
            // What the snapshot has is the volume's own once it is deleted: half of it is emptied meanwhile.
            thin.deallocate(0, 25 * 16).await.unwrap();
            pool.snapshot("thick", "t", 0).await.unwrap();
            let volume = pool.open_volume("thick").unwrap();
            volume.deallocate(0, 3 * 16).await.unwrap();
            pool.delete("t").await.unwrap();
            fill(&pool, "thin").await;
            drop((thin, volume, pool));
            let pool = import(&drives).await;
            fill(&pool, "thin").await;
            settle(&pool).await;
            assert_eq!(pool.volume("thick").unwrap().covered_slots, 7);
            fill(&pool, "thin").await;
            assert_eq!(fill(&pool, "thick").await, 10);
            pool.delete("s").await.unwrap();
            settle(&pool).await;
            assert_eq!(pool.volume("thick").unwrap().covered_slots, 10);
            let volume = pool.open_volume("thick").unwrap();
            assert_eq!(values_of(&volume, "thick", 16).await.unwrap()[0], 7);
        });
    }
}

#[test]
fn pages_of_thin_volumes_leave_what_is_set_aside() {
    let bench = Bench::of_sizes(5, &sizes(1));
    bench.run(|drives| async move {
        let pool = make(&drives).await;
        pool.create_volume("thin", &VolumeOptions::new(1 << 20))
            .await
            .unwrap();
        let thin = pool.open_volume("thin").unwrap();
        // A slot in each of some leaves of the map.
        let first_of = |leaf: u64| leaf * 31 * 16;
        for leaf in 0..20 {
            thin.write(first_of(leaf), data(7, 16), false).await.unwrap();
        }
        let slots = pool.space().free_bytes / SLOT - 8;
        pool.create_volume("thick", &thick(slots)).await.unwrap();
        // What snapshots hold is deallocated block by block, which takes pages and no extents.
        let mut refused = false;
        'rounds: for round in 0..16 {
            match pool.snapshot("thin", &format!("s{round}"), 0).await {
                Ok(_) => {}
                Err(PoolError::NoSpace) => refused = true,
                Err(error) => panic!("{error}"),
            }
            for leaf in 0..20 {
                match thin.deallocate(first_of(leaf) + round, 1).await {
                    Ok(()) => {}
                    Err(IoError::CapacityExceeded) => refused = true,
                    Err(error) => panic!("{error}"),
                }
                if refused {
                    break 'rounds;
                }
            }
        }
        assert!(refused, "there was room for all of it");
        assert_eq!(fill(&pool, "thick").await, slots);
    });
}

#[test]
fn what_would_promise_space_that_there_is_not_is_refused() {
    let bench = Bench::of_sizes(2, &sizes(1));
    bench.run(|drives| async move {
        let pool = make(&drives).await;
        let free = pool.space().free_bytes / SLOT;
        let refused = |result: Result<(), PoolError>| {
            let Err(PoolError::NoRoomForThick {
                needed_bytes,
                free_bytes,
            }) = result
            else {
                panic!("{result:?}");
            };
            assert!(needed_bytes > free_bytes);
        };
        let made = |name: &'static str, slots| {
            let pool = pool.clone();
            async move { pool.create_volume(name, &thick(slots)).await.map(drop) }
        };
        refused(made("a", free).await);
        refused(made("a", 1 << 30).await);
        assert!(pool.volumes().is_empty());
        made("a", free - 20).await.unwrap();
        refused(made("b", 20).await);
        made("b", 5).await.unwrap();
        refused(pool.resize("b", 30 * 16, false).await);
        pool.resize("b", 7 * 16 + 3, false).await.unwrap();
        assert_eq!(pool.volume("b").unwrap().slots(), 8);
        pool.resize("b", 4 * 16, true).await.unwrap();
        assert_eq!(fill(&pool, "b").await, 4);
        pool.snapshot("b", "s", 0).await.unwrap();
        assert_eq!(fill(&pool, "b").await, 4);
        pool.create_volume("thin", &VolumeOptions::new(1 << 20))
            .await
            .unwrap();
        fill(&pool, "thin").await;
        // What it has is free only after the deletion of what it was.
        refused(pool.roll_back("b", "s").await.map(drop));
        // A clone is thin, and needs nothing.
        pool.clone_snapshot("s", "c", 0).await.unwrap();
        assert!(!pool.volume("c").unwrap().thick);
        pool.delete("c").await.unwrap();
        pool.delete("a").await.unwrap();
        pool.roll_back("b", "s").await.unwrap();
        assert!(pool.volume("b").unwrap().thick);
        settle(&pool).await;
        assert_eq!(pool.volume("b").unwrap().covered_slots, 0);
        // Space comes back with what it is set aside for.
        pool.delete("b").await.unwrap();
        pool.delete("s").await.unwrap();
        settle(&pool).await;
        assert_eq!(pool.space().set_aside_bytes, 0);
    });
}

#[test]
fn a_device_leaves_only_if_the_others_have_room_for_what_is_set_aside() {
    let bench = Bench::of_sizes(3, &[2 * TINY, 2 * TINY]);
    bench.run(|drives| async move {
        let pool = make(&drives).await;
        let free = pool.space().free_bytes / SLOT;
        pool.create_volume("thick", &thick(free * 2 / 3)).await.unwrap();
        let refused = pool.drain_device(1, Unreadable::Stay, &mut |_| {}).await;
        assert!(
            matches!(refused, Err(PoolError::NoRoomToDrain { .. })),
            "{refused:?}"
        );
        pool.resize("thick", free / 4 * 16, true).await.unwrap();
        pool.drain_device(1, Unreadable::Stay, &mut |_| {}).await.unwrap();
        pool.create_volume("thin", &VolumeOptions::new(1 << 20))
            .await
            .unwrap();
        fill(&pool, "thin").await;
        assert_eq!(fill(&pool, "thick").await, free / 4);
    });
}

#[test]
fn pools_say_so_in_their_labels_as_long_as_they_have_thick_volumes() {
    let bench = Bench::new(4, 2);
    bench.run(|drives| async move {
        let features = || {
            let found = drives.0.iter().map(|drive| {
                let mut bytes = [0; crate::history::BLOCK];
                drive.peek(0, &mut bytes);
                Label::decode(&bytes).unwrap().features.read_only_compatible
            });
            found.collect::<Vec<_>>()
        };
        let pool = make(&drives).await;
        pool.create_volume("thin", &VolumeOptions::new(100))
            .await
            .unwrap();
        assert_eq!(features(), [0, 0]);
        pool.create_volume("thick", &thick(3)).await.unwrap();
        assert_eq!(features(), [THICK, THICK]);
        pool.export().await.unwrap();
        let pool = import(&drives).await;
        assert_eq!(features(), [THICK, THICK]);
        assert!(pool.volume("thick").unwrap().thick);
        pool.delete("thick").await.unwrap();
        // It is still there, as one that is being deleted.
        drop(pool);
        let pool = import(&drives).await;
        assert_eq!(features(), [THICK, THICK]);
        pool.reclaim().await.unwrap();
        pool.export().await.unwrap();
        drop(import(&drives).await);
        assert_eq!(features(), [0, 0]);
    });
}

#[test]
fn slots_are_counted_beside_writes_once_a_snapshot_is_gone() {
    for seed in 0..20 {
        let bench = Bench::of_sizes(seed, &[64 << 20]);
        bench.run(|drives| async move {
            let pool = make(&drives).await;
            // Of more leaves than are counted in one go.
            let slots = 20 * 31;
            pool.create_volume("thick", &thick(slots)).await.unwrap();
            let volume = pool.open_volume("thick").unwrap();
            for _ in 0..200 {
                volume
                    .write(crate::history::below(slots) * 16, data(1, 1), false)
                    .await
                    .unwrap();
            }
            pool.snapshot("thick", "s", 0).await.unwrap();
            for _ in 0..20 {
                volume
                    .write(crate::history::below(slots) * 16, data(2, 1), false)
                    .await
                    .unwrap();
            }
            pool.delete("s").await.unwrap();
            let reclaim = spawn({
                let pool = pool.clone();
                async move { pool.reclaim().await }
            });
            for _ in 0..400 {
                let slot = crate::history::below(slots);
                match crate::history::below(2) {
                    0 => volume.write(slot * 16, data(3, 1), false).await.unwrap(),
                    _ => volume.deallocate(slot * 16, 16).await.unwrap(),
                }
                if crate::history::below(40) == 0 {
                    pool.checkpoint().await.unwrap();
                }
                yield_now().await;
            }
            reclaim.await.unwrap();
            // A count is exact when it is to be: that is looked at here.
            settle(&pool).await;
            assert!(!pool.volume("thick").unwrap().count_covered);
        });
    }
}

/// What the deletion of a volume has given back counts once it is free in a durable checkpoint: a crash
/// before that takes the deletion back, and with it the space.
#[test]
fn what_a_deletion_gives_back_is_promised_only_when_no_crash_can_take_it() {
    let bench = Bench::of_sizes(6, &sizes(1));
    let left = bench.run(|drives| async move {
        let pool = make(&drives).await;
        pool.create_volume("thin", &VolumeOptions::new(1 << 20))
            .await
            .unwrap();
        let written = fill(&pool, "thin").await;
        pool.delete("thin").await.unwrap();
        let reclaim = spawn({
            let pool = pool.clone();
            async move { pool.reclaim().await }
        });
        // In the middle of the deletion: what the first leaf of the map had is being freed.
        while pool.space().freeing_bytes < 31 * SLOT {
            yield_now().await;
        }
        assert!(pool.space().freeing_bytes < written * SLOT);
        assert!(pool.space().free_bytes < 10 * SLOT, "{:?}", pool.space());
        pool.create_volume("thick", &thick(20)).await.unwrap();
        let images: Vec<_> = drives
            .0
            .iter()
            .map(|drive| {
                drive.power_loss(PowerLoss::LoseAll);
                drive.image()
            })
            .collect();
        drop(reclaim);
        images
    });
    bench.run(|_| async move {
        let drives = left.into_iter().map(|image| image.into_drive("after", 1));
        // At once, before the deletion goes on.
        let pool = import(&Drives(drives.collect())).await;
        assert_eq!(fill(&pool, "thick").await, 20);
    });
}

/// Random histories in pools that are nearly full, cut at every write: then thin volumes take what they
/// can, and thick ones have all they may still need.
fn check_crashes(seeds: std::ops::Range<u64>) {
    let (mut states, mut slots) = (0, 0);
    for seed in seeds {
        let bench = Bench::of_sizes(seed, &sizes(1 + seed as usize % 3)[seed as usize % 3..]);
        let recorded = record_in(&bench, 60, &short_journal(), Some((14 + seed % 9) * SLOT));
        let losses = [PowerLoss::LoseAll, PowerLoss::Torn, PowerLoss::Reordered];
        let losses = &losses[seed as usize % 3..=seed as usize % 3];
        for state in recorded.recorder.crash_states(seed, CutPoints::Writes, losses) {
            let context = format!("seed {seed}, cut at {}, {:?}", state.position, state.loss);
            let model = model_at(&recorded, state.position);
            let images = state.images.into_iter();
            let drives = images.map(|image| image.into_drive("after", 1)).collect();
            let written = bench.world.block_on(bench.reactor, async move {
                let pool = import(&Drives(drives)).await;
                if states % 4 == 0 {
                    // At once, without what was deleted having been given back.
                    return write_all_thick(&pool).await;
                }
                verify_imported(&pool, &model).await?;
                write_all_thick(&pool).await
            });
            slots += written.unwrap_or_else(|error| panic!("{context}: {error}"));
            states += 1;
        }
    }
    assert!(states > 800, "{states}");
    assert!(slots > 1_000, "{slots}");
}

#[test]
fn after_a_power_cut_anywhere_every_write_finds_space_1() {
    check_crashes(0..6);
}

#[test]
fn after_a_power_cut_anywhere_every_write_finds_space_2() {
    check_crashes(6..12);
}
