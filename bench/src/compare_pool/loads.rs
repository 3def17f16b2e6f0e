//! A load on a device of the reactor that asks.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, ByteSize};
use pollux_reactor::random_u64;

use super::Error;
use crate::load::{Job, Load, Pattern, Progress, Results, run_job};

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
}

/// Requests a second.
pub async fn measure(device: Rc<dyn BlockDevice>, blocks: u64, measure: &Measure) -> Result<f64, Error> {
    let load = Load {
        pattern: measure.pattern,
        read_percent: 0,
        block: ByteSize(4096),
        depth: measure.depth,
        rate: None,
        warm_up: if measure.count.is_some() { 0.0 } else { 0.1 },
        time: measure.seconds,
        count: measure.count,
        size: None,
        fua: false,
        flush_every: None,
        verify: false,
        seed: random_u64(),
    };
    let job = Job {
        load: load.clone(),
        seed: load.seed,
        first: 0,
        count: blocks,
        start: 0,
    };
    let measured = run_job(job, device, Arc::new(Progress::default())).await?;
    let results = Results::merge(&load, 1, 1, vec![measured]);
    let results = results.ok_or_else(|| Error::Reactor("nothing was measured".to_owned()))?;
    if results.errors > 0 {
        return Err(Error::Reactor(results.first_errors.join("; ")));
    }
    Ok(results.iops())
}
