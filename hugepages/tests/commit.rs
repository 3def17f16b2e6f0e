//! When ordinary memory is committed. This test counts the pages of its process, so it has one to itself.
#![cfg(not(miri))]

use pollux_hugepages::{Arena, ArenaOptions, PageKind, PagePreference};

/// Bytes of physical memory behind this process's private and shared mappings.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
    let pages = status
        .split_whitespace()
        .nth(1)
        .expect("the second field is the resident set");
    pages.parse::<usize>().expect("a number") * PageKind::Ordinary.size_bytes()
}

#[test]
fn ordinary_memory_is_committed_when_touched_and_given_back_when_discarded() {
    let len = 64 << 20;
    let ordinary = || ArenaOptions {
        page: PagePreference::Ordinary,
        ..ArenaOptions::default()
    };
    let before = resident_bytes();
    for shareable in [false, true] {
        let arena = Arena::map(
            len,
            &ArenaOptions {
                shareable,
                ..ordinary()
            },
        )
        .unwrap();
        assert!(
            resident_bytes() < before + len / 2,
            "pages are committed before they are touched"
        );
        arena.copy_in(0, &vec![1; len]);
        assert!(resident_bytes() > before + len / 2);
        arena.discard(0, len);
        assert!(resident_bytes() < before + len / 2, "discarded pages are kept");
        drop(arena);
    }
    let options = ArenaOptions {
        populate: true,
        ..ordinary()
    };
    let arena = Arena::map(len, &options).unwrap();
    assert!(resident_bytes() > before + len / 2);
    drop(arena);
    assert!(resident_bytes() < before + len / 2, "the arena is not unmapped");
}
