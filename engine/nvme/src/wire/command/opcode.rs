//! The opcodes (Base 2.0, 5 and 7; NVM 1.0, 3.2) and fabrics command types (Base 2.0, 6).

use crate::wire::wire_enum::wire_enum;

/// The opcode of every fabrics command, on admin and I/O queues alike (Base 2.0, 6).
pub const OPCODE_FABRICS: u8 = 0x7f;

wire_enum! {
    /// Opcodes of the admin queue (Base 2.0, 5).
    ///
    /// Bits 1:0 of an opcode tell the direction of its data: 00b none, 01b to the controller, 10b to the
    /// host.
    pub enum AdminOpcode: u8 {
        /// Delete I/O Submission Queue; not used over fabrics.
        DeleteSubmissionQueue = 0x00,
        /// Create I/O Submission Queue; not used over fabrics.
        CreateSubmissionQueue = 0x01,
        /// Get Log Page (5.16).
        GetLogPage = 0x02,
        /// Delete I/O Completion Queue; not used over fabrics.
        DeleteCompletionQueue = 0x04,
        /// Create I/O Completion Queue; not used over fabrics.
        CreateCompletionQueue = 0x05,
        /// Identify (5.17).
        Identify = 0x06,
        /// Abort (5.1).
        Abort = 0x08,
        /// Set Features (5.27).
        SetFeatures = 0x09,
        /// Get Features (5.15).
        GetFeatures = 0x0a,
        /// Asynchronous Event Request (5.2).
        AsynchronousEventRequest = 0x0c,
        /// Namespace Management (5.23).
        NamespaceManagement = 0x0d,
        /// Firmware Commit (5.12).
        FirmwareCommit = 0x10,
        /// Firmware Image Download (5.13).
        FirmwareImageDownload = 0x11,
        /// Device Self-test (5.9).
        DeviceSelfTest = 0x14,
        /// Namespace Attachment (5.22).
        NamespaceAttachment = 0x15,
        /// Keep Alive (5.18).
        KeepAlive = 0x18,
        /// Directive Send (5.11).
        DirectiveSend = 0x19,
        /// Directive Receive (5.10).
        DirectiveReceive = 0x1a,
        /// Virtualization Management (5.28).
        VirtualizationManagement = 0x1c,
        /// NVMe-MI Send (5.21).
        ManagementInterfaceSend = 0x1d,
        /// NVMe-MI Receive (5.20).
        ManagementInterfaceReceive = 0x1e,
        /// Capacity Management (5.3).
        CapacityManagement = 0x20,
        /// Lockdown (5.19).
        Lockdown = 0x24,
        /// Doorbell Buffer Config (5.8); not used over fabrics.
        DoorbellBufferConfig = 0x7c,
        /// A fabrics command (6); see [`FabricsCommandType`].
        Fabrics = 0x7f,
        /// Format NVM (5.14).
        FormatNvm = 0x80,
        /// Security Send (5.26).
        SecuritySend = 0x81,
        /// Security Receive (5.25).
        SecurityReceive = 0x82,
        /// Sanitize (5.24).
        Sanitize = 0x84,
        /// Get LBA Status (NVM 1.0, 4.2.1).
        GetLbaStatus = 0x86,
    }
}

wire_enum! {
    /// Opcodes of I/O queues: those of the NVM command set (NVM 1.0, 3.2) and those common to all (Base 2.0,
    /// 7).
    pub enum IoOpcode: u8 {
        /// Flush (Base 7.1).
        Flush = 0x00,
        /// Write (NVM 3.2.6).
        Write = 0x01,
        /// Read (NVM 3.2.4).
        Read = 0x02,
        /// Write Uncorrectable (NVM 3.2.7).
        WriteUncorrectable = 0x04,
        /// Compare (NVM 3.2.1).
        Compare = 0x05,
        /// Write Zeroes (NVM 3.2.8).
        WriteZeroes = 0x08,
        /// Dataset Management (NVM 3.2.3).
        DatasetManagement = 0x09,
        /// Verify (NVM 3.2.5).
        Verify = 0x0c,
        /// Reservation Register (Base 7.3).
        ReservationRegister = 0x0d,
        /// Reservation Report (Base 7.5).
        ReservationReport = 0x0e,
        /// Reservation Acquire (Base 7.2).
        ReservationAcquire = 0x11,
        /// Reservation Release (Base 7.4).
        ReservationRelease = 0x15,
        /// Copy (NVM 3.2.2).
        Copy = 0x19,
        /// A fabrics command (Base 6); see [`FabricsCommandType`].
        Fabrics = 0x7f,
    }
}

wire_enum! {
    /// Fabrics command types, byte 4 of a submission with opcode 7Fh (Base 2.0, 6).
    pub enum FabricsCommandType: u8 {
        /// Property Set (6.6), admin queue only.
        PropertySet = 0x00,
        /// Connect (6.3), the first command of any queue.
        Connect = 0x01,
        /// Property Get (6.5), admin queue only.
        PropertyGet = 0x04,
        /// Authentication Send (6.2).
        AuthenticationSend = 0x05,
        /// Authentication Receive (6.1).
        AuthenticationReceive = 0x06,
        /// Disconnect (6.4), I/O queues only.
        Disconnect = 0x08,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_an_opcode_or_none() {
        for number in 0..=u8::MAX {
            assert!(AdminOpcode::from_wire(number).is_none_or(|opcode| opcode.to_wire() == number));
            assert!(IoOpcode::from_wire(number).is_none_or(|opcode| opcode.to_wire() == number));
            assert!(FabricsCommandType::from_wire(number).is_none_or(|kind| kind.to_wire() == number));
        }
        assert_eq!(AdminOpcode::from_wire(0x07), None);
        assert_eq!(IoOpcode::from_wire(0x03), None);
        assert_eq!(FabricsCommandType::from_wire(0x02), None);
    }
}
