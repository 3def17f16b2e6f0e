//! A table as bytes that outlive a loss of power. Little-endian; version 1:
//!
//! ```text
//!  0 magic "POLLUXRV"   8 version (16)   10 registrants (16)   12 type of the reservation, 0 for none
//! 13 1 if hosts do not want them to persist, which only engines that share them keep
//! 16 generation (32)   24 holder, zeros unless one host holds it
//! 40 for each registrant: host (128), key (64)
//!    CRC-32C of all that comes before (32)
//! ```

use super::store::StoreError;
use super::table::{Held, HostId, REGISTRANTS_MAX, Registrant, Table};
use crate::wire::digest::crc32c;
use crate::wire::reservation::ReservationType;
use crate::wire::structure::{Field, structure};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"POLLUXRV";
const VERSION: u16 = 1;
const CHECKSUM_BYTES: usize = 4;

structure! {
    /// The header of a record.
    struct Header: 40 {
        0 => magic: [u8; 8],
        8 => version: u16,
        10 => registrants: u16,
        12 => type_field: u8,
        13 => transient: u8,
        16 => generation: u32,
        24 => holder: HostId,
    }
}

structure! {
    /// A registrant in a record.
    struct Entry: 24 {
        0 => host: HostId,
        16 => key: u64,
    }
}

/// The largest record, in bytes.
pub(super) const RECORD_BYTES_MAX: usize = Header::BYTES + REGISTRANTS_MAX * Entry::BYTES + CHECKSUM_BYTES;

/// The record of a table.
pub(super) fn encode(table: &Table) -> Vec<u8> {
    let holder = match table.held {
        Held::ByOne { holder, .. } => holder,
        Held::Nothing | Held::ByAll { .. } => HostId::default(),
    };
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        // At most REGISTRANTS_MAX.
        registrants: table.registrants.len() as u16,
        type_field: table.held.kind().map_or(0, ReservationType::to_wire),
        transient: u8::from(!table.persist),
        generation: table.generation,
        holder,
    };
    let mut record = header.to_bytes().to_vec();
    for registrant in &table.registrants {
        let entry = Entry {
            host: registrant.host,
            key: registrant.key,
        };
        record.extend(entry.to_bytes());
    }
    record.extend(crc32c(&record).to_le_bytes());
    record
}

/// The table of a record.
pub(super) fn decode(namespace: Uuid, record: &[u8]) -> Result<Table, StoreError> {
    let damaged = |why| StoreError::Damaged { namespace, why };
    let (content, checksum) = record
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(damaged("it is cut"))?;
    if crc32c(content) != u32::from_le_bytes(*checksum) {
        return Err(damaged("its checksum is wrong"));
    }
    let (header, list) = content
        .split_at_checked(Header::BYTES)
        .ok_or(damaged("it is cut"))?;
    let header = Header::from_bytes(header);
    if header.magic != MAGIC || header.version != VERSION {
        return Err(damaged("its format is not known here"));
    }
    if list.len() != usize::from(header.registrants) * Entry::BYTES {
        return Err(damaged("its length is wrong"));
    }
    let held = match (header.type_field, ReservationType::from_wire(header.type_field)) {
        (0, _) => Held::Nothing,
        (_, Some(kind)) if kind.is_held_by_all() => Held::ByAll { kind },
        (_, Some(kind)) => Held::ByOne {
            kind,
            holder: header.holder,
        },
        (_, None) => return Err(damaged("it has a type of reservation that is not known")),
    };
    let table = Table {
        generation: header.generation,
        persist: header.transient == 0,
        registrants: list
            .chunks_exact(Entry::BYTES)
            .map(Entry::read)
            .map(|Entry { host, key }| Registrant { host, key })
            .collect(),
        held,
    };
    if table.is_valid() {
        Ok(table)
    } else {
        Err(damaged("its registrants make no sense"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::test_bytes::at_offsets;

    fn table() -> Table {
        Table {
            generation: 0x0102,
            persist: true,
            registrants: vec![
                Registrant {
                    host: [3; 16],
                    key: 4,
                },
                Registrant {
                    host: [5; 16],
                    key: 6,
                },
            ],
            held: Held::ByOne {
                kind: ReservationType::ExclusiveAccess,
                holder: [5; 16],
            },
        }
    }

    #[test]
    fn the_format_is_frozen() {
        let record = encode(&table());
        let expected = at_offsets(
            88,
            &[
                (0, b"POLLUXRV"),
                (8, &[1, 0, 2, 0, 2]),
                (16, &[2, 1]),
                (24, &[5; 16]),
                (40, &[3; 16]),
                (56, &[4]),
                (64, &[5; 16]),
                (80, &[6]),
            ],
        );
        assert_eq!(record[..88], expected);
        assert_eq!(record[88..], 0xda41_55ee_u32.to_le_bytes());
        assert_eq!(decode(Uuid::nil(), &record), Ok(table()));
    }

    #[test]
    fn every_damage_is_noticed() {
        let record = encode(&table());
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(Uuid::nil(), &damaged).is_err(), "bit {bit}");
        }
        for bytes in 0..record.len() {
            assert!(decode(Uuid::nil(), &record[..bytes]).is_err(), "{bytes} bytes");
        }
    }

    #[test]
    fn a_holder_that_is_not_registered_is_damage() {
        let mut table = table();
        table.registrants.pop();
        assert!(decode(Uuid::nil(), &encode(&table)).is_err());
    }

    #[test]
    fn the_largest_table_fits() {
        let mut table = table();
        table.registrants = (0..REGISTRANTS_MAX as u8)
            .map(|host| Registrant {
                host: [host; 16],
                key: 7,
            })
            .collect();
        let record = encode(&table);
        assert_eq!(record.len(), RECORD_BYTES_MAX);
        assert_eq!(decode(Uuid::nil(), &record), Ok(table));
    }
}
