//! `pollux-csi freeze`: a mounted file system is written out and held still while a command runs, such as one
//! that takes a snapshot.
//!
//! Invariant: it goes on when the command ends, however that ends, when its time is over, and when this
//! process is told to end. Only killing this process leaves it still; unstaging lets it go on first.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::host::{Host, HostError, Mount};
use crate::node::context::SUBSYSTEM_PREFIX;

/// The longest time that a file system is held still, in seconds: whoever writes waits.
const SECONDS_MAX: i64 = 60;

/// What is to be held still, and for what.
#[derive(Debug, Args)]
pub struct FreezeArguments {
    /// Where the volume is mounted.
    #[arg(long, value_name = "PATH")]
    pub target: PathBuf,
    /// For how long at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX))]
    pub seconds: u32,
    /// What is run meanwhile.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Why something was not done while a file system was still.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The host could not do it.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Nothing of ours is there.
    #[error("no volume of this driver is mounted at {0}")]
    NoVolume(PathBuf),
    /// The command cannot be run.
    #[error("{program}: {source}")]
    Program {
        /// Which.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The command failed.
    #[error("{program} left with {status}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: std::process::ExitStatus,
    },
    /// The command took too long.
    #[error("{program} was not done after {seconds} s: the file system goes on, and is not as it was")]
    Patience {
        /// Which.
        program: String,
        /// How long it had.
        seconds: u32,
    },
    /// Somebody ended it.
    #[error("told to end while {program} ran")]
    Told {
        /// Which.
        program: String,
    },
}

/// A file system that is still, until this is dropped.
struct Still<'a> {
    machine: &'a dyn Host,
    point: &'a Path,
    is_still: bool,
}

impl<'a> Still<'a> {
    fn new(machine: &'a dyn Host, point: &'a Path) -> Result<Self, HostError> {
        machine.freeze(point, true)?;
        Ok(Self {
            machine,
            point,
            is_still: true,
        })
    }

    fn end(mut self) -> Result<(), HostError> {
        self.is_still = false;
        self.machine.freeze(self.point, false)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if self.is_still
            && let Err(error) = self.machine.freeze(self.point, false)
        {
            tracing::error!(%error, "a file system stays still");
        }
    }
}

/// Whether a mount is one of a volume of ours. Btrfs has numbers of its own, and is known by its device.
fn is_ours(machine: &dyn Host, mount: &Mount) -> Result<bool, HostError> {
    let subsystem = machine.subsystem_of(mount.number)?;
    let is_ours = subsystem.is_some_and(|nqn| nqn.starts_with(SUBSYSTEM_PREFIX));
    Ok(is_ours || (mount.kind == "btrfs" && mount.source.starts_with("/dev/nvme")))
}

/// Runs a command while a file system is still.
///
/// # Errors
///
/// [`FreezeError`]; in all cases but [`FreezeError::Host`] the file system goes on.
pub async fn freeze(machine: &dyn Host, arguments: &FreezeArguments) -> Result<(), FreezeError> {
    let point = std::fs::canonicalize(&arguments.target).unwrap_or_else(|_| arguments.target.clone());
    let mounts = machine.mounts()?;
    let mount = mounts.iter().rev().find(|mount| mount.point == point);
    let ours = mount.map(|mount| is_ours(machine, mount)).transpose()?;
    if ours != Some(true) {
        return Err(FreezeError::NoVolume(arguments.target.clone()));
    }
    let program = arguments.command.first().cloned().unwrap_or_default();
    let failed = |source| FreezeError::Program {
        program: program.clone(),
        source,
    };
    // Heard from before it is still: nobody ends this process without it.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let still = Still::new(machine, &point)?;
    let mut child = Command::new(&program)
        .args(arguments.command.iter().skip(1))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let told = || FreezeError::Told {
        program: program.clone(),
    };
    let ended = tokio::select! {
        ended = child.wait() => ended.map_err(failed),
        () = tokio::time::sleep(Duration::from_secs(arguments.seconds.into())) => {
            Err(FreezeError::Patience { program: program.clone(), seconds: arguments.seconds })
        }
        _ = interrupt.recv() => Err(told()),
        _ = terminate.recv() => Err(told()),
    };
    // Before the command is ended: it may wait for the file system itself.
    still.end()?;
    match ended? {
        status if status.success() => Ok(()),
        status => Err(FreezeError::Failed { program, status }),
    }
}
