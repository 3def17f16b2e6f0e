//! Pools: their memory is used in any mix, comes back from wherever it went, and is never in two hands.

use std::sync::mpsc;
use std::thread;

use pollux_hugepages::{Buffer, BufferPool, DEFAULT_CLASSES_BYTES, Error, PoolOptions};
use proptest::prelude::*;
use proptest::sample::Index;

const POOL_BYTES: usize = 4 << 20;

fn options() -> PoolOptions {
    PoolOptions {
        total_bytes: POOL_BYTES,
        ..PoolOptions::default()
    }
}

fn heap_pool() -> BufferPool {
    BufferPool::on_heap(&options()).expect("the options are usable")
}

fn class_of(len_bytes: usize) -> usize {
    DEFAULT_CLASSES_BYTES
        .into_iter()
        .find(|&class_bytes| class_bytes >= len_bytes)
        .expect("not too long")
}

/// Marks a buffer by writing `mark` at its first, last and some bytes between.
fn mark(buffer: &mut Buffer, mark: u8) {
    let last = buffer.len().saturating_sub(1);
    buffer.iter_mut().step_by(509).for_each(|byte| *byte = mark);
    buffer[last] = mark;
}

fn is_marked(buffer: &Buffer, mark: u8) -> bool {
    buffer.iter().step_by(509).all(|&byte| byte == mark) && buffer[buffer.len() - 1] == mark
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Drop(Index),
    DropElsewhere(Index),
    Collect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len_bytes = prop_oneof![1..=4096_usize, 1..=65_536_usize, 1..=2_097_152_usize];
    let step = prop_oneof![
        6 => len_bytes.prop_map(Step::Allocate),
        4 => any::<Index>().prop_map(Step::Drop),
        2 => any::<Index>().prop_map(Step::DropElsewhere),
        1 => Just(Step::Collect),
    ];
    prop::collection::vec(step, 0..if cfg!(miri) { 20 } else { 150 })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn buffers_never_overlap_and_all_memory_comes_back(steps in steps()) {
        let pool = heap_pool();
        let mut live: Vec<(Buffer, u8)> = Vec::new();
        thread::scope(|scope| {
            let (send, receive) = mpsc::sync_channel::<Buffer>(0);
            scope.spawn(move || receive.into_iter().for_each(drop));
            for (number, step) in steps.iter().enumerate() {
                match step {
                    Step::Allocate(len_bytes) => {
                        let Some(mut buffer) = pool.allocate(*len_bytes) else { continue };
                        assert!(buffer.len() == *len_bytes && buffer.is_aligned(4096));
                        mark(&mut buffer, number as u8);
                        live.push((buffer, number as u8));
                    }
                    Step::Drop(index) if !live.is_empty() => drop(live.swap_remove(index.index(live.len()))),
                    Step::DropElsewhere(index) if !live.is_empty() => {
                        let (buffer, _) = live.swap_remove(index.index(live.len()));
                        send.send(buffer).expect("the other thread receives");
                    }
                    Step::Collect => pool.collect(),
                    Step::Drop(_) | Step::DropElsewhere(_) => {}
                }
                assert!(live.iter().all(|(buffer, mark)| is_marked(buffer, *mark)), "buffers overlap");
            }
        });
        let used: usize = live.iter().map(|(buffer, _)| class_of(buffer.len())).sum();
        prop_assert_eq!(pool.statistics().in_use_bytes(), used);
        live.clear();
        prop_assert_eq!(pool.statistics().in_use_bytes(), 0);
        // Nothing is stranded in a class: the largest buffers can be had again.
        let largest: Vec<_> = (0..POOL_BYTES / pool.max_buffer_bytes())
            .map(|_| pool.allocate(pool.max_buffer_bytes()))
            .collect();
        prop_assert!(largest.iter().all(Option::is_some));
    }
}

#[test]
fn all_memory_can_be_had_in_each_class_in_turn() {
    let pool = heap_pool();
    let lengths = if cfg!(miri) {
        vec![1 << 20, 256 << 10]
    } else {
        vec![4096, 1 << 20, 16 << 10, 2 << 20, 100]
    };
    for len_bytes in lengths {
        let slot_bytes = class_of(len_bytes);
        let mut buffers = Vec::new();
        while let Some(mut buffer) = pool.allocate(len_bytes) {
            mark(&mut buffer, buffers.len() as u8);
            buffers.push(buffer);
        }
        assert_eq!(buffers.len(), POOL_BYTES / slot_bytes);
        assert!(
            buffers
                .iter()
                .enumerate()
                .all(|(index, buffer)| is_marked(buffer, index as u8))
        );
        let statistics = pool.statistics();
        assert_eq!(statistics.in_use_bytes(), POOL_BYTES);
        assert!(statistics.classes.iter().all(|class| class.available == 0));
        thread::spawn(|| drop(buffers))
            .join()
            .expect("dropping does not panic");
        let statistics = pool.statistics();
        assert_eq!(statistics.in_use_bytes(), 0);
        for class in statistics.classes {
            assert_eq!(class.available as usize * class.class_bytes, POOL_BYTES);
        }
    }
}

#[test]
fn memory_that_is_no_whole_large_slot_is_used_too() {
    let total_bytes = (2 << 20) + (1 << 20) + (64 << 10) + 4096;
    let pool = BufferPool::on_heap(&PoolOptions {
        total_bytes,
        ..options()
    })
    .unwrap();
    assert_eq!(pool.capacity_bytes(), total_bytes);
    let mut buffers = Vec::new();
    for len_bytes in [2 << 20, 1 << 20, 64 << 10, 4096] {
        buffers.push(pool.allocate(len_bytes).unwrap());
        assert!(pool.allocate(len_bytes).is_none() || len_bytes == 0);
    }
    assert_eq!(pool.statistics().in_use_bytes(), total_bytes);
}

#[test]
fn buffers_outlive_their_pool() {
    let pool = heap_pool();
    let mut here = pool.allocate(4096).unwrap();
    let there = pool.allocate(1 << 20).unwrap();
    let handle = pool.clone();
    drop(pool);
    assert!(handle.allocate(4096).is_some());
    drop(handle);
    here.fill(7);
    let slice = here.freeze();
    let part = slice.slice(10..20);
    drop(slice);
    thread::spawn(move || {
        assert_eq!(&part[..], &[7; 10]);
        drop(there);
    })
    .join()
    .expect("the other thread finds its bytes");
}

#[test]
fn slots_are_counted_once_whoever_closes_the_pool_when() {
    // Home thread, other thread and the end of the pool in all orders: the memory is freed exactly once,
    // which Miri and address sanitizers see.
    for round in 0..if cfg!(miri) { 20 } else { 2000 } {
        let pool = BufferPool::on_heap(&PoolOptions {
            total_bytes: 8 * 4096,
            classes_bytes: vec![4096],
            ..PoolOptions::default()
        })
        .unwrap();
        let mut theirs: Vec<Buffer> = (0..4).map(|_| pool.allocate(4096).unwrap()).collect();
        let mut ours: Vec<Buffer> = (0..4).map(|_| pool.allocate(4096).unwrap()).collect();
        theirs
            .iter_mut()
            .chain(&mut ours)
            .for_each(|buffer| buffer[0] = round as u8);
        let other = thread::spawn(move || {
            for buffer in theirs {
                assert_eq!(buffer[0], round as u8);
            }
        });
        ours.truncate(round % 5);
        if round % 2 == 0 {
            pool.collect();
        }
        drop(pool);
        assert!(ours.iter().all(|buffer| buffer[0] == round as u8));
        if round % 3 == 0 {
            other.join().expect("the other thread finds its bytes");
            drop(ours);
        } else {
            drop(ours);
            other.join().expect("the other thread finds its bytes");
        }
    }
}

#[test]
fn many_threads_give_back_at_once() {
    let pool = heap_pool();
    let rounds = if cfg!(miri) { 3 } else { 200 };
    thread::scope(|scope| {
        let mut senders = Vec::new();
        for _ in 0..3 {
            let (send, receive) = mpsc::sync_channel::<(Buffer, u8)>(64);
            scope.spawn(move || {
                for (mut buffer, mark) in receive {
                    assert!(is_marked(&buffer, mark));
                    buffer.fill(0);
                }
            });
            senders.push(send);
        }
        for round in 0..rounds {
            for (sender, len_bytes) in senders.iter().zip([4096, 20_000, 300_000]) {
                let mut buffer = loop {
                    match pool.allocate(len_bytes) {
                        Some(buffer) => break buffer,
                        None => thread::yield_now(),
                    }
                };
                mark(&mut buffer, round as u8);
                sender
                    .send((buffer, round as u8))
                    .expect("the other thread receives");
            }
        }
    });
    assert_eq!(pool.statistics().in_use_bytes(), 0);
}

#[test]
fn lengths_at_the_bounds() {
    let pool = heap_pool();
    assert_eq!(pool.max_buffer_bytes(), 2 << 20);
    assert!(pool.allocate((2 << 20) + 1).is_none());
    assert!(pool.allocate(usize::MAX).is_none());
    let empty = pool.allocate(0).unwrap();
    assert!(empty.is_empty());
    assert_eq!(empty.reclaim().unwrap().len(), 4096);
    for class_bytes in DEFAULT_CLASSES_BYTES {
        assert_eq!(
            pool.allocate(class_bytes).unwrap().reclaim().unwrap().len(),
            class_bytes
        );
        if class_bytes < 2 << 20 {
            let next = pool.allocate(class_bytes + 1).unwrap().reclaim().unwrap();
            assert_eq!(next.len(), class_of(class_bytes + 1));
        }
    }
}

#[test]
fn zeroed_means_zeroed() {
    let pool = heap_pool();
    pool.allocate(10_000).unwrap().reclaim().unwrap().fill(0xff);
    let buffer = pool.allocate_zeroed(10_000).unwrap();
    assert!(buffer.iter().all(|&byte| byte == 0));
}

#[test]
fn a_buffer_knows_its_place() {
    let pool = heap_pool();
    let mut buffer = pool.allocate(8192).unwrap();
    let offset = pool.offset_of(&buffer).unwrap();
    assert_eq!(buffer.as_ptr().addr(), pool.base().as_ptr().addr() + offset);
    buffer.advance(100);
    assert_eq!(pool.offset_of(&buffer), Some(offset + 100));
    assert_eq!(pool.offset_of(&Buffer::from_heap(4096)), None);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let with_classes = |classes_bytes: &[usize]| {
        BufferPool::on_heap(&PoolOptions {
            classes_bytes: classes_bytes.to_vec(),
            ..options()
        })
    };
    let nine = [
        4 << 10,
        8 << 10,
        16 << 10,
        32 << 10,
        64 << 10,
        128 << 10,
        256 << 10,
        512 << 10,
        1 << 20,
    ];
    for classes_bytes in [
        &[][..],
        &[2048],
        &[4096, 4096],
        &[8192, 4096],
        &[4096, 12288],
        &[4096, 4096 * 128],
        &nine,
    ] {
        let refused = with_classes(classes_bytes);
        assert!(
            matches!(refused, Err(Error::SizeClass { .. })),
            "{classes_bytes:?}: {refused:?}"
        );
    }
    assert!(with_classes(&[4096, 4096 * 64]).is_ok());
    assert!(with_classes(&nine[..8]).is_ok());
    for total_bytes in [0, 4096, (2 << 20) - 1, usize::MAX] {
        let refused = BufferPool::on_heap(&PoolOptions {
            total_bytes,
            ..options()
        });
        assert!(
            matches!(refused, Err(Error::PoolSize { .. })),
            "{total_bytes}: {refused:?}"
        );
    }
    let mut shareable = options();
    shareable.arena.shareable = true;
    assert!(matches!(BufferPool::new(&shareable), Err(Error::PoolShareable)));
}

/// What was registered is unregistered after the last use of the memory, wherever that ends.
#[test]
fn guards_are_kept_until_the_memory_goes() {
    struct Guard(std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let dropped = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = || dropped.load(std::sync::atomic::Ordering::Relaxed);
    let options = PoolOptions {
        total_bytes: 4 << 20,
        ..PoolOptions::default()
    };
    let pool = BufferPool::on_heap(&options).expect("there is memory");
    pool.keep_while_mapped(Box::new(Guard(dropped.clone())));
    pool.keep_while_mapped(Box::new(Guard(dropped.clone())));
    let buffer = pool.allocate(4096).expect("the pool is empty");
    drop(pool);
    assert_eq!(count(), 0, "a buffer is in use");
    std::thread::spawn(move || drop(buffer)).join().expect("no panic");
    assert_eq!(count(), 2);
}
