//! Waiting for memory: the slow path of a pool.
//!
//! What keeps a wake-up from being lost: who is about to wait says so in `waiting` or in the list of
//! registered wakers, then takes in what other threads freed; another thread first puts its slot on the list,
//! then looks whether anybody waits. A full fence on either side sees to it that one of the two sees the
//! other. The same goes for each change of who is to be woken: a wake-up of who has been served just then
//! says nothing to the others.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;

use super::BufferPool;
use super::shared::Shared;
use super::waiters::Registered;
use crate::buffer::Buffer;
use crate::error::Error;

/// What other threads wake when they free a slot.
pub(super) struct Alarm {
    /// Whether anybody waits: nothing else is looked at while it is unset.
    waiting: AtomicBool,
    /// One of the tickets' wakers: woken, it takes in what was freed and serves the others.
    ticket: AtomicWaker,
    /// Wakers that are woken by whatever thread frees memory. The lock is taken only while somebody waits.
    registered: Mutex<Registered>,
}

impl Alarm {
    pub(super) fn new(waiters_max: usize) -> Alarm {
        Alarm {
            waiting: AtomicBool::new(false),
            ticket: AtomicWaker::new(),
            registered: Mutex::new(Registered::new(waiters_max)),
        }
    }

    fn registered(&self) -> MutexGuard<'_, Registered> {
        // Nothing in here panics half-way; and even then a list of wakers is as good as before.
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by another thread after it put a slot on the list.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        if !self.waiting.load(Ordering::Relaxed) {
            return;
        }
        self.ticket.wake();
        let woken = self.registered().take_up_to(usize::MAX);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Drops all wakers.
    pub(super) fn silence(&self) {
        self.waiting.store(false, Ordering::Relaxed);
        drop(self.ticket.take());
        let dropped = self.registered().take_up_to(usize::MAX);
        drop(dropped);
    }
}

/// For the home thread.
impl Shared {
    /// A ticket for a buffer of `class`; nothing if there are too many.
    fn issue_ticket(&self, class: usize, len_bytes: usize, waker: &Waker) -> Option<usize> {
        let waker = waker.clone();
        // SAFETY: on the home thread; the closure only moves the waker.
        let issued = unsafe { self.with_home(|home| home.tickets.issue(class, len_bytes, waker)) };
        let key = issued.ok()?;
        self.look_again();
        Some(key)
    }

    /// The buffer of a ticket, which is no more then, or nothing yet.
    fn redeem_ticket(&self, key: usize, waker: &Waker) -> Option<Buffer> {
        self.collect();
        let waker = waker.clone();
        // SAFETY: on the home thread; the closure only moves wakers.
        let redeemed = unsafe { self.with_home(|home| home.tickets.redeem(key, waker)) };
        match redeemed {
            Ok(view) => Some(Buffer::from_unique(view)),
            Err(_replaced) => {
                self.look_again();
                None
            }
        }
    }

    fn hand_back_ticket(&self, key: usize) {
        // SAFETY: on the home thread; what the ticket held is moved out, and dropped afterwards.
        let held = unsafe { self.with_home(|home| home.tickets.hand_back(key)) };
        drop(held);
        self.look_again();
    }

    /// Has `waker` woken when a slot of `class` may be free.
    pub(super) fn register_waiter(&self, class: usize, waker: &Waker) {
        let waker = waker.clone();
        let pushed = self.alarm().registered().push(class, waker);
        if let Err((waker, true)) = pushed {
            // No place to wait: it has to look again by itself.
            waker.wake();
        }
        self.look_again();
    }

    /// After a change of who waits: sets the alarm, and serves what other threads freed before they could see
    /// it.
    fn look_again(&self) {
        self.set_alarm();
        self.collect();
        self.serve(None);
    }

    fn set_alarm(&self) {
        let alarm = self.alarm();
        // SAFETY: on the home thread; the closure calls nothing but the clone of a waker.
        let (ticket, waits) = unsafe {
            self.with_home(|home| {
                let ticket = home.tickets.any_waker().cloned();
                let waits = ticket.is_some() || !alarm.registered().is_empty();
                if !waits {
                    home.tree.stop_gathering();
                }
                (ticket, waits)
            })
        };
        match ticket {
            Some(waker) => alarm.ticket.register(&waker),
            None => drop(alarm.ticket.take()),
        }
        alarm.waiting.store(waits, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Gives free memory to those who wait. `given` is the class and index of a slot just given back, if
    /// there was one: around it, a large slot is made whole for who waits longest.
    #[inline]
    pub(super) fn serve(&self, given: Option<(usize, u32)>) {
        if self.anybody_waits() {
            self.serve_waiters(given);
            // The alarm was set anew: another thread may have freed a slot and woken who is served already.
            self.collect();
        }
    }

    #[inline]
    pub(super) fn anybody_waits(&self) -> bool {
        self.alarm().waiting.load(Ordering::Relaxed)
    }

    /// As [`Shared::serve`]; the caller has to look afterwards what other threads have freed.
    #[cold]
    pub(super) fn serve_waiters(&self, given: Option<(usize, u32)>) {
        let oldest = loop {
            match self.serve_ticket() {
                Err(oldest) => break oldest,
                Ok(waker) => waker.wake(),
            }
        };
        let smallest = self.alarm().registered().smallest_class();
        // SAFETY: on the home thread; nothing in the closure calls out.
        let largest = unsafe {
            self.with_home(|home| {
                if let (Some(wanted), Some((class, slot))) = (oldest.or(smallest), given)
                    && !home.tree.has(wanted)
                {
                    home.tree.gather_around(wanted, class, slot);
                }
                smallest.and_then(|smallest| home.tree.largest_from(smallest))
            })
        };
        let woken = largest.map(|largest| self.alarm().registered().take_up_to(largest));
        self.set_alarm();
        woken.into_iter().flatten().for_each(Waker::wake);
    }

    /// Gives a slot to the oldest ticket that one can be had for; returns its waker. Without one, the error
    /// is the class that the oldest ticket of all waits for, if any does.
    fn serve_ticket(&self) -> Result<Waker, Option<usize>> {
        // SAFETY: on the home thread; nothing in the closure calls out.
        unsafe {
            self.with_home(|home| {
                let turn = home.tickets.next_turn(&mut home.tree)?;
                home.count_taken(turn.class);
                let view = self.begin_slot(turn.class, turn.slot, turn.len_bytes);
                Ok(home.tickets.grant(turn.key, view))
            })
        }
    }
}

/// A buffer that is waited for: see [`BufferPool::wait_for`]. Dropped, it gives its place up.
#[must_use = "a future does nothing unless it is polled"]
pub struct BufferWait {
    pool: BufferPool,
    len_bytes: usize,
    ticket: Option<usize>,
}

impl BufferWait {
    pub(super) fn new(pool: BufferPool, len_bytes: usize) -> BufferWait {
        BufferWait {
            pool,
            len_bytes,
            ticket: None,
        }
    }
}

impl Future for BufferWait {
    type Output = Result<Buffer, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let waker = context.waker();
        if self.ticket.is_none() {
            let (pool, len_bytes) = (&self.pool, self.len_bytes);
            if let Some(buffer) = pool.allocate(len_bytes) {
                return Poll::Ready(Ok(buffer));
            }
            let Some(class) = pool.class_for(len_bytes) else {
                return Poll::Ready(Err(Error::BufferSize {
                    len_bytes,
                    maximum_bytes: pool.max_buffer_bytes(),
                }));
            };
            let issued = pool.shared().issue_ticket(class, len_bytes, waker);
            let Some(key) = issued else {
                return Poll::Ready(Err(Error::TooManyWaiters));
            };
            self.ticket = Some(key);
        }
        let Some(key) = self.ticket else {
            return Poll::Pending;
        };
        match self.pool.shared().redeem_ticket(key, waker) {
            Some(buffer) => {
                self.ticket = None;
                Poll::Ready(Ok(buffer))
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for BufferWait {
    fn drop(&mut self) {
        if let Some(key) = self.ticket.take() {
            self.pool.shared().hand_back_ticket(key);
        }
    }
}
