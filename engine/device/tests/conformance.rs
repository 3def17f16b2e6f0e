//! The suite that every device passes, for the devices of this crate.

mod common;

use common::{LoopDevice, TestReactors, block_on, on_reactor, open};
use pollux_device::MeteredDevice;
use pollux_device::conformance::{self, Expectations};

const FRESH: Expectations = Expectations {
    fresh: true,
    stores: true,
};

fn check(uri: &str, expectations: Expectations) {
    let uri = uri.to_owned();
    on_reactor(move || async move {
        let device = open(&uri).await.expect(&uri);
        conformance::check(device, expectations).await;
    });
}

fn check_shared(uri: &str) {
    let reactors = TestReactors::start(3);
    let handles = reactors.handles();
    let uri = uri.to_owned();
    let device = block_on(handles[0].call(move || async move { open(&uri).await.expect(&uri) }));
    block_on(conformance::check_shared(
        device.expect("the reactor runs"),
        &handles,
    ));
    reactors.run(|| async {});
}

#[test]
fn null() {
    let expectations = Expectations {
        stores: false,
        fresh: true,
    };
    check("null:///nothing?size=1TiB", expectations);
    check("null:///nothing?size=16MiB&block=512", expectations);
}

#[test]
fn malloc() {
    check("malloc:///memory?size=64MiB&block=4096", FRESH);
    check("malloc:///memory?size=17MiB&block=512", FRESH);
}

#[test]
fn metered() {
    on_reactor(|| async {
        let device = open("malloc:///memory?size=32MiB").await.expect("memory");
        conformance::check(MeteredDevice::new(device), FRESH).await;
    });
}

#[test]
fn malloc_shared() {
    check_shared("malloc:///memory?size=64MiB&block=512");
}

#[test]
fn faulty_without_faults() {
    check("faulty:///malloc:///memory?inner.size=32MiB", FRESH);
    check_shared("faulty:///malloc:///memory?inner.size=32MiB&seed=1");
}

/// Delays change the order of things, and nothing else.
#[test]
fn faulty_with_delays() {
    check(
        "faulty:///malloc:///memory?inner.size=32MiB&inner.block=512&any.delay=0us..20us;probability=0.2&seed=3",
        FRESH,
    );
}

/// A place on the disk.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A place in memory if there is one, which is a file system of another kind, and quick.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| on_disk())
}

fn check_file(directory: &tempfile::TempDir, parameters: &str) {
    let path = directory.path().join("disk");
    check(
        &format!("uring://{}?size=32MiB&{parameters}", path.display()),
        FRESH,
    );
    let read_only = Expectations {
        fresh: false,
        ..FRESH
    };
    check(
        &format!("uring://{}?{parameters}&readonly=true", path.display()),
        read_only,
    );
}

#[test]
fn uring_direct() {
    check_file(&on_disk(), "block=4096");
    check_file(&in_memory(), "block=512");
}

#[test]
fn uring_buffered() {
    check_file(&on_disk(), "direct=false&block=512");
    check_file(&in_memory(), "direct=false&block=4096");
}

#[test]
fn uring_shared() {
    for direct in ["", "&direct=false"] {
        let directory = on_disk();
        let path = directory.path().join("disk");
        check_shared(&format!("uring://{}?size=32MiB{direct}", path.display()));
    }
}

#[test]
fn uring_block_device() {
    let directory = in_memory();
    for sector_bytes in [512, 4096] {
        let Some(device) = LoopDevice::attach(&directory.path().join("disk"), sector_bytes) else {
            return;
        };
        let path = device.path();
        check(&format!("uring://{path}"), FRESH);
        check(&format!("uring://{path}?block=4096"), Expectations::default());
        check(&format!("uring://{path}?direct=false"), Expectations::default());
        check_shared(&format!("uring://{path}"));
    }
}

/// The suite finds what it is there to find.
#[test]
fn the_suite_finds_faults() {
    for fault in [
        "read.flip=1;nth=100",
        "write.flip=1;nth=60",
        "write.lost=true;nth=40",
        "write.torn=true;nth=30",
        "deallocate.lost=true;nth=9",
        "write-zeroes.lost=true;nth=9",
        "compare.error=compare-failed;nth=3",
        "flush.error=internal;nth=2",
        "any.error=media-read;nth=500",
    ] {
        let found = std::panic::catch_unwind(|| {
            let uri = format!("faulty:///malloc:///memory?inner.size=32MiB&{fault}&seed=1");
            on_reactor(move || async move {
                let device = open(&uri).await.expect("memory");
                conformance::check_with_seed(device, FRESH, 1).await;
            });
        });
        assert!(found.is_err(), "{fault} was not found");
    }
}
