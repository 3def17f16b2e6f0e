//! Going over what nothing is stored of in long strides: most of a thin volume is that.
//!
//! Whether a whole stride is a hole costs one question; where it is not, the regions in it are looked at one
//! by one as ever. So strides begin with one region, become longer while they meet holes, and begin anew with
//! the first data: what is full costs one question more for each region.

use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use pollux_device::{BlockDevice, IoError, Request, ZeroOptions};
use pollux_reactor::{Instant, timeout};

use super::Core;
use super::connection::clock;
use super::resync::Interrupted;
use crate::locks::Mode;
use crate::membership::{SlotNumber, SlotSet};

/// The longest stride: hosts that write there wait meanwhile, and a replica may have to give back as much.
const STRIDE_BYTES_MAX: u64 = 64 << 20;

/// For how long a replica that did not answer is not asked again.
const MUTE_TIME: Duration = Duration::from_secs(60);

/// Zeros that take no space.
pub(super) const ZEROS: ZeroOptions = ZeroOptions {
    force_unit_access: false,
    may_deallocate: true,
};

/// How far to look at a time, in regions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stride {
    regions: u64,
    max: u64,
}

impl Stride {
    pub(super) fn new(region_bytes: u64) -> Self {
        Self {
            regions: 1,
            max: (STRIDE_BYTES_MAX / region_bytes.max(1)).max(1),
        }
    }

    /// How many regions to ask for.
    pub(super) fn regions(self) -> u64 {
        self.regions
    }

    /// All of them were a hole, or not.
    pub(super) fn met(&mut self, is_hole: bool) {
        self.regions = match is_hole {
            true => (self.regions * 2).min(self.max),
            false => 1,
        };
    }
}

/// Replicas that did not answer when they were asked for something, and are not asked again for a while: each
/// question costs the time that an answer is waited for, and hosts may wait as well.
#[derive(Debug, Default)]
pub(super) struct Mutes {
    slots: Cell<SlotSet>,
    until: Cell<Option<Instant>>,
}

impl Mutes {
    pub(super) fn slots(&self) -> SlotSet {
        self.slots.get()
    }

    pub(super) fn insert(&self, slot: SlotNumber) {
        let mut slots = self.slots.get();
        slots.insert(slot);
        self.slots.set(slots);
        self.until.set(Some(clock() + MUTE_TIME));
    }

    /// All may be asked again from now on, if it is time. Not called while blocks are locked.
    pub(super) fn ask_again(&self) {
        if self.until.get().is_some_and(|until| clock() >= until) {
            self.slots.set(SlotSet::EMPTY);
            self.until.set(None);
        }
    }
}

impl Core {
    pub(super) fn stride(&self) -> Stride {
        Stride::new(self.bytes_of_regions(1))
    }

    /// The blocks of some regions that the volume has. While it grows the map has regions that hosts do not
    /// see yet: these have none.
    pub(super) fn blocks_of(&self, regions: &Range<u64>) -> Range<u64> {
        let blocks = self.geometry.get().blocks;
        let start = regions.start.saturating_mul(self.region_blocks).min(blocks);
        start..regions.end.saturating_mul(self.region_blocks).min(blocks)
    }

    /// Whether some regions look like a hole. Nothing is locked: they may be something else by the time this
    /// is known.
    pub(super) async fn may_be_hole(&self, regions: &Range<u64>) -> bool {
        let blocks = self.blocks_of(regions);
        self.mutes.ask_again();
        self.is_hole(blocks.start, blocks.end - blocks.start).await
    }

    /// Makes regions that are a hole one of the copy too, which takes their writes already; false, and
    /// nothing done, if they are none.
    pub(super) async fn copy_hole(
        &self,
        slot: SlotNumber,
        regions: &Range<u64>,
    ) -> Result<bool, Interrupted> {
        let blocks = self.blocks_of(regions);
        let count = blocks.end - blocks.start;
        let _lock = self.locks.lock(blocks.clone(), Mode::Exclusive).await;
        self.check_syncing(slot)?;
        if !self.is_hole(blocks.start, count).await {
            return Ok(false);
        }
        self.clear(slot, blocks.start, count).await?;
        Ok(true)
    }

    /// Whether blocks hold nothing on any replica, while nobody changes them.
    pub(super) async fn is_settled_hole(&self, block: u64, blocks: u64) -> Result<bool, IoError> {
        self.settled(block, blocks).await?;
        self.mutes.ask_again();
        let _lock = self.locks.lock(block..block + blocks, Mode::Exclusive).await;
        Ok(self.is_hole(block, blocks).await)
    }
}

/// Makes blocks a hole.
pub(super) fn hole(block: u64, blocks: u64) -> Request {
    Request::WriteZeroes {
        block,
        blocks,
        options: ZEROS,
    }
}

/// Whether a device tells that nothing is stored in blocks, so that they are zeros. `None` without an answer
/// in time.
pub(super) async fn tells_hole(
    device: &dyn BlockDevice,
    block: u64,
    blocks: u64,
    wait_max: Duration,
) -> Option<bool> {
    let told = timeout(wait_max, device.allocation(block, blocks, 1))
        .await
        .ok()?;
    let first = told.ok().and_then(|runs| runs.first().copied());
    Some(first.is_some_and(|run| !run.allocated && run.blocks >= blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_grow_over_holes_and_begin_anew_with_data() {
        let mut stride = Stride::new(1 << 20);
        let mut seen = Vec::new();
        for is_hole in [true, true, true, false, true] {
            seen.push(stride.regions());
            stride.met(is_hole);
        }
        assert_eq!(seen, [1, 2, 4, 8, 1]);
        for _ in 0..20 {
            stride.met(true);
        }
        assert_eq!(stride.regions(), 64);
        // Regions longer than a stride may be are taken one by one.
        let mut long = Stride::new(1 << 30);
        long.met(true);
        assert_eq!(long.regions(), 1);
    }
}
