//! An allocator that counts what each thread asks for, and a queue full of requests to count them for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;

use pollux_device::{BlockDevice, Completion, Request};

/// The system's allocator, counting what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has nobody who reads its count.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread's own integer only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(block, layout, new_bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What the calling thread has asked for so far.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

pub const DEPTH: u64 = 128;
pub const ROUNDS: u64 = 30;
const BLOCK_BYTES: usize = 4096;

/// One queue full of requests of every kind: reads, and writes, compares and zeros of some.
pub async fn round(queue: &Rc<dyn BlockDevice>, in_flight: &mut Vec<Completion>) {
    let buffers = pollux_reactor::buffers();
    for block in 0..DEPTH {
        let buffer = buffers.allocate(BLOCK_BYTES).expect("the pool is large enough");
        let request = match block % 8 {
            0..4 => Request::Read { block, into: buffer },
            4..6 => Request::Write {
                block,
                from: buffer.into(),
                force_unit_access: block % 3 == 0,
            },
            6 => Request::Flush,
            _ => Request::WriteZeroes {
                block,
                blocks: 2,
                options: pollux_device::ZeroOptions::default(),
            },
        };
        in_flight.push(queue.submit(request));
    }
    for completion in in_flight.drain(..) {
        completion.await.expect("nothing fails");
    }
}

/// Allocations of many full queues, once everything is warm.
pub async fn allocations_when_warm(queue: &Rc<dyn BlockDevice>) -> u64 {
    let mut in_flight = Vec::with_capacity(DEPTH as usize);
    for _ in 0..8 {
        round(queue, &mut in_flight).await;
    }
    let before = allocations();
    for _ in 0..ROUNDS {
        round(queue, &mut in_flight).await;
    }
    allocations() - before
}
