//! Random sequential histories of a pool, recorded, and what must be there after a power cut anywhere.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::layout::volume::VolumeKind;
use pollux_pool::{CreateOptions, Pool, PoolError, Volume, VolumeOptions};
use pollux_reactor::{Task, random_u64, spawn};
use pollux_sim::{CrashState, Recorder};

use crate::common::{Bench, Drives, options};
use crate::model::{BlockModel, Done, PoolModel, Step, VolumeModel};

pub const BLOCK: usize = 4096;
const FILLER: &str = "filler";
const FILLER_VALUE: u64 = 1 << 40;
pub fn below(limit: u64) -> u64 {
    random_u64() % limit.max(1)
}

pub fn data(value: u64, blocks: u64) -> Buffer {
    let mut buffer = Buffer::from_heap(blocks as usize * BLOCK);
    for word in buffer.chunks_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    buffer
}

/// The value of a block; an error for a mixture.
pub fn value_of(block: &[u8]) -> Result<u64, String> {
    let (first, _) = block.split_first_chunk().unwrap();
    let first = u64::from_le_bytes(*first);
    // Every word is the one before it: one comparison of memory, as this is done for very many blocks.
    if block[8..] == block[..block.len() - 8] {
        Ok(first)
    } else {
        Err(format!("a mixture that begins with {first}"))
    }
}

/// A pool that random things are done to.
struct Run {
    pool: Rc<Pool>,
    recorder: Arc<Recorder>,
    model: PoolModel,
    done: Rc<RefCell<Vec<Done>>>,
    next_value: u64,
    next_name: u64,
}

impl Run {
    fn note(&mut self, start: usize, step: Step) {
        self.model.apply(&step, true);
        self.done.borrow_mut().push(Done {
            start,
            end: self.recorder.position(),
            step,
        });
    }

    fn pick(&self, snapshots: bool) -> Option<String> {
        let names: Vec<&String> = self
            .model
            .volumes
            .iter()
            .filter(|(name, volume)| volume.is_snapshot == snapshots && *name != FILLER)
            .map(|(name, _)| name)
            .collect();
        let at = below(names.len() as u64) as usize;
        names.get(at).map(|name| (*name).clone())
    }

    fn fresh_name(&mut self) -> String {
        self.next_name += 1;
        format!("v{}", self.next_name)
    }

    /// Something random; what could not be done for want of space is not noted.
    async fn step(&mut self) -> Result<(), PoolError> {
        let start = self.recorder.position();
        let step = self.draw();
        // A write may be begun and not done: the record of the run has it as under way until the next one.
        self.done.borrow_mut().push(Done {
            start,
            end: usize::MAX,
            step: step.clone(),
        });
        let result = self.act(&step).await;
        self.done.borrow_mut().pop();
        match result {
            Ok(()) => {
                self.note(start, step);
                Ok(())
            }
            Err(
                PoolError::NoSpace
                | PoolError::NoRoomForThick { .. }
                // The first thick volume changes labels.
                | PoolError::DevicesChanging
                | PoolError::Device(IoError::CapacityExceeded),
            ) => {
                if let Step::Write { name, .. } = &step {
                    let is_thick = self.pool.volume(name).unwrap().thick;
                    assert!(!is_thick, "{step:?} of a thick volume found no space");
                }
                self.note_what_was_done(start, &step).await;
                Err(PoolError::NoSpace)
            }
            Err(error) => panic!("{step:?}: {error}"),
        }
    }

    /// A write, or a change of size, for which there was no space has been done in part: which is read.
    async fn note_what_was_done(&mut self, start: usize, step: &Step) {
        let (name, from, upto, value) = match step {
            Step::Write {
                name,
                block,
                blocks,
                value,
                ..
            } => (name, *block, block + blocks, *value),
            Step::Resize { name, blocks } => (name, *blocks, u64::MAX, 0),
            _ => return,
        };
        let size = self.model.volumes[name].blocks.len() as u64;
        let volume = self.pool.open_volume(name).unwrap();
        let found = values_of(&volume, name, size).await.unwrap();
        for block in from..upto.min(size) {
            if found[block as usize] == value
                && self.model.volumes[name].blocks[block as usize].last() != value
            {
                let written = Step::Write {
                    name: name.clone(),
                    block,
                    blocks: 1,
                    value,
                    forced: false,
                };
                self.note(start, written);
            }
        }
    }

    fn draw(&mut self) -> Step {
        let volumes = self.model.volumes.len();
        let (volume, snapshot) = (self.pick(false), self.pick(true));
        match (below(40), volume, snapshot) {
            (_, None, _) => Step::Create {
                name: self.fresh_name(),
                blocks: 40 + below(60),
            },
            (0, ..) if volumes < 6 => Step::Create {
                name: self.fresh_name(),
                blocks: 40 + below(60),
            },
            (1..=2, Some(of), _) if volumes < 7 => Step::Snapshot {
                of,
                name: self.fresh_name(),
            },
            (3, _, Some(of)) if volumes < 7 => Step::Clone {
                of,
                name: self.fresh_name(),
            },
            (4, Some(name), Some(to)) => {
                // The size goes with it.
                if self.model.volumes[&name].blocks.len() == self.model.volumes[&to].blocks.len() {
                    Step::RollBack { name, to }
                } else {
                    Step::Flush
                }
            }
            (5, Some(name), _) if volumes > 3 => Step::Delete { name },
            (6, _, Some(name)) => Step::Delete { name },
            (7, Some(name), _) => Step::Resize {
                name,
                blocks: 30 + below(70),
            },
            (8..=9, ..) => Step::Flush,
            (10..=12, ..) => Step::Nothing,
            (kind, Some(name), _) => {
                let size = self.model.volumes[&name].blocks.len() as u64;
                let blocks = 1 + below(if kind == 13 { 50 } else { 6 });
                let blocks = blocks.min(size);
                self.next_value += 1;
                let value = if kind >= 36 { 0 } else { self.next_value };
                // Most of it in few slots, so that they meet.
                let last = size - blocks;
                let last = if kind.is_multiple_of(4) {
                    last
                } else {
                    last.min(24)
                };
                Step::Write {
                    name,
                    block: below(last + 1),
                    blocks,
                    value,
                    forced: kind == 14,
                }
            }
        }
    }

    async fn act(&mut self, step: &Step) -> Result<(), PoolError> {
        let pool = &self.pool;
        match step {
            Step::Create { name, blocks } => {
                let options = VolumeOptions {
                    checksums: below(4) > 0,
                    thick: below(3) == 0,
                    ..VolumeOptions::new(*blocks)
                };
                pool.create_volume(name, &options).await.map(drop)
            }
            Step::Write {
                name,
                block,
                blocks,
                value,
                forced,
            } => {
                let volume = pool.open_volume(name)?;
                let result = if *value == 0 {
                    volume.deallocate(*block, *blocks).await
                } else {
                    volume.write(*block, data(*value, *blocks), *forced).await
                };
                if *value == 0 && *forced {
                    volume.flush().await?;
                }
                result.map_err(|error| match error {
                    pollux_device::IoError::CapacityExceeded => PoolError::NoSpace,
                    error => error.into(),
                })
            }
            Step::Flush => {
                // A flush is one of a volume: what others wrote without checksums need not be durable by it.
                let volumes = pool.volumes().into_iter();
                for entry in volumes.filter(|entry| entry.kind == VolumeKind::Volume) {
                    pool.open_volume(&entry.name)?.flush().await?;
                }
                Ok(())
            }
            Step::Snapshot { of, name } => pool.snapshot(of, name, 0).await.map(drop),
            Step::Clone { of, name } => pool.clone_snapshot(of, name, 0).await.map(drop),
            Step::RollBack { name, to } => pool.roll_back(name, to).await.map(drop),
            Step::Delete { name } => pool.delete(name).await,
            Step::Resize { name, blocks } => pool.resize(name, *blocks, true).await,
            Step::Nothing => {
                let (pool, wait) = (pool.clone(), below(2) == 0);
                let act = match below(2) {
                    0 => spawn(async move { pool.checkpoint().await }),
                    _ => spawn(async move { pool.reclaim().await }),
                };
                if wait {
                    return act.await;
                }
                // It goes on beside what comes next.
                act.detach();
                Ok(())
            }
        }
    }
}

/// A recorded run.
pub struct Recorded {
    pub recorder: Arc<Recorder>,
    /// What was there before.
    pub base: PoolModel,
    pub done: Vec<Done>,
    /// When the pool was there; 0 if it was from the start.
    pub created: usize,
    /// When it was exported, at the end.
    pub exported: Option<usize>,
    /// Steps for which there was no space.
    pub refused: u64,
    next_value: u64,
    next_name: u64,
}

impl Recorded {
    /// Nothing yet.
    pub fn new(recorder: &Arc<Recorder>) -> Self {
        Self {
            recorder: recorder.clone(),
            base: PoolModel::default(),
            done: Vec::new(),
            created: 0,
            exported: None,
            refused: 0,
            next_value: 0,
            next_name: 0,
        }
    }
}

/// Makes a pool, and does random things to it.
pub fn record(bench: &Bench, steps: u64) -> Recorded {
    record_in(bench, steps, &CreateOptions::default(), None)
}

/// The same in a pool of which a volume takes all space but so many bytes.
pub fn record_in(bench: &Bench, steps: u64, create: &CreateOptions, free_bytes: Option<u64>) -> Recorded {
    record_through(bench, steps, create, free_bytes, |device| device)
}

/// The same with something between the pool and each drive.
pub fn record_through(
    bench: &Bench,
    steps: u64,
    create: &CreateOptions,
    free_bytes: Option<u64>,
    wrap: fn(Rc<dyn BlockDevice>) -> Rc<dyn BlockDevice>,
) -> Recorded {
    let recorder = Recorder::new();
    let mut recorded = Recorded::new(&recorder);
    let create = create.clone();
    bench.run(move |drives| async move {
        let record = || drives.0.iter().for_each(|drive| drive.record(&recorder));
        if free_bytes.is_none() {
            record();
        }
        let devices = drives.attach().await.into_iter().map(wrap).collect();
        let pool = Pool::create("tank", devices, &create, options()).await;
        let pool = pool.unwrap();
        if let Some(free_bytes) = free_bytes {
            recorded.base = fill(&pool, free_bytes).await;
            record();
        }
        let created = recorder.position();
        go_on(pool, Recorded { created, ..recorded }, steps, false).await
    })
}

/// Fills a pool up to so many bytes with a volume that nothing is done to.
async fn fill(pool: &Rc<Pool>, free_bytes: u64) -> PoolModel {
    let slots = pool.space().free_bytes.saturating_sub(free_bytes) / 65536;
    let mut values = vec![0; slots as usize * 16];
    pool.create_volume(FILLER, &VolumeOptions::new(slots * 16))
        .await
        .unwrap();
    let volume = pool.open_volume(FILLER).unwrap();
    for slot in 0..slots {
        volume
            .write(slot * 16, data(FILLER_VALUE, 1), false)
            .await
            .unwrap();
        values[slot as usize * 16] = FILLER_VALUE;
    }
    volume.flush().await.unwrap();
    let filler = VolumeModel::of_values(&values, false, true);
    PoolModel {
        volumes: [(FILLER.to_owned(), filler)].into(),
    }
}

/// Imports what is on drives, and does more to it; at the end it is exported, or not.
pub fn record_more(
    bench: &Bench,
    drives: &Drives,
    after: &Recorded,
    base: PoolModel,
    steps: u64,
    export: bool,
) -> Recorded {
    let recorder = Recorder::new();
    for drive in &drives.0 {
        drive.record(&recorder);
    }
    let recorded = Recorded {
        recorder,
        base,
        done: Vec::new(),
        created: 0,
        exported: None,
        refused: 0,
        ..*after
    };
    let drives = drives.clone();
    bench.world.block_on(bench.reactor, async move {
        let imported = Pool::import(drives.attach().await, options()).await;
        go_on(imported.unwrap().0, recorded, steps, export).await
    })
}

async fn go_on(pool: Rc<Pool>, recorded: Recorded, steps: u64, export: bool) -> Recorded {
    go_on_changing(pool, recorded, steps, export, Vec::new()).await.0
}

/// Something that is done to the devices of a pool beside what its volumes do.
pub type Change = Box<dyn FnOnce(Rc<Pool>) -> Pin<Box<dyn Future<Output = Result<(), PoolError>>>>>;

/// A change of devices, and when it began.
#[derive(Debug, Clone)]
pub struct Changed {
    pub start: usize,
    pub result: Result<(), PoolError>,
}

/// Begins a change, when the one before has ended.
async fn change(run: &Run, under_way: &mut Option<Task<Changed>>, changed: &mut Vec<Changed>, act: Change) {
    if let Some(before) = under_way.take() {
        changed.push(before.await);
    }
    let (pool, recorder) = (run.pool.clone(), run.recorder.clone());
    *under_way = Some(spawn(async move {
        let start = recorder.position();
        let result = act(pool).await;
        Changed { start, result }
    }));
}

/// Does random things to a pool; at some steps a change of its devices begins.
pub async fn go_on_changing(
    pool: Rc<Pool>,
    recorded: Recorded,
    steps: u64,
    export: bool,
    changes: Vec<(u64, Change)>,
) -> (Recorded, Vec<Changed>) {
    let done = Rc::new(RefCell::new(Vec::new()));
    let mut run = Run {
        pool,
        recorder: recorded.recorder.clone(),
        model: recorded.base.clone(),
        done: done.clone(),
        next_value: recorded.next_value,
        next_name: recorded.next_name,
    };
    let mut refused = 0;
    let (mut changes, mut under_way, mut changed) = (changes.into_iter().peekable(), None, Vec::new());
    for step in 0..steps {
        if let Some((_, act)) = changes.next_if(|(at, _)| *at <= step) {
            change(&run, &mut under_way, &mut changed, act).await;
        }
        // Out of space is fine: something is deleted sooner or later.
        refused += u64::from(run.step().await.is_err());
    }
    if let Some(last) = under_way.take() {
        changed.push(last.await);
    }
    let mut exported = None;
    if export {
        let start = run.recorder.position();
        run.pool.export().await.unwrap();
        exported = Some(run.recorder.position());
        // All that was acknowledged is durable by that.
        run.note(start, Step::Flush);
    }
    let recorded = Recorded {
        done: done.take(),
        exported,
        refused,
        next_value: run.next_value,
        next_name: run.next_name,
        ..recorded
    };
    (recorded, changed)
}

/// What must be there after a cut at a position.
pub fn model_at(recorded: &Recorded, position: usize) -> PoolModel {
    let mut model = recorded.base.clone();
    for Done { start, end, step } in &recorded.done {
        if *end <= position {
            model.apply(step, true);
        } else if *start <= position {
            model.apply(step, false);
        }
    }
    model
}

/// What was written to a block: it can be read.
pub async fn value(volume: &Volume, block: u64, what: &str) -> u64 {
    let read = volume.read(block, Buffer::from_heap(BLOCK)).await;
    let bytes = read.unwrap_or_else(|error| panic!("{what}: {error}"));
    value_of(&bytes).unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

/// The values of all blocks of a volume.
pub async fn values_of(volume: &Volume, name: &str, blocks: u64) -> Result<Vec<u64>, String> {
    let mut values = Vec::new();
    // In small pieces: large ones take the time of the operating system, which gives memory.
    for first in (0..blocks).step_by(16) {
        let count = (blocks - first).min(16);
        let bytes = volume
            .read(first, Buffer::from_heap(count as usize * BLOCK))
            .await;
        let bytes = bytes.map_err(|error| format!("{name} cannot be read: {error}"))?;
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK)) {
            values.push(value_of(bytes).map_err(|error| format!("{name} block {block}: {error}"))?);
        }
    }
    Ok(values)
}

/// What a pool holds, exactly.
pub async fn contents(pool: &Rc<Pool>) -> Result<PoolModel, String> {
    let mut model = PoolModel::default();
    for entry in pool.volumes() {
        let name = entry.name;
        let opened = pool.open_volume(&name).map_err(|error| error.to_string())?;
        let values = values_of(&opened, &name, entry.size_blocks).await?;
        let is_snapshot = entry.kind == VolumeKind::Snapshot;
        model
            .volumes
            .insert(name, VolumeModel::of_values(&values, is_snapshot, true));
    }
    Ok(model)
}

/// Imports what is on drives, and returns what it holds.
pub fn import_contents(bench: &Bench, drives: &Drives) -> PoolModel {
    let drives = drives.clone();
    bench.world.block_on(bench.reactor, async move {
        let imported = Pool::import(drives.attach().await, options()).await;
        contents(&imported.unwrap().0).await.unwrap()
    })
}

pub async fn verify(drives: Drives, model: PoolModel, must_be_there: bool) -> Result<(), String> {
    let imported = Pool::import(drives.attach().await, options()).await;
    let (pool, _) = match imported {
        Ok(imported) => imported,
        Err(_) if !must_be_there => return Ok(()),
        Err(error) => return Err(format!("it cannot be imported: {error}")),
    };
    verify_imported(&pool, &model).await
}

/// Whether a pool that was just opened is sound and holds what it must, also after deletions went on.
pub async fn verify_imported(pool: &Rc<Pool>, model: &PoolModel) -> Result<(), String> {
    verify_pool(pool, model).await?;
    for round in 0..2 {
        let check = pool.check().await.map_err(|error| error.to_string())?;
        if !check.is_sound() {
            return Err(format!("round {round}: {check:?}"));
        }
        if pool.deleting() == 0 && round == 0 {
            // Nothing to reclaim, and so nothing changes any more.
            return Ok(());
        }
        pool.reclaim().await.map_err(|error| error.to_string())?;
    }
    verify_pool(pool, model).await
}

/// Fills what is free by a thin volume, and then writes every slot of all thick volumes: there has to be
/// space. How many slots that were.
pub async fn write_all_thick(pool: &Rc<Pool>) -> Result<u64, String> {
    let told = |error: PoolError| error.to_string();
    let all = pool.volumes();
    let thick: Vec<_> = all.iter().filter(|entry| entry.thick).collect();
    if thick.is_empty() {
        return Ok(0);
    }
    match pool.create_volume("thin", &VolumeOptions::new(1 << 20)).await {
        Ok(_) => {}
        Err(PoolError::NoSpace) => return Err("there is no room for the entry of a volume".to_owned()),
        Err(error) => return Err(told(error)),
    }
    let thin = pool.open_volume("thin").map_err(told)?;
    for slot in 0.. {
        // Far from each other, so that each takes as many pages as it can.
        let stride = 1 + below(3) * 600;
        match thin.write(slot * 16 * stride, data(1, 1), false).await {
            Ok(()) => {}
            Err(IoError::CapacityExceeded) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    let mut slots = 0;
    for entry in thick {
        let volume = pool.open_volume(&entry.name).map_err(told)?;
        for slot in 0..entry.slots() {
            let written = volume.write(slot * 16, data(2, 1), below(9) == 0).await;
            written.map_err(|error| format!("{}: slot {slot}: {error}, {:?}", entry.name, pool.space()))?;
            slots += 1;
        }
        volume.flush().await.map_err(|error| error.to_string())?;
    }
    let check = pool.check().await.map_err(told)?;
    match check.is_sound() {
        true => Ok(slots),
        false => Err(format!("after thick volumes were written: {check:?}")),
    }
}

pub async fn verify_pool(pool: &Rc<Pool>, model: &PoolModel) -> Result<(), String> {
    let found = pool.volumes();
    for entry in &found {
        let known = model.volumes.contains_key(&entry.name);
        if !known {
            return Err(format!("{} was never made, or was deleted", entry.name));
        }
    }
    for (name, volume) in &model.volumes {
        let Some(entry) = found.iter().find(|entry| entry.name == *name) else {
            if volume.certain {
                return Err(format!("{name} is lost"));
            }
            continue;
        };
        let size = entry.size_blocks;
        if size != volume.blocks.len() as u64 && Some(size) != volume.other_size {
            return Err(format!("{name} has {size} blocks"));
        }
        let opened = pool.open_volume(name).map_err(|error| error.to_string())?;
        let values = values_of(&opened, name, size).await?;
        for (block, found) in values.into_iter().enumerate() {
            let nothing = BlockModel::default();
            let legal = volume.blocks.get(block).unwrap_or(&nothing);
            if !legal.allows(found) {
                return Err(format!("{name} block {block} holds {found}, legal {legal:?}"));
            }
        }
    }
    Ok(())
}

pub fn check_state(bench: &Bench, recorded: &Recorded, state: CrashState, context: &str) {
    let context = format!("{context}, cut at {}, {:?}", state.position, state.loss);
    if let Err(error) = judge_state(bench, recorded, state) {
        panic!("{context}: {error}");
    }
}

/// Whether what a power cut left is as it was promised.
pub fn judge_state(bench: &Bench, recorded: &Recorded, state: CrashState) -> Result<(), String> {
    let model = model_at(recorded, state.position);
    let must_be_there = state.position >= recorded.created;
    let drives = state
        .images
        .into_iter()
        .map(|image| image.into_drive("after", 1))
        .collect();
    bench
        .world
        .block_on(bench.reactor, verify(Drives(drives), model, must_be_there))
}
