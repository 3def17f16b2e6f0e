//! `pollux-engine verify`: writes to a volume as a host does and reads everything back, by whichever of its
//! paths works.
//!
//! Each block has a number that grows with each write; its content follows from block, number and seed. A
//! block whose write was answered has that number; one whose write was not may have either. So after
//! anything that happens to engines it is known what the volume must hold. The numbers can be kept in a file,
//! for a later run to go on from.
//!
//! Invariants:
//! - A block has one request under way at most.
//! - A write that was not answered is sent again, with the same content, until it is.

mod path;
mod state;

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use pollux_device::{BlockDevice, BlockDeviceExt, Gather, IoError};
use pollux_hugepages::{ArenaOptions, Buffer, PagePreference, PoolOptions};
use pollux_reactor::real::{ReactorThread, Settings};
use pollux_reactor::{Instant, now, sleep, spawn};
use serde::Serialize;

use path::Paths;
use state::{BLOCK_BYTES, Expected};

/// Buffers of the reactor.
const BUFFERS_BYTES: usize = 32 << 20;

/// Most requests at a time.
const DEPTH_MAX: u32 = 256;

/// The pause before a request is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArguments {
    /// The paths to the volume, each as ADDRESS:PORT.
    #[arg(required = true, value_name = "ADDRESS:PORT", value_parser = crate::cli::socket_address)]
    pub paths: Vec<std::net::SocketAddr>,

    /// The NVMe qualified name of its subsystem.
    #[arg(long, value_name = "NQN")]
    pub subsystem: String,

    /// The NVMe qualified name of this host [default: that of the machine].
    #[arg(long, value_name = "NQN")]
    pub host: Option<String>,

    /// The file of the secret that this host authenticates by, `DHHC-1:xx:BASE64:` [default: none].
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,

    /// That of the secret by which the subsystem has to authenticate too [default: it does not have to].
    #[arg(long, value_name = "FILE", requires = "secret_file")]
    pub controller_secret_file: Option<PathBuf>,

    /// How long to write, in seconds; 0 only reads.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub seconds: u64,

    /// Blocks of 4 KiB that are used, from the start of the volume.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub blocks: u32,

    /// Requests at a time.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub depth: u32,

    /// What the content follows from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Keep in this file what the volume holds, and go on from what is in it.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// Power may be lost on all engines at once: what was answered and not flushed may be gone then, once a
    /// flush has failed with a write fault.
    #[arg(long)]
    pub power_loss: bool,

    /// How long to go on without a path that works, in seconds.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub patience: u64,
}

/// Why a volume was not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// An argument cannot be.
    #[error("{0}")]
    Argument(String),
    /// The file of the state.
    #[error("the state cannot be kept in {path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No path worked for too long.
    #[error("no path to the volume works: {0}")]
    NoPath(String),
    /// It holds something else.
    #[error("block {block} holds {found}, and it has to be write {wanted}")]
    Mismatch {
        /// The block.
        block: u32,
        /// What is there.
        found: String,
        /// What has to be there.
        wanted: String,
    },
    /// It was used before.
    #[error(
        "the volume holds something already: block {block} holds {found}; nothing was written: give an empty \
         one, or with --state the file of the run that wrote to it"
    )]
    Used {
        /// The block.
        block: u32,
        /// What is there.
        found: String,
    },
    /// The reactor.
    #[error("the reactor cannot run: {0}")]
    Reactor(String),
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Writes that were answered.
    pub writes: u64,
    /// Reads, each of which had what it should.
    pub reads: u64,
    /// Requests that were sent again because a path failed.
    pub retries: u64,
    /// How often another path was taken.
    pub path_changes: u64,
    /// Flushes that failed since what was answered and not flushed may be gone.
    pub losses: u64,
    /// The longest time without any answer, in milliseconds.
    pub longest_gap_ms: u64,
}

/// Does it, and tells the report as JSON.
///
/// # Errors
///
/// [`VerifyError`].
pub fn run(arguments: &VerifyArguments, output: &mut impl Write) -> Result<(), VerifyError> {
    if !(1..=DEPTH_MAX).contains(&arguments.depth) || arguments.blocks < arguments.depth {
        let text = format!("--depth is 1 to {DEPTH_MAX}, and not more than --blocks");
        return Err(VerifyError::Argument(text));
    }
    // Before anything is started; it belongs to the reactor, and is made there once more.
    Paths::parse(arguments)?;
    let expected = match &arguments.state {
        Some(path) => Expected::load(path, arguments),
        None => Ok(Expected::new(arguments.seed, arguments.blocks)),
    };
    let failed = |source| VerifyError::State {
        path: arguments.state.clone().unwrap_or_default(),
        source,
    };
    let expected = expected.map_err(failed)?;
    let reactor = ReactorThread::spawn(Settings {
        buffers: PoolOptions {
            total_bytes: BUFFERS_BYTES,
            arena: ArenaOptions {
                page: PagePreference::Ordinary,
                ..ArenaOptions::default()
            },
            ..PoolOptions::default()
        },
        ..Settings::default()
    });
    let reactor = reactor.map_err(|error| VerifyError::Reactor(error.to_string()))?;
    let (options, keep) = (arguments.clone(), arguments.state.clone());
    let verified = reactor.handle().call_blocking(move || verify(options, expected));
    let (expected, report) = verified.map_err(|error| VerifyError::Reactor(error.to_string()))?;
    // What is known is worth keeping, whatever was found.
    if let Some(path) = keep {
        expected.save(&path).map_err(failed)?;
    }
    let report = report?;
    let text = serde_json::to_string(&report).map_err(io::Error::from);
    // Nobody may be listening.
    let _ = text.and_then(|text| writeln!(output, "{text}"));
    Ok(())
}

/// What all requests share.
struct Run {
    paths: Paths,
    expected: RefCell<Expected>,
    report: RefCell<VerifyReport>,
    last_answer: Cell<Instant>,
    failure: RefCell<Option<VerifyError>>,
    power_loss: bool,
    patience: Duration,
}

async fn verify(
    options: VerifyArguments,
    expected: Expected,
) -> (Expected, Result<VerifyReport, VerifyError>) {
    let paths = match Paths::parse(&options) {
        Ok(paths) => paths,
        Err(error) => return (expected, Err(error)),
    };
    let run = Rc::new(Run {
        paths,
        expected: RefCell::new(expected),
        report: RefCell::default(),
        last_answer: Cell::new(now()),
        failure: RefCell::new(None),
        power_loss: options.power_loss,
        patience: Duration::from_secs(options.patience),
    });
    run.all_lanes(&options, Stage::Read).await;
    if options.state.is_none() {
        run.tell_use();
    }
    if options.seconds > 0 {
        if !run.check_failure() {
            // Nobody may be listening.
            let _ = writeln!(
                io::stderr(),
                "{} blocks were read; writing for {} s",
                options.blocks,
                options.seconds
            );
        }
        let until = now() + Duration::from_secs(options.seconds);
        run.all_lanes(&options, Stage::Write(until)).await;
        run.all_lanes(&options, Stage::Read).await;
    }
    let mut report = run.report.borrow().clone();
    report.path_changes = run.paths.changes();
    let expected = run.expected.borrow().clone();
    let failure = run.failure.borrow_mut().take();
    (expected, failure.map_or(Ok(report), Err))
}

#[derive(Clone, Copy)]
enum Stage {
    /// Every block once.
    Read,
    /// Blocks at random, until then, and a flush.
    Write(Instant),
}

impl Run {
    /// Each lane has the blocks whose number leaves a certain rest: so no block has two requests.
    async fn all_lanes(self: &Rc<Self>, options: &VerifyArguments, stage: Stage) {
        let lanes: Vec<_> = (0..options.depth)
            .map(|lane| {
                let (run, blocks, step) = (self.clone(), options.blocks, options.depth);
                spawn(async move { run.lane(lane, step, blocks, stage).await })
            })
            .collect();
        for lane in lanes {
            lane.await;
        }
    }

    async fn lane(&self, lane: u32, step: u32, blocks: u32, stage: Stage) {
        let result = match stage {
            Stage::Read => self.read_all(lane, step, blocks).await,
            Stage::Write(until) => self.write_until(lane, step, blocks, until).await,
        };
        if let Err(error) = result {
            self.failure.borrow_mut().get_or_insert(error);
        }
    }

    /// Without a file that says what has to be there, what is there is of somebody else.
    fn tell_use(&self) {
        let mut failure = self.failure.borrow_mut();
        if let Some(VerifyError::Mismatch { block, found, .. }) = &*failure {
            let (block, found) = (*block, found.clone());
            *failure = Some(VerifyError::Used { block, found });
        }
    }

    fn check_failure(&self) -> bool {
        self.failure.borrow().is_some()
    }

    async fn read_all(&self, lane: u32, step: u32, blocks: u32) -> Result<(), VerifyError> {
        for block in (lane..blocks).step_by(step as usize) {
            if self.check_failure() {
                return Ok(());
            }
            self.read(block).await?;
        }
        Ok(())
    }

    async fn write_until(
        &self,
        lane: u32,
        step: u32,
        blocks: u32,
        until: Instant,
    ) -> Result<(), VerifyError> {
        let own = blocks.saturating_sub(lane).div_ceil(step).max(1);
        let mut count = 0_u32;
        while now() < until && !self.check_failure() {
            let draw = pollux_reactor::random_u64();
            let block = lane + u32::try_from(draw % u64::from(own)).unwrap_or(0) * step;
            if draw >> 62 == 0 {
                self.read(block).await?;
            } else {
                self.write(block).await?;
            }
            count += 1;
            if count.is_multiple_of(64) {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    async fn read(&self, block: u32) -> Result<(), VerifyError> {
        let data = self
            .tried(async |device| {
                device
                    .read(u64::from(block), Buffer::from_heap(BLOCK_BYTES))
                    .await
            })
            .await?;
        self.expected.borrow_mut().check(block, &data)?;
        self.report.borrow_mut().reads += 1;
        Ok(())
    }

    async fn write(&self, block: u32) -> Result<(), VerifyError> {
        let content = self.expected.borrow_mut().begin(block);
        let mut buffer = Buffer::from_heap(BLOCK_BYTES);
        buffer.copy_from_slice(&content);
        let data = Gather::from(buffer.freeze());
        self.tried(async |device| device.write(u64::from(block), data.clone(), false).await)
            .await?;
        self.expected.borrow_mut().end(block);
        self.report.borrow_mut().writes += 1;
        Ok(())
    }

    async fn flush(&self) -> Result<(), VerifyError> {
        // Of each attempt: what was lost before it began is not covered by it.
        let flushed = self
            .tried(async |device| {
                let answered = self.expected.borrow().answered();
                let flushed = device.flush().await;
                if flushed == Err(IoError::MediaWrite) {
                    self.heard_of_loss();
                }
                flushed.map(|()| answered)
            })
            .await?;
        self.expected.borrow_mut().flushed(&flushed);
        Ok(())
    }

    /// Does it by whichever path works.
    async fn tried<T>(
        &self,
        act: impl AsyncFn(Rc<dyn BlockDevice>) -> Result<T, IoError>,
    ) -> Result<T, VerifyError> {
        let began = now();
        loop {
            let why = match self.paths.device().await {
                Ok((number, device)) => match self.use_path(&act, device).await {
                    Ok(done) => {
                        self.answered();
                        return Ok(done);
                    }
                    Err(error) => {
                        let is_heard = error == IoError::MediaWrite && self.power_loss;
                        if error != IoError::ResourceShortage && !is_heard {
                            self.paths.failed(number);
                        }
                        error.to_string()
                    }
                },
                Err(why) => why,
            };
            if now().saturating_since(began) > self.patience {
                return Err(VerifyError::NoPath(why));
            }
            self.report.borrow_mut().retries += 1;
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn use_path<T>(
        &self,
        act: &impl AsyncFn(Rc<dyn BlockDevice>) -> Result<T, IoError>,
        device: Rc<dyn BlockDevice>,
    ) -> Result<T, IoError> {
        if self.paths.takes_loss() {
            self.heard_of_loss();
        }
        act(device).await
    }

    /// A flush has failed as it does when caches were lost.
    fn heard_of_loss(&self) {
        if self.power_loss {
            self.expected.borrow_mut().forget_unflushed();
            self.report.borrow_mut().losses += 1;
        }
    }

    fn answered(&self) {
        let last = self.last_answer.replace(now());
        let gap_ms = now().saturating_since(last).as_millis() as u64;
        let mut report = self.report.borrow_mut();
        report.longest_gap_ms = report.longest_gap_ms.max(gap_ms);
    }
}
