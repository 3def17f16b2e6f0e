//! One reactor's requests, and what the faults do to them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::Reactor;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::faults::{Fault, Faults, Operation, Plan, Release, count};
use crate::allocation::AllocationQuery;
use crate::completion::Completion;
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::request::{Gather, Reply, Request};
use crate::{BlockDevice, BlockDeviceExt};

/// What a torn write is torn into, in bytes.
const SECTOR_BYTES: usize = 512;

/// The most bits that one fault changes.
const FLIPS_MAX: u32 = 4096;

/// What strikes one request, drawn when it is submitted.
#[derive(Debug, Default)]
struct Decision {
    stuck: bool,
    delay: Option<Duration>,
    fail: Option<IoError>,
    lose: bool,
    /// Sectors of a write that reach the medium.
    torn_at: Option<u64>,
    flips: u32,
    fail_after: Option<IoError>,
    /// Where the changed bits are: one number each, taken modulo the length.
    flip_seed: u64,
}

impl Decision {
    fn is_none(&self) -> bool {
        !self.stuck
            && self.delay.is_none()
            && self.fail.is_none()
            && !self.lose
            && self.torn_at.is_none()
            && self.flips == 0
            && self.fail_after.is_none()
    }
}

/// The queue of one reactor to a faulty device.
pub(super) struct FaultyQueue {
    inner: Rc<dyn BlockDevice>,
    faults: Faults,
    media_errors: Arc<AtomicU64>,
    generation: Cell<u64>,
    plan: RefCell<Plan>,
    random: RefCell<ChaCha8Rng>,
}

impl FaultyQueue {
    pub(super) fn new(inner: Rc<dyn BlockDevice>, faults: Faults, media_errors: Arc<AtomicU64>) -> Self {
        let random = match faults.next_queue() {
            Some((seed, number)) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(number);
                random
            }
            None => {
                // Outside a reactor, in a test, there is no driver to ask.
                let seed = Reactor::try_current().map_or(0, |reactor| reactor.driver().random_u64());
                ChaCha8Rng::seed_from_u64(seed)
            }
        };
        let (generation, plan) = faults.plan();
        Self {
            inner,
            faults,
            media_errors,
            generation: Cell::new(generation),
            plan: RefCell::new(plan),
            random: RefCell::new(random),
        }
    }

    fn decide(&self, request: &Request, geometry: &Geometry) -> Decision {
        if self.faults.generation() != self.generation.get() {
            let (generation, plan) = self.faults.plan();
            self.generation.set(generation);
            self.plan.replace(plan);
        }
        let plan = self.plan.borrow();
        let mut decision = Decision::default();
        if plan.is_empty() {
            return decision;
        }
        let random = &mut *self.random.borrow_mut();
        let operation = Operation::of(request);
        let range = request.range(geometry);
        for active in plan.iter() {
            if !active.strikes(operation, range, || random.random::<f64>()) {
                continue;
            }
            match &active.rule.fault {
                Fault::Stick => decision.stuck = true,
                Fault::Delay(times) => {
                    let drawn = random_between(random, times);
                    decision.delay.get_or_insert(drawn);
                }
                Fault::Fail(error) => {
                    decision.fail.get_or_insert(*error);
                }
                Fault::FailAfter(error) => {
                    decision.fail_after.get_or_insert(*error);
                }
                Fault::Lose => decision.lose |= !matches!(operation, Operation::Read | Operation::Compare),
                Fault::Tear(sectors) => {
                    if let Request::Write { from, .. } = request {
                        let all = (from.len_bytes() / SECTOR_BYTES) as u64;
                        let drawn = sectors.unwrap_or_else(|| random.random_range(0..all.max(1)));
                        decision.torn_at.get_or_insert(drawn.min(all));
                    }
                }
                Fault::Flip(bits) => {
                    let has_data = matches!(operation, Operation::Read | Operation::Write);
                    if has_data && decision.flips == 0 {
                        decision.flips = (*bits).min(FLIPS_MAX);
                        decision.flip_seed = random.next_u64();
                    }
                }
            }
        }
        decision
    }
}

fn random_between(random: &mut ChaCha8Rng, times: &std::ops::RangeInclusive<Duration>) -> Duration {
    let nanoseconds = |span: &Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let (least, most) = (nanoseconds(times.start()), nanoseconds(times.end()));
    Duration::from_nanos(random.random_range(least..=most.max(least)))
}

impl BlockDevice for FaultyQueue {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let geometry = self.inner.geometry();
        // What makes no sense fails as it would without faults.
        if request.check(&geometry).is_err() {
            return self.inner.submit(request);
        }
        let decision = self.decide(&request, &geometry);
        if decision.is_none() {
            return self.inner.submit(request);
        }
        let struck = Struck {
            inner: self.inner.clone(),
            faults: self.faults.clone(),
            media_errors: self.media_errors.clone(),
            geometry,
            decision,
        };
        Completion::from_future(struck.run(request))
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.inner.allocation(block, blocks, runs_max)
    }
}

/// A request that something happens to.
struct Struck {
    inner: Rc<dyn BlockDevice>,
    faults: Faults,
    media_errors: Arc<AtomicU64>,
    geometry: Geometry,
    decision: Decision,
}

impl Struck {
    async fn run(self, request: Request) -> Result<Reply, IoError> {
        let counters = self.faults.counters();
        if self.decision.stuck {
            count(&counters.stuck);
            match self.faults.stuck_until_released().await {
                Release::Proceed => {}
                Release::Fail(error) => return Err(error),
            }
        }
        if let Some(delay) = self.decision.delay {
            count(&counters.delayed);
            pollux_reactor::sleep(delay).await;
        }
        if let Some(error) = self.decision.fail {
            count(&counters.failed);
            return Err(self.failed(error));
        }
        let reply = self.perform(request).await?;
        if let Some(error) = self.decision.fail_after {
            count(&counters.failed_after);
            return Err(self.failed(error));
        }
        Ok(reply)
    }

    fn failed(&self, error: IoError) -> IoError {
        if matches!(error, IoError::MediaRead | IoError::MediaWrite) {
            count(&self.media_errors);
        }
        error
    }

    async fn perform(&self, request: Request) -> Result<Reply, IoError> {
        let (counters, decision) = (self.faults.counters(), &self.decision);
        if decision.lose {
            let flush = matches!(request, Request::Flush);
            count(if flush {
                &counters.lost_flushes
            } else {
                &counters.lost
            });
            return Ok(Reply::Done);
        }
        match request {
            Request::Read { block, into } if decision.flips > 0 => {
                let mut data = self.inner.read(block, into).await?;
                count(&counters.flipped_reads);
                self.flip(&mut data);
                Ok(Reply::Data(data))
            }
            Request::Write {
                block,
                mut from,
                force_unit_access,
            } => {
                if decision.flips > 0 {
                    count(&counters.flipped_writes);
                    let mut data = Buffer::from_heap(from.len_bytes());
                    from.copy_to(&mut data);
                    self.flip(&mut data);
                    from = data.into();
                }
                if let Some(sectors) = decision.torn_at {
                    count(&counters.torn);
                    from = self.torn(block, &from, sectors).await?;
                }
                if from.len_bytes() > 0 {
                    self.inner.write(block, from, force_unit_access).await?;
                }
                Ok(Reply::Done)
            }
            request => self.inner.submit(request).await,
        }
    }

    fn flip(&self, data: &mut [u8]) {
        let mut random = ChaCha8Rng::seed_from_u64(self.decision.flip_seed);
        for _ in 0..self.decision.flips {
            let bit = random.random_range(0..(data.len() as u64 * 8).max(1));
            if let Some(byte) = data.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// The beginning of a write, so many sectors of it, with what the medium holds as the rest of the last
    /// block.
    async fn torn(&self, block: u64, from: &Gather, sectors: u64) -> Result<Gather, IoError> {
        let block_bytes = self.geometry.block_bytes as usize;
        let kept_bytes = (sectors as usize)
            .saturating_mul(SECTOR_BYTES)
            .min(from.len_bytes());
        let whole_bytes = kept_bytes / block_bytes * block_bytes;
        let mut torn = from.range(0, whole_bytes);
        if kept_bytes > whole_bytes {
            let cut_block = block + (whole_bytes / block_bytes) as u64;
            let mut old = self.inner.read(cut_block, Buffer::from_heap(block_bytes)).await?;
            from.range(whole_bytes, kept_bytes - whole_bytes)
                .copy_to(&mut old);
            torn.push(Slice::from(old));
        }
        Ok(torn)
    }
}
