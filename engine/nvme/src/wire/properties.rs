//! Controller properties, which hosts reach over fabrics with Property Get and Set (Base 2.0, 3.1.3).

use super::structure::{Field, wire_flags};
use super::wire_enum::wire_enum;
use crate::wire::command::PropertySize;

wire_enum! {
    /// The properties that exist over fabrics, by their offsets (Base 2.0, 3.1.3).
    pub enum Property: u32 {
        /// CAP, Controller Capabilities; 8 bytes, read only.
        Capabilities = 0x00,
        /// VS, Version; read only.
        Version = 0x08,
        /// CC, Controller Configuration.
        Configuration = 0x14,
        /// CSTS, Controller Status; read only but for NSSRO.
        Status = 0x1c,
        /// NSSR, NVM Subsystem Reset.
        SubsystemReset = 0x20,
        /// NSSD, NVM Subsystem Shutdown.
        SubsystemShutdown = 0x64,
        /// CRTO, Controller Ready Timeouts; read only.
        ReadyTimeouts = 0x68,
    }
}

impl Property {
    /// The size by which it is accessed; any other is an invalid field.
    #[must_use]
    pub const fn size(self) -> PropertySize {
        match self {
            Self::Capabilities => PropertySize::Eight,
            Self::Version
            | Self::Configuration
            | Self::Status
            | Self::SubsystemReset
            | Self::SubsystemShutdown
            | Self::ReadyTimeouts => PropertySize::Four,
        }
    }
}

/// The value that, set in NSSR, resets the subsystem: "NVMe" (Base 2.0, 3.1.3.7).
pub const SUBSYSTEM_RESET: u32 = 0x4e56_4d65;

/// Bits `shift..shift + bits` of `value`.
const fn extract(value: u64, shift: u32, bits: u32) -> u64 {
    (value >> shift) & ((1 << bits) - 1)
}

wire_flags! {
    /// CAP.CSS: which command sets the controller can be configured for (Base 2.0, 3.1.3.1).
    pub struct CommandSetSupport: u8 {
        /// The NVM command set.
        NVM = 1 << 0,
        /// One or more I/O command sets, told by Identify.
        IO_COMMAND_SETS = 1 << 6,
        /// None, admin commands only.
        NONE = 1 << 7,
    }
}

/// CAP, Controller Capabilities (Base 2.0, 3.1.3.1). What has no meaning over fabrics is left out and zero,
/// except CQR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Most entries of an I/O queue less one (MQES, bits 15:0).
    pub max_queue_entries_minus_one: u16,
    /// Contiguous queues required (CQR, bit 16), always set over fabrics.
    pub contiguous_queues: bool,
    /// Optional arbitration mechanisms (AMS, bits 18:17).
    pub arbitration: u8,
    /// Worst time to become ready or stop being, in units of 500 ms (TO, bits 31:24).
    pub ready_timeout_500ms: u8,
    /// NVM subsystem reset is supported (NSSRS, bit 36).
    pub subsystem_reset: bool,
    /// Command sets supported (CSS, bits 44:37).
    pub command_sets: CommandSetSupport,
    /// Smallest memory page, 2^(12 + this) bytes (MPSMIN, bits 51:48); the unit of MDTS.
    pub page_size_min: u8,
    /// Largest memory page, 2^(12 + this) bytes (MPSMAX, bits 55:52).
    pub page_size_max: u8,
    /// NVM subsystem shutdown is supported (NSSS, bit 58).
    pub subsystem_shutdown: bool,
    /// Ready modes (CRMS, bits 60:59): bit 0 with media, bit 1 independent of media.
    pub ready_modes: u8,
}

impl Capabilities {
    /// The value of the property. Fields of few bits are cut to them.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        let place = |value: u64, shift: u32, bits: u32| extract(value, 0, bits) << shift;
        u64::from(self.max_queue_entries_minus_one)
            | place(self.contiguous_queues.into(), 16, 1)
            | place(self.arbitration.into(), 17, 2)
            | place(self.ready_timeout_500ms.into(), 24, 8)
            | place(self.subsystem_reset.into(), 36, 1)
            | place(self.command_sets.bits().into(), 37, 8)
            | place(self.page_size_min.into(), 48, 4)
            | place(self.page_size_max.into(), 52, 4)
            | place(self.subsystem_shutdown.into(), 58, 1)
            | place(self.ready_modes.into(), 59, 2)
    }

    /// What the property says.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each extract fits its field")]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            max_queue_entries_minus_one: bits as u16,
            contiguous_queues: extract(bits, 16, 1) != 0,
            arbitration: extract(bits, 17, 2) as u8,
            ready_timeout_500ms: extract(bits, 24, 8) as u8,
            subsystem_reset: extract(bits, 36, 1) != 0,
            command_sets: CommandSetSupport::from_bits_retain(extract(bits, 37, 8) as u8),
            page_size_min: extract(bits, 48, 4) as u8,
            page_size_max: extract(bits, 52, 4) as u8,
            subsystem_shutdown: extract(bits, 58, 1) != 0,
            ready_modes: extract(bits, 59, 2) as u8,
        }
    }

    /// Size of the smallest memory page, in bytes.
    #[must_use]
    pub const fn page_bytes_min(&self) -> u64 {
        1 << (12 + extract(self.page_size_min as u64, 0, 4))
    }
}

/// A version of the specification, as in VS (Base 2.0, 3.1.3.2) and in Identify Controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major (bits 31:16).
    pub major: u16,
    /// Minor (bits 15:8).
    pub minor: u8,
    /// Tertiary (bits 7:0).
    pub tertiary: u8,
}

impl Version {
    /// A version.
    #[must_use]
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self {
            major,
            minor,
            tertiary,
        }
    }

    /// The value of the property.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        ((self.major as u32) << 16) | ((self.minor as u32) << 8) | self.tertiary as u32
    }

    /// What the property says.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        let [tertiary, minor, major_low, major_high] = bits.to_le_bytes();
        Self {
            major: u16::from_le_bytes([major_low, major_high]),
            minor,
            tertiary,
        }
    }
}

impl Field for Version {
    const BYTES: usize = 4;

    fn read(bytes: &[u8]) -> Self {
        Self::from_bits(u32::read(bytes))
    }

    fn write(&self, out: &mut [u8]) {
        self.to_bits().write(out);
    }
}

/// CC.SHN: how the host wants to shut down (Base 2.0, 3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownNotification {
    /// Not at all (00b).
    #[default]
    None,
    /// Normally (01b).
    Normal,
    /// Abruptly (10b).
    Abrupt,
    /// The reserved value (11b).
    Reserved,
}

/// CC, Controller Configuration (Base 2.0, 3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Enable (EN, bit 0).
    pub enabled: bool,
    /// I/O command set selected (CSS, bits 6:4): 0 NVM, 6 all supported, 7 admin commands only.
    pub command_set: u8,
    /// Memory page size, 2^(12 + this) bytes (MPS, bits 10:7).
    pub page_size: u8,
    /// Arbitration mechanism selected (AMS, bits 13:11): 0 round robin.
    pub arbitration: u8,
    /// Shutdown notification (SHN, bits 15:14).
    pub shutdown: ShutdownNotification,
    /// I/O submission entries have 2^this bytes (IOSQES, bits 19:16): 6.
    pub submission_entry_size: u8,
    /// I/O completion entries have 2^this bytes (IOCQES, bits 23:20): 4.
    pub completion_entry_size: u8,
    /// Ready independent of media (CRIME, bit 24).
    pub ready_without_media: bool,
}

impl Configuration {
    /// CSS for the NVM command set.
    pub const COMMAND_SET_NVM: u8 = 0;
    /// CSS for all command sets supported.
    pub const COMMAND_SET_ALL: u8 = 6;
    /// CSS for no I/O command set.
    pub const COMMAND_SET_NONE: u8 = 7;
    /// IOSQES of 64-byte entries.
    pub const SUBMISSION_ENTRY_SIZE: u8 = 6;
    /// IOCQES of 16-byte entries.
    pub const COMPLETION_ENTRY_SIZE: u8 = 4;

    /// What the property says. Reserved bits are ignored.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each extract fits its field")]
    pub const fn from_bits(bits: u32) -> Self {
        let bits = bits as u64;
        Self {
            enabled: extract(bits, 0, 1) != 0,
            command_set: extract(bits, 4, 3) as u8,
            page_size: extract(bits, 7, 4) as u8,
            arbitration: extract(bits, 11, 3) as u8,
            shutdown: match extract(bits, 14, 2) {
                0 => ShutdownNotification::None,
                1 => ShutdownNotification::Normal,
                2 => ShutdownNotification::Abrupt,
                _ => ShutdownNotification::Reserved,
            },
            submission_entry_size: extract(bits, 16, 4) as u8,
            completion_entry_size: extract(bits, 20, 4) as u8,
            ready_without_media: extract(bits, 24, 1) != 0,
        }
    }

    /// The value of the property. Fields of few bits are cut to them.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        const fn place(value: u8, shift: u32, bits: u32) -> u32 {
            (value as u32 & ((1 << bits) - 1)) << shift
        }
        let shutdown = match self.shutdown {
            ShutdownNotification::None => 0,
            ShutdownNotification::Normal => 1,
            ShutdownNotification::Abrupt => 2,
            ShutdownNotification::Reserved => 3,
        };
        self.enabled as u32
            | place(self.command_set, 4, 3)
            | place(self.page_size, 7, 4)
            | place(self.arbitration, 11, 3)
            | place(shutdown, 14, 2)
            | place(self.submission_entry_size, 16, 4)
            | place(self.completion_entry_size, 20, 4)
            | ((self.ready_without_media as u32) << 24)
    }
}

/// CSTS.SHST: how far a shutdown is (Base 2.0, 3.1.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownStatus {
    /// None was asked for (00b).
    #[default]
    Normal,
    /// Under way (01b).
    Occurring,
    /// Done (10b).
    Complete,
    /// The reserved value (11b).
    Reserved,
}

/// CSTS, Controller Status (Base 2.0, 3.1.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControllerStatus {
    /// Ready for commands (RDY, bit 0).
    pub ready: bool,
    /// A fatal error occurred (CFS, bit 1).
    pub fatal: bool,
    /// How far a shutdown is (SHST, bits 3:2).
    pub shutdown: ShutdownStatus,
    /// A subsystem reset occurred (NSSRO, bit 4).
    pub subsystem_reset_occurred: bool,
    /// Commands are held up (PP, bit 5).
    pub processing_paused: bool,
    /// The shutdown is that of the subsystem (ST, bit 6).
    pub subsystem_shutdown: bool,
}

impl ControllerStatus {
    /// What the property says. Reserved bits are ignored.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self {
            ready: bits & 1 != 0,
            fatal: bits & (1 << 1) != 0,
            shutdown: match (bits >> 2) & 0x3 {
                0 => ShutdownStatus::Normal,
                1 => ShutdownStatus::Occurring,
                2 => ShutdownStatus::Complete,
                _ => ShutdownStatus::Reserved,
            },
            subsystem_reset_occurred: bits & (1 << 4) != 0,
            processing_paused: bits & (1 << 5) != 0,
            subsystem_shutdown: bits & (1 << 6) != 0,
        }
    }

    /// The value of the property.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        let shutdown = match self.shutdown {
            ShutdownStatus::Normal => 0,
            ShutdownStatus::Occurring => 1,
            ShutdownStatus::Complete => 2,
            ShutdownStatus::Reserved => 3,
        };
        self.ready as u32
            | ((self.fatal as u32) << 1)
            | (shutdown << 2)
            | ((self.subsystem_reset_occurred as u32) << 4)
            | ((self.processing_paused as u32) << 5)
            | ((self.subsystem_shutdown as u32) << 6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freezes_the_capabilities() {
        let capabilities = Capabilities {
            max_queue_entries_minus_one: 127,
            contiguous_queues: true,
            arbitration: 0,
            ready_timeout_500ms: 30,
            subsystem_reset: false,
            command_sets: CommandSetSupport::NVM | CommandSetSupport::IO_COMMAND_SETS,
            page_size_min: 0,
            page_size_max: 0,
            subsystem_shutdown: false,
            ready_modes: 1,
        };
        // CRMS bit 59, CSS bits 37 and 43, TO 1Eh at 24, CQR bit 16, MQES 7Fh.
        assert_eq!(capabilities.to_bits(), 0x0800_0820_1e01_007f);
        let others = Capabilities {
            arbitration: 3,
            subsystem_reset: true,
            page_size_min: 1,
            page_size_max: 15,
            subsystem_shutdown: true,
            ..Capabilities::default()
        };
        assert_eq!(others.to_bits(), 0x04f1_0010_0006_0000);
        assert_eq!(others.page_bytes_min(), 8192);
    }

    #[test]
    fn freezes_the_version() {
        assert_eq!(Version::new(2, 1, 0).to_bits(), 0x0002_0100);
        assert_eq!(Version::new(1, 4, 3).to_bits(), 0x0001_0403);
        assert!(Version::new(1, 4, 0) < Version::new(2, 0, 0));
    }

    #[test]
    fn freezes_the_configuration() {
        let configuration = Configuration {
            enabled: true,
            command_set: Configuration::COMMAND_SET_ALL,
            page_size: 1,
            arbitration: 1,
            shutdown: ShutdownNotification::Normal,
            submission_entry_size: Configuration::SUBMISSION_ENTRY_SIZE,
            completion_entry_size: Configuration::COMPLETION_ENTRY_SIZE,
            ready_without_media: true,
        };
        assert_eq!(configuration.to_bits(), 0x0146_48e1);
        assert_eq!(
            Configuration::from_bits(0x0046_0001),
            Configuration {
                enabled: true,
                submission_entry_size: 6,
                completion_entry_size: 4,
                ..Configuration::default()
            }
        );
    }

    #[test]
    fn freezes_the_status() {
        let status = ControllerStatus {
            ready: true,
            fatal: false,
            shutdown: ShutdownStatus::Complete,
            subsystem_reset_occurred: true,
            processing_paused: false,
            subsystem_shutdown: true,
        };
        assert_eq!(status.to_bits(), 0b101_1001);
        assert_eq!(
            ControllerStatus {
                processing_paused: true,
                fatal: true,
                ..Default::default()
            }
            .to_bits(),
            0x22
        );
    }

    #[test]
    fn knows_offsets_and_sizes() {
        let offsets: Vec<u32> = Property::ALL.iter().map(|property| property.to_wire()).collect();
        assert_eq!(offsets, [0x00, 0x08, 0x14, 0x1c, 0x20, 0x64, 0x68]);
        assert_eq!(Property::from_wire(0x18), None);
        for property in Property::ALL.iter().copied() {
            let eight = property == Property::Capabilities;
            assert_eq!(
                property.size(),
                if eight {
                    PropertySize::Eight
                } else {
                    PropertySize::Four
                }
            );
        }
        assert_eq!(SUBSYSTEM_RESET.to_be_bytes(), *b"NVMe");
    }

    proptest! {
        #[test]
        fn defined_bits_survive(bits: u64, dword: u32) {
            let capabilities = Capabilities::from_bits(bits).to_bits();
            prop_assert_eq!(capabilities, bits & 0x1cff_1ff0_ff07_ffff);
            prop_assert_eq!(Version::from_bits(dword).to_bits(), dword);
            prop_assert_eq!(Configuration::from_bits(dword).to_bits(), dword & 0x01ff_fff1);
            prop_assert_eq!(ControllerStatus::from_bits(dword).to_bits(), dword & 0x7f);
        }
    }
}
