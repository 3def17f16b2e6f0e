//! The part of a pool that its buffers share with it, and its life.
//!
//! A pool belongs to the thread that made it, its *home*. The home thread alone reaches [`Home`], without a lock.
//! A slot whose last view is dropped on another thread is pushed on a lock-free list, `freed`, whose links are in
//! the headers; the home thread takes the whole list at once, so that no slot can be pushed twice and confuse it.
//!
//! The memory outlives the pool's handle while buffers live. Nothing is counted for that on the home thread as
//! long as the handle lives; instead:
//!
//! - `claims` starts at [`OPEN`], and each slot given back by another thread takes one off, as its last act.
//! - When the handle goes, the home thread takes off `OPEN` less the number of slots it handed out and did not
//!   get back itself: `claims` is then the number of slots that will still be given back. `home_thread` becomes
//!   [`NO_THREAD`], so that from then on every slot takes the way of other threads.
//! - Whoever brings `claims` to zero frees the memory.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
use std::task::Waker;

use atomic_waker::AtomicWaker;

use super::memory::Memory;
use super::tree::Tree;
use super::waiters::Waiters;
use super::{ClassStatistics, PoolStatistics};
use crate::BUFFER_ALIGNMENT_BYTES;
use crate::slot::{Header, View};

/// No slot; the end of the list of slots freed by other threads.
const NO_UNIT: u32 = u32::MAX;
/// The home of a pool whose handle is gone.
const NO_THREAD: u64 = 0;
/// More than the slots ever given back by other threads: at one a nanosecond, 146 years' worth.
const OPEN: i64 = 1 << 62;

/// What a pool's handle and its buffers share.
pub(crate) struct Shared {
    memory: Memory,
    /// One for each unit of 4096 bytes, used if a slot starts there.
    headers: Box<[Header]>,
    classes_bytes: Box<[usize]>,
    home_thread: AtomicU64,
    home: UnsafeCell<Home>,
    remote: Remote,
}

/// What other threads write, away from what the home thread reads all the time.
#[repr(align(128))]
struct Remote {
    /// The unit of the slot freed last by another thread.
    freed: AtomicU32,
    claims: AtomicI64,
    /// Whether `waker` is to be woken when another thread frees a slot.
    waiting: AtomicBool,
    waker: AtomicWaker,
}

/// What only the home thread reaches.
struct Home {
    tree: Tree,
    /// Slots of each class in use, those included that other threads have freed since the last look.
    in_use: Box<[u64]>,
    /// Slots handed out less those given back by the home thread itself.
    unreturned: i64,
    waiters: Waiters,
}

impl Shared {
    /// Makes the shared part of a pool whose home is this thread. It lives until [`Shared::close`] was called and all
    /// slots were given back.
    pub(super) fn open(memory: Memory, classes_bytes: &[usize], waiters_max: usize) -> NonNull<Shared> {
        let units = (memory.len_bytes() / BUFFER_ALIGNMENT_BYTES) as u32;
        let fanouts: Vec<u32> = classes_bytes
            .windows(2)
            .map(|pair| (pair[1] / pair[0]) as u32)
            .collect();
        let smallest = (memory.len_bytes() / classes_bytes[0]) as u32;
        let place = NonNull::from(Box::leak(Box::<Shared>::new_uninit()));
        let owner = place.cast::<Shared>();
        let shared = Shared {
            headers: (0..units).map(|unit| Header::of_pool(owner, unit)).collect(),
            memory,
            classes_bytes: classes_bytes.into(),
            home_thread: AtomicU64::new(this_thread()),
            home: UnsafeCell::new(Home {
                tree: Tree::new(smallest, &fanouts),
                in_use: vec![0; classes_bytes.len()].into(),
                unreturned: 0,
                waiters: Waiters::new(waiters_max),
            }),
            remote: Remote {
                freed: AtomicU32::new(NO_UNIT),
                claims: AtomicI64::new(OPEN),
                waiting: AtomicBool::new(false),
                waker: AtomicWaker::new(),
            },
        };
        // SAFETY: the place is for one `Shared`, is this thread's alone, and nothing was in it.
        unsafe { owner.write(shared) };
        owner
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn classes_bytes(&self) -> &[usize] {
        &self.classes_bytes
    }

    /// The bytes of the slot that a header in use describes.
    pub(crate) fn bytes_of(&self, header: &Header) -> (NonNull<u8>, usize) {
        let offset = header.unit as usize * BUFFER_ALIGNMENT_BYTES;
        let len = self.classes_bytes[usize::from(header.class.load(Ordering::Relaxed))];
        // SAFETY: the unit of a header is inside the memory.
        (unsafe { self.memory.base().add(offset) }, len)
    }

    /// A view of the first `len_bytes` bytes of a free slot of a class that is large enough.
    pub(super) fn take(&self, class: usize, len_bytes: usize) -> Option<View> {
        let class_bytes = self.classes_bytes[class];
        debug_assert!(len_bytes <= class_bytes);
        self.collect();
        // SAFETY: on the home thread, as only its handle calls this; nothing in the closure calls out.
        let (slot, any_waits) = unsafe {
            self.with_home(|home| {
                let slot = home.tree.take(class)?;
                home.in_use[class] += 1;
                home.unreturned += 1;
                Some((slot, !home.waiters.is_empty()))
            })
        }?;
        let offset = slot as usize * class_bytes;
        let header = &self.headers[offset / BUFFER_ALIGNMENT_BYTES];
        header.begin(class as u8);
        // SAFETY: the slot was free: nobody else knows these bytes, which are inside the memory and initialised.
        let view = unsafe { View::of_slot(self.memory.base().add(offset), len_bytes, NonNull::from(header)) };
        if any_waits {
            // This may be the waiter that was woken: it is the next one's turn.
            self.wake_waiters();
        }
        Some(view)
    }

    /// Takes in what other threads have freed. For the home thread.
    pub(super) fn collect(&self) {
        if self.remote.freed.load(Ordering::Relaxed) == NO_UNIT {
            return;
        }
        // Acquire: what the other threads did to the slots happens before their next use.
        let mut unit = self.remote.freed.swap(NO_UNIT, Ordering::Acquire);
        while let Some(header) = self.headers.get(unit as usize) {
            unit = header.next.load(Ordering::Relaxed);
            // SAFETY: on the home thread; nothing in the closure calls out.
            unsafe { self.with_home(|home| home.give(&self.classes_bytes, header)) };
        }
        self.wake_waiters();
    }

    /// Gives back a slot that has no views any more, on whatever thread.
    ///
    /// # Safety
    ///
    /// `shared` and `slot` belong together, the slot was handed out, and is given back this once.
    pub(crate) unsafe fn give_back(shared: NonNull<Shared>, slot: NonNull<Header>) {
        // SAFETY: the memory is there as long as a slot was not given back.
        let (this, header) = unsafe { (shared.as_ref(), slot.as_ref()) };
        if this.home_thread.load(Ordering::Relaxed) == this_thread() {
            // SAFETY: this is the home thread (no other ever has its number); nothing in the closure calls out.
            let any_waits = unsafe {
                this.with_home(|home| {
                    home.unreturned -= 1;
                    home.give(&this.classes_bytes, header);
                    !home.waiters.is_empty()
                })
            };
            if any_waits {
                this.wake_waiters();
            }
            return;
        }
        this.push_freed(header);
        // SAFETY: this slot's claim is taken off once, after the last use of the shared part by this thread.
        unsafe { Shared::release(shared, 1) };
    }

    /// Puts a slot on the list for the home thread, and wakes who waits there.
    fn push_freed(&self, header: &Header) {
        let mut first = self.remote.freed.load(Ordering::Relaxed);
        loop {
            header.next.store(first, Ordering::Relaxed);
            // Release: what was done to the slot, and its link, go with it.
            let pushed = self.remote.freed.compare_exchange_weak(
                first,
                header.unit,
                Ordering::Release,
                Ordering::Relaxed,
            );
            match pushed {
                Ok(_) => break,
                Err(current) => first = current,
            }
        }
        // Either this sees `waiting`, or who waits sees the slot: see `register_waiter`.
        fence(Ordering::SeqCst);
        if self.remote.waiting.load(Ordering::Relaxed) {
            self.remote.waker.wake();
        }
    }

    /// Has `waker` woken when a slot of `class` may be free. For the home thread.
    pub(super) fn register_waiter(&self, class: usize, waker: &Waker) {
        let owned = waker.clone();
        // SAFETY: on the home thread; the closure only moves the waker, and compares it.
        let refused = unsafe { self.with_home(|home| home.waiters.push(class, owned)) };
        if let Some(waker) = refused {
            // Too many wait, or it waits already. In the first case it has to look again by itself.
            waker.wake();
        }
        self.watch_other_threads();
        self.collect();
        self.wake_waiters();
    }

    /// Sees to it that the first waiter is woken when another thread frees a slot.
    fn watch_other_threads(&self) {
        // SAFETY: on the home thread; nothing in the closure calls out but the clone of a waker.
        let first = unsafe { self.with_home(|home| home.waiters.first().cloned()) };
        match first {
            Some(waker) => {
                self.remote.waker.register(&waker);
                self.remote.waiting.store(true, Ordering::Relaxed);
                // Either the other thread sees `waiting`, or the caller sees its slot when it collects next.
                fence(Ordering::SeqCst);
            }
            None => self.remote.waiting.store(false, Ordering::Relaxed),
        }
    }

    /// Wakes those waiters, in order, that free slots are there for. For the home thread.
    pub(super) fn wake_waiters(&self) {
        // SAFETY: on the home thread; nothing in the closure calls out.
        let next = || unsafe {
            self.with_home(|home| {
                let class = home.waiters.first_class()?;
                if home.tree.has(class) {
                    home.waiters.pop()
                } else {
                    None
                }
            })
        };
        if let Some(waker) = next() {
            self.watch_other_threads();
            waker.wake();
        }
    }

    pub(super) fn statistics(&self) -> PoolStatistics {
        self.collect();
        // SAFETY: on the home thread, as only its handle calls this; nothing in the closure calls out.
        let classes = unsafe {
            self.with_home(|home| {
                let classes = self.classes_bytes.iter().zip(&home.in_use).enumerate();
                classes
                    .map(|(class, (&class_bytes, &in_use))| ClassStatistics {
                        class_bytes,
                        in_use,
                        available: home.tree.available(class),
                    })
                    .collect()
            })
        };
        PoolStatistics {
            capacity_bytes: self.memory.len_bytes(),
            classes,
        }
    }

    /// The handle is gone: from now on the last slot given back frees the memory.
    ///
    /// # Safety
    ///
    /// On the home thread, once; `shared` is not used any more by the caller.
    pub(super) unsafe fn close(shared: NonNull<Shared>) {
        // SAFETY: the memory is there until the claims are taken off below.
        let this = unsafe { shared.as_ref() };
        // SAFETY: on the home thread, as the caller promises; the wakers are dropped outside.
        let (unreturned, waiters) = unsafe {
            this.with_home(|home| {
                (
                    home.unreturned,
                    std::mem::replace(&mut home.waiters, Waiters::new(0)),
                )
            })
        };
        this.remote.waiting.store(false, Ordering::Relaxed);
        drop(this.remote.waker.take());
        drop(waiters);
        this.home_thread.store(NO_THREAD, Ordering::Relaxed);
        // SAFETY: the handle's claim, OPEN less what will still be given back, is taken off this once.
        unsafe { Shared::release(shared, OPEN - unreturned) };
    }

    /// Takes off claims, and frees the memory if no more are left.
    ///
    /// # Safety
    ///
    /// The claims are the caller's, who does not use `shared` afterwards.
    unsafe fn release(shared: NonNull<Shared>, claims: i64) {
        // SAFETY: the memory is there while the caller's claims are.
        let before = unsafe { shared.as_ref() }
            .remote
            .claims
            .fetch_sub(claims, Ordering::Release);
        if before != claims {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: no claims are left, so nobody else knows the shared part; `open` made it as a box.
        drop(unsafe { Box::from_raw(shared.as_ptr()) });
    }

    /// Reaches what is the home thread's.
    ///
    /// # Safety
    ///
    /// On the home thread, and not from within `act`: nothing in `act` may wake or drop a waker, or drop a buffer.
    unsafe fn with_home<R>(&self, act: impl FnOnce(&mut Home) -> R) -> R {
        // SAFETY: only the home thread comes here, and not twice at a time, as the caller promises.
        act(unsafe { &mut *self.home.get() })
    }
}

impl Home {
    fn give(&mut self, classes_bytes: &[usize], header: &Header) {
        let class = usize::from(header.class.load(Ordering::Relaxed));
        let offset = header.unit as usize * BUFFER_ALIGNMENT_BYTES;
        self.in_use[class] -= 1;
        self.tree.give(class, (offset / classes_bytes[class]) as u32);
    }
}

/// A number of this thread that no other thread ever has.
fn this_thread() -> u64 {
    use std::cell::Cell;

    static LAST: AtomicU64 = AtomicU64::new(NO_THREAD);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(NO_THREAD) };
    }
    NUMBER.with(|number| {
        if number.get() == NO_THREAD {
            number.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
        }
        number.get()
    })
}
