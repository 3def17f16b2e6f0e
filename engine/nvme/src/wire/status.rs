//! The status of a completion (Base 2.0, 3.3.3.2.1 "Status Field").
//!
//! The field is the upper half of dword 3 of a completion:
//!
//! ```text
//! bit  15   14    13..12  11..9  8..1  0
//!      DNR  More  CRD     SCT    SC    phase tag (unused over fabrics, always 0)
//! ```
//!
//! A [`Status`] is that field with the phase tag cleared, so that a status never heard of survives a round
//! trip. The codes of the specification are associated constants; code points above 7Fh of the command
//! specific type mean different things for different commands, which is why some constants are equal.

use std::fmt;

wire_enum::wire_enum! {
    /// Status Code Type, what a status is about (Base 2.0, 3.3.3.2.1, SCT).
    pub enum StatusType: u8 {
        /// Any command may end so.
        Generic = 0,
        /// Specific to the command, or to its command set from 80h on.
        CommandSpecific = 1,
        /// The media, or the integrity of data.
        Media = 2,
        /// The path between host and controller; a host with another path may use that.
        Path = 3,
        /// Reserved by the specification.
        Reserved4 = 4,
        /// Reserved by the specification.
        Reserved5 = 5,
        /// Reserved by the specification.
        Reserved6 = 6,
        /// The vendor's own.
        VendorSpecific = 7,
    }
}

use super::wire_enum;

/// The status field of a completion, without the phase tag.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

const PHASE_TAG: u16 = 1;
const CODE_SHIFT: u32 = 1;
const TYPE_SHIFT: u32 = 9;
const CODE_AND_TYPE: u16 = 0x0ffe;
const RETRY_DELAY_SHIFT: u32 = 12;
const RETRY_DELAY: u16 = 0x3 << RETRY_DELAY_SHIFT;
const MORE: u16 = 1 << 14;
const DO_NOT_RETRY: u16 = 1 << 15;

impl Status {
    /// A status from its type and code, with all flags clear.
    #[inline]
    #[must_use]
    pub const fn new(status_type: StatusType, code: u8) -> Self {
        Self(((status_type as u16) << TYPE_SHIFT) | ((code as u16) << CODE_SHIFT))
    }

    /// The status in the upper half of completion dword 3. The phase tag is dropped.
    #[inline]
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Self(field & !PHASE_TAG)
    }

    /// The field as it travels, with the phase tag clear.
    #[inline]
    #[must_use]
    pub const fn to_field(self) -> u16 {
        self.0
    }

    /// Status Code (SC).
    #[inline]
    #[must_use]
    pub const fn code(self) -> u8 {
        (self.0 >> CODE_SHIFT) as u8
    }

    /// Status Code Type (SCT).
    #[inline]
    #[must_use]
    pub const fn status_type(self) -> StatusType {
        match (self.0 >> TYPE_SHIFT) & 0x7 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            4 => StatusType::Reserved4,
            5 => StatusType::Reserved5,
            6 => StatusType::Reserved6,
            _ => StatusType::VendorSpecific,
        }
    }

    /// Whether the command succeeded, whatever the flags.
    #[inline]
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & CODE_AND_TYPE == 0
    }

    /// Whether both say the same, flags apart. Use this to compare what a peer sent with a constant.
    #[inline]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.0 & CODE_AND_TYPE == other.0 & CODE_AND_TYPE
    }

    /// Whether another try of the same command would fail alike (DNR).
    #[inline]
    #[must_use]
    pub const fn do_not_retry(self) -> bool {
        self.0 & DO_NOT_RETRY != 0
    }

    /// Whether the Error Information log tells more (M).
    #[inline]
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Command Retry Delay (CRD): 0 for none, 1 to 3 for the delay of that index in Identify Controller
    /// (CRDT1..3).
    #[inline]
    #[must_use]
    pub const fn retry_delay_index(self) -> u8 {
        ((self.0 & RETRY_DELAY) >> RETRY_DELAY_SHIFT) as u8
    }

    /// The same with DNR set.
    #[inline]
    #[must_use]
    pub const fn without_retry(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// The same with the flag set that the Error Information log tells more.
    #[inline]
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// The same with the retry delay of that index; only the lower two bits count.
    #[inline]
    #[must_use]
    pub const fn with_retry_delay_index(self, index: u8) -> Self {
        Self((self.0 & !RETRY_DELAY) | (((index & 0x3) as u16) << RETRY_DELAY_SHIFT))
    }

    /// Type, code and nothing else.
    #[inline]
    #[must_use]
    pub const fn without_flags(self) -> Self {
        Self(self.0 & CODE_AND_TYPE)
    }
}

/// Declares the codes as constants of [`Status`], and the table of their texts.
macro_rules! codes {
    ( $( $type:ident { $( $(#[$meta:meta])* $name:ident = $code:literal, $text:literal; )+ } )+ ) => {
        impl Status {
            $( $(
                #[doc = concat!("\"", $text, "\" (", stringify!($type), ", ", stringify!($code), ").")]
                $(#[$meta])*
                pub const $name: Self = Self::new(StatusType::$type, $code);
            )+ )+
        }

        /// Every code with its text; equal codes stand in the order of declaration.
        const TEXTS: &[(Status, &str)] = &[ $( $( (Status::$name, $text), )+ )+ ];
    };
}

// Base 2.0, figures "Generic Command Status Values", "Command Specific Status Values", "Media and Data
// Integrity Error Values", "Path Related Status Values"; NVM 1.0, the figures of the same names.
codes! {
    Generic {
        SUCCESS = 0x00, "success";
        INVALID_OPCODE = 0x01, "invalid command opcode";
        INVALID_FIELD = 0x02, "invalid field in command";
        COMMAND_ID_CONFLICT = 0x03, "command identifier in use";
        DATA_TRANSFER_ERROR = 0x04, "data transfer error";
        ABORTED_POWER_LOSS = 0x05, "aborted, power is about to be lost";
        INTERNAL_ERROR = 0x06, "internal error";
        ABORT_REQUESTED = 0x07, "aborted by request";
        ABORTED_QUEUE_DELETED = 0x08, "aborted, submission queue deleted";
        ABORTED_FAILED_FUSED = 0x09, "aborted, the other fused command failed";
        ABORTED_MISSING_FUSED = 0x0a, "aborted, the other fused command is missing";
        INVALID_NAMESPACE_OR_FORMAT = 0x0b, "invalid namespace or format";
        COMMAND_SEQUENCE_ERROR = 0x0c, "command out of sequence";
        INVALID_SGL_SEGMENT = 0x0d, "invalid SGL segment descriptor";
        INVALID_SGL_COUNT = 0x0e, "invalid number of SGL descriptors";
        DATA_SGL_LENGTH_INVALID = 0x0f, "invalid data SGL length";
        METADATA_SGL_LENGTH_INVALID = 0x10, "invalid metadata SGL length";
        SGL_TYPE_INVALID = 0x11, "invalid SGL descriptor type";
        INVALID_CONTROLLER_MEMORY_USE = 0x12, "invalid use of controller memory buffer";
        INVALID_PRP_OFFSET = 0x13, "invalid PRP offset";
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14, "atomic write unit exceeded";
        OPERATION_DENIED = 0x15, "operation denied";
        INVALID_SGL_OFFSET = 0x16, "invalid SGL offset";
        HOST_IDENTIFIER_INCONSISTENT = 0x18, "host identifier of inconsistent format";
        KEEP_ALIVE_EXPIRED = 0x19, "keep alive timer expired";
        KEEP_ALIVE_INVALID = 0x1a, "invalid keep alive timeout";
        ABORTED_BY_PREEMPT = 0x1b, "aborted by preempt and abort";
        SANITIZE_FAILED = 0x1c, "sanitize failed";
        SANITIZE_IN_PROGRESS = 0x1d, "sanitize in progress";
        SGL_GRANULARITY_INVALID = 0x1e, "invalid SGL data block granularity";
        NOT_SUPPORTED_IN_CONTROLLER_MEMORY = 0x1f, "command not supported for a queue in controller memory";
        NAMESPACE_WRITE_PROTECTED = 0x20, "namespace is write protected";
        COMMAND_INTERRUPTED = 0x21, "command interrupted, try again";
        TRANSIENT_TRANSPORT_ERROR = 0x22, "transient transport error";
        PROHIBITED_BY_LOCKDOWN = 0x23, "command prohibited by lockdown";
        MEDIA_NOT_READY = 0x24, "media not ready for this admin command";
        /// A reservation command of a host whose identifier is all zeros (Base 2.1, 8.1.22).
        HOST_IDENTIFIER_NOT_INITIALIZED = 0x27, "host identifier not initialized";
        LBA_OUT_OF_RANGE = 0x80, "logical block out of range";
        CAPACITY_EXCEEDED = 0x81, "capacity exceeded";
        NAMESPACE_NOT_READY = 0x82, "namespace not ready";
        RESERVATION_CONFLICT = 0x83, "reservation conflict";
        FORMAT_IN_PROGRESS = 0x84, "format in progress";
    }
    CommandSpecific {
        COMPLETION_QUEUE_INVALID = 0x00, "invalid completion queue";
        INVALID_QUEUE_IDENTIFIER = 0x01, "invalid queue identifier";
        INVALID_QUEUE_SIZE = 0x02, "invalid queue size";
        ABORT_LIMIT_EXCEEDED = 0x03, "too many abort commands";
        ASYNC_EVENT_LIMIT_EXCEEDED = 0x05, "too many asynchronous event requests";
        INVALID_FIRMWARE_SLOT = 0x06, "invalid firmware slot";
        INVALID_FIRMWARE_IMAGE = 0x07, "invalid firmware image";
        INVALID_INTERRUPT_VECTOR = 0x08, "invalid interrupt vector";
        INVALID_LOG_PAGE = 0x09, "invalid log page";
        INVALID_FORMAT = 0x0a, "invalid format";
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0b, "firmware activation needs a conventional reset";
        INVALID_QUEUE_DELETION = 0x0c, "invalid queue deletion";
        FEATURE_NOT_SAVEABLE = 0x0d, "feature is not saveable";
        FEATURE_NOT_CHANGEABLE = 0x0e, "feature is not changeable";
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f, "feature is not namespace specific";
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10, "firmware activation needs a subsystem reset";
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11, "firmware activation needs a controller reset";
        FIRMWARE_TIME_VIOLATION = 0x12, "firmware activation takes too long";
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13, "firmware activation prohibited";
        OVERLAPPING_RANGE = 0x14, "overlapping range";
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15, "insufficient capacity for the namespace";
        NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x16, "namespace identifier unavailable";
        NAMESPACE_ALREADY_ATTACHED = 0x18, "namespace already attached";
        NAMESPACE_IS_PRIVATE = 0x19, "namespace is private";
        NAMESPACE_NOT_ATTACHED = 0x1a, "namespace not attached";
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1b, "thin provisioning not supported";
        CONTROLLER_LIST_INVALID = 0x1c, "invalid controller list";
        SELF_TEST_IN_PROGRESS = 0x1d, "device self-test in progress";
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1e, "boot partition write prohibited";
        INVALID_CONTROLLER_IDENTIFIER = 0x1f, "invalid controller identifier";
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20, "invalid secondary controller state";
        INVALID_CONTROLLER_RESOURCE_COUNT = 0x21, "invalid number of controller resources";
        INVALID_RESOURCE_IDENTIFIER = 0x22, "invalid resource identifier";
        SANITIZE_PROHIBITED = 0x23, "sanitize prohibited while the persistent memory region is enabled";
        ANA_GROUP_INVALID = 0x24, "invalid ANA group identifier";
        ANA_ATTACH_FAILED = 0x25, "ANA attach failed";
        INSUFFICIENT_CAPACITY = 0x26, "insufficient capacity";
        NAMESPACE_ATTACH_LIMIT_EXCEEDED = 0x27, "namespace attachment limit exceeded";
        PROHIBITION_NOT_SUPPORTED = 0x28, "prohibition of command execution not supported";
        COMMAND_SET_NOT_SUPPORTED = 0x29, "I/O command set not supported";
        COMMAND_SET_NOT_ENABLED = 0x2a, "I/O command set not enabled";
        COMMAND_SET_COMBINATION_REJECTED = 0x2b, "I/O command set combination rejected";
        INVALID_COMMAND_SET = 0x2c, "invalid I/O command set";
        IDENTIFIER_UNAVAILABLE = 0x2d, "identifier unavailable";
        CONFLICTING_ATTRIBUTES = 0x80, "conflicting attributes";
        INVALID_PROTECTION_INFORMATION = 0x81, "invalid protection information";
        WRITE_TO_READ_ONLY_RANGE = 0x82, "attempted write to read only range";
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83, "command size limit exceeded";
        /// Fabrics: Connect (Base 2.0, 6.3). The same code point as [`Status::CONFLICTING_ATTRIBUTES`].
        CONNECT_INCOMPATIBLE_FORMAT = 0x80, "connect: incompatible format";
        /// Fabrics: Connect (Base 2.0, 6.3). The same code point as
        /// [`Status::INVALID_PROTECTION_INFORMATION`].
        CONNECT_CONTROLLER_BUSY = 0x81, "connect: controller busy";
        /// Fabrics: Connect (Base 2.0, 6.3). The same code point as [`Status::WRITE_TO_READ_ONLY_RANGE`].
        CONNECT_INVALID_PARAMETERS = 0x82, "connect: invalid parameters";
        /// Fabrics: Connect (Base 2.0, 6.3). The same code point as [`Status::COMMAND_SIZE_LIMIT_EXCEEDED`].
        CONNECT_RESTART_DISCOVERY = 0x83, "connect: restart discovery";
        /// Fabrics: Connect (Base 2.0, 6.3).
        CONNECT_INVALID_HOST = 0x84, "connect: invalid host";
        /// Fabrics: Disconnect (Base 2.0, 6.4).
        INVALID_QUEUE_TYPE = 0x85, "invalid queue type";
        /// Fabrics: Get Log Page of the discovery log changed underway (Base 2.0, 5.16).
        DISCOVER_RESTART = 0x90, "discovery log changed, read it again";
        /// Fabrics: a command before the required authentication (Base 2.0, 8.13).
        AUTHENTICATION_REQUIRED = 0x91, "authentication required";
    }
    Media {
        WRITE_FAULT = 0x80, "write fault";
        UNRECOVERED_READ_ERROR = 0x81, "unrecovered read error";
        GUARD_CHECK_ERROR = 0x82, "end-to-end guard check error";
        APPLICATION_TAG_CHECK_ERROR = 0x83, "end-to-end application tag check error";
        REFERENCE_TAG_CHECK_ERROR = 0x84, "end-to-end reference tag check error";
        COMPARE_FAILURE = 0x85, "compare failure";
        ACCESS_DENIED = 0x86, "access denied";
        DEALLOCATED_OR_UNWRITTEN = 0x87, "deallocated or unwritten logical block";
        STORAGE_TAG_CHECK_ERROR = 0x88, "end-to-end storage tag check error";
    }
    Path {
        INTERNAL_PATH_ERROR = 0x00, "internal path error";
        ANA_PERSISTENT_LOSS = 0x01, "asymmetric access persistent loss";
        ANA_INACCESSIBLE = 0x02, "asymmetric access inaccessible";
        ANA_TRANSITION = 0x03, "asymmetric access transition";
        CONTROLLER_PATHING_ERROR = 0x60, "controller pathing error";
        HOST_PATHING_ERROR = 0x70, "host pathing error";
        /// Made up by hosts for commands they gave up; never sent by a controller.
        ABORTED_BY_HOST = 0x71, "aborted by the host";
    }
}

impl Status {
    /// What the status says to whoever sent a Connect command (Base 2.0, 6.3), whose code points have other
    /// meanings for other commands.
    pub fn connect_text(self) -> String {
        self.connect_reason()
            .map_or_else(|| self.to_string(), str::to_owned)
    }

    /// The meaning that it has for a Connect command alone.
    fn connect_reason(self) -> Option<&'static str> {
        let reasons = [
            (
                Self::CONNECT_INCOMPATIBLE_FORMAT,
                "the target does not know this format of the command",
            ),
            (
                Self::CONNECT_CONTROLLER_BUSY,
                "the subsystem has no room for another controller or queue now",
            ),
            (
                Self::CONNECT_INVALID_PARAMETERS,
                "the target has no subsystem of this name, or no such controller or queue of it",
            ),
            (
                Self::CONNECT_RESTART_DISCOVERY,
                "the subsystem is elsewhere by now",
            ),
            (
                Self::CONNECT_INVALID_HOST,
                "the subsystem does not admit this host",
            ),
            (
                Self::AUTHENTICATION_REQUIRED,
                "the host has to authenticate first",
            ),
        ];
        let mut reasons = reasons.into_iter();
        reasons.find_map(|(status, reason)| self.is(status).then_some(reason))
    }
}

impl fmt::Display for Status {
    /// The text of the code (all texts, where a code point has several meanings), or its numbers; then the
    /// flags.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut known = false;
        for (_, text) in TEXTS.iter().filter(|(status, _)| self.is(*status)) {
            if known {
                formatter.write_str(" or ")?;
            }
            known = true;
            formatter.write_str(text)?;
        }
        if !known {
            write!(formatter, "{:?} status {:#04x}", self.status_type(), self.code())?;
        }
        if self.do_not_retry() {
            formatter.write_str(" (do not retry)")?;
        }
        if self.more() {
            formatter.write_str(" (see the error log)")?;
        }
        if self.retry_delay_index() != 0 {
            write!(formatter, " (retry delay {})", self.retry_delay_index())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Status({:#06x}: {self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit positions written out by hand: DNR, More, CRD 2, SCT 3, SC 02h.
    #[test]
    fn places_every_bit() {
        let status = Status::ANA_INACCESSIBLE
            .without_retry()
            .with_more()
            .with_retry_delay_index(2);
        assert_eq!(status.to_field(), 0b1110_0110_0000_0100);
        assert_eq!(status.status_type(), StatusType::Path);
        assert_eq!(status.code(), 0x02);
        assert!(status.do_not_retry() && status.more());
        assert_eq!(status.retry_delay_index(), 2);
        assert_eq!(status.without_flags(), Status::ANA_INACCESSIBLE);
        assert!(status.is(Status::ANA_INACCESSIBLE) && status != Status::ANA_INACCESSIBLE);
    }

    #[test]
    fn freezes_the_fields_of_common_codes() {
        for (status, field) in [
            (Status::SUCCESS, 0x0000),
            (Status::INVALID_OPCODE, 0x0002),
            (Status::INVALID_FIELD, 0x0004),
            (Status::INVALID_NAMESPACE_OR_FORMAT, 0x0016),
            (Status::LBA_OUT_OF_RANGE, 0x0100),
            (Status::CAPACITY_EXCEEDED, 0x0102),
            (Status::INVALID_LOG_PAGE, 0x0212),
            (Status::CONNECT_INVALID_PARAMETERS, 0x0304),
            (Status::AUTHENTICATION_REQUIRED, 0x0322),
            (Status::WRITE_FAULT, 0x0500),
            (Status::COMPARE_FAILURE, 0x050a),
            (Status::ANA_TRANSITION, 0x0606),
            (Status::HOST_PATHING_ERROR, 0x06e0),
        ] {
            assert_eq!(status.to_field(), field, "{status}");
        }
    }

    #[test]
    fn drops_the_phase_tag() {
        assert_eq!(Status::from_field(0x0005), Status::INVALID_FIELD);
        assert!(Status::from_field(0x0001).is_success());
        assert!(Status::from_field(0x8000).is_success());
    }

    #[test]
    fn speaks_to_people() {
        assert_eq!(
            Status::INVALID_FIELD.without_retry().to_string(),
            "invalid field in command (do not retry)"
        );
        assert_eq!(
            Status::CONNECT_INVALID_PARAMETERS.to_string(),
            "attempted write to read only range or connect: invalid parameters"
        );
        assert_eq!(
            Status::new(StatusType::VendorSpecific, 0xc1).to_string(),
            "VendorSpecific status 0xc1"
        );
        assert_eq!(
            Status::COMMAND_INTERRUPTED
                .with_more()
                .with_retry_delay_index(1)
                .to_string(),
            "command interrupted, try again (see the error log) (retry delay 1)"
        );
    }

    #[test]
    fn a_connect_command_is_told_its_own_meaning() {
        let refused = Status::CONNECT_INVALID_PARAMETERS.without_retry();
        let text = refused.connect_text();
        assert!(text.contains("no subsystem of this name"), "{text}");
        assert_ne!(Status::CONNECT_INVALID_HOST.connect_text(), text);
        let common = Status::INVALID_FIELD;
        assert_eq!(common.connect_text(), common.to_string());
    }

    proptest! {
        #[test]
        fn survives_a_round_trip(field in any::<u16>()) {
            let status = Status::from_field(field);
            prop_assert_eq!(status.to_field(), field & 0xfffe);
            let rebuilt = Status::new(status.status_type(), status.code())
                .with_retry_delay_index(status.retry_delay_index());
            let rebuilt = if status.more() { rebuilt.with_more() } else { rebuilt };
            let rebuilt = if status.do_not_retry() { rebuilt.without_retry() } else { rebuilt };
            prop_assert_eq!(rebuilt, status);
            prop_assert!(!status.to_string().is_empty());
        }
    }
}
