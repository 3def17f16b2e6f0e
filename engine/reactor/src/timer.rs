//! Time on a reactor: a clock that a driver owns, sleeps and timeouts.
//!
//! Invariant: a deadline is in the map exactly while a [`Sleep`] that was polled and has neither elapsed nor
//! been dropped exists for it. Two sleeps with one deadline are told apart by a number that is never used
//! twice, and fire in the order in which they were first polled.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::context::Reactor;

/// A point on a reactor's clock, in nanoseconds since an origin that only the driver knows.
///
/// Readings of one machine's real drivers can be compared with each other; readings of a simulated clock only
/// within one simulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The origin of the clock.
    pub const ORIGIN: Self = Self(0);

    /// The instant `nanoseconds` after the origin.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of the clock, more than five hundred years after its origin.
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}.{:09}s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

/// The sleeping tasks of one reactor, by deadline.
#[derive(Default)]
pub(crate) struct Timers {
    by_deadline: BTreeMap<(Instant, u64), Waker>,
    next_number: u64,
}

impl Timers {
    fn insert(&mut self, deadline: Instant, waker: Waker) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.by_deadline.insert((deadline, number), waker);
        number
    }

    fn remove(&mut self, deadline: Instant, number: u64) -> Option<Waker> {
        self.by_deadline.remove(&(deadline, number))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    /// Takes the earliest timer that is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Waker> {
        let entry = self.by_deadline.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Takes every timer, due or not.
    pub(crate) fn clear(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.by_deadline).into_values().collect()
    }
}

/// Completes at a deadline. Made by [`sleep`] and [`sleep_until`].
#[must_use = "a sleep does nothing until it is awaited"]
pub struct Sleep {
    reactor: Reactor,
    deadline: Instant,
    number: Option<u64>,
}

impl Sleep {
    /// When it completes.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Moves the deadline, so that one timer serves a connection for its life. The next poll arms it anew.
    pub fn reset(&mut self, deadline: Instant) {
        self.disarm();
        self.deadline = deadline;
    }

    fn disarm(&mut self) {
        if let Some(number) = self.number.take() {
            let waker = self
                .reactor
                .core()
                .timers
                .borrow_mut()
                .remove(self.deadline, number);
            // Dropped when the timers are free again: a waker may be the last to hold a task, and that a
            // sleep.
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.reactor.now() >= self.deadline {
            self.disarm();
            return Poll::Ready(());
        }
        let reactor = self.reactor.clone();
        let mut timers = reactor.core().timers.borrow_mut();
        let mut replaced = None;
        if let Some(number) = self.number
            && let Some(waker) = timers.by_deadline.get_mut(&(self.deadline, number))
        {
            if !waker.will_wake(context.waker()) {
                replaced = Some(std::mem::replace(waker, context.waker().clone()));
            }
        } else {
            self.number = Some(timers.insert(self.deadline, context.waker().clone()));
        }
        drop(timers);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Completes after `span` on the current reactor's clock.
pub fn sleep(span: Duration) -> Sleep {
    let reactor = Reactor::current();
    let deadline = reactor.now() + span;
    Sleep {
        reactor,
        deadline,
        number: None,
    }
}

/// Completes at `deadline` on the current reactor's clock.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        reactor: Reactor::current(),
        deadline,
        number: None,
    }
}

/// The time given to [`timeout`] ran out before the future completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Runs `future` for at most `span`; on [`Elapsed`] it has been dropped.
///
/// # Errors
///
/// [`Elapsed`] when the time ran out first.
pub async fn timeout<F: Future>(span: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    let mut sleep = sleep(span);
    std::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut sleep).poll(context).map(|()| Err(Elapsed))
    })
    .await
}
