//! A simulated drive: content, a volatile write cache, latency, and everything that drives do wrong.
//!
//! Requests take effect when they complete, in the order in which they do; a request under way when the power
//! is lost may have happened, not happened, or happened in part. What a power loss leaves is told by
//! [`store`].
//!
//! A drive is apart from any world: it takes time from the reactor that it is attached to and choices from a
//! seed of its own. [`Control::add_drive`](crate::Control::add_drive) puts it into a machine, whose crashes
//! it then shares.

mod faults;
mod options;
mod pages;
mod queue;
mod record;
mod store;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use pollux_device::events::{DeviceEvent, Publisher, Subscription};
use pollux_device::{Attaching, Device, Geometry, Health, IoError};

use crate::random::{Random, Seed, mix};

use faults::Scripted;
pub use faults::{Fault, Faults, Operation};
pub use options::{Latency, SimDriveOptions};
pub use pages::Fill;
pub(crate) use pages::PageMap;
pub use record::{CrashCursor, CrashState, CutPoints, Recorder};
use store::{Effect, Store};
pub use store::{PowerLoss, SECTOR_BYTES};

/// What a drive was asked to do, and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriveCounters {
    /// Reads and compares.
    pub reads: u64,
    /// Writes, with and without FUA.
    pub writes: u64,
    /// Writes and write zeroes with FUA.
    pub fua_writes: u64,
    /// Write zeroes.
    pub write_zeroes: u64,
    /// Deallocates.
    pub deallocates: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, without write zeroes.
    pub written_bytes: u64,
    /// Requests that something was made to go wrong with.
    pub faults: u64,
}

/// What is on a drive's medium: cheap to copy, and to make drives from.
#[derive(Clone)]
pub struct DriveImage {
    pub(crate) options: SimDriveOptions,
    pub(crate) media: PageMap,
}

impl DriveImage {
    /// Copies bytes out.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        self.media.read(offset_bytes, into);
    }

    /// Puts bytes in.
    pub fn write(&mut self, offset_bytes: u64, from: &[u8]) {
        self.media.write(offset_bytes, from);
    }

    /// Flips one bit, 0 to 7, of a byte.
    pub fn flip_bit(&mut self, offset_bytes: u64, bit: u8) {
        flip_bit(&mut self.media, offset_bytes, bit);
    }

    /// A drive with this on its medium.
    pub fn into_drive(self, name: &str, seed: u64) -> Arc<SimDrive> {
        SimDrive::with_media(name, self.options, self.media, seed)
    }
}

fn flip_bit(content: &mut PageMap, offset_bytes: u64, bit: u8) {
    let mut byte = [0];
    content.read(offset_bytes, &mut byte);
    content.write(offset_bytes, &byte.map(|byte| byte ^ 1 << (bit % 8)));
}

/// A simulated drive. See the [module](self).
pub struct SimDrive {
    name: String,
    publisher: Publisher,
    state: Mutex<State>,
}

struct State {
    options: SimDriveOptions,
    /// What reads see: the medium with everything that completed.
    view: PageMap,
    store: Store,
    faults: Faults,
    script: Vec<Scripted>,
    /// Blocks that cannot be read until they are written.
    unreadable: Vec<Range<u64>>,
    random: Random,
    fault_random: Random,
    counters: DriveCounters,
    health: Health,
    /// Raised when the power is lost, the controller reset or the drive removed: older requests are of no
    /// more effect.
    generation: u64,
    present: bool,
    next_request: u64,
    /// Requests that wait because the drive is stuck.
    stuck: VecDeque<Waker>,
    recorder: Option<(Arc<Recorder>, usize)>,
    trace: u64,
}

impl SimDrive {
    /// A drive apart from any world.
    pub fn new(name: &str, options: SimDriveOptions, seed: u64) -> Arc<Self> {
        let media = PageMap::new(options.geometry.bytes(), options.fill);
        Self::with_media(name, options, media, seed)
    }

    fn with_media(name: &str, options: SimDriveOptions, media: PageMap, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            publisher: Publisher::default(),
            state: Mutex::new(State {
                view: media.clone(),
                store: Store::new(media, options.cache_bytes),
                options,
                faults: Faults::default(),
                script: Vec::new(),
                unreadable: Vec::new(),
                random: Seed(seed).stream("drive", 0),
                fault_random: Seed(seed).stream("drive faults", 0),
                counters: DriveCounters::default(),
                health: Health::default(),
                generation: 0,
                present: true,
                next_request: 0,
                stuck: VecDeque::new(),
                recorder: None,
                trace: seed,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong from now on.
    pub fn faults(&self) -> Faults {
        self.state().faults
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        let wakers = {
            let mut state = self.state();
            state.faults = faults;
            if faults.stuck {
                VecDeque::new()
            } else {
                std::mem::take(&mut state.stuck)
            }
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Changes what goes wrong from now on.
    pub fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        let mut faults = self.faults();
        change(&mut faults);
        self.set_faults(faults);
    }

    /// Has the n-th next request of a kind, from 1, go wrong. Several wait side by side.
    pub fn fail_nth(&self, operation: Operation, nth: u64, fault: Fault) {
        self.state().script.push(Scripted {
            operation,
            after: nth.saturating_sub(1),
            fault,
        });
    }

    /// Nothing goes wrong any more, as of faults or of what was yet to come by [`SimDrive::fail_nth`]. What
    /// cannot be read stays so.
    pub fn heal(&self) {
        self.state().script.clear();
        self.set_faults(Faults::default());
    }

    /// Blocks cannot be read until they are written.
    pub fn make_unreadable(&self, block: u64, blocks: u64) {
        self.state().unreadable.push(block..block.saturating_add(blocks));
    }

    /// Flips a bit, 0 to 7, of a byte of the medium, and of what reads see.
    pub fn flip_bit(&self, offset_bytes: u64, bit: u8) {
        let mut state = self.state();
        flip_bit(&mut state.view, offset_bytes, bit);
        flip_bit(&mut state.store.media, offset_bytes, bit);
    }

    /// What reads would see, without a request.
    pub fn peek(&self, offset_bytes: u64, into: &mut [u8]) {
        self.state().view.read(offset_bytes, into);
    }

    /// Puts bytes on the medium and where reads see them, without a request.
    pub fn poke(&self, offset_bytes: u64, from: &[u8]) {
        let mut state = self.state();
        state.view.write(offset_bytes, from);
        state.store.media.write(offset_bytes, from);
    }

    /// What it did.
    pub fn counters(&self) -> DriveCounters {
        self.state().counters
    }

    /// Completed writes that a power loss could take.
    pub fn cached_writes(&self) -> usize {
        self.state().store.cached_writes()
    }

    /// Memory that its content takes, in pages of 4 KiB, shared ones included.
    pub fn pages(&self) -> usize {
        self.state().view.pages()
    }

    /// What is durable now, as a power loss that loses all would leave it.
    pub fn image(&self) -> DriveImage {
        let state = self.state();
        DriveImage {
            options: state.options.clone(),
            media: state.store.media.clone(),
        }
    }

    /// Loses power and has it again: what was not durable is lost, kept, reordered or torn, requests under
    /// way never complete, and queues that are attached are of no more use.
    pub fn power_loss(&self, loss: PowerLoss) {
        self.reset(|state| {
            state.store.lose_power(loss, &mut state.random);
            state.view = state.store.media.clone();
            state.health.unsafe_shutdowns += 1;
            state.health.power_cycles += 1;
        });
    }

    /// The host's process died: each write under way happens or does not, the cache stays, and queues that
    /// are attached are of no more use.
    pub fn disconnect(&self) {
        self.reset(|state| {
            for (write, effect) in state.store.take_under_way() {
                let done = state.random.chance(0.5);
                state.complete_write(write, done.then_some(effect), false);
            }
        });
    }

    /// The drive is pulled, with its power: requests fail until [`SimDrive::restore`].
    pub fn remove(&self, loss: PowerLoss) {
        self.power_loss(loss);
        self.state().present = false;
        self.publisher.publish(DeviceEvent::Removed);
    }

    /// A removed drive is back. Queues have to be attached anew.
    pub fn restore(&self) {
        self.state().present = true;
        self.publisher.publish(DeviceEvent::Returned);
    }

    /// The drive has more blocks.
    pub fn grow(&self, blocks: u64) {
        {
            let mut state = self.state();
            state.options.geometry.blocks = state.options.geometry.blocks.max(blocks);
            let bytes = state.options.geometry.bytes();
            state.view.grow(bytes);
            state.store.media.grow(bytes);
        }
        self.publisher.publish(DeviceEvent::Resized);
    }

    /// Records every write and flush from now on, with what it holds now as the start. A power loss or a
    /// disconnect is not recorded: end the recording before.
    pub fn record(&self, recorder: &Arc<Recorder>) {
        let mut state = self.state();
        let drive = recorder.add_drive(state.options.clone(), state.store.clone());
        state.recorder = Some((recorder.clone(), drive));
    }

    /// The hash of everything that it did.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.state().trace
    }

    fn reset(&self, act: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state();
            state.generation += 1;
            let generation = state.generation;
            act(&mut state);
            state.note(0, generation);
            std::mem::take(&mut state.stuck)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn note(&mut self, what: u64, detail: u64) {
        self.trace = mix(mix(self.trace, what), detail);
    }

    /// A write has been done, as `effect` says: not at all, or elsewhere. `durable` or else in the cache.
    fn complete_write(&mut self, write: u64, effect: Option<Arc<Effect>>, durable: bool) {
        let durable = durable || !self.options.geometry.volatile_write_cache;
        if let Some((recorder, drive)) = &self.recorder {
            recorder.completed(*drive, write, effect.clone(), durable);
        }
        if let Some(effect) = &effect {
            effect.apply(&mut self.view);
        }
        self.store.complete(write, effect, durable);
    }
}

impl Device for SimDrive {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.state().options.geometry
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            if !self.state().present {
                return Err(IoError::Gone);
            }
            Ok(queue::attach(self))
        })
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn health(&self) -> Health {
        self.state().health
    }
}
