//! The part of a pool that its buffers share with it, and its life.
//!
//! A pool belongs to the thread that made it, its *home*. The home thread alone reaches [`Home`], without a
//! lock. A slot whose last view is dropped on another thread is pushed on a lock-free list, `freed`, whose
//! links are in the headers; the home thread takes the whole list at once, so that no slot can be pushed
//! twice and confuse it.
//!
//! The memory outlives the pool's handle while buffers live. Nothing is counted for that on the home thread
//! as long as the handle lives; instead:
//!
//! - `claims` starts at [`OPEN`], and each slot given back by another thread takes one off, as its last act.
//! - When the handle goes, the home thread takes off `OPEN` less the number of slots it handed out and did
//!   not get back itself: `claims` is then the number of slots that will still be given back. `home_thread`
//!   becomes [`NO_THREAD`], so that from then on every slot takes the way of other threads.
//! - Whoever brings `claims` to zero frees the memory.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use super::classes::{Classes, MAX_CLASSES};
use super::memory::Memory;
use super::tree::Tree;
use super::waiters::Tickets;
use super::waiting::Alarm;
use super::{ClassStatistics, PoolStatistics};
use crate::BUFFER_ALIGNMENT_BYTES;
use crate::slot::{Header, View};

/// No slot; the end of the list of slots freed by other threads.
const NO_UNIT: u32 = u32::MAX;
/// The home of a pool whose handle is gone.
const NO_THREAD: u64 = 0;
/// More than the slots ever given back by other threads: at one a nanosecond, 146 years' worth.
const OPEN: i64 = 1 << 62;

/// Something that holds for as long as the memory is mapped.
pub(super) type Guard = Box<dyn Send + Sync>;

/// What a pool's handle and its buffers share.
pub(crate) struct Shared {
    /// The first byte of `memory`.
    base: NonNull<u8>,
    /// Dropped before the memory: declared before it.
    guards: Mutex<Vec<Guard>>,
    memory: Memory,
    /// One for each unit of 4096 bytes, used if a slot starts there.
    headers: Box<[Header]>,
    classes: Classes,
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
    alarm: Alarm,
}

/// What only the home thread reaches.
pub(super) struct Home {
    pub(super) tree: Tree,
    pub(super) tickets: Tickets,
    /// Slots of each class in use, those included that other threads have freed since the last look.
    in_use: [u64; MAX_CLASSES],
    /// Slots handed out less those given back by the home thread itself.
    unreturned: i64,
}

impl Shared {
    /// Makes the shared part of a pool whose home is this thread. It lives until [`Shared::close`] was called
    /// and all slots were given back.
    pub(super) fn open(memory: Memory, classes: Classes, waiters_max: usize) -> NonNull<Shared> {
        let units = (memory.len_bytes() / BUFFER_ALIGNMENT_BYTES) as u32;
        let smallest = classes.slot_at(0, units);
        let place = NonNull::from(Box::leak(Box::<Shared>::new_uninit()));
        let owner = place.cast::<Shared>();
        let shared = Shared {
            headers: (0..units).map(|unit| Header::of_pool(owner, unit)).collect(),
            base: memory.base(),
            guards: Mutex::default(),
            memory,
            home_thread: AtomicU64::new(this_thread()),
            home: UnsafeCell::new(Home {
                tree: Tree::new(smallest, classes.fanout_shifts()),
                in_use: [0; MAX_CLASSES],
                unreturned: 0,
                tickets: Tickets::new(classes.count(), waiters_max),
            }),
            remote: Remote {
                freed: AtomicU32::new(NO_UNIT),
                claims: AtomicI64::new(OPEN),
                alarm: Alarm::new(waiters_max),
            },
            classes,
        };
        // SAFETY: the place is for one `Shared`, is this thread's alone, and nothing was in it.
        unsafe { owner.write(shared) };
        owner
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Keeps something until right before the memory is unmapped.
    pub(super) fn guard(&self, guard: Guard) {
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        guards.push(guard);
    }

    pub(super) fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The bytes of the slot that a header in use describes.
    pub(crate) fn bytes_of(&self, header: &Header) -> (NonNull<u8>, usize) {
        let offset = header.unit as usize * BUFFER_ALIGNMENT_BYTES;
        let len = self
            .classes
            .bytes(usize::from(header.class.load(Ordering::Relaxed)));
        // SAFETY: the unit of a header is inside the memory.
        (unsafe { self.base.add(offset) }, len)
    }

    /// A view of the first `len_bytes` bytes of a free slot of a class that is large enough. For the home
    /// thread.
    #[inline]
    pub(super) fn take(&self, class: usize, len_bytes: usize) -> Option<View> {
        self.collect();
        // SAFETY: on the home thread, as only its handle calls this; nothing in the closure calls out.
        let slot = unsafe {
            self.with_home(|home| {
                let slot = home.tree.take(class)?;
                home.count_taken(class);
                Some(slot)
            })
        }?;
        Some(self.begin_slot(class, slot, len_bytes))
    }

    /// The first view of a slot that was just taken from the tree.
    #[inline]
    pub(super) fn begin_slot(&self, class: usize, slot: u32, len_bytes: usize) -> View {
        debug_assert!(len_bytes <= self.classes.bytes(class));
        let unit = self.classes.unit_of(class, slot);
        let header = &self.headers[unit];
        header.begin(class as u8);
        // SAFETY: the slot was free: nobody else knows these bytes, which are inside the memory and
        // initialised.
        unsafe {
            let start = self.base.add(unit * BUFFER_ALIGNMENT_BYTES);
            View::of_slot(start, len_bytes, NonNull::from(header))
        }
    }

    /// Takes in what other threads have freed. For the home thread.
    #[inline]
    pub(super) fn collect(&self) {
        // Again, as the alarm may be set anew. The slots that other threads can free meanwhile are bounded.
        while self.remote.freed.load(Ordering::Relaxed) != NO_UNIT {
            self.collect_freed();
        }
    }

    #[cold]
    fn collect_freed(&self) {
        // Acquire: what the other threads did to the slots happens before their next use.
        let mut unit = self.remote.freed.swap(NO_UNIT, Ordering::Acquire);
        while let Some(header) = self.headers.get(unit as usize) {
            unit = header.next.load(Ordering::Relaxed);
            // SAFETY: on the home thread; nothing in the closure calls out.
            let given = unsafe { self.with_home(|home| home.give(&self.classes, header)) };
            if self.anybody_waits() {
                self.serve_waiters(Some(given));
            }
        }
    }

    /// Gives back a slot that has no views any more, on whatever thread.
    ///
    /// # Safety
    ///
    /// `shared` and `slot` belong together, the slot was handed out, and is given back this once.
    #[inline]
    pub(crate) unsafe fn give_back(shared: NonNull<Shared>, slot: NonNull<Header>) {
        // SAFETY: the memory is there as long as a slot was not given back.
        let (this, header) = unsafe { (shared.as_ref(), slot.as_ref()) };
        if this.home_thread.load(Ordering::Relaxed) == this_thread() {
            // SAFETY: this is the home thread (no other ever has its number); nothing in the closure calls
            // out.
            let given = unsafe {
                this.with_home(|home| {
                    home.unreturned -= 1;
                    home.give(&this.classes, header)
                })
            };
            this.serve(Some(given));
            return;
        }
        // SAFETY: as the caller promises.
        unsafe { Shared::give_back_from_afar(shared, slot) };
    }

    /// Gives back a slot on another thread than the home thread, or when there is none any more.
    ///
    /// # Safety
    ///
    /// As for `give_back`.
    #[cold]
    unsafe fn give_back_from_afar(shared: NonNull<Shared>, slot: NonNull<Header>) {
        // SAFETY: the memory is there as long as a slot was not given back.
        let (this, header) = unsafe { (shared.as_ref(), slot.as_ref()) };
        this.push_freed(header);
        this.remote.alarm.ring();
        // SAFETY: this slot's claim is taken off once, after the last use of the shared part by this thread.
        unsafe { Shared::release(shared, 1) };
    }

    /// Puts a slot on the list for the home thread.
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
                Ok(_) => return,
                Err(current) => first = current,
            }
        }
    }

    pub(super) fn alarm(&self) -> &Alarm {
        &self.remote.alarm
    }

    pub(super) fn statistics(&self) -> PoolStatistics {
        self.collect();
        // SAFETY: on the home thread, as only its handle calls this; nothing in the closure calls out.
        let classes = unsafe {
            self.with_home(|home| {
                let class_statistics = |class| ClassStatistics {
                    class_bytes: self.classes.bytes(class),
                    in_use: home.in_use[class],
                    available: home.tree.available(class),
                };
                (0..self.classes.count()).map(class_statistics).collect()
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
        this.alarm().silence();
        // SAFETY: on the home thread, as the caller promises; the closure reads a number. No tickets are
        // left, as each keeps the handle.
        let unreturned = unsafe { this.with_home(|home| home.unreturned) };
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
    /// On the home thread, and not from within `act`: nothing in `act` may wake or drop a waker, or drop a
    /// buffer.
    pub(super) unsafe fn with_home<R>(&self, act: impl FnOnce(&mut Home) -> R) -> R {
        // SAFETY: only the home thread comes here, and not twice at a time, as the caller promises.
        act(unsafe { &mut *self.home.get() })
    }
}

impl Home {
    /// Notes that a slot was taken from the tree.
    pub(super) fn count_taken(&mut self, class: usize) {
        self.in_use[class] += 1;
        self.unreturned += 1;
    }

    /// Gives a slot back to the tree; returns its class and index.
    fn give(&mut self, classes: &Classes, header: &Header) -> (usize, u32) {
        let class = usize::from(header.class.load(Ordering::Relaxed));
        let slot = classes.slot_at(class, header.unit);
        self.in_use[class] -= 1;
        self.tree.give(class, slot);
        (class, slot)
    }
}

/// A number of this thread that no other thread ever has.
#[inline]
fn this_thread() -> u64 {
    use std::cell::Cell;

    static LAST: AtomicU64 = AtomicU64::new(NO_THREAD);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(NO_THREAD) };
    }
    NUMBER.with(|number| match number.get() {
        NO_THREAD => {
            let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            number.set(new);
            new
        }
        known => known,
    })
}
