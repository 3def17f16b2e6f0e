//! Who waits for memory, first come, first served.
//!
//! There are two ways of waiting. A *ticket* holds a place in a queue of the home thread: memory that comes
//! free is given to the tickets in the order in which they came, before anybody else can have it, and a
//! ticket that is handed back leaves nothing behind. A *registered waker* is merely woken, once, and has to
//! try again; nobody can tell whether its task still cares, so all of them are woken whose size may be had.

use std::collections::VecDeque;
use std::task::Waker;

use slab::Slab;

use super::tree::Tree;
use crate::slot::View;

/// Registered wakers compared with a new one: the newest few, for a task that registers at each poll.
const COMPARED_WAKERS: usize = 16;

/// The queue of tickets. A ticket's key says where its state is.
pub(super) struct Tickets {
    states: Slab<Ticket>,
    /// One queue for each class, by ascending number.
    queues: Box<[VecDeque<Place>]>,
    next_number: u64,
    max: usize,
}

enum Ticket {
    Waiting {
        class: usize,
        number: u64,
        len_bytes: usize,
        waker: Waker,
    },
    Granted(View),
}

#[derive(Clone, Copy)]
struct Place {
    number: u64,
    key: usize,
}

/// A slot for the ticket that is next.
pub(super) struct Turn {
    pub(super) class: usize,
    pub(super) slot: u32,
    pub(super) len_bytes: usize,
    pub(super) key: usize,
}

impl Tickets {
    pub(super) fn new(classes: usize, max: usize) -> Tickets {
        let queues = (0..classes).map(|_| VecDeque::new()).collect();
        Tickets {
            states: Slab::new(),
            queues,
            next_number: 0,
            max,
        }
    }

    /// A ticket for a buffer, or nothing if there are too many.
    pub(super) fn issue(&mut self, class: usize, len_bytes: usize, waker: Waker) -> Result<usize, Waker> {
        if self.states.len() >= self.max {
            return Err(waker);
        }
        let number = self.next_number;
        self.next_number += 1;
        let key = self.states.insert(Ticket::Waiting {
            class,
            number,
            len_bytes,
            waker,
        });
        self.queues[class].push_back(Place { number, key });
        Ok(key)
    }

    /// Redeems a ticket if it is granted; if not, `waker` replaces the one it had, which is returned.
    pub(super) fn redeem(&mut self, key: usize, waker: Waker) -> Result<View, Waker> {
        if let Some(Ticket::Waiting { waker: known, .. }) = self.states.get_mut(key) {
            return Err(std::mem::replace(known, waker));
        }
        match self.states.remove(key) {
            Ticket::Granted(view) => Ok(view),
            Ticket::Waiting { .. } => unreachable!("it was found not to wait"),
        }
    }

    /// Hands a ticket back. What it held is returned, to be dropped outside.
    pub(super) fn hand_back(&mut self, key: usize) -> (Option<View>, Option<Waker>) {
        match self.states.remove(key) {
            Ticket::Granted(view) => (Some(view), None),
            Ticket::Waiting {
                class, number, waker, ..
            } => {
                let queue = &mut self.queues[class];
                if let Ok(position) = queue.binary_search_by_key(&number, |place| place.number) {
                    queue.remove(position);
                }
                (None, Some(waker))
            }
        }
    }

    /// Takes a slot for the oldest ticket that one can be had for.
    ///
    /// Without one, the error is the class that the oldest ticket of all waits for, if any does.
    pub(super) fn next_turn(&mut self, tree: &mut Tree) -> Result<Turn, Option<usize>> {
        let mut oldest = None;
        let mut below = self.queues.len();
        loop {
            let fronts = self.queues[..below].iter().enumerate();
            let fronts = fronts.filter_map(|(class, queue)| Some((queue.front()?.number, class)));
            let Some((_, class)) = fronts.min() else {
                return Err(oldest);
            };
            if let Some(slot) = tree.take(class) {
                let Some(Place { key, .. }) = self.queues[class].pop_front() else {
                    return Err(oldest);
                };
                let len_bytes = match &self.states[key] {
                    Ticket::Waiting { len_bytes, .. } => *len_bytes,
                    Ticket::Granted(_) => unreachable!("what is in a queue waits"),
                };
                return Ok(Turn {
                    class,
                    slot,
                    len_bytes,
                    key,
                });
            }
            // Larger slots cannot be had either.
            oldest.get_or_insert(class);
            below = class;
        }
    }

    /// Gives a ticket its buffer; returns the waker to wake.
    pub(super) fn grant(&mut self, key: usize, view: View) -> Waker {
        match std::mem::replace(&mut self.states[key], Ticket::Granted(view)) {
            Ticket::Waiting { waker, .. } => waker,
            Ticket::Granted(_) => unreachable!("what had its turn waited"),
        }
    }

    /// The waker of some ticket that waits, to be woken when other threads free memory.
    pub(super) fn any_waker(&self) -> Option<&Waker> {
        let place = self.queues.iter().find_map(VecDeque::front)?;
        match &self.states[place.key] {
            Ticket::Waiting { waker, .. } => Some(waker),
            Ticket::Granted(_) => None,
        }
    }
}

/// The registered wakers in the order in which they came, a bounded number of them.
pub(super) struct Registered {
    queue: VecDeque<(usize, Waker)>,
    max: usize,
}

impl Registered {
    pub(super) fn new(max: usize) -> Registered {
        Registered {
            queue: VecDeque::new(),
            max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Adds a waker that wants a slot of `class`. It is handed back if it is there already, which it keeps
    /// its place for, or if the queue is full, which the flag says.
    pub(super) fn push(&mut self, class: usize, waker: Waker) -> Result<(), (Waker, bool)> {
        let newest = self.queue.iter_mut().rev().take(COMPARED_WAKERS);
        if let Some((wanted, _)) = newest.into_iter().find(|(_, other)| other.will_wake(&waker)) {
            *wanted = class.min(*wanted);
            return Err((waker, false));
        }
        if self.queue.len() >= self.max {
            return Err((waker, true));
        }
        self.queue.push_back((class, waker));
        Ok(())
    }

    /// The smallest class that anybody wants.
    pub(super) fn smallest_class(&self) -> Option<usize> {
        self.queue.iter().map(|&(class, _)| class).min()
    }

    /// Takes out those that want a slot of at most `largest`; the others keep their places.
    pub(super) fn take_up_to(&mut self, largest: usize) -> Vec<Waker> {
        let (taken, kept) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|&(class, _)| class <= largest);
        self.queue = kept;
        let taken: VecDeque<_> = taken;
        taken.into_iter().map(|(_, waker)| waker).collect()
    }
}
