//! Hosts of volumes: processes that write, and read what they wrote.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, ExitStatus};

/// What it tells once it begins to write.
const WRITES: &str = "writing for";

/// A host that writes and reads.
pub struct Host {
    child: Child,
    errors: BufReader<ChildStderr>,
}

impl Host {
    /// One whose output and errors are read here.
    pub fn of(mut child: Child) -> Self {
        let errors = child.stderr.take().expect("its errors are read");
        Self {
            child,
            errors: BufReader::new(errors),
        }
    }

    /// Waits until it has a path, has read all, and writes.
    pub async fn writing(mut self) -> Self {
        let begun = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            let length = self.errors.read_line(&mut line).expect("it can be read");
            assert!(length > 0 && line.contains(WRITES), "the host: {line}");
            self
        });
        begun.await.expect("it writes")
    }

    /// Why it gives up, having found no way to the volume.
    pub async fn failure(self) -> String {
        let (status, _, errors) = self.ended().await;
        assert!(!status.success(), "the host finds a way");
        errors
    }

    /// What it tells; it has found what it wrote.
    pub async fn finished(self) -> serde_json::Value {
        let (status, output, errors) = self.ended().await;
        assert!(status.success(), "the host: {errors}");
        serde_json::from_slice(&output).expect("a report")
    }

    /// How it ended, its output and its errors.
    async fn ended(mut self) -> (ExitStatus, Vec<u8>, String) {
        let ended = tokio::task::spawn_blocking(move || {
            let mut errors = String::new();
            let read = self.errors.read_to_string(&mut errors);
            read.expect("it can be read");
            let output = self.child.wait_with_output().expect("it ends");
            (output.status, output.stdout, errors)
        });
        ended.await.expect("it is waited for")
    }
}
