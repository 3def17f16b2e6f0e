//! The states that power cuts leave of a recorded run.

use std::cell::RefCell;
use std::rc::Rc;

use pollux_device::{BlockDeviceExt, Device};
use pollux_hugepages::Slice;
use pollux_sim::oracle::{CheckedDevice, Oracle, Pattern, SharedOracle, Workload};
use pollux_sim::{CutPoints, Fault, Operation, PowerLoss, Recorder, SimDriveOptions};

use crate::common::{BLOCK, block_of, one_machine, options, with_queue};

/// One sector as far as a power loss is concerned: what it holds for sure, and what it may hold instead.
#[derive(Clone, Default)]
struct SectorModel {
    durable: u8,
    later: Vec<u8>,
}

/// The states of a random history, each sector against what it may be.
fn check_crash_states(seed: u64, tears_within_blocks: bool) -> usize {
    const BLOCKS: u64 = 8;
    const SECTORS: usize = BLOCK / 512;
    let drive_options = SimDriveOptions {
        tears_within_blocks,
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
            if !tears_within_blocks {
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
        check_crash_states(seed, seed % 2 == 0);
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

/// Runs clients once, then checks what a power cut at every write leaves; the first thing that was wrong.
fn check_recorded_clients(seed: u64, flush_works: bool) -> Result<usize, String> {
    let (world, _, reactor, drive) = one_machine(seed, options());
    let recorder = Recorder::new();
    drive.record(&recorder);
    let oracle: SharedOracle = Rc::new(RefCell::new(Oracle::recorded(&recorder)));
    if !flush_works {
        (1..1000).for_each(|_| drive.fail_nth(Operation::Flush, 1, Fault::Lie));
    }
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (drive, oracle) = (drive.clone(), oracle.clone());
            let mut random = world.random("client", client);
            world.spawn(reactor, async move {
                let device = CheckedDevice::new(drive.attach().await.unwrap(), oracle);
                let workload = Workload::mixed(0..20, 60);
                workload.run(&device, &mut random, |_| false).await.unwrap();
            })
        })
        .collect();
    clients.iter().for_each(|client| world.finish(client));

    let pattern = Pattern { block_bytes: BLOCK };
    let mut history = oracle.borrow().history().unwrap();
    let mut states = 0;
    for state in recorder.crash_states(seed, CutPoints::Writes, &[PowerLoss::LoseAll, PowerLoss::Torn]) {
        let model = history.at(state.position);
        for block in 0..24 {
            let mut content = [0; BLOCK];
            state.images[0].read(block * BLOCK as u64, &mut content);
            let values = pattern
                .values(&content, block)
                .map_err(|error| error.to_string())?;
            model
                .check_survivor(block, values[0])
                .map_err(|error| error.to_string())?;
        }
        states += 1;
    }
    Ok(states)
}

#[test]
fn a_recorded_oracle_judges_every_state() {
    for seed in 0..10 {
        let states = check_recorded_clients(seed, true).unwrap();
        assert!(states > 100, "{states}");
    }
    let found = (0..20)
        .filter(|&seed| check_recorded_clients(seed, false).is_err())
        .count();
    assert!(found > 15, "{found}");
}
