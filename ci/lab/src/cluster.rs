//! A cluster on this machine, for one scenario: a control plane, engines with a pool in a file each, and the
//! controller service of the CSI driver, as processes on the loopback interface.
//!
//! The guest reaches all of it at the addresses that they tell: QEMU carries what is for 127.0.0.1 to here.
//! The controller service answers at a socket, which the guest cannot reach; so it is behind a port too, for
//! as long as the cluster runs.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pollux_ports::KeptPorts;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::engine::is_bad;
use crate::error::{Context, Error, output_of};

/// How long a process may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long engines may take to delete what they are told to.
const DELETION_PATIENCE: Duration = Duration::from_secs(30);

/// Engines of a cluster.
const ENGINES_MAX: usize = 5;

/// The size of a pool; its file takes no more space than what is in it.
const POOL_BYTES: u64 = 8 << 30;

/// Seconds without a report after which an engine counts as unreachable.
const UNREACHABLE_AFTER_S: u32 = 3;

/// A process that runs, or ran.
#[derive(Debug)]
struct Process {
    name: String,
    child: Option<Child>,
}

impl Process {
    fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Self, Error> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .context("make", log)
        };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .context("start", program)?;
        let name = program.file_name().unwrap_or_default();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            child: Some(child),
        })
    }

    fn kill(&mut self) -> Result<(), Error> {
        let path = Path::new(&self.name);
        let child = self.child.take();
        let mut child = child.ok_or_else(|| Error::Request(format!("{} does not run", self.name)))?;
        child.kill().context("kill", path)?;
        child.wait().context("wait for", path)?;
        Ok(())
    }

    /// Sends it a signal that it lives through.
    fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let child = self.child.as_ref();
        let child = child.ok_or_else(|| Error::Request(format!("{} does not run", self.name)))?;
        rustix::process::kill_process(Pid::from_child(child), signal)
            .map_err(io::Error::from)
            .context("signal", Path::new(&self.name))
    }

    /// Tells it to stop, if it runs; what was wrong with that.
    fn stop(&mut self) -> Option<String> {
        let mut child = self.child.take()?;
        // One that ended by itself is found below. One that stands still goes on, to hear of it.
        let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::CONT);
        let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(PAUSE),
                Ok(Some(status)) if status.success() => return None,
                Ok(Some(status)) => return Some(format!("told to stop, {} left with {status}", self.name)),
                Err(error) => return Some(format!("{} cannot be waited for: {error}", self.name)),
            }
        }
        // It may end just now.
        let _ = child.kill();
        let _ = child.wait();
        Some(format!("told to stop, {} did not", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Debug)]
struct Engine {
    name: String,
    /// Where the control plane calls it.
    agent: SocketAddr,
    directory: PathBuf,
    settings: PathBuf,
    process: Process,
}

impl Engine {
    fn pool_uri(&self) -> String {
        format!("uring://{}?block=4096", self.directory.join("pool.img").display())
    }

    /// Where the engine itself is asked about its pool.
    fn grpc(&self) -> String {
        format!("unix:{}", self.directory.join("grpc.sock").display())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
    control_address: SocketAddr,
    control: Process,
    engines: Vec<Engine>,
    csi: Process,
    relay_port: u16,
    /// Nobody else is given the ports of processes that are away.
    _ports: KeptPorts,
}

impl Cluster {
    /// Starts so many engines and all else, with the programs of a directory, and waits until pools can be
    /// used.
    pub(crate) fn start(programs: &Path, directory: &Path, count: usize) -> Result<Self, Error> {
        if !(1..=ENGINES_MAX).contains(&count) {
            return Err(Error::Request(format!(
                "a cluster has 1 to {ENGINES_MAX} engines"
            )));
        }
        let kept = KeptPorts::draw(1 + 2 * count);
        let kept = kept.context("listen at", Path::new("127.0.0.1"))?;
        let mut ports = kept.addresses().iter();
        let mut port = || {
            ports
                .next()
                .copied()
                .ok_or_else(|| Error::Request("there are no ports".to_owned()))
        };
        let control_address = port()?;
        let arguments = [
            "serve".to_owned(),
            format!("--store=file:{}", directory.join("store").display()),
            "--http=none".to_owned(),
            format!("--listen={control_address}"),
            format!("--unreachable-after={UNREACHABLE_AFTER_S}"),
        ];
        let control = programs.join("pollux-control");
        let control = Process::start(&control, &arguments, &directory.join("control.log"))?;
        let mut engines = Vec::new();
        for number in 1..=count {
            let (agent, nvmf) = (port()?, port()?);
            engines.push(start_engine(
                programs,
                directory,
                number,
                [control_address, agent, nvmf],
            )?);
        }
        let socket = directory.join("csi.sock");
        let arguments = [
            "controller".to_owned(),
            format!("--control={control_address}"),
            format!("--endpoint=unix://{}", socket.display()),
            "--volumes-per-node=6".to_owned(),
        ];
        let csi = programs.join("pollux-csi");
        let csi = Process::start(&csi, &arguments, &directory.join("csi.log"))?;
        let cluster = Self {
            programs: programs.to_owned(),
            directory: directory.to_owned(),
            control_address,
            control,
            engines,
            csi,
            relay_port: relay(socket).context("listen at", Path::new("127.0.0.1"))?,
            _ports: kept,
        };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// Where the controller service answers as if at its socket.
    pub(crate) fn relay_port(&self) -> u16 {
        self.relay_port
    }

    fn wait_until_ready(&self) -> Result<(), Error> {
        let arguments = ["pool", "list", "-o", "json"].map(str::to_owned);
        let began = Instant::now();
        loop {
            let answer = self.pollux(&arguments);
            let is_online = |pool: &Value| pool.pointer("/status/state") == Some(&"POOL_STATE_ONLINE".into());
            let pools: Vec<Value> = match &answer {
                Ok(text) => serde_json::from_str(text).unwrap_or_default(),
                Err(_) => Vec::new(),
            };
            if pools.len() == self.engines.len() && pools.iter().all(is_online) {
                return Ok(());
            }
            if answer.is_ok() && pools.is_empty() {
                self.register()?;
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Request(format!("the cluster is not ready: {answer:?}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn register(&self) -> Result<(), Error> {
        for engine in &self.engines {
            let agent = engine.agent.to_string();
            self.pollux(&["node", "create", &engine.name, "--address", &agent].map(str::to_owned))?;
            let pool = format!("{}.pool", engine.name);
            let uri = engine.pool_uri();
            let arguments = ["pool", "create", &pool, "--node", &engine.name, "--device", &uri];
            self.pollux(&arguments.map(str::to_owned))?;
        }
        Ok(())
    }

    /// What `pollux` does with this control plane.
    pub(crate) fn pollux(&self, arguments: &[String]) -> Result<String, Error> {
        output_of(
            Command::new(self.programs.join("pollux"))
                .args(["--control", &self.control_address.to_string()])
                .args(arguments),
        )
    }

    /// What `pollux-csi call controller` does.
    pub(crate) fn csi(&self, arguments: &[String]) -> Result<String, Error> {
        output_of(
            Command::new(self.programs.join("pollux-csi"))
                .arg("call")
                .arg(format!(
                    "--endpoint=unix://{}",
                    self.directory.join("csi.sock").display()
                ))
                .arg("controller")
                .args(arguments),
        )
    }

    fn engine(&mut self, name: &str) -> Result<&mut Engine, Error> {
        let mut engines = self.engines.iter_mut();
        let found = engines.find(|engine| engine.name == name);
        found.ok_or_else(|| Error::Request(format!("there is no engine {name}")))
    }

    /// Kills an engine, without a chance to flush anything.
    pub(crate) fn kill(&mut self, name: &str) -> Result<(), Error> {
        self.engine(name)?.process.kill()
    }

    /// Lets an engine stand still, or go on.
    pub(crate) fn signal(&mut self, name: &str, signal: Signal) -> Result<(), Error> {
        self.engine(name)?.process.signal(signal)
    }

    /// Starts an engine again.
    pub(crate) fn restart(&mut self, name: &str) -> Result<(), Error> {
        let program = self.programs.join("pollux-engine");
        let engine = self.engine(name)?;
        if engine.process.child.is_some() {
            return Err(Error::Request(format!("engine {name} runs")));
        }
        engine.process = run_engine(&program, &engine.settings, &engine.directory)?;
        Ok(())
    }

    /// Waits until what is deleted is gone from pools: that goes on after the call that deletes.
    fn wait_until_empty(&self) {
        let began = Instant::now();
        for engine in self
            .engines
            .iter()
            .filter(|engine| engine.process.child.is_some())
        {
            while began.elapsed() < DELETION_PATIENCE
                && !matches!(self.left_in_pool(&["--grpc", &engine.grpc()]), Ok(None))
            {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Ends with the scenario: all of it must leave in good order, no engine may have logged an error, and
    /// nothing may be left in pools.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        self.wait_until_empty();
        let mut found: Vec<String> = self.csi.stop().into_iter().collect();
        for engine in &mut self.engines {
            found.extend(engine.process.stop());
        }
        found.extend(self.control.stop());
        for engine in &self.engines {
            let log = std::fs::read_to_string(engine.directory.join("log")).unwrap_or_default();
            let bad = log.lines().filter(|line| is_bad(line));
            found.extend(bad.map(|line| format!("engine {}: {line}", engine.name)));
            match self.left_in_pool(&["--pool", &engine.pool_uri()]) {
                Ok(left) => found.extend(left.map(|left| format!("left on engine {}: {left}", engine.name))),
                Err(error) => found.push(error.to_string()),
            }
        }
        found
    }

    /// What a pool holds that is reached so.
    fn left_in_pool(&self, reach: &[&str]) -> Result<Option<String>, Error> {
        let program = self.programs.join("pollux-engine");
        let ask = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).args(reach).args(["-o", "json"]);
            let text = output_of(&mut command)?;
            serde_json::from_str::<Value>(&text)
                .map_err(|error| Error::Request(format!("{command:?} tells no JSON: {error}")))
        };
        let pools = ask(&["pool", "list"])?;
        let name = pools
            .pointer("/0/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let volumes = ask(&["volume", "list", name])?;
        let is_empty = volumes.as_array().is_some_and(Vec::is_empty);
        Ok((!is_empty).then(|| volumes.to_string()))
    }
}

fn start_engine(
    programs: &Path,
    directory: &Path,
    number: usize,
    [control, agent, nvmf]: [SocketAddr; 3],
) -> Result<Engine, Error> {
    let name = format!("n{number}");
    let own = directory.join(&name);
    std::fs::create_dir_all(&own).context("make", &own)?;
    let pool = own.join("pool.img");
    let file = File::create(&pool).context("make", &pool)?;
    file.set_len(POOL_BYTES).context("make", &pool)?;
    let settings = own.join("engine.toml");
    let text = format!(
        "[cluster]\nnode = \"{name}\"\nlisten = \"{agent}\"\ncontrol = [\"{control}\"]\nstate = {:?}\n\n\
         [nvmf]\nlisten = [\"{nvmf}\"]\nsubsystem = \"nqn.2026-11.io.pollux:{name}\"\n\n\
         [reactors]\nmemory = \"64MiB\"\n\n[log]\nformat = \"json\"\n\n[grpc]\nlisten = \"unix:{}\"\n",
        own.join("state"),
        own.join("grpc.sock").display(),
    );
    std::fs::write(&settings, text).context("write", &settings)?;
    Ok(Engine {
        process: run_engine(&programs.join("pollux-engine"), &settings, &own)?,
        name,
        agent,
        directory: own,
        settings,
    })
}

fn run_engine(program: &Path, settings: &Path, directory: &Path) -> Result<Process, Error> {
    let arguments = ["serve".to_owned(), format!("--config={}", settings.display())];
    Process::start(program, &arguments, &directory.join("log"))
}

/// Has a port of the loopback interface lead to a socket, for as long as this program runs; returns it.
fn relay(socket: PathBuf) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        while let Ok((inner, _)) = listener.accept() {
            // Whoever comes before there is a socket finds that the connection ends.
            if let Ok(outer) = UnixStream::connect(&socket) {
                let _ = join(inner, outer);
            }
        }
    });
    Ok(port)
}

fn join(tcp: TcpStream, socket: UnixStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (mut from_tcp, mut to_socket) = (tcp.try_clone()?, socket.try_clone()?);
    std::thread::spawn(move || {
        // A connection that breaks ends both ways.
        let _ = io::copy(&mut from_tcp, &mut to_socket);
        let _ = to_socket.shutdown(Shutdown::Both);
    });
    let (mut from_socket, mut to_tcp) = (socket, tcp);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_socket, &mut to_tcp);
        let _ = to_tcp.shutdown(Shutdown::Both);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_port_leads_to_a_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let port = relay(path).expect("a port");
        let mut tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
        let (mut socket, _) = listener.accept().expect("it comes");
        tcp.write_all(b"question").expect("taken");
        let mut text = [0; 8];
        socket.read_exact(&mut text).expect("told");
        assert_eq!(&text, b"question");
        socket.write_all(b"answer").expect("taken");
        drop(socket);
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).expect("it ends");
        assert_eq!(answer, "answer");
    }

    #[test]
    fn a_process_is_stopped_in_good_order_or_told_of() {
        let directory = tempfile::tempdir().expect("a directory");
        let start = |script: &str| {
            let arguments = ["-c".to_owned(), script.to_owned()];
            Process::start(Path::new("/bin/sh"), &arguments, &directory.path().join("log"))
        };
        let mut bad = start("exit 3").expect("it starts");
        let told = bad.stop().expect("it did not leave well");
        assert!(told.contains("sh left with") || told.contains("signal"), "{told}");
        assert_eq!(bad.stop(), None);
        let mut paused = start("exec sleep 60").expect("it starts");
        paused.signal(Signal::STOP).expect("it runs");
        let told = paused.stop().expect("it did not leave well");
        assert!(told.contains("sh left with"), "{told}");
        let mut killed = start("sleep 60").expect("it starts");
        killed.kill().expect("it runs");
        assert!(killed.kill().is_err());
        assert!(killed.signal(Signal::CONT).is_err());
    }
}
