//! Writes that are at the drive when something else happens to the pool: whatever becomes of them, a block is
//! what it was or what was to be there, and can be read.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDeviceExt, Device, IoError};
use pollux_pool::{CreateOptions, Pool, PoolError, ScrubOptions, Unreadable, Volume};
use pollux_reactor::{sleep, spawn, timeout};
use pollux_sim::{Fault, Operation, PowerLoss, SimDrive, SimDriveOptions};

use crate::common::{Bench, DRIVE_BYTES, Drives, TINY, new_volume, options, short_journal};
use crate::history::{BLOCK, data, value};

/// How long the write takes that is at the drive.
const LONG: Duration = Duration::from_millis(200);

/// A drive that takes its time, so that requests are waited for.
fn bench(seed: u64, bytes: u64) -> Bench {
    let mut bench = Bench::new(seed, 1);
    let options = SimDriveOptions::new(bytes, 4096).unwrap();
    bench.drives = Drives(vec![SimDrive::new("drive", options, seed)]);
    bench
}

/// Blocks that were written and flushed, and one more write of the first of them: their intent is durable.
async fn overwritten(pool: &Rc<Pool>, volume: &Volume) {
    volume.write(0, data(1, 16), false).await.unwrap();
    volume.flush().await.unwrap();
    volume.write(0, data(2, 1), false).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(pool.stopped(), None);
}

async fn export_beside_a_write(drives: Drives) {
    let pool = drives.pool(&CreateOptions::default()).await;
    let volume = new_volume(&pool, "a", 64).await;
    overwritten(&pool, &volume).await;
    drives.0[0].fail_nth(Operation::Write, 1, Fault::Delay(LONG));
    let writing = volume.clone();
    let writing = spawn(async move { writing.write(0, data(3, 1), false).await });
    sleep(LONG / 4).await;
    pool.export().await.unwrap();
    let written = writing.await;
    drop((volume, pool));
    let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
    let found = value(&pool.open_volume("a").unwrap(), 0, "imported").await;
    let legal: &[u64] = if written.is_ok() { &[3] } else { &[2, 3] };
    assert!(legal.contains(&found), "{found} after {written:?}");
}

#[test]
fn what_is_being_overwritten_when_a_pool_is_exported_can_be_read() {
    bench(1, DRIVE_BYTES).run(export_beside_a_write);
}

/// Overwrites a block of each of some slots of a full pool side by side, some with FUA, again and again; with
/// snapshots cut meanwhile, for which there is no room beside the writes.
async fn overwrite_side_by_side(drives: Drives, seed: u64, with_snapshots: bool) {
    let pool = drives.pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    let mut slots = 0;
    loop {
        match volume.write(slots * 16, data(1, 1), false).await {
            Ok(()) => slots += 1,
            Err(IoError::CapacityExceeded) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(slots > 20, "{slots}");
    let mut values = vec![1; slots as usize];
    for round in 2..10 {
        let mut writing = Vec::new();
        for slot in 0..slots {
            let volume = volume.clone();
            let force_unit_access = (slot + round) % 3 == seed % 3;
            writing.push(spawn(async move {
                volume.write(slot * 16, data(round, 1), force_unit_access).await
            }));
        }
        if with_snapshots {
            pool.snapshot("a", "s", 0).await.unwrap();
        }
        for (slot, writing) in (0..slots).zip(writing) {
            let written = writing.await;
            let what = format!("seed {seed}, round {round}, slot {slot}, {written:?}");
            let found = value(&volume, slot * 16, &what).await;
            let before = std::mem::replace(&mut values[slot as usize], found);
            assert!(
                found == round || written.is_err() && found == before,
                "{what}: {found}"
            );
            assert!(written.is_ok() || with_snapshots, "{what}");
        }
        if with_snapshots {
            pool.delete("s").await.unwrap();
            pool.reclaim().await.unwrap();
        }
    }
    assert!(pool.check().await.unwrap().is_sound());
}

#[test]
fn a_full_pool_is_overwritten_side_by_side() {
    for seed in 0..6 {
        bench(seed, TINY).run(move |drives| overwrite_side_by_side(drives, seed, seed >= 3));
    }
}

/// Drives that take their time.
fn slow_drives(seed: u64, sizes: &[u64]) -> Drives {
    let options = |bytes: &u64| SimDriveOptions::new(*bytes, 4096).unwrap();
    let named = (0..).zip(sizes);
    let drives =
        named.map(|(number, bytes)| SimDrive::new(&format!("drive{number}"), options(bytes), seed + number));
    Drives(drives.collect())
}

/// Replaces a device, and waits so long for it; whether there is anything left to be interrupted.
async fn replace_for(drives: Drives, micros: u64) -> bool {
    let old = Drives(vec![drives.0[0].clone()]);
    let new = Drives(vec![drives.0[1].clone()]);
    let pool = old.pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 64).await;
    volume.write(0, data(1, 4), false).await.unwrap();
    volume.flush().await.unwrap();
    let device = new.attach().await.remove(0);
    let written = volume.clone();
    let written = spawn(async move {
        for value in 10..60 {
            written.write(40, data(value, 1), false).await.unwrap();
            written.flush().await.unwrap();
        }
        59
    });
    let mut tell = |_| ();
    let replacing = pool.replace_device(0, device, false, &mut tell);
    let result = timeout(Duration::from_micros(micros), replacing).await;
    // What is begun may go on for a while. Then it is known which device the pool has.
    pool.until_changed().await;
    let known = pool.devices();
    sleep(LONG).await;
    let now = pool.devices();
    assert_eq!((now.len(), now[0].uuid), (1, known[0].uuid), "after {micros} us");
    let last = written.await;
    volume.write(0, data(2, 4), false).await.unwrap();
    volume.flush().await.unwrap();
    pool.checkpoint().await.unwrap();
    volume.write(1, data(3, 1), false).await.unwrap();
    volume.flush().await.unwrap();
    drives
        .0
        .iter()
        .for_each(|drive| drive.power_loss(PowerLoss::LoseAll));
    drop((volume, pool));
    let mut opened = 0;
    for (which, set) in [("old", old), ("new", new)] {
        let Ok((pool, _)) = Pool::import(set.attach().await, options()).await else {
            continue;
        };
        opened += 1;
        let what = format!("{which} after {micros} us");
        let volume = pool.open_volume("a").unwrap();
        assert_eq!(value(&volume, 0, &what).await, 2, "{what}");
        assert_eq!(value(&volume, 1, &what).await, 3, "{what}");
        assert_eq!(value(&volume, 40, &what).await, last, "{what}");
    }
    assert_eq!(opened, 1, "sets that open, after {micros} us");
    result.is_err()
}

#[test]
fn a_replacement_that_nobody_waits_for_loses_nothing() {
    for step in 0.. {
        let drives = slow_drives(step, &[TINY, TINY]);
        let mut bench = Bench::new(step, 1);
        bench.drives = drives;
        if !bench.run(move |drives| replace_for(drives, step * 20)) {
            assert!(step > 50, "{step}");
            break;
        }
    }
}

/// Has a device leave, and waits so long for it; whether there is anything left to be interrupted.
async fn drain_for(drives: Drives, micros: u64) -> bool {
    let pool = drives.pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 64).await;
    volume.write(0, data(1, 64), false).await.unwrap();
    volume.flush().await.unwrap();
    let mut tell = |_| ();
    let draining = pool.drain_device(0, Unreadable::Stay, &mut tell);
    let result = timeout(Duration::from_micros(micros), draining).await;
    if result.is_err() && micros.is_multiple_of(100) {
        // What is left of it is waited for; after its last step there is no such device.
        let called_off = pool.cancel_drain(0).await;
        let is_gone = matches!(called_off, Err(PoolError::NoDevice { .. }));
        assert!(called_off.is_ok() || is_gone, "after {micros} us: {called_off:?}");
    }
    // What is begun may go on for a while.
    sleep(LONG).await;
    volume.write(0, data(2, 16), false).await.unwrap();
    volume.flush().await.unwrap();
    pool.checkpoint().await.unwrap();
    volume.write(1, data(3, 1), false).await.unwrap();
    volume.flush().await.unwrap();
    assert!(pool.check().await.unwrap().is_sound());
    let has_left = pool.devices().len() == 1;
    drives
        .0
        .iter()
        .for_each(|drive| drive.power_loss(PowerLoss::LoseAll));
    drop((volume, pool));
    let devices = match has_left {
        true => drives.0[1..].to_vec(),
        false => drives.0.clone(),
    };
    let what = format!("after {micros} us, left: {has_left}");
    let (pool, _) = Pool::import(Drives(devices).attach().await, options())
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let volume = pool.open_volume("a").unwrap();
    for (block, expected) in [(0, 2), (1, 3), (2, 2), (16, 1), (63, 1)] {
        assert_eq!(value(&volume, block, &what).await, expected, "{what}");
    }
    result.is_err()
}

#[test]
fn a_device_that_leaves_while_nobody_waits_takes_nothing_along() {
    for step in 0.. {
        let mut bench = Bench::new(step, 1);
        bench.drives = slow_drives(step, &[TINY, TINY]);
        if !bench.run(move |drives| drain_for(drives, step * 50)) {
            assert!(step > 50, "{step}");
            break;
        }
    }
}

/// Data of a device that leaves is being written to another one when nobody waits for that any more, or when
/// some of it cannot be read: what others write there is not written over.
async fn drain_and_fill(drives: Drives, is_unreadable: bool) {
    let (from, to) = (drives.0[0].clone(), drives.0[1].clone());
    let pool = Drives(vec![from.clone()]).pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    // Two runs of one extent.
    volume.write(0, data(1, 4), false).await.unwrap();
    volume.write(8, data(1, 4), false).await.unwrap();
    volume.flush().await.unwrap();
    pool.add_device(to.clone().attach().await.unwrap(), false)
        .await
        .unwrap();
    let (draining, watched) = (pool.clone(), from.clone());
    let draining = spawn(async move {
        let mut tell = |_| ();
        let draining = draining.drain_device(0, Unreadable::Stay, &mut tell);
        // Both runs are read by then, and written.
        let moved = async {
            loop {
                let reads = watched.counters().reads;
                sleep(Duration::from_micros(1)).await;
                if watched.counters().reads == reads + 2 {
                    return sleep(LONG / 10).await;
                }
            }
        };
        let moved = std::pin::pin!(moved);
        let draining = std::pin::pin!(draining);
        futures_util::future::select(draining, moved).await;
    });
    // The two reads of the data are the first that come together.
    loop {
        let reads = from.counters().reads;
        sleep(Duration::from_micros(1)).await;
        if from.counters().reads == reads + 2 {
            break;
        }
    }
    to.fail_nth(Operation::Write, 1, Fault::Delay(LONG));
    if is_unreadable {
        to.fail_nth(Operation::Write, 2, Fault::Error(IoError::MediaWrite));
    } else {
        to.fail_nth(Operation::Write, 2, Fault::Delay(LONG));
    }
    draining.await;
    let mut slots = 0;
    // Again and again, so that all that is free comes to be used.
    for _ in 0..6 {
        volume.deallocate(16, 199 * 16).await.unwrap();
        for _ in 0..2 {
            pool.checkpoint().await.unwrap();
        }
        slots = 1;
        while slots < 200 && volume.write(slots * 16, data(7, 16), false).await.is_ok() {
            slots += 1;
        }
        assert!((20..200).contains(&slots), "{slots}");
    }
    volume.flush().await.unwrap();
    sleep(2 * LONG).await;
    for block in 16..slots * 16 {
        let what = format!("block {block}, with an error: {is_unreadable}");
        assert_eq!(value(&volume, block, &what).await, 7, "{what}");
    }
    assert_eq!(value(&volume, 8, "not moved").await, 1);
    pool.checkpoint().await.unwrap();
    assert!(pool.check().await.unwrap().is_sound());
}

#[test]
fn an_extent_is_free_only_when_nothing_is_written_to_it_any_more() {
    for seed in 0..12 {
        let mut bench = Bench::new(seed, 1);
        bench.drives = slow_drives(seed, &[TINY, TINY]);
        bench.run(move |drives| drain_and_fill(drives, seed % 2 == 1));
    }
}

/// A copy of a page is being written anew when nobody waits for that scrub any more: what comes to be where
/// it is meanwhile is not written over.
async fn scrub_and_fill(drives: Drives, seed: u64) {
    let pool = drives.pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    volume.write(0, data(1, 160), false).await.unwrap();
    pool.checkpoint().await.unwrap();
    // One copy of each page.
    let mut seen = BTreeSet::new();
    for block in 0..TINY / BLOCK as u64 {
        let mut bytes = vec![0; BLOCK];
        drives.0[0].peek(block * BLOCK as u64, &mut bytes);
        if bytes.starts_with(b"PLXPAGE") && !seen.insert(bytes) {
            drives.0[0].flip_bit(block * BLOCK as u64 + 200, 1);
        }
    }
    let scrub = async || {
        let again = ScrubOptions {
            begin_anew: true,
            ..ScrubOptions::default()
        };
        pool.scrub(again, &mut |_| {}).await.unwrap()
    };
    drives.0[0].fail_nth(Operation::Write, 1 + seed % 4, Fault::Delay(LONG));
    assert!(
        timeout(LONG / 10, scrub()).await.is_err(),
        "nothing was written anew"
    );
    for round in 0..2 + seed % 3 {
        volume.deallocate(0, 1 << 12).await.unwrap();
        for _ in 0..3 {
            pool.checkpoint().await.unwrap();
        }
        for slot in 0..20 {
            volume
                .write(slot * 31 % 256 * 16, data(round, 16), false)
                .await
                .unwrap();
        }
        pool.checkpoint().await.unwrap();
    }
    let found = scrub().await;
    assert_eq!((found.bad_block_count, found.lost_pages), (0, 0));
    sleep(2 * LONG).await;
    let found = scrub().await;
    let bad = (found.bad_block_count, found.lost_pages, found.repaired_pages);
    assert_eq!(bad, (0, 0, 0), "seed {seed}");
}

#[test]
fn a_copy_of_a_page_is_written_anew_only_while_it_is_there() {
    for seed in 0..12 {
        bench(seed, TINY).run(move |drives| scrub_and_fill(drives, seed));
    }
}

/// Two writes to a slot with as many extents of snapshots as there may be beside one of its own wait for
/// space, and one of them waits longer.
async fn wait_for_space(drives: Drives) {
    let pool = drives.pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    let filler = new_volume(&pool, "filler", 1 << 12).await;
    for block in 0..3 {
        volume.write(block, data(1, 1), false).await.unwrap();
        pool.snapshot("a", &format!("s{block}"), 0).await.unwrap();
    }
    for slot in 0.. {
        if filler.write(slot * 16, data(2, 1), false).await.is_err() {
            break;
        }
    }
    pool.checkpoint().await.unwrap();
    filler.deallocate(0, 4 * 16).await.unwrap();
    let mut writing = Vec::new();
    for block in 3..5 {
        let volume = volume.clone();
        writing.push(spawn(
            async move { volume.write(block, data(block, 1), false).await },
        ));
        // A checkpoint is being made by then that the second one does not wait for alone.
        sleep(Duration::from_micros(100)).await;
    }
    for (block, writing) in (3..).zip(writing) {
        assert_eq!(writing.await, Ok(()), "block {block}");
        assert_eq!(value(&volume, block, "written").await, block);
    }
    assert!(pool.check().await.unwrap().is_sound());
}

#[test]
fn writes_of_one_slot_that_wait_for_space_find_what_others_made_of_it() {
    for seed in 0..4 {
        bench(seed, TINY).run(wait_for_space);
    }
}

/// A pool on the first of two drives, with a volume of which so many slots are written.
async fn on_the_first(drives: &Drives, slots: u64) -> (Rc<Pool>, Rc<Volume>) {
    let pool = Drives(vec![drives.0[0].clone()]).pool(&short_journal()).await;
    let volume = new_volume(&pool, "a", 1 << 12).await;
    for slot in 0..slots {
        volume
            .write(slot * 16, data(100 + slot, 16), false)
            .await
            .unwrap();
    }
    volume.flush().await.unwrap();
    (pool, volume)
}

async fn export_beside_a_drain(drives: Drives, nth: u64, is_abandoned: bool) {
    let (pool, volume) = on_the_first(&drives, 10).await;
    drop(volume);
    let to = drives.0[1].clone();
    pool.add_device(to.clone().attach().await.unwrap(), false)
        .await
        .unwrap();
    to.fail_nth(Operation::Write, nth, Fault::Delay(LONG));
    let draining = pool.clone();
    let draining = spawn(async move {
        let mut tell = |_| ();
        let draining = draining.drain_device(0, Unreadable::Stay, &mut tell);
        let wait = if is_abandoned { LONG / 8 } else { 4 * LONG };
        drop(timeout(wait, draining).await);
    });
    sleep(LONG / 4).await;
    pool.export().await.unwrap();
    let content = || {
        let mut bytes = vec![0; TINY as usize];
        to.peek(0, &mut bytes);
        bytes
    };
    let exported = content();
    sleep(8 * LONG).await;
    assert!(
        content() == exported,
        "abandoned: {is_abandoned}, write {nth} came later"
    );
    draining.await;
}

#[test]
fn nothing_is_written_to_a_device_once_its_pool_is_exported() {
    for (is_abandoned, nth) in (1..60).flat_map(|nth| [(false, nth), (true, nth)]) {
        let bench = Bench::of_sizes(3, &[TINY, TINY]);
        bench.run(move |drives| export_beside_a_drain(drives, nth, is_abandoned));
    }
}

/// A device is added, and nobody waits for that any more: it is used all the same.
async fn add_and_leave(drives: Drives, nth: u64) {
    // The first drive has no room for all that follows.
    let (pool, volume) = on_the_first(&drives, 1).await;
    let to = drives.0[1].clone();
    to.fail_nth(Operation::Write, nth, Fault::Delay(LONG));
    let adding = pool.add_device(to.attach().await.unwrap(), false);
    drop(timeout(LONG / 8, adding).await);
    sleep(2 * LONG).await;
    assert_eq!(pool.devices().len(), 2, "write {nth}");
    for slot in 0..64 {
        let written = volume.write(slot * 16, data(500 + slot, 16), false).await;
        assert_eq!(written, Ok(()), "slot {slot}, write {nth}");
    }
}

#[test]
fn a_device_is_added_though_nobody_waits_for_that() {
    for nth in 1..20 {
        Bench::of_sizes(3, &[TINY, TINY]).run(move |drives| add_and_leave(drives, nth));
    }
}
