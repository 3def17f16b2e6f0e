//! Reactor threads: pinned, named, running until they are stopped.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use pollux_hugepages::{BufferPool, PoolOptions};

use super::affinity;
use super::driver::{DriverSettings, RealDriver};
use super::spin::Spin;
use crate::driver::Wait;
use crate::executor::Core;
use crate::handle::{ReactorHandle, ReactorId};

/// What a reactor does when it has found nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Looks again, and never sleeps.
    Poll,
    /// Sleeps in the ring after a while, until a socket, a completion, a message or a timer wakes it.
    Adaptive {
        /// How long it goes on looking before it sleeps. Ten times as long while work takes an eighth of its
        /// time or more: what comes in batches, such as writes for a replica, would find it asleep each time,
        /// and whoever sends pays for the waking.
        spin: Duration,
    },
}

impl Default for IdlePolicy {
    /// Adaptive, with 50 microseconds of looking.
    fn default() -> Self {
        Self::Adaptive {
            spin: Duration::from_micros(50),
        }
    }
}

/// Settings of a [`ReactorThread`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its number, unique within the process; the thread is called `reactor-N`.
    pub id: ReactorId,
    /// The core that it is pinned to. `None`, the default, leaves it to the scheduler.
    pub core: Option<usize>,
    /// What it does when there is nothing to do. Default: adaptive.
    pub idle: IdlePolicy,
    /// Its buffers.
    pub buffers: PoolOptions,
    /// Its ring and sockets.
    pub driver: DriverSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            id: ReactorId(0),
            core: None,
            idle: IdlePolicy::default(),
            buffers: PoolOptions::default(),
            driver: DriverSettings::default(),
        }
    }
}

/// How a reactor thread came to an end that nobody asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// A task or a message panicked; that is a defect.
    #[error("{id} panicked: {message}")]
    Panicked {
        /// The reactor.
        id: ReactorId,
        /// What the panic said.
        message: String,
    },
    /// The ring failed as a whole.
    #[error("{id} lost its io_uring: {source}")]
    Ring {
        /// The reactor.
        id: ReactorId,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A thread with a reactor on it. Dropping it stops and joins it.
#[derive(Debug)]
pub struct ReactorThread {
    handle: ReactorHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), ReactorError>>>,
}

impl ReactorThread {
    /// Starts a reactor on a thread of its own, and waits until it runs.
    ///
    /// # Errors
    ///
    /// When the core does not exist, io_uring is not available, or there is no memory for the buffers.
    pub fn spawn(settings: Settings) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (started, start) = mpsc::sync_channel(1);
        let name = format!("reactor-{}", settings.id.0);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let made = make(&settings);
            match made {
                Ok(core) => {
                    // The one who started the thread waits for this.
                    let _ = started.send(Ok(core.handle()));
                    run(&core, settings.idle, &stopped)
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                    Ok(())
                }
            }
        })?;
        let handle = match start.recv() {
            Ok(started) => started?,
            Err(_) => return Err(io::Error::other("the reactor's thread ended before it ran")),
        };
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
        })
    }

    /// What other threads reach it with.
    pub fn handle(&self) -> ReactorHandle {
        self.handle.clone()
    }

    /// Has the reactor end after its current turn; all its futures are dropped then. Does not wait for that.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.handle.wake();
    }

    /// Whether the thread has ended, asked or not.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end of the thread.
    ///
    /// # Errors
    ///
    /// When it ended by itself.
    pub fn join(mut self) -> Result<(), ReactorError> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), ReactorError> {
        let id = self.handle.id();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => Err(panicked(id, &*panic)),
            None => Ok(()),
        }
    }
}

impl Drop for ReactorThread {
    fn drop(&mut self) {
        self.stop();
        let own = self.thread.as_ref().map(|thread| thread.thread().id());
        if own == Some(std::thread::current().id()) {
            return;
        }
        if let Err(error) = self.wait() {
            tracing::error!(%error, "a reactor ended by itself");
        }
    }
}

fn panicked(id: ReactorId, panic: &(dyn Any + Send)) -> ReactorError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "with no text".to_owned());
    ReactorError::Panicked { id, message }
}

fn make(settings: &Settings) -> io::Result<Rc<Core>> {
    if let Some(core) = settings.core {
        affinity::pin(core)?;
    }
    let driver = RealDriver::new(&settings.driver)?;
    let buffers = BufferPool::new(&settings.buffers).map_err(io::Error::other)?;
    Ok(Core::new(settings.id, Box::new(driver), buffers))
}

fn run(core: &Rc<Core>, idle: IdlePolicy, stop: &AtomicBool) -> Result<(), ReactorError> {
    let id = core.id();
    let ran = catch_unwind(AssertUnwindSafe(|| turn_until(core, idle, stop)));
    // Whatever happened, no future outlives the reactor, and nobody is left waiting for an answer.
    let cleared = catch_unwind(AssertUnwindSafe(|| Core::clear(core)));
    core.close();
    match (ran, cleared) {
        (Err(panic), _) | (Ok(_), Err(panic)) => Err(panicked(id, &*panic)),
        (Ok(result), Ok(())) => result.map_err(|source| ReactorError::Ring { id, source }),
    }
}

fn turn_until(core: &Rc<Core>, idle: IdlePolicy, stop: &AtomicBool) -> io::Result<()> {
    let mut spin = match idle {
        IdlePolicy::Poll => None,
        IdlePolicy::Adaptive { spin } => Some(Spin::new(spin, core.now())),
    };
    while !stop.load(Ordering::Acquire) {
        let may_sleep = spin
            .as_mut()
            .is_some_and(|spin| spin.is_over(core.now(), core.counters().busy()));
        let wait = match may_sleep {
            true => Wait::Until(core.next_deadline()),
            false => Wait::Never,
        };
        let turn = Core::turn(core, wait)?;
        if let Some(spin) = &mut spin
            && turn.work > turn.timed
        {
            spin.worked(core.now());
        }
    }
    Ok(())
}

/// Several reactor threads.
#[derive(Debug)]
pub struct Reactors {
    threads: Vec<ReactorThread>,
}

impl Reactors {
    /// Starts a reactor for each of the settings; all or none.
    ///
    /// # Errors
    ///
    /// Those of [`ReactorThread::spawn`]; the reactors that had been started are stopped then.
    pub fn spawn(settings: impl IntoIterator<Item = Settings>) -> io::Result<Self> {
        let threads = settings
            .into_iter()
            .map(ReactorThread::spawn)
            .collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// What other threads reach them with, in the order of the settings.
    pub fn handles(&self) -> Vec<ReactorHandle> {
        self.threads.iter().map(ReactorThread::handle).collect()
    }

    /// The threads.
    pub fn threads(&self) -> &[ReactorThread] {
        &self.threads
    }

    /// [`ReactorThread::stop`] for each of them.
    pub fn stop(&self) {
        self.threads.iter().for_each(ReactorThread::stop);
    }

    /// Waits for the end of all threads.
    ///
    /// # Errors
    ///
    /// The first that ended by itself.
    pub fn join(self) -> Result<(), ReactorError> {
        let results: Vec<_> = self.threads.into_iter().map(ReactorThread::join).collect();
        results.into_iter().collect()
    }
}
