//! `pollux-engine serve` with a memory device, as a contestant.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;
use super::perf::{Load, TARGET_CORES, TargetAddress};
use super::spdk::{Server, free_port};

const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:serve";

/// A running engine; ended when dropped.
pub struct Engine(Server);

impl Engine {
    /// Starts an engine on the cores of the load.
    pub fn start(program: Option<&Path>, device_mib: u64, load: &Load) -> Result<Self, Error> {
        let program = match program {
            Some(program) => program.to_owned(),
            None => beside_this()?,
        };
        let socket = free_port()?;
        let cores = TARGET_CORES[..load.reactors]
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                &format!("malloc:///bench?size={device_mib}MiB&block=4096"),
            ])
            .args(["--cores", &cores, "--nvmf", &socket.to_string(), "--idle", "poll"]);
        let address = TargetAddress {
            socket,
            subsystem: SUBSYSTEM,
        };
        Server::start("pollux-engine", command, address, tempfile::tempdir()?).map(Self)
    }

    /// Where it is.
    pub fn address(&self) -> TargetAddress {
        self.0.address()
    }
}

fn beside_this() -> Result<PathBuf, Error> {
    Ok(std::env::current_exe()?.with_file_name("pollux-engine"))
}
