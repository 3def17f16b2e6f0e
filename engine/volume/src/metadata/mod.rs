//! The reserved area at the start of a replica's device, before the data.
//!
//! In blocks of 4 KiB; each structure has two slots:
//!
//! | block | structure | written by |
//! | --- | --- | --- |
//! | 0, 1 | [`Label`](codec::Label): which volume, which replica, sizes | the host of the replica |
//! | 2, 3 | promise: the newest epoch that was promised | the host of the replica |
//! | 4, 5 | record: a copy of the [`Membership`](crate::membership::Membership) | the target |
//! | 6, 7, ... | region map: a byte for each region, 4028 of them a block | the target |
//!
//! The map has room for more regions than there are, so that nothing has to move when the device becomes
//! larger: the new blocks of the map are made, and then the label says how much there is.
//!
//! Invariants:
//! - Every block of it names volume, replica and the number of the write that it is of (its sequence), and
//!   has a CRC-32C at its end. A block of another volume or replica, or at another place, does not count.
//! - The write with sequence n goes to slot n mod 2. So the slot with the newest good content is never
//!   written, and a power cut leaves the old or the new content.
//! - Every write is durable when it completes.

mod area;
pub mod codec;
mod field;
mod layout;
#[cfg(test)]
mod tests;

use pollux_device::IoError;

pub use area::{Area, FormatOptions};
pub use layout::{AreaLayout, LayoutError, REGION_BLOCKS};

/// Bytes of a block of the area.
pub const BLOCK_BYTES: usize = 4096;

/// A block of the area.
pub type Block = [u8; BLOCK_BYTES];

/// The intent bit of a region: its content may differ between the replicas in sync.
pub const INTENT: u8 = 1;

/// The bit which says that the replica of a slot missed something of a region.
pub fn missed_bit(slot: crate::membership::SlotNumber) -> u8 {
    2 << slot.index()
}

/// Why the area of a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AreaError {
    /// The device failed.
    #[error("the reserved area could not be read or written: {0}")]
    Io(#[from] IoError),
    /// There is no good copy of a structure.
    #[error("there is no good copy of the {0}: format the device, and copy the replica anew")]
    Missing(&'static str),
    /// What is there does not belong here, or is of a version that is not known.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// The device has no room for it, or an unusable block size.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}
