//! Who is next: a lock that is waited for without blocking a reactor, for what takes its time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures_channel::oneshot;
use pollux_device::IoError;

use super::sync::lock;

/// Those that may wait; one more is to try again.
const WAITING_MAX: usize = 1024;

#[derive(Debug, Default)]
struct State {
    taken: bool,
    waiting: VecDeque<oneshot::Sender<Taken>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Turn(Arc<Mutex<State>>);

/// The turn, until dropped. One that was handed to somebody who left is handed on by its drop.
#[derive(Debug)]
pub(crate) struct Taken(Option<Arc<Mutex<State>>>);

impl Turn {
    /// Waits for the turn, in the order of those who ask.
    ///
    /// # Errors
    ///
    /// [`IoError::ResourceShortage`] when too many wait.
    pub(crate) async fn take(&self) -> Result<Taken, IoError> {
        let receiver = {
            let mut state = lock(&self.0);
            if !state.taken {
                state.taken = true;
                return Ok(Taken(Some(self.0.clone())));
            }
            state.waiting.retain(|sender| !sender.is_canceled());
            if state.waiting.len() >= WAITING_MAX {
                return Err(IoError::ResourceShortage);
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            receiver
        };
        receiver.await.map_err(|_| IoError::Internal)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(state) = self.0.take() else {
            return;
        };
        loop {
            let next = {
                let mut state = lock(&state);
                let next = state.waiting.pop_front();
                state.taken = next.is_some();
                next
            };
            let Some(next) = next else {
                return;
            };
            match next.send(Taken(Some(state.clone()))) {
                Ok(()) => return,
                // It stays here: the next one gets it.
                Err(mut unsent) => unsent.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Ask<'a> = Pin<Box<dyn Future<Output = Result<Taken, IoError>> + 'a>>;

    fn poll(ask: &mut Ask<'_>) -> Option<Taken> {
        match ask.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => Some(taken.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_turn_goes_round_past_those_who_left() {
        let turn = Turn::default();
        let mut asks: Vec<Ask<'_>> = Vec::new();
        for _ in 0..4 {
            asks.push(Box::pin(turn.take()));
        }
        let first = poll(&mut asks[0]).unwrap();
        assert!(asks[1..].iter_mut().all(|ask| poll(ask).is_none()));
        // One leaves while it waits, one after it was handed the turn.
        drop(asks.remove(1));
        drop(first);
        drop(asks.remove(1));
        let last = poll(&mut asks[1]).unwrap();
        let mut fresh: Ask<'_> = Box::pin(turn.take());
        assert!(poll(&mut fresh).is_none());
        drop(last);
        assert!(poll(&mut fresh).is_some());
    }
}
