//! Programs that are measured, and programs that measure: run to their end, or started and waited for.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// What went wrong with a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be run.
    #[error("could not run {program}: {error}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// It ended with an error, or did not print what was to be read.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: String,
        /// The end of what it printed.
        output: String,
    },
    /// It did not listen in time.
    #[error("{program} did not listen on {place} within {seconds} s: {output}")]
    NotListening {
        /// Which.
        program: String,
        /// Where.
        place: String,
        /// How long.
        seconds: u64,
        /// The end of what it printed.
        output: String,
    },
    /// Something else of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// A program that printed something else than what was to be read.
    pub fn failed(program: &Path, output: &str) -> Self {
        Self::Failed {
            program: program.display().to_string(),
            output: last_lines(output),
        }
    }

    fn run(program: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Run {
            program: program.display().to_string(),
            error,
        }
    }

    /// A program that is in none of the places where it was looked for.
    pub fn not_found(program: &str, root: &Path) -> Self {
        Self::Run {
            program: format!("{program} under {}", root.display()),
            error: io::ErrorKind::NotFound.into(),
        }
    }
}

/// `pollux-engine`: this one, or the one beside this program.
pub fn engine(named: Option<&Path>) -> Result<PathBuf, Error> {
    match named {
        Some(path) => Ok(path.to_owned()),
        None => Ok(std::env::current_exe()?.with_file_name("pollux-engine")),
    }
}

/// Runs a program to its end, and reads what it printed; what cannot be read is a failure as well.
pub fn read_output<T>(
    mut command: Command,
    program: &Path,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Error> {
    let output = command.output().map_err(Error::run(program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = if output.status.success() {
        read(&text)
    } else {
        None
    };
    wanted.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        Error::failed(program, &format!("{text}{errors}"))
    })
}

/// Starts a program that nobody listens to.
pub fn start(mut command: Command, program: &Path) -> Result<Running, Error> {
    command.stdin(Stdio::null());
    command.spawn().map(Running).map_err(Error::run(program))
}

/// The end of a long text, for an error message.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// A program; ended when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool, Error> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that listens; ended when dropped.
#[derive(Debug)]
pub struct Server {
    _running: Running,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts it, with a log in a folder that goes with it, and waits until `listens`.
    pub fn start(
        name: &str,
        mut command: Command,
        folder: tempfile::TempDir,
        place: &str,
        listens: impl Fn() -> bool,
    ) -> Result<Self, Error> {
        let mut log = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(folder.path().join("log"))?;
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        let mut running = start(command, Path::new(name))?;
        let begun = Instant::now();
        while !listens() {
            if running.has_ended()? || begun.elapsed() > START_LIMIT {
                let mut text = String::new();
                log.rewind()?;
                // What the program printed only serves the message.
                let _ = log.read_to_string(&mut text);
                return Err(Error::NotListening {
                    program: name.to_owned(),
                    place: place.to_owned(),
                    seconds: START_LIMIT.as_secs(),
                    output: last_lines(&text),
                });
            }
            thread::sleep(LOOK_PERIOD);
        }
        Ok(Self {
            _running: running,
            _folder: folder,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn reads_what_a_program_prints_and_tells_what_it_said_in_the_end() {
        let sh = Path::new("sh");
        let read = |text: &str| text.trim().parse::<u32>().ok();
        assert_eq!(read_output(shell("echo 7"), sh, read).unwrap(), 7);
        let error = read_output(shell("echo 7; echo worn out >&2; exit 1"), sh, read).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: 7 | worn out");
        let error = read_output(shell("echo seven"), sh, read).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: seven");
    }

    #[test]
    fn a_server_that_ends_before_it_listens_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let error = Server::start("sh", shell("echo no port"), folder, "nowhere", || false).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh did not listen on nowhere"), "{text}");
        assert!(text.ends_with("no port"), "{text}");
    }
}
