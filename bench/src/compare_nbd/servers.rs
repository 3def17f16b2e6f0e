//! The servers: each with the same memory, on a Unix socket of its own.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use super::{Error, Options};
use crate::program;

/// Where a file is memory.
const MEMORY_FOLDER: &str = "/dev/shm";

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// `pollux-engine` with a `malloc` device.
    Pollux,
    /// `qemu-nbd` with a file in memory.
    QemuNbd,
    /// `nbdkit` with its plugin `memory`.
    Nbdkit,
}

impl Peer {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pollux => "pollux",
            Self::QemuNbd => "qemu-nbd",
            Self::Nbdkit => "nbdkit memory",
        }
    }

    /// How to get it, if it is not here.
    pub fn missing(self) -> Option<&'static str> {
        let (program, argument, how) = match self {
            Self::Pollux => return None,
            Self::QemuNbd => ("qemu-nbd", "--version", "apt-get install qemu-utils"),
            Self::Nbdkit => ("nbdkit", "--version", "apt-get install nbdkit"),
        };
        let ran = Command::new(program)
            .arg(argument)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        (!ran.is_ok_and(|status| status.success())).then_some(how)
    }
}

/// A server under measurement; ended when dropped.
pub struct Server {
    uri: String,
    _server: program::Server,
    _memory: Option<tempfile::NamedTempFile>,
}

impl Server {
    /// Starts it and waits until it listens.
    pub fn start(peer: Peer, options: &Options) -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("nbd.sock");
        let mut memory = None;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &options.server_core.to_string()]);
        let export = match peer {
            Peer::Pollux => {
                command
                    .arg(program::engine(options.engine.as_deref())?)
                    .args([
                        "serve",
                        &format!("malloc:///compare?size={}MiB", options.device_mib),
                    ])
                    .args(["--cores", &options.server_core.to_string()])
                    .args(["--nvmf", "127.0.0.1:0", "--nbd"])
                    .arg(format!("unix:{}", socket.display()));
                "compare"
            }
            Peer::QemuNbd => {
                let file = tempfile::NamedTempFile::new_in(MEMORY_FOLDER)?;
                file.as_file().set_len(u64::from(options.device_mib) << 20)?;
                command
                    .args([
                        "qemu-nbd",
                        "--format=raw",
                        "--persistent",
                        "--shared=8",
                        "--cache=writeback",
                    ])
                    .arg(format!("--socket={}", socket.display()))
                    .arg(file.path());
                memory = Some(file);
                ""
            }
            Peer::Nbdkit => {
                command
                    .args(["nbdkit", "--foreground", "--unix"])
                    .arg(&socket)
                    .args(["memory", &format!("{}M", options.device_mib)]);
                ""
            }
        };
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let place = socket.display().to_string();
        let listens = || UnixStream::connect(&socket).is_ok();
        Ok(Self {
            _server: program::Server::start(peer.name(), command, folder, &place, listens)?,
            _memory: memory,
            uri,
        })
    }

    /// What clients connect to.
    pub fn uri(&self) -> &str {
        &self.uri
    }
}
