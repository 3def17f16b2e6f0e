//! A table as bytes that outlive a loss of power. Little-endian; version 2, or 1 where no host has heard of
//! a loss of caches, which is then what it was before there were any:
//!
//! ```text
//!  0 magic "POLLUXRV"   8 version (16)   10 registrants (16)   12 type of the reservation, 0 for none
//! 13 1 if hosts do not want them to persist, which only engines that share them keep
//! 14 version 2: hosts that have heard of a loss (16)
//! 16 generation (32)   24 holder, zeros unless one host holds it
//! 40 for each registrant: host (128), key (64)
//!    version 2: the loss (64); for each host that has heard of it: host (128)
//!    CRC-32C of all that comes before (32)
//! ```

use super::losses::{CacheLoss, TOLD_MAX};
use super::store::StoreError;
use super::table::{Held, HostId, REGISTRANTS_MAX, Registrant, Table};
use crate::wire::digest::crc32c;
use crate::wire::reservation::ReservationType;
use crate::wire::structure::{Field, structure};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"POLLUXRV";
const VERSION: u16 = 1;
const VERSION_WITH_LOSS: u16 = 2;
const CHECKSUM_BYTES: usize = 4;

structure! {
    /// The header of a record.
    struct Header: 40 {
        0 => magic: [u8; 8],
        8 => version: u16,
        10 => registrants: u16,
        12 => type_field: u8,
        13 => transient: u8,
        14 => told: u16,
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

const LOSS_BYTES: usize = 8;
const HOST_BYTES: usize = 16;

/// The largest record, in bytes.
pub(super) const RECORD_BYTES_MAX: usize =
    Header::BYTES + REGISTRANTS_MAX * Entry::BYTES + LOSS_BYTES + TOLD_MAX * HOST_BYTES + CHECKSUM_BYTES;

/// Those who keep it take no more.
const _: () = assert!(RECORD_BYTES_MAX <= 4096);

/// The record of a table.
pub(super) fn encode(table: &Table) -> Vec<u8> {
    let holder = match table.held {
        Held::ByOne { holder, .. } => holder,
        Held::Nothing | Held::ByAll { .. } => HostId::default(),
    };
    let header = Header {
        magic: MAGIC,
        version: match table.loss.told.is_empty() {
            true => VERSION,
            false => VERSION_WITH_LOSS,
        },
        // At most REGISTRANTS_MAX.
        registrants: table.registrants.len() as u16,
        type_field: table.held.kind().map_or(0, ReservationType::to_wire),
        transient: u8::from(!table.persist),
        // At most TOLD_MAX.
        told: table.loss.told.len() as u16,
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
    if !table.loss.told.is_empty() {
        record.extend(table.loss.number.to_le_bytes());
        record.extend(table.loss.told.as_flattened());
    }
    record.extend(crc32c(&record).to_le_bytes());
    record
}

/// The loss of a record, and who has heard of it.
fn loss_of(bytes: &[u8]) -> CacheLoss {
    let Some((number, told)) = bytes.split_first_chunk::<LOSS_BYTES>() else {
        return CacheLoss::default();
    };
    CacheLoss {
        number: u64::from_le_bytes(*number),
        told: told.as_chunks().0.to_vec(),
    }
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
    let loss_bytes = match (header.version, usize::from(header.told)) {
        _ if header.magic != MAGIC => return Err(damaged("its format is not known here")),
        (VERSION, 0) => 0,
        (VERSION_WITH_LOSS, told @ 1..=TOLD_MAX) => LOSS_BYTES + told * HOST_BYTES,
        (VERSION | VERSION_WITH_LOSS, _) => return Err(damaged("hosts are told of no loss")),
        _ => return Err(damaged("its format is not known here")),
    };
    let entries_bytes = usize::from(header.registrants) * Entry::BYTES;
    let (list, loss) = list
        .split_at_checked(entries_bytes)
        .filter(|(_, loss)| loss.len() == loss_bytes)
        .ok_or(damaged("its length is wrong"))?;
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
        loss: loss_of(loss),
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
            loss: CacheLoss::default(),
        }
    }

    fn with_loss() -> Table {
        let mut table = table();
        table.loss = CacheLoss::new(0x0304);
        table.loss.tell([8; 16]);
        table.loss.tell([9; 16]);
        table
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
    fn a_loss_is_kept_once_somebody_has_heard_of_it() {
        let record = encode(&with_loss());
        let expected = at_offsets(
            128,
            &[
                (0, b"POLLUXRV"),
                (8, &[2, 0, 2, 0, 2, 0, 2]),
                (16, &[2, 1]),
                (24, &[5; 16]),
                (40, &[3; 16]),
                (56, &[4]),
                (64, &[5; 16]),
                (80, &[6]),
                (88, &[4, 3]),
                (96, &[8; 16]),
                (112, &[9; 16]),
            ],
        );
        assert_eq!(record[..128], expected);
        assert_eq!(decode(Uuid::nil(), &record), Ok(with_loss()));
        // Nobody has: whoever keeps the record need not know of it.
        let unheard = Table {
            loss: CacheLoss::new(5),
            ..table()
        };
        assert_eq!(encode(&unheard), encode(&table()));
    }

    #[test]
    fn every_damage_is_noticed() {
        every_damage_of(&encode(&table()));
        every_damage_of(&encode(&with_loss()));
    }

    fn every_damage_of(record: &[u8]) {
        for bit in 0..record.len() * 8 {
            let mut damaged = record.to_vec();
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
        table.loss = CacheLoss::new(u64::MAX);
        (0..TOLD_MAX as u8).for_each(|host| table.loss.tell([host; 16]));
        let record = encode(&table);
        assert_eq!(record.len(), RECORD_BYTES_MAX);
        assert_eq!(decode(Uuid::nil(), &record), Ok(table));
    }
}
