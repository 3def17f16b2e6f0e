//! Without huge pages there is one clear warning in the life of a process; so this test has one to itself.
#![cfg(not(miri))]

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use pollux_hugepages::{Arena, ArenaOptions, BufferPool, Error, PageKind, PagePreference, PoolOptions};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Keeps the warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().expect("nothing panics here").push(text.0);
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

#[test]
fn without_huge_pages_there_is_ordinary_memory_and_one_warning() {
    let warnings = Warnings::default();
    tracing::subscriber::set_global_default(warnings.clone()).expect("this is the only test of the process");
    let count = || warnings.0.lock().expect("nothing panics here").len();

    // Nothing to warn about: ordinary memory is what was asked for, or right for so little.
    let ordinary = ArenaOptions {
        page: PagePreference::Ordinary,
        ..ArenaOptions::default()
    };
    Arena::map(8 << 20, &ordinary).expect("8 MiB can be mapped");
    Arena::map(8 << 10, &ArenaOptions::default()).expect("8 KiB can be mapped");
    assert_eq!(count(), 0);

    // More pages of 1 GiB than any machine has.
    let bytes = 16 << 40;
    let impossible = ArenaOptions {
        page: PagePreference::Size1GiB,
        ..ArenaOptions::default()
    };
    let refused = Arena::map(
        bytes,
        &ArenaOptions {
            fall_back: false,
            ..impossible.clone()
        },
    );
    assert!(
        matches!(
            refused,
            Err(Error::Map {
                page: PageKind::Size1GiB,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(count(), 0, "an error is no warning");

    for _ in 0..3 {
        let arena = Arena::map(bytes, &impossible).expect("address space can be had");
        assert_eq!(
            (arena.page_kind(), arena.len_bytes()),
            (PageKind::Ordinary, bytes)
        );
        arena.copy_in(bytes - 5, b"works");
        assert_eq!(arena.compare(bytes - 5, b"works"), None);
    }
    let options = PoolOptions {
        total_bytes: 4 << 20,
        arena: ArenaOptions {
            numa_node: None,
            ..impossible
        },
        ..PoolOptions::default()
    };
    assert!(
        BufferPool::new(&options)
            .expect("ordinary memory will do")
            .allocate(4096)
            .is_some()
    );
    let warnings = warnings.0.lock().expect("nothing panics here");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("sysctl -w vm.nr_hugepages"), "{warnings:?}");
}
