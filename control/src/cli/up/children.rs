//! The processes of a cluster on one machine.
//!
//! Each is in a process group of its own: what a terminal sends to this program by Ctrl-C is for this
//! program, which ends the others in order. They are killed when this is dropped, so that none outlives a
//! command that failed. When this program is killed itself, the kernel has them end in good order: each
//! begins as this program in [`under`], which asks for that and becomes the other program.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::Command;

use super::failed;
use crate::cli::connection::CommandError;

/// How long a process may take to end in good order.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// What is read of a log at most: of what a process has told since it was started.
const TOLD_BYTES_MAX: u64 = 64 << 10;

/// Characters of an error in a log that are told.
const LINE_CHARS_MAX: usize = 400;

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

/// `under`: becomes a program that ends with the one that has started it.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct UnderArguments {
    /// The process that has to be there: the one that has started this.
    parent: i32,
    /// The program, and its arguments.
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl UnderArguments {
    /// What says so on a command line.
    const NAME: &str = "under";
}

/// Becomes another program, which is sent SIGTERM when its parent ends, however that comes about.
pub(in crate::cli) fn under(arguments: &UnderArguments) -> Result<Infallible, CommandError> {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)?;
    // One that had ended before that is not told of: then somebody else is the parent by now.
    if getppid().map(Pid::as_raw_pid) != Some(arguments.parent) {
        let (gone, own) = (arguments.parent, UnderArguments::NAME);
        return Err(CommandError::Refused(format!(
            "process {gone} has ended; `pollux {own}` is for `pollux up` alone"
        )));
    }
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(CommandError::Refused("there is no program to become".to_owned()));
    };
    let error = std::process::Command::new(program).args(rest).exec();
    Err(CommandError::File {
        path: program.into(),
        reason: format!("{error}; it has to be beside `pollux`, or where commands are looked for"),
    })
}

/// A process that was started here.
#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    program: Program,
    log: PathBuf,
    /// Where in the log this process begins.
    log_start_bytes: u64,
    /// Whether it was told that it has ended, which nobody had asked for.
    is_end_told: bool,
}

impl Child {
    /// Starts a program, which writes what it tells into a file.
    pub(super) fn start(program: Program, arguments: &[String], log: &Path) -> Result<Self, CommandError> {
        let open = || File::options().create(true).append(true).open(log);
        let (output, errors) = (open().map_err(failed(log))?, open().map_err(failed(log))?);
        let log_start_bytes = output.metadata().map_err(failed(log))?.len();
        let own = std::env::current_exe().map_err(failed(Path::new("pollux")))?;
        let process = Command::new(&own)
            .arg(UnderArguments::NAME)
            .arg(getpid().as_raw_pid().to_string())
            .arg(program.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed(&own))?;
        Ok(Self {
            process,
            program,
            log: log.to_owned(),
            log_start_bytes,
            is_end_told: false,
        })
    }

    /// What it has told so far: the last of it, if that is much.
    fn told(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            let start = length.saturating_sub(TOLD_BYTES_MAX).max(self.log_start_bytes);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(TOLD_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        // Without its log nothing is known of it.
        read().unwrap_or_default()
    }

    /// Whether it has told a line that begins so.
    pub(super) fn has_told(&self, start: &str) -> bool {
        self.told().lines().any(|line| line.starts_with(start))
    }

    /// How something went wrong with it, and what it said about that.
    fn problem(&self, what: &str) -> CommandError {
        let told = self.told();
        let last = told.lines().rfind(|line| line.starts_with("error: "));
        let last: String = last.unwrap_or_default().chars().take(LINE_CHARS_MAX).collect();
        let said = match last.is_empty() {
            true => String::new(),
            false => format!(" ({last})"),
        };
        let (name, log) = (self.program.name(), self.log.display());
        CommandError::Refused(format!("{name} {what}{said}; look at {log}"))
    }

    /// An error if it has ended.
    pub(super) fn require_running(&mut self) -> Result<(), CommandError> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.problem(&format!("ended with {status}"))),
            Err(error) => Err(self.problem(&format!("cannot be looked at: {error}"))),
        }
    }

    /// How it has ended, once, if it has and nobody had asked for that.
    pub(super) fn newly_ended(&mut self) -> Option<CommandError> {
        if self.is_end_told {
            return None;
        }
        let ended = self.require_running().err();
        self.is_end_told = ended.is_some();
        ended
    }

    /// It does not do what it was started for.
    pub(super) fn not_ready(&self) -> CommandError {
        self.problem("is not ready")
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

    /// Asks it to end in good order.
    pub(super) fn terminate(&self) {
        self.send(Signal::TERM);
    }

    /// Kills it, as a loss of power would.
    pub(super) async fn kill(&mut self) -> Result<(), CommandError> {
        self.process.kill().await.map_err(failed(&self.program.path()))
    }

    /// Waits until it has ended. That it had ended before is no error if that was told.
    pub(super) async fn wait(&mut self) -> Result<(), CommandError> {
        match tokio::time::timeout(STOP_TIMEOUT, self.process.wait()).await {
            Ok(Ok(status)) if status.success() || self.is_end_told => Ok(()),
            Ok(Ok(status)) => Err(self.problem(&format!("ended with {status}"))),
            Ok(Err(error)) => Err(self.problem(&format!("cannot be waited for: {error}"))),
            Err(_) => Err(self.problem(&format!("has not ended after {STOP_TIMEOUT:?}"))),
        }
    }
}
