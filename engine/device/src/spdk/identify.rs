//! What the pages that identify a controller and a namespace tell about it.
//!
//! Fields used (NVMe Base, Identify Controller; NVM Command Set, Identify Namespace), by their bytes, in
//! little endian:
//!
//! | controller | bytes | namespace | bytes |
//! | --- | --- | --- | --- |
//! | Serial Number (SN) | 4..24 | Namespace Features (NSFEAT) | 24 |
//! | Model Number (MN) | 24..64 | Deallocate Logical Block Features (DLFEAT) | 33 |
//! | Firmware Revision (FR) | 64..72 | Atomic Write Unit Power Fail (NAWUPF) | 36..38 |
//! | Volatile Write Cache (VWC) | 525 | Atomic Boundary Size Power Fail (NABSPF) | 44..46 |
//! | Atomic Write Unit Power Fail (AWUPF) | 528..530 | Optimal I/O Boundary (NOIOB) | 46..48 |
//! | | | Preferred Write Granularity (NPWG) | 64..66 |
//! | | | Namespace Attributes (NSATTR) | 99 |
//! | | | NGUID | 104..120 |
//! | | | EUI64 | 120..128 |

use super::error::SpdkError;
use super::raw::controller::NamespaceFacts;
use crate::Health;
use crate::geometry::Geometry;

/// The largest transfer, in bytes, whatever the drive can do: one buffer of the reactors' largest class, so
/// that any request can be copied to memory that the drive reaches.
pub(super) const TRANSFER_BYTES_MAX: u32 = 2 << 20;

/// The most blocks that one Write Zeroes command has (NVM Command Set, Write Zeroes: NLB, 0's based).
pub(super) const ZEROES_BLOCKS_MAX: u32 = 1 << 16;

/// NSFEAT: the atomic write units of the namespace count, and not those of the controller.
const FEATURE_ATOMIC_UNITS: u8 = 1 << 1;
/// NSFEAT: the preferred sizes of writes are told.
const FEATURE_OPTIMAL_WRITES: u8 = 1 << 4;
/// DLFEAT: Write Zeroes takes the Deallocate bit.
const DEALLOCATE_BY_ZEROES: u8 = 1 << 3;
/// NSATTR: write protected.
const WRITE_PROTECTED: u8 = 1 << 0;
/// VWC: there is a cache.
const CACHE_PRESENT: u8 = 1 << 0;

/// Which drive, and which namespace of it: what comes back must be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Serial number and model, without the blanks at their ends.
    pub(super) serial: String,
    pub(super) model: String,
    /// NGUID and EUI64, zeros where there are none.
    unique: [u8; 24],
}

/// What is needed to make requests to commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) identity: Identity,
    pub(super) geometry: Geometry,
    /// The most blocks of one Write Zeroes command; `None` if there is no such command.
    pub(super) zeroes_blocks_max: Option<u32>,
    pub(super) supports_compare: bool,
    /// The most pieces of memory of one command, from which on pieces must be whole blocks.
    pub(super) pieces_max: usize,
}

impl Description {
    /// Reads the pages.
    ///
    /// # Errors
    ///
    /// [`SpdkError::Format`] for a format that is not supported.
    pub(super) fn read(
        controller_page: &[u8],
        facts: &NamespaceFacts,
        pieces_max: u16,
    ) -> Result<Self, SpdkError> {
        let unsupported = |what: String| SpdkError::Format { what };
        let bytes = facts
            .blocks
            .checked_mul(u64::from(facts.block_bytes))
            .ok_or_else(|| unsupported(format!("{} blocks are more than can be", facts.blocks)))?;
        let geometry =
            Geometry::new(bytes, facts.block_bytes).map_err(|error| unsupported(error.to_string()))?;
        if facts.metadata_bytes != 0 && !facts.is_guarded {
            return Err(unsupported(format!(
                "blocks have {} bytes of metadata that the drive does not make by itself",
                facts.metadata_bytes
            )));
        }
        let page = &facts.page;
        let transfer_bytes = TRANSFER_BYTES_MAX.max(facts.block_bytes);
        let features = byte(page, 24);
        Ok(Self {
            identity: Identity {
                serial: text(controller_page, 4, 20),
                model: text(controller_page, 24, 40),
                unique: std::array::from_fn(|index| byte(page, 104 + index)),
            },
            geometry: Geometry {
                optimal_blocks: optimal_blocks(page, features),
                transfer_blocks_max: transfer_bytes / facts.block_bytes,
                volatile_write_cache: byte(controller_page, 525) & CACHE_PRESENT != 0,
                atomic_write_blocks: atomic_blocks(controller_page, page, features),
                deallocates: facts.supports_write_zeroes && byte(page, 33) & DEALLOCATE_BY_ZEROES != 0,
                metadata_bytes: u16::try_from(facts.metadata_bytes).unwrap_or(u16::MAX),
                read_only: byte(page, 99) & WRITE_PROTECTED != 0,
                ..geometry
            },
            zeroes_blocks_max: facts.supports_write_zeroes.then_some(ZEROES_BLOCKS_MAX),
            // A compare carries what guards the blocks, and nobody here has that.
            supports_compare: facts.supports_compare && !facts.is_guarded,
            pieces_max: usize::from(pieces_max).max(1),
        })
    }
}

/// The preferred size of writes, or what they should not cross.
fn optimal_blocks(page: &[u8], features: u8) -> u32 {
    let preferred = u32::from(word(page, 64)) + 1;
    let boundary = u32::from(word(page, 46));
    match features & FEATURE_OPTIMAL_WRITES != 0 {
        true => preferred,
        false => boundary.max(1),
    }
}

/// Blocks of which a naturally aligned write is never torn: a power of two.
fn atomic_blocks(controller_page: &[u8], page: &[u8], features: u8) -> u32 {
    let own = features & FEATURE_ATOMIC_UNITS != 0;
    let unit = match own {
        true => u32::from(word(page, 36)) + 1,
        false => u32::from(word(controller_page, 528)) + 1,
    };
    // Writes across a boundary are no unit. One that is no power of two leaves nothing to be aligned to.
    let boundary = if own { u32::from(word(page, 44)) } else { 0 };
    let limit = match boundary {
        0 => unit,
        boundary if (boundary + 1).is_power_of_two() => unit.min(boundary + 1),
        _ => 1,
    };
    1 << limit.ilog2()
}

/// The SMART / Health log (NVMe Base, SMART / Health Information: byte offsets in the log page).
pub(super) fn health(page: &[u8]) -> Health {
    // Counters of 16 bytes; what is beyond 8 of them is as many as there can be.
    let counter = |at: usize| match eight(page, at + 8) {
        0 => eight(page, at),
        _ => u64::MAX,
    };
    Health {
        critical_warning: byte(page, 0),
        temperature_kelvin: word(page, 1),
        available_spare_percent: byte(page, 3),
        percentage_used: byte(page, 5),
        power_cycles: counter(112),
        power_on_hours: counter(128),
        unsafe_shutdowns: counter(144),
        media_errors: counter(160),
    }
}

fn byte(page: &[u8], at: usize) -> u8 {
    page.get(at).copied().unwrap_or(0)
}

fn word(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([byte(page, at), byte(page, at + 1)])
}

fn eight(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| byte(page, at + index)))
}

/// ASCII with blanks at its end; other bytes are left out.
fn text(page: &[u8], at: usize, len: usize) -> String {
    let bytes = page.get(at..at + len).unwrap_or_default();
    let printable = bytes.iter().filter(|byte| (0x20..0x7f).contains(*byte));
    let text: String = printable.map(|&byte| char::from(byte)).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NamespaceFacts {
        NamespaceFacts {
            page: vec![0; 4096],
            block_bytes: 512,
            blocks: 1 << 20,
            metadata_bytes: 0,
            is_guarded: false,
            transfer_bytes_max: 128 << 10,
            supports_compare: true,
            supports_write_zeroes: true,
        }
    }

    fn read(controller: &[u8], facts: &NamespaceFacts) -> Geometry {
        Description::read(controller, facts, 16)
            .expect("supported")
            .geometry
    }

    #[test]
    fn a_plain_drive() {
        let geometry = read(&[0; 4096], &facts());
        assert_eq!(geometry.blocks, 1 << 20);
        assert_eq!(geometry.transfer_blocks_max, TRANSFER_BYTES_MAX / 512);
        assert_eq!((geometry.atomic_write_blocks, geometry.optimal_blocks), (1, 1));
        assert!(!geometry.volatile_write_cache && !geometry.deallocates && !geometry.read_only);
    }

    #[test]
    fn a_drive_with_everything() {
        let mut controller = vec![0; 4096];
        controller[4..24].copy_from_slice(b"S1234               ");
        controller[24..28].copy_from_slice(b"Fast");
        controller[525] = 7;
        controller[528] = 63;
        let mut facts = facts();
        facts.page[24] = FEATURE_OPTIMAL_WRITES;
        facts.page[33] = 0b1001;
        facts.page[64] = 7;
        facts.page[99] = 1;
        facts.page[104] = 0xab;
        let description = Description::read(&controller, &facts, 16).expect("supported");
        let geometry = description.geometry;
        assert!(geometry.volatile_write_cache && geometry.deallocates && geometry.read_only);
        assert_eq!((geometry.atomic_write_blocks, geometry.optimal_blocks), (64, 8));
        assert_eq!(description.identity.serial, "S1234");
        assert_eq!(description.identity.model, "Fast");
        facts.page[104] = 0xac;
        let other = Description::read(&controller, &facts, 16).expect("supported");
        assert_ne!(other.identity, description.identity);
    }

    #[test]
    fn atomic_units_are_powers_of_two_within_boundaries() {
        for (unit, boundary, expected) in [(0, 0, 1), (6, 0, 4), (7, 0, 8), (15, 7, 8), (15, 9, 1), (3, 7, 4)]
        {
            let mut facts = facts();
            facts.page[24] = FEATURE_ATOMIC_UNITS;
            facts.page[36] = unit;
            facts.page[44] = boundary;
            let blocks = read(&[0xff; 4096], &facts).atomic_write_blocks;
            assert_eq!(blocks, expected, "unit {unit}, boundary {boundary}");
        }
    }

    #[test]
    fn blocks_that_the_drive_guards_are_taken_without_its_compare() {
        let facts = NamespaceFacts {
            metadata_bytes: 8,
            is_guarded: true,
            ..facts()
        };
        let description = Description::read(&[0; 4096], &facts, 16).expect("supported");
        assert_eq!(description.geometry.metadata_bytes, 8);
        assert!(!description.supports_compare);
    }

    #[test]
    fn formats_that_would_lose_data_are_refused() {
        for (block_bytes, metadata_bytes, blocks) in
            [(520, 0, 8), (4096, 8, 8), (512, 0, 0), (512, 0, u64::MAX)]
        {
            let facts = NamespaceFacts {
                block_bytes,
                metadata_bytes,
                blocks,
                ..facts()
            };
            let read = Description::read(&[0; 4096], &facts, 16);
            assert!(matches!(read, Err(SpdkError::Format { .. })), "{read:?}");
        }
    }

    #[test]
    fn short_pages_are_zeros() {
        let facts = NamespaceFacts {
            page: Vec::new(),
            ..facts()
        };
        assert_eq!(read(&[], &facts).blocks, 1 << 20);
        assert_eq!(health(&[]), Health::default());
    }

    #[test]
    fn the_health_log_is_read() {
        let mut page = vec![0; 512];
        page[0] = 0x04;
        page[1..3].copy_from_slice(&310_u16.to_le_bytes());
        page[3] = 99;
        page[5] = 120;
        page[112] = 12;
        page[128] = 13;
        page[144] = 14;
        page[160..176].fill(0xff);
        let health = health(&page);
        assert_eq!((health.critical_warning, health.temperature_kelvin), (4, 310));
        assert_eq!(
            (health.available_spare_percent, health.percentage_used),
            (99, 120)
        );
        assert_eq!((health.power_cycles, health.power_on_hours), (12, 13));
        assert_eq!((health.unsafe_shutdowns, health.media_errors), (14, u64::MAX));
    }
}
