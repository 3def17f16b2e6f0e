//! Taking and giving back buffers needs no heap memory: an allocator that counts, in a process of its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::mpsc;
use std::thread;

use pollux_hugepages::{Buffer, BufferPool, PoolOptions};

/// Counts what goes through it, for each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations made by `act` on this thread.
fn count(act: impl FnOnce()) -> usize {
    let before = COUNT.get();
    act();
    COUNT.get() - before
}

#[test]
fn buffers_come_and_go_without_the_heap() {
    let options = PoolOptions {
        total_bytes: 8 << 20,
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).expect("the options are usable");
    let mut live: Vec<Option<Buffer>> = (0..128).map(|_| None).collect();
    assert!(
        count(|| drop(std::hint::black_box(vec![1_u8; 100]))) > 0,
        "the allocator does not count"
    );

    let on_the_home_thread = count(|| {
        for round in 0..10_000_usize {
            let len_bytes = [4096, 4096, 16_384, 70_000, 1 << 20, 2 << 20][round * 7 % 6];
            live[round % 128] = None;
            live[round % 128] = pool.allocate(len_bytes);
            if let Some(buffer) = &mut live[round % 128] {
                let tail = buffer.split_off(1000).freeze();
                drop((tail.clone(), tail));
            }
        }
    });
    assert_eq!(on_the_home_thread, 0);

    // On another thread, which says when it is ready and when it is done by memory it has already.
    live.iter_mut().for_each(|slot| *slot = pool.allocate(4096));
    let (go, wait) = mpsc::sync_channel::<()>(1);
    let other = thread::spawn(move || {
        wait.recv().expect("the test goes on");
        let before = COUNT.get();
        live.iter_mut().for_each(|slot| *slot = None);
        COUNT.get() - before
    });
    go.send(()).expect("the other thread waits");
    assert_eq!(other.join().expect("dropping does not panic"), 0);
    assert_eq!(count(|| pool.collect()), 0);
    assert_eq!(pool.statistics().in_use_bytes(), 0);
}
