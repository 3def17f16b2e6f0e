//! Flushes of all reactors, brought together into one `fdatasync` at a time.
//!
//! The kernel tells a failed write-back once: to the first `fdatasync` that comes after it, and to no other.
//! The data may be gone from the page cache by then, so that a second `fdatasync` would succeed without it.
//! Therefore:
//!
//! - Only one runs at a time, on whatever reactor, so that no second one can succeed beside one that fails.
//! - A flush is served by a sync that began after it came; those that come meanwhile share the next one.
//! - A failure stays: every flush fails from then on, until the device is opened anew and nobody takes the
//!   data that was written before for durable.
//! - A sync whose end nobody saw has failed.
//!
//! A sync is run by the *keeper* of a queue, a task that does not end with the request, as a request may be
//! dropped.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::IoError;

#[derive(Debug, Default)]
struct State {
    /// Syncs that have begun; the number of the last one.
    begun: u64,
    /// The number of the last sync that somebody waits for.
    wanted: u64,
    /// The number of the last sync that has succeeded.
    succeeded: u64,
    /// A sync is running.
    running: bool,
    /// Why all flushes fail.
    failed: Option<IoError>,
    /// Requests, and keepers that wait for their turn.
    waiting: Vec<Waker>,
}

/// The flushes of one device.
#[derive(Debug, Default)]
pub(super) struct Flushes(Mutex<State>);

impl Flushes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a sync that begins after this moment; returns its number, to be given to [`Flushes::done`]. A
    /// keeper has to be woken then.
    pub(super) fn want(&self) -> Result<u64, IoError> {
        let mut state = self.lock();
        if let Some(error) = state.failed {
            return Err(error);
        }
        let number = state.begun + 1;
        state.wanted = state.wanted.max(number);
        Ok(number)
    }

    /// Waits for the sync with this number.
    pub(super) async fn done(&self, number: u64) -> Result<(), IoError> {
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            if let Some(error) = state.failed {
                return Poll::Ready(Err(error));
            }
            if state.succeeded >= number {
                return Poll::Ready(Ok(()));
            }
            state.wait(context);
            Poll::Pending
        })
        .await
    }

    /// Whether every flush fails, and why.
    pub(super) fn failure(&self) -> Option<IoError> {
        self.lock().failed
    }

    /// Makes every flush fail from now on.
    pub(super) fn fail(&self, error: IoError) {
        let mut state = self.lock();
        state.failed.get_or_insert(error);
        state.wake_all();
    }

    /// Whether a sync is wanted and may begin. If it has to wait for another one, the task is woken after
    /// that.
    pub(super) fn poll_turn(&self, context: &mut Context<'_>) -> bool {
        let mut state = self.lock();
        if state.failed.is_some() || state.wanted <= state.begun {
            return false;
        }
        if state.running {
            state.wait(context);
            return false;
        }
        true
    }

    /// Runs syncs by `sync` as long as some are wanted and none runs.
    pub(super) async fn serve<F: Future<Output = Result<(), IoError>>>(&self, mut sync: impl FnMut() -> F) {
        while let Some(running) = self.begin() {
            let result = sync().await;
            running.end(result);
        }
    }

    fn begin(&self) -> Option<Running<'_>> {
        let mut state = self.lock();
        if state.failed.is_some() || state.running || state.wanted <= state.begun {
            return None;
        }
        state.begun += 1;
        state.running = true;
        Some(Running {
            flushes: self,
            result: Err(IoError::Aborted),
        })
    }
}

impl State {
    fn wait(&mut self, context: &mut Context<'_>) {
        let waker = context.waker();
        if !self.waiting.iter().any(|other| other.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    fn wake_all(&mut self) {
        // In place: the list keeps its memory for the next time.
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }
}

/// A sync that runs; one that is dropped without an end has failed.
struct Running<'a> {
    flushes: &'a Flushes,
    result: Result<(), IoError>,
}

impl Running<'_> {
    fn end(mut self, result: Result<(), IoError>) {
        self.result = result;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.flushes.lock();
        state.running = false;
        match self.result {
            Ok(()) => state.succeeded = state.begun,
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
        state.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::pin::{Pin, pin};

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// A medium whose syncs end when the test says so.
    #[derive(Default)]
    struct Medium {
        begun: Cell<usize>,
        results: RefCell<VecDeque<Result<(), IoError>>>,
    }

    impl Medium {
        async fn sync(&self) -> Result<(), IoError> {
            self.begun.set(self.begun.get() + 1);
            std::future::poll_fn(|_| {
                let result = self.results.borrow_mut().pop_front();
                result.map_or(Poll::Pending, Poll::Ready)
            })
            .await
        }

        fn end(&self, result: Result<(), IoError>) {
            self.results.borrow_mut().push_back(result);
        }
    }

    #[test]
    fn a_flush_is_served_by_a_sync_that_began_after_it() {
        let (flushes, medium) = (Flushes::default(), Medium::default());
        let first = flushes.want().expect("no failure");
        let mut keeper = pin!(flushes.serve(|| medium.sync()));
        assert!(poll(keeper.as_mut()).is_pending());
        assert_eq!(medium.begun.get(), 1);
        // Two more come while the first runs: the next sync serves both.
        let second = flushes.want().expect("no failure");
        let third = flushes.want().expect("no failure");
        medium.end(Ok(()));
        assert!(poll(keeper.as_mut()).is_pending());
        assert_eq!(poll(pin!(flushes.done(first))), Poll::Ready(Ok(())));
        assert_eq!(poll(pin!(flushes.done(second))), Poll::Pending);
        medium.end(Ok(()));
        assert!(poll(keeper.as_mut()).is_ready());
        assert_eq!(poll(pin!(flushes.done(second))), Poll::Ready(Ok(())));
        assert_eq!(poll(pin!(flushes.done(third))), Poll::Ready(Ok(())));
        assert_eq!(medium.begun.get(), 2);
        assert!(!flushes.poll_turn(&mut Context::from_waker(Waker::noop())));
    }

    #[test]
    fn two_keepers_take_turns() {
        let (flushes, medium) = (Flushes::default(), Medium::default());
        flushes.want().expect("no failure");
        let mut first = pin!(flushes.serve(|| medium.sync()));
        assert!(poll(first.as_mut()).is_pending());
        let other = flushes.want().expect("no failure");
        assert!(!flushes.poll_turn(&mut Context::from_waker(Waker::noop())));
        let mut second = pin!(flushes.serve(|| medium.sync()));
        assert!(poll(second.as_mut()).is_ready(), "it is not its turn");
        assert_eq!(medium.begun.get(), 1);
        medium.end(Ok(()));
        medium.end(Ok(()));
        assert!(poll(first.as_mut()).is_ready(), "it serves the other's too");
        assert_eq!(poll(pin!(flushes.done(other))), Poll::Ready(Ok(())));
    }

    #[test]
    fn a_failure_stays() {
        let (flushes, medium) = (Flushes::default(), Medium::default());
        let number = flushes.want().expect("no failure");
        medium.end(Err(IoError::MediaWrite));
        medium.end(Ok(()));
        let mut keeper = pin!(flushes.serve(|| medium.sync()));
        assert!(poll(keeper.as_mut()).is_ready());
        let failed = Err(IoError::MediaWrite);
        assert_eq!(poll(pin!(flushes.done(number))), Poll::Ready(failed));
        assert_eq!(flushes.want(), Err(IoError::MediaWrite));
        let mut keeper = pin!(flushes.serve(|| medium.sync()));
        assert!(poll(keeper.as_mut()).is_ready());
        assert_eq!(medium.begun.get(), 1, "it is not tried again");
    }

    #[test]
    fn a_flush_that_waits_fails_with_the_one_before() {
        let (flushes, medium) = (Flushes::default(), Medium::default());
        flushes.want().expect("no failure");
        let mut keeper = pin!(flushes.serve(|| medium.sync()));
        assert!(poll(keeper.as_mut()).is_pending());
        let waits = flushes.want().expect("no failure");
        medium.end(Err(IoError::MediaWrite));
        medium.end(Ok(()));
        assert!(poll(keeper.as_mut()).is_ready());
        let failed = Err(IoError::MediaWrite);
        assert_eq!(poll(pin!(flushes.done(waits))), Poll::Ready(failed));
        assert_eq!(medium.begun.get(), 1);
    }

    #[test]
    fn a_sync_that_nobody_saw_end_has_failed() {
        let (flushes, medium) = (Flushes::default(), Medium::default());
        let number = flushes.want().expect("no failure");
        {
            let mut keeper = pin!(flushes.serve(|| medium.sync()));
            assert!(poll(keeper.as_mut()).is_pending());
        }
        let failed = Err(IoError::Aborted);
        assert_eq!(poll(pin!(flushes.done(number))), Poll::Ready(failed));
        assert!(flushes.want().is_err());
    }

    #[test]
    fn a_failed_write_fails_flushes() {
        let flushes = Flushes::default();
        let number = flushes.want().expect("no failure");
        flushes.fail(IoError::MediaWrite);
        let failed = Err(IoError::MediaWrite);
        assert_eq!(poll(pin!(flushes.done(number))), Poll::Ready(failed));
        assert_eq!(flushes.failure(), Some(IoError::MediaWrite));
        assert!(!flushes.poll_turn(&mut Context::from_waker(Waker::noop())));
    }
}
