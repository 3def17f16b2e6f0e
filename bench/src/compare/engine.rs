//! `pollux-engine serve` with a memory device, as a contestant.

use std::path::Path;
use std::process::Command;

use super::Error;
use super::perf::Load;
use super::spdk::Target;
use crate::program;

const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:serve";

/// Starts an engine on the cores of the load.
pub fn start(named: Option<&Path>, device_mib: u64, load: &Load) -> Result<Target, Error> {
    Target::start("pollux-engine", SUBSYSTEM, |socket, _| {
        let mut command = Command::new(program::engine(named)?);
        command
            .arg("serve")
            .arg(format!("malloc:///bench?size={device_mib}MiB&block=4096"))
            .args(["--cores", &load.target_cores()])
            .args(["--nvmf", &socket.to_string(), "--idle", "poll"]);
        Ok(command)
    })
}
