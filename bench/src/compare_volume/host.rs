//! A host with several paths, as a kernel with native multipath is one: it is connected to all of them, uses
//! the one that works, and tries the next when a request fails. Its reactor is a thread of its own.
//!
//! The time of a request is from when it was first sent until it was done, by whichever path.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use pollux_api::control::v1::PublishVolumeResponse;
use pollux_device::{BlockDevice, BlockDeviceExt, Device, Gather, IoError};
use pollux_hugepages::Buffer;
use pollux_nvme::initiator::device::{Endpoint, LossOptions, NvmfDevice, NvmfOptions, Resubmit, Unflushed};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::initiator::namespace::NamespaceSelector;
use pollux_nvme::wire::nqn::Nqn;
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};
use pollux_reactor::{Instant, ReactorHandle, now, random_u64, sleep, spawn};

use super::Error;
use super::cluster::HOST;

/// Bytes of a block.
const BLOCK_BYTES: usize = 4096;

/// The pause before a request is tried by the next path.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// The pause before a path that is down is connected to again.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How long each step of connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a command may take before its path counts as lost.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// How long no path may work.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes and number of requests of a fill.
const FILL_BYTES: usize = 256 << 10;
const FILL_DEPTH: usize = 8;

/// The longest time that is told apart, in microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;

/// What was measured in some span of time.
#[derive(Debug, Clone)]
pub struct Span {
    /// Times of requests, in microseconds.
    pub latencies_us: Histogram<u64>,
    /// The longest request, in microseconds, and when it was done, in microseconds since 1970.
    pub longest: (u64, u64),
    /// Requests that were sent again.
    pub retries: u64,
}

impl Span {
    fn new() -> Result<Self, Error> {
        let latencies_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Ok(Self {
            latencies_us: latencies_us.map_err(|error| Error::Odd(error.to_string()))?,
            longest: (0, 0),
            retries: 0,
        })
    }

    fn record(&mut self, latency_us: u64) {
        self.latencies_us.saturating_record(latency_us);
        if latency_us > self.longest.0 {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.longest = (latency_us, u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

/// What the thread of the host and the others share.
struct Shared {
    span: Mutex<Span>,
    /// Why it gave up.
    failure: Mutex<Option<String>>,
}

impl Shared {
    fn span(&self) -> MutexGuard<'_, Span> {
        // Numbers alone.
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a host does all the time.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Requests at a time.
    pub depth: usize,
    /// How many of a hundred are reads.
    pub read_percent: u64,
    /// Blocks that are used, from the start of the volume.
    pub blocks: u64,
}

/// See the module. Its thread ends when it is dropped.
pub struct Host {
    thread: ReactorThread,
    shared: Arc<Shared>,
    paths: Vec<SocketAddr>,
    subsystem: Nqn,
}

impl Host {
    /// A host of a volume, on a core if one is named. It does nothing yet.
    pub fn new(published: &PublishVolumeResponse, core: Option<usize>) -> Result<Self, Error> {
        let odd = |what: &dyn std::fmt::Display| Error::Odd(what.to_string());
        let paths = published.paths.iter().map(|path| path.address.parse());
        let thread = ReactorThread::spawn(Settings {
            core,
            idle: IdlePolicy::Poll,
            ..Settings::default()
        })?;
        Ok(Self {
            thread,
            shared: Arc::new(Shared {
                span: Mutex::new(Span::new()?),
                failure: Mutex::default(),
            }),
            paths: paths.collect::<Result<_, _>>().map_err(|error| odd(&error))?,
            subsystem: published.subsystem_nqn.parse().map_err(|error| odd(&error))?,
        })
    }

    fn handle(&self) -> ReactorHandle {
        self.thread.handle()
    }

    /// Writes ranges of blocks, each from its start to its end, and flushes.
    pub async fn fill(&self, ranges: Vec<Range<u64>>) -> Result<(), Error> {
        let (addresses, subsystem, shared) =
            (self.paths.clone(), self.subsystem.clone(), self.shared.clone());
        let handle = self.handle();
        let filled = handle.call(move || async move {
            let paths = Paths::open(addresses, &subsystem, shared.clone());
            let done = fill(&paths, ranges).await;
            paths.ended.set(true);
            done
        });
        filled
            .await
            .map_err(|error| Error::Odd(error.to_string()))?
            .map_err(|error| Error::Odd(format!("a fill failed: {error}")))
    }

    /// Starts to work, until the host is dropped.
    pub fn work(&self, work: Work) -> Result<(), Error> {
        let (addresses, subsystem, shared) =
            (self.paths.clone(), self.subsystem.clone(), self.shared.clone());
        let spawned = self.handle().spawn(move || async move {
            let paths = Paths::open(addresses, &subsystem, shared);
            for _ in 0..work.depth {
                let paths = paths.clone();
                spawn(async move { lane(&paths, work).await }).detach();
            }
        });
        spawned.map_err(|error| Error::Odd(error.to_string()))
    }

    /// What was measured since this was asked last.
    pub fn take(&self) -> Result<Span, Error> {
        if let Some(why) = &*self.shared.failure() {
            return Err(Error::Odd(format!("the host gave up: {why}")));
        }
        let fresh = Span::new()?;
        Ok(std::mem::replace(&mut *self.shared.span(), fresh))
    }
}

/// One path.
struct Path {
    address: SocketAddr,
    /// The queue, while it is connected.
    queue: RefCell<Option<Rc<dyn BlockDevice>>>,
}

/// All paths of one use of the host.
struct Paths {
    all: Vec<Path>,
    current: Cell<usize>,
    shared: Arc<Shared>,
    ended: Cell<bool>,
}

impl Paths {
    /// Connects to all of them, and again to those that are lost.
    fn open(addresses: Vec<SocketAddr>, subsystem: &Nqn, shared: Arc<Shared>) -> Rc<Self> {
        let all = addresses.into_iter().map(|address| Path {
            address,
            queue: RefCell::new(None),
        });
        let paths = Rc::new(Self {
            all: all.collect(),
            current: Cell::new(0),
            shared,
            ended: Cell::new(false),
        });
        for at in 0..paths.all.len() {
            let (paths, subsystem) = (paths.clone(), subsystem.clone());
            spawn(async move { paths.keep(at, &subsystem).await }).detach();
        }
        paths
    }

    /// Keeps one path connected.
    async fn keep(&self, at: usize, subsystem: &Nqn) {
        let Some(path) = self.all.get(at) else { return };
        while !self.ended.get() {
            if path.queue.borrow().is_none()
                && let Ok(queue) = connect(path.address, subsystem).await
            {
                *path.queue.borrow_mut() = Some(queue);
            }
            sleep(CONNECT_PAUSE).await;
        }
    }

    /// The path in use, if it is connected.
    fn queue(&self, at: usize) -> Option<Rc<dyn BlockDevice>> {
        self.all.get(at)?.queue.borrow().clone()
    }

    /// A request failed by a path: the next one is used, unless somebody else has seen to that.
    fn failed(&self, at: usize, error: Option<IoError>) {
        let is_lost = matches!(
            error,
            Some(IoError::PathDown | IoError::Gone | IoError::TimedOut | IoError::Aborted)
        );
        if is_lost && let Some(path) = self.all.get(at) {
            let lost = path.queue.borrow_mut().take();
            drop(lost);
        }
        if self.current.get() == at {
            self.current.set((at + 1) % self.all.len().max(1));
        }
    }

    /// Does a request by whichever path works.
    async fn tried<T>(
        &self,
        act: impl AsyncFn(Rc<dyn BlockDevice>) -> Result<T, IoError>,
    ) -> Result<T, IoError> {
        let began = now();
        loop {
            let at = self.current.get();
            let error = match self.queue(at) {
                Some(queue) => match act(queue).await {
                    Ok(done) => return Ok(done),
                    Err(error) => Some(error),
                },
                None => None,
            };
            if elapsed(began) > PATIENCE {
                return Err(error.unwrap_or(IoError::PathDown));
            }
            if error != Some(IoError::ResourceShortage) {
                self.failed(at, error);
            }
            self.shared.span().retries += 1;
            sleep(RETRY_PAUSE).await;
        }
    }
}

fn elapsed(since: Instant) -> Duration {
    now().saturating_since(since)
}

async fn connect(address: SocketAddr, subsystem: &Nqn) -> Result<Rc<dyn BlockDevice>, String> {
    let mut session = NvmfOptions::new(Endpoint::from(address), subsystem.clone());
    let host: Nqn = HOST.parse().map_err(|_| "the host has no good name".to_owned())?;
    session.namespace = NamespaceSelector::Id(1);
    session.host = HostIdentity::from_name(host);
    session.queues = 1;
    session.command_timeout = COMMAND_TIMEOUT;
    session.connection.connect_timeout = CONNECT_TIMEOUT;
    session.loss = LossOptions {
        reconnect_pause_max: None,
        fail_fast: Some(Duration::ZERO),
        loss_timeout: Duration::ZERO,
        resubmit: Resubmit::None,
        unflushed: Unflushed::Fail,
    };
    let device = NvmfDevice::open(session)
        .await
        .map_err(|error| error.to_string())?;
    device.attach().await.map_err(|error| error.to_string())
}

async fn lane(paths: &Paths, work: Work) {
    let data = Gather::from(Buffer::from_heap(BLOCK_BYTES).freeze());
    while !paths.ended.get() {
        let (place, kind) = (random_u64(), random_u64());
        let block = place % work.blocks.max(1);
        let began = now();
        let done = if kind % 100 < work.read_percent {
            let read = async |queue: Rc<dyn BlockDevice>| {
                let read = queue.read(block, Buffer::from_heap(BLOCK_BYTES)).await;
                read.map(drop)
            };
            paths.tried(read).await
        } else {
            let write = async |queue: Rc<dyn BlockDevice>| queue.write(block, data.clone(), false).await;
            paths.tried(write).await
        };
        if let Err(error) = done {
            paths.shared.failure().get_or_insert(error.to_string());
            return;
        }
        let latency_us = u64::try_from(elapsed(began).as_micros()).unwrap_or(u64::MAX);
        paths.shared.span().record(latency_us);
    }
}

async fn fill(paths: &Rc<Paths>, ranges: Vec<Range<u64>>) -> Result<(), IoError> {
    let piece_blocks = (FILL_BYTES / BLOCK_BYTES) as u64;
    let pieces = ranges.into_iter().flat_map(|range| {
        let end = range.end;
        range
            .step_by(piece_blocks as usize)
            .map(move |block| (block, piece_blocks.min(end - block)))
    });
    let pieces: Rc<RefCell<Vec<(u64, u64)>>> = Rc::new(RefCell::new(pieces.collect()));
    pieces.borrow_mut().reverse();
    let content: Vec<u8> = (0..FILL_BYTES)
        .map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0] | 1)
        .collect();
    let content = Rc::new(content);
    let lanes: Vec<_> = (0..FILL_DEPTH)
        .map(|_| {
            let (paths, pieces, content) = (paths.clone(), pieces.clone(), content.clone());
            spawn(async move {
                loop {
                    let next = pieces.borrow_mut().pop();
                    let Some((block, blocks)) = next else {
                        return Ok::<(), IoError>(());
                    };
                    let bytes = blocks as usize * BLOCK_BYTES;
                    let mut buffer = Buffer::from_heap(bytes);
                    buffer.copy_from_slice(content.get(..bytes).unwrap_or_default());
                    let data = Gather::from(buffer.freeze());
                    let write =
                        async |queue: Rc<dyn BlockDevice>| queue.write(block, data.clone(), false).await;
                    paths.tried(write).await?;
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await?;
    }
    paths.tried(async |queue| queue.flush().await).await
}

/// All blocks of a volume, as one range.
pub fn whole(bytes: u64) -> Vec<Range<u64>> {
    std::iter::once(0..bytes / BLOCK_BYTES as u64).collect()
}
