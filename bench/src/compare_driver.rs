//! The device that SPDK drives, beside SPDK's own `spdk_nvme_perf` and `bdevperf`, in turns.
//!
//! All three are SPDK's NVMe driver with something around it, on one core, on a drive that is named or else
//! over SPDK's TCP transport to SPDK's target: what differs is what is around it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::{Value, json};

use crate::bdevperf;
use crate::compare::perf::{self, CLIENT_CORES, Load, Pattern, TargetAddress};
use crate::compare::spdk::Spdk;
use crate::compare::{Error, Turns};
use crate::program;
use crate::samples::{Figures, Samples};
use crate::spdk_tcp;

/// What to compare.
#[derive(Debug, Args)]
pub struct Options {
    /// An SPDK build tree, with `build/bin` and `build/examples`.
    #[arg(long)]
    spdk: PathBuf,
    #[command(flatten)]
    turns: Turns,
    /// The PCI address of a drive to use in place of memory, bound to vfio-pci; namespace 1 IS WRITTEN OVER.
    #[arg(long, conflicts_with = "device_mib")]
    drive: Option<String>,
}

/// What the contestants use, one after the other.
#[derive(Debug)]
enum Place {
    Remote(TargetAddress),
    /// The PCI address of a drive.
    Drive(String),
}

impl Place {
    /// As the load generator takes it.
    fn uri(&self) -> String {
        match self {
            Self::Remote(address) => {
                format!("{}://{}/{}", spdk_tcp::SCHEME, address.socket, address.subsystem)
            }
            Self::Drive(address) => format!("pcie:///{address}/1"),
        }
    }

    /// As `bdevperf` is told to attach it.
    fn attach(&self) -> Value {
        match self {
            Self::Remote(address) => json!({
                "name": "Measured", "trtype": "TCP", "adrfam": "IPv4",
                "traddr": address.socket.ip().to_string(), "trsvcid": address.socket.port().to_string(),
                "subnqn": address.subsystem,
            }),
            Self::Drive(address) => json!({ "name": "Measured", "trtype": "PCIe", "traddr": address }),
        }
    }

    /// Where contestants run: a target has the first two cores for itself.
    fn core(&self) -> usize {
        match self {
            Self::Remote(_) => CLIENT_CORES[0],
            Self::Drive(_) => std::thread::available_parallelism().map_or(0, |count| count.get() - 1),
        }
    }

    fn run_perf(&self, spdk: &Spdk, load: &Load, seconds: u32) -> Result<Figures, Error> {
        match self {
            Self::Remote(address) => perf::run(spdk, address, load, seconds),
            Self::Drive(address) => {
                let transport = format!("trtype:PCIe traddr:{address}");
                perf::run_on(spdk, &transport, &[self.core()], load, seconds)
            }
        }
    }
}

/// Who takes turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Pollux,
    Perf,
    Bdevperf,
}

#[derive(Debug, Default)]
struct Row {
    name: String,
    pollux: Samples,
    perf: Samples,
    bdevperf: Samples,
}

/// Compares and prints a table in Markdown.
pub fn run(options: &Options) -> Result<(), Error> {
    let have = std::thread::available_parallelism()?.get();
    if have < 4 && options.drive.is_none() {
        return Err(Error::Cores { needed: 4, have });
    }
    let spdk = Spdk::find(&options.spdk)?;
    let bdevperf = bdevperf::find(&options.spdk)?;
    let mut table = format!(
        "{} rounds of {} s each, in turns, one core. Thousands of IOPS: median (lowest-highest);\n\
         mean latency in us; ratios: median of those of the rounds.\n\n\
         | load | pollux kIOPS | us | perf kIOPS | us | bdevperf kIOPS | us \
         | IOPS / perf | latency / perf | IOPS / bdevperf | latency / bdevperf |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        options.turns.rounds, options.turns.seconds
    );
    for (pattern, block_bytes, depth) in [
        (Pattern::Read, 4096, 128),
        (Pattern::Write, 4096, 128),
        (Pattern::Read, 4096, 1),
        (Pattern::Write, 4096, 1),
        (Pattern::Read, 131_072, 32),
    ] {
        let load = Load {
            pattern,
            block_bytes,
            depth,
            reactors: 1,
            connections: 1,
        };
        if !options.turns.have(&load) {
            continue;
        }
        let row = compare(options, &spdk, &bdevperf, &load)?;
        eprintln!("{}: {} of perf", row.name, row.pollux.iops_by(&row.perf));
        row.write(&mut table);
    }
    println!("{table}");
    Ok(())
}

impl Row {
    fn write(&self, table: &mut String) {
        let Self {
            name,
            pollux,
            perf,
            bdevperf,
        } = self;
        // Writing to a string cannot fail.
        let _ = write!(table, "| {name} |");
        for samples in [pollux, perf, bdevperf] {
            let _ = write!(table, " {} | {} |", samples.iops_text(), samples.latency_text());
        }
        for peer in [perf, bdevperf] {
            let _ = write!(table, " {} | {} |", pollux.iops_by(peer), pollux.latency_by(peer));
        }
        table.push('\n');
    }
}

fn compare(options: &Options, spdk: &Spdk, bdevperf: &Path, load: &Load) -> Result<Row, Error> {
    let mut row = Row {
        name: load.name(),
        ..Row::default()
    };
    // Lives until the end.
    let target = match options.drive {
        None => Some(spdk.start_target(options.turns.device_mib, load)?),
        Some(_) => None,
    };
    let place = match (&target, &options.drive) {
        (Some(target), _) => Place::Remote(target.address()),
        (None, drive) => Place::Drive(drive.clone().unwrap_or_default()),
    };
    let mut order = [Contestant::Pollux, Contestant::Perf, Contestant::Bdevperf];
    for _ in 0..options.turns.rounds {
        for contestant in order {
            match contestant {
                Contestant::Pollux => row.pollux.push(run_pollux(&place, load, options.turns.seconds)?),
                Contestant::Perf => row.perf.push(place.run_perf(spdk, load, options.turns.seconds)?),
                Contestant::Bdevperf => {
                    row.bdevperf
                        .push(run_bdevperf(bdevperf, &place, load, options.turns.seconds)?);
                }
            }
        }
        // Whoever comes first may find the machine in another mood.
        order.rotate_left(1);
    }
    Ok(row)
}

fn pattern(load: &Load) -> &'static str {
    match load.pattern {
        Pattern::Read => "randread",
        Pattern::Write => "randwrite",
    }
}

/// This program's own load generator, in a process of its own as the others are.
fn run_pollux(place: &Place, load: &Load, seconds: u32) -> Result<Figures, Error> {
    let program = std::env::current_exe()?;
    let folder = tempfile::tempdir()?;
    let results = folder.path().join("results.json");
    let mut command = Command::new(&program);
    command
        .arg("run")
        .arg(place.uri())
        .args([
            "--pattern",
            pattern(load),
            "--block",
            &format!("{}B", load.block_bytes),
        ])
        .args([
            "--depth",
            &load.depth.to_string(),
            "--cores",
            &place.core().to_string(),
        ])
        .args([
            "--warm-up",
            "1",
            "--time",
            &seconds.to_string(),
            "--quiet",
            "--json",
        ])
        .arg(&results);
    let side = match load.pattern {
        Pattern::Read => "read",
        Pattern::Write => "write",
    };
    let figures = program::read_output(command, &program, |_| {
        let results: Value = serde_json::from_slice(&std::fs::read(&results).ok()?).ok()?;
        Some(Figures {
            iops: results[side]["iops"].as_f64()?,
            mean_us: results[side]["mean_us"].as_f64()?,
        })
    });
    Ok(figures?)
}

fn run_bdevperf(program: &Path, place: &Place, load: &Load, seconds: u32) -> Result<Figures, Error> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bdevperf.json");
    let config = json!({ "subsystems": [{ "subsystem": "bdev", "config": [{
        "method": "bdev_nvme_attach_controller", "params": place.attach(),
    }] }] });
    std::fs::write(&path, config.to_string())?;
    let mut command = Command::new(program);
    if matches!(place, Place::Remote(_)) {
        command.arg("--no-pci");
    }
    command
        .args(["-m", &format!("[{}]", place.core()), "-s", "256"])
        .args(["--iova-mode", "va", "--huge-unlink", "-w", pattern(load)])
        .args(["-q", &load.depth.to_string(), "-o", &load.block_bytes.to_string()])
        .args(["-t", &seconds.to_string(), "-c"])
        .arg(&path)
        .arg("-r")
        .arg(folder.path().join("rpc.sock"));
    Ok(bdevperf::run(command, program)?)
}
