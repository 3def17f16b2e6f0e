//! What simulated drives keep, what a power loss leaves of it, and what goes wrong on demand.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device, Geometry, IoError, Request, ZeroOptions};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{now, spawn};
use pollux_sim::{
    Crash, Fault, Faults, Fill, Latency, Operation, PowerLoss, SimDrive, SimDriveOptions, World,
};
use proptest::prelude::*;

use crate::common::{BLOCK, block_of, one_machine, options, with_queue};

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
    fn reads_return_what_was_written(
        seed in any::<u64>(),
        used in any::<bool>(),
        instant in any::<bool>(),
        steps in 1usize..60,
    ) {
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
fn left_of_ten(loss: PowerLoss, tears_within_blocks: bool) -> Vec<[Option<u8>; 10]> {
    let options = SimDriveOptions {
        tears_within_blocks,
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
        left_of_ten(PowerLoss::LoseAll, true)
            .iter()
            .all(|left| *left == [Some(0); 10])
    );
    assert!(
        left_of_ten(PowerLoss::KeepAll, true)
            .iter()
            .all(|left| *left == [Some(1); 10])
    );
    let reordered = left_of_ten(PowerLoss::Reordered, true);
    assert!(reordered.iter().flatten().all(Option::is_some));
    let later_without_earlier =
        |left: &&[Option<u8>; 10]| left.windows(2).any(|pair| pair == [Some(0), Some(1)]);
    assert!(reordered.iter().filter(later_without_earlier).count() > 30);
    let torn = |loss, tears| {
        left_of_ten(loss, tears)
            .iter()
            .flatten()
            .filter(|left| left.is_none())
            .count()
    };
    assert!(torn(PowerLoss::Torn, true) > 100);
    assert_eq!(torn(PowerLoss::Torn, false), 0);
    let kinds: BTreeSet<_> = left_of_ten(PowerLoss::Any, true).into_iter().collect();
    assert!(kinds.contains(&[Some(0); 10]) && kinds.contains(&[Some(1); 10]) && kinds.len() > 20);
}

#[test]
fn writes_under_way_may_have_happened_in_part_and_never_complete() {
    let slow = SimDriveOptions {
        tears_within_blocks: true,
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

#[test]
fn silent_faults_come_with_their_probability() {
    let silent = [
        Faults {
            lost_write_probability: 0.3,
            ..Faults::default()
        },
        Faults {
            misdirected_write_probability: 0.3,
            ..Faults::default()
        },
        Faults {
            write_flip_probability: 0.3,
            ..Faults::default()
        },
        Faults {
            read_flip_probability: 0.3,
            ..Faults::default()
        },
        Faults {
            misdirected_read_probability: 0.3,
            ..Faults::default()
        },
    ];
    for (seed, faults) in (0..).zip(silent) {
        let (world, _, reactor, drive) = one_machine(seed, options());
        drive.set_faults(faults);
        let wrong = with_queue(&world, reactor, &drive, async |queue| {
            let mut wrong = 0;
            for value in 1..=200 {
                let block = u64::from(value) % 4;
                queue.write(block, block_of(value), false).await.unwrap();
                wrong += u32::from(read_block(&*queue, block).await != Ok(Some(value)));
            }
            wrong
        });
        assert!((30..90).contains(&wrong), "{faults:?}: {wrong}");
        assert_eq!(u64::from(wrong), drive.counters().faults);
    }
}

#[test]
fn a_failed_write_was_done_or_not_or_in_part() {
    let mut left = BTreeSet::new();
    for seed in 0..60 {
        let (world, _, reactor, drive) = one_machine(
            seed,
            SimDriveOptions {
                tears_within_blocks: true,
                ..options()
            },
        );
        drive.fail_nth(Operation::Write, 1, Fault::Error(IoError::MediaWrite));
        let content = with_queue(&world, reactor, &drive, async |queue| {
            assert_eq!(queue.write(0, block_of(1), true).await, Err(IoError::MediaWrite));
            read_block(&*queue, 0).await.unwrap()
        });
        left.insert(content);
    }
    assert_eq!(left, BTreeSet::from([None, Some(0), Some(1)]));
}

#[test]
fn a_process_that_dies_leaves_writes_done_or_not() {
    let slow = SimDriveOptions {
        write_latency: Latency::between(Duration::from_millis(10), Duration::from_millis(10)),
        ..options()
    };
    let mut left = BTreeSet::new();
    for seed in 0..30 {
        let (world, machine, reactor, drive) = one_machine(seed, slow.clone());
        let device = drive.clone();
        drop(world.spawn(reactor, async move {
            device.attach().await.unwrap().write(0, block_of(1), true).await
        }));
        world.run_for(Duration::from_millis(5));
        world.crash_all(Crash::Process);
        world.restart(machine);
        left.insert(with_queue(&world, reactor, &drive, async |queue| {
            read_block(&*queue, 0).await.unwrap()
        }));
    }
    assert_eq!(left, BTreeSet::from([Some(0), Some(1)]));
}
