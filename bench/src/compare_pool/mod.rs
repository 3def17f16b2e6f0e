//! Volumes of a pool beside the device below it: both memory, in one reactor, in turns.

mod counting;
mod large;
mod loads;
mod lvol;
mod sparse;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use pollux_device::{BlockDevice, BlockDeviceExt, ByteSize, Device, IoError, MallocDevice, MallocOptions};
use pollux_hugepages::Buffer;
use pollux_pool::{CreateOptions, Pool, PoolError, PoolOptions, Volume, VolumeOptions};
use pollux_reactor::ReactorId;
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};

use crate::load::Pattern;
use crate::samples::{Figures, Samples, ratio};
use counting::Counting;
use loads::{Measure, measure};

/// Bytes of the buffers of the reactor.
const BUFFER_BYTES: usize = 64 << 20;

/// Size of the pool, in volumes: room for two, one that is made anew, and what snapshots keep.
const POOL_SIZES: u64 = 6;

/// Snapshots of the volume that is read through them.
const SNAPSHOTS: usize = 100;

/// What to compare.
#[derive(Debug, Args)]
pub struct Options {
    /// Core of the reactor
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Rounds; each measures every contestant once for every load
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0, value_parser = crate::load::seconds)]
    seconds: f64,
    /// Size of each volume, and of the raw device
    #[arg(long, default_value = "256MiB")]
    size: ByteSize,
    /// Requests by the time that the thread ran, in place of the time that went by: for a machine on which
    /// others work. SPDK's are always by the time that went by
    #[arg(long)]
    by_thread_time: bool,
    /// An SPDK build tree or installation with `bdevperf`: measure its lvol on its memory device too
    #[arg(long)]
    spdk: Option<PathBuf>,
    /// Instead, fill a pool of this size and measure what grows with it. It takes some 4 MiB of memory for
    /// each GiB, and minutes
    #[arg(long)]
    large: Option<ByteSize>,
}

/// Why the comparison ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread.
    #[error("{0}")]
    Reactor(String),
    /// A device.
    #[error("{0}")]
    Io(#[from] IoError),
    /// A pool.
    #[error("{0}")]
    Pool(#[from] PoolError),
    /// SPDK.
    #[error("{0}")]
    Spdk(#[from] crate::program::Error),
}

/// A row of the table.
#[derive(Debug, Default)]
struct Row {
    name: &'static str,
    against: &'static str,
    wanted: &'static str,
    one: Samples,
    other: Samples,
}

/// What is told in the end.
#[derive(Debug, Default)]
struct Report {
    rows: Vec<Row>,
    figures: Vec<(&'static str, f64, &'static str)>,
}

impl Report {
    fn push(&mut self, name: &'static str, against: &'static str, wanted: &'static str, both: (f64, f64)) {
        let at = self.rows.iter().position(|row| row.name == name);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                name,
                against,
                wanted,
                ..Row::default()
            });
            self.rows.len() - 1
        });
        let figures = |iops| Figures { iops, mean_us: 0.0 };
        if let Some(row) = self.rows.get_mut(at) {
            row.one.push(figures(both.0));
            row.other.push(figures(both.1));
        }
    }

    /// What a volume of a pool does beside SPDK's lvol.
    fn beside(&self, peer: &lvol::Measured) -> String {
        let mut text = "SPDK's lvol, after the pool, each on the memory device of its own program.\n\n\
            | load | checksums off | on | lvol | off / lvol | on / lvol | off / device | lvol / device |\n\
            | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for row in &peer.rows {
            let of = |checksums: &str| {
                let name = format!("{}, checksums {checksums}", row.name);
                self.rows.iter().find(|row| row.name == name)
            };
            let (Some(off), Some(on)) = (of("off"), of("on")) else {
                continue;
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                row.name,
                off.one.iops_text(),
                on.one.iops_text(),
                row.volume.iops_text(),
                ratio(off.one.iops(), row.volume.iops()),
                ratio(on.one.iops(), row.volume.iops()),
                off.one.iops_by(&off.other),
                row.volume.iops_by(&row.device),
            );
        }
        let _ = writeln!(
            text,
            "\nBytes that lvol writes for each byte of the first writes after a snapshot: {:.1}",
            peer.first_write_bytes
        );
        text
    }

    fn table(&self) -> String {
        let mut text =
            "| load | kIOPS | against | kIOPS | ratio | wanted |\n| --- | --- | --- | --- | --- | --- |\n"
                .to_owned();
        for row in &self.rows {
            let ratio = row.one.iops_by(&row.other);
            let (one, other) = (row.one.iops_text(), row.other.iops_text());
            let _ = writeln!(
                text,
                "| {} | {one} | {} | {other} | {ratio} | {} |",
                row.name, row.against, row.wanted
            );
        }
        text.push_str("\n| what | figure | wanted |\n| --- | --- | --- |\n");
        for (name, figure, wanted) in &self.figures {
            let _ = writeln!(text, "| {name} | {figure:.2} | {wanted} |");
        }
        text
    }
}

/// Compares and prints tables in Markdown.
pub fn run(options: &Options) -> Result<(), Error> {
    let thread = ReactorThread::spawn(Settings {
        id: ReactorId(0),
        core: Some(options.core),
        idle: IdlePolicy::Poll,
        buffers: pollux_hugepages::PoolOptions {
            total_bytes: BUFFER_BYTES,
            ..pollux_hugepages::PoolOptions::default()
        },
        ..Settings::default()
    })
    .map_err(|error| Error::Reactor(error.to_string()))?;
    if let Some(ByteSize(bytes)) = options.large {
        let figures = thread
            .handle()
            .call_blocking(move || large::measure(bytes))
            .map_err(|error| Error::Reactor(error.to_string()))??;
        println!("| what | figure | wanted |\n| --- | --- | --- |");
        for (name, figure, wanted) in figures {
            println!("| {name} | {figure:.2} | {wanted} |");
        }
        thread.stop();
        return thread.join().map_err(|error| Error::Reactor(error.to_string()));
    }
    let (rounds, seconds, bytes) = (options.rounds, options.seconds, options.size.0);
    let by_thread_time = options.by_thread_time;
    let report = thread
        .handle()
        .call_blocking(move || compare(rounds, seconds, bytes, by_thread_time))
        .map_err(|error| Error::Reactor(error.to_string()))??;
    thread.stop();
    thread.join().map_err(|error| Error::Reactor(error.to_string()))?;
    println!("{rounds} rounds of {seconds} s each, in turns.");
    let of = if by_thread_time { " of the thread" } else { "" };
    println!("Thousands of requests a second{of}: median (lowest-highest).\n");
    println!("{}", report.table());
    match &options.spdk {
        Some(root) => {
            let peer = lvol::measure(root, options.core, bytes, rounds, seconds)?;
            println!("{}", report.beside(&peer));
        }
        None => println!("SPDK's lvol was not measured: --spdk says where SPDK is."),
    }
    Ok(())
}

fn memory(name: &str, bytes: u64) -> Result<Arc<dyn Device>, Error> {
    let options = MallocOptions::new(bytes);
    let device = MallocDevice::new(name, &options).map_err(|error| Error::Reactor(error.to_string()))?;
    Ok(device)
}

/// A pool in memory, and the device below that counts.
struct Bench {
    pool: Rc<Pool>,
    counting: Rc<Counting>,
    blocks: u64,
    seconds: f64,
    by_thread_time: bool,
    volumes: u64,
}

impl Bench {
    async fn new(bytes: u64, seconds: f64, by_thread_time: bool) -> Result<Self, Error> {
        let device = memory("pool", bytes * POOL_SIZES)?.attach().await?;
        // Else what is measured is how fast the kernel gives memory.
        fill(&*device).await?;
        let counting = Rc::new(Counting::new(device));
        let pool = Pool::create(
            "bench",
            vec![counting.clone()],
            &CreateOptions::default(),
            PoolOptions::default(),
        )
        .await?;
        Ok(Self {
            pool,
            counting,
            blocks: bytes / 4096,
            seconds,
            by_thread_time,
            volumes: 0,
        })
    }

    async fn volume(&mut self, checksums: bool, filled: bool) -> Result<(String, Rc<Volume>), Error> {
        self.volumes += 1;
        let name = format!("v{}", self.volumes);
        let options = VolumeOptions {
            checksums,
            ..VolumeOptions::new(self.blocks)
        };
        self.pool.create_volume(&name, &options).await?;
        let volume = self.pool.open_volume(&name)?;
        if filled {
            fill(&*volume).await?;
        }
        Ok((name, volume))
    }

    async fn iops(&self, device: &Rc<dyn BlockDevice>, pattern: Pattern) -> Result<f64, Error> {
        let load = Measure {
            pattern,
            depth: 128,
            seconds: self.seconds,
            count: None,
            by_thread_time: self.by_thread_time,
        };
        measure(device.clone(), self.blocks, &load).await
    }

    /// Bytes that the device gets for each byte of data, in random writes of 4 KiB; and writes for each.
    async fn amplification(&self, volume: &Rc<Volume>, depth: u16, count: u64) -> Result<(f64, f64), Error> {
        self.pool.checkpoint().await?;
        let before = self.counting.counts();
        let load = Measure {
            pattern: Pattern::Randwrite,
            depth,
            seconds: 0.0,
            count: Some(count),
            by_thread_time: false,
        };
        let device: Rc<dyn BlockDevice> = volume.clone();
        measure(device, self.blocks, &load).await?;
        volume.flush().await?;
        let after = self.counting.counts();
        let bytes = (after.written_bytes - before.written_bytes) as f64 / (count * 4096) as f64;
        Ok((bytes, (after.writes - before.writes) as f64 / count as f64))
    }
}

async fn fill(device: &dyn BlockDevice) -> Result<(), Error> {
    let blocks = device.geometry().blocks;
    let chunk = 64;
    for block in (0..blocks).step_by(chunk as usize) {
        let count = chunk.min(blocks - block);
        let data = Buffer::from_heap(count as usize * 4096);
        device.write(block, data, false).await?;
    }
    Ok(device.flush().await?)
}

async fn compare(rounds: usize, seconds: f64, bytes: u64, by_thread_time: bool) -> Result<Report, Error> {
    // As large as the pool, of which a volume is a part: what pages of memory cost is the same for both.
    let raw = memory("raw", bytes * POOL_SIZES)?.attach().await?;
    fill(&*raw).await?;
    let raw: Rc<dyn BlockDevice> = Rc::new(Counting::new(raw));
    let mut bench = Bench::new(bytes, seconds, by_thread_time).await?;
    let mut report = Report::default();
    let (_, plain) = bench.volume(false, true).await?;
    let (name, sums) = bench.volume(true, true).await?;
    let plain: Rc<dyn BlockDevice> = plain;
    let checked: Rc<dyn BlockDevice> = sums.clone();
    for _ in 0..rounds {
        let raw_write = bench.iops(&raw, Pattern::Randwrite).await?;
        let plain_write = bench.iops(&plain, Pattern::Randwrite).await?;
        let checked_write = bench.iops(&checked, Pattern::Randwrite).await?;
        let raw_read = bench.iops(&raw, Pattern::Randread).await?;
        let plain_read = bench.iops(&plain, Pattern::Randread).await?;
        let checked_read = bench.iops(&checked, Pattern::Randread).await?;
        report.push(
            "overwrite, checksums off",
            "raw device",
            "0.95",
            (plain_write, raw_write),
        );
        report.push(
            "overwrite, checksums on",
            "raw device",
            "0.80",
            (checked_write, raw_write),
        );
        report.push(
            "read, checksums off",
            "raw device",
            "0.97",
            (plain_read, raw_read),
        );
        report.push(
            "read, checksums on",
            "raw device",
            "0.85",
            (checked_read, raw_read),
        );
        // A quarter of the blocks, so that nearly all are holes.
        let (fresh_name, fresh) = bench.volume(true, false).await?;
        let load = Measure {
            pattern: Pattern::Randwrite,
            depth: 128,
            seconds: 0.0,
            count: Some(bench.blocks / 4),
            by_thread_time,
        };
        let fresh: Rc<dyn BlockDevice> = fresh;
        let first = measure(fresh.clone(), bench.blocks, &load).await?;
        report.push(
            "first write to a hole",
            "overwrite",
            "0.6",
            (first, checked_write),
        );
        drop(fresh);
        bench.pool.delete(&fresh_name).await?;
        while bench.pool.deleting() > 0 {
            pollux_reactor::sleep(Duration::from_millis(10)).await;
        }
    }
    let (_, each) = bench.amplification(&sums, 1, 20_000).await?;
    report
        .figures
        .push(("device writes for an overwrite at depth 1", each, "2"));
    let (_, each) = bench.amplification(&sums, 32, 100_000).await?;
    report
        .figures
        .push(("device writes for an overwrite at depth 32", each, "1.2"));
    bench.pool.snapshot(&name, "s0", 0).await?;
    let (bytes, _) = bench.amplification(&sums, 32, bench.blocks / 4).await?;
    report.figures.push((
        "bytes written for each byte of a first write after a snapshot",
        bytes,
        "1.2",
    ));
    let through_one = bench.iops(&checked, Pattern::Randread).await?;
    for number in 1..SNAPSHOTS {
        let load = Measure {
            pattern: Pattern::Randwrite,
            depth: 32,
            seconds: 0.0,
            count: Some(100),
            by_thread_time,
        };
        measure(checked.clone(), bench.blocks, &load).await?;
        bench.pool.snapshot(&name, &format!("s{number}"), 0).await?;
    }
    for _ in 0..rounds {
        // One at a time: the volume with one snapshot is no more.
        let through_all = bench.iops(&checked, Pattern::Randread).await?;
        report.push(
            "read through 100 snapshots",
            "1 snapshot",
            "0.95",
            (through_all, through_one),
        );
    }
    drop((plain, checked, sums));
    bench.pool.export().await?;
    Ok(report)
}
