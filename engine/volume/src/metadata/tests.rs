//! Frozen bytes, flipped bits, and power cuts at every write.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{BlockDevice, Device};
use pollux_reactor::random_u64;
use pollux_sim::{CutPoints, DriveImage, PowerLoss, Recorder, SimDrive, SimDriveOptions, World};
use proptest::prelude::*;
use uuid::Uuid;

use super::codec::{Header, Kind, Label, MAP_BLOCK_REGIONS};
use super::*;
use crate::membership::{Epoch, Membership, ReplicaEntry, ReplicaState, RollBack, SlotSet, SnapshotEntry};

const VOLUME: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const REPLICA: Uuid = Uuid::from_u128(7);
const HEADER: Header = Header {
    volume: VOLUME,
    replica: REPLICA,
    sequence: 5,
};

fn record(version: u64) -> Membership {
    let entry = |id, state| {
        let id = Uuid::from_u128(id);
        Some(ReplicaEntry { id, state })
    };
    Membership {
        volume: VOLUME,
        epoch: Epoch(3),
        version,
        size_blocks: 1 << 20,
        block_bytes: 4096,
        min_in_sync: 2,
        replicas: [
            entry(7, ReplicaState::InSync),
            entry(8, ReplicaState::Behind),
            None,
            entry(9, ReplicaState::Empty),
            None,
        ],
        snapshots: vec![SnapshotEntry {
            id: Uuid::from_u128(0x5),
            cut: Uuid::from_u128(0x6),
            held_by: SlotSet::from_bits(0b1).unwrap(),
            owed_to: SlotSet::from_bits(0b10).unwrap(),
        }],
        roll_back: None,
        caches_lost: None,
    }
}

fn rolling_back(is_done: bool) -> Membership {
    Membership {
        roll_back: Some(RollBack {
            id: Uuid::from_u128(0xa),
            snapshot: Uuid::from_u128(0x5),
            is_done,
        }),
        caches_lost: is_done.then_some(Epoch(2)),
        ..record(10)
    }
}

fn label() -> Label {
    Label {
        volume: VOLUME,
        replica: REPLICA,
        data_blocks: 1000,
        region_blocks: 256,
        map_blocks: 3,
    }
}

fn structures() -> [(Kind, Block); 6] {
    [
        (Kind::Label, label().encode(5)),
        (Kind::Promise, codec::encode_promise(&HEADER, Epoch(12))),
        (Kind::Record, codec::encode_record(&HEADER, &record(9))),
        (Kind::Map(3), codec::encode_map(&HEADER, 3, &[1, 0, 0x3f])),
        (Kind::Record, codec::encode_record(&HEADER, &rolling_back(false))),
        (Kind::Record, codec::encode_record(&HEADER, &rolling_back(true))),
    ]
}

/// The bytes that are not zero, as `offset: hex`, in runs.
fn dump(block: &Block) -> String {
    let mut text = String::new();
    let mut last = None;
    for (at, byte) in block.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        if last.is_none_or(|last| last + 1 != at) {
            text.push_str(&format!(" {at}:"));
        }
        text.push_str(&format!("{byte:02x}"));
        last = Some(at);
    }
    text.trim_start().to_owned()
}

#[test]
fn bytes_are_frozen() {
    let frozen = include_str!("frozen.txt");
    let now: Vec<String> = structures().iter().map(|(_, block)| dump(block)).collect();
    assert_eq!(now, frozen.lines().collect::<Vec<_>>());
}

#[test]
fn every_structure_is_what_it_was() {
    let [label_block, promise, copy, map, back, over] = structures().map(|(_, block)| block);
    assert_eq!(Label::decode(&label_block), Ok((label(), 5)));
    assert_eq!(codec::check(&promise, Kind::Promise), Ok(HEADER));
    assert_eq!(codec::promise_of(&promise), Epoch(12));
    assert_eq!(codec::record_of(&copy), Ok(record(9)));
    assert_eq!(codec::record_of(&back), Ok(rolling_back(false)));
    assert_eq!(codec::record_of(&over), Ok(rolling_back(true)));
    assert_eq!(
        [0, 1, 2, 3].map(|region| codec::region_of(&map, region)),
        [1, 0, 0x3f, 0]
    );
}

#[test]
fn every_flipped_bit_is_found() {
    for (kind, block) in structures() {
        for bit in 0..BLOCK_BYTES * 8 {
            let mut flipped = block;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(codec::check(&flipped, kind).is_err(), "{kind:?}, bit {bit}");
        }
    }
}

#[test]
fn a_block_at_another_place_or_of_another_kind_does_not_count() {
    for (kind, block) in structures() {
        for other in [
            Kind::Label,
            Kind::Promise,
            Kind::Record,
            Kind::Map(3),
            Kind::Map(4),
        ] {
            assert_eq!(
                codec::check(&block, other).is_ok(),
                kind == other,
                "{kind:?} as {other:?}"
            );
        }
    }
}

proptest! {
    /// What nobody wrote is an error, never a panic, also when its checksum happens to be right.
    #[test]
    fn arbitrary_fields_are_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 600),
        back in (0..4_u32, any::<[u8; 32]>()),
        kind in 0..5_usize,
    ) {
        let (kind, mut block) = structures()[kind];
        block[16..616].copy_from_slice(&bytes);
        if kind == Kind::Record {
            block[3892..3896].copy_from_slice(&back.0.to_le_bytes());
            block[3896..3928].copy_from_slice(&back.1);
        }
        block[56..64].copy_from_slice(&3_u64.to_le_bytes());
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &block[..BLOCK_BYTES - 4]) as u32;
        block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        let _ = codec::check(&block, kind);
        let _ = Label::decode(&block);
        if let Ok(record) = codec::record_of(&block) {
            prop_assert_eq!(record.check(), Ok(()));
        }
    }

    /// A device that is made for some data has room for just that, or for a block more where the map grows.
    #[test]
    fn a_device_for_some_data_is_no_larger_than_it_must_be(data in 1..3_000_000_u64, shift in 0..10_u32) {
        if let Ok(layout) = AreaLayout::for_data(data, 1 << shift) {
            prop_assert!(layout.data_blocks() >= data);
            let smaller = AreaLayout::new(layout.total_blocks() - 1, 1 << shift);
            prop_assert!(smaller.map_or(0, |smaller| smaller.data_blocks()) <= data);
        }
    }

    /// Nothing overlaps, and all is inside the device and before the data.
    #[test]
    fn every_slot_has_a_place_of_its_own(total in 1..200_000_u64, shift in 0..10_u32) {
        if let Ok(layout) = AreaLayout::new(total, 1 << shift) {
            let mut kinds = vec![Kind::Label, Kind::Promise, Kind::Record];
            kinds.extend((0..layout.map_blocks()).map(Kind::Map));
            let mut blocks: Vec<u64> =
                kinds.iter().flat_map(|&kind| [0, 1].map(|slot| layout.block_of(kind, slot))).collect();
            blocks.sort_unstable();
            let expected: Vec<u64> = (0..blocks.len() as u64).collect();
            prop_assert_eq!(&blocks, &expected);
            prop_assert!(layout.area_blocks() >= blocks.len() as u64);
            prop_assert_eq!(layout.total_blocks(), total);
            prop_assert!(layout.regions_max() >= layout.regions());
            prop_assert!(layout.used_map_blocks() <= layout.map_blocks());
        }
    }
}

#[test]
fn the_largest_volume_has_regions_of_the_usual_size() {
    let blocks = (256 << 40) / BLOCK_BYTES as u64;
    let layout = AreaLayout::for_data(blocks, REGION_BLOCKS).unwrap();
    assert!(layout.regions() >= blocks / REGION_BLOCKS);
    // A volume of 20 TiB can become as large as that without being copied.
    let small = AreaLayout::for_data((20 << 40) / BLOCK_BYTES as u64, REGION_BLOCKS).unwrap();
    assert_eq!(
        small.with_data(blocks).map(|grown| grown.data_blocks()),
        Ok(blocks)
    );
    assert!(layout.area_blocks() < blocks / 100_000 && small.area_blocks() < small.data_blocks() / 5_000);
}

#[test]
fn sizes_that_no_replica_has_are_refused() {
    for (data, region_blocks) in [(u64::MAX, 256), (1 << 50, 1), (1, 0), (1, 3)] {
        assert!(matches!(
            AreaLayout::for_data(data, region_blocks),
            Err(LayoutError::Region { .. })
        ));
    }
}

fn drive(block_bytes: u32) -> Arc<SimDrive> {
    let options = SimDriveOptions {
        tears_within_blocks: true,
        ..SimDriveOptions::new(1 << 20, block_bytes).unwrap().instant()
    };
    SimDrive::new("drive", options, 1)
}

fn with_drive<T: 'static>(
    seed: u64,
    drive: Arc<SimDrive>,
    act: impl AsyncFnOnce(Rc<dyn BlockDevice>) -> T + 'static,
) -> T {
    let world = World::new(seed);
    let machine = world.add_machine("one");
    let reactor = world.add_reactor(machine);
    world.insert_drive(machine, &drive);
    world.block_on(reactor, async move { act(drive.attach().await.unwrap()).await })
}

const OPTIONS: FormatOptions = FormatOptions {
    volume: VOLUME,
    replica: REPLICA,
    region_blocks: 4,
};

/// What the area of a device says.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    promise: Epoch,
    record: Option<Membership>,
    map: Vec<u8>,
}

async fn content(device: Rc<dyn BlockDevice>) -> Result<Content, AreaError> {
    let area = Area::open(device).await?;
    Ok(Content {
        promise: area.read_promise().await?,
        record: area.read_record().await?,
        map: area.read_map().await?,
    })
}

/// Writes of all kinds, with what the area says before each, and where in the record of the drive that is.
async fn history(device: Rc<dyn BlockDevice>, recorder: Arc<Recorder>) -> Vec<(usize, Content)> {
    let area = Area::open(device).await.unwrap();
    let mut now = Content {
        promise: area.read_promise().await.unwrap(),
        record: area.read_record().await.unwrap(),
        map: area.read_map().await.unwrap(),
    };
    let mut states = vec![(recorder.position(), now.clone())];
    for step in 1..30 {
        match random_u64() % 3 {
            0 => {
                now.promise = Epoch(step);
                area.write_promise(now.promise).await.unwrap();
            }
            1 => {
                now.record = Some(record(step));
                area.write_record(&record(step)).await.unwrap();
            }
            _ => {
                let regions = now.map.len() as u64;
                now.map[(random_u64() % regions) as usize] = step as u8;
                area.write_map_block(0, &now.map).await.unwrap();
            }
        }
        states.push((recorder.position(), now.clone()));
    }
    states
}

#[test]
fn a_power_cut_at_every_write_leaves_the_old_or_the_new() {
    let mut cuts = 0;
    for seed in 0..6 {
        let drive = drive(if seed % 2 == 0 { 512 } else { 4096 });
        with_drive(seed, drive.clone(), async |device| {
            Area::format(device, &OPTIONS).await.map(drop)
        })
        .unwrap();
        drive.power_loss(PowerLoss::LoseAll);
        let recorder = Recorder::new();
        drive.record(&recorder);
        let inner = recorder.clone();
        let states = with_drive(seed, drive, async move |device| history(device, inner).await);
        let losses = [PowerLoss::LoseAll, PowerLoss::KeepAll, PowerLoss::Torn];
        for state in recorder.crash_states(seed, CutPoints::Everywhere, &losses) {
            cuts += 1;
            let position = state.position;
            let image: DriveImage = state.images.into_iter().next().unwrap();
            let found = with_drive(seed, image.into_drive("cut", 3), content).unwrap();
            let before = states.iter().rposition(|(at, _)| *at <= position).unwrap();
            let legal = [before, (before + 1).min(states.len() - 1)].map(|index| &states[index].1);
            assert!(legal.contains(&&found), "cut at {position}: {found:?}");
        }
    }
    assert!(cuts > 500, "{cuts}");
}

#[test]
fn a_power_cut_while_formatting_leaves_no_replica_or_a_whole_one() {
    let drive = drive(4096);
    with_drive(1, drive.clone(), async |device| {
        Area::format(device, &OPTIONS).await.map(drop)
    })
    .unwrap();
    let recorder = Recorder::new();
    drive.record(&recorder);
    let again = FormatOptions {
        replica: Uuid::from_u128(99),
        ..OPTIONS
    };
    with_drive(2, drive, async move |device| {
        Area::format(device, &again).await.map(drop)
    })
    .unwrap();
    let (mut none, mut whole) = (0, 0);
    for state in recorder.crash_states(1, CutPoints::Everywhere, &[PowerLoss::LoseAll, PowerLoss::Torn]) {
        let image: DriveImage = state.images.into_iter().next().unwrap();
        match with_drive(1, image.into_drive("cut", 3), content) {
            Ok(_) => whole += 1,
            Err(AreaError::Missing("label")) => none += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(none > 5 && whole > 1, "{none} {whole}");
}

#[test]
fn a_device_of_another_replica_is_told() {
    let drive = drive(4096);
    let found = with_drive(1, drive.clone(), async |device| {
        Area::open(device).await.map(|area| area.label())
    });
    assert_eq!(found, Err(AreaError::Missing("label")));
    with_drive(1, drive.clone(), async |device| {
        Area::format(device, &OPTIONS).await.map(drop)
    })
    .unwrap();
    // Back in the world after a power cycle, like every drive.
    drive.power_loss(PowerLoss::LoseAll);
    let label = with_drive(1, drive, async |device| Area::open(device).await.unwrap().label());
    assert_eq!((label.volume, label.replica), (VOLUME, REPLICA));
}

#[test]
fn a_map_of_many_blocks_is_read_as_it_was_written_whichever_slots_are_good() {
    const MAP_BLOCKS: usize = 600;
    let regions = (MAP_BLOCKS * MAP_BLOCK_REGIONS) as u64;
    let blocks = AreaLayout::for_data(regions, 1).unwrap().total_blocks();
    let drive = SimDrive::new("large", SimDriveOptions::new(blocks * 4096, 4096).unwrap(), 1);
    let format = FormatOptions {
        region_blocks: 1,
        ..OPTIONS
    };
    let written = with_drive(1, drive.clone(), async move |device| {
        let area = Area::format(device, &format).await.unwrap();
        let mut map = vec![0; MAP_BLOCKS * MAP_BLOCK_REGIONS];
        for (index, regions) in map.chunks_mut(MAP_BLOCK_REGIONS).enumerate() {
            for write in 0..index % 4 {
                regions.fill((index + write) as u8);
                area.write_map_block(index as u64, regions).await.unwrap();
            }
        }
        map
    });
    let read = |drive: Arc<SimDrive>| {
        drive.power_loss(PowerLoss::LoseAll);
        with_drive(1, drive, async |device| content(device).await).map(|content| content.map)
    };
    assert!(read(drive.clone()).as_ref() == Ok(&written));
    // A slot that cannot be read counts as one that is older, and only that one.
    let layout = AreaLayout::for_data(regions, 1).unwrap();
    for index in [0, 15, 16, 33, 511, 512, 599] {
        let older = (index as u64 % 4 + 1) % 2;
        drive.make_unreadable(layout.block_of(Kind::Map(index as u64), older), 1);
    }
    assert!(read(drive.clone()).as_ref() == Ok(&written));
    for slot in 0..2 {
        drive.make_unreadable(layout.block_of(Kind::Map(20), slot), 1);
    }
    assert_eq!(read(drive), Err(AreaError::Missing("region map")));
}
