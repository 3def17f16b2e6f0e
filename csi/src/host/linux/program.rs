//! Running programs of file systems: with an end to their time, and their last words in errors.

use std::io::{ErrorKind, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::HostError;

/// The longest time that a program may take: making a file system of hundreds of TiB.
const TIME_MAX: Duration = Duration::from_secs(600);

/// Between two looks whether a program has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// Bytes of what a program says that are kept.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// Bytes of its last words that are told.
const WORDS_BYTES_MAX: usize = 512;

/// What came of a program.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Its exit status; nothing if it was killed.
    pub(super) status: Option<i32>,
    /// What it printed.
    pub(super) output: String,
    /// What it complained of.
    errors: String,
}

impl Outcome {
    /// Why it failed, for people.
    pub(super) fn describe(&self) -> String {
        let words = [self.errors.trim(), self.output.trim()]
            .into_iter()
            .find(|text| !text.is_empty());
        let words = words.unwrap_or("it said nothing");
        let mut start = words.len().saturating_sub(WORDS_BYTES_MAX);
        while !words.is_char_boundary(start) {
            start += 1;
        }
        let words = words.get(start..).unwrap_or_default();
        match self.status {
            Some(status) => format!("exit status {status}: {words}"),
            None => format!("it was killed: {words}"),
        }
    }
}

/// Reads all there is, keeps a part of it.
fn drain(mut source: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        // What cannot be read was not said.
        let _ = source.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut kept);
        let _ = std::io::copy(&mut source, &mut std::io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// Runs a program to its end.
pub(super) fn run(program: &'static str, arguments: &[&str], subject: &str) -> Result<Outcome, HostError> {
    let failed = |reason: String| HostError::Program {
        program,
        subject: subject.to_owned(),
        reason,
    };
    let started = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|error| match error.kind() {
        ErrorKind::NotFound => HostError::Missing {
            what: format!("the program {program}"),
            remedy: "install it, or take the node image of the driver",
        },
        _ => failed(error.to_string()),
    })?;
    let output = child.stdout.take().map(drain);
    let errors = child.stderr.take().map(drain);
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < TIME_MAX => thread::sleep(PAUSE),
            Ok(None) => {
                // It has ended by itself, or does now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("it took longer than {} s", TIME_MAX.as_secs())));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    };
    let join = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(Outcome {
        status: status.code(),
        output: join(output),
        errors: join(errors),
    })
}

/// Runs a program that must succeed.
pub(super) fn succeed(program: &'static str, arguments: &[&str], subject: &str) -> Result<(), HostError> {
    let outcome = run(program, arguments, subject)?;
    match outcome.status {
        Some(0) => Ok(()),
        _ => Err(HostError::Program {
            program,
            subject: subject.to_owned(),
            reason: outcome.describe(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_tell_how_they_ended() {
        succeed("true", &[], "x").expect("it succeeds");
        let error = succeed("sh", &["-c", "echo why >&2; exit 3"], "x").expect_err("it fails");
        assert!(error.to_string().contains("exit status 3: why"), "{error}");
        let error = succeed("sh", &["-c", "kill -9 $$"], "x").expect_err("it is killed");
        assert!(error.to_string().contains("killed"), "{error}");
        let error = succeed("no-such-program-at-all", &[], "x").expect_err("it is not there");
        assert!(matches!(error, HostError::Missing { .. }), "{error}");
    }

    #[test]
    fn much_output_is_cut_and_stops_nobody() {
        let outcome = run(
            "sh",
            &["-c", "head -c 1000000 /dev/zero | tr '\\0' x; exit 1"],
            "x",
        )
        .expect("it runs");
        assert_eq!(outcome.output.len() as u64, OUTPUT_BYTES_MAX);
        assert!(outcome.describe().len() < WORDS_BYTES_MAX + 64);
    }
}
