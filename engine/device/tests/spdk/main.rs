//! Drives by SPDK: the whole device over SPDK's TCP transport, with Pollux's own target at the other end, as
//! there is no drive where tests run. What differs for a drive on PCI is memory, and how it goes and comes
//! back: the guest lab has one.
//!
//! Needs the feature `spdk`; without it these tests say that they are not run.

#[cfg(feature = "spdk")]
mod allocations;
#[cfg(feature = "spdk")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "spdk")]
mod conformance;
#[cfg(feature = "spdk")]
#[path = "../common/counting.rs"]
mod counting;
#[cfg(feature = "spdk")]
mod durability;
#[cfg(feature = "spdk")]
mod events;
#[cfg(feature = "spdk")]
mod loss;
#[cfg(feature = "spdk")]
mod support;

#[cfg(not(feature = "spdk"))]
#[test]
fn skipped_without_the_feature() {
    use std::io::Write;
    // Tests say what they did not do, and that is no failure.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: the tests of drives by SPDK need --features spdk, and an installed SPDK"
    );
}
