//! Pools of buffers, one for each reactor.
//!
//! Invariants:
//!
//! - A slot is in use by the views of one buffer and its parts, or free in the [`tree`], or on its way home
//!   in the list of slots freed by other threads; never in two of these.
//! - On the home thread, taking and giving back a buffer takes no lock, no system call and no heap memory
//!   while nobody waits for memory.
//! - Memory moves between the size classes: what is free in one is there for all.

mod classes;
mod memory;
mod shared;
mod tree;
mod waiters;
mod waiting;

use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::Waker;

pub use classes::MAX_CLASSES;
pub(crate) use shared::Shared;
pub use waiting::BufferWait;

use crate::BUFFER_ALIGNMENT_BYTES;
use crate::arena::{ArenaOptions, map_with_fallback};
use crate::buffer::Buffer;
use crate::error::Error;
use crate::page::PageKind;
use classes::Classes;
use memory::Memory;

/// The size classes of a pool unless others are given.
pub const DEFAULT_CLASSES_BYTES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20];

/// Units of 4096 bytes that can be numbered: 8 TiB.
const MAX_POOL_BYTES: usize = (i32::MAX as usize) * BUFFER_ALIGNMENT_BYTES;

/// How to make a pool of buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// The bound on the pool's memory, in bytes, rounded up to the page size. Default: 64 MiB.
    pub total_bytes: usize,
    /// Sizes of the slots that buffers are cut from, ascending powers of two from 4096, each at most 64 times
    /// the one before. A buffer takes a slot of the smallest class that holds it. Default:
    /// [`DEFAULT_CLASSES_BYTES`].
    pub classes_bytes: Vec<usize>,
    /// The pages and the NUMA node of the memory. Shareable memory is refused.
    pub arena: ArenaOptions,
    /// The bound on the number of those who wait for memory, of each kind of waiting. Default: 65,536.
    pub waiters_max: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            total_bytes: 64 << 20,
            classes_bytes: DEFAULT_CLASSES_BYTES.to_vec(),
            arena: ArenaOptions::default(),
            waiters_max: 65_536,
        }
    }
}

/// How a size class of a pool is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassStatistics {
    /// The size of a slot in bytes.
    pub class_bytes: usize,
    /// Slots in use.
    pub in_use: u64,
    /// Slots that could be taken now if no memory went to other classes.
    pub available: u64,
}

/// How a pool is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatistics {
    /// All memory of the pool in bytes.
    pub capacity_bytes: usize,
    /// The size classes, ascending.
    pub classes: Vec<ClassStatistics>,
}

impl PoolStatistics {
    /// Memory in use in bytes: whole slots.
    #[must_use]
    pub fn in_use_bytes(&self) -> usize {
        self.classes
            .iter()
            .map(|class| class.class_bytes * class.in_use as usize)
            .sum()
    }
}

/// A pool of buffers that belongs to the thread that made it. Clones are the same pool. The buffers can go to
/// other threads and be dropped there, and outlive the pool.
///
/// ```
/// use pollux_hugepages::{BufferPool, PoolOptions};
///
/// let pool = BufferPool::new(&PoolOptions { total_bytes: 4 << 20, ..PoolOptions::default() })?;
/// let mut buffer = pool.allocate(4096).expect("the pool is empty");
/// buffer.fill(7);
/// let slice = buffer.freeze();
/// std::thread::spawn(move || assert_eq!(slice[4095], 7));
/// # Ok::<(), pollux_hugepages::Error>(())
/// ```
///
/// The pool itself stays:
///
/// ```compile_fail,E0277
/// # use pollux_hugepages::{BufferPool, PoolOptions};
/// let pool = BufferPool::new(&PoolOptions::default()).expect("64 MiB");
/// std::thread::spawn(move || pool.allocate(4096));
/// ```
#[derive(Clone)]
pub struct BufferPool {
    handle: Rc<Handle>,
}

/// The pool's own claim on the shared part; on the home thread, as an `Rc` cannot leave it.
struct Handle {
    shared: NonNull<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle made the shared part and stayed on its home thread; this is its end.
        unsafe { Shared::close(self.shared) }
    }
}

impl BufferPool {
    /// Maps the memory of a pool, on huge pages where there are any, and makes this thread its home.
    ///
    /// # Errors
    ///
    /// [`Error::SizeClass`], [`Error::PoolSize`] and [`Error::PoolShareable`] for options that make no sense,
    /// and the errors of [`Arena::map`](crate::Arena::map).
    pub fn new(options: &PoolOptions) -> Result<BufferPool, Error> {
        let (classes, bytes) = check(options)?;
        if options.arena.shareable {
            return Err(Error::PoolShareable);
        }
        let mapping = map_with_fallback(bytes, &options.arena)?;
        Ok(BufferPool::with_memory(Memory::Mapped(mapping), classes, options))
    }

    /// Makes a pool on the heap, for tests and simulations: `options.arena` is not used.
    ///
    /// # Errors
    ///
    /// [`Error::SizeClass`] and [`Error::PoolSize`] as for [`BufferPool::new`].
    pub fn on_heap(options: &PoolOptions) -> Result<BufferPool, Error> {
        let (classes, bytes) = check(options)?;
        Ok(BufferPool::with_memory(Memory::on_heap(bytes), classes, options))
    }

    fn with_memory(memory: Memory, classes: Classes, options: &PoolOptions) -> BufferPool {
        let shared = Shared::open(memory, classes, options.waiters_max);
        BufferPool {
            handle: Rc::new(Handle { shared }),
        }
    }

    /// A buffer of `len_bytes` bytes, at a multiple of 4096. Its contents are initialised but unspecified:
    /// what the memory was used for before.
    ///
    /// `None` if memory is short now, and for good if `len_bytes` is above
    /// [`max_buffer_bytes`](BufferPool::max_buffer_bytes).
    #[must_use]
    #[inline]
    pub fn allocate(&self, len_bytes: usize) -> Option<Buffer> {
        let class = self.class_for(len_bytes)?;
        self.shared().take(class, len_bytes).map(Buffer::from_unique)
    }

    /// Like [`allocate`](BufferPool::allocate), filled with zeros.
    #[must_use]
    pub fn allocate_zeroed(&self, len_bytes: usize) -> Option<Buffer> {
        let mut buffer = self.allocate(len_bytes)?;
        buffer.fill(0);
        Some(buffer)
    }

    /// The largest buffer this pool can give, in bytes.
    #[must_use]
    pub fn max_buffer_bytes(&self) -> usize {
        self.shared().classes().largest_bytes()
    }

    /// All memory of the pool in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.shared().memory().len_bytes()
    }

    /// The pages of the pool's memory.
    #[must_use]
    pub fn page_kind(&self) -> PageKind {
        self.shared().memory().page_kind()
    }

    /// The NUMA node the memory is preferably on, if one was asked for.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.shared().memory().numa_node()
    }

    /// The first byte of the pool's memory, for registering the region with the kernel or a driver. The bytes
    /// belong to the buffers: nothing may be read or written through this pointer.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.shared().memory().base()
    }

    /// Keeps `guard` until right before the memory is unmapped, which may be after the pool is gone, and on
    /// any thread: for whoever has registered the region somewhere, and must undo it in time.
    pub fn keep_while_mapped(&self, guard: Box<dyn Send + Sync>) {
        self.shared().guard(guard);
    }

    /// Where `bytes` are in the region that begins at [`base`](BufferPool::base); `None` if they are not of
    /// this pool.
    #[must_use]
    pub fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes.as_ptr().addr().checked_sub(self.base().addr().get())?;
        (offset < self.capacity_bytes()).then_some(offset)
    }

    /// How the pool is doing. Takes time in proportion to the size of the pool: not for each I/O.
    #[must_use]
    pub fn statistics(&self) -> PoolStatistics {
        self.shared().statistics()
    }

    /// Takes in the slots that other threads have freed and wakes waiters for them; done by
    /// [`allocate`](BufferPool::allocate) too. Costs one load if there are none.
    pub fn collect(&self) {
        self.shared().collect();
    }

    /// Waits for a buffer of `len_bytes` bytes, as [`allocate`](BufferPool::allocate) gives it.
    ///
    /// Memory that comes free goes to those who wait, in the order in which they came; who needs less may
    /// pass who needs more, but memory is set aside for who waits longest, so that he is served in the end.
    /// Dropping the future gives the place up.
    ///
    /// # Errors
    ///
    /// [`Error::BufferSize`] above [`max_buffer_bytes`](BufferPool::max_buffer_bytes), and
    /// [`Error::TooManyWaiters`] if [`PoolOptions::waiters_max`] wait already.
    pub fn wait_for(&self, len_bytes: usize) -> BufferWait {
        BufferWait::new(self.clone(), len_bytes)
    }

    /// Has `waker` woken once when a buffer of `len_bytes` may be had: after
    /// [`allocate`](BufferPool::allocate) said `None`, or at once if it would not any more. All who can be
    /// served by some slot that came free are woken, in the order in which they registered, and the first to
    /// allocate have it: where many wait for long, [`wait_for`](BufferPool::wait_for) is fair and wakes only
    /// who gets something.
    ///
    /// A waker that was registered among the last few keeps its place and is woken once. With more than
    /// [`PoolOptions::waiters_max`] of them, or a length no buffer has, the waker is woken at once.
    pub fn register_waiter(&self, len_bytes: usize, waker: &Waker) {
        match self.class_for(len_bytes) {
            Some(class) => self.shared().register_waiter(class, waker),
            None => waker.wake_by_ref(),
        }
    }

    fn class_for(&self, len_bytes: usize) -> Option<usize> {
        self.shared().classes().for_length(len_bytes)
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the shared part lives as long as the handle.
        unsafe { self.handle.shared.as_ref() }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BufferPool")
            .field("capacity_bytes", &self.capacity_bytes())
            .field("page", &self.page_kind())
            .field("numa_node", &self.numa_node())
            .finish()
    }
}

/// Checks the options; the size classes and the size of the memory to get.
fn check(options: &PoolOptions) -> Result<(Classes, usize), Error> {
    let classes = Classes::new(&options.classes_bytes)?;
    let largest = classes.largest_bytes();
    if options.total_bytes < largest || options.total_bytes > MAX_POOL_BYTES {
        return Err(Error::PoolSize {
            bytes: options.total_bytes,
            minimum_bytes: largest,
            maximum_bytes: MAX_POOL_BYTES,
        });
    }
    Ok((
        classes,
        options.total_bytes.next_multiple_of(BUFFER_ALIGNMENT_BYTES),
    ))
}
