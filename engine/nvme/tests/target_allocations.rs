//! The I/O queue of a target allocates nothing per command once everything is warm.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

#[path = "support/queue.rs"]
mod queue;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use pollux_device::{Device, MallocDevice, MallocOptions};
use pollux_hugepages::Slice;
use pollux_reactor::real::{ReactorThread, Settings};
use queue::{BLOCK_BYTES, Host, Later};

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

const DEPTH: u16 = 128;
const ROUNDS: u64 = 20;

/// Allocations of so many rounds of reads and writes of a whole queue.
fn allocations(later: bool) -> u64 {
    let reactor = ReactorThread::spawn(Settings::default()).unwrap();
    let counted = reactor.handle().call_blocking(move || async move {
        let mut device: Arc<dyn Device> = MallocDevice::new("memory", &MallocOptions::new(4 << 20)).unwrap();
        if later {
            device = Arc::new(Later(device));
        }
        let mut host = Host::new(device, DEPTH).await;
        let data = Slice::copy_from(&[7; BLOCK_BYTES]);
        let mut rounds = async |rounds: u64| {
            for _ in 0..rounds {
                host.round(0..DEPTH.into(), Some(&data)).await;
                host.round(0..DEPTH.into(), None).await;
            }
        };
        rounds(8).await;
        let before = ALLOCATIONS.get();
        rounds(ROUNDS).await;
        ALLOCATIONS.get() - before
    });
    counted.unwrap()
}

#[test]
fn of_commands_that_are_done_at_once() {
    assert_eq!(allocations(false), 0);
}

#[test]
fn of_commands_that_take_their_time() {
    assert_eq!(allocations(true), 0);
}
