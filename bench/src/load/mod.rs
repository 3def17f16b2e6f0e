//! The load generator: any device, by its URI, from as many reactors as jobs.

mod options;
mod results;
mod stamp;
mod worker;

pub use options::{Load, Options, Pattern, Reactors, seconds};
pub use results::Results;
pub use worker::{Job, Progress, run as run_job};

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pollux_device::{ByteSize, Device, DeviceUri, Registry};
use pollux_hugepages::PoolOptions;
use pollux_nvme::initiator::device::NvmfOpener;
use pollux_reactor::ReactorId;
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};

use worker::Measured;

/// Buffers of a job beyond its requests, in bytes.
const SPARE_BYTES: usize = 16 << 20;

/// The largest request, in bytes: what the buffers of a reactor are cut from.
const BLOCK_BYTES_MAX: u64 = 2 << 20;

/// Steps of the progress line for a second.
const TICKS_PER_SECOND: f64 = 10.0;

/// How often the progress line changes.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// How long after its time a job may take to settle its requests.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// Why a load could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A device could not be opened.
    #[error("{0}")]
    Open(String),
    /// A device cannot take the load.
    #[error("{device}: {reason}")]
    Device {
        /// Which.
        device: String,
        /// Why not, and what to change.
        reason: String,
    },
    /// A thread could not be started or reached.
    #[error("{0}")]
    Reactor(String),
    /// A job did not end.
    #[error("requests are stuck: nothing was done for {} s", SETTLE_LIMIT.as_secs())]
    Stuck,
    /// The results could not be written.
    #[error("could not write {path}: {error}")]
    Write {
        /// Where to.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// There were errors; the table tells them.
    #[error("{0} requests failed or returned the wrong data")]
    Failed(u64),
}

/// Runs a load and prints its results.
pub fn run(options: &Options) -> Result<(), LoadError> {
    let generator = Generator::start(&options.uris, &options.reactors, options.memory_bytes())?;
    let results = generator.measure(&options.load, None, &Line::of(options))?;
    generator.stop()?;
    report(options, &results)
}

/// Reactors with devices open, for one load after the other.
pub struct Generator {
    threads: Vec<ReactorThread>,
    devices: Vec<Arc<dyn Device>>,
}

impl Generator {
    /// Starts the reactors, with so much memory each, and opens the devices.
    pub fn start(uris: &[String], reactors: &Reactors, memory_bytes: usize) -> Result<Self, LoadError> {
        let threads = start_threads(reactors, memory_bytes)?;
        let devices = uris
            .iter()
            .map(|uri| open(&threads[0], uri))
            .collect::<Result<_, _>>()?;
        Ok(Self { threads, devices })
    }

    /// Bytes of a device, by its number.
    pub fn size_bytes(&self, number: usize) -> u64 {
        self.devices
            .get(number)
            .map_or(0, |device| device.geometry().bytes())
    }

    /// Runs a load on one of the devices, by its number, or on all at once.
    pub fn measure(&self, load: &Load, only: Option<usize>, line: &Line) -> Result<Results, LoadError> {
        let devices = match only {
            Some(number) => self.devices.get(number..=number).unwrap_or_default(),
            None => &self.devices,
        };
        let jobs = self.threads.len() as u64;
        let progress = Arc::new(Progress::default());
        let (sender, receiver) = mpsc::channel();
        let mut expected = 0;
        for device in devices {
            let parts = parts(load, jobs, &**device)?;
            for (number, thread) in self.threads.iter().enumerate() {
                let number = number as u64;
                // Without verification all jobs share a device; those that go through it begin apart.
                let job = Job {
                    load: load.clone(),
                    seed: load.seed.wrapping_add(number << 32),
                    first: if load.verify { parts * number } else { 0 },
                    count: if load.verify { parts } else { parts * jobs },
                    start: if load.verify { 0 } else { parts * number },
                };
                let (device, progress, sender) = (device.clone(), progress.clone(), sender.clone());
                let spawned = thread.handle().spawn(move || async move {
                    let result = match device.attach().await {
                        Ok(queue) => worker::run(job, queue, progress).await,
                        Err(error) => Err(error),
                    };
                    // The main thread waits for it, or has given up.
                    let _ = sender.send(result);
                });
                spawned.map_err(|error| LoadError::Reactor(error.to_string()))?;
                expected += 1;
            }
        }
        let total = load.count.map(|count| count.saturating_mul(expected as u64));
        let measured = collect(load, total, line, &progress, &receiver, expected)?;
        Results::merge(load, jobs, devices.len(), measured)
            .ok_or_else(|| LoadError::Reactor("no job measured anything".to_owned()))
    }

    /// Ends the reactors.
    pub fn stop(self) -> Result<(), LoadError> {
        drop(self.devices);
        for thread in self.threads {
            thread.stop();
            thread
                .join()
                .map_err(|error| LoadError::Reactor(error.to_string()))?;
        }
        Ok(())
    }
}

/// The line that tells how a load is getting on.
pub struct Line {
    /// What stands in front of it.
    pub title: String,
    /// There is none.
    pub hidden: bool,
}

impl Line {
    /// None.
    pub fn hidden() -> Self {
        Self {
            title: String::new(),
            hidden: true,
        }
    }

    fn of(options: &Options) -> Self {
        Self {
            title: String::new(),
            hidden: options.quiet,
        }
    }
}

fn start_threads(reactors: &Reactors, memory_bytes: usize) -> Result<Vec<ReactorThread>, LoadError> {
    (0..reactors.jobs)
        .map(|number| {
            ReactorThread::spawn(Settings {
                id: ReactorId(u32::from(number)),
                core: reactors
                    .cores
                    .get(usize::from(number) % reactors.cores.len().max(1))
                    .copied(),
                idle: IdlePolicy::Poll,
                buffers: PoolOptions {
                    total_bytes: memory_bytes.saturating_add(SPARE_BYTES),
                    ..PoolOptions::default()
                },
                ..Settings::default()
            })
            .map_err(|error| LoadError::Reactor(error.to_string()))
        })
        .collect()
}

fn open(thread: &ReactorThread, uri: &str) -> Result<Arc<dyn Device>, LoadError> {
    let parsed = DeviceUri::parse(uri).map_err(|error| LoadError::Open(error.to_string()))?;
    let opened = thread.handle().call_blocking(move || async move {
        let mut registry = Registry::standard();
        NvmfOpener::register(&mut registry);
        #[cfg(feature = "spdk")]
        crate::spdk_tcp::register(&mut registry);
        registry.open(&parsed).await.map_err(|error| error.to_string())
    });
    match opened {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(LoadError::Open(error)),
        Err(error) => Err(LoadError::Reactor(error.to_string())),
    }
}

/// Request-sized blocks of each job's part of a device.
fn parts(load: &Load, jobs: u64, device: &dyn Device) -> Result<u64, LoadError> {
    let geometry = device.geometry();
    let refuse = |reason: String| LoadError::Device {
        device: device.name().to_owned(),
        reason,
    };
    let block = load.block.0;
    if block == 0 || !block.is_multiple_of(u64::from(geometry.block_bytes)) {
        let unit = ByteSize(u64::from(geometry.block_bytes));
        return Err(refuse(format!(
            "--block {} is not a multiple of its block size {unit}",
            load.block
        )));
    }
    let most = u64::from(geometry.transfer_blocks_max) * u64::from(geometry.block_bytes);
    if block > most.min(BLOCK_BYTES_MAX) {
        let most = ByteSize(most.min(BLOCK_BYTES_MAX));
        return Err(refuse(format!(
            "--block {} is more than {most}, the most it takes",
            load.block
        )));
    }
    if geometry.read_only && load.writes() {
        return Err(refuse(
            "it is read-only; use --pattern read or randread".to_owned(),
        ));
    }
    let bytes = load
        .size
        .map_or(geometry.bytes(), |size| size.0.min(geometry.bytes()));
    let parts = bytes / block / jobs;
    if parts < u64::from(load.depth) {
        let size = ByteSize(bytes);
        return Err(refuse(format!(
            "{size} is too small for {jobs} jobs of depth {}",
            load.depth
        )));
    }
    Ok(parts)
}

type JobResult = Result<Measured, pollux_device::IoError>;

fn collect(
    load: &Load,
    total: Option<u64>,
    line: &Line,
    progress: &Progress,
    receiver: &mpsc::Receiver<JobResult>,
    expected: usize,
) -> Result<Vec<Measured>, LoadError> {
    let span = load.warm_up + load.time;
    let bar = if line.hidden {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(total.unwrap_or((span * TICKS_PER_SECOND) as u64).max(1))
    };
    if let Ok(style) = ProgressStyle::with_template("{prefix}[{elapsed}] {wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(line.title.clone());
    let begun = Instant::now();
    let limit = Duration::from_secs_f64(span.max(0.0)) + SETTLE_LIMIT;
    let mut measured = Vec::new();
    let mut last = (begun, 0);
    let mut moved_at = begun;
    while measured.len() < expected {
        let (now, done) = (Instant::now(), progress.done.load(Ordering::Relaxed));
        match receiver.recv_timeout(PROGRESS_PERIOD) {
            Ok(Ok(job)) => measured.push(job),
            Ok(Err(error)) => return Err(LoadError::Reactor(format!("a job could not run: {error}"))),
            // A load of so many requests takes as long as it takes, as long as they are done.
            Err(RecvTimeoutError::Timeout) if total.is_some() && moved_at.elapsed() > SETTLE_LIMIT => {
                return Err(LoadError::Stuck);
            }
            Err(RecvTimeoutError::Timeout) if total.is_none() && begun.elapsed() > limit => {
                return Err(LoadError::Stuck);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(LoadError::Reactor("a reactor ended by itself".to_owned()));
            }
        }
        if done > last.1 {
            moved_at = now;
        }
        let rate = (done - last.1) as f64 / now.duration_since(last.0).as_secs_f64().max(1e-3);
        last = (now, done);
        bar.set_position(match total {
            Some(_) => done,
            None => (begun.elapsed().as_secs_f64() * TICKS_PER_SECOND) as u64,
        });
        let failed = progress.failed.load(Ordering::Relaxed);
        let trouble = if failed > 0 {
            format!(", {failed} FAILED")
        } else {
            String::new()
        };
        let mib = rate * load.block.0 as f64 / f64::from(1 << 20);
        bar.set_message(format!("{:.1} kIOPS {mib:.0} MiB/s{trouble}", rate / 1e3));
    }
    bar.finish_and_clear();
    Ok(measured)
}

fn report(options: &Options, results: &Results) -> Result<(), LoadError> {
    println!("{} on {}", results.load.describe(), options.uris.join(" "));
    println!("{}", results.table());
    if let Some(path) = &options.json {
        let failed = |error| LoadError::Write {
            path: path.display().to_string(),
            error,
        };
        let text = serde_json::to_string_pretty(&results).map_err(|error| failed(error.into()))?;
        std::fs::write(path, text).map_err(failed)?;
    }
    if results.errors > 0 {
        Err(LoadError::Failed(results.errors))
    } else {
        Ok(())
    }
}
