//! The load generator: any device, by its URI, from as many reactors as jobs.

mod options;
mod results;
mod stamp;
mod worker;

pub use options::Options;

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

use results::Results;
use worker::{Job, Measured, Progress};

/// Buffers of a job beyond its requests, in bytes.
const SPARE_BYTES: usize = 16 << 20;

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
    #[error("a job did not end within {} s of its time: requests are stuck", SETTLE_LIMIT.as_secs())]
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
    let threads = start_threads(options)?;
    let progress = Arc::new(Progress::default());
    let (sender, receiver) = mpsc::channel();
    let mut expected = 0;
    for uri in &options.uris {
        let device = open(&threads[0], uri)?;
        let parts = parts(options, &*device)?;
        for (number, thread) in threads.iter().enumerate() {
            let job = Job {
                options: options.clone(),
                number: number as u16,
                first: if options.verify { parts * number as u64 } else { 0 },
                count: if options.verify {
                    parts
                } else {
                    parts * threads.len() as u64
                },
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
    let measured = collect(options, &progress, &receiver, expected)?;
    for thread in threads {
        thread.stop();
        thread
            .join()
            .map_err(|error| LoadError::Reactor(error.to_string()))?;
    }
    report(options, measured)
}

fn start_threads(options: &Options) -> Result<Vec<ReactorThread>, LoadError> {
    let requests = usize::from(options.depth) * options.uris.len() * 2;
    let block = usize::try_from(options.block.0)
        .unwrap_or(usize::MAX)
        .max(4096)
        .next_power_of_two();
    (0..options.jobs)
        .map(|number| {
            ReactorThread::spawn(Settings {
                id: ReactorId(u32::from(number)),
                core: options
                    .cores
                    .get(usize::from(number) % options.cores.len().max(1))
                    .copied(),
                idle: IdlePolicy::Poll,
                buffers: PoolOptions {
                    total_bytes: requests.saturating_mul(block).saturating_add(SPARE_BYTES),
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
        registry.open(&parsed).await.map_err(|error| error.to_string())
    });
    match opened {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(LoadError::Open(error)),
        Err(error) => Err(LoadError::Reactor(error.to_string())),
    }
}

/// Request-sized blocks of each job's part of a device.
fn parts(options: &Options, device: &dyn Device) -> Result<u64, LoadError> {
    let geometry = device.geometry();
    let refuse = |reason: String| LoadError::Device {
        device: device.name().to_owned(),
        reason,
    };
    let block = options.block.0;
    if block == 0 || !block.is_multiple_of(u64::from(geometry.block_bytes)) {
        let unit = ByteSize(u64::from(geometry.block_bytes));
        return Err(refuse(format!(
            "--block {} is not a multiple of its block size {unit}",
            options.block
        )));
    }
    if geometry.read_only && worker::writes(options.pattern, options.read_percent) {
        return Err(refuse(
            "it is read-only; use --pattern read or randread".to_owned(),
        ));
    }
    let bytes = options
        .size
        .map_or(geometry.bytes(), |size| size.0.min(geometry.bytes()));
    let parts = bytes / block / u64::from(options.jobs);
    if parts < u64::from(options.depth) {
        let size = ByteSize(bytes);
        return Err(refuse(format!(
            "{size} is too small for {} jobs of depth {}",
            options.jobs, options.depth
        )));
    }
    Ok(parts)
}

type JobResult = Result<Measured, pollux_device::IoError>;

fn collect(
    options: &Options,
    progress: &Progress,
    receiver: &mpsc::Receiver<JobResult>,
    expected: usize,
) -> Result<Vec<Measured>, LoadError> {
    let span = options.warm_up + options.time;
    let bar = if options.quiet {
        ProgressBar::hidden()
    } else {
        ProgressBar::new((span * 10.0) as u64)
    };
    if let Ok(style) = ProgressStyle::with_template("[{elapsed}] {wide_bar} {msg}") {
        bar.set_style(style);
    }
    let begun = Instant::now();
    let limit = Duration::from_secs_f64(span.max(0.0)) + SETTLE_LIMIT;
    let mut measured = Vec::new();
    let mut last = (begun, 0);
    while measured.len() < expected {
        match receiver.recv_timeout(PROGRESS_PERIOD) {
            Ok(Ok(job)) => measured.push(job),
            Ok(Err(error)) => return Err(LoadError::Reactor(format!("a job could not run: {error}"))),
            Err(RecvTimeoutError::Timeout) if begun.elapsed() > limit => return Err(LoadError::Stuck),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(LoadError::Reactor("a reactor ended by itself".to_owned()));
            }
        }
        let (now, done) = (Instant::now(), progress.done.load(Ordering::Relaxed));
        let rate = (done - last.1) as f64 / now.duration_since(last.0).as_secs_f64().max(1e-3);
        last = (now, done);
        bar.set_position((begun.elapsed().as_secs_f64() * 10.0) as u64);
        let failed = progress.failed.load(Ordering::Relaxed);
        let trouble = if failed > 0 {
            format!(", {failed} FAILED")
        } else {
            String::new()
        };
        bar.set_message(format!("{:.1} kIOPS{trouble}", rate / 1e3));
    }
    bar.finish_and_clear();
    Ok(measured)
}

fn report(options: &Options, measured: Vec<Measured>) -> Result<(), LoadError> {
    let load = format!(
        "{:?} {} depth {} jobs {} on {}",
        options.pattern,
        options.block,
        options.depth,
        options.jobs,
        options.uris.join(" ")
    );
    let results = Results::merge(load, options.block.0, measured)
        .ok_or_else(|| LoadError::Reactor("no job measured anything".to_owned()))?;
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
