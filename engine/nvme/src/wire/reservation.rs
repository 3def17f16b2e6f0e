//! Reservations: their types (Base 2.2, 7.5, "Reservation Type Encoding") and the status that Reservation
//! Report returns (Base 2.2, 7.8).
//!
//! ```text
//! header       0 GEN (32)   4 RTYPE   5 REGSTRNT (16)   9 PTPLS                        (24 bytes)
//! registrant   0 CNTLID   2 RCSTS(0)   8 HOSTID (64)    16 RKEY                        (24 bytes)
//! extended     0 CNTLID   2 RCSTS(0)   8 RKEY           16 HOSTID (128), 64 bytes, the first at 64
//! ```

use super::structure::{Field, structure};
use super::wire_enum::wire_enum;

wire_enum! {
    /// Types of reservations.
    pub enum ReservationType: u8 {
        /// Write Exclusive: the holder alone writes.
        WriteExclusive = 1,
        /// Exclusive Access: the holder alone reads and writes.
        ExclusiveAccess = 2,
        /// Write Exclusive - Registrants Only: registrants write.
        WriteExclusiveRegistrantsOnly = 3,
        /// Exclusive Access - Registrants Only: registrants read and write.
        ExclusiveAccessRegistrantsOnly = 4,
        /// Write Exclusive - All Registrants: the same as registrants only, and every registrant holds it.
        WriteExclusiveAllRegistrants = 5,
        /// Exclusive Access - All Registrants: the same as registrants only, and every registrant holds it.
        ExclusiveAccessAllRegistrants = 6,
    }
}

impl ReservationType {
    /// Whether every registrant holds it.
    #[must_use]
    pub const fn is_held_by_all(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }
}

structure! {
    /// The header of a reservation status.
    pub struct ReservationStatusHeader: 24 {
        /// Counts the changes, and wraps (GEN).
        0 => generation: u32,
        /// The type of the reservation that is held, 0 for none; see [`ReservationType`].
        4 => type_field: u8,
        /// How many registrants there are (REGSTRNT).
        5 => registrants: u16,
        /// 1 when all of it persists through a loss of power (PTPLS).
        9 => persist: u8,
    }
}

structure! {
    /// A registrant with an identifier of 128 bits.
    pub struct RegistrantStatus: 64 {
        /// A controller of the host, [`RegistrantStatus::NO_CONTROLLER`] if it has none now.
        0 => controller_id: u16,
        /// Bit 0: the host holds the reservation.
        2 => status: u8,
        /// Its key.
        8 => key: u64,
        /// Its host identifier.
        16 => host: [u8; 16],
    }
}

impl RegistrantStatus {
    /// What stands for the controller of a host that has none.
    pub const NO_CONTROLLER: u16 = 0xffff;
    /// Bit of the status: the host holds the reservation.
    pub const HOLDS: u8 = 1 << 0;
}

/// Where the registrants begin in the extended structure.
const EXTENDED_HEADER_BYTES: usize = 64;

/// The status of a namespace's reservation, in the extended form.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReservationStatus {
    /// Counts the changes, and wraps.
    pub generation: u32,
    /// The reservation that is held, if any.
    pub reservation: Option<ReservationType>,
    /// Whether all of it persists through a loss of power.
    pub persist: bool,
    /// The registrants.
    pub registrants: Vec<RegistrantStatus>,
}

impl ReservationStatus {
    /// Size of the status of so many registrants, in bytes.
    #[must_use]
    pub const fn bytes_of(registrants: usize) -> usize {
        EXTENDED_HEADER_BYTES + registrants * RegistrantStatus::BYTES
    }

    /// The structure as it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = ReservationStatusHeader {
            generation: self.generation,
            type_field: self.reservation.map_or(0, ReservationType::to_wire),
            registrants: u16::try_from(self.registrants.len()).unwrap_or(u16::MAX),
            persist: self.persist.into(),
        };
        let mut bytes = vec![0; Self::bytes_of(self.registrants.len())];
        header.write(&mut bytes);
        let (_, list) = bytes.split_at_mut(EXTENDED_HEADER_BYTES);
        for (slot, registrant) in list.chunks_mut(RegistrantStatus::BYTES).zip(&self.registrants) {
            registrant.write(slot);
        }
        bytes
    }

    /// The structure in these bytes, with as many registrants as are whole in them; `None` if the type is a
    /// reserved one, or the header is cut.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, list) = bytes.split_at_checked(EXTENDED_HEADER_BYTES)?;
        let header = ReservationStatusHeader::from_bytes(header);
        let reservation = match header.type_field {
            0 => None,
            other => Some(ReservationType::from_wire(other)?),
        };
        let registrants = list
            .chunks_exact(RegistrantStatus::BYTES)
            .take(header.registrants.into())
            .map(RegistrantStatus::from_bytes)
            .collect();
        Some(Self {
            generation: header.generation,
            reservation,
            persist: header.persist & 1 != 0,
            registrants,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;
    use proptest::prelude::*;

    #[test]
    fn freezes_the_status() {
        let status = ReservationStatus {
            generation: 0x0102_0304,
            reservation: Some(ReservationType::ExclusiveAccess),
            persist: true,
            registrants: vec![RegistrantStatus {
                controller_id: 0x0506,
                status: RegistrantStatus::HOLDS,
                key: 7,
                host: [9; 16],
            }],
        };
        let expected = at_offsets(
            128,
            &[
                (0, &[4, 3, 2, 1, 2, 1, 0]),
                (9, &[1]),
                (64, &[6, 5, 1]),
                (72, &[7]),
                (80, &[9; 16]),
            ],
        );
        assert_eq!(status.to_bytes(), expected);
        assert_eq!(ReservationStatus::parse(&expected), Some(status));
    }

    #[test]
    fn a_cut_status_has_fewer_registrants() {
        let mut bytes = at_offsets(64 + 2 * 64, &[(5, &[3])]);
        assert_eq!(ReservationStatus::parse(&bytes).unwrap().registrants.len(), 2);
        bytes.truncate(64 + 127);
        assert_eq!(ReservationStatus::parse(&bytes).unwrap().registrants.len(), 1);
        bytes.truncate(63);
        assert_eq!(ReservationStatus::parse(&bytes), None);
        assert_eq!(ReservationStatus::parse(&at_offsets(64, &[(4, &[7])])), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(status) = ReservationStatus::parse(&bytes) {
                let again = status.to_bytes();
                let parsed = ReservationStatus::parse(&again).unwrap();
                prop_assert_eq!(parsed, status);
            }
        }
    }
}
