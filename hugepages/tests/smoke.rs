//! The whole crate once around: arenas, pools, buffers, slices.

use std::thread;

use pollux_hugepages::{Arena, ArenaOptions, Buffer, BufferPool, PagePreference, PoolOptions, Slice};

fn pool() -> BufferPool {
    let options = PoolOptions {
        total_bytes: 4 << 20,
        ..PoolOptions::default()
    };
    BufferPool::new(&options).expect("4 MiB can be mapped")
}

#[test]
fn an_arena_holds_what_was_copied_in() {
    let options = ArenaOptions {
        page: PagePreference::Ordinary,
        ..ArenaOptions::default()
    };
    let arena = Arena::map(5 << 20, &options).unwrap();
    let pattern: Vec<u8> = (0..100_000_u32).map(|position| (position % 251) as u8).collect();
    arena.copy_in(4093, &pattern);
    let mut found = vec![0; pattern.len()];
    arena.copy_out(4093, &mut found);
    assert!(found == pattern);
    assert_eq!(arena.compare(4093, &pattern), None);
    found[70_000] ^= 1;
    assert_eq!(arena.compare(4093, &found), Some(70_000));
    arena.discard(5000, 50_000);
    assert_eq!(arena.compare(5000, &vec![0; 50_000]), None);
    assert_eq!(arena.compare(4093, &pattern[..5000 - 4093]), None);
    assert_eq!(arena.compare(55_000, &pattern[55_000 - 4093..]), None);
}

#[test]
fn a_pool_gives_all_its_memory_in_any_mix_and_takes_it_back() {
    let pool = pool();
    let capacity_bytes = pool.capacity_bytes();
    for len_bytes in [4096, 1 << 20, 16 << 10, 2 << 20, 100, 64 << 10, 4096] {
        let slot_bytes = len_bytes.max(4096);
        let mut buffers = Vec::new();
        while let Some(mut buffer) = pool.allocate(len_bytes) {
            assert_eq!(buffer.len(), len_bytes);
            assert!(buffer.is_aligned(4096));
            buffer.fill(buffers.len() as u8);
            buffers.push(buffer);
        }
        assert_eq!(buffers.len(), capacity_bytes / slot_bytes);
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == index as u8));
        }
        let statistics = pool.statistics();
        assert_eq!(statistics.in_use_bytes(), capacity_bytes);
        assert!(statistics.classes.iter().all(|class| class.available == 0));
        thread::spawn(|| drop(buffers)).join().unwrap();
        assert_eq!(pool.statistics().in_use_bytes(), 0);
    }
}

#[test]
fn buffers_outlive_their_pool() {
    let pool = pool();
    let mut first = pool.allocate(4096).unwrap();
    let second = pool.allocate(1 << 20).unwrap();
    drop(pool);
    first.fill(7);
    let slice = first.freeze();
    let part = slice.slice(10..20);
    drop(slice);
    thread::spawn(move || {
        assert_eq!(&*part, &[7; 10]);
        drop(second);
    })
    .join()
    .unwrap();
}

#[test]
fn buffers_split_and_join() {
    let mut buffer = Buffer::from_heap(100);
    buffer
        .iter_mut()
        .enumerate()
        .for_each(|(position, byte)| *byte = position as u8);
    let mut head = buffer.split_to(40);
    assert_eq!((head.len(), buffer.len(), buffer[0]), (40, 60, 40));
    let tail = buffer.split_off(50);
    let tail = head.try_unsplit(tail).unwrap_err();
    head.try_unsplit(buffer).unwrap();
    head.try_unsplit(tail).unwrap();
    assert_eq!(head.len(), 100);
    head.advance(99);
    let whole = head.reclaim().unwrap();
    assert_eq!((whole.len(), whole[57]), (4096, 57));
    let slice = whole.freeze();
    let other = slice.clone();
    let slice = slice.try_into_buffer().unwrap_err();
    drop(other);
    assert_eq!(slice.try_into_buffer().unwrap().len(), 4096);
    assert!(Slice::zeroes(3 << 20).iter().all(|&byte| byte == 0));
    assert!(Slice::from_static(b"abc").try_into_buffer().is_err());
}
