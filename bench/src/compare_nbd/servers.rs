//! The servers: each with the same memory, on a Unix socket of its own.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Error, Options};

/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

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
    child: Child,
    uri: String,
    _folder: tempfile::TempDir,
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
                    .arg(engine(options)?)
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
                program: peer.name().to_owned(),
                error,
            })?;
        let mut server = Self {
            child,
            uri: format!("nbd+unix:///{export}?socket={}", socket.display()),
            _folder: folder,
            _memory: memory,
        };
        if !server.listens(&socket)? {
            let mut output = String::new();
            log.rewind()?;
            // What the program printed only serves the message.
            let _ = log.read_to_string(&mut output);
            return Err(Error::NotListening {
                program: peer.name().to_owned(),
                seconds: START_LIMIT.as_secs(),
                output: output.trim().to_owned(),
            });
        }
        Ok(server)
    }

    fn listens(&mut self, socket: &Path) -> Result<bool, Error> {
        let begun = Instant::now();
        while UnixStream::connect(socket).is_err() {
            if self.child.try_wait()?.is_some() || begun.elapsed() > START_LIMIT {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(true)
    }

    /// What clients connect to.
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

fn engine(options: &Options) -> Result<PathBuf, Error> {
    match &options.engine {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe()?.with_file_name("pollux-engine")),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
