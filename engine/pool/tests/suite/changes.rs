//! Random histories in which devices of the pool change, and what must be there after a power cut.

use std::cell::Cell;
use std::rc::Rc;

use pollux_device::{BlockDevice, Completion, Geometry, Request};
use pollux_pool::layout::superblock::DeviceState;
use pollux_pool::{CreateOptions, DeviceStatus, Pool, PoolError, Unreadable};
use pollux_sim::{CrashState, CutPoints, PowerLoss, Recorder};

use crate::common::{Bench, DRIVE_BYTES, Drives, options};
use crate::history::{Change, Changed, Recorded, go_on_changing, model_at, verify_imported, verify_pool};
use crate::missing::{look, without_one};
use crate::model::PoolModel;

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::LoseAll,
    PowerLoss::KeepAll,
    PowerLoss::Reordered,
    PowerLoss::Torn,
];

/// What a pool is made of.
pub struct Setup {
    pub seed: u64,
    /// Drives of the pool at first.
    pub members: usize,
    /// Drives that are there besides.
    pub spares: usize,
    /// Extents at the end of each drive that the pool does not see until it is told to grow.
    pub hidden_extents: u64,
}

/// What is done to its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// The hidden extents come to light.
    Grow,
    /// A spare drive is added.
    Add(usize),
    /// A device leaves.
    Drain(u8),
    /// Pages have their copies on two devices.
    Spread,
    /// A spare drive takes the place of a device.
    Replace(u8, usize),
}

/// A device of which the end is not seen at first.
struct Hiding {
    device: Rc<dyn BlockDevice>,
    hidden_blocks: Rc<Cell<u64>>,
}

impl BlockDevice for Hiding {
    fn geometry(&self) -> Geometry {
        let geometry = self.device.geometry();
        Geometry {
            blocks: geometry.blocks - self.hidden_blocks.get(),
            ..geometry
        }
    }

    fn submit(&self, request: Request) -> Completion {
        self.device.submit(request)
    }
}

fn change_of(plan: Plan, hidden: &Rc<Cell<u64>>, spares: &[Rc<dyn BlockDevice>]) -> Change {
    let hidden = hidden.clone();
    let spare = |number: usize| spares[number].clone();
    match plan {
        Plan::Grow => Box::new(move |pool: Rc<Pool>| {
            Box::pin(async move {
                hidden.set(0);
                let before = pool.space().total_bytes;
                let grown = pool.grow().await?;
                assert_eq!(grown.len(), pool.devices().len());
                assert!(pool.space().total_bytes > before);
                assert!(pool.grow().await?.is_empty());
                Ok(())
            })
        }),
        Plan::Drain(number) => Box::new(move |pool: Rc<Pool>| {
            Box::pin(async move {
                let before = pool.devices();
                pool.drain_device(number, Unreadable::Stay, &mut |progress| {
                    assert!(
                        progress.left_bytes <= progress.total_bytes + (1 << 20),
                        "{progress:?}"
                    );
                })
                .await?;
                let left = before.iter().filter(|device| device.number != number);
                let left: Vec<_> = left.map(|device| device.uuid).collect();
                let after: Vec<_> = pool.devices().iter().map(|device| device.uuid).collect();
                assert_eq!(after, left);
                assert!(pool.devices().iter().any(|device| device.has_journal));
                Ok(())
            })
        }),
        Plan::Replace(number, spare_number) => {
            let device = spare(spare_number);
            Box::new(move |pool: Rc<Pool>| {
                Box::pin(async move {
                    let before = pool.devices();
                    pool.replace_device(number, device, false, &mut |progress| {
                        assert!(progress.copied_bytes > 0, "{progress:?}");
                    })
                    .await?;
                    let after = pool.devices();
                    assert_eq!(after.len(), before.len());
                    for (before, after) in before.iter().zip(&after) {
                        assert_eq!(before.uuid != after.uuid, before.number == number);
                        assert_eq!(before.has_journal, after.has_journal);
                    }
                    Ok(())
                })
            })
        }
        Plan::Spread => Box::new(move |pool: Rc<Pool>| Box::pin(async move { pool.spread_metadata().await })),
        Plan::Add(number) => {
            let device = spare(number);
            Box::new(move |pool: Rc<Pool>| {
                Box::pin(async move {
                    let before = pool.devices().len();
                    pool.add_device(device, false).await?;
                    assert_eq!(pool.devices().len(), before + 1);
                    Ok(())
                })
            })
        }
    }
}

/// A recorded history with changes of devices.
pub fn record_plan(
    bench: &Bench,
    setup: &Setup,
    steps: u64,
    plans: Vec<(u64, Plan)>,
) -> (Recorded, Vec<Changed>) {
    let recorder = Recorder::new();
    let (members, hidden_blocks) = (setup.members, setup.hidden_extents * 16);
    bench.run(move |drives| async move {
        drives.0.iter().for_each(|drive| drive.record(&recorder));
        let hidden = Rc::new(Cell::new(hidden_blocks));
        let attached = drives.attach().await.into_iter();
        let mut devices: Vec<Rc<dyn BlockDevice>> = attached
            .map(|device| -> Rc<dyn BlockDevice> {
                let hidden_blocks = hidden.clone();
                Rc::new(Hiding {
                    device,
                    hidden_blocks,
                })
            })
            .collect();
        let spares = devices.split_off(members);
        let pool = Pool::create("tank", devices, &CreateOptions::default(), options()).await;
        let pool = pool.unwrap();
        let changes = plans
            .into_iter()
            .map(|(at, plan)| (at, change_of(plan, &hidden, &spares)))
            .collect();
        let mut recorded = Recorded::new(&recorder);
        recorded.created = recorder.position();
        go_on_changing(pool, recorded, steps, false, changes).await
    })
}

/// Opens the pool of those drives that are of it.
pub async fn import_members(drives: &Drives) -> Result<Rc<Pool>, PoolError> {
    let mut drives = drives.clone();
    loop {
        match Pool::import(drives.attach().await, options()).await {
            Ok((pool, _)) => return Ok(pool),
            Err(PoolError::NoPool { device, .. } | PoolError::Foreign { device, .. })
                if drives.0.len() > 1 =>
            {
                drives.0.remove(device);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn judge(drives: Drives, model: PoolModel, must_be_there: bool) -> Result<(), String> {
    let pool = match import_members(&drives).await {
        Ok(pool) => pool,
        Err(_) if !must_be_there => return Ok(()),
        Err(error) => return Err(format!("it cannot be imported: {error}")),
    };
    verify_imported(&pool, &model).await?;
    // What was begun can be ended.
    let draining = pool
        .devices()
        .into_iter()
        .find(|device| device.state == DeviceState::Draining);
    if let Some(DeviceStatus { number, .. }) = draining {
        let drained = pool.drain_device(number, Unreadable::Stay, &mut |_| {}).await;
        drained.map_err(|error| format!("device {number} cannot be drained: {error}"))?;
        verify_imported(&pool, &model).await?;
    }
    let before = pool.devices();
    drop(pool);
    // And it stays so.
    let pool = import_members(&drives).await.map_err(|error| error.to_string())?;
    if pool
        .devices()
        .iter()
        .map(|device| device.uuid)
        .ne(before.iter().map(|device| device.uuid))
    {
        return Err(format!("it had {before:?}, and has {:?}", pool.devices()));
    }
    let check = pool.check().await.map_err(|error| error.to_string())?;
    if !check.is_sound() {
        return Err(format!("the second time: {check:?}"));
    }
    verify_pool(&pool, &model).await
}

/// Never can a pool be opened both with a device and with the one that takes its place.
fn check_one_of_two(
    bench: &Bench,
    members: usize,
    (number, spare): (u8, usize),
    state: &CrashState,
) -> Vec<bool> {
    let without = [members + spare, usize::from(number)];
    let opened = without.map(|without| {
        let others = state.images.iter().enumerate().filter(|(at, _)| *at != without);
        let drives = others.map(|(_, image)| image.clone().into_drive("one of two", 1));
        let drives = Drives(drives.collect());
        bench.world.block_on(
            bench.reactor,
            async move { import_members(&drives).await.is_ok() },
        )
    });
    assert!(opened != [true, true], "with either device there is a pool");
    opened.to_vec()
}

/// Whatever is missing, what can be opened of the rest is as it was promised. How often it could be.
fn check_without_one(bench: &Bench, recorded: &Recorded, state: &CrashState, context: &str) -> u64 {
    let mut opened = 0;
    for (missing, drives) in without_one(state).enumerate() {
        let single = Drives(drives.0.iter().take(1).cloned().collect());
        for drives in [drives, single] {
            let looked = look(bench, drives, model_at(recorded, state.position));
            if let Ok(Err(error)) = &looked {
                panic!("{context}, cut at {}, without {missing}: {error}", state.position);
            }
            opened += u64::from(looked.is_ok());
        }
    }
    opened
}

fn check_state(bench: &Bench, recorded: &Recorded, state: CrashState, context: &str) {
    let context = format!("{context}, cut at {}, {:?}", state.position, state.loss);
    let model = model_at(recorded, state.position);
    let must_be_there = state.position >= recorded.created;
    let drives = state.images.into_iter().map(|image| image.into_drive("after", 1));
    let drives = Drives(drives.collect());
    let judged = bench
        .world
        .block_on(bench.reactor, judge(drives, model, must_be_there));
    if let Err(error) = judged {
        panic!("{context}: {error}");
    }
}

/// Cuts the power at every write from the first change of devices on; how many states that were.
pub fn check_plan(setup: &Setup, steps: u64, plans: Vec<(u64, Plan)>) -> u64 {
    let sizes = vec![DRIVE_BYTES; setup.members + setup.spares];
    let bench = Bench::of_sizes(setup.seed, &sizes);
    let context = format!("seed {}, {} drives, {plans:?}", setup.seed, setup.members);
    let replaced = plans.iter().find_map(|(_, plan)| match plan {
        Plan::Replace(number, spare) => Some((*number, *spare)),
        _ => None,
    });
    let (recorded, changed) = record_plan(&bench, setup, steps, plans);
    for change in &changed {
        assert_eq!(change.result, Ok(()), "{context}");
    }
    let replaced = replaced.as_ref();
    let (mut opened, mut opened_in_part) = ([0, 0], 0);
    let first = changed.first().map_or(0, |change| change.start);
    let mut states = 0;
    let losses = [
        LOSSES[setup.seed as usize % 4],
        LOSSES[(setup.seed as usize + 1) % 4],
    ];
    for state in recorded
        .recorder
        .crash_states(setup.seed, CutPoints::Writes, &losses)
    {
        if state.position >= first {
            states += 1;
            if let Some(replaced) = replaced {
                let which = check_one_of_two(&bench, setup.members, *replaced, &state);
                (0..2).for_each(|at| opened[at] += u64::from(which[at]));
            }
            if states % 8 == 0 {
                opened_in_part += check_without_one(&bench, &recorded, &state, &context);
            }
            check_state(&bench, &recorded, state, &context);
        }
    }
    assert!(
        setup.members == 1 || opened_in_part > 10,
        "{context}: {opened_in_part}"
    );
    assert!(
        replaced.is_none() || !opened.contains(&0),
        "{context}: {opened:?}"
    );
    states
}
