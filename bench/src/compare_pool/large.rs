//! What grows with the size of a pool: import after a crash, memory, how long a snapshot holds writes.

use std::rc::Rc;
use std::time::Instant;

use pollux_device::{BlockDevice, BlockDeviceExt};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolOptions, VolumeOptions};
use pollux_reactor::spawn;

use super::Error;
use super::loads::{Load, large_load};
use super::sparse::{self, Sparse};
use crate::load::Pattern;

/// Blocks of a write that fills the volume.
const FILL_BLOCKS: u64 = 256;

/// The part of the pool that is filled, in percent.
const FILL_PERCENT: u64 = 80;

/// Blocks of the working set: 16 GiB.
const WORKING_BLOCKS: u64 = 4 << 20;

/// What was measured: name, figure, and what is wanted.
pub type Figures = Vec<(String, f64, &'static str)>;

/// Measures on a pool of so many bytes.
pub async fn measure(bytes: u64) -> Result<Figures, Error> {
    let device = Sparse::new(bytes).map_err(|error| Error::Reactor(error.to_string()))?;
    let devices: Vec<Rc<dyn BlockDevice>> = vec![device.clone()];
    let options = PoolOptions::default();
    let create = CreateOptions::default();
    let pool = Pool::create("large", devices.clone(), &create, options.clone()).await?;
    let blocks = bytes / 4096 * FILL_PERCENT / 100;
    pool.create_volume("full", &VolumeOptions::new(blocks)).await?;
    let volume = pool.open_volume("full")?;
    let mut data = Buffer::from_heap(FILL_BLOCKS as usize * 4096);
    sparse::fill(&mut data);
    let data = data.freeze();
    for block in (0..blocks - FILL_BLOCKS).step_by(FILL_BLOCKS as usize) {
        volume.write(block, data.clone(), false).await?;
    }
    volume.flush().await?;
    let mut figures = Figures::new();

    // Each slot that is written after the snapshot takes an extent: half of what is free must do for all.
    let free_blocks = bytes / 4096 * (100 - FILL_PERCENT) / 200;
    let working = WORKING_BLOCKS.min(free_blocks);
    let device_of: Rc<dyn BlockDevice> = volume.clone();
    let load = |pattern, seconds| Load {
        pattern,
        depth: 32,
        seconds,
        blocks: working,
    };
    let quiet = large_load(device_of.clone(), &load(Pattern::Randwrite, 2.0)).await?;
    let held = spawn({
        let (device, load) = (device_of.clone(), load(Pattern::Randwrite, 2.0));
        async move { large_load(device, &load).await }
    });
    pollux_reactor::sleep(std::time::Duration::from_secs(1)).await;
    let begun = Instant::now();
    pool.snapshot("full", "snapshot", 0).await?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let held = held.await?;
    figures.push((
        "longest write without a snapshot, ms".to_owned(),
        quiet.longest_ms,
        "",
    ));
    figures.push(("longest write with one, ms".to_owned(), held.longest_ms, "10"));
    figures.push(("the snapshot took, ms".to_owned(), took, ""));
    volume.flush().await?;

    // As a crash leaves it: nothing is exported. The pool that was does nothing any more.
    drop((volume, device_of));
    let kept = device.kept_bytes();
    let before = resident_bytes();
    let begun = Instant::now();
    let (again, report) = Pool::import(devices, options).await?;
    figures.push((
        format!("import after a crash, {} records, s", report.records),
        begun.elapsed().as_secs_f64(),
        "1",
    ));
    let volume: Rc<dyn BlockDevice> = again.open_volume("full")?;
    large_load(volume.clone(), &load(Pattern::Randwrite, 20.0)).await?;
    let grown = resident_bytes().saturating_sub(before);
    let grown = grown.saturating_sub(device.kept_bytes().saturating_sub(kept));
    figures.push((
        "memory of the pool after 20 s of writes to 16 GiB, MiB".to_owned(),
        grown as f64 / f64::from(1 << 20),
        "256 for a TiB",
    ));
    Ok(figures)
}

/// Memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
