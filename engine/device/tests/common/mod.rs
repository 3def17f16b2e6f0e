//! Reactors for tests.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use pollux_device::{Device, DeviceUri, OpenError, Registry};
use pollux_hugepages::{ArenaOptions, PagePreference, PoolOptions};
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};
use pollux_reactor::{ReactorHandle, ReactorId};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Reactors that tests of this process run on.
pub struct TestReactors(Vec<ReactorThread>);

impl TestReactors {
    pub fn start(count: u32) -> Self {
        let threads = (0..count).map(|number| {
            let settings = Settings {
                id: ReactorId(number),
                idle: IdlePolicy::Adaptive {
                    spin: Duration::from_micros(20),
                },
                buffers: PoolOptions {
                    arena: ArenaOptions {
                        page: PagePreference::Ordinary,
                        ..ArenaOptions::default()
                    },
                    ..PoolOptions::default()
                },
                ..Settings::default()
            };
            ReactorThread::spawn(settings).expect("a reactor")
        });
        Self(threads.collect())
    }

    pub fn handles(&self) -> Vec<ReactorHandle> {
        self.0.iter().map(ReactorThread::handle).collect()
    }

    /// Runs a future on the first reactor, and fails as it does.
    pub fn run<M, F, T>(self, make: M) -> T
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let output = block_on(self.0[0].handle().call(make));
        for reactor in self.0 {
            reactor.stop();
            if let Err(error) = reactor.join() {
                panic!("{error}");
            }
        }
        output.expect("the reactor runs until it is stopped")
    }
}

/// Runs a future on a reactor of its own.
pub fn on_reactor<M, F, T>(make: M) -> T
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    TestReactors::start(1).run(make)
}

/// A block device over a file; detached when dropped.
pub struct LoopDevice(String);

impl LoopDevice {
    /// `None`, with a word about it, where there are no loop devices or no rights to have one.
    pub fn attach(file: &Path, sector_bytes: u32) -> Option<Self> {
        std::fs::File::create(file)
            .and_then(|file| file.set_len(64 << 20))
            .expect("a file");
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size"]);
        try_command(losetup.arg(sector_bytes.to_string()).arg(file)).map(Self)
    }

    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = run(Command::new("losetup").arg("--detach").arg(&self.0));
        assert!(
            detached.is_ok_and(|output| output.status.success()),
            "{} stays attached",
            self.0
        );
    }
}

/// A small file system, unmounted when dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// `None`, with a word about it, without the right to mount.
    pub fn new(at: &Path, kind: &str, options: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options, kind]).arg(at);
        try_command(&mut mount).map(|_| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg(&self.0));
        assert!(
            unmounted.is_ok_and(|output| output.status.success()),
            "{} stays",
            self.0.display()
        );
    }
}

/// Held while a process starts: until it runs its program it has all files of this process, with their locks.
static STARTING: Mutex<()> = Mutex::new(());

/// Runs a command to its end.
fn run(command: &mut Command) -> std::io::Result<Output> {
    let child = {
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?
    };
    child.wait_with_output()
}

/// Returns when no other process has files that this one closed, so that they can be opened again.
pub fn let_go() {
    drop(STARTING.lock().unwrap_or_else(PoisonError::into_inner));
}

/// What a command prints; `None`, with a word about it, if it cannot be had or fails.
fn try_command(command: &mut Command) -> Option<String> {
    let why = match run(command) {
        Ok(output) if output.status.success() => {
            return Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let _ = writeln!(std::io::stderr(), "skipped: {command:?}: {why}");
    None
}

/// Opens a device on the calling reactor.
pub async fn open(text: &str) -> Result<Arc<dyn Device>, OpenError> {
    let uri = DeviceUri::parse(text)?;
    let_go();
    Registry::standard().open(&uri).await
}
