//! The newest term of a leader that this engine was told something by: durable, so that a leader of before is
//! refused after a restart too.
//!
//! A file with the number in decimal and a line end. It is written anew beside itself, flushed, and put in
//! its place, and then its directory is flushed: a power cut leaves the old or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The name of the file in the directory of the engine's state.
const FILE: &str = "term";

/// See the module.
#[derive(Debug)]
pub(super) struct Term {
    directory: PathBuf,
    newest: tokio::sync::Mutex<u64>,
}

/// Why a command is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum TermError {
    /// A later leader was here.
    #[error("term {term} is over: term {newest} was seen already")]
    Over {
        /// That of the command.
        term: u64,
        /// The newest.
        newest: u64,
    },
    /// The new term could not be made durable.
    #[error("term {term} cannot be kept: {source}")]
    Keep {
        /// That of the command.
        term: u64,
        /// Why not.
        source: io::Error,
    },
}

impl Term {
    /// What is kept in a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// Those of the file system; a file that holds no number is [`io::ErrorKind::InvalidData`].
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let newest = match fs::read_to_string(directory.join(FILE)) {
            Ok(text) => text.trim_end().parse().map_err(|_| {
                let path = directory.join(FILE);
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} holds no number", path.display()),
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self {
            directory: directory.to_owned(),
            newest: tokio::sync::Mutex::new(newest),
        })
    }

    /// The newest that was seen; 0 if there was none.
    pub(super) async fn newest(&self) -> u64 {
        *self.newest.lock().await
    }

    /// Takes a command of a term, if no later one was seen. Once it is taken, the term is durable.
    ///
    /// # Errors
    ///
    /// [`TermError`].
    pub(super) async fn admit(&self, term: u64) -> Result<(), TermError> {
        let mut newest = self.newest.lock().await;
        if term < *newest {
            return Err(TermError::Over {
                term,
                newest: *newest,
            });
        }
        if term > *newest {
            let directory = self.directory.clone();
            let kept = tokio::task::spawn_blocking(move || keep(&directory, term)).await;
            let kept = kept.map_err(io::Error::other).and_then(|kept| kept);
            kept.map_err(|source| TermError::Keep { term, source })?;
            *newest = term;
        }
        Ok(())
    }
}

fn keep(directory: &Path, term: u64) -> io::Result<()> {
    let beside = directory.join("term.new");
    let mut file = File::create(&beside)?;
    writeln!(file, "{term}")?;
    file.sync_all()?;
    fs::rename(&beside, directory.join(FILE))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn terms_are_kept_and_older_ones_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        let term = Term::open(&path).expect("it is made");
        for number in [3, 3, 7] {
            term.admit(number).await.expect("it is not older");
        }
        let over = term.admit(6).await;
        assert!(matches!(over, Err(TermError::Over { term: 6, newest: 7 })));
        drop(term);
        let term = Term::open(&path).expect("it is there");
        assert!(term.admit(6).await.is_err());
        term.admit(7).await.expect("it is the newest");
    }

    #[test]
    fn a_file_that_holds_no_number_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(FILE), "many").expect("it can be written");
        let error = Term::open(directory.path()).expect_err("it is no number");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
