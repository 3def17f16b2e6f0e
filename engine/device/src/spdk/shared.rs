//! What the supervisor of a controller and the queues on the reactors know together.
//!
//! The supervisor leads: it moves the controller from stage to stage, each of which has a number, its *era*.
//! Queues look at the number each turn, follow, and say that they did. What a queue does in each stage:
//!
//! | stage | the queue |
//! | --- | --- |
//! | [`Stage::Live`] | makes a queue pair, connects it, sends what waits |
//! | [`Stage::Held`] | sends and polls nothing; what is under way stays where it is |
//! | [`Stage::Released`] | frees its queue pair; what was under way waits to be sent again |
//! | [`Stage::Down`] | fails what waits and what comes |
//!
//! Invariants:
//! - The controller is disabled only once all queues hold, and enabled only once all have released.
//! - Memory of a request that was under way is given back only in the stages `Live` and `Down`: until then a
//!   controller that could not be disabled may still write to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use pollux_reactor::ReactorHandle;

use super::identify::Description;
use super::ledger::Ledger;
use super::options::SpdkOptions;
use super::raw::controller::Controller;
use crate::Health;
use crate::error::IoError;
use crate::events::Publisher;
use crate::geometry::Geometry;

/// How often a supervisor that waits for reactors says that it does.
const WAITING_TOLD_EVERY: Duration = Duration::from_secs(10);

/// What the queues are to do.
#[derive(Clone)]
pub(super) enum Stage {
    Live(Arc<Controller>),
    Held,
    Released,
    Down(IoError),
}

/// What a queue or a device tells the supervisor.
#[derive(Debug)]
pub(super) enum Notice {
    /// A queue does not work, or a request was aborted in vain.
    Trouble {
        /// The era in which that was.
        era: u64,
        /// What happened.
        what: Trouble,
    },
    /// Nobody uses the controller any more.
    Close,
}

/// What happened to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The queue pair has lost its controller.
    QueueLost,
    /// No queue pair could be had or connected.
    NotConnected,
    /// A request was not answered, and neither was the abort.
    Stuck,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::QueueLost => "a queue has lost its controller",
            Self::NotConnected => "a queue could not be connected",
            Self::Stuck => "a request was not answered in time, and could not be aborted",
        })
    }
}

struct Enrolled {
    id: u64,
    reactor: ReactorHandle,
    reached: u64,
}

/// A controller, as the process knows it.
pub(super) struct Shared {
    /// Where it is and how it is used.
    pub(super) options: SpdkOptions,
    stage: Mutex<Stage>,
    /// The number of the stage; written with `stage` locked.
    era: AtomicU64,
    enrolled: Mutex<Vec<Enrolled>>,
    reached: Condvar,
    ids: AtomicU64,
    notices: Sender<Notice>,
    namespaces: Mutex<Vec<Weak<Namespace>>>,
    health: Mutex<Health>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(options: SpdkOptions, controller: Arc<Controller>, notices: Sender<Notice>) -> Self {
        Self {
            options,
            stage: Mutex::new(Stage::Live(controller)),
            era: AtomicU64::new(1),
            enrolled: Mutex::default(),
            reached: Condvar::new(),
            ids: AtomicU64::new(0),
            notices,
            namespaces: Mutex::default(),
            health: Mutex::default(),
        }
    }

    /// The number of the stage now.
    #[inline]
    pub(super) fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// The stage now, and its number.
    pub(super) fn stage(&self) -> (u64, Stage) {
        let stage = lock(&self.stage);
        (self.era(), stage.clone())
    }

    /// Tells the supervisor.
    pub(super) fn notify(&self, notice: Notice) {
        // A supervisor that has ended has nothing left to look after.
        let _ = self.notices.send(notice);
    }

    /// One more queue, on this reactor. It has reached nothing yet.
    pub(super) fn enroll(&self, reactor: ReactorHandle) -> u64 {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        lock(&self.enrolled).push(Enrolled {
            id,
            reactor,
            reached: 0,
        });
        id
    }

    /// The queue is gone.
    pub(super) fn leave(&self, id: u64) {
        lock(&self.enrolled).retain(|queue| queue.id != id);
        self.reached.notify_all();
    }

    /// The queue does what the stage of this number asks.
    pub(super) fn reached(&self, id: u64, era: u64) {
        for queue in lock(&self.enrolled).iter_mut().filter(|queue| queue.id == id) {
            queue.reached = era;
        }
        self.reached.notify_all();
    }

    /// Begins a stage. For the supervisor.
    pub(super) fn begin(&self, stage: Stage) {
        {
            let mut now = lock(&self.stage);
            *now = stage;
            self.era.fetch_add(1, Ordering::Release);
        }
        for queue in lock(&self.enrolled).iter() {
            // One that is too busy for a message is awake, and looks by itself.
            let _ = queue.reactor.spawn(|| async {});
        }
    }

    /// Begins a stage and waits until all queues follow. For the supervisor.
    pub(super) fn begin_and_wait(&self, stage: Stage) {
        self.begin(stage);
        while !self.all_follow_within(WAITING_TOLD_EVERY) {
            let controller = &self.options.transport;
            tracing::error!(%controller, "a reactor does not follow: waiting for it");
        }
    }

    /// Begins a stage and waits until all queues follow, `time` at most. For the end of the process.
    pub(super) fn begin_and_wait_for(&self, stage: Stage, time: Duration) {
        self.begin(stage);
        let _reactors_that_do_not_follow_have_ended = self.all_follow_within(time);
    }

    fn all_follow_within(&self, time: Duration) -> bool {
        let era = self.era();
        let late = |enrolled: &mut Vec<Enrolled>| enrolled.iter().any(|queue| queue.reached < era);
        let waited = self.reached.wait_timeout_while(lock(&self.enrolled), time, late);
        let (_enrolled, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// The namespaces that are in use.
    pub(super) fn namespaces(&self) -> Vec<Arc<Namespace>> {
        let mut namespaces = lock(&self.namespaces);
        namespaces.retain(|namespace| namespace.strong_count() > 0);
        namespaces.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn add_namespace(&self, namespace: &Arc<Namespace>) {
        lock(&self.namespaces).push(Arc::downgrade(namespace));
    }

    pub(super) fn health(&self) -> Health {
        *lock(&self.health)
    }

    pub(super) fn set_health(&self, health: Health) {
        *lock(&self.health) = health;
    }
}

/// A namespace, as the process knows it.
pub(super) struct Namespace {
    pub(super) id: u32,
    pub(super) description: Description,
    pub(super) ledger: Ledger,
    pub(super) publisher: Publisher,
    blocks: AtomicU64,
    present: AtomicBool,
}

impl Namespace {
    pub(super) fn new(id: u32, description: Description) -> Self {
        Self {
            id,
            blocks: AtomicU64::new(description.geometry.blocks),
            present: AtomicBool::new(true),
            description,
            ledger: Ledger::default(),
            publisher: Publisher::default(),
        }
    }

    #[inline]
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.description.geometry
        }
    }

    /// Takes over the number of blocks; whether there are more now. Fewer are not believed: what was in the
    /// rest would be lost unnoticed.
    pub(super) fn grow(&self, blocks: u64) -> bool {
        self.blocks.fetch_max(blocks, Ordering::Relaxed) < blocks
    }

    /// Whether the controller still has it.
    #[inline]
    pub(super) fn is_present(&self) -> bool {
        self.present.load(Ordering::Relaxed)
    }

    /// Whether that is a change.
    pub(super) fn set_present(&self, present: bool) -> bool {
        self.present.swap(present, Ordering::Relaxed) != present
    }
}
