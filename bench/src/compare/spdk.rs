//! SPDK's programs, found where the user says, and its target with a memory device.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use pollux_ports::KeptPorts;
use serde_json::{Value, json};

use super::Error;
use super::perf::{Load, TargetAddress};
use crate::program::{self, Server};

const SUBSYSTEM: &str = "nqn.2016-06.io.spdk:bench";
const BLOCK_BYTES: u64 = 4096;

/// SPDK's programs.
#[derive(Debug)]
pub struct Spdk {
    folder: PathBuf,
}

impl Spdk {
    /// Finds them in a build tree or an installation.
    pub fn find(root: &Path) -> Result<Self, Error> {
        for folder in [root.join("build/bin"), root.join("bin"), root.to_owned()] {
            if folder.join("nvmf_tgt").is_file() && folder.join("spdk_nvme_perf").is_file() {
                return Ok(Self { folder });
            }
        }
        Err(program::Error::not_found("nvmf_tgt and spdk_nvme_perf", root).into())
    }

    /// The path of one of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts `nvmf_tgt` with a memory device on the cores of the load.
    pub fn start_target(&self, device_mib: u64, load: &Load) -> Result<Target, Error> {
        Target::start("nvmf_tgt", SUBSYSTEM, |socket, folder| {
            let path = folder.join("target.json");
            std::fs::write(&path, settings(device_mib, socket).to_string())?;
            let mut command = Command::new(self.program("nvmf_tgt"));
            command
                .args([
                    "-m",
                    &format!("[{}]", load.target_cores()),
                    "-s",
                    "1024",
                    "--no-pci",
                ])
                .args(["--iova-mode", "va", "--huge-unlink", "-r"])
                .arg(folder.join("rpc.sock"))
                .arg("-c")
                .arg(&path);
            Ok(command)
        })
    }
}

/// As `nvmf_tgt` takes them.
fn settings(device_mib: u64, socket: SocketAddr) -> Value {
    json!({ "subsystems": [
        { "subsystem": "bdev", "config": [{
            "method": "bdev_malloc_create",
            "params": {
                "name": "Malloc0",
                "num_blocks": (device_mib << 20) / BLOCK_BYTES,
                "block_size": BLOCK_BYTES,
            },
        }] },
        { "subsystem": "nvmf", "config": [
            { "method": "nvmf_create_transport", "params": { "trtype": "TCP" } },
            { "method": "nvmf_create_subsystem", "params": {
                "nqn": SUBSYSTEM, "allow_any_host": true, "serial_number": "BENCH", "max_namespaces": 4,
            } },
            { "method": "nvmf_subsystem_add_ns", "params": {
                "nqn": SUBSYSTEM, "namespace": { "bdev_name": "Malloc0" },
            } },
            { "method": "nvmf_subsystem_add_listener", "params": { "nqn": SUBSYSTEM, "listen_address": {
                "trtype": "TCP", "adrfam": "IPv4",
                "traddr": socket.ip().to_string(), "trsvcid": socket.port().to_string(),
            } } },
        ] },
    ] })
}

/// A target under measurement; ended when dropped.
#[derive(Debug)]
pub struct Target {
    _server: Server,
    _port: KeptPorts,
    address: TargetAddress,
}

impl Target {
    /// Starts it as `command` with the address at which it is to listen, and waits until it does.
    pub fn start(
        name: &str,
        subsystem: &'static str,
        command: impl FnOnce(SocketAddr, &Path) -> Result<Command, Error>,
    ) -> Result<Self, Error> {
        let port = KeptPorts::draw(1)?;
        let socket = port.addresses()[0];
        let folder = tempfile::tempdir()?;
        let command = command(socket, folder.path())?;
        let listens = || TcpStream::connect(socket).is_ok();
        Ok(Self {
            _server: Server::start(name, command, folder, &socket.to_string(), listens)?,
            _port: port,
            address: TargetAddress { socket, subsystem },
        })
    }

    /// Where it is.
    pub fn address(&self) -> TargetAddress {
        self.address.clone()
    }
}
