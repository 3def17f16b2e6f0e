//! Log pages (Base 2.0, 5.16.1).
//!
//! | identifier | page |
//! | --- | --- |
//! | 00h | [`SupportedLogPages`] |
//! | 01h | [`ErrorEntry`], as many as the controller keeps, newest first |
//! | 02h | [`HealthLog`] |
//! | 03h | [`FirmwareLog`] |
//! | 04h | a namespace list, see [`changed_namespaces`] |
//! | 05h | [`CommandEffectsLog`] |
//! | 0Ch | [`AnaLog`] |
//! | 70h | [`DiscoveryHeader`], then [`DiscoveryEntry`] |
//! | 80h | [`ReservationNotification`] |

mod ana;
mod discovery;
mod health;
mod support;
#[cfg(test)]
mod tests;

pub use ana::{AnaGroup, AnaLog, AnaLogError, AnaState};
pub use discovery::{
    AddressFamily, DiscoveryEntry, DiscoveryEntryFlags, DiscoveryHeader, DiscoveryLogError, SubsystemType,
    TransportType, parse_discovery_log,
};
pub use health::{
    CriticalWarning, ErrorEntry, FirmwareLog, HealthLog, ReservationNotification, ReservationNotificationType,
};
pub use support::{CommandEffects, CommandEffectsLog, LogPageSupport, SupportedLogPages, changed_namespaces};

use super::wire_enum::wire_enum;

wire_enum! {
    /// Log page identifiers (Base 2.0, 5.16.1).
    pub enum LogPageId: u8 {
        /// Supported Log Pages.
        Supported = 0x00,
        /// Error Information.
        Error = 0x01,
        /// SMART / Health Information.
        Health = 0x02,
        /// Firmware Slot Information.
        Firmware = 0x03,
        /// Changed Namespace List.
        ChangedNamespaces = 0x04,
        /// Commands Supported and Effects.
        CommandEffects = 0x05,
        /// Device Self-test.
        SelfTest = 0x06,
        /// Telemetry Host-Initiated.
        TelemetryHost = 0x07,
        /// Telemetry Controller-Initiated.
        TelemetryController = 0x08,
        /// Endurance Group Information.
        EnduranceGroup = 0x09,
        /// Predictable Latency Per NVM Set.
        PredictableLatency = 0x0a,
        /// Predictable Latency Event Aggregate.
        PredictableLatencyEvents = 0x0b,
        /// Asymmetric Namespace Access.
        Ana = 0x0c,
        /// Persistent Event Log.
        PersistentEvents = 0x0d,
        /// LBA Status Information (NVM 1.0, 4.1.4).
        LbaStatus = 0x0e,
        /// Endurance Group Event Aggregate.
        EnduranceGroupEvents = 0x0f,
        /// Media Unit Status.
        MediaUnits = 0x10,
        /// Supported Capacity Configuration List.
        CapacityConfigurations = 0x11,
        /// Feature Identifiers Supported and Effects.
        FeatureEffects = 0x12,
        /// NVMe-MI Commands Supported and Effects.
        ManagementInterfaceEffects = 0x13,
        /// Command and Feature Lockdown.
        Lockdown = 0x14,
        /// Boot Partition.
        BootPartition = 0x15,
        /// Rotational Media Information.
        RotationalMedia = 0x16,
        /// Discovery.
        Discovery = 0x70,
        /// Reservation Notification.
        ReservationNotification = 0x80,
        /// Sanitize Status.
        SanitizeStatus = 0x81,
    }
}
