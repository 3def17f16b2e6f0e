//! The processes of a cluster on one machine.
//!
//! Each is in a process group of its own: what a terminal sends to this program by Ctrl-C is for this
//! program, which ends the others in order. They are killed when this is dropped, so that none outlives a
//! command that failed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::failed;
use crate::cli::connection::CommandError;

/// How long a process may take to end in good order.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// A program of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// The control plane.
    Control,
    /// An engine.
    Engine,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Control => "pollux-control",
            Self::Engine => "pollux-engine",
        }
    }

    /// Beside this program, or wherever commands are looked for.
    pub(super) fn path(self) -> PathBuf {
        let beside = std::env::current_exe()
            .ok()
            .and_then(|own| Some(own.parent()?.join(self.name())));
        beside
            .filter(|path| path.exists())
            .unwrap_or_else(|| self.name().into())
    }
}

/// A process that was started here.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    program: Program,
    log: PathBuf,
}

impl Child {
    /// Starts a program, which writes what it tells into a file.
    pub(super) fn start(program: Program, arguments: &[String], log: &Path) -> Result<Self, CommandError> {
        let open = || File::options().create(true).append(true).open(log);
        let (output, errors) = (open().map_err(failed(log))?, open().map_err(failed(log))?);
        let process = Command::new(program.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed(&program.path()))?;
        Ok(Self {
            process,
            program,
            log: log.to_owned(),
        })
    }

    fn pid(&self) -> Option<Pid> {
        let id = self.process.id()?;
        Pid::from_raw(i32::try_from(id).ok()?)
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may be gone already.
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether it has not ended.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Asks it to end in good order.
    pub(super) fn terminate(&self) {
        self.send(Signal::TERM);
    }

    /// Kills it, as a loss of power would.
    pub(super) async fn kill(&mut self) -> Result<(), CommandError> {
        self.process.kill().await.map_err(failed(&self.program.path()))
    }

    /// Waits until it has ended.
    pub(super) async fn wait(&mut self) -> Result<(), CommandError> {
        let name = self.program.name();
        let told =
            |what: String| CommandError::Refused(format!("{name} {what}; look at {}", self.log.display()));
        match tokio::time::timeout(STOP_TIMEOUT, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(told(format!("ended with {status}"))),
            Ok(Err(error)) => Err(told(format!("cannot be waited for: {error}"))),
            Err(_) => Err(told(format!("has not ended after {STOP_TIMEOUT:?}"))),
        }
    }
}
