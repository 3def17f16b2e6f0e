//! Logs of how a controller fares: errors, health, firmware, reservations.

use crate::wire::status::Status;
use crate::wire::structure::{structure, wire_flags};
use crate::wire::text::AsciiField;
use crate::wire::wire_enum::wire_enum;

structure! {
    /// An entry of the Error Information log (Base 2.0, 5.16.1.2). One of all zeros is not in use.
    pub struct ErrorEntry: 64 {
        /// Counts the errors over the life of the controller, from 1.
        0 => error_count: u64,
        /// Submission queue of the command; FFFFh if none.
        8 => queue_id: u16,
        /// The command; FFFFh if none.
        10 => command_id: u16,
        /// Its status, with the phase tag in bit 0; see [`ErrorEntry::status`].
        12 => status_field: u16,
        /// Where the parameter in error is: bits 7:0 byte, 10:8 bit; FFFFh if none.
        14 => parameter_location: u16,
        /// The first block in error.
        16 => block: u64,
        /// The namespace.
        24 => namespace_id: u32,
        /// Log page with more information, of the vendor.
        28 => vendor_log_page: u8,
        /// Transport type; see [`TransportType`](super::TransportType).
        29 => transport_type: u8,
        /// Depends on the command.
        32 => command_specific: u64,
        /// Depends on the transport.
        40 => transport_specific: u16,
    }
}

impl ErrorEntry {
    /// `parameter_location`, `queue_id` or `command_id` of an error that has none.
    pub const NONE: u16 = 0xffff;

    /// The status of the command.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_field(self.status_field)
    }

    /// The same with this status.
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Self {
        self.status_field = status.to_field();
        self
    }
}

wire_flags! {
    /// Critical Warning of the SMART log (Base 2.0, 5.16.1.3).
    pub struct CriticalWarning: u8 {
        /// The available spare fell below its threshold.
        SPARE = 1 << 0,
        /// A temperature is over or under a threshold.
        TEMPERATURE = 1 << 1,
        /// Reliability suffers.
        RELIABILITY = 1 << 2,
        /// All media is read only.
        READ_ONLY = 1 << 3,
        /// The backup of volatile memory failed.
        MEMORY_BACKUP = 1 << 4,
    }
}

structure! {
    /// The SMART / Health Information log (Base 2.0, 5.16.1.3).
    pub struct HealthLog: 512 {
        /// What is critical.
        0 => critical_warning: CriticalWarning,
        /// Composite temperature in kelvin.
        1 => temperature_kelvin: u16,
        /// Spare left in percent.
        3 => available_spare_percent: u8,
        /// Threshold of that in percent.
        4 => available_spare_threshold_percent: u8,
        /// Life used in percent, up to 255.
        5 => used_percent: u8,
        /// Units of 1000 times 512 bytes read.
        32 => data_units_read: u128,
        /// Units of 1000 times 512 bytes written.
        48 => data_units_written: u128,
        /// Read commands, Compare and Verify among them.
        64 => host_read_commands: u128,
        /// Write commands.
        80 => host_write_commands: u128,
        /// Minutes the controller was busy.
        96 => busy_minutes: u128,
        /// Power cycles.
        112 => power_cycles: u128,
        /// Hours powered.
        128 => power_on_hours: u128,
        /// Power losses without notification.
        144 => unsafe_shutdowns: u128,
        /// Unrecovered integrity errors.
        160 => media_errors: u128,
        /// Entries ever made in the error log.
        176 => error_log_entries: u128,
        /// Minutes above the warning temperature.
        192 => warning_temperature_minutes: u32,
        /// Minutes above the critical temperature.
        196 => critical_temperature_minutes: u32,
        /// Sensors 1 to 8 in kelvin; 0 if there is none.
        200 => sensors_kelvin: [u16; 8],
    }
}

structure! {
    /// The Firmware Slot Information log (Base 2.0, 5.16.1.4).
    pub struct FirmwareLog: 512 {
        /// Bits 2:0 the slot in use, bits 6:4 the slot to be used after the next reset, 0 for the same (AFI).
        0 => active: u8,
        /// Firmware in slots 1 to 7; all zeros for an empty slot.
        8 => revisions: [AsciiField<8>; 7],
    }
}

wire_enum! {
    /// Type of a reservation notification (Base 2.0, 5.16.1.24).
    pub enum ReservationNotificationType: u8 {
        /// No notification.
        Empty = 0,
        /// The registration of the host was preempted.
        RegistrationPreempted = 1,
        /// The reservation was released.
        ReservationReleased = 2,
        /// The reservation was preempted.
        ReservationPreempted = 3,
    }
}

structure! {
    /// The Reservation Notification log (Base 2.0, 5.16.1.24).
    pub struct ReservationNotification: 64 {
        /// Counts the notifications.
        0 => log_page_count: u64,
        /// Its type; see [`ReservationNotification::notification_type`].
        8 => notification_field: u8,
        /// Notifications still waiting, up to 255.
        9 => waiting: u8,
        /// The namespace.
        12 => namespace_id: u32,
    }
}

impl ReservationNotification {
    /// Its type; `None` for a reserved value.
    #[must_use]
    pub fn notification_type(&self) -> Option<ReservationNotificationType> {
        ReservationNotificationType::from_wire(self.notification_field)
    }
}
