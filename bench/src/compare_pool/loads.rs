//! A load on a device of the reactor that asks.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_device::{BlockDevice, BlockDeviceExt, ByteSize, IoError};
use pollux_hugepages::Buffer;
use pollux_reactor::{random_u64, spawn, yield_now};

use super::Error;
use crate::load::{Job, Pattern, Progress, Results, run_job};

/// A load of 4 KiB.
pub struct Measure {
    /// Where requests go.
    pub pattern: Pattern,
    /// Requests outstanding.
    pub depth: u16,
    /// How long.
    pub seconds: f64,
    /// So many requests instead.
    pub count: Option<u64>,
    /// Requests by the time that the thread ran.
    pub by_thread_time: bool,
}

/// Time that this thread ran, in seconds.
fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Requests a second: of the time that the thread ran, if asked so, and otherwise of the time that went by.
pub async fn measure(device: Rc<dyn BlockDevice>, blocks: u64, measure: &Measure) -> Result<f64, Error> {
    let load = crate::load::Load {
        warm_up: if measure.count.is_some() { 0.0 } else { 0.1 },
        count: measure.count,
        seed: random_u64(),
        ..crate::load::Load::new(measure.pattern, ByteSize(4096), measure.depth, measure.seconds)
    };
    let job = Job {
        load: load.clone(),
        seed: load.seed,
        first: 0,
        count: blocks,
        start: 0,
    };
    let (begun, ran) = (Instant::now(), thread_seconds());
    let measured = run_job(job, device, Arc::new(Progress::default())).await?;
    let share = (thread_seconds() - ran) / begun.elapsed().as_secs_f64();
    let results = Results::merge(&load, 1, 1, vec![measured]);
    let results = results.ok_or_else(|| Error::Reactor("nothing was measured".to_owned()))?;
    if results.errors > 0 {
        return Err(Error::Reactor(results.first_errors.join("; ")));
    }
    Ok(if measure.by_thread_time {
        results.iops() / share
    } else {
        results.iops()
    })
}

/// A load of random 4 KiB blocks of one content.
pub struct Load {
    /// Reads or writes.
    pub pattern: Pattern,
    /// Requests outstanding.
    pub depth: u16,
    /// How long.
    pub seconds: f64,
    /// The blocks it goes to, from the first.
    pub blocks: u64,
}

/// What such a load took.
pub struct Taken {
    /// The longest request, in milliseconds.
    pub longest_ms: f64,
}

/// Runs a load of content that a sparse device does not keep.
pub async fn large_load(device: Rc<dyn BlockDevice>, load: &Load) -> Result<Taken, Error> {
    let mut content = Buffer::from_heap(4096);
    super::sparse::fill(&mut content);
    let content = content.freeze();
    let end = Instant::now() + Duration::from_secs_f64(load.seconds);
    let jobs = (0..load.depth).map(|_| {
        let (device, content, blocks) = (device.clone(), content.clone(), load.blocks);
        let write = load.pattern == Pattern::Randwrite;
        spawn(async move {
            let mut longest = Duration::ZERO;
            while Instant::now() < end {
                let block = random_u64() % blocks;
                let begun = Instant::now();
                if write {
                    device.write(block, content.clone(), false).await?;
                } else {
                    device.read(block, Buffer::from_heap(4096)).await?;
                }
                longest = longest.max(begun.elapsed());
                yield_now().await;
            }
            Ok::<Duration, IoError>(longest)
        })
    });
    let jobs: Vec<_> = jobs.collect();
    let mut longest = Duration::ZERO;
    for job in jobs {
        longest = longest.max(job.await?);
    }
    Ok(Taken {
        longest_ms: longest.as_secs_f64() * 1e3,
    })
}
