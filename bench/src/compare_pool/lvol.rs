//! SPDK's lvol on SPDK's memory device, by its `bdevperf`: the same loads as those of a pool.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bdevperf;
use crate::program::{self, Error};
use crate::samples::Samples;

const BLOCK_BYTES: u64 = 4096;
/// What lvol allocates, and copies at the first write after a snapshot.
const CLUSTER_BYTES: u64 = 1 << 20;
const VOLUME: &str = "pool/volume";
const DEVICE: &str = "Malloc0";
/// Memory of `bdevperf` besides its device, in MiB.
const OWN_MIB: u64 = 256;
/// How long `bdevperf` may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Writes that are looked at after a snapshot: so few that hardly any cluster was written before.
const FIRST_WRITES: u64 = 16;

/// A row of the table: the volume and the device below it.
#[derive(Debug, Default)]
pub struct Row {
    /// The load.
    pub name: &'static str,
    /// On the volume.
    pub volume: Samples,
    /// On the device without anything between.
    pub device: Samples,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Loads.
    pub rows: Vec<Row>,
    /// Bytes that the device gets for each byte of a first write after a snapshot.
    pub first_write_bytes: f64,
}

/// SPDK's `bdevperf` and how it is started.
struct Peer {
    program: PathBuf,
    core: usize,
    volume_bytes: u64,
}

/// What `bdevperf` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setup {
    Device,
    Volume,
    VolumeWithSnapshot,
}

/// Measures in turns, volume and device.
pub fn measure(
    root: &Path,
    core: usize,
    volume_bytes: u64,
    rounds: usize,
    seconds: f64,
) -> Result<Measured, Error> {
    let peer = Peer {
        program: bdevperf::find(root)?,
        core,
        volume_bytes,
    };
    let mut rows = [("overwrite", "randwrite"), ("read", "randread")].map(|(name, pattern)| {
        let row = Row {
            name,
            ..Row::default()
        };
        (row, pattern)
    });
    // It takes whole seconds.
    let seconds = seconds.ceil().max(1.0) as u64;
    for _ in 0..rounds {
        for (row, pattern) in &mut rows {
            row.device.push(peer.run(Setup::Device, pattern, seconds)?);
            row.volume.push(peer.run(Setup::Volume, pattern, seconds)?);
        }
    }
    Ok(Measured {
        rows: rows.into_iter().map(|(row, _)| row).collect(),
        first_write_bytes: peer.first_write_bytes()?,
    })
}

impl Peer {
    fn device_bytes(&self) -> u64 {
        self.volume_bytes * 2
    }

    fn config(&self, setup: Setup) -> Value {
        let mut calls = vec![json!({ "method": "bdev_malloc_create", "params": {
            "name": DEVICE, "num_blocks": self.device_bytes() / BLOCK_BYTES, "block_size": BLOCK_BYTES,
        } })];
        if setup != Setup::Device {
            calls.push(json!({ "method": "bdev_lvol_create_lvstore", "params": {
                "bdev_name": DEVICE, "lvs_name": "pool", "cluster_sz": CLUSTER_BYTES, "clear_method": "none",
            } }));
            calls.push(json!({ "method": "bdev_lvol_create", "params": {
                "lvs_name": "pool", "lvol_name": "volume", "size_in_mib": self.volume_bytes >> 20,
                "thin_provision": false, "clear_method": "none",
            } }));
        }
        if setup == Setup::VolumeWithSnapshot {
            calls.push(json!({ "method": "bdev_lvol_snapshot", "params": {
                "lvol_name": VOLUME, "snapshot_name": "snapshot",
            } }));
        }
        json!({ "subsystems": [{ "subsystem": "bdev", "config": calls }] })
    }

    /// The command; what it needs is in the folder, its socket too.
    fn command(
        &self,
        folder: &Path,
        setup: Setup,
        pattern: &str,
        depth: u16,
        seconds: u64,
    ) -> Result<Command, Error> {
        let path = folder.join("bdevperf.json");
        std::fs::write(&path, self.config(setup).to_string())?;
        let mut command = Command::new(&self.program);
        let memory_mib = (self.device_bytes() >> 20) + OWN_MIB;
        command
            .args(["-m", &format!("[{}]", self.core), "-s", &memory_mib.to_string()])
            .args(["--no-pci", "--iova-mode", "va", "--huge-unlink"])
            .args([
                "-w",
                pattern,
                "-q",
                &depth.to_string(),
                "-o",
                &BLOCK_BYTES.to_string(),
            ])
            .args(["-t", &seconds.to_string()])
            .args(["-T", if setup == Setup::Device { DEVICE } else { VOLUME }])
            .arg("-c")
            .arg(&path)
            .arg("-r")
            .arg(folder.join("rpc.sock"));
        Ok(command)
    }

    fn run(&self, setup: Setup, pattern: &str, seconds: u64) -> Result<crate::samples::Figures, Error> {
        let folder = tempfile::tempdir()?;
        let command = self.command(folder.path(), setup, pattern, 128, seconds)?;
        bdevperf::run(command, &self.program)
    }

    /// What the device was given when the first writes after a snapshot were done.
    fn first_write_bytes(&self) -> Result<f64, Error> {
        let folder = tempfile::tempdir()?;
        let mut command = self.command(folder.path(), Setup::VolumeWithSnapshot, "randwrite", 1, 2)?;
        command.arg("-z").stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = program::start(command, &self.program)?;
        let socket = folder.path().join("rpc.sock");
        let begun = Instant::now();
        let late = || begun.elapsed() > ANSWER_LIMIT;
        // The device is there once it tells of it.
        while ask(&socket, "bdev_get_iostat", &json!({ "names": [VOLUME] })).is_none() {
            if late() || running.has_ended()? {
                return Err(Error::failed(&self.program, "the volume did not appear"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let written = |name: &str| {
            let answer = ask(&socket, "bdev_get_iostat", &json!({ "names": [name] }))?;
            let device = answer["bdevs"].get(0)?;
            // Clusters are copied by the device itself where it can, which counts apart.
            let copied_bytes = device["bytes_copied"].as_u64().unwrap_or(0);
            let bytes = device["bytes_written"].as_u64()? + copied_bytes;
            Some((device["num_write_ops"].as_u64()?, bytes))
        };
        let (_, before) =
            written(DEVICE).ok_or_else(|| Error::failed(&self.program, "no figures of the device"))?;
        // Answered when the test is over, which nobody waits for.
        let mut test = UnixStream::connect(&socket)?;
        test.write_all(request("perform_tests", &json!({})).as_bytes())?;
        loop {
            let (volume, device) = (written(VOLUME), written(DEVICE));
            if let (Some((writes, bytes)), Some((_, after))) = (volume, device)
                && writes >= FIRST_WRITES
            {
                return Ok((after - before) as f64 / bytes as f64);
            }
            if late() {
                return Err(Error::failed(&self.program, "no writes were counted"));
            }
        }
    }
}

fn request(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

/// Calls a method of a running program; nothing if it does not answer, or with an error.
fn ask(socket: &Path, method: &str, params: &Value) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
    stream.write_all(request(method, params).as_bytes()).ok()?;
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        text.extend_from_slice(piece.get(..read)?);
        // Whole once it can be read.
        if let Ok(answer) = serde_json::from_slice::<Value>(&text) {
            return answer.get("result").cloned();
        }
    }
}
