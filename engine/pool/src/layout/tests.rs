//! Frozen bytes, flipped bits, and bytes that nobody wrote.

use proptest::prelude::*;
use uuid::Uuid;

use super::journal::{JournalBlock, JournalHeader, Record};
use super::label::{Access, Features, Label};
use super::page::{Page, PageIdentity, PageKind};
use super::scrub::{ScrubRecord, ScrubState};
use super::slot::{Fragment, Slot};
use super::superblock::{DeviceEntry, DeviceState, Superblock};
use super::volume::{VolumeEntry, VolumeKind, VolumeState};
use super::*;

const POOL: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

fn label() -> Label {
    Label {
        pool: POOL,
        device: Uuid::from_u128(7),
        features: Features {
            compatible: 1,
            read_only_compatible: 0,
            incompatible: 0,
        },
        generation: 3,
        extents: 1000,
        journal_first: 2,
        journal_extents: 16,
        device_number: 1,
        devices: 2,
        name: "tank".to_owned(),
    }
}

fn pointer(number: u64) -> PagePointer {
    PagePointer {
        first: ExtentId::new(0, 40 + number).block(3),
        second: ExtentId::new(1, 50 + number).block(4),
        birth: 9 + number,
        crc: 0x1234_5678,
    }
}

fn scrub() -> ScrubRecord {
    ScrubRecord {
        state: ScrubState::UnderWay { volume: 3, slot: 62 },
        started_seconds: 1_800_000_000,
        blocks: 1000,
        unchecked_blocks: 20,
        bad_block_count: 3,
        bad_blocks: [(2, 7), (3, 900)].into_iter().collect(),
        pages: 40,
        repaired_pages: 2,
        lost_pages: 1,
    }
}

#[test]
fn scrubs_are_found_as_they_were_kept() {
    let states = [
        ScrubState::Never,
        ScrubState::UnderWay { volume: 9, slot: 31 },
        ScrubState::Ended {
            seconds: 1_800_000_500,
        },
    ];
    for state in states {
        let kept = Superblock {
            scrub: ScrubRecord { state, ..scrub() },
            ..superblock()
        };
        assert_eq!(Superblock::decode(&kept.encode()), Ok(kept));
    }
    let mut full = scrub();
    full.bad_blocks = (1..27).map(|number| (number, number * 7)).collect();
    full.bad_block_count = 1_000_000;
    let kept = Superblock {
        scrub: full,
        ..superblock()
    };
    assert_eq!(Superblock::decode(&kept.encode()), Ok(kept));
}

fn superblock() -> Superblock {
    let device = DeviceEntry {
        id: Uuid::from_u128(7),
        extents: 1000,
        state: DeviceState::InUse,
        allocation: Some(pointer(1)),
    };
    Superblock {
        pool: POOL,
        exported: false,
        checkpoint: 5,
        incarnation: 0x55aa,
        generation: 12,
        journal_sequence: 77,
        journal_position: 13,
        next_volume: 4,
        journal_copies: 0b11,
        journal_blocks: 2048,
        revision: 1,
        volumes: Some(pointer(2)),
        scrub: ScrubRecord::default(),
        devices: [
            device,
            DeviceEntry {
                state: DeviceState::Draining,
                allocation: None,
                ..device
            },
        ]
        .into_iter()
        .collect(),
    }
}

fn slot() -> Slot {
    let mut slot = Slot::default();
    slot.fragments.push(Fragment {
        extent: ExtentId::new(1, 0x1234),
        mask: 0x0003,
        birth: 8,
        lost: 0,
    });
    slot.fragments.push(Fragment {
        extent: ExtentId::new(0, 99),
        mask: 0x8000,
        birth: 9,
        lost: 0,
    });
    slot.checksums[0] = 0xdead_beef;
    slot.checksums[15] = 0x0bad_cafe;
    slot
}

fn slot_with_losses() -> Slot {
    let mut slot = slot();
    slot.fragments[0].lost = 2;
    slot.fragments[1].lost = 0x8000;
    slot
}

fn entry() -> VolumeEntry {
    VolumeEntry {
        id: 3,
        kind: VolumeKind::Snapshot,
        state: VolumeState::Kept,
        checksums: false,
        thick: true,
        size_blocks: 1 << 20,
        root: Some(pointer(3)),
        parent: 1,
        generation: 10,
        delete_cursor: 17,
        created_seconds: 1_800_000_000,
        uuid: Uuid::from_u128(0xabc),
        origin: 2,
        own_extents: 77,
        covered_slots: 0,
        count_covered: false,
        name: "daily".to_owned(),
    }
}

fn records() -> Vec<Record> {
    let rootless = Box::new(VolumeEntry {
        root: None,
        ..entry()
    });
    vec![
        Record::Slot {
            volume: 3,
            index: 1 << 33,
            slot: slot(),
        },
        Record::Clear {
            volume: 3,
            first: 5,
            count: 31,
        },
        Record::Intent { volume: 3, region: 6 },
        Record::Checksum {
            volume: 3,
            index: 9,
            block: 15,
            checksum: 0xdead_beef,
        },
        Record::Move {
            volume: 3,
            index: 9,
            from: ExtentId::new(1, 70),
            to: ExtentId::new(2, 1 << 39),
            lost: 0,
        },
        Record::Volume(rootless.clone()),
        Record::Snapshot {
            volume: 1,
            entry: rootless,
        },
    ]
}

fn journal_header() -> JournalHeader {
    JournalHeader {
        pool: POOL,
        incarnation: 0x55aa,
        sequence: 78,
        durable_sequence: 77,
        checkpoint: 5,
    }
}

/// Those of a pool whose labels say that blocks may be lost.
fn records_with_losses() -> Vec<Record> {
    vec![
        Record::Move {
            volume: 3,
            index: 9,
            from: ExtentId::new(1, 71),
            to: ExtentId::new(2, 5),
            lost: 0x8001,
        },
        Record::Slot {
            volume: 1,
            index: 61,
            slot: slot_with_losses(),
        },
    ]
}

fn journal_block() -> Block {
    journal_block_of(&records())
}

fn journal_block_of(records: &[Record]) -> Block {
    let mut block = JournalBlock::new();
    assert!(block.is_empty());
    for record in records {
        assert!(block.push(record));
    }
    *block.seal(&journal_header())
}

fn identity(kind: PageKind, level: u8) -> PageIdentity {
    PageIdentity {
        kind,
        level,
        tree: 3,
        index: 11,
        birth: 10,
    }
}

fn page(kind: PageKind, level: u8) -> Page {
    let mut page = Page::empty(POOL, identity(kind, level));
    match (level, kind) {
        (1.., _) => page.put_pointer(125, Some(&pointer(4))),
        (0, PageKind::Map) => page.put_entry(30, &slot().encode()),
        (0, PageKind::Allocation) => page.put_entry(2015, &[0xff, 0x7f]),
        (0, PageKind::Volumes) => page.put_entry(14, &entry().encode()),
    }
    page.seal();
    page
}

const PAGES: [(PageKind, u8); 4] = [
    (PageKind::Map, 2),
    (PageKind::Map, 0),
    (PageKind::Allocation, 0),
    (PageKind::Volumes, 0),
];

fn open(bytes: Block, kind: PageKind, level: u8, crc: u32) -> Result<Page, LayoutError> {
    Page::open(Box::new(bytes), POOL, &identity(kind, level), crc)
}

/// Every bit flipped is found.
fn assert_flips_are_found(block: &Block, is_refused: impl Fn(&Block) -> bool) {
    assert!(!is_refused(block));
    let mut flipped = *block;
    for bit in 0..BLOCK_BYTES * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(is_refused(&flipped), "bit {bit}");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn what_is_encoded_is_decoded() {
    assert_eq!(Label::decode(&label().encode().unwrap()), Ok(label()));
    assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    for slot in [slot(), slot_with_losses()] {
        assert_eq!(Slot::decode(&slot.encode()), Ok(slot));
    }
    assert_eq!(VolumeEntry::decode(&entry().encode()), Ok(Some(entry())));
    assert_eq!(
        JournalBlock::decode(&journal_block()),
        Ok((journal_header(), records()))
    );
    assert_eq!(
        JournalBlock::decode(&journal_block_of(&records_with_losses())),
        Ok((journal_header(), records_with_losses()))
    );
    for (kind, level) in PAGES {
        let page = page(kind, level);
        let crc = u32::from_le_bytes(page.bytes()[60..64].try_into().unwrap());
        let opened = open(*page.bytes(), kind, level, crc).unwrap();
        assert_eq!(opened, page);
    }
    assert_eq!(page(PageKind::Map, 2).pointer(125), Some(pointer(4)));
    assert_eq!(page(PageKind::Map, 2).pointer(126), None);
}

/// A thick volume of 5 slots.
fn thick_entry() -> VolumeEntry {
    VolumeEntry {
        kind: VolumeKind::Volume,
        state: VolumeState::InUse,
        checksums: true,
        size_blocks: 65,
        covered_slots: 5,
        count_covered: true,
        ..entry()
    }
}

#[test]
fn covered_slots_are_counted_of_thick_volumes_only_and_are_not_more_than_there_are() {
    let entry = thick_entry();
    assert_eq!(VolumeEntry::decode(&entry.encode()), Ok(Some(entry.clone())));
    let covered = LayoutError::Field {
        structure: "volume",
        field: "covered slots",
    };
    let thin = VolumeEntry {
        thick: false,
        ..entry.clone()
    };
    for wrong in [
        VolumeEntry {
            covered_slots: 6,
            ..entry.clone()
        },
        VolumeEntry {
            count_covered: false,
            ..thin.clone()
        },
        VolumeEntry {
            covered_slots: 0,
            ..thin.clone()
        },
    ] {
        assert_eq!(VolumeEntry::decode(&wrong.encode()), Err(covered), "{wrong:?}");
    }
    // What is in an entry goes through pages and records unchanged, and a flipped bit of them is found.
    let identity = identity(PageKind::Volumes, 0);
    let mut page = Page::empty(POOL, identity);
    page.put_entry(14, &entry.encode());
    let crc = page.seal();
    assert_flips_are_found(page.bytes(), |block| {
        open(*block, PageKind::Volumes, 0, crc).is_err()
    });
}

#[test]
fn every_flipped_bit_is_found() {
    assert_flips_are_found(&label().encode().unwrap(), |block| Label::decode(block).is_err());
    assert_flips_are_found(&superblock().encode(), |block| Superblock::decode(block).is_err());
    assert_flips_are_found(&journal_block(), |block| JournalBlock::decode(block).is_err());
    for (kind, level) in PAGES {
        let mut page = page(kind, level);
        let crc = page.seal();
        assert_flips_are_found(page.bytes(), |block| open(*block, kind, level, crc).is_err());
    }
}

#[test]
fn the_bytes_of_format_1_do_not_change() {
    let pages = PAGES.map(|(kind, level)| *page(kind, level).bytes());
    // As it was before superblocks said which copies of the journal count.
    let silent = Superblock {
        journal_copies: 0,
        journal_blocks: 0,
        revision: 0,
        ..superblock()
    };
    let blocks = [label().encode().unwrap(), silent.encode(), journal_block()];
    let found: Vec<u32> = blocks
        .iter()
        .chain(&pages)
        .map(|block| crc32c(&block[..4092]))
        .collect();
    let frozen: [u32; 7] = [
        0xc933_8c32,
        0x9ad3_aef7,
        0x7ffd_68d8,
        0xdde8_d748,
        0xefeb_53ab,
        0x9cc5_03fe,
        0xb50d_2f89,
    ];
    assert_eq!(found, frozen, "{found:#x?}");
    let superblock = superblock().encode();
    assert_eq!(&superblock[80..96], b"\x03\0\0\0\x01\0\0\0\0\x08\0\0\0\0\0\0");
    assert_eq!(crc32c(&superblock[..4092]), 0x3d3c_fb0d);
    let label = label().encode().unwrap();
    assert_eq!(&label[..16], b"PLXLABEL\x01\0\0\0\0\0\0\0");
    assert_eq!(&label[16..32], POOL.as_bytes());
    assert_eq!(&label[128..134], b"\x04\0tank");
    let slot = slot().encode();
    assert_eq!(&slot[64..80], b"\x34\x12\0\0\0\x01\x03\0\x08\0\0\0\0\0\0\0");
    assert_eq!(&slot[..4], b"\xef\xbe\xad\xde");
    let lossy = journal_block_of(&records_with_losses());
    assert_eq!(&lossy[97..99], b"\x01\x80");
    let slot = slot_with_losses().encode();
    assert_eq!(&slot[64..80], b"\x34\x12\0\0\0\x01\x03\0\x08\0\0\0\0\0\x02\0");
}

#[test]
fn a_page_from_elsewhere_is_refused() {
    let mut page = page(PageKind::Map, 0);
    let crc = page.seal();
    let bytes = *page.bytes();
    let right = identity(PageKind::Map, 0);
    let open =
        |pool, expected: &PageIdentity, crc| Page::open(Box::new(bytes), pool, expected, crc).map(drop);
    assert_eq!(open(POOL, &right, crc), Ok(()));
    assert_eq!(open(POOL, &PageIdentity { tree: 99, ..right }, crc), Ok(()));
    let other = |field| Err(LayoutError::OtherPage(field));
    assert_eq!(open(POOL, &right, crc ^ 1), other("checksum"));
    assert_eq!(open(Uuid::nil(), &right, crc), other("pool"));
    assert_eq!(
        open(POOL, &PageIdentity { index: 12, ..right }, crc),
        other("place")
    );
    assert_eq!(
        open(POOL, &PageIdentity { birth: 11, ..right }, crc),
        other("birth")
    );
    assert_eq!(
        open(POOL, &PageIdentity { level: 1, ..right }, crc),
        other("level")
    );
    assert_eq!(
        open(
            POOL,
            &PageIdentity {
                kind: PageKind::Volumes,
                ..right
            },
            crc
        ),
        other("kind")
    );
}

#[test]
fn features_decide_what_may_be_done() {
    let access = |compatible, read_only_compatible, incompatible| {
        Features {
            compatible,
            read_only_compatible,
            incompatible,
        }
        .access()
    };
    assert_eq!(access(u64::MAX, 0, 0), Access::ReadWrite);
    assert_eq!(access(0, 2, 0), Access::ReadOnly { unknown: 2 });
    assert_eq!(access(0, 2, 4), Access::Refused { unknown: 4 });
}

/// A block with a right CRC and something wrong in it.
fn resealed(mut block: Block, at: usize, bytes: &[u8]) -> Block {
    field::put(&mut block, at, bytes);
    field::seal(block)
}

#[test]
fn wrong_fields_under_a_right_checksum_are_refused() {
    let encoded = label().encode().unwrap();
    let label_with = |at, bytes: &[u8]| Label::decode(&resealed(encoded, at, bytes)).unwrap_err();
    let wrong = |structure, field| LayoutError::Field { structure, field };
    assert_eq!(
        label_with(8, &[2]),
        LayoutError::Version {
            structure: "label",
            version: 2
        }
    );
    assert_eq!(label_with(80, &[1, 0]), wrong("label", "extents"));
    assert_eq!(label_with(96, &[0xff; 8]), wrong("label", "journal"));
    assert_eq!(label_with(106, &[0]), wrong("label", "devices"));
    assert_eq!(label_with(128, &[200]), wrong("label", "name"));
    assert_eq!(label_with(130, b"/"), wrong("label", "name"));
    assert!(
        Label {
            name: String::new(),
            ..label()
        }
        .encode()
        .is_err()
    );
    let records = resealed(journal_block(), 64, &[99]);
    assert_eq!(
        JournalBlock::decode(&records),
        Err(wrong("journal block", "kind of a record"))
    );
    let none_lost = resealed(journal_block_of(&records_with_losses()), 97, &[0, 0]);
    assert_eq!(
        JournalBlock::decode(&none_lost),
        Err(wrong("journal block", "lost blocks of a move"))
    );
    let long = resealed(journal_block(), 12, &[0xff, 0xff]);
    assert!(JournalBlock::decode(&long).is_err());
    let mut overlapping = slot();
    overlapping.fragments[1].mask = 1;
    assert_eq!(
        Slot::decode(&overlapping.encode()),
        Err(wrong("slot", "blocks of a fragment"))
    );
    let mut nowhere = slot();
    nowhere.fragments[0].lost = 4;
    assert_eq!(
        Slot::decode(&nowhere.encode()),
        Err(wrong("slot", "lost blocks of a fragment"))
    );
    let mut stray = slot();
    stray.checksums[7] = 1;
    assert!(Slot::decode(&stray.encode()).is_err());
}

#[test]
fn a_full_block_takes_no_more_records() {
    let mut block = JournalBlock::new();
    let record = &records()[0];
    let count = (0..100).take_while(|_| block.push(record)).count();
    assert_eq!(count, journal::RECORDS_BYTES_MAX / 145);
    assert_eq!(
        JournalBlock::decode(&block.seal(&journal_header()))
            .unwrap()
            .1
            .len(),
        count
    );
}

#[test]
fn addresses_keep_their_parts() {
    let extent = ExtentId::new(200, (1 << 40) - 1);
    assert_eq!((extent.device(), extent.number()), (200, (1 << 40) - 1));
    assert_eq!(ExtentId::from_raw(extent.raw()), Some(extent));
    assert_eq!((ExtentId::from_raw(0), ExtentId::from_raw(1 << 48)), (None, None));
    let block = ExtentId::new(1, 5).block(9);
    assert_eq!((block.extent(), block.index()), (ExtentId::new(1, 5), 9));
    assert_eq!(block.offset_bytes(), 5 * EXTENT_BYTES + 9 * 4096);
    assert_eq!(BlockAddress::from_raw(block.raw()), Some(block));
    assert_eq!(BlockAddress::from_raw(15), None);
    assert_eq!(label::area_blocks(100), [0, 16, 98 * 16, 99 * 16]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Anything at all is an error or a value that encodes again, also where the CRC is right.
    #[test]
    fn arbitrary_bytes_never_panic(
        which in 0usize..7,
        noise in prop::collection::vec((0usize..4092, any::<u8>()), 0..40),
        fill in prop::option::of(any::<u8>()),
    ) {
        let pages = PAGES.map(|(kind, level)| *page(kind, level).bytes());
        let blocks = [label().encode().unwrap(), superblock().encode(), journal_block()];
        let known = [&blocks[..], &pages[..]].concat();
        let mut block = known[which];
        if let Some(byte) = fill {
            block[12..4092].fill(byte);
        }
        for (at, byte) in noise {
            block[at] = byte;
        }
        let sealed = field::seal(block);
        for block in [block, sealed] {
            if let Ok(label) = Label::decode(&block) {
                prop_assert_eq!(Label::decode(&label.encode().unwrap()), Ok(label));
            }
            if let Ok(superblock) = Superblock::decode(&block) {
                prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
            }
            let _ = JournalBlock::decode(&block);
        }
        for (kind, level) in PAGES {
            let mut raw = block;
            let crc = page::page_crc(&raw);
            field::put_u32(&mut raw, 60, crc);
            let _ = open(raw, kind, level, crc);
        }
        let _ = Slot::decode(&block[..128]);
        let _ = VolumeEntry::decode(&block[..256]);
    }
}
