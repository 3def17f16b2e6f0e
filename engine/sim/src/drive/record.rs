//! Power cuts at every moment of a recorded run.
//!
//! A [`Recorder`] keeps, for one drive or several, every write that was submitted, completed or flushed, in
//! one order. A [`CrashCursor`] walks through it and makes, at any place, what the drives may hold if the
//! power is cut there. That costs a copy of two references and the writes that are not durable yet, not the
//! run: tens of thousands of states take seconds.
//!
//! A *position* is the number of events so far. Something that was acknowledged to a client at position `p`
//! had been acknowledged when the power is cut at `p` or later; something submitted at `p` may have begun at
//! a cut at `p`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::{Effect, Store};
use super::{DriveImage, PowerLoss, SimDriveOptions};
use crate::random::Seed;

#[derive(Clone)]
enum RecordEvent {
    Submitted {
        drive: usize,
        write: u64,
        effect: Arc<Effect>,
    },
    Completed {
        drive: usize,
        write: u64,
        effect: Option<Arc<Effect>>,
        durable: bool,
    },
    Flushed {
        drive: usize,
        covers: u64,
    },
    Forgot {
        drive: usize,
    },
}

#[derive(Default)]
struct Log {
    events: Vec<RecordEvent>,
    /// What each drive held when it was added.
    drives: Vec<(SimDriveOptions, Store)>,
}

/// Records the writes and flushes of drives.
#[derive(Default)]
pub struct Recorder {
    log: Mutex<Log>,
}

impl Recorder {
    /// Records nothing until drives are told to: [`SimDrive::record`](super::SimDrive::record).
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many events there are by now.
    pub fn position(&self) -> usize {
        self.log().events.len()
    }

    /// The states that power cuts leave: at each chosen position, one for each kind of loss. `seed` decides
    /// what is lost, for each state apart.
    pub fn crash_states(
        &self,
        seed: u64,
        points: CutPoints,
        losses: &[PowerLoss],
    ) -> impl Iterator<Item = CrashState> + use<> {
        let mut cursor = self.cursor();
        let losses = losses.to_vec();
        let mut done = false;
        std::iter::from_fn(move || {
            while !done {
                let last = cursor.position == cursor.events.len();
                let wanted = last || cursor.is_cut_point(points);
                let states: Vec<CrashState> = losses
                    .iter()
                    .enumerate()
                    .filter(|_| wanted)
                    .map(|(variant, &loss)| cursor.state(loss, seed, variant as u64))
                    .collect();
                done = last;
                cursor.step();
                if wanted {
                    return Some(states);
                }
            }
            None
        })
        .flatten()
    }

    /// A walk through what was recorded up to now, from its start.
    pub fn cursor(&self) -> CrashCursor {
        let log = self.log();
        CrashCursor {
            events: log.events.clone(),
            drives: log.drives.clone(),
            position: 0,
        }
    }

    pub(super) fn add_drive(&self, options: SimDriveOptions, store: Store) -> usize {
        let mut log = self.log();
        log.drives.push((options, store));
        log.drives.len() - 1
    }

    pub(super) fn submitted(&self, drive: usize, write: u64, effect: Arc<Effect>) {
        self.log()
            .events
            .push(RecordEvent::Submitted { drive, write, effect });
    }

    pub(super) fn completed(&self, drive: usize, write: u64, effect: Option<Arc<Effect>>, durable: bool) {
        self.log().events.push(RecordEvent::Completed {
            drive,
            write,
            effect,
            durable,
        });
    }

    pub(super) fn flushed(&self, drive: usize, covers: u64) {
        self.log().events.push(RecordEvent::Flushed { drive, covers });
    }

    pub(super) fn forgot(&self, drive: usize) {
        self.log().events.push(RecordEvent::Forgot { drive });
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where to cut the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutPoints {
    /// While each write is under way, and at the end. Between two writes nothing can be lost that could not
    /// be then.
    Writes,
    /// After every event: also after each completion and each flush.
    Everywhere,
}

/// What the drives hold after one power cut.
pub struct CrashState {
    /// Where the power was cut.
    pub position: usize,
    /// What happened to the writes that were not durable.
    pub loss: PowerLoss,
    /// What is on each drive, in the order in which they were recorded.
    pub images: Vec<DriveImage>,
}

/// A walk through a record.
pub struct CrashCursor {
    events: Vec<RecordEvent>,
    drives: Vec<(SimDriveOptions, Store)>,
    position: usize,
}

impl CrashCursor {
    /// Where the walk is.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How far it can go.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Goes one event further; whether there was one.
    pub fn step(&mut self) -> bool {
        let Some(event) = self.events.get(self.position) else {
            return false;
        };
        self.position += 1;
        match event.clone() {
            RecordEvent::Submitted { drive, write, effect } => {
                self.with_store(drive, |store| store.begin(write, effect));
            }
            RecordEvent::Completed {
                drive,
                write,
                effect,
                durable,
            } => {
                self.with_store(drive, |store| store.complete(write, effect, durable));
            }
            RecordEvent::Flushed { drive, covers } => self.with_store(drive, |store| store.flush(covers)),
            RecordEvent::Forgot { drive } => self.with_store(drive, Store::forget_cached),
        }
        true
    }

    /// Goes on to a position, or to the end.
    pub fn advance_to(&mut self, position: usize) {
        while self.position < position && self.step() {}
    }

    /// What the drives hold if the power is cut here. `variant` tells apart states that are otherwise alike.
    pub fn state(&self, loss: PowerLoss, seed: u64, variant: u64) -> CrashState {
        let mut random = Seed(seed).stream("crash state", (self.position as u64) << 16 ^ variant);
        let images = self.drives.iter().map(|(options, store)| {
            let mut store = store.clone();
            store.lose_power(loss, &mut random);
            DriveImage {
                options: options.clone(),
                media: store.media,
            }
        });
        CrashState {
            position: self.position,
            loss,
            images: images.collect(),
        }
    }

    fn with_store(&mut self, drive: usize, change: impl FnOnce(&mut Store)) {
        if let Some((_, store)) = self.drives.get_mut(drive) {
            change(store);
        }
    }

    fn is_cut_point(&self, points: CutPoints) -> bool {
        match points {
            CutPoints::Everywhere => true,
            CutPoints::Writes => {
                let last = self
                    .position
                    .checked_sub(1)
                    .and_then(|last| self.events.get(last));
                matches!(last, Some(RecordEvent::Submitted { .. }))
            }
        }
    }
}
