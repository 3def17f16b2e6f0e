//! SPDK's programs, found where the user says, and its target with a memory device.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Error;
use super::perf::{Load, TARGET_CORES, TargetAddress};

const SUBSYSTEM: &str = "nqn.2016-06.io.spdk:bench";
const START_LIMIT: Duration = Duration::from_secs(20);
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
        Err(Error::Run {
            program: format!("nvmf_tgt and spdk_nvme_perf under {}", root.display()),
            error: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// The path of one of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts `nvmf_tgt` with a memory device on the cores of the load.
    pub fn start_target(&self, device_mib: u64, load: &Load) -> Result<Server, Error> {
        let socket = free_port()?;
        let config = json!({ "subsystems": [
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
        ] });
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("target.json");
        std::fs::write(&path, config.to_string())?;
        let cores = TARGET_CORES[..load.reactors]
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(",");
        let mut command = Command::new(self.program("nvmf_tgt"));
        command
            .args([
                "-m",
                &format!("[{cores}]"),
                "-s",
                "1024",
                "--no-pci",
                "--iova-mode",
                "va",
                "--huge-unlink",
            ])
            .arg("-r")
            .arg(folder.path().join("rpc.sock"))
            .arg("-c")
            .arg(&path);
        Server::start(
            "nvmf_tgt",
            command,
            TargetAddress {
                socket,
                subsystem: SUBSYSTEM,
            },
            folder,
        )
    }
}

/// A port of loopback that nobody listens on now.
pub fn free_port() -> Result<SocketAddr, Error> {
    Ok(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?.local_addr()?)
}

/// The end of a long text, for an error message.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// A target under measurement; ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: TargetAddress,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(
        name: &str,
        mut command: Command,
        address: TargetAddress,
        folder: tempfile::TempDir,
    ) -> Result<Self, Error> {
        let mut log = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(folder.path().join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .map_err(|error| Error::Run {
                program: name.to_owned(),
                error,
            })?;
        let mut server = Self {
            child,
            address,
            _folder: folder,
        };
        let begun = Instant::now();
        while TcpStream::connect(server.address.socket).is_err() {
            let ended = server.child.try_wait()?.is_some();
            if ended || begun.elapsed() > START_LIMIT {
                let mut text = String::new();
                log.rewind()?;
                // What the program printed only serves the message.
                let _ = log.read_to_string(&mut text);
                return Err(Error::NotListening {
                    program: name.to_owned(),
                    address: server.address.socket.to_string(),
                    seconds: START_LIMIT.as_secs(),
                    output: last_lines(&text),
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Where it is.
    pub fn address(&self) -> TargetAddress {
        self.address.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
