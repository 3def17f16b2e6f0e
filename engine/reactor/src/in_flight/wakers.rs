//! Wakers of slots that cost nothing to clone and drop.
//!
//! A waker may outlive everything: whoever holds it may use it at any time, on any thread. Counting its
//! holders would be the most expensive part of a small future. So what wakers point to is never freed: it is
//! *lent* to a set, and lent again to another when that is dropped. A waker that comes late raises a flag of
//! a set that it does not belong to any more, which costs that set a look and nothing else.
//!
//! Invariants:
//! - Everything in [`Flags`] may be touched by any thread at any time.
//! - A raised flag leads to a raised bit in `words_raised`, and the first of those to a wake-up of the task:
//!   whoever raises the first flag of a word raises the word, whoever raises the first word wakes the task.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{RawWaker, RawWakerVTable, Waker};

use atomic_waker::AtomicWaker;

/// Words of flags in the largest set: one bit of `words_raised` is for one or more of them.
const WORDS_RAISED_BITS: usize = 64;

/// What the wakers of a set point to.
struct Flags {
    /// A bit for each slot.
    slots: Box<[AtomicU64]>,
    /// A bit for each word of `slots`; when there are more words than bits, for each that many apart.
    words_raised: AtomicU64,
    task: AtomicWaker,
}

/// What one waker points to.
struct SlotWaker {
    flags: &'static Flags,
    slot: u16,
}

impl SlotWaker {
    fn wake(&self) {
        let (word, bit) = (usize::from(self.slot) / 64, 1 << (self.slot % 64));
        let Some(slots) = self.flags.slots.get(word) else {
            return;
        };
        let word_bit = 1 << (word % WORDS_RAISED_BITS);
        // Release: what the waking thread did before is visible to who collects the flag.
        if slots.fetch_or(bit, Ordering::AcqRel) != 0 {
            return;
        }
        if self.flags.words_raised.fetch_or(word_bit, Ordering::AcqRel) == 0 {
            self.flags.task.wake();
        }
    }
}

static VTABLE: RawWakerVTable =
    RawWakerVTable::new(|waker| RawWaker::new(waker, &VTABLE), wake, wake, |_| ());

/// # Safety
///
/// `waker` points to a [`SlotWaker`] that is never freed.
unsafe fn wake(waker: *const ()) {
    // SAFETY: the caller's promise.
    unsafe { &*waker.cast::<SlotWaker>() }.wake();
}

/// What is lent to one set: its flags and a waker for each slot.
struct Lease {
    flags: &'static Flags,
    wakers: &'static [SlotWaker],
}

/// Leases that nobody has now. Bounded by the number of sets that there ever were at one time.
static RETURNED: Mutex<Vec<Lease>> = Mutex::new(Vec::new());

impl Lease {
    /// A lease for this many slots, rounded up to whole words.
    fn take(words: usize) -> Self {
        let mut returned = RETURNED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = returned.iter().position(|lease| lease.flags.slots.len() == words) {
            return returned.swap_remove(index);
        }
        drop(returned);
        let flags: &'static Flags = Box::leak(Box::new(Flags {
            slots: (0..words).map(|_| AtomicU64::new(0)).collect(),
            words_raised: AtomicU64::new(0),
            task: AtomicWaker::new(),
        }));
        let slots = u16::try_from(words * 64 - 1).unwrap_or(u16::MAX);
        let wakers: Vec<_> = (0..=slots).map(|slot| SlotWaker { flags, slot }).collect();
        Self {
            flags,
            wakers: wakers.leak(),
        }
    }
}

/// The wakers of one set, and the flags that they raise.
pub(super) struct WakerSet {
    lease: Option<Lease>,
    words: usize,
    /// Collecting is for one thread.
    not_shared: PhantomData<*mut ()>,
}

impl WakerSet {
    pub(super) fn new(capacity: u16) -> Self {
        let words = usize::from(capacity).div_ceil(64);
        Self {
            lease: (words > 0).then(|| Lease::take(words)),
            words,
            not_shared: PhantomData,
        }
    }

    /// Words that the flags fill.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// The waker of a slot.
    pub(super) fn waker(&self, slot: u16) -> Waker {
        let waker = self
            .lease
            .as_ref()
            .and_then(|lease| lease.wakers.get(usize::from(slot)));
        match waker {
            // SAFETY: the pointer is to a `SlotWaker` that is never freed, as `wake` asks; the other
            // functions do not look at it. All of them may be called on any thread, as a
            // `SlotWaker` holds nothing but atomics.
            Some(waker) => unsafe { Waker::new(std::ptr::from_ref(waker).cast(), &VTABLE) },
            None => Waker::noop().clone(),
        }
    }

    /// Has the task woken when the first flag is raised.
    pub(super) fn register(&self, task: &Waker) {
        if let Some(lease) = &self.lease {
            lease.flags.task.register(task);
        }
    }

    /// Lowers all flags and adds them to `into`. Whether there were any.
    pub(super) fn collect(&self, into: &mut [u64]) -> bool {
        let Some(lease) = &self.lease else { return false };
        if lease.flags.words_raised.load(Ordering::Acquire) == 0 {
            return false;
        }
        let raised = lease.flags.words_raised.swap(0, Ordering::AcqRel);
        let mut any = 0;
        for (word, (flags, into)) in lease.flags.slots.iter().zip(into).enumerate() {
            if raised & 1 << (word % WORDS_RAISED_BITS) != 0 {
                let flags = flags.swap(0, Ordering::AcqRel);
                *into |= flags;
                any |= flags;
            }
        }
        any != 0
    }
}

impl Drop for WakerSet {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            drop(lease.flags.task.take());
            RETURNED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(lease);
        }
    }
}
