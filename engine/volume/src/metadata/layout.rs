//! Where everything of the area is.

use pollux_device::Geometry;

use super::BLOCK_BYTES;
use super::codec::{Kind, Label, MAP_BLOCK_REGIONS};

/// Slots of each structure.
const SLOTS: u64 = 2;

/// Blocks of the label, the promise and the record.
const FIXED_BLOCKS: u64 = 3 * SLOTS;

/// Data begins at a multiple of this: an extent of a pool.
const DATA_ALIGN_BLOCKS: u64 = 16;

/// So many times its size a device may become without being formatted anew.
const GROWTH: u64 = 16;

/// Blocks of 4 KiB in a region, unless somebody wants something else: 1 MiB.
pub const REGION_BLOCKS: u64 = 256;

/// Regions that a replica can have: 512 TiB of 1 MiB. The map takes two bytes of memory for each that there
/// is.
pub const REGIONS_MAX: u64 = 1 << 29;

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
    /// The region map has no room for what the device has become.
    #[error(
        "{blocks} blocks of 4 KiB are more than the region map has room for: copy the replica to a new one"
    )]
    Growth {
        /// Blocks of 4 KiB of data.
        blocks: u64,
    },
}

/// See the module. All in blocks of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaLayout {
    data_blocks: u64,
    region_blocks: u64,
    map_blocks: u64,
}

impl AreaLayout {
    /// For a device of so many blocks that is made a replica, and regions of so many.
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
        let regions_max = total_blocks.div_ceil(region_blocks).saturating_mul(GROWTH);
        let map_blocks = regions_max.min(REGIONS_MAX).div_ceil(MAP_BLOCK_REGIONS as u64);
        let layout = Self {
            data_blocks: 0,
            region_blocks,
            map_blocks,
        };
        match total_blocks.checked_sub(layout.area_blocks()) {
            None | Some(0) => Err(LayoutError::TooSmall(total_blocks)),
            Some(data_blocks) => Ok(Self {
                data_blocks,
                ..layout
            }),
        }
    }

    /// That of a replica with this label, if it can be.
    pub fn of(label: &Label) -> Option<Self> {
        Self::of_label(label.data_blocks, label.region_blocks, label.map_blocks)
    }

    /// What a label says, if it can be.
    pub(super) fn of_label(data_blocks: u64, region_blocks: u64, map_blocks: u64) -> Option<Self> {
        let layout = Self {
            data_blocks,
            region_blocks,
            map_blocks,
        };
        let is_good = region_blocks.is_power_of_two()
            && (1..=REGIONS_MAX).contains(&map_blocks)
            && data_blocks > 0
            && data_blocks.div_ceil(region_blocks) <= layout.regions_max();
        is_good.then_some(layout)
    }

    /// The same with so much data.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Growth`].
    pub fn with_data(self, data_blocks: u64) -> Result<Self, LayoutError> {
        let grown = Self::of_label(data_blocks, self.region_blocks, self.map_blocks);
        grown.ok_or(LayoutError::Growth { blocks: data_blocks })
    }

    /// The smallest device that has room for so many blocks of data.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Region`].
    pub fn for_data(data_blocks: u64, region_blocks: u64) -> Result<Self, LayoutError> {
        let data_blocks = data_blocks.max(1);
        let mut total_blocks = data_blocks;
        loop {
            let (layout, found) = match Self::new(total_blocks, region_blocks) {
                Ok(layout) => (Some(layout), layout.data_blocks()),
                Err(LayoutError::TooSmall(_)) => (None, 0),
                Err(error) => return Err(error),
            };
            // A larger device may need a longer map, which may need a larger device; it settles, since a
            // block of the map is for thousands of regions.
            match layout.filter(|_| found >= data_blocks) {
                Some(layout) => return Ok(layout),
                None => total_blocks = total_blocks.saturating_add(data_blocks - found),
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

    /// The block of the label: it depends on nothing, so that it is found.
    pub(super) fn label_block(sequence: u64) -> u64 {
        sequence % SLOTS
    }

    /// Blocks of a region.
    pub fn region_blocks(&self) -> u64 {
        self.region_blocks
    }

    /// Blocks that the map has room for, counted once.
    pub fn map_blocks(&self) -> u64 {
        self.map_blocks
    }

    /// Blocks of the map that are used, counted once.
    pub fn used_map_blocks(&self) -> u64 {
        self.regions().div_ceil(MAP_BLOCK_REGIONS as u64)
    }

    /// Blocks of the area: data comes right behind.
    pub fn area_blocks(&self) -> u64 {
        (FIXED_BLOCKS + SLOTS * self.map_blocks).next_multiple_of(DATA_ALIGN_BLOCKS)
    }

    /// Blocks for data.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Blocks that a device needs for all of it.
    pub fn total_blocks(&self) -> u64 {
        self.area_blocks().saturating_add(self.data_blocks)
    }

    /// Regions of the data.
    pub fn regions(&self) -> u64 {
        self.data_blocks.div_ceil(self.region_blocks)
    }

    /// Regions that the map has room for.
    pub fn regions_max(&self) -> u64 {
        self.map_blocks
            .saturating_mul(MAP_BLOCK_REGIONS as u64)
            .min(REGIONS_MAX)
    }

    /// The block of a structure's slot that the write with a sequence number goes to.
    pub fn block_of(&self, kind: Kind, sequence: u64) -> u64 {
        let pair = match kind {
            Kind::Label => return Self::label_block(sequence),
            Kind::Promise => 1,
            Kind::Record => 2,
            Kind::Map(index) => 3 + index.min(self.map_blocks.saturating_sub(1)),
        };
        SLOTS * pair + sequence % SLOTS
    }

    /// The blocks that nobody but the host of a replica writes, first and count: label and promise.
    pub fn host_blocks(&self) -> (u64, u64) {
        (0, 2 * SLOTS)
    }
}
