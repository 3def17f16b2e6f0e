//! Features (Base 2.0, 5.15 and 5.27; NVM 1.0, 4.1.3) and the results of asynchronous events (Base 2.0,
//! 5.2.1).
//!
//! A feature is mostly dword 11 of Set Features, and dword 0 of the completion of Get Features; some have
//! data.

use uuid::Uuid;

use super::structure::{structure, wire_flags};
use super::wire_enum::wire_enum;

wire_enum! {
    /// Feature identifiers (Base 2.0, 5.27.1).
    pub enum FeatureId: u8 {
        /// Arbitration; see [`Arbitration`].
        Arbitration = 0x01,
        /// Power Management; the power state in bits 4:0.
        PowerManagement = 0x02,
        /// LBA Range Type.
        LbaRangeType = 0x03,
        /// Temperature Threshold; see [`TemperatureThreshold`].
        TemperatureThreshold = 0x04,
        /// Error Recovery (NVM 1.0, 4.1.3.2); see [`ErrorRecovery`].
        ErrorRecovery = 0x05,
        /// Volatile Write Cache; bit 0 enables it.
        VolatileWriteCache = 0x06,
        /// Number of Queues; see [`QueueCounts`].
        NumberOfQueues = 0x07,
        /// Interrupt Coalescing; not used over fabrics.
        InterruptCoalescing = 0x08,
        /// Interrupt Vector Configuration; not used over fabrics.
        InterruptVectorConfiguration = 0x09,
        /// Write Atomicity Normal (NVM 1.0, 4.1.3); bit 0 disables AWUN and NAWUN.
        WriteAtomicity = 0x0a,
        /// Asynchronous Event Configuration; see [`AsyncEventConfiguration`].
        AsyncEventConfiguration = 0x0b,
        /// Autonomous Power State Transition.
        AutonomousPowerStateTransition = 0x0c,
        /// Host Memory Buffer; not used over fabrics.
        HostMemoryBuffer = 0x0d,
        /// Timestamp; 8 bytes of data.
        Timestamp = 0x0e,
        /// Keep Alive Timer; the timeout in ms, 0 for none.
        KeepAliveTimer = 0x0f,
        /// Host Controlled Thermal Management.
        HostControlledThermalManagement = 0x10,
        /// Non-Operational Power State Config.
        NonOperationalPowerState = 0x11,
        /// Read Recovery Level Config.
        ReadRecoveryLevel = 0x12,
        /// Predictable Latency Mode Config.
        PredictableLatencyMode = 0x13,
        /// Predictable Latency Mode Window.
        PredictableLatencyWindow = 0x14,
        /// LBA Status Information Report Interval (NVM 1.0, 4.1.3).
        LbaStatusInterval = 0x15,
        /// Host Behavior Support; see [`HostBehavior`].
        HostBehavior = 0x16,
        /// Sanitize Config.
        SanitizeConfig = 0x17,
        /// Endurance Group Event Configuration.
        EnduranceGroupEvents = 0x18,
        /// I/O Command Set Profile.
        CommandSetProfile = 0x19,
        /// Spinup Control.
        SpinupControl = 0x1a,
        /// Enhanced Controller Metadata.
        EnhancedControllerMetadata = 0x7d,
        /// Controller Metadata.
        ControllerMetadata = 0x7e,
        /// Namespace Metadata.
        NamespaceMetadata = 0x7f,
        /// Software Progress Marker.
        SoftwareProgressMarker = 0x80,
        /// Host Identifier; see [`HOST_IDENTIFIER_EXTENDED`].
        HostIdentifier = 0x81,
        /// Reservation Notification Mask; see [`ReservationNotificationMask`].
        ReservationNotificationMask = 0x82,
        /// Reservation Persistence; bit 0 keeps reservations through a loss of power.
        ReservationPersistence = 0x83,
        /// Namespace Write Protection Config; see the values in bits 2:0.
        NamespaceWriteProtection = 0x84,
    }
}

wire_enum! {
    /// Which value Get Features asks for (SEL; Base 2.0, 5.15).
    pub enum FeatureSelect: u8 {
        /// The value in use.
        Current = 0,
        /// The value of the controller's maker.
        Default = 1,
        /// The value kept through resets.
        Saved = 2,
        /// What can be done with the feature; see [`FeatureCapabilities`].
        SupportedCapabilities = 3,
    }
}

wire_flags! {
    /// Dword 0 of the completion of Get Features for the supported capabilities (Base 2.0, 5.15.1).
    pub struct FeatureCapabilities: u32 {
        /// Can be saved.
        SAVEABLE = 1 << 0,
        /// Each namespace has its own value.
        NAMESPACE_SPECIFIC = 1 << 1,
        /// Can be changed.
        CHANGEABLE = 1 << 2,
    }
}

/// Arbitration (Base 2.0, 5.27.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arbitration {
    /// Commands taken of one queue at a time, 2^this; 7 for no limit (AB, bits 2:0).
    pub burst: u8,
    /// Weights of the low, medium and high priority classes less one (bits 15:8, 23:16, 31:24).
    pub weights_minus_one: [u8; 3],
}

impl Arbitration {
    const BURST_MASK: u8 = 0x7;

    /// What the dword says.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        let [burst, low, medium, high] = dword.to_le_bytes();
        Self {
            burst: burst & Self::BURST_MASK,
            weights_minus_one: [low, medium, high],
        }
    }

    /// The dword.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        let [low, medium, high] = self.weights_minus_one;
        u32::from_le_bytes([self.burst & Self::BURST_MASK, low, medium, high])
    }
}

/// Number of Queues (Base 2.0, 5.27.1.5): what a host asks for, and what a controller gives, which may be
/// less or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// I/O submission queues less one (bits 15:0); 65,535 is invalid.
    pub submission_minus_one: u16,
    /// I/O completion queues less one (bits 31:16); 65,535 is invalid.
    pub completion_minus_one: u16,
}

impl QueueCounts {
    /// What the dword says.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        let [submission_low, submission_high, completion_low, completion_high] = dword.to_le_bytes();
        Self {
            submission_minus_one: u16::from_le_bytes([submission_low, submission_high]),
            completion_minus_one: u16::from_le_bytes([completion_low, completion_high]),
        }
    }

    /// The dword.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        self.submission_minus_one as u32 | ((self.completion_minus_one as u32) << 16)
    }
}

/// Temperature Threshold (Base 2.0, 5.27.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// The threshold in kelvin (TMPTH, bits 15:0).
    pub kelvin: u16,
    /// Which temperature: 0 composite, 1 to 8 a sensor, 15 all (TMPSEL, bits 19:16).
    pub sensor: u8,
    /// 0 for the upper threshold, 1 for the lower (THSEL, bits 21:20).
    pub threshold: u8,
}

impl TemperatureThreshold {
    const SENSOR_MASK: u8 = 0xf;
    const THRESHOLD_MASK: u8 = 0x3;

    /// What the dword says.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        let [kelvin_low, kelvin_high, select, _] = dword.to_le_bytes();
        Self {
            kelvin: u16::from_le_bytes([kelvin_low, kelvin_high]),
            sensor: select & Self::SENSOR_MASK,
            threshold: (select >> 4) & Self::THRESHOLD_MASK,
        }
    }

    /// The dword.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        let select = (self.sensor & Self::SENSOR_MASK) | ((self.threshold & Self::THRESHOLD_MASK) << 4);
        self.kelvin as u32 | ((select as u32) << 16)
    }
}

/// Error Recovery (NVM 1.0, 4.1.3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorRecovery {
    /// Time to try to recover, in units of 100 ms; 0 for no limit (TLER, bits 15:0).
    pub time_limit_100ms: u16,
    /// Reading deallocated or unwritten blocks is an error (DULBE, bit 16).
    pub unwritten_is_error: bool,
}

impl ErrorRecovery {
    const UNWRITTEN_IS_ERROR: u32 = 1 << 16;

    /// What the dword says.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Self {
        let [time_low, time_high, _, _] = dword.to_le_bytes();
        Self {
            time_limit_100ms: u16::from_le_bytes([time_low, time_high]),
            unwritten_is_error: dword & Self::UNWRITTEN_IS_ERROR != 0,
        }
    }

    /// The dword.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        self.time_limit_100ms as u32
            | if self.unwritten_is_error {
                Self::UNWRITTEN_IS_ERROR
            } else {
                0
            }
    }
}

/// Bit 0 of features that are a switch: Volatile Write Cache (WCE), Write Atomicity Normal (DN), Reservation
/// Persistence (PTPL).
pub const SWITCH: u32 = 1 << 0;

/// Bit 0 of dword 11 of the Host Identifier feature: the identifier has 16 bytes, as it must over fabrics,
/// and not 8 (EXHID; Base 2.0, 5.27.1.25). The identifier is the data of the command.
pub const HOST_IDENTIFIER_EXTENDED: u32 = 1 << 0;

structure! {
    /// Data of the Host Identifier feature in its extended form (Base 2.0, 5.27.1.25).
    pub struct HostIdentifier: 16 {
        /// The identifier; the same as in Connect.
        0 => host_id: Uuid,
    }
}

structure! {
    /// Data of the Host Behavior Support feature (Base 2.0, 5.27.1.18).
    pub struct HostBehavior: 512 {
        /// 1 if the host honours Command Retry Delay (ACRE).
        0 => advanced_command_retry: u8,
        /// 1 if the host understands telemetry data area 4 (ETDAS).
        1 => extended_telemetry: u8,
        /// 1 if the host understands more than 16 LBA formats (LBAFEE).
        2 => extended_lba_formats: u8,
    }
}

wire_flags! {
    /// Asynchronous Event Configuration (Base 2.0, 5.27.1.8): the events a host wants. Bits 4:0 stand for the
    /// critical warnings of the SMART log.
    pub struct AsyncEventConfiguration: u32 {
        /// Available spare below threshold.
        SPARE = 1 << 0,
        /// Temperature over or under a threshold.
        TEMPERATURE = 1 << 1,
        /// Reliability degraded.
        RELIABILITY = 1 << 2,
        /// Media went read only.
        READ_ONLY = 1 << 3,
        /// Volatile memory backup failed.
        MEMORY_BACKUP = 1 << 4,
        /// Namespace attribute notices.
        NAMESPACE_ATTRIBUTES = 1 << 8,
        /// Firmware activation notices.
        FIRMWARE_ACTIVATION = 1 << 9,
        /// Telemetry log notices.
        TELEMETRY_LOG = 1 << 10,
        /// Asymmetric namespace access change notices.
        ANA_CHANGE = 1 << 11,
        /// Predictable latency event aggregate log change notices.
        PREDICTABLE_LATENCY = 1 << 12,
        /// LBA status information notices.
        LBA_STATUS = 1 << 13,
        /// Endurance group event aggregate log change notices.
        ENDURANCE_GROUP = 1 << 14,
        /// Normal NVM subsystem shutdown.
        SUBSYSTEM_SHUTDOWN = 1 << 15,
        /// Discovery log page change notices (discovery controllers).
        DISCOVERY_LOG_CHANGE = 1 << 31,
    }
}

wire_flags! {
    /// Reservation Notification Mask (Base 2.0, 5.27.1.26): the notifications a host does not want.
    pub struct ReservationNotificationMask: u32 {
        /// Its registration was preempted (REGPRE).
        REGISTRATION_PREEMPTED = 1 << 1,
        /// A reservation was released (RESREL).
        RESERVATION_RELEASED = 1 << 2,
        /// A reservation was preempted (RESPRE).
        RESERVATION_PREEMPTED = 1 << 3,
    }
}

wire_enum! {
    /// Asynchronous Event Type (Base 2.0, 5.2.1, bits 2:0).
    pub enum AsyncEventType: u8 {
        /// Error status.
        Error = 0,
        /// SMART / health status.
        Health = 1,
        /// Notice.
        Notice = 2,
        /// Immediate.
        Immediate = 3,
        /// I/O command specific status.
        IoCommand = 6,
        /// The vendor's own.
        Vendor = 7,
    }
}

/// Dword 0 of the completion of an Asynchronous Event Request (Base 2.0, 5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// What the event is about (bits 2:0).
    pub event_type: AsyncEventType,
    /// Which of that type (bits 15:8).
    pub information: u8,
    /// The log page that tells more, and that is to be read to let the next event of that type come (bits
    /// 23:16).
    pub log_page: u8,
}

macro_rules! events {
    ($( $(#[$meta:meta])* $name:ident = $event_type:ident, $information:literal, $log_page:literal; )+) => {
        impl AsyncEvent {
            $(
                $(#[$meta])*
                pub const $name: Self = Self {
                    event_type: AsyncEventType::$event_type,
                    information: $information,
                    log_page: $log_page,
                };
            )+
        }
    };
}

// Base 2.0, 5.2.1, figures of the information by type; the log pages that clear them, ibid.
events! {
    /// An internal error that will last.
    PERSISTENT_INTERNAL_ERROR = Error, 0x03, 0x01;
    /// An internal error that will pass.
    TRANSIENT_INTERNAL_ERROR = Error, 0x04, 0x01;
    /// The subsystem's reliability has suffered.
    RELIABILITY = Health, 0x00, 0x02;
    /// A temperature crossed its threshold.
    TEMPERATURE = Health, 0x01, 0x02;
    /// The available spare fell below its threshold.
    SPARE = Health, 0x02, 0x02;
    /// Identify data of a namespace changed, or the list of namespaces.
    NAMESPACE_ATTRIBUTES_CHANGED = Notice, 0x00, 0x04;
    /// Firmware is about to be activated.
    FIRMWARE_ACTIVATION = Notice, 0x01, 0x03;
    /// An asymmetric namespace access state changed.
    ANA_CHANGED = Notice, 0x03, 0x0c;
    /// The discovery log changed.
    DISCOVERY_LOG_CHANGED = Notice, 0xf0, 0x70;
    /// A reservation notification is to be read.
    RESERVATION_NOTIFICATION = IoCommand, 0x00, 0x80;
}

impl AsyncEvent {
    const TYPE_MASK: u8 = 0x7;

    /// The dword.
    #[must_use]
    pub const fn to_dword(self) -> u32 {
        u32::from_le_bytes([self.event_type.to_wire(), self.information, self.log_page, 0])
    }

    /// What the dword says; `None` if the type is reserved.
    #[must_use]
    pub const fn from_dword(dword: u32) -> Option<Self> {
        let [event_type, information, log_page, _] = dword.to_le_bytes();
        match AsyncEventType::from_wire(event_type & Self::TYPE_MASK) {
            Some(event_type) => Some(Self {
                event_type,
                information,
                log_page,
            }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freezes_the_dwords() {
        assert_eq!(
            Arbitration {
                burst: 7,
                weights_minus_one: [1, 2, 3]
            }
            .to_dword(),
            0x0302_0107
        );
        assert_eq!(
            QueueCounts {
                submission_minus_one: 3,
                completion_minus_one: 127
            }
            .to_dword(),
            0x007f_0003
        );
        assert_eq!(
            TemperatureThreshold {
                kelvin: 0x0160,
                sensor: 5,
                threshold: 1
            }
            .to_dword(),
            0x0015_0160
        );
        assert_eq!(
            ErrorRecovery {
                time_limit_100ms: 50,
                unwritten_is_error: true
            }
            .to_dword(),
            0x0001_0032
        );
        let wanted = AsyncEventConfiguration::NAMESPACE_ATTRIBUTES
            | AsyncEventConfiguration::ANA_CHANGE
            | AsyncEventConfiguration::DISCOVERY_LOG_CHANGE;
        assert_eq!(wanted.bits(), 0x8000_0900);
        let capabilities = FeatureCapabilities::NAMESPACE_SPECIFIC | FeatureCapabilities::CHANGEABLE;
        assert_eq!((capabilities | FeatureCapabilities::SAVEABLE).bits(), 7);
        assert_eq!(capabilities.bits(), 6);
        let mask = ReservationNotificationMask::REGISTRATION_PREEMPTED
            | ReservationNotificationMask::RESERVATION_RELEASED
            | ReservationNotificationMask::RESERVATION_PREEMPTED;
        assert_eq!(mask.bits(), 0x0e);
    }

    #[test]
    fn freezes_the_events() {
        for (event, dword) in [
            (AsyncEvent::PERSISTENT_INTERNAL_ERROR, 0x0001_0300),
            (AsyncEvent::TRANSIENT_INTERNAL_ERROR, 0x0001_0400),
            (AsyncEvent::RELIABILITY, 0x0002_0001),
            (AsyncEvent::TEMPERATURE, 0x0002_0101),
            (AsyncEvent::SPARE, 0x0002_0201),
            (AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED, 0x0004_0002),
            (AsyncEvent::FIRMWARE_ACTIVATION, 0x0003_0102),
            (AsyncEvent::ANA_CHANGED, 0x000c_0302),
            (AsyncEvent::DISCOVERY_LOG_CHANGED, 0x0070_f002),
            (AsyncEvent::RESERVATION_NOTIFICATION, 0x0080_0006),
        ] {
            assert_eq!(event.to_dword(), dword);
            assert_eq!(AsyncEvent::from_dword(dword), Some(event));
        }
        assert_eq!(AsyncEvent::from_dword(4), None);
        assert_eq!(AsyncEvent::from_dword(5), None);
    }

    #[test]
    fn freezes_the_data() {
        let behavior = HostBehavior {
            advanced_command_retry: 1,
            extended_telemetry: 2,
            extended_lba_formats: 3,
        };
        let bytes = behavior.to_bytes();
        assert_eq!(bytes[..4], [1, 2, 3, 0]);
        assert_eq!(bytes[4..], [0; 508]);
        assert_eq!(
            HostIdentifier {
                host_id: Uuid::from_bytes([5; 16])
            }
            .to_bytes(),
            [5; 16]
        );
    }

    proptest! {
        #[test]
        fn defined_bits_survive(dword: u32) {
            prop_assert_eq!(Arbitration::from_dword(dword).to_dword(), dword & 0xffff_ff07);
            prop_assert_eq!(QueueCounts::from_dword(dword).to_dword(), dword);
            prop_assert_eq!(TemperatureThreshold::from_dword(dword).to_dword(), dword & 0x003f_ffff);
            prop_assert_eq!(ErrorRecovery::from_dword(dword).to_dword(), dword & 0x0001_ffff);
            if let Some(event) = AsyncEvent::from_dword(dword) {
                prop_assert_eq!(event.to_dword(), dword & 0x00ff_ff07);
            }
        }
    }
}
