//! An engine as a process, for one scenario.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::error::{Context, Error, output_of};

/// How long an engine may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(20);

/// An engine that runs, or ran.
#[derive(Debug)]
pub(crate) struct Engine {
    program: PathBuf,
    directory: PathBuf,
    arguments: Vec<String>,
    port: u16,
    runs: u32,
    child: Option<Child>,
}

impl Engine {
    /// Starts one with these arguments of `serve`, on a free port, and waits until it serves.
    pub(crate) fn start(program: &Path, directory: &Path, arguments: Vec<String>) -> Result<Self, Error> {
        let mut engine = Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            arguments,
            port: 0,
            runs: 0,
            child: None,
        };
        engine.spawn()?;
        Ok(engine)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again, on the same port with the same devices.
    pub(crate) fn restart(&mut self) -> Result<(), Error> {
        if self.child.is_some() {
            return Err(Error::Request("the engine runs".to_owned()));
        }
        self.spawn()
    }

    /// Kills it, without a chance to flush anything.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        let mut child = self.running()?;
        child.kill().context("kill", &self.program)?;
        child.wait().context("wait for", &self.program)?;
        Ok(())
    }

    /// Sends it a signal that it lives through.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let child = self.child.as_ref().ok_or_else(no_engine)?;
        rustix::process::kill_process(Pid::from_child(child), signal)
            .map_err(std::io::Error::from)
            .context("signal", &self.program)
    }

    /// Tells it to stop, and expects it to leave in good order.
    pub(crate) fn stop(&mut self) -> Result<(), Error> {
        let mut child = self.running()?;
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM)
            .map_err(std::io::Error::from)
            .context("signal", &self.program)?;
        let status = wait(&mut child, &self.program)?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Error::Request(format!(
                "told to stop, the engine left with {status}"
            ))),
            None => {
                child.kill().context("kill", &self.program)?;
                child.wait().context("wait for", &self.program)?;
                Err(Error::Request("told to stop, the engine did not".to_owned()))
            }
        }
    }

    /// Runs `pollux-engine namespace` against it.
    pub(crate) fn namespace(&self, arguments: &[String]) -> Result<String, Error> {
        output_of(
            Command::new(&self.program)
                .args(["namespace", "--grpc", &self.control()])
                .args(arguments),
        )
    }

    /// Ends with the scenario: it must still run unless the scenario ended it, and leave in good order
    /// without having logged an error.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        if self.child.is_some()
            && let Err(error) = self.stop()
        {
            found.push(error.to_string());
        }
        for run in 1..=self.runs {
            let log = std::fs::read_to_string(self.log(run)).unwrap_or_default();
            found.extend(
                log.lines()
                    .filter(|line| is_bad(line))
                    .map(|line| format!("engine: {line}")),
            );
        }
        found
    }

    fn running(&mut self) -> Result<Child, Error> {
        let mut child = self.child.take().ok_or_else(no_engine)?;
        match child.try_wait().context("ask after", &self.program)? {
            None => Ok(child),
            Some(status) => Err(Error::Request(format!(
                "the engine ended by itself, with {status}"
            ))),
        }
    }

    fn control(&self) -> String {
        format!("unix:{}", self.directory.join("engine.sock").display())
    }

    fn log(&self, run: u32) -> PathBuf {
        self.directory.join(format!("engine-{run}.log"))
    }

    fn spawn(&mut self) -> Result<(), Error> {
        self.runs += 1;
        let log = self.log(self.runs);
        let file = File::create(&log).context("make", &log)?;
        let child = Command::new(&self.program)
            .args(["serve", "--log-format", "json", "--grpc", &self.control()])
            .args(["--nvmf", &format!("127.0.0.1:{}", self.port)])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("start", &self.program)?;
        let child = self.child.insert(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&log).context("read", &log)?;
            if let Some(port) = text.lines().find_map(port_of) {
                self.port = port;
                return Ok(());
            }
            let ended = child.try_wait().context("ask after", &self.program)?.is_some();
            if ended || Instant::now() > deadline {
                return Err(Error::Request(format!("the engine does not serve: {text}")));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The error of a request that needs an engine.
pub(crate) fn no_engine() -> Error {
    Error::Request("no engine runs".to_owned())
}

fn wait(child: &mut Child, program: &Path) -> Result<Option<ExitStatus>, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = child.try_wait().context("ask after", program)?;
        if status.is_some() || Instant::now() > deadline {
            return Ok(status);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The port in a log record that tells that the engine serves.
fn port_of(line: &str) -> Option<u16> {
    let record: Value = serde_json::from_str(line).ok()?;
    if record.get("message")? != "serving" {
        return None;
    }
    let listener = record.get("listeners")?.as_str()?.split(',').next()?;
    listener.rsplit_once(':')?.1.parse().ok()
}

/// Whether a line of a log tells of an error, or is no record at all: the last words of a panic.
pub(crate) fn is_bad(line: &str) -> bool {
    match serde_json::from_str::<Value>(line) {
        Ok(record) => record.get("level").is_none_or(|level| level == "ERROR"),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_in_the_log() {
        let line = r#"{"level":"INFO","message":"serving","listeners":"127.0.0.1:4711,[::1]:5"}"#;
        assert_eq!(port_of(line), Some(4711));
        assert_eq!(port_of(&line.replace("serving", "opening")), None);
        assert_eq!(port_of("panicked at 127.0.0.1:4711"), None);
    }

    #[test]
    fn errors_and_panics_in_the_log_are_bad() {
        assert!(is_bad(r#"{"level":"ERROR","message":"x"}"#));
        assert!(is_bad("thread 'reactor-0' panicked at src/x.rs"));
        assert!(!is_bad(r#"{"level":"WARN","message":"x"}"#));
    }
}
