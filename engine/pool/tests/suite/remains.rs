//! What a power cut leaves on drives beside what counts, and what must not be made of it: blocks that were
//! being written and are destroyed, blocks of the journal behind its end, and old data that rots meanwhile.
//! And what a read finds that was overtaken by others.

use crate::common::{Bench, Drives, options};
use crate::history::{BLOCK, contents, data, value_of, values_of};
use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Geometry, IoError, Request};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, VolumeOptions};
use pollux_reactor::{sleep, spawn, yield_now};
use pollux_sim::{PowerLoss, SimDrive};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

async fn make(drives: &Drives) -> Rc<Pool> {
    let devices = drives.attach().await;
    let pool = Pool::create("tank", devices, &CreateOptions::default(), options()).await;
    pool.unwrap()
}

fn power_cut(drives: &Drives) {
    for drive in &drives.0 {
        drive.power_loss(PowerLoss::LoseAll);
    }
}

/// The blocks of a drive that begin with a magic, and a number in each of them.
fn blocks_with(drive: &SimDrive, magic: &[u8; 8], number_at: u64) -> Vec<(u64, u64)> {
    let found = (0..crate::common::DRIVE_BYTES / BLOCK as u64).filter_map(|block| {
        let mut found = [0; 8];
        drive.peek(block * BLOCK as u64, &mut found);
        let mut number = [0; 8];
        drive.peek(block * BLOCK as u64 + number_at, &mut number);
        (found == *magic).then(|| (block, u64::from_le_bytes(number)))
    });
    found.collect()
}

/// Where the sequence of a block of the journal is, the one up to which all was durable, and the number of
/// the checkpoint in a superblock.
const SEQUENCE_AT: u64 = 40;
const DURABLE_AT: u64 = 48;
const CHECKPOINT_AT: u64 = 32;

/// Blocks of a region with an intent are newer than their checksums only where they are the volume's own:
/// what it shares with a snapshot was not overwritten.
#[test]
fn a_shared_block_that_rotted_is_not_taken_for_a_newer_one() {
    let bench = Bench::new(1, 1);
    bench.run(|drives| async move {
        let drive = drives.0[0].clone();
        let pool = make(&drives).await;
        pool.create_volume("a", &VolumeOptions::new(16)).await.unwrap();
        let volume = pool.open_volume("a").unwrap();
        for block in 0..16 {
            volume.write(block, data(1000 + block, 1), false).await.unwrap();
        }
        pool.snapshot("a", "s", 0).await.unwrap();
        // The second one is in place, so that the region has an intent.
        for value in [2000, 2001] {
            volume.write(1, data(value, 1), false).await.unwrap();
        }
        volume.flush().await.unwrap();
        drop((volume, pool));
        power_cut(&drives);
        let rotten = (0..crate::common::DRIVE_BYTES / BLOCK as u64).find(|block| {
            let mut bytes = vec![0; BLOCK];
            drive.peek(block * BLOCK as u64, &mut bytes);
            value_of(&bytes) == Ok(1005)
        });
        drive.flip_bit(rotten.unwrap() * BLOCK as u64 + 99, 3);

        let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert_eq!(report.newer_blocks, 0);
        for (name, second) in [("a", 2001), ("s", 1001)] {
            let volume = pool.open_volume(name).unwrap();
            for block in 0..16 {
                let read = volume.read(block, Buffer::from_heap(BLOCK)).await;
                match block {
                    5 => assert_eq!(read.err(), Some(IoError::ChecksumMismatch), "{name}"),
                    1 => assert_eq!(value_of(&read.unwrap()), Ok(second), "{name}"),
                    _ => assert_eq!(value_of(&read.unwrap()), Ok(1000 + block), "{name}"),
                }
            }
        }
    });
}

/// A power cut may spoil whatever was being written: here the newest superblock, in all places. The one
/// before is in other places, and what it leads to is still there.
#[test]
fn a_superblock_that_is_destroyed_while_it_is_written_leaves_the_one_before() {
    for drives in 1..=2 {
        let bench = Bench::new(2, drives);
        bench.run(|drives| async move {
            let pool = make(&drives).await;
            pool.create_volume("a", &VolumeOptions::new(400)).await.unwrap();
            let volume = pool.open_volume("a").unwrap();
            let mut value = 0;
            let mut write = async |from: u64| {
                for block in from..from + 40 {
                    value += 1;
                    volume.write(block, data(value, 2), false).await.unwrap();
                }
                volume.flush().await.unwrap();
            };
            write(0).await;
            pool.checkpoint().await.unwrap();
            write(20).await;
            pool.snapshot("a", "s", 0).await.unwrap();
            write(10).await;
            let expected = contents(&pool).await.unwrap();
            pool.checkpoint().await.unwrap();
            drop((volume, pool));
            power_cut(&drives);
            for drive in &drives.0 {
                let superblocks = blocks_with(drive, b"PLXSUPER", CHECKPOINT_AT);
                let newest = superblocks.iter().map(|(_, checkpoint)| *checkpoint).max();
                for (block, _) in superblocks.iter().filter(|(_, found)| Some(*found) == newest) {
                    drive.poke(block * BLOCK as u64, &[0xa5; BLOCK]);
                }
            }
            let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
            assert!(report.records > 0);
            let found = contents(&pool).await.unwrap();
            for (name, volume) in &expected.volumes {
                assert!(found.volumes[name].values() == volume.values(), "{name}");
            }
            assert!(pool.check().await.unwrap().is_sound());
        });
    }
}

/// Of a commit of several blocks the first was not written, and the others were: the journal ends before it.
/// When its place is written later, those others must not seem to follow.
#[test]
fn what_a_crash_left_behind_the_end_of_the_journal_is_not_taken_up_later() {
    const SLOTS: u64 = 100;
    let bench = Bench::new(3, 1);
    bench.run(|drives| async move {
        let drive = drives.0[0].clone();
        let pool = make(&drives).await;
        pool.create_volume("a", &VolumeOptions::new(SLOTS * 16))
            .await
            .unwrap();
        let volume = pool.open_volume("a").unwrap();
        for slot in 0..SLOTS {
            volume
                .write(slot * 16, data(1000 + slot, 1), false)
                .await
                .unwrap();
        }
        volume.flush().await.unwrap();
        drop((volume, pool));
        power_cut(&drives);
        let sequences = blocks_with(&drive, b"PLXJRNL1", SEQUENCE_AT);
        let durable = blocks_with(&drive, b"PLXJRNL1", DURABLE_AT);
        // Blocks of one commit say that all before the first of them was durable.
        let first = durable.iter().map(|(_, sequence)| *sequence).max().unwrap();
        let of_commit = sequences.iter().filter(|(_, sequence)| *sequence >= first);
        assert!(of_commit.count() >= 3);
        let (block, _) = sequences.iter().find(|(_, sequence)| *sequence == first).unwrap();
        drive.poke(block * BLOCK as u64, &[0xa5; BLOCK]);

        let pool = Pool::import(drives.attach().await, options()).await.unwrap().0;
        let volume = pool.open_volume("a").unwrap();
        assert_eq!(
            values_of(&volume, "a", SLOTS * 16).await.unwrap(),
            [0; SLOTS as usize * 16]
        );
        volume.write(50 * 16, data(7, 1), false).await.unwrap();
        volume.flush().await.unwrap();
        drop((volume, pool));
        power_cut(&drives);
        let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert_eq!(report.journal_blocks, 1);
        let volume = pool.open_volume("a").unwrap();
        let values = values_of(&volume, "a", SLOTS * 16).await.unwrap();
        let expected = |block: u64| if block == 50 * 16 { 7 } else { 0 };
        assert!(
            (0..SLOTS * 16)
                .zip(values)
                .all(|(block, value)| value == expected(block))
        );
        assert!(pool.check().await.unwrap().is_sound());
    });
}

/// A device of which one read waits until it may go on.
struct Waiting {
    device: Rc<dyn BlockDevice>,
    /// The next read is the one.
    is_armed: Rc<Cell<bool>>,
    may_go_on: Rc<Cell<bool>>,
}

impl BlockDevice for Waiting {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        if !matches!(request, Request::Read { .. }) || !self.is_armed.replace(false) {
            return self.device.submit(request);
        }
        let (device, may_go_on) = (self.device.clone(), self.may_go_on.clone());
        Completion::from_future(async move {
            while !may_go_on.get() {
                sleep(Duration::from_micros(10)).await;
            }
            device.submit(request).await
        })
    }
}

/// Where a slow read of a volume without checksums looks, other data has come meanwhile: it is read again,
/// whichever way it went.
#[test]
fn a_slow_read_sees_nothing_of_what_has_come_in_its_place() {
    // All in one slot goes the short way, and two slots the long one.
    for blocks in [1, 13, 14, 29] {
        read_slowly(blocks);
    }
}

fn read_slowly(blocks: usize) {
    let bench = Bench::of_sizes(4, &[64 * 65536]);
    bench.run(move |drives| async move {
        let (is_armed, may_go_on) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let device = Waiting {
            device: drives.attach().await.remove(0),
            is_armed: is_armed.clone(),
            may_go_on: may_go_on.clone(),
        };
        let create = CreateOptions::default();
        let pool = Pool::create("tank", vec![Rc::new(device)], &create, options())
            .await
            .unwrap();
        let unchecked = VolumeOptions {
            checksums: false,
            ..VolumeOptions::new(32)
        };
        pool.create_volume("a", &unchecked).await.unwrap();
        pool.create_volume("b", &VolumeOptions::new(1000)).await.unwrap();
        let (one, other) = (pool.open_volume("a").unwrap(), pool.open_volume("b").unwrap());
        one.write(0, data(1, 32), true).await.unwrap();
        is_armed.set(true);
        let reading = spawn({
            let one = one.clone();
            async move { one.read(3, Buffer::from_heap(blocks * BLOCK)).await }
        });
        while is_armed.get() {
            yield_now().await;
        }
        one.deallocate(0, 32).await.unwrap();
        for _ in 0..2 {
            pool.checkpoint().await.unwrap();
        }
        let mut slots = 0;
        while other.write(slots * 16, data(2, 16), false).await.is_ok() {
            slots += 1;
        }
        assert!(slots > 10, "{slots}");
        may_go_on.set(true);
        let found = reading.await.unwrap();
        // Of the second slot it saw what was there when it began.
        let first: Vec<_> = found.chunks(BLOCK).take(13).map(value_of).collect();
        assert!(
            first.iter().all(|value| *value == Ok(0)),
            "{blocks} blocks: {first:?}"
        );
    });
}
