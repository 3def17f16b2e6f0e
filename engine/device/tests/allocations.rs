//! No heap allocation per request once everything is warm.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;

use common::{on_reactor, open};
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

const DEPTH: u64 = 128;
const ROUNDS: u64 = 30;
const BLOCK_BYTES: usize = 4096;

/// One queue full of requests of every kind: reads, and writes, compares and zeros of some.
async fn round(queue: &Rc<dyn BlockDevice>, in_flight: &mut Vec<Completion>) {
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

fn check(uri: &str) {
    let uri = uri.to_owned();
    on_reactor(move || async move {
        let device = open(&uri).await.expect(&uri);
        let queue = device.attach().await.expect(&uri);
        let mut in_flight = Vec::with_capacity(DEPTH as usize);
        for _ in 0..8 {
            round(&queue, &mut in_flight).await;
        }
        let before = ALLOCATIONS.get();
        for _ in 0..ROUNDS {
            round(&queue, &mut in_flight).await;
        }
        assert_eq!(
            ALLOCATIONS.get() - before,
            0,
            "{uri}: allocations in {} requests",
            ROUNDS * DEPTH
        );
    });
}

#[test]
fn null() {
    check("null:///nothing?size=1GiB");
}

#[test]
fn malloc() {
    check("malloc:///memory?size=64MiB");
}

/// With flushes, which all requests of a round share.
#[test]
fn uring() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for parameters in ["", "&direct=false"] {
        let path = directory.path().join("disk");
        check(&format!("uring://{}?size=64MiB{parameters}", path.display()));
    }
}

#[test]
fn faulty_without_faults() {
    check("faulty:///malloc:///memory?inner.size=64MiB");
}

#[test]
fn the_counter_counts() {
    on_reactor(|| async {
        let before = ALLOCATIONS.get();
        drop(std::hint::black_box(Box::new(7)));
        assert_eq!(ALLOCATIONS.get() - before, 1);
    });
}
