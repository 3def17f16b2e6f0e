//! No heap allocation per request once everything is warm.

mod common;
#[path = "common/counting.rs"]
mod counting;

use common::{on_reactor, open};
use counting::{DEPTH, ROUNDS, allocations, allocations_when_warm};
use pollux_device::Device;

fn check(uri: &str) {
    let uri = uri.to_owned();
    on_reactor(move || async move {
        let device = open(&uri).await.expect(&uri);
        let queue = device.attach().await.expect(&uri);
        let count = allocations_when_warm(&queue).await;
        assert_eq!(count, 0, "{uri}: allocations in {} requests", ROUNDS * DEPTH);
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
fn metered() {
    on_reactor(|| async {
        let device = open("malloc:///memory?size=64MiB").await.expect("memory");
        let metered = pollux_device::MeteredDevice::new(device);
        let queue = metered.clone().attach().await.expect("memory attaches");
        let count = allocations_when_warm(&queue).await;
        assert_eq!(count, 0, "allocations in {} requests", ROUNDS * DEPTH);
        let measured = metered.meter().read();
        let done: u64 = measured.operations.iter().map(|counts| counts.done).sum();
        assert!(done >= ROUNDS * DEPTH, "{done}");
    });
}

#[test]
fn the_counter_counts() {
    on_reactor(|| async {
        let before = allocations();
        drop(std::hint::black_box(Box::new(7)));
        assert_eq!(allocations() - before, 1);
    });
}
