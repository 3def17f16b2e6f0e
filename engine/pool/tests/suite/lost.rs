//! Blocks that cannot be read and are given up, so that their device can leave: they are errors to who reads
//! them from then on, whatever lies in their new places, until they are written or deallocated.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::layout::label::{LOST, Label};
use pollux_pool::{Pool, PoolError, ScrubOptions, Unreadable, Volume, VolumeOptions};
use pollux_reactor::{sleep, spawn};
use pollux_sim::{CrashState, CutPoints, PowerLoss, Recorder, SimDrive};

use crate::bad_blocks::{place_of, written};
use crate::changes::import_members;
use crate::common::{Bench, Drives, TINY, options, short_journal};
use crate::history::{BLOCK, below, data, value, value_of};

/// Blocks of the volume: ten slots.
const BLOCKS: u64 = 10 * 16;

/// Blocks in a slot with others, side by side and at its end; and a slot of which nothing can be read.
const BAD: [u64; 5] = [5, 6, 31, 40, 144];

fn bad() -> Vec<u64> {
    BAD.into_iter().chain(96..112).collect()
}

/// A volume `a` on the first drive, with the second one added, and bad blocks.
async fn prepared(drives: &Drives, checksums: bool, with_snapshot: bool) -> Rc<Pool> {
    let (from, to) = (drives.0[0].clone(), drives.0[1].clone());
    let pool = Drives(vec![from.clone()]).pool(&short_journal()).await;
    let made = VolumeOptions {
        checksums,
        ..VolumeOptions::new(1 << 12)
    };
    pool.create_volume("a", &made).await.unwrap();
    let volume = pool.open_volume("a").unwrap();
    written(&volume, BLOCKS).await;
    if with_snapshot {
        pool.snapshot("a", "s", 0).await.unwrap();
    }
    pool.checkpoint().await.unwrap();
    pool.add_device(to.attach().await.unwrap(), false).await.unwrap();
    for block in bad() {
        from.make_unreadable(place_of(&from, 100 + block), 1);
    }
    pool
}

async fn read(volume: &Volume, block: u64) -> Result<u64, IoError> {
    let bytes = volume.read(block, Buffer::from_heap(BLOCK)).await?;
    Ok(value_of(&bytes).unwrap())
}

async fn assert_lost(volume: &Volume, lost: &[u64], context: &str) {
    for block in 0..BLOCKS {
        let expected = match lost.contains(&block) {
            true => Err(IoError::MediaRead),
            false => Ok(100 + block),
        };
        assert_eq!(read(volume, block).await, expected, "{context}: block {block}");
    }
    // A read of several blocks with one among them.
    let several = volume.read(0, Buffer::from_heap(16 * BLOCK)).await;
    assert_eq!(several.unwrap_err(), IoError::MediaRead, "{context}");
}

fn labels_say_so(drive: &SimDrive) -> bool {
    let mut bytes = [0; BLOCK];
    drive.peek(0, &mut bytes);
    Label::decode(&bytes).unwrap().features.incompatible & LOST != 0
}

/// A device goes though some of what it has cannot be read.
async fn drain_and_lose(drives: Drives, checksums: bool, with_snapshot: bool) {
    let context = format!("checksums {checksums}, snapshot {with_snapshot}");
    let (from, to) = (drives.0[0].clone(), drives.0[1].clone());
    let pool = prepared(&drives, checksums, with_snapshot).await;
    let kept = pool.drain_device(0, Unreadable::Stay, &mut |_| ()).await;
    assert!(matches!(kept, Err(PoolError::CannotCopy { .. })), "{kept:?}");
    assert!(!labels_say_so(&to), "{context}: nothing was given up yet");
    let drained = pool.drain_device(0, Unreadable::Lose, &mut |_| ()).await;
    assert_eq!(drained.unwrap().lost_blocks, bad().len() as u64, "{context}");
    assert_eq!(pool.devices().len(), 1, "{context}");
    let mut expected = bad();
    expected.sort_unstable();
    assert_eq!(pool.suspected_blocks("a"), expected, "{context}");
    assert!(labels_say_so(&to), "{context}");
    assert!(pool.check().await.unwrap().is_sound(), "{context}");
    assert_lost(&pool.open_volume("a").unwrap(), &bad(), &context).await;
    from.remove(PowerLoss::LoseAll);
    to.power_loss(PowerLoss::LoseAll);
    drop(pool);
    let left = Drives(vec![to.clone()]);
    let (pool, _) = Pool::import(left.attach().await, options()).await.unwrap();
    let volume = pool.open_volume("a").unwrap();
    assert_lost(&volume, &bad(), &context).await;
    let report = pool.scrub(ScrubOptions::default(), &mut |_| ()).await.unwrap();
    assert_eq!(report.bad_block_count, bad().len() as u64, "{context}");
    let found: Vec<u64> = report.bad_blocks.iter().map(|one| one.block).collect();
    let mut expected = bad();
    expected.sort_unstable();
    assert_eq!(found, expected, "{context}");
    // They are allocated, as they were.
    let allocated = volume.allocated(0, BLOCKS).await.unwrap();
    let blocks: u64 = allocated.ranges.iter().map(|range| range.blocks).sum();
    assert_eq!(blocks, BLOCKS, "{context}");
    heal(&pool, &volume, with_snapshot, &context).await;
    pool.export().await.unwrap();
    let (pool, _) = Pool::import(left.attach().await, options()).await.unwrap();
    assert!(pool.check().await.unwrap().is_sound(), "{context}");
    let volume = pool.open_volume("a").unwrap();
    assert_eq!(value(&volume, 5, "healed").await, 1000);
}

/// What was lost is written anew, or deallocated; a snapshot keeps what it has not.
async fn heal(pool: &Rc<Pool>, volume: &Volume, with_snapshot: bool, context: &str) {
    volume.write(5, data(1000, 1), false).await.unwrap();
    assert_eq!(read(volume, 6).await, Err(IoError::MediaRead), "{context}");
    volume.write(4, data(1001, 3), false).await.unwrap();
    volume.write(5, data(1000, 1), false).await.unwrap();
    volume.deallocate(31, 1).await.unwrap();
    volume.deallocate(96, 8).await.unwrap();
    volume.write(104, data(1002, 8), true).await.unwrap();
    volume.write(40, data(1003, 1), false).await.unwrap();
    volume.write(144, data(1004, 16), false).await.unwrap();
    volume.flush().await.unwrap();
    let mut expected: Vec<u64> = (0..BLOCKS).map(|block| 100 + block).collect();
    for (range, new) in [(4..7, 1001), (104..112, 1002), (40..41, 1003), (144..160, 1004)] {
        expected[range].fill(new);
    }
    expected[5] = 1000;
    expected[31] = 0;
    expected[96..104].fill(0);
    for (block, expected) in (0..).zip(expected) {
        assert_eq!(
            read(volume, block).await,
            Ok(expected),
            "{context}: block {block}"
        );
    }
    let report = pool.scrub(ScrubOptions::default(), &mut |_| ()).await.unwrap();
    let of_snapshot = if with_snapshot { bad().len() as u64 } else { 0 };
    assert_eq!(report.bad_block_count, of_snapshot, "{context}");
    if with_snapshot {
        assert_lost(&pool.open_volume("s").unwrap(), &bad(), context).await;
        pool.delete("s").await.unwrap();
        pool.reclaim().await.unwrap();
        assert!(pool.check().await.unwrap().is_sound(), "{context}");
    }
}

#[test]
fn a_device_goes_with_what_cannot_be_read_if_it_is_given_up() {
    for (seed, checksums, with_snapshot) in [
        (1, true, false),
        (2, true, true),
        (3, false, false),
        (4, false, true),
    ] {
        let bench = Bench::of_sizes(seed, &[TINY, TINY]);
        bench.run(move |drives| drain_and_lose(drives, checksums, with_snapshot));
    }
}

/// An import after a crash takes what it finds in regions with an intent for newer data: not in the places of
/// lost blocks.
#[test]
fn an_import_takes_nothing_for_the_data_of_a_lost_block() {
    let bench = Bench::of_sizes(5, &[TINY, TINY]);
    bench.run(|drives| async move {
        let pool = prepared(&drives, true, false).await;
        pool.drain_device(0, Unreadable::Lose, &mut |_| ()).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        // Beside it in its extent, in its region, and in the region of the slot of which all is lost.
        for block in [4, 7, 20, 80, 113] {
            volume.write(block, data(100 + block, 1), false).await.unwrap();
        }
        volume.flush().await.unwrap();
        drop((pool, volume));
        let to = drives.0[1].clone();
        to.power_loss(PowerLoss::KeepAll);
        let left = Drives(vec![to]);
        let (pool, report) = Pool::import(left.attach().await, options()).await.unwrap();
        assert_eq!(report.newer_blocks, 0, "all that was written was recorded");
        assert_lost(&pool.open_volume("a").unwrap(), &bad(), "after a crash").await;
    });
}

/// Cuts the power at every write of a drain that gives up blocks. Before a move the old drive has them; it
/// has forgotten here that it cannot read them.
async fn judge(drives: Drives, position: usize, context: &str) {
    let pool = import_members(&drives).await.unwrap();
    assert!(pool.check().await.unwrap().is_sound(), "{context}");
    let is_over = pool.devices().len() == 1 && position > 0;
    for name in ["a", "s"] {
        let volume = pool.open_volume(name).unwrap();
        for block in 0..BLOCKS {
            match read(&volume, block).await {
                Ok(found) => assert_eq!(found, 100 + block, "{context}: block {block} of {name}"),
                Err(error) => {
                    assert_eq!(error, IoError::MediaRead, "{context}");
                    assert!(bad().contains(&block), "{context}: block {block} of {name}");
                }
            }
            if is_over && pool.devices().iter().all(|device| device.number == 1) {
                let is_lost = read(&volume, block).await.is_err();
                assert_eq!(is_lost, bad().contains(&block), "{context}: {block}");
            }
        }
    }
    // It can be brought to its end, with what is bad by now.
    if pool.devices().iter().any(|device| device.number == 0) && pool.devices().len() == 2 {
        pool.drain_device(0, Unreadable::Lose, &mut |_| ()).await.unwrap();
    }
    let volume = pool.open_volume("a").unwrap();
    for block in bad() {
        volume.write(block, data(100 + block, 1), false).await.unwrap();
    }
    for block in 0..BLOCKS {
        assert_eq!(read(&volume, block).await, Ok(100 + block), "{context}: {block}");
    }
    assert!(pool.check().await.unwrap().is_sound(), "{context}");
}

#[test]
fn a_power_cut_while_blocks_are_given_up_mixes_up_nothing() {
    for seed in 0..3 {
        let bench = Bench::of_sizes(seed, &[TINY, TINY]);
        let recorder = Recorder::new();
        let recorded = recorder.clone();
        let (first, end) = bench.run(move |drives| async move {
            drives.0.iter().for_each(|drive| drive.record(&recorded));
            let pool = prepared(&drives, true, true).await;
            let first = recorded.position();
            pool.drain_device(0, Unreadable::Lose, &mut |_| ()).await.unwrap();
            (first, recorded.position())
        });
        let losses = [PowerLoss::LoseAll, PowerLoss::KeepAll, PowerLoss::Torn];
        let states = recorder.crash_states(seed, CutPoints::Writes, &losses);
        let mut judged = 0;
        for CrashState {
            position,
            loss,
            images,
            ..
        } in states.filter(|state| state.position >= first)
        {
            let context = format!("seed {seed}, cut at {position} of {end}, {loss:?}");
            let after = images.into_iter().map(|image| image.into_drive("after", 1));
            let after = Drives(after.collect());
            bench.world.block_on(
                bench.reactor,
                async move { judge(after, position, &context).await },
            );
            judged += 1;
        }
        assert!(judged > 30, "{judged}");
    }
}

/// Hosts write and deallocate while a device is emptied: what they wrote is there, whatever was lost.
async fn drain_beside_writes(drives: Drives, seed: u64) -> u64 {
    let pool = prepared(&drives, seed.is_multiple_of(2), seed.is_multiple_of(3)).await;
    let volume = pool.open_volume("a").unwrap();
    let over = Rc::new(Cell::new(false));
    let writer = spawn({
        let (volume, over) = (volume.clone(), over.clone());
        async move {
            let mut model: Vec<Option<u64>> = vec![None; BLOCKS as usize];
            for number in 1_000.. {
                if over.get() && number > 1_300 {
                    break;
                }
                let (block, blocks) = (below(BLOCKS - 8), 1 + below(8));
                let written = &mut model[block as usize..(block + blocks) as usize];
                match below(6) {
                    0 => {
                        volume.deallocate(block, blocks).await.unwrap();
                        written.fill(Some(0));
                    }
                    1 => volume.flush().await.unwrap(),
                    _ => {
                        volume.write(block, data(number, blocks), false).await.unwrap();
                        written.fill(Some(number));
                    }
                }
                if below(8) == 0 {
                    sleep(Duration::from_micros(below(2_000))).await;
                }
            }
            model
        }
    });
    sleep(Duration::from_micros(below(3_000))).await;
    let drained = pool.drain_device(0, Unreadable::Lose, &mut |_| ()).await.unwrap();
    over.set(true);
    let model = writer.await;
    volume.flush().await.unwrap();
    assert!(drained.lost_blocks <= bad().len() as u64, "seed {seed}");
    for is_crashed in [false, true] {
        let volume = match is_crashed {
            false => volume.clone(),
            true => {
                drives.0[1].power_loss(PowerLoss::LoseAll);
                let left = Drives(vec![drives.0[1].clone()]);
                let (pool, _) = Pool::import(left.attach().await, options()).await.unwrap();
                assert!(pool.check().await.unwrap().is_sound(), "seed {seed}");
                pool.open_volume("a").unwrap()
            }
        };
        for (block, written) in (0..).zip(&model) {
            let expected = match written {
                Some(value) => Ok(*value),
                None if bad().contains(&block) => Err(IoError::MediaRead),
                None => Ok(100 + block),
            };
            let found = read(&volume, block).await;
            assert_eq!(
                found, expected,
                "seed {seed}, crashed {is_crashed}: block {block}"
            );
        }
    }
    drained.lost_blocks
}

#[test]
fn what_is_written_while_blocks_are_given_up_is_there() {
    let lost: Vec<u64> = (0..40)
        .map(|seed| {
            let bench = Bench::of_sizes(seed, &[TINY, TINY]);
            bench.run(move |drives| drain_beside_writes(drives, seed))
        })
        .collect();
    // Some were written before they could be lost, and others were not.
    assert!(lost.iter().sum::<u64>() > 40, "{lost:?}");
    assert!(lost.iter().any(|lost| *lost < bad().len() as u64), "{lost:?}");
}
