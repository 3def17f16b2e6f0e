//! Where everything of the area is.

use pollux_device::Geometry;

use super::BLOCK_BYTES;
use super::codec::{Kind, MAP_BLOCK_REGIONS};

/// Slots of each structure.
const SLOTS: u64 = 2;

/// Blocks of the label, the promise and the record.
const FIXED_BLOCKS: u64 = 3 * SLOTS;

/// Blocks of 4 KiB in a region, unless somebody wants something else: 1 MiB.
pub const REGION_BLOCKS: u64 = 256;

/// Regions that a replica can have: so many bytes of memory the map takes.
pub const REGIONS_MAX: u64 = 1 << 24;

/// Why a device cannot have a reserved area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Blocks that 4 KiB are not a multiple of.
    #[error("the device has blocks of {0} bytes, and a replica needs 512 to 4096")]
    BlockSize(u32),
    /// No room for the area and one region.
    #[error("a device of {0} blocks of 4 KiB has no room for a replica")]
    TooSmall(u64),
    /// A region of a size that cannot be, or too many of them.
    #[error("regions of {region_blocks} blocks are not possible on {blocks} blocks: a power of two, larger")]
    Region {
        /// The size asked for.
        region_blocks: u64,
        /// Blocks of 4 KiB of the device.
        blocks: u64,
    },
}

/// See the module. All in blocks of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaLayout {
    total_blocks: u64,
    region_blocks: u64,
    map_blocks: u64,
}

impl AreaLayout {
    /// For a device of so many blocks, and regions of so many.
    ///
    /// # Errors
    ///
    /// [`LayoutError`].
    pub fn new(total_blocks: u64, region_blocks: u64) -> Result<Self, LayoutError> {
        let refused = LayoutError::Region {
            region_blocks,
            blocks: total_blocks,
        };
        if !region_blocks.is_power_of_two() || total_blocks.div_ceil(region_blocks) > REGIONS_MAX {
            return Err(refused);
        }
        // For the regions of the whole device, a few more than there will be.
        let map_blocks = total_blocks
            .div_ceil(region_blocks)
            .div_ceil(MAP_BLOCK_REGIONS as u64);
        let layout = Self {
            total_blocks,
            region_blocks,
            map_blocks,
        };
        if total_blocks <= layout.area_blocks() {
            return Err(LayoutError::TooSmall(total_blocks));
        }
        Ok(layout)
    }

    /// The smallest device that has room for so many blocks of data.
    ///
    /// # Errors
    ///
    /// [`LayoutError`].
    pub fn for_data(data_blocks: u64, region_blocks: u64) -> Result<Self, LayoutError> {
        let mut total_blocks = data_blocks.saturating_add(FIXED_BLOCKS + SLOTS);
        loop {
            let layout = Self::new(total_blocks, region_blocks)?;
            // A larger device may need a longer map, which may need a larger device; it settles, since a
            // block of the map is for thousands of regions.
            match data_blocks.checked_sub(layout.data_blocks()) {
                None | Some(0) => return Ok(layout),
                Some(missing) => total_blocks = total_blocks.saturating_add(missing),
            }
        }
    }

    /// Blocks of 4 KiB of a device.
    ///
    /// # Errors
    ///
    /// [`LayoutError::BlockSize`].
    pub fn blocks_of(geometry: &Geometry) -> Result<u64, LayoutError> {
        let ratio = Self::ratio_of(geometry)?;
        Ok(geometry.blocks / ratio)
    }

    /// Blocks of a device in one of 4 KiB.
    ///
    /// # Errors
    ///
    /// [`LayoutError::BlockSize`].
    pub fn ratio_of(geometry: &Geometry) -> Result<u64, LayoutError> {
        match geometry.block_bytes {
            512 | 1024 | 2048 | 4096 => Ok(BLOCK_BYTES as u64 / u64::from(geometry.block_bytes)),
            other => Err(LayoutError::BlockSize(other)),
        }
    }

    /// The block of the label on a device of so many blocks: it depends on nothing else, so that it is found.
    ///
    /// # Errors
    ///
    /// [`LayoutError::TooSmall`].
    pub fn label_block(total_blocks: u64, sequence: u64) -> Result<u64, LayoutError> {
        let block = total_blocks.checked_sub(1 + sequence % SLOTS);
        block.ok_or(LayoutError::TooSmall(total_blocks))
    }

    /// Blocks of the whole device.
    pub fn total_blocks(&self) -> u64 {
        self.total_blocks
    }

    /// Blocks of a region.
    pub fn region_blocks(&self) -> u64 {
        self.region_blocks
    }

    /// Blocks of the map, counted once.
    pub fn map_blocks(&self) -> u64 {
        self.map_blocks
    }

    /// Blocks of the area.
    pub fn area_blocks(&self) -> u64 {
        FIXED_BLOCKS + SLOTS * self.map_blocks
    }

    /// Blocks for data, from the start of the device.
    pub fn data_blocks(&self) -> u64 {
        self.total_blocks - self.area_blocks()
    }

    /// Regions of the data.
    pub fn regions(&self) -> u64 {
        self.data_blocks().div_ceil(self.region_blocks)
    }

    /// The block of a structure's slot that the write with a sequence number goes to.
    pub fn block_of(&self, kind: Kind, sequence: u64) -> u64 {
        let pair = match kind {
            Kind::Label => 0,
            Kind::Promise => 1,
            Kind::Record => 2,
            Kind::Map(index) => 3 + index.min(self.map_blocks.saturating_sub(1)),
        };
        self.total_blocks - 1 - (SLOTS * pair + sequence % SLOTS)
    }

    /// The blocks of the promise, first and count: nobody but the host of a replica writes them.
    pub fn promise_blocks(&self) -> (u64, u64) {
        (self.total_blocks - 2 * SLOTS, SLOTS)
    }
}
