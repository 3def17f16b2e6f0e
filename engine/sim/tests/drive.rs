//! What simulated drives keep, what a power loss leaves of it, and what goes wrong on demand.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device, Geometry, IoError, Request, ZeroOptions};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{now, spawn};
use pollux_sim::{
    Crash, CutPoints, Fault, Faults, Fill, Latency, MachineId, Operation, PowerLoss, Recorder, SimDrive,
    SimDriveOptions, SimReactor, World,
};
use proptest::prelude::*;

const BLOCK: usize = 4096;

fn options() -> SimDriveOptions {
    SimDriveOptions::new(1 << 20, BLOCK as u32).unwrap()
}

fn one_machine(seed: u64, options: SimDriveOptions) -> (World, MachineId, SimReactor, Arc<SimDrive>) {
    let world = World::new(seed);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    let drive = world.add_drive(machine, "drive", options);
    (world, machine, reactor, drive)
}

/// Runs a future with a queue of the drive.
fn with_queue<T: 'static>(
    world: &World,
    reactor: SimReactor,
    drive: &Arc<SimDrive>,
    act: impl AsyncFnOnce(Rc<dyn BlockDevice>) -> T + 'static,
) -> T {
    let drive = drive.clone();
    world.block_on(reactor, async move { act(drive.attach().await.unwrap()).await })
}

fn block_of(byte: u8) -> Slice {
    Slice::copy_from(&[byte; BLOCK])
}

/// The byte that all of a block consists of; `None` if they differ.
fn uniform(bytes: &[u8]) -> Option<u8> {
    bytes.iter().all(|byte| *byte == bytes[0]).then_some(bytes[0])
}

async fn read_block(queue: &dyn BlockDevice, block: u64) -> Result<Option<u8>, IoError> {
    queue
        .read(block, Buffer::from_heap(BLOCK))
        .await
        .map(|buffer| uniform(&buffer))
}

/// The byte that all of a block consists of, on the medium; `None` if it is torn.
fn on_medium(drive: &SimDrive, block: u64) -> Option<u8> {
    let mut bytes = [0; BLOCK];
    drive.image().read(block * BLOCK as u64, &mut bytes);
    uniform(&bytes)
}

#[test]
fn requests_are_checked_before_anything_is_done() {
    let strict = SimDriveOptions {
        geometry: Geometry {
            transfer_blocks_max: 4,
            memory_align_bytes: 512,
            ..options().geometry
        },
        ..options()
    };
    let (world, _, reactor, drive) = one_machine(1, strict);
    with_queue(&world, reactor, &drive, async |queue| {
        assert_eq!(
            queue.write(256, block_of(1), false).await,
            Err(IoError::OutOfRange)
        );
        assert_eq!(
            queue.write(0, Slice::copy_from(&[1; 100]), false).await,
            Err(IoError::InvalidField)
        );
        assert_eq!(
            queue.write(0, Slice::copy_from(&[1; 5 * BLOCK]), false).await,
            Err(IoError::InvalidField)
        );
        let odd = Slice::copy_from(&[1; BLOCK + 1]).slice(1..);
        assert_eq!(queue.write(0, odd, false).await, Err(IoError::InvalidField));
        assert_eq!(queue.deallocate(u64::MAX, 2).await, Err(IoError::OutOfRange));
    });
    assert_eq!(drive.counters(), Default::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn reads_return_what_was_written(seed in any::<u64>(), used in any::<bool>(), instant in any::<bool>(), steps in 1usize..60) {
        let fill = if used { Fill::Noise(seed) } else { Fill::Zeros };
        let mut options = SimDriveOptions { fill, cache_bytes: 40 << 10, ..options() };
        if instant {
            options = options.instant();
        }
        let (world, _, reactor, drive) = one_machine(seed, options);
        let mut random = world.random("test", 0);
        let mut model = vec![0; 1 << 20];
        drive.peek(0, &mut model);
        prop_assert_eq!(model.iter().any(|&byte| byte != 0), used);
        with_queue(&world, reactor, &drive, async move |queue| {
            for step in 0..steps {
                let block = random.below(250);
                let blocks = random.within(1..=6);
                let range = block as usize * BLOCK..(block + blocks) as usize * BLOCK;
                match random.below(6) {
                    0 => {
                        let data: Vec<u8> = (0..range.len()).map(|at| (at ^ step) as u8).collect();
                        queue.write(block, Slice::copy_from(&data), random.chance(0.5)).await.unwrap();
                        model[range].copy_from_slice(&data);
                    }
                    1 => {
                        queue.deallocate(block, blocks).await.unwrap();
                        model[range].fill(0);
                    }
                    2 => {
                        queue.write_zeroes(block, blocks, ZeroOptions::default()).await.unwrap();
                        model[range].fill(0);
                    }
                    3 => {
                        let same = Slice::copy_from(&model[range.clone()]);
                        queue.compare(block, same).await.unwrap();
                        let mut other = model[range].to_vec();
                        let at = random.index(other.len());
                        other[at] ^= 1;
                        let other = Slice::copy_from(&other);
                        assert_eq!(queue.compare(block, other).await, Err(IoError::CompareFailed));
                    }
                    4 => queue.flush().await.unwrap(),
                    _ => {
                        let data = queue.read(block, Buffer::from_heap(range.len())).await.unwrap();
                        assert!(data[..] == model[range]);
                    }
                }
            }
        });
    }
}

#[test]
fn flushed_and_forced_writes_survive_and_others_need_not() {
    let (world, _, reactor, drive) = one_machine(2, options());
    with_queue(&world, reactor, &drive, async |queue| {
        queue.write(0, block_of(1), false).await.unwrap();
        queue.flush().await.unwrap();
        queue.write(0, block_of(2), false).await.unwrap();
        queue.write(1, block_of(3), true).await.unwrap();
        queue.write(2, block_of(4), false).await.unwrap();
        assert_eq!(read_block(&*queue, 0).await, Ok(Some(2)));
    });
    assert_eq!(drive.cached_writes(), 2);
    drive.power_loss(PowerLoss::LoseAll);
    assert_eq!(
        [0, 1, 2].map(|block| on_medium(&drive, block)),
        [Some(1), Some(3), Some(0)]
    );
    let counters = drive.counters();
    assert_eq!(
        (counters.writes, counters.fua_writes, counters.flushes),
        (4, 1, 1)
    );
    assert_eq!((counters.reads, counters.written_bytes), (1, 4 * BLOCK as u64));
}

#[test]
fn a_drive_without_a_volatile_cache_loses_nothing() {
    let protected = SimDriveOptions {
        geometry: Geometry {
            volatile_write_cache: false,
            ..options().geometry
        },
        ..options()
    };
    let (world, _, reactor, drive) = one_machine(3, protected);
    with_queue(&world, reactor, &drive, async |queue| {
        queue.write(0, block_of(1), false).await.unwrap()
    });
    drive.power_loss(PowerLoss::LoseAll);
    assert_eq!(on_medium(&drive, 0), Some(1));
}

#[test]
fn an_older_cached_write_never_covers_a_forced_one() {
    for (seed, loss) in (0..20).flat_map(|seed| [PowerLoss::KeepAll, PowerLoss::Any].map(|loss| (seed, loss)))
    {
        let (world, _, reactor, drive) = one_machine(seed, options());
        with_queue(&world, reactor, &drive, async |queue| {
            queue
                .write(0, Slice::copy_from(&[1; 3 * BLOCK]), false)
                .await
                .unwrap();
            queue.write(1, block_of(2), true).await.unwrap();
        });
        drive.power_loss(loss);
        assert_eq!(on_medium(&drive, 1), Some(2));
    }
}

#[test]
fn a_flush_covers_what_completed_before_it_only() {
    let slow = SimDriveOptions {
        flush_latency: Latency::between(Duration::from_millis(10), Duration::from_millis(10)),
        ..options()
    };
    let (world, _, reactor, drive) = one_machine(4, slow);
    with_queue(&world, reactor, &drive, async |queue| {
        queue.write(0, block_of(1), false).await.unwrap();
        let flush = spawn(queue.submit(Request::Flush));
        queue.write(1, block_of(2), false).await.unwrap();
        flush.await.unwrap();
    });
    drive.power_loss(PowerLoss::LoseAll);
    assert_eq!([on_medium(&drive, 0), on_medium(&drive, 1)], [Some(1), Some(0)]);
}

/// What is left of ten unflushed blocks, for many seeds.
fn left_of_ten(loss: PowerLoss, atomic_write_blocks: u32) -> Vec<[Option<u8>; 10]> {
    let options = SimDriveOptions {
        geometry: Geometry {
            atomic_write_blocks,
            ..options().geometry
        },
        ..options()
    };
    let run = |seed| {
        let (world, _, reactor, drive) = one_machine(seed, options.clone());
        with_queue(&world, reactor, &drive, async |queue| {
            for block in 0..10 {
                queue.write(block, block_of(1), false).await.unwrap();
            }
        });
        drive.power_loss(loss);
        std::array::from_fn(|block| on_medium(&drive, block as u64))
    };
    (0..60).map(run).collect()
}

#[test]
fn power_losses_lose_keep_reorder_and_tear() {
    assert!(
        left_of_ten(PowerLoss::LoseAll, 0)
            .iter()
            .all(|left| *left == [Some(0); 10])
    );
    assert!(
        left_of_ten(PowerLoss::KeepAll, 0)
            .iter()
            .all(|left| *left == [Some(1); 10])
    );
    let reordered = left_of_ten(PowerLoss::Reordered, 0);
    assert!(reordered.iter().flatten().all(Option::is_some));
    let later_without_earlier =
        |left: &&[Option<u8>; 10]| left.windows(2).any(|pair| pair == [Some(0), Some(1)]);
    assert!(reordered.iter().filter(later_without_earlier).count() > 30);
    let torn = |loss, atomic| {
        left_of_ten(loss, atomic)
            .iter()
            .flatten()
            .filter(|left| left.is_none())
            .count()
    };
    assert!(torn(PowerLoss::Torn, 0) > 100);
    assert_eq!(torn(PowerLoss::Torn, 1), 0);
    let kinds: BTreeSet<_> = left_of_ten(PowerLoss::Any, 0).into_iter().collect();
    assert!(kinds.contains(&[Some(0); 10]) && kinds.contains(&[Some(1); 10]) && kinds.len() > 20);
}

#[test]
fn writes_under_way_may_have_happened_in_part_and_never_complete() {
    let slow = SimDriveOptions {
        write_latency: Latency::between(Duration::from_millis(10), Duration::from_millis(10)),
        ..options()
    };
    let mut left = BTreeSet::new();
    for seed in 0..60 {
        let (world, _, reactor, drive) = one_machine(seed, slow.clone());
        let device = drive.clone();
        let task = world.spawn(reactor, async move {
            let queue = device.attach().await.unwrap();
            queue.write(0, block_of(1), true).await
        });
        world.run_for(Duration::from_millis(5));
        drive.power_loss(PowerLoss::Any);
        left.insert(on_medium(&drive, 0));
        assert_eq!(world.finish(&task), Err(IoError::Gone));
    }
    assert_eq!(left, BTreeSet::from([None, Some(0), Some(1)]));
}

#[test]
fn a_dropped_completion_does_not_stop_the_write() {
    let (world, _, reactor, drive) = one_machine(5, options());
    with_queue(&world, reactor, &drive, async |queue| {
        drop(queue.submit(Request::Write {
            block: 7,
            from: block_of(9).into(),
            force_unit_access: true,
        }));
    });
    world.run_for(Duration::from_secs(1));
    assert_eq!(on_medium(&drive, 7), Some(9));
}

#[test]
fn machine_crashes_reach_their_drives() {
    for crash in [Crash::Process, Crash::Power] {
        let mut kept = 0;
        for seed in 0..20 {
            let (world, machine, reactor, drive) = one_machine(seed, options());
            with_queue(&world, reactor, &drive, async |queue| {
                queue.write(0, block_of(1), false).await.unwrap();
            });
            world.crash(machine, crash);
            world.restart(machine);
            let data = with_queue(&world, reactor, &drive, async |queue| {
                read_block(&*queue, 0).await
            });
            kept += u32::from(data == Ok(Some(1)));
        }
        match crash {
            Crash::Process => assert_eq!(kept, 20),
            Crash::Power => assert!((3..18).contains(&kept), "{kept}"),
        }
    }
}

#[test]
fn scripted_faults_come_when_they_are_due() {
    let (world, _, reactor, drive) = one_machine(6, options());
    drive.fail_nth(Operation::Write, 2, Fault::Error(IoError::MediaWrite));
    drive.fail_nth(Operation::Write, 3, Fault::Lie);
    drive.fail_nth(Operation::Write, 4, Fault::BitFlip);
    drive.fail_nth(Operation::Write, 5, Fault::Misdirected);
    drive.fail_nth(Operation::Read, 1, Fault::Error(IoError::ResourceShortage));
    drive.fail_nth(Operation::Read, 2, Fault::BitFlip);
    drive.fail_nth(Operation::Flush, 1, Fault::Delay(Duration::from_secs(9)));
    with_queue(&world, reactor, &drive, async |queue| {
        queue.write(0, block_of(1), false).await.unwrap();
        assert_eq!(queue.write(1, block_of(1), false).await, Err(IoError::MediaWrite));
        for block in 2..5 {
            queue.write(block, block_of(1), false).await.unwrap();
        }
        assert_eq!(read_block(&*queue, 0).await, Err(IoError::ResourceShortage));
        let wrong_bits = async |block| {
            let data = queue.read(block, Buffer::from_heap(BLOCK)).await.unwrap();
            data.iter().map(|byte| (byte ^ 1).count_ones()).sum::<u32>()
        };
        assert_eq!(wrong_bits(0).await, 1);
        assert_eq!(wrong_bits(0).await, 0);
        assert_eq!(read_block(&*queue, 2).await, Ok(Some(0)));
        assert_eq!(wrong_bits(3).await, 1);
        assert_eq!(read_block(&*queue, 4).await, Ok(Some(0)));
        let start = now();
        queue.flush().await.unwrap();
        assert!(now() - start >= Duration::from_secs(9));
    });
    let elsewhere = (5..256)
        .filter(|&block| on_medium(&drive, block) == Some(1))
        .count();
    assert_eq!(elsewhere, 1);
    assert_eq!(drive.counters().faults, 7);
}

#[test]
fn faults_come_with_their_probability() {
    let faults = Faults {
        read_error_probability: 0.2,
        write_error_probability: 0.2,
        flush_error_probability: 0.2,
        shortage_probability: 0.1,
        ..Faults::default()
    };
    let (world, _, reactor, drive) = one_machine(7, options());
    drive.set_faults(faults);
    let failed = with_queue(&world, reactor, &drive, async |queue| {
        let mut failed = [0, 0, 0, 0];
        let mut count = |result: Result<(), IoError>, kind: usize| match result {
            Ok(()) => {}
            Err(IoError::ResourceShortage) => failed[3] += 1,
            Err(_) => failed[kind] += 1,
        };
        for _ in 0..300 {
            count(read_block(&*queue, 0).await.map(drop), 0);
            count(queue.write(1, block_of(1), false).await, 1);
            count(queue.flush().await, 2);
        }
        failed
    });
    assert!(
        failed[..3].iter().all(|count| (30..100).contains(count)),
        "{failed:?}"
    );
    assert!((50..140).contains(&failed[3]), "{failed:?}");
}

#[test]
fn a_failed_flush_forgets_what_it_should_have_flushed() {
    for forgets in [true, false] {
        let (world, _, reactor, drive) = one_machine(8, options());
        drive.change_faults(|faults| faults.failed_flush_forgets = forgets);
        drive.fail_nth(Operation::Flush, 1, Fault::Error(IoError::MediaWrite));
        with_queue(&world, reactor, &drive, async |queue| {
            queue.write(0, block_of(1), false).await.unwrap();
            assert_eq!(queue.flush().await, Err(IoError::MediaWrite));
            queue.flush().await.unwrap();
            assert_eq!(read_block(&*queue, 0).await, Ok(Some(1)));
        });
        drive.power_loss(PowerLoss::KeepAll);
        assert_eq!(on_medium(&drive, 0), Some(u8::from(!forgets)));
    }
}

#[test]
fn latent_errors_last_until_they_are_written() {
    let (world, _, reactor, drive) = one_machine(9, options());
    drive.make_unreadable(3, 2);
    with_queue(&world, reactor, &drive, async |queue| {
        assert_eq!(read_block(&*queue, 2).await, Ok(Some(0)));
        assert_eq!(
            queue.read(1, Buffer::from_heap(3 * BLOCK)).await.err(),
            Some(IoError::MediaRead)
        );
        assert_eq!(read_block(&*queue, 4).await, Err(IoError::MediaRead));
        queue.write(3, block_of(1), false).await.unwrap();
        assert_eq!(read_block(&*queue, 3).await, Ok(Some(1)));
        assert_eq!(read_block(&*queue, 4).await, Err(IoError::MediaRead));
        queue.deallocate(4, 1).await.unwrap();
        assert_eq!(read_block(&*queue, 4).await, Ok(Some(0)));
    });
    assert_eq!(drive.health().media_errors, 3);
}

#[test]
fn slow_and_stuck_drives_take_their_time() {
    let (world, _, reactor, drive) = one_machine(10, options());
    let timed = |world: &World, drive: &Arc<SimDrive>| {
        with_queue(world, reactor, drive, async |queue| {
            let start = now();
            for _ in 0..20 {
                read_block(&*queue, 0).await.unwrap();
            }
            now() - start
        })
    };
    let usual = timed(&world, &drive);
    drive.change_faults(|faults| faults.slowdown = 100);
    assert!(timed(&world, &drive) > usual * 10);
    drive.set_faults(Faults {
        stuck: true,
        ..Faults::default()
    });
    let device = drive.clone();
    let task = world.spawn(reactor, async move {
        read_block(&*device.attach().await.unwrap(), 0).await
    });
    world.run_for(Duration::from_secs(1000));
    assert!(!task.is_ended());
    drive.set_faults(Faults::default());
    assert_eq!(world.finish(&task), Ok(Some(0)));
}

#[test]
fn drives_grow_go_and_come_back() {
    let (world, _, reactor, drive) = one_machine(11, options());
    let mut events = drive.subscribe();
    with_queue(&world, reactor, &drive, async |queue| {
        queue.write(0, block_of(1), true).await.unwrap()
    });
    drive.grow(512);
    drive.remove(PowerLoss::LoseAll);
    let device = drive.clone();
    let attached = world.block_on(reactor, async move { device.attach().await.err() });
    assert_eq!(attached, Some(IoError::Gone));
    drive.restore();
    with_queue(&world, reactor, &drive, async |queue| {
        assert_eq!(queue.geometry().blocks, 512);
        assert_eq!(read_block(&*queue, 0).await, Ok(Some(1)));
        queue.write(511, block_of(2), true).await.unwrap();
    });
    use pollux_device::events::DeviceEvent::{Removed, Resized, Returned};
    for expected in [Resized, Removed, Returned] {
        assert_eq!(events.try_recv().ok(), Some(expected));
    }
}

#[test]
fn a_flipped_bit_stays_flipped() {
    let (world, _, reactor, drive) = one_machine(12, options());
    drive.flip_bit(5000, 3);
    let data = with_queue(&world, reactor, &drive, async |queue| {
        queue.read(1, Buffer::from_heap(BLOCK)).await.unwrap()
    });
    assert_eq!(data.iter().position(|&byte| byte == 8), Some(5000 - BLOCK));
    let mut image = drive.image();
    image.flip_bit(5000, 3);
    let mut byte = [1];
    image.read(5000, &mut byte);
    assert_eq!(byte, [0]);
    image.into_drive("copy", 1).peek(5000, &mut byte);
    assert_eq!(byte, [0]);
}

/// One sector as far as a power loss is concerned: what it holds for sure, and what it may hold instead.
#[derive(Clone, Default)]
struct SectorModel {
    durable: u8,
    later: Vec<u8>,
}

/// The states of a random history, each sector against what it may be.
fn check_crash_states(seed: u64, atomic_write_blocks: u32) -> usize {
    const BLOCKS: u64 = 8;
    const SECTORS: usize = BLOCK / 512;
    let drive_options = SimDriveOptions {
        geometry: Geometry {
            atomic_write_blocks,
            ..options().geometry
        },
        ..options()
    };
    let (world, _, reactor, drive) = one_machine(seed, drive_options.instant());
    let recorder = Recorder::new();
    drive.record(&recorder);
    let mut random = world.random("history", 0);
    let positions = recorder.clone();
    // After each position in turn: the model of the sectors, and whether a write is under way.
    let history = with_queue(&world, reactor, &drive.clone(), async move |queue| {
        let mut model = vec![SectorModel::default(); BLOCKS as usize * SECTORS];
        let mut history = vec![model.clone()];
        for value in 1..40u8 {
            let block = random.below(BLOCKS);
            let blocks = random.within(1..=BLOCKS - block).min(3);
            let sectors = block as usize * SECTORS..(block + blocks) as usize * SECTORS;
            let force = random.chance(0.2);
            match random.below(4) {
                0 => {
                    queue.flush().await.unwrap();
                    for sector in &mut model {
                        sector.durable = sector.later.last().copied().unwrap_or(sector.durable);
                        sector.later.clear();
                    }
                    history.push(model.clone());
                    assert_eq!(positions.position() + 1, history.len());
                    continue;
                }
                1 => queue.deallocate(block, blocks).await.unwrap(),
                _ => {
                    let data = Slice::copy_from(&vec![value; blocks as usize * BLOCK]);
                    queue.write(block, data, force).await.unwrap();
                }
            }
            let mut content = [0; BLOCK];
            drive.peek(block * BLOCK as u64, &mut content);
            let (written, force) = (content[0], force && content[0] != 0);
            // Under way at the first of its two positions, completed at the second.
            for sector in &mut model[sectors.clone()] {
                sector.later.push(written);
            }
            history.push(model.clone());
            for sector in model[sectors].iter_mut().filter(|_| force) {
                sector.durable = written;
                sector.later.clear();
            }
            history.push(model.clone());
            assert_eq!(positions.position() + 1, history.len());
        }
        history
    });
    let losses = [
        PowerLoss::LoseAll,
        PowerLoss::KeepAll,
        PowerLoss::Reordered,
        PowerLoss::Torn,
        PowerLoss::Any,
    ];
    let mut states = 0;
    for state in recorder.crash_states(seed, CutPoints::Everywhere, &losses) {
        states += 1;
        let mut content = vec![0; BLOCKS as usize * BLOCK];
        state.images[0].read(0, &mut content);
        let model = &history[state.position];
        for (index, (sector, model)) in content.chunks(512).zip(model).enumerate() {
            assert!(sector.iter().all(|&byte| byte == sector[0]), "a sector is torn");
            let legal = match state.loss {
                PowerLoss::LoseAll => sector[0] == model.durable,
                PowerLoss::KeepAll => sector[0] == model.later.last().copied().unwrap_or(model.durable),
                _ => sector[0] == model.durable || model.later.contains(&sector[0]),
            };
            assert!(
                legal,
                "sector {index} at {} after {:?}",
                state.position, state.loss
            );
            if atomic_write_blocks > 0 {
                let of_block = &content[index / SECTORS * BLOCK..][..BLOCK];
                assert!(of_block.iter().all(|&byte| byte == sector[0]), "a block is torn");
            }
        }
    }
    assert_eq!(states, history.len() * losses.len());
    states
}

#[test]
fn crash_states_hold_old_or_new_and_never_lose_what_is_durable() {
    for seed in 0..40 {
        check_crash_states(seed, (seed % 2) as u32);
    }
}

#[test]
fn tens_of_thousands_of_crash_states_are_quick_to_make() {
    let (world, _, reactor, drive) = one_machine(13, options().instant());
    let recorder = Recorder::new();
    drive.record(&recorder);
    with_queue(&world, reactor, &drive, async |queue| {
        for number in 0..8000u64 {
            queue
                .write(number * 37 % 256, block_of(number as u8 | 1), false)
                .await
                .unwrap();
            if number % 16 == 0 {
                queue.flush().await.unwrap();
            }
        }
    });
    let losses = [
        PowerLoss::LoseAll,
        PowerLoss::Reordered,
        PowerLoss::Torn,
        PowerLoss::KeepAll,
    ];
    let mut states = 0;
    let mut sum = 0u64;
    for state in recorder.crash_states(1, CutPoints::Writes, &losses) {
        let mut byte = [0];
        state.images[0].read(0, &mut byte);
        sum += u64::from(byte[0]);
        states += 1;
    }
    assert_eq!(states, (8000 + 1) * 4);
    assert!(sum > 0);
}

#[test]
fn several_drives_share_one_record() {
    let (world, machine, reactor, first) = one_machine(14, options().instant());
    let second = world.add_drive(machine, "second", options().instant());
    let recorder = Recorder::new();
    first.record(&recorder);
    second.record(&recorder);
    let devices = [first, second];
    world.block_on(reactor, async move {
        for (value, device) in (1..).zip(devices.iter().cycle().take(4)) {
            let queue = device.clone().attach().await.unwrap();
            queue.write(0, block_of(value), true).await.unwrap();
        }
    });
    let mut seen = Vec::new();
    for state in recorder.crash_states(1, CutPoints::Writes, &[PowerLoss::LoseAll]) {
        let bytes = [0, 1].map(|drive: usize| {
            let mut byte = [0];
            state.images[drive].read(0, &mut byte);
            byte[0]
        });
        seen.push((state.position, bytes));
    }
    // Each write is two events, and a cut comes while it is under way.
    let expected = [(1, [0, 0]), (3, [1, 0]), (5, [1, 2]), (7, [3, 2]), (8, [3, 4])];
    assert_eq!(seen, expected);
}
