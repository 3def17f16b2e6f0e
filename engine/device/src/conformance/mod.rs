//! What every device must do, as one suite to be run against each: the feature `conformance`, for tests.
//!
//! ```text
//! let expectations = Expectations { fresh: true, ..Expectations::default() };
//! conformance::check(device.clone(), expectations).await;              // in a task of a reactor
//! conformance::check_shared(device, &reactors.handles()).await;        // several reactors at once
//! ```
//!
//! The suite writes over the first [`WINDOW_BYTES`] of the device, and its last blocks. It panics at the
//! first thing that is wrong, with the name of the device and of the check. Random checks print the seed they
//! began with, and [`check_with_seed`] repeats them.

mod allocation;
mod concurrent;
mod history;
mod limits;
mod round_trips;
mod support;
mod zeros;

use std::rc::Rc;
use std::sync::Arc;

use pollux_reactor::ReactorHandle;

use crate::{BlockDevice, Device, Geometry};
use support::Randomness;

/// The part of the device that the suite writes over, in bytes, from the first block on. A device should be
/// at least as large, and larger is better.
pub const WINDOW_BYTES: u64 = 16 << 20;

/// The least a device must have for the suite, in bytes.
pub const DEVICE_BYTES_MIN: u64 = 4 << 20;

/// The largest transfer that is tried, in bytes.
const TRANSFER_BYTES: u64 = 3 << 20;

/// What to expect of a device beyond its geometry.
#[derive(Debug, Clone, Copy)]
pub struct Expectations {
    /// It keeps what is written. False for `null`, which reads zeros for ever.
    pub stores: bool,
    /// Nothing was ever written to it, by this suite or otherwise.
    pub fresh: bool,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            stores: true,
            fresh: false,
        }
    }
}

/// Runs the suite on the calling reactor with a seed from its driver.
///
/// # Panics
///
/// When the device does something wrong.
pub async fn check(device: Arc<dyn Device>, expectations: Expectations) {
    check_with_seed(device, expectations, pollux_reactor::random_u64()).await;
}

/// Runs the suite on the calling reactor with this seed.
///
/// # Panics
///
/// When the device does something wrong.
pub async fn check_with_seed(device: Arc<dyn Device>, expectations: Expectations, seed: u64) {
    let queue = attach(&device).await;
    let suite = Suite {
        name: format!("{} (seed {seed:#x})", device.name()),
        geometry: device.geometry(),
        device,
        queue,
        random: Randomness::new(seed),
    };
    suite.check_geometry();
    if expectations.fresh && !suite.geometry.read_only {
        suite.never_written_blocks_are_zeros().await;
    }
    suite.errors_at_the_limits().await;
    suite.requests_of_no_blocks().await;
    suite.flush_on_its_own().await;
    suite.allocation_at_the_limits().await;
    if suite.geometry.read_only {
        suite.nothing_can_be_written().await;
        return;
    }
    if !expectations.stores {
        suite.keeps_nothing().await;
        return;
    }
    suite.sizes_and_positions().await;
    suite.gathers_of_odd_pieces().await;
    suite.end_of_the_device().await;
    suite.force_unit_access().await;
    suite.compares().await;
    suite.zeros_and_neighbours().await;
    suite.large_zeros().await;
    suite.random_histories().await;
    suite.allocation_follows_a_history().await;
    suite.depth().await;
    suite.one_block_by_many_writers().await;
    suite.dropped_completions().await;
    suite.check_geometry();
}

/// Runs checks on all these reactors at once: what one wrote all others read, and no block is ever a mix.
/// Await it from any executor that is not one of these reactors.
///
/// # Panics
///
/// When the device does something wrong, or a reactor stops.
pub async fn check_shared(device: Arc<dyn Device>, reactors: &[ReactorHandle]) {
    concurrent::check_shared(device, reactors).await;
}

async fn attach(device: &Arc<dyn Device>) -> Rc<dyn BlockDevice> {
    let attached = device.clone().attach().await;
    attached
        .map_err(|error| format!("{}: {error}", device.name()))
        .expect("a device that can be attached")
}

/// A device under test, on one reactor.
struct Suite {
    /// For messages: the device and the seed.
    name: String,
    device: Arc<dyn Device>,
    queue: Rc<dyn BlockDevice>,
    geometry: Geometry,
    random: Randomness,
}

impl Suite {
    /// Blocks of the part that is written over.
    fn window_blocks(&self) -> u64 {
        self.geometry
            .blocks
            .min(WINDOW_BYTES / u64::from(self.geometry.block_bytes))
    }

    /// The largest transfer that is tried, in blocks.
    fn transfer_blocks(&self) -> u64 {
        let blocks = TRANSFER_BYTES / u64::from(self.geometry.block_bytes);
        blocks
            .min(u64::from(self.geometry.transfer_blocks_max))
            .min(self.window_blocks() / 2)
    }

    fn bytes(&self, blocks: u64) -> usize {
        blocks as usize * self.geometry.block_bytes as usize
    }
}
