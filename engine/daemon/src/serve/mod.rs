//! `pollux-engine serve`: start, serve, stop.
//!
//! Starting is all or nothing, and ends in one line for each thing that is wrong. Stopping goes the other way
//! round: no new connections, hosts are told, what is under way ends, every device is flushed, and only then
//! the reactors stop. A second signal cuts it short.

mod announce;
mod error;
mod listeners;
mod panics;
mod reactors;
mod start;
mod stop;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pollux_trace::Tracing;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::ServeArguments;
use crate::logging;
use crate::settings::{LogFormat, Settings};
pub use error::StartError;
use start::Running;

/// Threads of tokio; the control interface needs no more.
const CONTROL_THREADS: usize = 2;

/// Signals this soon after the first are its echo.
const ECHO: Duration = Duration::from_millis(250);

/// Serves until it is told to stop.
pub fn run(arguments: &ServeArguments) -> ExitCode {
    let (settings, _tracing) = match prepare(arguments) {
        Ok(prepared) => prepared,
        // There is no log yet.
        Err(error) => return crate::fail(&error),
    };
    panics::report();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(serve(&settings)),
        Err(source) => Err(StartError::Control { source }),
    };
    match served {
        Ok(code) => code,
        Err(error) => {
            match settings.log.format {
                LogFormat::Json => tracing::error!("{error}"),
                LogFormat::Text => return crate::fail(&error),
            }
            ExitCode::FAILURE
        }
    }
}

fn prepare(arguments: &ServeArguments) -> Result<(Settings, Tracing), StartError> {
    let settings = arguments.settings()?;
    let node = settings.cluster.as_ref().map(|cluster| cluster.node.as_str());
    let tracing = logging::start(&settings.log, &settings.tracing, node.unwrap_or_default())?;
    Ok((settings, tracing))
}

async fn serve(settings: &Settings) -> Result<ExitCode, StartError> {
    let mut signals = Signals::new()?;
    let starting = start::start(settings);
    let running = tokio::select! {
        running = starting => running?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before anything was served");
            return Ok(ExitCode::SUCCESS);
        }
    };
    announce(settings, &running);

    let lost = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "stopping; another signal leaves at once");
            None
        }
        lost = running.reactors.lost() => Some(lost),
    };
    if let Some(reactor) = lost {
        return Ok(running.give_up(reactor));
    }
    Ok(tokio::select! {
        code = running.stop(settings.shutdown.drain_timeout()) => code,
        name = signals.another() => {
            tracing::error!(signal = name, "left without waiting for hosts and devices");
            // Nothing that could wait runs any more: not the destructors of reactors either.
            std::process::exit(1);
        }
    })
}

/// Tells that it serves, once: people on the standard output stream, machines in the log.
fn announce(settings: &Settings, running: &Running) {
    match settings.log.format {
        LogFormat::Json => announce::log(running),
        LogFormat::Text => {
            let mut output = io::stdout().lock();
            // Nobody may be listening there any more; that stops no engine.
            let _ = announce::write(settings, running, &mut output).and_then(|()| output.flush());
        }
    }
}

/// The signals that stop an engine.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let watch = |kind| signal(kind).map_err(|source| StartError::Control { source });
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
        })
    }

    /// The name of the next one that is not just the echo of the last: a terminal and the tool that runs the
    /// program may both send one (as `timeout` does), and that is no wish to leave at once.
    async fn another(&mut self) -> &'static str {
        let last = Instant::now();
        loop {
            let name = self.next().await;
            if last.elapsed() >= ECHO {
                return name;
            }
        }
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
