//! One job: keeps requests outstanding on one device, from one reactor, and times them.
//!
//! With verification a job never has two requests on one block at a time, so that what a read must return is
//! known.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use pollux_device::{BlockDevice, Completion, Gather, IoError, Reply, Request};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{InFlight, Started, buffers};

use super::options::Load;
use super::stamp;

/// The longest latency that is told apart from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 100_000_000_000;

/// Looks for a block that no request is on before a request is put off.
const PICKS_MAX: usize = 64;

/// Errors that are told one by one.
const ERRORS_TOLD_MAX: usize = 5;

/// What all threads see of a run while it goes on.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests done, in the warm-up too.
    pub done: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
}

/// What a job is to do.
#[derive(Debug, Clone)]
pub struct Job {
    /// The load.
    pub load: Load,
    /// Seed of its positions and choices.
    pub seed: u64,
    /// First request-sized block of its part, and how many.
    pub first: u64,
    /// How many request-sized blocks its part has.
    pub count: u64,
    /// Where in its part it begins, if it goes through it.
    pub start: u64,
}

/// What a job measured.
#[derive(Debug)]
pub struct Measured {
    /// Latencies of reads in nanoseconds.
    pub reads: Histogram<u64>,
    /// Latencies of writes in nanoseconds.
    pub writes: Histogram<u64>,
    /// Flushes done.
    pub flushes: u64,
    /// Requests that failed, and blocks that were wrong, in the measured time or not.
    pub errors: u64,
    /// The first few of them.
    pub told: Vec<String>,
    /// The measured time.
    pub elapsed: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

struct Issued {
    completion: Completion,
    kind: Kind,
    block: u64,
    generation: u64,
    due: Instant,
}

impl Future for Issued {
    type Output = (Kind, u64, u64, Instant, Result<Reply, IoError>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.completion).poll(context));
        Poll::Ready((self.kind, self.block, self.generation, self.due, result))
    }
}

/// What is known of the content, with verification.
#[derive(Default)]
struct Ledger {
    generations: HashMap<u64, u64>,
    busy: HashMap<u64, ()>,
    last: u64,
}

struct Worker {
    job: Job,
    device: Rc<dyn BlockDevice>,
    progress: Arc<Progress>,
    in_flight: InFlight<Issued>,
    ledger: Option<Ledger>,
    content: Slice,
    random: u64,
    next: u64,
    writes_since_flush: u64,
    measured: Measured,
    measuring: Option<Instant>,
    begun: Instant,
    issued: u64,
    /// Done in this turn.
    settled: u64,
    stopping: bool,
}

fn histogram() -> Result<Histogram<u64>, IoError> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).map_err(|_| IoError::Internal)
}

/// Runs a job on a device until its time is over.
///
/// # Errors
///
/// When there is no memory for the first buffers; failed requests are counted instead.
pub async fn run(
    job: Job,
    device: Rc<dyn BlockDevice>,
    progress: Arc<Progress>,
) -> Result<Measured, IoError> {
    let bytes = usize::try_from(job.load.block.0).map_err(|_| IoError::InvalidField)?;
    let mut content = buffers().allocate(bytes).ok_or(IoError::ResourceShortage)?;
    stamp::write(&mut content, u64::MAX, 0);
    let now = Instant::now();
    let mut worker = Worker {
        in_flight: InFlight::new(job.load.depth),
        ledger: job.load.verify.then(Ledger::default),
        content: content.freeze(),
        random: job.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        next: job.start,
        writes_since_flush: 0,
        measured: Measured {
            reads: histogram()?,
            writes: histogram()?,
            flushes: 0,
            errors: 0,
            told: Vec::new(),
            elapsed: Duration::ZERO,
        },
        measuring: None,
        begun: now,
        issued: 0,
        settled: 0,
        stopping: false,
        job,
        device,
        progress,
    };
    let worker = RefCell::new(&mut worker);
    std::future::poll_fn(|context| worker.borrow_mut().turn(context)).await;
    let worker = worker.into_inner();
    let empty = Measured {
        reads: histogram()?,
        writes: histogram()?,
        flushes: 0,
        errors: 0,
        told: Vec::new(),
        elapsed: Duration::ZERO,
    };
    Ok(std::mem::replace(&mut worker.measured, empty))
}

impl Worker {
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut looked_at = None;
        if self.measuring.is_none() {
            self.keep_time(*looked_at.insert(Instant::now()));
        }
        while let Poll::Ready((_, outcome)) = self.in_flight.poll_next(context) {
            let now = *looked_at.insert(Instant::now());
            self.settle(outcome, now);
            if self.may_issue() {
                self.issue(now);
            }
        }
        let mut now = looked_at.unwrap_or_else(Instant::now);
        self.keep_time(now);
        // Whether something was started that does not know yet whom to wake.
        let mut started = false;
        // As many as the depth and no more: on a device that answers at once the queue would never fill.
        for _ in 0..self.job.load.depth {
            if !self.may_issue() || self.in_flight.is_full() || !self.issue(now) {
                break;
            }
            started = true;
            now = Instant::now();
        }
        if self.settled > 0 {
            self.progress.done.fetch_add(self.settled, Ordering::Relaxed);
            self.settled = 0;
        }
        if self.job.load.count.is_some() {
            self.keep_time(now);
        }
        if self.stopping && self.in_flight.is_empty() {
            return Poll::Ready(());
        }
        if started || self.in_flight.is_empty() || self.job.load.rate.is_some() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn may_issue(&self) -> bool {
        !self.stopping && self.job.load.count.is_none_or(|count| self.issued < count)
    }

    fn keep_time(&mut self, now: Instant) {
        let load = &self.job.load;
        match (self.measuring, load.count) {
            (None, None) if now.duration_since(self.begun).as_secs_f64() < load.warm_up => {}
            (None, _) => self.measuring = Some(now),
            (Some(begun), None) if !self.stopping => {
                self.measured.elapsed = now.duration_since(begun);
                self.stopping = self.measured.elapsed.as_secs_f64() >= load.time;
            }
            (Some(begun), Some(count)) => {
                self.measured.elapsed = now.duration_since(begun);
                self.stopping = self.issued >= count;
            }
            _ => {}
        }
    }

    /// Whether what is done now counts: a load of so many requests counts all of them.
    fn is_counted(&self) -> bool {
        self.measuring.is_some() && (!self.stopping || self.job.load.count.is_some())
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Starts one request, if one is due and a block for it is free.
    fn issue(&mut self, now: Instant) -> bool {
        let mut due = now;
        if let Some(rate) = self.job.load.rate.filter(|&rate| rate > 0) {
            due = self.begun + Duration::from_secs_f64(self.issued as f64 / rate as f64);
            if due > now {
                return false;
            }
        }
        let flush_every = self.job.load.flush_every.unwrap_or(u64::MAX);
        let (kind, block, generation, request) = if self.writes_since_flush >= flush_every {
            self.writes_since_flush = 0;
            (Kind::Flush, 0, 0, Request::Flush)
        } else {
            let Some(block) = self.pick() else { return false };
            let reads = u64::from(self.job.load.reads_percent());
            if reads == 100 || (reads > 0 && self.draw() % 100 < reads) {
                let Some(into) = buffers().allocate(self.content.len()) else {
                    return false;
                };
                let generation = self.ledger.as_ref().map_or(0, |ledger| ledger.known(block));
                (
                    Kind::Read,
                    block,
                    generation,
                    Request::Read {
                        block: self.device_block(block),
                        into,
                    },
                )
            } else {
                let Some((data, generation)) = self.data(block) else {
                    return false;
                };
                self.writes_since_flush += 1;
                let request = Request::Write {
                    block: self.device_block(block),
                    from: data,
                    force_unit_access: self.job.load.fua,
                };
                (Kind::Write, block, generation, request)
            }
        };
        if kind != Kind::Flush
            && let Some(ledger) = &mut self.ledger
        {
            ledger.busy.insert(block, ());
        }
        self.issued += 1;
        let completion = self.device.submit(request);
        match self.in_flight.start(Issued {
            completion,
            kind,
            block,
            generation,
            due,
        }) {
            Ok(Started::Ready(outcome)) => self.settle(outcome, Instant::now()),
            Ok(Started::Pending(_)) => {}
            // Callers look for room first.
            Err(_) => return false,
        }
        true
    }

    /// The data of a write and its generation.
    fn data(&mut self, block: u64) -> Option<(Gather, u64)> {
        let Some(ledger) = &mut self.ledger else {
            return Some((Gather::from(self.content.clone()), 0));
        };
        let mut buffer: Buffer = buffers().allocate(self.content.len())?;
        ledger.last += 1;
        let generation = ledger.last;
        let number = self.job.first + block;
        stamp::write(&mut buffer, number, generation);
        Some((buffer.into(), generation))
    }

    /// The next block of the job's part that no verified request is on.
    fn pick(&mut self) -> Option<u64> {
        for _ in 0..PICKS_MAX {
            let block = if self.job.load.pattern.is_random() {
                self.draw() % self.job.count
            } else {
                let block = self.next;
                self.next = (self.next + 1) % self.job.count;
                block
            };
            if self
                .ledger
                .as_ref()
                .is_none_or(|ledger| !ledger.busy.contains_key(&block))
            {
                return Some(block);
            }
        }
        None
    }

    fn device_block(&self, block: u64) -> u64 {
        let per_request = self.content.len() as u64 / u64::from(self.device.geometry().block_bytes);
        (self.job.first + block) * per_request
    }

    fn settle(&mut self, outcome: <Issued as Future>::Output, now: Instant) {
        let (kind, block, generation, due, result) = outcome;
        self.settled += 1;
        if kind != Kind::Flush
            && let Some(ledger) = &mut self.ledger
        {
            ledger.busy.remove(&block);
            if kind == Kind::Write && result.is_ok() {
                ledger.generations.insert(block, generation);
            }
        }
        let number = self.job.first + block;
        match result {
            Err(error) => self.tell(format!("{kind:?} of block {number}: {error}")),
            Ok(reply) if kind == Kind::Read && self.ledger.is_some() => match reply.into_slice() {
                Ok(data) => {
                    if let Err(mismatch) = stamp::check(&data, number, generation) {
                        self.tell(format!("block {number}: {mismatch}"));
                    }
                }
                Err(error) => self.tell(format!("{kind:?} of block {number}: {error}")),
            },
            Ok(_) => {}
        }
        if self.is_counted() {
            let latency_ns = now.saturating_duration_since(due).as_nanos() as u64;
            match kind {
                Kind::Read => self.measured.reads.saturating_record(latency_ns),
                Kind::Write => self.measured.writes.saturating_record(latency_ns),
                Kind::Flush => self.measured.flushes += 1,
            }
        }
    }

    fn tell(&mut self, what: String) {
        self.measured.errors += 1;
        self.progress.failed.fetch_add(1, Ordering::Relaxed);
        if self.measured.told.len() < ERRORS_TOLD_MAX {
            self.measured.told.push(what);
        }
    }
}

impl Ledger {
    fn known(&self, block: u64) -> u64 {
        self.generations.get(&block).copied().unwrap_or(0)
    }
}
