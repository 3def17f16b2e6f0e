//! From an engine that serves to nothing, without losing what was acknowledged and flushed, or could be.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::reactors::EngineReactors;
use super::start::Running;

impl Running {
    /// Stops accepting, tells hosts, waits for what is under way, flushes every device, exports every pool,
    /// and stops the reactors.
    ///
    /// Success means that every device was flushed and every pool exported in time.
    pub(super) async fn stop(self, timeout: Duration) -> ExitCode {
        let started = Instant::now();
        self.engine.start_draining().await;
        self.listeners.stop().await;
        if let Some(node) = self.node {
            node.stop().await;
        }
        // Targets on other engines are told at once, and go on without them.
        if tokio::time::timeout(timeout, self.replicas.close())
            .await
            .is_err()
        {
            tracing::error!("stopped while a drive did not answer: a replica is left as after a crash");
            leave();
        }
        let target = self.engine.target().clone();
        let drained = match self.engine.any_reactor() {
            Ok(reactor) => {
                let draining = reactor.call(move || async move { target.shut_down().await });
                tokio::time::timeout(timeout, draining).await
            }
            Err(_) => Ok(Ok(true)),
        };
        if let Some(control) = self.control {
            control.stop().await;
        }
        if let Some(telemetry) = self.telemetry {
            telemetry.stop().await;
        }
        let exported = match drained {
            Ok(Ok(_)) => {
                let left = timeout.saturating_sub(started.elapsed());
                tokio::time::timeout(left, self.pools.close()).await
            }
            Ok(Err(_)) | Err(_) => Ok(Ok(())),
        };
        match drained {
            Ok(Ok(_)) if !matches!(exported, Ok(Ok(()))) => {
                let timeout_ms = timeout.as_millis() as u64;
                tracing::error!(
                    timeout_ms,
                    "stopped, but not every pool could be exported: it is as after a crash, with what was \
                     flushed"
                );
                leave()
            }
            Ok(Ok(true)) => {
                stop_reactors(self.reactors).await;
                let took_ms = started.elapsed().as_millis() as u64;
                tracing::info!(took_ms, "stopped; every device is flushed");
                ExitCode::SUCCESS
            }
            Ok(Ok(false)) => {
                tracing::error!("stopped, but not every device could be flushed: recent writes may be lost");
                stop_reactors(self.reactors).await;
                ExitCode::FAILURE
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "stopped without flushing the devices: recent writes may be lost");
                leave()
            }
            Err(_) => {
                let timeout_ms = timeout.as_millis() as u64;
                tracing::error!(
                    timeout_ms,
                    "stopped before every device was flushed: recent writes may be lost; give devices \
                     longer with --drain-timeout-ms"
                );
                leave()
            }
        }
    }

    /// Leaves after a reactor ended by itself. What it held cannot be trusted, and is not flushed: devices
    /// are as after a crash, with everything on them that was acknowledged as flushed.
    pub(super) fn give_up(mut self, reactor: usize) -> ExitCode {
        let reason = self.reactors.why_lost(reactor);
        tracing::error!("{reason}; the engine ends, start it again");
        leave()
    }
}

/// Joins the threads elsewhere: signals are heard meanwhile.
async fn stop_reactors(reactors: EngineReactors) {
    if tokio::task::spawn_blocking(|| reactors.stop()).await.is_err() {
        tracing::error!("a reactor could not be stopped in good order");
    }
}

/// Ends the process without waiting for reactors that may never answer.
fn leave() -> ExitCode {
    std::process::exit(1)
}
