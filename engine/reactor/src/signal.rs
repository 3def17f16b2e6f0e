//! Tasks of a reactor that wait for something to change.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes all who wait, to look again. Nothing is remembered: whoever waits looks first. Waking takes no more
/// than a look where nobody waits.
#[derive(Debug, Default)]
pub struct Signal(RefCell<Vec<Waker>>);

impl Signal {
    /// Wakes everybody.
    #[inline]
    pub fn wake(&self) {
        if self.0.borrow().is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut *self.0.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until `ready` gives something. It is asked at once, and after each [`Signal::wake`].
    pub async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(found) = ready() {
                return Poll::Ready(found);
            }
            let mut waiting = self.0.borrow_mut();
            if !waiting.iter().any(|known| known.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
