//! The keep alive timer (NVMe Base 2.0, 3.9): a host that is not heard of in time loses its controller.
//!
//! A Keep Alive command starts the timer anew. When it runs out, any traffic on any queue since it was
//! started starts it anew too (traffic based keep alive), so that a silent host is found after one to two
//! timeouts.

use std::sync::Weak;
use std::task::{Poll, Waker};
use std::time::Duration;

use pollux_reactor::{Instant, now, sleep_until};

use super::Controller;
use crate::target::sync::either;

/// Timeouts are rounded up to this, in units of 100 ms (KAS).
pub(crate) const KEEP_ALIVE_GRANULARITY_100MS: u16 = 1;

const GRANULARITY_MS: u32 = KEEP_ALIVE_GRANULARITY_100MS as u32 * 100;

/// The timer of one controller.
pub(crate) struct KeepAlive {
    timeout_ms: u32,
    /// What counts when the host wants no timer; discovery controllers end when idle (NVMe Base 2.0,
    /// 3.1.2.3.3).
    idle_ms: Option<u32>,
    started: Instant,
    waker: Option<Waker>,
}

impl KeepAlive {
    /// A timer that starts now; 0 for none.
    pub(crate) fn new(timeout_ms: u32, idle_ms: Option<u32>, started: Instant) -> Self {
        Self {
            timeout_ms: round_up(timeout_ms),
            idle_ms,
            started,
            waker: None,
        }
    }

    /// The timeout that the host set, rounded up, in ms; 0 for none.
    pub(crate) fn timeout_ms(&self) -> u32 {
        self.timeout_ms
    }

    /// Sets the timeout and starts it.
    pub(crate) fn set(&mut self, timeout_ms: u32, started: Instant) {
        self.timeout_ms = round_up(timeout_ms);
        self.restart(started);
    }

    /// A sign of life.
    pub(crate) fn restart(&mut self, started: Instant) {
        self.started = started;
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    /// When it runs out, if it ever does.
    fn deadline(&self) -> Option<Instant> {
        let span_ms = match (self.timeout_ms, self.idle_ms) {
            (0, None) => return None,
            (0, Some(idle_ms)) => idle_ms,
            (timeout_ms, _) => timeout_ms,
        };
        Some(self.started + Duration::from_millis(span_ms.into()))
    }
}

fn round_up(timeout_ms: u32) -> u32 {
    timeout_ms
        .checked_next_multiple_of(GRANULARITY_MS)
        .unwrap_or(u32::MAX)
}

/// Watches the timer of a controller until it ends; on the reactor of its admin queue.
pub(crate) async fn watch(controller: Weak<Controller>) {
    while let Some(deadline) = controller
        .upgrade()
        .map(|controller| controller.with(|state| state.keep_alive.deadline()))
    {
        match deadline {
            None => changed(&controller).await,
            Some(deadline) if deadline > now() => {
                either(sleep_until(deadline), changed(&controller)).await;
            }
            Some(_) => {
                let Some(controller) = controller.upgrade() else {
                    return;
                };
                if !controller.take_traffic() {
                    return controller.expire();
                }
                controller.with(|state| state.keep_alive.restart(now()));
            }
        }
    }
}

/// Ready at the next change of the timer.
async fn changed(controller: &Weak<Controller>) {
    let mut registered = false;
    std::future::poll_fn(|context| {
        let Some(controller) = controller.upgrade() else {
            return Poll::Ready(());
        };
        controller.with(|state| {
            if registered && state.keep_alive.waker.is_none() {
                return Poll::Ready(());
            }
            registered = true;
            state.keep_alive.waker = Some(context.waker().clone());
            Poll::Pending
        })
    })
    .await;
}
