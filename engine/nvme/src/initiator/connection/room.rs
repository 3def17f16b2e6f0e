//! Who waits for room in a full queue, first come, first served.
//!
//! Invariant: with `free` slots, the first `free` waiters may go on, and each of them has been woken since it
//! could. A waiter that goes on submits in the same step, so those behind it stay where they are; one that
//! goes away makes the next one move up, which is woken then.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

struct Waiter {
    /// Rises along the queue.
    number: u64,
    waker: Waker,
    woken: bool,
}

/// The waiters of one queue.
#[derive(Default)]
pub(super) struct Room {
    waiters: VecDeque<Waiter>,
    next_number: u64,
}

/// Wakers to be called once nothing is borrowed.
pub(super) type Woken = SmallVec<[Waker; 4]>;

impl Room {
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Whether the waiter with this number may go on; it is given one the first time.
    pub(super) fn poll(&mut self, number: &mut Option<u64>, free: usize, context: &Context<'_>) -> Poll<()> {
        let place = number.and_then(|number| self.place(number));
        if place.unwrap_or(self.waiters.len()) < free {
            if let Some(place) = place {
                self.waiters.remove(place);
            }
            *number = None;
            return Poll::Ready(());
        }
        match place.and_then(|place| self.waiters.get_mut(place)) {
            Some(waiter) => {
                waiter.waker.clone_from(context.waker());
                waiter.woken = false;
            }
            None => {
                self.waiters.push_back(Waiter {
                    number: self.next_number,
                    waker: context.waker().clone(),
                    woken: false,
                });
                *number = Some(self.next_number);
                self.next_number += 1;
            }
        }
        Poll::Pending
    }

    /// A waiter goes away.
    pub(super) fn leave(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            self.waiters.remove(place);
        }
    }

    /// Those to be woken now that `free` slots are free.
    pub(super) fn admit(&mut self, free: usize) -> Woken {
        let fresh = self.waiters.iter_mut().take(free).filter(|waiter| !waiter.woken);
        fresh
            .map(|waiter| {
                waiter.woken = true;
                waiter.waker.clone()
            })
            .collect()
    }

    fn place(&self, number: u64) -> Option<usize> {
        self.waiters
            .binary_search_by_key(&number, |waiter| waiter.number)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Somebody comes.
        Come,
        /// Everybody who was woken looks again.
        Look,
        /// Somebody in the queue gives up.
        Leave(prop::sample::Index),
        /// A command ends.
        Free,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Come),
            3 => Just(Step::Look),
            1 => any::<prop::sample::Index>().prop_map(Step::Leave),
            3 => Just(Step::Free),
        ]
    }

    proptest! {
        /// Nobody is forgotten and nobody overtakes: with everyone woken having looked, a free slot means an
        /// empty queue.
        #[test]
        fn first_come_first_served(steps in prop::collection::vec(step(), 0..200)) {
            const DEPTH: usize = 3;
            let mut room = Room::default();
            let mut free = DEPTH;
            let mut waiting: Vec<(Option<u64>, Arc<Flag>)> = Vec::new();
            for step in steps.into_iter().chain([Step::Look, Step::Look, Step::Look]) {
                match step {
                    Step::Come => {
                        let flag = Arc::new(Flag::default());
                        let mut number = None;
                        let waker = Waker::from(flag.clone());
                        match room.poll(&mut number, free, &Context::from_waker(&waker)) {
                            Poll::Ready(()) => { prop_assert!(waiting.len() < free); free -= 1; }
                            Poll::Pending => waiting.push((number, flag)),
                        }
                    }
                    Step::Look => {
                        let mut at = 0;
                        while at < waiting.len() {
                            let (number, flag) = &mut waiting[at];
                            if !flag.0.swap(false, Ordering::Relaxed) { at += 1; continue; }
                            let waker = Waker::from(flag.clone());
                            match room.poll(number, free, &Context::from_waker(&waker)) {
                                Poll::Ready(()) => { free -= 1; waiting.remove(at); }
                                Poll::Pending => at += 1,
                            }
                        }
                    }
                    Step::Leave(index) => {
                        if waiting.is_empty() { continue }
                        let (number, _) = waiting.remove(index.index(waiting.len()));
                        room.leave(number.expect("it is in the queue"));
                    }
                    Step::Free => free = (free + 1).min(DEPTH),
                }
                room.admit(free).into_iter().for_each(Waker::wake);
            }
            prop_assert!(free == 0 || waiting.is_empty(), "{free} free and {} waiting", waiting.len());
            prop_assert_eq!(room.waiters.len(), waiting.len());
        }
    }
}
