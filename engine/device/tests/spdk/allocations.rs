//! No heap allocation per request once everything is warm, but for what SPDK's own C code may do.

use pollux_device::Device;
use pollux_device::spdk::SpdkDevice;

use crate::common::on_reactor;
use crate::counting::{DEPTH, ROUNDS, allocations_when_warm};
use crate::support::Ground;

#[test]
fn requests_cost_none() {
    let ground = Ground::with("malloc:///ground?size=64MiB");
    let options = ground.options(None);
    on_reactor(move || async move {
        let device = SpdkDevice::open(options).await.expect("the target is there");
        let queue = device.attach().await.expect("attached");
        let count = allocations_when_warm(&queue).await;
        assert_eq!(count, 0, "allocations in {} requests", ROUNDS * DEPTH);
    });
}
