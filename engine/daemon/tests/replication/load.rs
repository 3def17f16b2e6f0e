//! What is written to a volume, what is known of it, and what must not be seen.
//!
//! Each block has one writer at a time, which writes a version that no other write of the test has. What is
//! known of a block says which versions a read may find: no older one than was acknowledged before the read
//! began, and no newer one than was attempted before it ended. After a kill of all engines what was flushed
//! takes the place of what was acknowledged.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::sleep;

use crate::common::content::{BLOCK_BYTES, content};

/// Blocks of the volume.
pub const BLOCKS: u64 = 8192;

/// Every so many blocks one is written, so that all regions are.
const STRIDE: u64 = 4;

/// Writers and readers side by side.
const WRITERS: u64 = 8;
const READERS: u64 = 2;

/// Writes between two flushes of a writer, about.
const WRITES_PER_FLUSH: u64 = 23;

/// The pause of a client that is told to try again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Mismatches that are told one by one.
const MISMATCHES_TOLD: usize = 20;

#[derive(Clone, Copy, Default)]
struct Known {
    acknowledged: u64,
    flushed: u64,
    attempted: u64,
}

#[derive(Default)]
struct State {
    blocks: Vec<Known>,
    next_version: u64,
    /// Counts targets; older ones must not get anything done.
    generation: u64,
    /// The newest target has acknowledged a write.
    has_acknowledged: bool,
    mismatches: Vec<String>,
    totals: Totals,
}

/// What was done in all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    pub writes: u64,
    pub reads: u64,
    pub flushes: u64,
    pub mismatches: usize,
}

/// What is known of the volume; clones are the same.
#[derive(Clone)]
pub struct Model(Arc<Mutex<State>>);

impl Model {
    pub fn new() -> Self {
        let state = State {
            blocks: vec![Known::default(); BLOCKS as usize],
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn totals(&self) -> Totals {
        let state = self.state();
        Totals {
            mismatches: state.mismatches.len(),
            ..state.totals
        }
    }

    /// Tells of something that must not be.
    pub fn mismatch(&self, what: String) {
        let mut state = self.state();
        if state.mismatches.len() < MISMATCHES_TOLD {
            crate::tell(format_args!("MISMATCH: {what}"));
        }
        state.mismatches.push(what);
    }

    /// A new target is open: older ones can do no more. Its number.
    pub fn take_over(&self) -> u64 {
        let mut state = self.state();
        state.generation += 1;
        state.has_acknowledged = false;
        state.generation
    }

    /// Every engine lost what was in its memory.
    pub fn power_lost(&self) {
        for known in &mut self.state().blocks {
            known.acknowledged = known.flushed;
        }
    }

    /// The version of a write that begins now, and whether it can succeed no more.
    fn begin_write(&self, generation: u64, block: u64) -> (u64, bool) {
        let mut state = self.state();
        state.next_version += 1;
        let version = state.next_version;
        let is_current = state.generation == generation;
        if is_current && let Some(known) = state.blocks.get_mut(block as usize) {
            known.attempted = version;
        }
        (version, !is_current && state.has_acknowledged)
    }

    fn wrote(&self, generation: u64, block: u64, version: u64, hopeless: bool) {
        if hopeless {
            self.mismatch(format!(
                "a write of block {block} by target {generation} was acknowledged, and a newer target served"
            ));
            return;
        }
        let mut state = self.state();
        state.totals.writes += 1;
        state.has_acknowledged |= state.generation == generation;
        if let Some(known) = state.blocks.get_mut(block as usize) {
            known.acknowledged = known.acknowledged.max(version);
        }
    }

    fn flushed(&self, written: &[(u64, u64)]) {
        let mut state = self.state();
        state.totals.flushes += 1;
        for &(block, version) in written {
            if let Some(known) = state.blocks.get_mut(block as usize) {
                known.flushed = known.flushed.max(version);
            }
        }
    }

    fn acknowledged(&self, block: u64) -> u64 {
        self.state()
            .blocks
            .get(block as usize)
            .map_or(0, |known| known.acknowledged)
    }

    /// What a read found that began when `floor` was acknowledged.
    fn check(&self, who: &str, block: u64, floor: u64, bytes: &[u8]) -> Option<u64> {
        let version = version_of(block, bytes);
        let attempted = {
            let mut state = self.state();
            state.totals.reads += 1;
            state
                .blocks
                .get(block as usize)
                .map_or(0, |known| known.attempted)
        };
        match version {
            Some(version) if (floor..=attempted).contains(&version) => return Some(version),
            Some(version) => self.mismatch(format!(
                "{who}: block {block} has version {version}, and is to have one from {floor} to {attempted}"
            )),
            None => self.mismatch(format!("{who}: block {block} is torn, or not its own")),
        }
        None
    }

    /// What an open volume has in all its blocks, while nobody writes: it is known from then on, and durable,
    /// as a volume that was opened is flushed.
    pub async fn compare(&self, who: &str, device: &Rc<dyn BlockDevice>) -> Result<(), IoError> {
        const AT_A_TIME: u64 = 32;
        for first in (0..BLOCKS).step_by(AT_A_TIME as usize) {
            let data = device
                .read(first, Buffer::from_heap(AT_A_TIME as usize * BLOCK_BYTES))
                .await?;
            for (block, bytes) in (first..).zip(data.chunks(BLOCK_BYTES)) {
                let floor = self.acknowledged(block);
                if let Some(found) = self.check(who, block, floor, bytes)
                    && let Some(known) = self.state().blocks.get_mut(block as usize)
                {
                    *known = Known {
                        acknowledged: found,
                        flushed: found,
                        attempted: found,
                    };
                }
            }
        }
        Ok(())
    }
}

/// The version of a block, if it has one from its first byte to its last.
fn version_of(block: u64, bytes: &[u8]) -> Option<u64> {
    let version = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    (content(block, version) == bytes).then_some(version)
}

/// Clients of one target.
#[derive(Clone)]
pub struct Load {
    pub model: Model,
    pub generation: u64,
    stop: Arc<AtomicBool>,
    running: Arc<AtomicUsize>,
    errors: Arc<Mutex<Vec<IoError>>>,
}

impl Load {
    pub fn new(model: Model, generation: u64) -> Self {
        Self {
            model,
            generation,
            stop: Arc::default(),
            running: Arc::default(),
            errors: Arc::default(),
        }
    }

    /// Starts clients on the current reactor.
    pub fn start(&self, device: &Rc<dyn BlockDevice>, seed: u64) {
        let begin = |client: u64| {
            self.running.fetch_add(1, Ordering::AcqRel);
            (
                self.clone(),
                device.clone(),
                Random(seed << 8 | (client << 1) | 1),
            )
        };
        for writer in 0..WRITERS {
            let (load, device, random) = begin(writer);
            pollux_reactor::spawn(async move {
                let ended = load.write(&device, writer, random).await;
                load.end(ended);
            })
            .detach();
        }
        for reader in 0..READERS {
            let (load, device, random) = begin(WRITERS + reader);
            pollux_reactor::spawn(async move {
                let ended = load.read(&device, random).await;
                load.end(ended);
            })
            .detach();
        }
    }

    /// Has clients end after what they do now.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub fn has_ended(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// What clients were told at their end.
    pub fn errors(&self) -> Vec<IoError> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&self, ended: Result<(), IoError>) {
        if let Err(error) = ended {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            errors.push(error);
        }
        self.running.fetch_sub(1, Ordering::AcqRel);
    }

    async fn write(
        &self,
        device: &Rc<dyn BlockDevice>,
        writer: u64,
        mut random: Random,
    ) -> Result<(), IoError> {
        let mut unflushed = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            let place = random.next() % (BLOCKS / STRIDE / WRITERS) * WRITERS + writer;
            let block = place * STRIDE;
            let force = random.next().is_multiple_of(13);
            let (version, hopeless) = self.model.begin_write(self.generation, block);
            loop {
                let data = Slice::copy_from(&content(block, version));
                match device.write(block, data, force).await {
                    Ok(()) => break,
                    Err(IoError::ResourceShortage | IoError::NotReady) => sleep(RETRY_PAUSE).await,
                    Err(error) => return Err(error),
                }
            }
            self.model.wrote(self.generation, block, version, hopeless);
            match force {
                true => self.model.flushed(&[(block, version)]),
                false => unflushed.push((block, version)),
            }
            if random.next().is_multiple_of(WRITES_PER_FLUSH) {
                device.flush().await?;
                self.model.flushed(&unflushed);
                unflushed.clear();
            }
        }
        Ok(())
    }

    async fn read(&self, device: &Rc<dyn BlockDevice>, mut random: Random) -> Result<(), IoError> {
        let who = format!("a reader of target {}", self.generation);
        while !self.stop.load(Ordering::Acquire) {
            let block = random.next() % (BLOCKS / STRIDE) * STRIDE;
            let floor = self.model.acknowledged(block);
            let data = match device.read(block, Buffer::from_heap(BLOCK_BYTES)).await {
                Ok(data) => data,
                Err(IoError::ResourceShortage | IoError::NotReady) => {
                    sleep(RETRY_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.model.check(&who, block, floor, &data);
        }
        Ok(())
    }
}

/// Marsaglia's xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
