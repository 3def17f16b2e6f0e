//! The reservation commands (Base 2.2, 7.5 to 7.8).
//!
//! ```text
//! Register   40 RREGA(2:0) IEKEY(3) CPTPL(31:30)   data  0 CRKEY   8 NRKEY
//! Acquire    40 RACQA(2:0) IEKEY(3) RTYPE(15:8)    data  0 CRKEY   8 PRKEY
//! Release    40 RRELA(2:0) IEKEY(3) RTYPE(15:8)    data  0 CRKEY
//! Report     40 NUMD (0's based)   44 EDS(0)       returns a reservation status
//! ```

use zerocopy::little_endian::U32;

use super::entry::SubmissionEntry;
use super::opcode::IoOpcode;
use super::sgl::SglDescriptor;
use crate::wire::reservation::ReservationType;
use crate::wire::structure::structure;
use crate::wire::wire_enum::wire_enum;

const ACTION_MASK: u8 = 0x7;
const IGNORE_EXISTING_KEY: u8 = 1 << 3;
const PERSIST_SHIFT: u32 = 6;

wire_enum! {
    /// What Reservation Register does (RREGA; Base 2.2, 7.6).
    pub enum RegisterAction: u8 {
        /// Registers a key.
        Register = 0,
        /// Takes the registration back.
        Unregister = 1,
        /// Replaces the key by another.
        Replace = 2,
    }
}

wire_enum! {
    /// What Reservation Acquire does (RACQA; Base 2.2, 7.5).
    pub enum AcquireAction: u8 {
        /// Acquires a reservation.
        Acquire = 0,
        /// Takes registrations, and the reservation, away from others.
        Preempt = 1,
        /// The same, and ends their commands.
        PreemptAndAbort = 2,
    }
}

wire_enum! {
    /// What Reservation Release does (RRELA; Base 2.2, 7.7).
    pub enum ReleaseAction: u8 {
        /// Releases the reservation.
        Release = 0,
        /// Releases the reservation, and takes every registration back.
        Clear = 1,
    }
}

wire_enum! {
    /// What becomes of the persistence through a loss of power (CPTPL; Base 2.2, 7.6).
    pub enum PersistChange: u8 {
        /// It stays as it is.
        None = 0,
        /// Reservations and registrations are gone after a loss of power.
        Clear = 2,
        /// They are kept.
        Set = 3,
    }
}

structure! {
    /// The data of Reservation Register (Base 2.2, 7.6).
    pub struct RegisterKeys: 16 {
        /// The key of the host (CRKEY).
        0 => current: u64,
        /// The key to register (NRKEY).
        8 => new: u64,
    }
}

structure! {
    /// The data of Reservation Acquire (Base 2.2, 7.5).
    pub struct AcquireKeys: 16 {
        /// The key of the host (CRKEY).
        0 => current: u64,
        /// The key of those to preempt (PRKEY).
        8 => preempted: u64,
    }
}

structure! {
    /// The data of Reservation Release (Base 2.2, 7.7).
    pub struct ReleaseKey: 8 {
        /// The key of the host (CRKEY).
        0 => current: u64,
    }
}

fn entry_of(opcode: IoOpcode, command_id: u16, namespace_id: u32, data: SglDescriptor) -> SubmissionEntry {
    SubmissionEntry::new(opcode.to_wire(), command_id, namespace_id).with_data(data)
}

fn action_byte(action: u8, ignore_existing_key: bool) -> u8 {
    (action & ACTION_MASK)
        | if ignore_existing_key {
            IGNORE_EXISTING_KEY
        } else {
            0
        }
}

/// Reservation Register (Base 2.2, 7.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationRegister {
    /// Which action (3 bits); see [`RegisterAction`].
    pub action_field: u8,
    /// The current key is not looked at (IEKEY).
    pub ignore_existing_key: bool,
    /// What becomes of the persistence (2 bits); see [`PersistChange`].
    pub persist_field: u8,
}

impl ReservationRegister {
    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [action, _, _, persist] = entry.cdw10.to_bytes();
        Self {
            action_field: action & ACTION_MASK,
            ignore_existing_key: action & IGNORE_EXISTING_KEY != 0,
            persist_field: persist >> PERSIST_SHIFT,
        }
    }

    /// The command, with its data where `data` says.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32, data: SglDescriptor) -> SubmissionEntry {
        let mut entry = entry_of(IoOpcode::ReservationRegister, command_id, namespace_id, data);
        let action = action_byte(self.action_field, self.ignore_existing_key);
        entry.cdw10 = U32::from_bytes([action, 0, 0, self.persist_field << PERSIST_SHIFT]);
        entry
    }
}

/// Reservation Acquire or Release (Base 2.2, 7.5 and 7.7): their dword 10 has the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationChange {
    /// Which action (3 bits); see [`AcquireAction`] and [`ReleaseAction`].
    pub action_field: u8,
    /// Not allowed in either (IEKEY).
    pub ignore_existing_key: bool,
    /// Which type of reservation; see [`ReservationType`].
    pub type_field: u8,
}

impl ReservationChange {
    /// The fields of `entry`, which is taken to be one of the two.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        let [action, type_field, _, _] = entry.cdw10.to_bytes();
        Self {
            action_field: action & ACTION_MASK,
            ignore_existing_key: action & IGNORE_EXISTING_KEY != 0,
            type_field,
        }
    }

    /// The fields for an Acquire of this type.
    #[must_use]
    pub fn acquire(action: AcquireAction, reservation: ReservationType) -> Self {
        Self {
            action_field: action.to_wire(),
            ignore_existing_key: false,
            type_field: reservation.to_wire(),
        }
    }

    /// The fields for a Release of this type; it means nothing to Clear.
    #[must_use]
    pub fn release(action: ReleaseAction, reservation: Option<ReservationType>) -> Self {
        Self {
            action_field: action.to_wire(),
            ignore_existing_key: false,
            type_field: reservation.map_or(0, ReservationType::to_wire),
        }
    }

    fn fill(self, mut entry: SubmissionEntry) -> SubmissionEntry {
        let action = action_byte(self.action_field, self.ignore_existing_key);
        entry.cdw10 = U32::from_bytes([action, self.type_field, 0, 0]);
        entry
    }

    /// Reservation Acquire, with its data where `data` says.
    #[must_use]
    pub fn to_acquire(self, command_id: u16, namespace_id: u32, data: SglDescriptor) -> SubmissionEntry {
        self.fill(entry_of(
            IoOpcode::ReservationAcquire,
            command_id,
            namespace_id,
            data,
        ))
    }

    /// Reservation Release, with its data where `data` says.
    #[must_use]
    pub fn to_release(self, command_id: u16, namespace_id: u32, data: SglDescriptor) -> SubmissionEntry {
        self.fill(entry_of(
            IoOpcode::ReservationRelease,
            command_id,
            namespace_id,
            data,
        ))
    }
}

/// Reservation Report (Base 2.2, 7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationReport {
    /// Dwords to return less one (NUMD).
    pub dwords_minus_one: u32,
    /// The extended data structure, for host identifiers of 128 bits (EDS).
    pub extended: bool,
}

impl ReservationReport {
    const EXTENDED: u32 = 1 << 0;
    const DWORD_BYTES: u64 = 4;

    /// The command for this many bytes, a multiple of 4, of the extended structure.
    #[must_use]
    pub fn new(bytes: u32) -> Self {
        Self {
            dwords_minus_one: (bytes / 4).saturating_sub(1),
            extended: true,
        }
    }

    /// The fields of `entry`, which is taken to be this command.
    #[must_use]
    pub fn from_entry(entry: &SubmissionEntry) -> Self {
        Self {
            dwords_minus_one: entry.cdw10.get(),
            extended: entry.cdw11.get() & Self::EXTENDED != 0,
        }
    }

    /// The command, with its data in data PDUs.
    #[must_use]
    pub fn to_entry(self, command_id: u16, namespace_id: u32) -> SubmissionEntry {
        let bytes = u32::try_from(self.data_bytes()).unwrap_or(u32::MAX);
        let data = SglDescriptor::transport(bytes);
        let mut entry = entry_of(IoOpcode::ReservationReport, command_id, namespace_id, data);
        entry.cdw10 = U32::new(self.dwords_minus_one);
        entry.cdw11 = U32::new(if self.extended { Self::EXTENDED } else { 0 });
        entry
    }

    /// Bytes to return: 4 to 16 GiB.
    #[must_use]
    pub const fn data_bytes(self) -> u64 {
        (self.dwords_minus_one as u64 + 1) * Self::DWORD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    #[test]
    fn freezes_register() {
        let register = ReservationRegister {
            action_field: RegisterAction::Replace.to_wire(),
            ignore_existing_key: true,
            persist_field: PersistChange::Set.to_wire(),
        };
        let entry = register.to_entry(7, 9, SglDescriptor::in_capsule(16));
        let expected = at_offsets(
            64,
            &[
                (0, &[0x0d, 0x40, 7, 0, 9]),
                (32, &[16, 0, 0, 0]),
                (39, &[0x01]),
                (40, &[0b1010, 0, 0, 0xc0]),
            ],
        );
        assert_eq!(entry.as_bytes(), expected);
        let keys = RegisterKeys { current: 1, new: 2 };
        let expected = at_offsets(16, &[(0, &[1]), (8, &[2])]);
        assert_eq!(keys.to_bytes().as_slice(), expected);
    }

    #[test]
    fn freezes_acquire_and_release() {
        let acquire = ReservationChange::acquire(
            AcquireAction::PreemptAndAbort,
            ReservationType::ExclusiveAccessAllRegistrants,
        );
        let entry = acquire.to_acquire(7, 9, SglDescriptor::in_capsule(16));
        assert_eq!(entry.opcode, 0x11);
        assert_eq!(entry.cdw10.to_bytes(), [2, 6, 0, 0]);
        let release = ReservationChange::release(ReleaseAction::Clear, Some(ReservationType::WriteExclusive));
        let entry = release.to_release(7, 9, SglDescriptor::in_capsule(8));
        assert_eq!(entry.opcode, 0x15);
        assert_eq!(entry.cdw10.to_bytes(), [1, 1, 0, 0]);
    }

    #[test]
    fn freezes_report() {
        let entry = ReservationReport::new(4096).to_entry(7, 9);
        assert_eq!(
            (entry.opcode, entry.cdw10.get(), entry.cdw11.get()),
            (0x0e, 1023, 1)
        );
        let all = ReservationReport {
            dwords_minus_one: u32::MAX,
            extended: false,
        };
        assert_eq!(all.data_bytes(), 16 << 30);
    }

    proptest! {
        #[test]
        fn survives_a_round_trip(dword_10: u32, dword_11: u32) {
            let mut entry = SubmissionEntry::new(0, 1, 2);
            (entry.cdw10, entry.cdw11) = (U32::new(dword_10), U32::new(dword_11));
            let data = SglDescriptor::in_capsule(16);
            let register = ReservationRegister::from_entry(&entry);
            prop_assert_eq!(ReservationRegister::from_entry(&register.to_entry(1, 2, data)), register);
            let change = ReservationChange::from_entry(&entry);
            prop_assert_eq!(ReservationChange::from_entry(&change.to_acquire(1, 2, data)), change);
            prop_assert_eq!(ReservationChange::from_entry(&change.to_release(1, 2, data)), change);
            let report = ReservationReport::from_entry(&entry);
            prop_assert_eq!(ReservationReport::from_entry(&report.to_entry(1, 2)), report);
        }
    }
}
