//! What guests ask of the host's side.
//!
//! A request is one TCP connection to a port on the loopback interface: a line of words, for some requests
//! more lines, and the end of the stream. The answer is a line, `ok` or `error` and why, followed by text.
//!
//! ```text
//! begin NAME                     a scenario begins
//! end NAME STATUS                it ended with this exit status; the kernel's log since it began follows
//! bye                            there are no more
//! engine start ARGUMENT...       starts an engine with these arguments of `serve`; the answer is its port
//! engine kill                    kills it
//! engine restart                 starts it again on the same port
//! engine stop                    stops it in good order
//! engine pause, engine resume    lets it stand still, and go on
//! namespace ARGUMENT...          what `pollux-engine namespace` does
//! cluster start N                starts a control plane, N engines called n1, n2, ... with a pool each, and
//!                                the CSI controller service; the answer is a port that leads to that
//! cluster kill NAME              kills an engine of it
//! cluster restart NAME           starts it again
//! cluster pause NAME, cluster resume NAME
//!                                lets it stand still, and go on
//! pollux ARGUMENT...             what `pollux` does with this control plane
//! csi ARGUMENT...                what `pollux-csi call controller` does
//! allocated FILE                 bytes that a file occupies
//! copy FILE FILE                 copies a file
//! records FILE SLOTS DURABLE     looks for records in a file
//! ```
//!
//! `@` in an argument is the directory of the scenario; a FILE is the name of one in it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::engine::{Engine, no_engine};
use crate::error::{Context, Error};
use crate::records;

/// The longest request: the log of a kernel.
const REQUEST_BYTES_MAX: u64 = 8 << 20;

/// How long a guest may take to send a request or to take an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Something that a run has to know of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A scenario began.
    Begun(String),
    /// A scenario ended.
    Ended(Outcome),
    /// The guest has run all of them.
    Bye,
}

/// How a scenario ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) name: String,
    /// The exit status of its script.
    pub(crate) status: String,
    /// The kernel's log since it began.
    pub(crate) kernel_log: String,
    /// What the engine did that it should not have done.
    pub(crate) engine: Vec<String>,
}

/// The host's side of a run.
#[derive(Debug)]
pub(crate) struct Control {
    listener: TcpListener,
    program: PathBuf,
    runs: PathBuf,
    directory: PathBuf,
    engine: Option<Engine>,
    cluster: Option<Cluster>,
}

impl Control {
    /// Listens, for scenarios whose engine is `program` and whose directories are below `runs`.
    pub(crate) fn listen(program: &Path, runs: &Path) -> Result<Self, Error> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listen at", Path::new("127.0.0.1"))?;
        listener
            .set_nonblocking(true)
            .context("listen at", Path::new("127.0.0.1"))?;
        Ok(Self {
            listener,
            program: program.to_owned(),
            runs: runs.to_owned(),
            directory: runs.to_owned(),
            engine: None,
            cluster: None,
        })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> Result<u16, Error> {
        let address = self.listener.local_addr();
        Ok(address.context("listen at", Path::new("127.0.0.1"))?.port())
    }

    /// Carries out a request if there is one.
    pub(crate) fn poll(&mut self) -> Option<Event> {
        let (mut stream, _) = self.listener.accept().ok()?;
        let request = receive(&mut stream).ok()?;
        let (line, rest) = request.split_once('\n').unwrap_or((&request, ""));
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut event = None;
        let answer = match self.answer(&words, rest, &mut event) {
            Ok(text) => format!("ok\n{text}"),
            Err(error) => format!("error {error}\n"),
        };
        // A guest that does not take the answer fails by itself.
        let _ = stream.write_all(answer.as_bytes());
        event
    }

    fn answer(&mut self, words: &[&str], rest: &str, event: &mut Option<Event>) -> Result<String, Error> {
        match words {
            ["begin", name] => {
                self.directory = self.runs.join(file_name(name)?);
                if self.directory.exists() {
                    std::fs::remove_dir_all(&self.directory).context("remove", &self.directory)?;
                }
                std::fs::create_dir_all(&self.directory).context("make", &self.directory)?;
                *event = Some(Event::Begun((*name).to_owned()));
                Ok(String::new())
            }
            ["end", name, status] => {
                *event = Some(Event::Ended(Outcome {
                    name: (*name).to_owned(),
                    status: (*status).to_owned(),
                    kernel_log: rest.to_owned(),
                    engine: self.end_engine(),
                }));
                Ok(String::new())
            }
            ["bye"] => {
                *event = Some(Event::Bye);
                Ok(String::new())
            }
            ["engine", "start", arguments @ ..] => {
                if self.engine.is_some() {
                    return Err(Error::Request("an engine was started already".to_owned()));
                }
                let arguments = self.arguments(arguments);
                let engine = Engine::start(&self.program, &self.directory, arguments)?;
                Ok(format!("{}\n", self.engine.insert(engine).port()))
            }
            ["engine", "kill"] => self.engine()?.kill().map(|()| String::new()),
            ["engine", "pause"] => self.engine()?.signal(Signal::STOP).map(|()| String::new()),
            ["engine", "resume"] => self.engine()?.signal(Signal::CONT).map(|()| String::new()),
            ["engine", "restart"] => self.engine()?.restart().map(|()| String::new()),
            ["engine", "stop"] => self.engine()?.stop().map(|()| String::new()),
            ["namespace", arguments @ ..] => {
                let arguments = self.arguments(arguments);
                self.engine()?.namespace(&arguments)
            }
            ["cluster", "start", count] => {
                if self.cluster.is_some() {
                    return Err(Error::Request("a cluster was started already".to_owned()));
                }
                let programs = self.program.parent().unwrap_or(Path::new("."));
                let cluster = Cluster::start(programs, &self.directory, number(count)?)?;
                Ok(format!("{}\n", self.cluster.insert(cluster).relay_port()))
            }
            ["cluster", "kill", name] => self.cluster()?.kill(name).map(|()| String::new()),
            ["cluster", "restart", name] => self.cluster()?.restart(name).map(|()| String::new()),
            ["cluster", "pause", name] => self.signal(name, Signal::STOP),
            ["cluster", "resume", name] => self.signal(name, Signal::CONT),
            ["pollux", arguments @ ..] => {
                let arguments = self.arguments(arguments);
                self.cluster()?.pollux(&arguments)
            }
            ["csi", arguments @ ..] => {
                let arguments = self.arguments(arguments);
                self.cluster()?.csi(&arguments)
            }
            ["allocated", name] => {
                let path = self.file(name)?;
                let metadata = std::fs::metadata(&path).context("look at", &path)?;
                // In units of 512 bytes, whatever the file system's block size is.
                Ok(format!("{}\n", metadata.blocks() * 512))
            }
            ["copy", from, to] => {
                let (from, to) = (self.file(from)?, self.file(to)?);
                std::fs::copy(&from, &to).context("copy", &from)?;
                Ok(String::new())
            }
            ["records", name, slots, durable] => {
                let found = records::verify(&self.file(name)?, number(slots)?, number(durable)?)?;
                Ok(found + "\n")
            }
            _ => Err(Error::Request(format!("`{}` is no request", words.join(" ")))),
        }
    }

    /// Ends what a scenario started, and returns what was wrong with it.
    pub(crate) fn end_engine(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(mut engine) = self.engine.take() {
            found.extend(engine.finish());
        }
        if let Some(mut cluster) = self.cluster.take() {
            found.extend(cluster.finish());
        }
        found
    }

    /// Sends a signal to an engine of the cluster.
    fn signal(&mut self, name: &str, signal: Signal) -> Result<String, Error> {
        self.cluster()?.signal(name, signal).map(|()| String::new())
    }

    fn cluster(&mut self) -> Result<&mut Cluster, Error> {
        let cluster = self.cluster.as_mut();
        cluster.ok_or_else(|| Error::Request("no cluster runs".to_owned()))
    }

    fn engine(&mut self) -> Result<&mut Engine, Error> {
        self.engine.as_mut().ok_or_else(no_engine)
    }

    fn arguments(&self, words: &[&str]) -> Vec<String> {
        let directory = self.directory.display().to_string();
        words.iter().map(|word| word.replace('@', &directory)).collect()
    }

    fn file(&self, name: &str) -> Result<PathBuf, Error> {
        Ok(self.directory.join(file_name(name)?))
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|_| Error::Request(format!("`{text}` is no number")))
}

fn file_name(name: &str) -> Result<&str, Error> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    if name.is_empty() || !name.chars().all(is_plain) {
        return Err(Error::Request(format!("`{name}` is no plain name of a file")));
    }
    Ok(name)
}

fn receive(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let deadline = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut part = [0; 64 << 10];
    while (request.len() as u64) < REQUEST_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut part)? {
            0 => break,
            bytes => request.extend_from_slice(part.get(..bytes).unwrap_or_default()),
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    fn ask(control: &mut Control, request: &str) -> (String, Option<Event>) {
        let mut stream =
            TcpStream::connect(("127.0.0.1", control.port().expect("a port"))).expect("it listens");
        stream.write_all(request.as_bytes()).expect("taken");
        stream.shutdown(Shutdown::Write).expect("ended");
        let event = control.poll();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        (answer, event)
    }

    fn control() -> (Control, tempfile::TempDir) {
        let runs = tempfile::tempdir().expect("a directory");
        let control = Control::listen(Path::new("no-such-program"), runs.path()).expect("it listens");
        (control, runs)
    }

    #[test]
    fn scenarios_begin_and_end() {
        let (mut control, runs) = control();
        assert_eq!(control.poll(), None);
        let (answer, event) = ask(&mut control, "begin one\n");
        assert_eq!(
            (answer.as_str(), event),
            ("ok\n", Some(Event::Begun("one".to_owned())))
        );
        assert!(runs.path().join("one").is_dir());
        let (answer, event) = ask(&mut control, "end one 3\n<6>[ 1.0] a\n<6>[ 2.0] b\n");
        assert_eq!(answer, "ok\n");
        let outcome = Outcome {
            name: "one".to_owned(),
            status: "3".to_owned(),
            kernel_log: "<6>[ 1.0] a\n<6>[ 2.0] b\n".to_owned(),
            engine: Vec::new(),
        };
        assert_eq!(event, Some(Event::Ended(outcome)));
        assert_eq!(ask(&mut control, "bye").1, Some(Event::Bye));
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let (mut control, _runs) = control();
        for (request, part) in [
            ("", "is no request"),
            ("begin ../x", "no plain name"),
            ("engine kill", "no engine runs"),
            ("cluster kill n1", "no cluster runs"),
            ("cluster pause n1", "no cluster runs"),
            ("cluster start x", "is no number"),
            ("cluster start 0", "1 to 5 engines"),
            ("csi list", "no cluster runs"),
            ("engine start null:///a", "no-such-program"),
            ("allocated none", "cannot look at"),
            ("records none 1 x", "is no number"),
        ] {
            let (answer, event) = ask(&mut control, request);
            assert!(
                answer.starts_with("error ") && answer.contains(part),
                "{request}: {answer}"
            );
            assert_eq!(event, None);
        }
    }

    #[test]
    fn files_are_those_of_the_scenario() {
        let (mut control, runs) = control();
        ask(&mut control, "begin one");
        std::fs::write(runs.path().join("one/disk"), [1; 8192]).expect("written");
        assert_eq!(ask(&mut control, "copy disk other").0, "ok\n");
        let (answer, _) = ask(&mut control, "allocated other");
        let bytes: u64 = answer
            .trim_start_matches("ok\n")
            .trim()
            .parse()
            .expect("a number");
        assert!(bytes >= 8192, "{bytes}");
        let words = control.arguments(&["uring://@/disk?size=1MiB"]);
        assert_eq!(
            words,
            [format!("uring://{}/one/disk?size=1MiB", runs.path().display())]
        );
    }
}
