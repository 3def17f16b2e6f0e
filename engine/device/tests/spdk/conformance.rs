//! The suite that every device passes.

use pollux_device::conformance::{self, Expectations};
use pollux_device::spdk::SpdkDevice;

use crate::common::{TestReactors, block_on, on_reactor};
use crate::support::{Ground, connect};

const FRESH: Expectations = Expectations {
    fresh: true,
    stores: true,
};

fn check(uri: &str, depth: u16) {
    let ground = Ground::with(uri);
    let mut options = ground.options(Some(1));
    options.depth = depth;
    on_reactor(move || async move {
        let device = SpdkDevice::open(options).await.expect("the target is there");
        conformance::check(device, FRESH).await;
    });
}

#[test]
fn large_blocks() {
    check("malloc:///ground?size=64MiB&block=4096", 256);
}

#[test]
fn small_blocks() {
    check("malloc:///ground?size=17MiB&block=512", 256);
}

/// Most requests of the suite wait for a slot.
#[test]
fn a_short_queue() {
    check("malloc:///ground?size=32MiB&block=4096", 3);
}

#[test]
fn several_reactors() {
    let ground = Ground::with("malloc:///ground?size=64MiB&block=512");
    let reactors = TestReactors::start(3);
    let handles = reactors.handles();
    let device = connect(&handles[0], ground.options(None));
    block_on(conformance::check_shared(device, &handles));
    reactors.run(|| async {});
}
