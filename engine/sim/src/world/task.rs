//! The result of a task of a simulated reactor, for the harness and for other tasks.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The task was dropped before its end, as its machine crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task was lost with its machine")]
pub struct TaskLost;

enum State<T> {
    Running(Option<Waker>),
    Ended(Result<T, TaskLost>),
    Taken,
}

/// A task of a simulated reactor. Dropping it lets the task run on.
pub struct SimTask<T>(Rc<RefCell<State<T>>>);

impl<T> SimTask<T> {
    /// Wraps a future so that what it returns can be taken here.
    pub(crate) fn track<F: Future<Output = T>>(future: F) -> (Self, impl Future<Output = ()>) {
        let state = Rc::new(RefCell::new(State::Running(None)));
        let task = Self(state.clone());
        let ending = Ending(state);
        let tracked = async move {
            let ending = ending;
            let output = future.await;
            ending.end(Ok(output));
        };
        (task, tracked)
    }

    /// Whether it has ended, one way or the other, and the result was not taken.
    pub fn is_ended(&self) -> bool {
        matches!(*self.0.borrow(), State::Ended(_))
    }

    /// What it returned, once; `None` while it runs.
    pub fn take(&self) -> Option<Result<T, TaskLost>> {
        let mut state = self.0.borrow_mut();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ended(result) => Some(result),
            other => {
                *state = other;
                None
            }
        }
    }
}

impl<T> Future for SimTask<T> {
    type Output = Result<T, TaskLost>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.take() {
            return Poll::Ready(result);
        }
        let replaced = match &mut *self.0.borrow_mut() {
            State::Running(waker) => waker.replace(context.waker().clone()),
            State::Ended(_) | State::Taken => None,
        };
        // Dropped when the state is free again: a waker may be the last to hold a task, and that this.
        drop(replaced);
        Poll::Pending
    }
}

/// Ends a task that is dropped before its end.
struct Ending<T>(Rc<RefCell<State<T>>>);

impl<T> Ending<T> {
    fn end(&self, result: Result<T, TaskLost>) {
        let previous = {
            let mut state = self.0.borrow_mut();
            match *state {
                State::Running(_) => std::mem::replace(&mut *state, State::Ended(result)),
                State::Ended(_) | State::Taken => return,
            }
        };
        if let State::Running(Some(waker)) = previous {
            waker.wake();
        }
    }
}

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        self.end(Err(TaskLost));
    }
}
