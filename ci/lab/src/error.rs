//! What can go wrong in the lab itself, as opposed to in a scenario.

use std::path::{Path, PathBuf};

/// Why the lab could not do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or a process.
    #[error("{what}: {error}")]
    Io {
        /// What was tried, with the name of the file.
        what: String,
        /// Why it failed.
        #[source]
        error: std::io::Error,
    },
    /// Something that the lab needs is not on this machine: scenarios are skipped.
    #[error("{0}")]
    Missing(String),
    /// A program failed.
    #[error("`{command}` failed: {output}")]
    Program {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// A package does not hold what is expected of it.
    #[error("no {name} in {}: remove the directory to take the packages anew", .root.display())]
    NotInPackages {
        /// The program, library or module.
        name: String,
        /// Where the packages were unpacked.
        root: PathBuf,
    },
    /// A scenario script has a head that cannot be understood.
    #[error("{}: {why}", .path.display())]
    Scenario {
        /// The script.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A request of a guest cannot be carried out.
    #[error("{0}")]
    Request(String),
}

/// Adds what was tried to an error of the operating system.
pub(crate) trait Context<T> {
    /// `what` and the path tell what was tried.
    fn context(self, what: &str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: &str, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::Io {
            what: format!("cannot {what} {}", path.display()),
            error,
        })
    }
}

/// Runs a program to its end and returns what it wrote to its standard output.
pub(crate) fn output_of(command: &mut std::process::Command) -> Result<String, Error> {
    let line = format!("{command:?}").replace('"', "");
    let output = match command.stdin(std::process::Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let program = command.get_program().display().to_string();
            return Err(Error::Missing(format!("there is no `{program}`")));
        }
        Err(error) => {
            let what = format!("cannot run `{line}`");
            return Err(Error::Io { what, error });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.is_empty() {
        text = output.status.to_string();
    }
    Err(Error::Program {
        command: line,
        output: text,
    })
}
