//! A world: many machines on one thread, in virtual time, from one seed.
//!
//! Machines have reactors, which are real [`Core`](pollux_reactor::Core)s over simulated drivers. Reactors
//! run side by side: each turn keeps its reactor busy for a little virtual time, and all that are ready at
//! one instant run in an order that the seed picks. When nobody can run, the clock jumps to the next event,
//! timer or end of a turn.
//!
//! [`World`] owns everything and runs it. [`Control`] is the part that simulated tasks may hold too: it adds,
//! crashes and restarts machines, and breaks and heals the network.
//!
//! Two runs of one seed are the same, event by event ([`Control::trace_hash`]), as long as what runs takes
//! time and randomness from its reactor only. The usual culprit otherwise is the iteration order of a
//! standard hash map.

mod control;
mod machine;
mod run;
mod task;

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::ops::{Deref, RangeInclusive};
use std::rc::{Rc, Weak};
use std::time::Duration;

pub use control::{Control, Crash};
pub use machine::{MachineOptions, SimReactor};
pub use run::TimeLimit;
pub use task::{SimTask, TaskLost};

use crate::network::{Network, NetworkOptions};
use crate::random::{Random, Seed};
use crate::timeline::Timeline;
use machine::{Machine, ReactorSlot};

/// The number of a machine in its world, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(pub u32);

/// How a world is.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// What one turn of a reactor costs it, drawn for each turn.
    pub turn_cost: RangeInclusive<Duration>,
    /// Probability that a turn takes far longer, as when the operating system takes the core away.
    pub stall_probability: f64,
    /// How long it takes then.
    pub stall: RangeInclusive<Duration>,
    /// Virtual time after which [`World::block_on`] gives up.
    pub block_on_limit: Duration,
    /// Turns of all reactors after which the world gives up: something spins.
    pub turns_max: u64,
    /// Buffers of each reactor, in bytes. What is never touched costs nothing.
    pub buffer_bytes: usize,
    /// The network.
    pub network: NetworkOptions,
    /// How to run the same again, printed with a failure. `None` for the seed alone.
    pub replay: Option<String>,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            turn_cost: Duration::from_nanos(200)..=Duration::from_micros(2),
            stall_probability: 0.0,
            stall: Duration::from_millis(1)..=Duration::from_millis(50),
            block_on_limit: Duration::from_secs(3600),
            turns_max: 50_000_000,
            buffer_bytes: 16 << 20,
            network: NetworkOptions::default(),
            replay: None,
        }
    }
}

/// The state of a world, shared by [`World`] and its [`Control`]s.
struct Inner {
    seed: Seed,
    options: WorldOptions,
    timeline: Rc<Timeline>,
    network: Rc<Network>,
    machines: RefCell<Vec<Machine>>,
    reactors: RefCell<Vec<ReactorSlot>>,
    /// Picks who runs first.
    scheduling: RefCell<Random>,
    /// Cores made so far, of reactors and of their restarts.
    cores: Cell<u64>,
    next_drive: Cell<u64>,
    turns: Cell<u64>,
    /// How to replay was printed.
    failure_told: Cell<bool>,
    /// The machine whose reactor is in its turn now.
    turning: Cell<Option<MachineId>>,
    /// Machines that crashed in their own turn, cleared right after it.
    crashes_due: RefCell<Vec<MachineId>>,
}

/// A simulated world. See the [module](self).
pub struct World {
    inner: Rc<Inner>,
    control: Control,
}

impl World {
    /// An empty world with default options.
    pub fn new(seed: u64) -> Self {
        Self::with_options(seed, WorldOptions::default())
    }

    /// An empty world.
    pub fn with_options(seed: u64, options: WorldOptions) -> Self {
        let seed = Seed(seed);
        let timeline = Rc::new(Timeline::default());
        let network = Network::new(timeline.clone(), seed, options.network.clone());
        let inner = Rc::new(Inner {
            seed,
            options,
            timeline,
            network,
            machines: RefCell::default(),
            reactors: RefCell::default(),
            scheduling: RefCell::new(seed.stream("scheduling", 0)),
            cores: Cell::new(0),
            next_drive: Cell::new(0),
            turns: Cell::new(0),
            failure_told: Cell::new(false),
            turning: Cell::new(None),
            crashes_due: RefCell::default(),
        });
        let control = Control::new(Rc::downgrade(&inner));
        Self { inner, control }
    }

    /// The part of the world that tasks may hold.
    pub fn control(&self) -> Control {
        self.control.clone()
    }
}

impl Deref for World {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_failure();
            // Dropping the futures could panic a second time and hide the first; the test is over, so they
            // stay.
            for slot in self.inner.reactors.take() {
                let _kept = ManuallyDrop::new(slot.core);
            }
            return;
        }
        let reactors = self.inner.reactors.borrow().len();
        for index in 0..reactors {
            let core = self
                .inner
                .reactors
                .borrow_mut()
                .get_mut(index)
                .and_then(|slot| slot.core.take());
            if let Some(core) = core {
                pollux_reactor::Core::clear(&core);
            }
        }
        drop(self.inner.timeline.clear());
    }
}

fn upgrade(inner: &Weak<Inner>) -> Rc<Inner> {
    inner.upgrade().expect("the world of this control is gone")
}
