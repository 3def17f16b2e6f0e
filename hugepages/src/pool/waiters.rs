//! Who waits for memory, first come, first served.

use std::collections::VecDeque;
use std::task::Waker;

/// Wakers in the order in which they came, a bounded number of them.
pub(super) struct Waiters {
    queue: VecDeque<(usize, Waker)>,
    max: usize,
}

impl Waiters {
    pub(super) fn new(max: usize) -> Waiters {
        Waiters {
            queue: VecDeque::new(),
            max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Adds a waker that wants a slot of `class`, or hands it back if the queue is full. One that is there already
    /// keeps its place.
    pub(super) fn push(&mut self, class: usize, waker: Waker) -> Option<Waker> {
        if let Some((wanted, _)) = self.queue.iter_mut().find(|(_, other)| other.will_wake(&waker)) {
            *wanted = class.min(*wanted);
            return None;
        }
        if self.queue.len() >= self.max {
            return Some(waker);
        }
        self.queue.push_back((class, waker));
        None
    }

    /// The class that the first waiter wants.
    pub(super) fn first_class(&self) -> Option<usize> {
        self.queue.front().map(|(class, _)| *class)
    }

    pub(super) fn first(&self) -> Option<&Waker> {
        self.queue.front().map(|(_, waker)| waker)
    }

    pub(super) fn pop(&mut self) -> Option<Waker> {
        self.queue.pop_front().map(|(_, waker)| waker)
    }
}
