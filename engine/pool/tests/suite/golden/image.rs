//! The pool of the golden image: how it is made, what it holds, and how its drives are kept in a file.
//!
//! The file has the drives one after the other. Integers are little-endian. A drive is its length in blocks
//! of 4 KiB, u64, and its blocks that are not zeros, ended by the largest u64: the number of the block, u64,
//! then its 512 words of 8 bytes as runs: how often, u16, and the word.

#![allow(
    dead_code,
    reason = "the test and the program that makes the file each use a part"
)]

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, BlockDeviceExt, Device};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolOptions, VolumeOptions};
use pollux_sim::{PowerLoss, SimDrive, SimDriveOptions, World};

pub const BLOCK: usize = 4096;
const DRIVE_BYTES: u64 = 8 << 20;
const DRIVES: usize = 2;
/// Blocks of every volume.
pub const BLOCKS: u64 = 600;

pub fn options() -> PoolOptions {
    PoolOptions {
        background: false,
        ..PoolOptions::default()
    }
}

pub async fn attach(drives: &[Arc<SimDrive>]) -> Vec<Rc<dyn BlockDevice>> {
    let mut devices = Vec::new();
    for drive in drives {
        devices.push(drive.clone().attach().await.unwrap());
    }
    devices
}

fn drive(number: usize) -> Arc<SimDrive> {
    let options = SimDriveOptions::new(DRIVE_BYTES, 4096).unwrap().instant();
    SimDrive::new(&format!("golden{number}"), options, 1)
}

/// Name, whether it is a snapshot, and the blocks that are not zeros with what they hold.
pub type Expected = (&'static str, bool, Vec<(u64, u64)>);

/// The volumes and snapshots by name: whether it is a snapshot, and what its blocks hold that are not zeros.
pub fn expected() -> Vec<Expected> {
    let all = |ranges: &[(u64, u64, u64)]| -> Vec<(u64, u64)> {
        let mut blocks = std::collections::BTreeMap::new();
        for (block, count, value) in ranges {
            blocks.extend((*block..block + count).map(|block| (block, *value)));
        }
        blocks.into_iter().filter(|(_, value)| *value != 0).collect()
    };
    vec![
        ("clone", false, all(&[(0, 20, 1), (5, 1, 9)])),
        (
            "documents",
            false,
            all(&[(0, 20, 1), (10, 4, 3), (0, 2, 6), (590, 3, 2), (12, 1, 0)]),
        ),
        ("documents@first", true, all(&[(0, 20, 1)])),
        (
            "documents@third",
            true,
            all(&[(0, 20, 1), (10, 4, 3), (590, 3, 2)]),
        ),
        ("unchecked", false, all(&[(100, 5, 4), (102, 1, 7)])),
    ]
}

fn data(value: u64, blocks: u64) -> Buffer {
    let mut buffer = Buffer::from_heap(blocks as usize * BLOCK);
    for word in buffer.chunks_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    buffer
}

async fn fill(devices: Vec<Rc<dyn BlockDevice>>) {
    let pool = Pool::create("golden", devices, &CreateOptions::default(), options())
        .await
        .unwrap();
    let write = async |name: &str, block: u64, blocks: u64, value: u64| {
        let volume = pool.open_volume(name).unwrap();
        volume.write(block, data(value, blocks), false).await.unwrap();
    };
    pool.create_volume("documents", &VolumeOptions::new(BLOCKS))
        .await
        .unwrap();
    write("documents", 0, 20, 1).await;
    pool.snapshot("documents", "documents@first", 1_700_000_000)
        .await
        .unwrap();
    pool.create_volume("gone", &VolumeOptions::new(BLOCKS))
        .await
        .unwrap();
    write("gone", 50, 30, 8).await;
    pool.snapshot("documents", "documents@second", 1_700_000_001)
        .await
        .unwrap();
    write("documents", 590, 3, 2).await;
    pool.checkpoint().await.unwrap();
    write("documents", 10, 4, 3).await;
    pool.snapshot("documents", "documents@third", 1_700_000_002)
        .await
        .unwrap();
    let unchecked = VolumeOptions {
        checksums: false,
        ..VolumeOptions::new(BLOCKS)
    };
    pool.create_volume("unchecked", &unchecked).await.unwrap();
    write("unchecked", 100, 5, 4).await;
    pool.clone_snapshot("documents@first", "clone", 1_700_000_003)
        .await
        .unwrap();
    // It stays, hidden, as long as it has two children.
    pool.delete("documents@first").await.unwrap();
    pool.delete("gone").await.unwrap();
    pool.reclaim().await.unwrap();
    pool.rename("documents@second", "documents@first").await.unwrap();
    // From here on it is in the journal only, in records of all kinds.
    write("documents", 0, 2, 5).await;
    write("documents", 0, 2, 6).await;
    write("clone", 5, 1, 9).await;
    write("unchecked", 102, 1, 7).await;
    let documents = pool.open_volume("documents").unwrap();
    documents.deallocate(12, 1).await.unwrap();
    documents.deallocate(300, 64).await.unwrap();
    write("clone", 320, 40, 11).await;
    pool.open_volume("clone")
        .unwrap()
        .deallocate(320, 40)
        .await
        .unwrap();
    documents.flush().await.unwrap();
}

/// Makes the pool, as a power cut left it, and returns the file: always the same.
pub fn make() -> Vec<u8> {
    let world = World::new(1);
    let machine = world.add_machine("golden");
    let reactor = world.add_reactor(machine);
    let drives: Vec<Arc<SimDrive>> = (0..DRIVES).map(drive).collect();
    let of_task = drives.clone();
    world.block_on(reactor, async move { fill(attach(&of_task).await).await });
    let mut file = Vec::new();
    for drive in drives {
        drive.power_loss(PowerLoss::LoseAll);
        write_drive(&drive, &mut file);
    }
    file
}

fn write_drive(drive: &SimDrive, file: &mut Vec<u8>) {
    let blocks = DRIVE_BYTES / BLOCK as u64;
    file.extend(blocks.to_le_bytes());
    for block in 0..blocks {
        let mut bytes = [0; BLOCK];
        drive.peek(block * BLOCK as u64, &mut bytes);
        if bytes == [0; BLOCK] {
            continue;
        }
        file.extend(block.to_le_bytes());
        let (words, _) = bytes.as_chunks::<8>();
        for run in words.chunk_by(|one, other| one == other) {
            file.extend((run.len() as u16).to_le_bytes());
            file.extend(run[0]);
        }
    }
    file.extend(u64::MAX.to_le_bytes());
}

/// The drives that a file has.
pub fn read(mut file: &[u8]) -> Vec<Arc<SimDrive>> {
    let mut drives = Vec::new();
    while !file.is_empty() {
        let drive = drive(drives.len());
        assert_eq!(u64::from_le_bytes(take(&mut file)) * BLOCK as u64, DRIVE_BYTES);
        loop {
            let block = u64::from_le_bytes(take(&mut file));
            if block == u64::MAX {
                break;
            }
            let mut bytes = Vec::new();
            while bytes.len() < BLOCK {
                let count = u16::from_le_bytes(take(&mut file));
                bytes.extend(take::<8>(&mut file).repeat(count.into()));
            }
            drive.poke(block * BLOCK as u64, &bytes);
        }
        drives.push(drive);
    }
    drives
}

fn take<const BYTES: usize>(file: &mut &[u8]) -> [u8; BYTES] {
    let (first, rest) = file.split_first_chunk().unwrap();
    *file = rest;
    *first
}
