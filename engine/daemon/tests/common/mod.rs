//! An engine as a process, for tests that look at it from outside.

#![allow(dead_code, reason = "not every test needs all of it")]

pub mod content;
pub mod host;
pub mod pool;
pub mod target;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that a test waits for; a busy machine is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pollux-engine"))
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    program()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program can be started")
}

/// What the program wrote to its standard error stream.
pub fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// What the program wrote to its standard output stream.
pub fn answer(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Cores that this process may use, at most `count`.
pub fn cores(count: usize) -> Vec<u32> {
    let set = rustix::thread::sched_getaffinity(None).expect("it can be asked for");
    (0..1024)
        .filter(|core| set.is_set(*core as usize))
        .take(count)
        .collect()
}

/// An engine that serves, with JSON logs, on free ports and a socket of its own.
pub struct EngineProcess {
    child: Child,
    lines: mpsc::Receiver<String>,
    log: Vec<Value>,
    socket: PathBuf,
    /// Where the socket is, unless that is for others to keep.
    _directory: Option<TempDir>,
}

impl EngineProcess {
    /// Starts one and waits until it serves.
    pub fn start(arguments: &[&str]) -> Self {
        let mut engine = Self::spawn(arguments);
        engine.wait_for("serving");
        engine
    }

    /// Starts one that listens at this address, and waits until it serves.
    pub fn start_at(listener: SocketAddr, arguments: &[&str]) -> Self {
        let mut engine = Self::spawn_at(&listener.to_string(), arguments);
        engine.wait_for("serving");
        engine
    }

    /// Starts one.
    pub fn spawn(arguments: &[&str]) -> Self {
        Self::spawn_at("127.0.0.1:0", arguments)
    }

    /// Starts one whose control socket is in this directory, again and again, and waits until it serves.
    pub fn start_in(directory: &Path, arguments: &[&str]) -> Self {
        let mut engine = Self::spawn_in(directory, "127.0.0.1:0", arguments);
        engine.wait_for("serving");
        engine
    }

    fn spawn_at(listener: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut engine = Self::spawn_in(directory.path(), listener, arguments);
        engine._directory = Some(directory);
        engine
    }

    fn spawn_in(directory: &Path, listener: &str, arguments: &[&str]) -> Self {
        let path = directory.join("engine.sock");
        let socket = format!("unix:{}", path.display());
        let mut child = program()
            .args([
                "serve",
                "--log-format",
                "json",
                "--nvmf",
                listener,
                "--memory",
                "16MiB",
            ])
            .args(["--grpc", &socket])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let stderr = child.stderr.take().expect("it was asked for");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            log: Vec::new(),
            socket: path,
            _directory: None,
        }
    }

    /// Waits for a log record with this message, and returns it.
    pub fn wait_for(&mut self, message: &str) -> Value {
        if let Some(found) = self.log.iter().find(|record| record["message"] == message) {
            return found.clone();
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {message:?} in the log: {:#?}", self.log)
            };
            let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let found = record["message"] == message;
            self.log.push(record.clone());
            if found {
                return record;
            }
        }
    }

    /// Where hosts connect.
    pub fn listener(&mut self) -> SocketAddr {
        let serving = self.wait_for("serving");
        let listeners = serving["listeners"].as_str().expect("a text").to_owned();
        listeners
            .split(',')
            .next()
            .and_then(|listener| listener.parse().ok())
            .expect("an address")
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Its control interface, as the command line takes it.
    pub fn control(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Runs `pollux-engine namespace` against it.
    pub fn namespace(&self, arguments: &[&str]) -> Output {
        self.command("namespace", arguments)
    }

    /// Runs a command against it.
    pub fn command(&self, command: &str, arguments: &[&str]) -> Output {
        let control = self.control();
        let mut all = vec![command];
        all.extend(arguments);
        all.extend(["--grpc", &control]);
        run(&all)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status()
            .expect("kill is there");
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end: {:#?}", self.log);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it, and expects it to leave in good order.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        let records = self.rest_of_log();
        assert_eq!(status.code(), Some(0), "{records:#?}");
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        assert_eq!(self.wait().signal(), Some(9));
    }

    /// Every record so far.
    pub fn log_so_far(&mut self) -> &[Value] {
        while let Ok(line) = self.lines.try_recv() {
            let record = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.log.push(record);
        }
        &self.log
    }

    /// Every record of an engine that has ended.
    pub fn rest_of_log(&mut self) -> Vec<Value> {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            let record = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.log.push(record);
        }
        self.log.clone()
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `serve` with these arguments, expects it to fail at once, and returns the one line it says.
pub fn start_error(arguments: &[&str], code: i32) -> String {
    let mut all = vec!["serve"];
    all.extend(arguments);
    let mut child = program()
        .args(&all)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it serves: {arguments:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    let stderr = child.stderr.as_mut().expect("it was asked for");
    stderr.read_to_string(&mut text).expect("UTF-8");
    assert_eq!(status.code(), Some(code), "{text}");
    text
}

/// Writes a file into a directory.
pub fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}
