//! Arenas on ordinary and on huge pages, private and shared.
#![cfg(not(miri))]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::path::Path;
use std::sync::Mutex;
use std::thread;

use pollux_hugepages::{
    Arena, ArenaOptions, BufferPool, Error, PageKind, PagePreference, PoolOptions, SYSFS_ROOT, discover,
    reserve,
};
use proptest::prelude::*;

const HUGE: usize = 2 << 20;

fn ordinary() -> ArenaOptions {
    ArenaOptions {
        page: PagePreference::Ordinary,
        ..ArenaOptions::default()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|position| (position % 251) as u8 + 1).collect()
}

fn assert_zero(arena: &Arena, offset: usize, len: usize) {
    assert_eq!(arena.compare(offset, &vec![0; len]), None);
}

#[test]
fn an_arena_holds_what_was_copied_in() {
    for shareable in [false, true] {
        let arena = Arena::map(
            5 << 20,
            &ArenaOptions {
                shareable,
                ..ordinary()
            },
        )
        .unwrap();
        assert_eq!(
            (arena.len_bytes(), arena.page_kind()),
            (5 << 20, PageKind::Ordinary)
        );
        assert_eq!((arena.file().is_some(), arena.numa_node()), (shareable, None));
        assert_zero(&arena, 0, 5 << 20);
        let pattern = pattern(100_000);
        let clone = arena.clone();
        clone.copy_in(4093, &pattern);
        drop(clone);
        let mut found = vec![0; pattern.len()];
        arena.copy_out(4093, &mut found);
        assert!(found == pattern);
        assert_eq!(arena.compare(4093, &pattern), None);
        for position in [0, 4095, 4096, 70_000, 99_999] {
            found[position] ^= 1;
            assert_eq!(arena.compare(4093, &found), Some(position));
            found[position] ^= 1;
        }
        arena.fill_zero(4093, 10);
        assert_zero(&arena, 0, 4103);
        assert_eq!(arena.compare(4103, &pattern[10..]), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_arena_is_like_a_vector(
        shareable in any::<bool>(),
        steps in prop::collection::vec((0..3_u8, 0..40_000_usize, 0..20_000_usize, any::<u8>()), 1..20),
    ) {
        let arena = Arena::map(40_000, &ArenaOptions { shareable, ..ordinary() }).unwrap();
        let mut model = vec![0; arena.len_bytes()];
        for (kind, offset, len, value) in steps {
            let len = len.min(model.len() - offset);
            let part = &mut model[offset..offset + len];
            match kind {
                0 => {
                    part.fill(value);
                    arena.copy_in(offset, part);
                }
                1 => {
                    part.fill(0);
                    arena.fill_zero(offset, len);
                }
                _ => {
                    part.fill(0);
                    arena.discard(offset, len);
                }
            }
        }
        prop_assert_eq!(arena.compare(0, &model), None);
    }
}

#[test]
fn a_large_arena_is_written_around_the_caches_and_reads_the_same() {
    let arena = Arena::map(128 << 20, &ordinary()).unwrap();
    let pattern = pattern(100_001);
    for offset in [0, 1, 63, 64, 4096 + 17] {
        arena.copy_in(offset, &pattern);
        assert_eq!(arena.compare(offset, &pattern), None);
    }
}

#[test]
fn a_shareable_arena_can_be_mapped_again() {
    let arena = Arena::map(
        HUGE,
        &ArenaOptions {
            shareable: true,
            ..ordinary()
        },
    )
    .unwrap();
    arena.copy_in(1000, b"seen through the file");
    let mut file = std::fs::File::from(arena.file().unwrap().try_clone_to_owned().unwrap());
    let mut found = [0; 21];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 1000).unwrap();
    assert_eq!(&found, b"seen through the file");
    std::io::Write::write_all(&mut file, b"written by another").unwrap();
    assert_eq!(arena.compare(0, b"written by another"), None);
    assert_eq!(file.metadata().unwrap().len(), arena.len_bytes() as u64);
}

#[test]
fn threads_that_race_see_old_or_new_bytes() {
    let arena = Arena::map(1 << 20, &ordinary()).unwrap();
    thread::scope(|scope| {
        for writer in 1..=2_u8 {
            let arena = arena.clone();
            scope.spawn(move || (0..200).for_each(|_| arena.copy_in(100, &[writer; 30_000])));
        }
        let mut found = vec![0; 30_000];
        for _ in 0..200 {
            arena.copy_out(100, &mut found);
            assert!(found.iter().all(|&byte| byte <= 2));
        }
    });
    assert_zero(&arena, 0, 100);
    assert_zero(&arena, 30_100, 1000);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for bytes in [0, usize::MAX, isize::MAX as usize] {
        assert!(
            matches!(Arena::map(bytes, &ordinary()), Err(Error::ArenaSize { .. })),
            "{bytes}"
        );
    }
    let refused = Arena::map(
        1 << 50,
        &ArenaOptions {
            numa_node: None,
            populate: true,
            ..ordinary()
        },
    );
    assert!(matches!(refused, Err(Error::Map { .. })), "{refused:?}");
}

#[test]
fn a_numa_node_that_does_not_exist_is_refused() {
    let on_node = |node| {
        Arena::map(
            HUGE,
            &ArenaOptions {
                numa_node: Some(node),
                populate: true,
                ..ordinary()
            },
        )
    };
    let first = discover(Path::new(SYSFS_ROOT)).unwrap().nodes[0].id;
    assert_eq!(on_node(first).unwrap().numa_node(), Some(first));
    for node in [1023, 1024, u32::MAX] {
        let refused = on_node(node).unwrap_err();
        assert!(matches!(refused, Error::Map { numa_node, .. } if numa_node == Some(node)));
        assert!(refused.to_string().contains(&node.to_string()), "{refused}");
    }
}

#[test]
#[should_panic(expected = "outside an arena")]
fn copying_beyond_the_end_is_refused() {
    Arena::map(4096, &ordinary()).unwrap().copy_in(4090, &[0; 7]);
}

#[test]
#[should_panic(expected = "outside an arena")]
fn offsets_that_overflow_are_refused() {
    Arena::map(4096, &ordinary()).unwrap().discard(usize::MAX, 2);
}

/// Tests that count free huge pages take turns.
static HUGE_PAGES: Mutex<()> = Mutex::new(());

/// Reserves huge pages, or says why the test is skipped.
fn with_huge_pages(page: PageKind, count: u64, test: impl FnOnce()) {
    let _turn = HUGE_PAGES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let root = Path::new(SYSFS_ROOT);
    let free = || {
        let topology = discover(root).expect("sysfs is mounted");
        topology
            .huge_pages
            .iter()
            .find(|pages| pages.page_bytes == page.size_bytes() as u64)
            .cloned()
    };
    let Some(before) = free() else {
        println!("skipped: the kernel has no huge pages of {page}");
        return;
    };
    if before.available() >= count {
        return test();
    }
    let wanted = before.total + count - before.available();
    match reserve(root, page, None, wanted) {
        Ok(_) => test(),
        Err(error) => println!("skipped: {error}"),
    }
    // As it was: a part of what was asked for may have been reserved, too.
    let path = format!(
        "kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
        page.size_bytes() >> 10
    );
    let persistent = before.total - before.surplus;
    if let Err(error) = std::fs::write(root.join(path), format!("{persistent}\n")) {
        println!("the reservation stays as it is: {error}");
    }
}

#[test]
fn huge_pages_are_used_when_there_are_any() {
    with_huge_pages(PageKind::Size2MiB, 8, || {
        for shareable in [false, true] {
            let options = ArenaOptions {
                shareable,
                fall_back: false,
                ..ArenaOptions::default()
            };
            let arena = Arena::map(3 << 20, &options).unwrap();
            assert_eq!(
                (arena.page_kind(), arena.len_bytes()),
                (PageKind::Size2MiB, 4 << 20)
            );
            assert_eq!(arena.base().as_ptr().addr() % HUGE, 0);
            let pattern = pattern(4 << 20);
            arena.copy_in(0, &pattern);
            assert_eq!(arena.compare(0, &pattern), None);
            // Huge pages are kept, and read as zeros all the same.
            arena.discard(100, (2 << 20) + 100_000);
            assert_zero(&arena, 100, (2 << 20) + 100_000);
            assert_eq!(arena.compare(0, &pattern[..100]), None);
            let end = 100 + (2 << 20) + 100_000;
            assert_eq!(arena.compare(end, &pattern[end..]), None);
        }
        let pool = BufferPool::new(&PoolOptions {
            total_bytes: 4 << 20,
            arena: ArenaOptions {
                numa_node: Some(0),
                ..ArenaOptions::default()
            },
            ..PoolOptions::default()
        })
        .unwrap();
        assert_eq!(
            (pool.page_kind(), pool.numa_node()),
            (PageKind::Size2MiB, Some(0))
        );
        assert!(pool.allocate(2 << 20).unwrap().is_aligned(HUGE));
    });
}

#[test]
fn huge_pages_of_1_gib_are_used_when_there_are_any() {
    with_huge_pages(PageKind::Size1GiB, 1, || {
        let auto = Arena::map(
            1 << 30,
            &ArenaOptions {
                fall_back: false,
                ..ArenaOptions::default()
            },
        )
        .unwrap();
        assert_eq!(
            (auto.page_kind(), auto.len_bytes()),
            (PageKind::Size1GiB, 1 << 30)
        );
        drop(auto);
        let options = ArenaOptions {
            page: PagePreference::Size1GiB,
            shareable: true,
            fall_back: false,
            ..ArenaOptions::default()
        };
        let arena = Arena::map(1000, &options).unwrap();
        assert_eq!(
            (arena.page_kind(), arena.len_bytes()),
            (PageKind::Size1GiB, 1 << 30)
        );
        arena.copy_in((1 << 30) - 5, b"works");
        assert_eq!(arena.compare((1 << 30) - 5, b"works"), None);
    });
}

#[test]
fn too_few_huge_pages_are_an_error_and_not_a_signal() {
    with_huge_pages(PageKind::Size2MiB, 2, || {
        let topology = discover(Path::new(SYSFS_ROOT)).unwrap();
        let pages = topology
            .huge_pages
            .iter()
            .find(|pages| pages.page_bytes == HUGE as u64)
            .unwrap();
        // More than exist, so that no one can set enough of them free meanwhile.
        let bytes = (pages.total as usize + 64) * HUGE;
        for shareable in [false, true] {
            let options = ArenaOptions {
                page: PagePreference::Size2MiB,
                shareable,
                fall_back: false,
                ..ArenaOptions::default()
            };
            let refused = Arena::map(bytes, &options).unwrap_err();
            assert!(
                matches!(
                    refused,
                    Error::Map {
                        page: PageKind::Size2MiB,
                        ..
                    }
                ),
                "{refused}"
            );
            let arena = Arena::map(
                bytes,
                &ArenaOptions {
                    fall_back: true,
                    ..options
                },
            )
            .unwrap();
            assert_eq!(
                (arena.page_kind(), arena.len_bytes()),
                (PageKind::Ordinary, bytes)
            );
        }
    });
}

#[test]
fn small_arenas_do_not_waste_huge_pages() {
    let arena = Arena::map(5000, &ArenaOptions::default()).unwrap();
    assert_eq!((arena.page_kind(), arena.len_bytes()), (PageKind::Ordinary, 8192));
}
