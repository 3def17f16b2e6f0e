//! The journal on simulated drives, with the power cut at every write.
//!
//! Record N names region N and needs block N modulo `DATA_BLOCKS` of the data, which is written first. So
//! what a scan finds says by itself whether it is the right thing.

use std::sync::{Arc, Mutex};

use pollux_device::{Device, Gather};
use pollux_hugepages::Slice;
use pollux_reactor::{random_u64, spawn, yield_now};
use pollux_sim::{
    CutPoints, DriveImage, Fault, Operation, PowerLoss, Recorder, SimDrive, SimDriveOptions, SimReactor,
    World,
};

use super::*;
use crate::layout::BLOCK_BYTES;

const IDENTITY: JournalIdentity = JournalIdentity {
    pool: Uuid::from_u128(0xabcd),
    incarnation: 3,
};
const RING: Ring = Ring {
    first_block: 7,
    blocks: RING_BLOCKS_MIN,
};
const DATA_FIRST: u64 = RING.first_block + RING.blocks + 5;
const DATA_BLOCKS: u64 = 64;
const START: RingPosition = RingPosition {
    sequence: 1000,
    place: 60,
};
const LOSSES: [PowerLoss; 4] = [
    PowerLoss::LoseAll,
    PowerLoss::KeepAll,
    PowerLoss::Reordered,
    PowerLoss::Torn,
];

fn record(number: u64) -> Record {
    Record::Intent {
        volume: 5,
        region: number,
    }
}

fn number_of(record: &Record) -> u64 {
    match record {
        Record::Intent { volume: 5, region } => *region,
        other => panic!("nobody appended {other:?}"),
    }
}

fn data(number: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&(number + 1).to_le_bytes());
    }
    block
}

/// A world with one reactor.
fn world(seed: u64) -> (World, SimReactor) {
    let world = World::new(seed);
    let machine = world.add_machine("engine");
    let reactor = world.add_reactor(machine);
    (world, reactor)
}

fn drive_options(block_bytes: u32, volatile: bool) -> SimDriveOptions {
    let mut options = SimDriveOptions::new((DATA_FIRST + DATA_BLOCKS) * BLOCK_BYTES as u64, block_bytes)
        .expect("a good geometry")
        .instant();
    options.geometry.volatile_write_cache = volatile;
    options.tears_within_blocks = true;
    options
}

async fn attach(drive: &Arc<SimDrive>) -> PoolDevice {
    let device = drive.clone().attach().await.expect("it attaches");
    PoolDevice::new(device).expect("a good block size")
}

async fn copies(drives: &[Arc<SimDrive>]) -> ArrayVec<JournalCopy, COPIES_MAX> {
    let mut copies = ArrayVec::new();
    for drive in drives {
        copies.push(JournalCopy {
            device: attach(drive).await,
            ring: RING,
        });
    }
    copies
}

/// What was told, and when, in events of the recorder.
#[derive(Default)]
struct Told {
    /// Records below a number were durable.
    durable: Vec<(usize, u64)>,
    /// The journal could be replayed from a position on, with records from a number on.
    released: Vec<(usize, RingPosition, u64)>,
}

/// Appends records, their data first, and commits now and then, from two tasks; releases now and then.
async fn history(drives: Vec<Arc<SimDrive>>, recorder: Arc<Recorder>, rounds: u64, told: Arc<Mutex<Told>>) {
    let journal = Journal::new(IDENTITY, copies(&drives).await, START, 1);
    let data_device = attach(&drives[0]).await;
    journal.set_data_devices(vec![data_device.clone()]);
    told.lock().unwrap().released.push((0, START, 0));
    let mut next = 0;
    let mut commits = Vec::new();
    for _ in 0..rounds {
        // Now and then more than a block holds.
        let records_max = if random_u64().is_multiple_of(6) { 700 } else { 30 };
        for _ in 0..1 + random_u64() % records_max {
            let from = Gather::from(Slice::copy_from(&data(next)));
            let block = DATA_FIRST + next % DATA_BLOCKS;
            data_device.write(block, from, false).await.unwrap();
            journal.room().await.unwrap();
            journal.append(&record(next), AppendFor::Change).unwrap();
            next += 1;
        }
        let (journal_of_task, recorder, told_of_task) = (journal.clone(), recorder.clone(), told.clone());
        let appended = next;
        let commit = spawn(async move {
            journal_of_task.commit().await.unwrap();
            told_of_task
                .lock()
                .unwrap()
                .durable
                .push((recorder.position(), appended));
        });
        commits.push(commit);
        if random_u64().is_multiple_of(3) {
            yield_now().await;
        } else {
            for commit in commits.drain(..) {
                commit.await;
            }
        }
        if journal.is_checkpoint_due() || random_u64().is_multiple_of(5) {
            let position = journal.cut();
            journal.commit().await.unwrap();
            journal.release(position.sequence, 1);
            let at = (recorder_position(&told, next), position, next);
            told.lock().unwrap().released.push(at);
        }
    }
    for commit in commits {
        commit.await;
    }
}

/// A release is known when the commit before it was: the last thing that was told.
fn recorder_position(told: &Mutex<Told>, _next: u64) -> usize {
    let told = told.lock().unwrap();
    told.durable.iter().map(|(at, _)| *at).max().unwrap_or(0)
}

/// Everything that a scan finds.
async fn scan(drives: &[Arc<SimDrive>], from: RingPosition) -> Result<(Vec<u64>, RingPosition), ScanError> {
    let mut scanner = Scanner::new(IDENTITY, copies(drives).await, from);
    let mut found = Vec::new();
    while let Some(block) = scanner.next().await? {
        found.extend(block.records.iter().map(number_of));
    }
    Ok((found, scanner.position()))
}

/// Records a run on drives and looks at every power cut.
fn check_all_cuts(seed: u64, options: &[SimDriveOptions], rounds: u64) -> u64 {
    let (world, reactor) = world(seed);
    let recorder = Recorder::new();
    let drives: Vec<_> = options
        .iter()
        .enumerate()
        .map(|(number, options)| {
            let drive = SimDrive::new(&format!("drive{number}"), options.clone(), seed);
            drive.record(&recorder);
            drive
        })
        .collect();
    let told = Arc::new(Mutex::new(Told::default()));
    world.block_on(reactor, history(drives, recorder.clone(), rounds, told.clone()));
    let told = std::mem::take(&mut *told.lock().unwrap());
    let mut states = 0;
    for state in recorder.crash_states(seed, CutPoints::Writes, &LOSSES) {
        states += 1;
        let position = state.position;
        let durable = told.durable.iter().filter(|(at, _)| *at <= position);
        let durable = durable.map(|(_, number)| *number).max().unwrap_or(0);
        let released = told.released.iter().filter(|(at, _, _)| *at <= position);
        let &(_, from, first) = released.max_by_key(|(_, from, _)| from.sequence).unwrap();
        let context = format!("seed {seed}, cut at {position}, {:?}", state.loss);
        check_state(&world, reactor, state.images, (from, first, durable), &context);
    }
    states
}

fn check_state(
    world: &World,
    reactor: SimReactor,
    images: Vec<DriveImage>,
    (from, first, durable): (RingPosition, u64, u64),
    context: &str,
) {
    let drives: Vec<_> = images
        .into_iter()
        .map(|image| image.into_drive("after", 1))
        .collect();
    let image = drives[0].image();
    let (found, _) = world
        .block_on(reactor, async move { scan(&drives, from).await })
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let end = first + found.len() as u64;
    assert!(
        found.iter().copied().eq(first..end),
        "{context}: {first} to {end} expected, {found:?} found"
    );
    assert!(end >= durable, "{context}: {end} records, {durable} were durable");
    // Data of a lap later may be on its way over it; that of a lap before is gone.
    for number in first.max(end.saturating_sub(DATA_BLOCKS))..end {
        let mut block = [0; BLOCK_BYTES];
        image.read(
            (DATA_FIRST + number % DATA_BLOCKS) * BLOCK_BYTES as u64,
            &mut block,
        );
        let (words, _) = block.as_chunks::<8>();
        let is_there = words.iter().all(|word| {
            let word = u64::from_le_bytes(*word);
            word > number && (word - 1) % DATA_BLOCKS == number % DATA_BLOCKS
        });
        assert!(is_there, "{context}: no data of record {number}");
    }
}

#[test]
fn a_power_cut_anywhere_leaves_what_was_durable_and_nothing_else() {
    let mut states = 0;
    for seed in 0..4 {
        states += check_all_cuts(seed, &[drive_options(4096, true)], 24);
    }
    states += check_all_cuts(10, &[drive_options(512, true)], 24);
    states += check_all_cuts(11, &[drive_options(4096, false)], 24);
    states += check_all_cuts(12, &[drive_options(512, true), drive_options(4096, true)], 20);
    assert!(states > 5_000, "{states}");
}

/// A journal with records on a drive, each batch of blocks committed apart; the numbers at which blocks
/// begin.
fn written(world: &World, reactor: SimReactor, drives: &[Arc<SimDrive>], commits: u64) -> u64 {
    let drives = drives.to_vec();
    world.block_on(reactor, async move {
        let journal = Journal::new(IDENTITY, copies(&drives).await, START, 1);
        for number in 0..commits {
            journal.append(&record(number), AppendFor::Change).unwrap();
            journal.commit().await.unwrap();
        }
        journal.durable()
    })
}

fn place_of(sequence: u64) -> u64 {
    let place = START.advanced(sequence - START.sequence, RING.blocks).place;
    (RING.first_block + place) * BLOCK_BYTES as u64
}

#[test]
fn every_flipped_bit_is_found_and_damage_is_told_from_the_end() {
    let (world, reactor) = world(1);
    let drive = SimDrive::new("drive", drive_options(4096, true), 1);
    let end = written(&world, reactor, std::slice::from_ref(&drive), 5);
    assert_eq!(end, START.sequence + 5);
    let image = drive.image();
    for (sequence, bytes) in (START.sequence..end).flat_map(|sequence| {
        (0..BLOCK_BYTES as u64)
            .step_by(if sequence == START.sequence + 1 { 1 } else { 97 })
            .map(move |at| (sequence, at))
    }) {
        let mut flipped = image.clone();
        flipped.flip_bit(place_of(sequence) + bytes, (bytes % 8) as u8);
        let after = flipped.into_drive("after", 1);
        let result = world.block_on(reactor, async move { scan(&[after], START).await });
        if sequence + 1 == end {
            // The last block may as well be torn.
            let (found, position) = result.unwrap();
            assert_eq!((found, position.sequence), (vec![0, 1, 2, 3], sequence));
        } else {
            let damaged = ScanError::Damaged {
                sequence,
                last: end - 1,
            };
            assert_eq!(result, Err(damaged), "byte {bytes}");
        }
    }
}

#[test]
fn a_second_copy_makes_up_for_damage_of_the_first() {
    let (world, reactor) = world(2);
    let drives = [1, 2].map(|seed| SimDrive::new("drive", drive_options(4096, true), seed));
    written(&world, reactor, &drives, 6);
    drives[0].flip_bit(place_of(START.sequence + 1) + 100, 0);
    drives[1].flip_bit(place_of(START.sequence + 5) + 100, 0);
    drives[1].make_unreadable(RING.first_block + RING.blocks - 2, 1);
    let (found, _) = world
        .block_on(reactor, async move { scan(&drives, START).await })
        .unwrap();
    assert_eq!(found, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn blocks_of_another_incarnation_or_an_earlier_lap_are_no_part_of_it() {
    let (world, reactor) = world(3);
    let drive = SimDrive::new("drive", drive_options(4096, true), 1);
    written(&world, reactor, std::slice::from_ref(&drive), 20);
    let again = drive.clone();
    let (found, other) = world.block_on(reactor, async move {
        let identity = JournalIdentity {
            incarnation: IDENTITY.incarnation + 1,
            ..IDENTITY
        };
        let start = START.advanced(5, RING.blocks);
        let journal = Journal::new(identity, copies(std::slice::from_ref(&again)).await, start, 1);
        for number in 100..103 {
            journal.append(&record(number), AppendFor::Change).unwrap();
            journal.commit().await.unwrap();
        }
        let mut scanner = Scanner::new(identity, copies(std::slice::from_ref(&again)).await, start);
        let mut found = Vec::new();
        while let Some(block) = scanner.next().await.unwrap() {
            found.extend(block.records.iter().map(number_of));
        }
        (
            found,
            scan(&[again], START.advanced(10, RING.blocks)).await.unwrap().0,
        )
    });
    assert_eq!(found, [100, 101, 102]);
    assert_eq!(other.first(), Some(&10));
}

#[test]
fn a_full_ring_makes_changes_wait_and_leaves_room_for_a_checkpoint() {
    let (world, reactor) = world(4);
    let drive = SimDrive::new("drive", drive_options(4096, true), 1);
    world.block_on(reactor, async move {
        let journal = Journal::new(IDENTITY, copies(std::slice::from_ref(&drive)).await, START, 1);
        let mut next = 0;
        while journal.append(&record(next), AppendFor::Change).is_ok() {
            next += 1;
        }
        assert!(journal.is_checkpoint_due());
        assert_eq!(journal.used().used, RING.blocks - RESERVED_BLOCKS);
        assert_eq!(
            journal.append(&record(next), AppendFor::Change),
            Err(JournalError::Full)
        );
        let waiting = spawn({
            let journal = journal.clone();
            async move { journal.room().await }
        });
        let position = journal.cut();
        for number in next..next + 100 {
            journal.append(&record(number), AppendFor::Checkpoint).unwrap();
        }
        yield_now().await;
        assert!(!waiting.is_finished());
        journal.commit().await.unwrap();
        journal.release(position.sequence, 2);
        assert_eq!(waiting.await, Ok(()));
        journal.append(&record(next + 100), AppendFor::Change).unwrap();
        journal.commit().await.unwrap();
        let (found, _) = scan(&[drive], position).await.unwrap();
        assert!(found.into_iter().eq(next..=next + 100));
    });
}

#[test]
fn without_a_copy_nothing_is_durable_any_more() {
    for copies_of in 1..=2 {
        let (world, reactor) = world(5);
        let drives: Vec<_> = (0..copies_of)
            .map(|seed| SimDrive::new("drive", drive_options(4096, true), seed))
            .collect();
        world.block_on(reactor, async move {
            let journal = Journal::new(IDENTITY, copies(&drives).await, START, 1);
            journal.append(&record(0), AppendFor::Change).unwrap();
            journal.commit().await.unwrap();
            for lost in 0..drives.len() {
                let fault = Fault::Error(IoError::MediaWrite);
                drives[lost].fail_nth(Operation::Write, 1, fault);
                let sequence = journal
                    .append(&record(1 + lost as u64), AppendFor::Change)
                    .unwrap();
                let result = journal.commit().await;
                if lost + 1 < drives.len() {
                    assert_eq!(result, Ok(()), "the other copy has it");
                    continue;
                }
                let failed = Err(JournalError::Failed(IoError::MediaWrite));
                assert_eq!(result, failed);
                assert!(journal.durable() < sequence);
                assert_eq!(journal.append(&record(9), AppendFor::Change).map(drop), failed);
                assert_eq!((journal.commit().await, journal.room().await), (failed, failed));
            }
            let (found, _) = scan(&drives, START).await.unwrap();
            // A write that failed may have arrived.
            assert!(
                (drives.len()..=drives.len() + 1).contains(&found.len()),
                "{found:?}"
            );
        });
    }
}

#[test]
fn a_flush_that_fails_makes_no_record_durable() {
    let (world, reactor) = world(6);
    let drive = SimDrive::new("drive", drive_options(4096, true), 1);
    world.block_on(reactor, async move {
        let journal = Journal::new(IDENTITY, copies(std::slice::from_ref(&drive)).await, START, 1);
        drive.fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
        journal.append(&record(0), AppendFor::Change).unwrap();
        let failed = Err(JournalError::Failed(IoError::MediaWrite));
        assert_eq!(journal.failure(), None);
        assert_eq!(journal.commit().await, failed);
        assert_eq!(journal.failure(), Some(IoError::MediaWrite));
        assert_eq!(drive.counters().writes, 0);
    });
}

#[test]
fn a_commit_goes_on_when_nobody_waits_for_it() {
    let (world, reactor) = world(7);
    let options = SimDriveOptions::new((DATA_FIRST + DATA_BLOCKS) * BLOCK_BYTES as u64, 4096).unwrap();
    let drive = SimDrive::new("drive", options, 1);
    world.block_on(reactor, async move {
        let journal = Journal::new(IDENTITY, copies(std::slice::from_ref(&drive)).await, START, 1);
        let sequence = journal.append(&record(0), AppendFor::Change).unwrap();
        let given_up = spawn({
            let journal = journal.clone();
            async move { journal.commit().await }
        });
        yield_now().await;
        drop(given_up);
        assert_eq!(journal.reached(sequence).await, Ok(()));
    });
}
