//! Another device, measured: how many requests of each kind, how many bytes, how many errors, and how long
//! they took.
//!
//! Each queue pair has counters of its own, which its reactor alone writes, with plain stores: a request
//! costs two looks at the clock, no lock, no allocation and no instruction that other cores hear of. Whoever
//! wants to know adds up the counters of all queue pairs, those that are gone included.

mod counters;

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_reactor::{Instant, Reactor};
use uuid::Uuid;

use crate::allocation::AllocationQuery;
use crate::completion::Completion;
use crate::error::IoError;
use crate::events::Subscription;
use crate::geometry::Geometry;
use crate::grow::Growing;
use crate::request::{Reply, Request};
use crate::{Attaching, BlockDevice, Device, Health};

use counters::Counters;
pub use counters::{BOUNDS_NS, Measured, Operation, OperationCounts};

/// What was measured at a device, by all that use it.
#[derive(Debug, Default)]
pub struct Meter {
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    /// Of queue pairs that are gone.
    before: Measured,
    present: Vec<Arc<Counters>>,
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Adding numbers up leaves nothing half done.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was measured so far.
    pub fn read(&self) -> Measured {
        let queues = self.lock();
        let mut sum = queues.before;
        for queue in &queues.present {
            sum.add(&queue.read());
        }
        sum
    }

    fn attach(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.lock().present.push(counters.clone());
        counters
    }

    fn detach(&self, counters: &Arc<Counters>) {
        let mut queues = self.lock();
        queues.present.retain(|other| !Arc::ptr_eq(other, counters));
        queues.before.add(&counters.read());
    }
}

/// A device around another one that measures it.
pub struct MeteredDevice {
    inner: Arc<dyn Device>,
    meter: Arc<Meter>,
}

impl MeteredDevice {
    /// A device around `inner`, which goes by the same name.
    pub fn new(inner: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            meter: Arc::default(),
        })
    }

    /// What is measured.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

impl Device for MeteredDevice {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn uuid(&self) -> Option<Uuid> {
        self.inner.uuid()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let queue = self.inner.clone().attach().await?;
            let measured = MeteredQueue {
                block_shift: queue.geometry().block_bytes.trailing_zeros(),
                queue,
                counts: Rc::new(Counts {
                    counters: self.meter.attach(),
                    meter: self.meter.clone(),
                }),
            };
            Ok(Rc::new(measured) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.inner.subscribe()
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        self.inner.clone().grow_to(bytes)
    }

    fn has_lost_caches(&self) -> bool {
        self.inner.has_lost_caches()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }
}

/// The queue pair of one reactor, measured.
struct MeteredQueue {
    queue: Rc<dyn BlockDevice>,
    block_shift: u32,
    counts: Rc<Counts>,
}

/// The counters of a queue pair, until the last of its requests is done.
struct Counts {
    counters: Arc<Counters>,
    meter: Arc<Meter>,
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.meter.detach(&self.counters);
    }
}

impl BlockDevice for MeteredQueue {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let (operation, bytes) = Operation::of(&request, self.block_shift);
        let began = clock();
        let completion = self.queue.submit(request);
        completion.measured(Measure {
            counts: self.counts.clone(),
            operation,
            bytes,
            began,
        })
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.queue.allocation(block, blocks, runs_max)
    }
}

/// Outside a reactor, as in a test, there is no clock and no time.
fn clock() -> Option<Instant> {
    Reactor::try_current().map(|reactor| reactor.now())
}

/// What is being measured of one request.
pub(crate) struct Measure {
    counts: Rc<Counts>,
    operation: Operation,
    bytes: u64,
    began: Option<Instant>,
}

impl Measure {
    /// The request is done.
    pub(crate) fn finish(self, result: &Result<Reply, IoError>) {
        let took = match (self.began, clock()) {
            (Some(began), Some(now)) => now.saturating_since(began),
            (None, _) | (_, None) => std::time::Duration::ZERO,
        };
        let counters = &self.counts.counters;
        match result {
            // Another answer than was hoped for, and no fault.
            Ok(_) | Err(IoError::CompareFailed) => counters.done(self.operation, self.bytes, took),
            // It is asked again.
            Err(IoError::ResourceShortage) => {}
            Err(_) => counters.failed(self.operation),
        }
    }
}
