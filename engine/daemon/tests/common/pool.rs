//! A pool on a file, and the command line for it.

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use super::{answer, errors, run};

/// A file with room for a pool.
pub struct PoolFile {
    directory: TempDir,
}

impl PoolFile {
    /// A file of so many bytes, with nothing in it.
    pub fn new(bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = Self { directory };
        let created = std::fs::File::create(file.path()).expect("a file");
        created.set_len(bytes).expect("room");
        file
    }

    /// One with a pool `tank` and a volume `db` in it.
    pub fn with_volume(bytes: u64, size: &str) -> Self {
        let file = Self::new(bytes);
        succeed(&["pool", "create", "tank", &file.uri()]);
        file.command(&["volume", "create", "tank/db", size]);
        file
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("pool.img")
    }

    /// Its URI.
    pub fn uri(&self) -> String {
        format!("uring://{}?block=4096", self.path().display())
    }

    /// Does something with the pool, which no engine has.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> String {
        let uri = self.uri();
        succeed(&[arguments, &["--pool", &uri]].concat())
    }

    /// Does something that is refused, and returns the one line that tells why.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let uri = self.uri();
        refused(&run(&[arguments, &["--pool", &uri]].concat()))
    }

    /// Checks that the pool is sound.
    #[track_caller]
    pub fn check(&self) {
        let text = self.command(&["pool", "check", "tank"]);
        assert!(text.contains("is sound"), "{text}");
    }
}

/// Runs the program, which must succeed, and returns its answer.
#[track_caller]
pub fn succeed(arguments: &[&str]) -> String {
    succeeded(&run(arguments))
}

/// The answer of a command that must have succeeded.
#[track_caller]
pub fn succeeded(output: &Output) -> String {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        errors(output),
        answer(output)
    );
    answer(output)
}

/// The one line of a command that must have been refused.
#[track_caller]
pub fn refused(output: &Output) -> String {
    let text = errors(output);
    assert_eq!(output.status.code(), Some(1), "{text}{}", answer(output));
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    text
}

/// An answer for machines.
#[track_caller]
pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
