//! Damage: bits flip in every structure of metadata and in data, writes are lost or go elsewhere, blocks
//! cannot be read, drives fail, hang and go away. What is returned is right, or an error; the pool opens from
//! its other copies, or says what is lost.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::common::{Bench, Drives, new_volume, options};
use crate::history::{BLOCK, contents, data, value_of};
use crate::model::PoolModel;
use pollux_device::{BlockDeviceExt, IoError};
use pollux_hugepages::Buffer;
use pollux_pool::layout::label::area_blocks;
use pollux_pool::layout::volume::VolumeEntry;
use pollux_pool::{CreateOptions, Pool, PoolError, VolumeOptions};
use pollux_sim::{DriveImage, Fault, Operation, PowerLoss, Random};

/// What a block of a drive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Label,
    Superblock,
    Journal,
    Map,
    Allocation,
    Volumes,
}

/// A block of metadata.
#[derive(Debug, Clone, Copy)]
struct Place {
    drive: usize,
    block: u64,
    kind: Kind,
}

/// A pool, as a power cut or an export left it.
struct Scene {
    bench: Bench,
    images: Vec<DriveImage>,
    values: Values,
    /// The same without what the last block of the journal says.
    without_last: Values,
    /// What an import of undamaged drives has.
    volumes: RefCell<Vec<VolumeEntry>>,
    places: Vec<Place>,
}

type Values = Vec<(String, Vec<u64>)>;

/// How an import is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All blocks are read, and the pool is checked.
    Blocks,
    /// Volumes are compared with those of an import of undamaged drives: the CRCs of their roots vouch for
    /// everything below. For damage of what no block is read through.
    Roots,
}

fn values(model: &PoolModel) -> Values {
    let volumes = model.volumes.iter();
    volumes
        .map(|(name, volume)| (name.clone(), volume.values()))
        .collect()
}

/// A few volumes, snapshots and clones, some of it in the journal only.
async fn build(drives: Drives, export: bool) -> (Values, Values) {
    let pool = drives.pool(&CreateOptions::default()).await;
    let mut value = 0;
    let mut write = async |name: &str, block: u64, blocks: u64| {
        value += 1;
        let volume = pool.open_volume(name).unwrap();
        volume.write(block, data(value, blocks), false).await.unwrap();
    };
    for name in ["a", "b", "c"] {
        pool.create_volume(name, &VolumeOptions::new(700)).await.unwrap();
        write(name, 3, 40).await;
        write(name, 600, 20).await;
    }
    pool.snapshot("a", "s", 0).await.unwrap();
    write("a", 10, 2).await;
    pool.clone_snapshot("s", "d", 0).await.unwrap();
    write("d", 12, 3).await;
    pool.checkpoint().await.unwrap();
    write("a", 20, 4).await;
    pool.snapshot("a", "t", 0).await.unwrap();
    for number in 0..60 {
        write(["a", "b", "d"][number % 3], 5 * number as u64 % 64, 3).await;
        pool.open_volume("a").unwrap().flush().await.unwrap();
    }
    let before = values(&contents(&pool).await.unwrap());
    write("b", 650, 1).await;
    pool.open_volume("b").unwrap().flush().await.unwrap();
    let after = values(&contents(&pool).await.unwrap());
    assert!(pool.check().await.unwrap().is_sound());
    if export {
        pool.export().await.unwrap();
    }
    (before, after)
}

fn scene(drives: usize, export: bool) -> Scene {
    let bench = Bench::new(drives as u64, drives);
    let (without_last, values) = bench.run(|drives| build(drives, export));
    let images: Vec<DriveImage> = bench
        .drives
        .0
        .iter()
        .map(|drive| {
            drive.power_loss(PowerLoss::LoseAll);
            drive.image()
        })
        .collect();
    let places = images
        .iter()
        .enumerate()
        .flat_map(|(drive, image)| places_of(drive, image));
    Scene {
        places: places.collect(),
        bench,
        images,
        values,
        without_last,
        volumes: RefCell::default(),
    }
}

fn places_of(drive: usize, image: &DriveImage) -> Vec<Place> {
    let found = (0..crate::common::DRIVE_BYTES / BLOCK as u64).filter_map(|block| {
        let mut magic = [0; 8];
        image.read(block * BLOCK as u64, &mut magic);
        let kind = match &magic {
            b"PLXLABEL" => Kind::Label,
            b"PLXSUPER" => Kind::Superblock,
            b"PLXJRNL1" => Kind::Journal,
            b"PLXPAGE\x01" => Kind::Map,
            b"PLXPAGE\x02" => Kind::Allocation,
            b"PLXPAGE\x03" => Kind::Volumes,
            _ => return None,
        };
        Some(Place { drive, block, kind })
    });
    found.collect()
}

impl Scene {
    /// What an import of damaged drives finds, after a look whether it is sound.
    fn import(&self, flips: &[(usize, u64, u8)]) -> Result<Values, PoolError> {
        self.look(flips, Look::Blocks)
    }

    fn look(&self, flips: &[(usize, u64, u8)], look: Look) -> Result<Values, PoolError> {
        let mut images = self.images.clone();
        for (drive, offset_bytes, bit) in flips {
            images[*drive].flip_bit(*offset_bytes, *bit);
        }
        let drives = Drives(
            images
                .into_iter()
                .map(|image| image.into_drive("damaged", 1))
                .collect(),
        );
        let known = (look == Look::Roots).then(|| self.volumes.borrow().clone());
        let (volumes, found) = self.bench.world.block_on(self.bench.reactor, async move {
            let (pool, _) = Pool::import(drives.attach().await, options()).await?;
            let volumes = pool.volumes();
            if known.is_some_and(|known| known == volumes) {
                return Ok((volumes, None));
            }
            let found = values(&contents(&pool).await.unwrap());
            let check = pool.check().await?;
            assert!(check.is_sound(), "{check:?}");
            Ok::<_, PoolError>((volumes, Some(found)))
        })?;
        if flips.is_empty() {
            *self.volumes.borrow_mut() = volumes;
        }
        Ok(found.unwrap_or_else(|| self.values.clone()))
    }

    fn last_journal_sequence(&self) -> u64 {
        let journal = self.places.iter().filter(|place| place.kind == Kind::Journal);
        journal.map(|place| self.sequence(place)).max().unwrap()
    }

    fn sequence(&self, place: &Place) -> u64 {
        let mut sequence = [0; 8];
        self.images[place.drive].read(place.block * BLOCK as u64 + 40, &mut sequence);
        u64::from_le_bytes(sequence)
    }

    /// The bits to flip of a block: all of the first label and superblock but for what is reserved, a part of
    /// others.
    fn bits(&self, place: &Place, random: &mut Random) -> Vec<u64> {
        let is_first = matches!(place.kind, Kind::Label | Kind::Superblock) && place.block < 16;
        let end = BLOCK as u64 * 8;
        let mut bits: Vec<u64> = if is_first && self.images.len() == 1 {
            (0..136 * 8).chain(end - 32..end).collect()
        } else {
            (0..3).map(|_| random.below(64 * 8)).collect()
        };
        bits.push(end - 32 + random.below(32));
        bits.extend((0..2).map(|_| random.below(512 * 8)));
        bits.extend((0..2).map(|_| random.below(end)));
        bits
    }
}

fn one_bit_of_any_metadata(drives: usize) {
    let scene = scene(drives, false);
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut refused = 0;
    let mut random = scene.bench.world.random("bits", 0);
    let last = scene.last_journal_sequence();
    assert_eq!(scene.import(&[]).unwrap(), scene.values);
    for place in &scene.places {
        let look = match place.kind {
            Kind::Label | Kind::Superblock => Look::Roots,
            Kind::Journal | Kind::Map | Kind::Allocation | Kind::Volumes => Look::Blocks,
        };
        for bit in scene.bits(place, &mut random) {
            let flip = (place.drive, place.block * BLOCK as u64 + bit / 8, (bit % 8) as u8);
            let context = format!("{drives} drives, {place:?}, bit {bit}");
            *counts.entry(place.kind).or_default() += 1;
            match scene.look(&[flip], look) {
                Ok(found) if found == scene.values => {}
                // The last block cannot be told from one that was torn.
                Ok(found) if drives == 1 && place.kind == Kind::Journal && scene.sequence(place) == last => {
                    assert!(found == scene.without_last, "{context}");
                }
                Ok(_) => panic!("{context}: something else was found"),
                Err(PoolError::Scan(_)) if drives == 1 && place.kind == Kind::Journal => refused += 1,
                Err(error) => panic!("{context}: {error}"),
            }
        }
    }
    assert!(
        counts.len() == 6 && counts.values().all(|count| *count >= 30),
        "{counts:?}"
    );
    assert!(refused > 0 || drives > 1, "damage of the journal has to be told");
}

#[test]
fn one_bit_of_any_metadata_costs_nothing_with_one_drive() {
    one_bit_of_any_metadata(1);
}

#[test]
fn one_bit_of_any_metadata_costs_nothing_with_two_drives() {
    one_bit_of_any_metadata(2);
}

/// What can be read of each volume, after damage that no other copy makes good.
async fn readable(pool: &Rc<Pool>) -> Vec<(String, Vec<Result<u64, IoError>>)> {
    let mut all = Vec::new();
    for entry in pool.volumes() {
        let volume = pool.open_volume(&entry.name).unwrap();
        let mut blocks = Vec::new();
        for block in 0..entry.size_blocks {
            let read = volume.read(block, Buffer::from_heap(BLOCK)).await;
            blocks.push(read.map(|bytes| value_of(&bytes).unwrap()));
        }
        all.push((entry.name, blocks));
    }
    // As those of the model are.
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

/// Both copies of each page are damaged in turn: what it leads to is lost and told, nothing wrong is
/// returned, and a bad page of one volume takes no other volume with it.
#[test]
fn a_page_without_a_good_copy_is_told_and_takes_nothing_else_with_it() {
    let (mut refused, mut partly) = (0, 0);
    for (drives, export) in [(1, true), (1, false), (2, true)] {
        let scene = scene(drives, export);
        let mut by_content: BTreeMap<Vec<u8>, Vec<Place>> = BTreeMap::new();
        for place in &scene.places {
            if matches!(place.kind, Kind::Map | Kind::Allocation | Kind::Volumes) {
                let mut bytes = vec![0; BLOCK];
                scene.images[place.drive].read(place.block * BLOCK as u64, &mut bytes);
                by_content.entry(bytes).or_default().push(*place);
            }
        }
        for copies in by_content.values() {
            let mut images = scene.images.clone();
            for place in copies {
                images[place.drive].flip_bit(place.block * BLOCK as u64 + 100, 3);
            }
            let context = format!("{drives} drives, {copies:?}");
            let drives = Drives(
                images
                    .into_iter()
                    .map(|image| image.into_drive("damaged", 1))
                    .collect(),
            );
            let found = scene.bench.world.block_on(scene.bench.reactor, async move {
                let (pool, _) = Pool::import(drives.attach().await, options()).await?;
                let found = readable(&pool).await;
                let is_damaged = found.iter().any(|(_, blocks)| blocks.iter().any(Result::is_err));
                assert!(!is_damaged || pool.check().await.is_err());
                Ok::<_, PoolError>(found)
            });
            match found {
                Err(PoolError::Page(_)) => {
                    // Without a journal to replay no page of a map is needed.
                    assert!(!export || copies[0].kind != Kind::Map, "{context}");
                    refused += 1;
                }
                Err(error) => panic!("{context}: {error}"),
                Ok(found) => {
                    let mut damaged = 0;
                    assert_eq!(found.len(), scene.values.len(), "{context}");
                    for ((name, blocks), (_, expected)) in found.iter().zip(&scene.values) {
                        damaged += usize::from(blocks.iter().any(Result::is_err));
                        for (block, (found, expected)) in blocks.iter().zip(expected).enumerate() {
                            match found {
                                Ok(found) => assert_eq!(found, expected, "{context}: {name} block {block}"),
                                Err(error) => assert_eq!(*error, IoError::MediaRead, "{context}"),
                            }
                        }
                    }
                    // Of one volume, and of the snapshots and clones that share the page.
                    assert!(damaged <= 4, "{context}: {damaged} volumes");
                    partly += usize::from(damaged > 0);
                }
            }
        }
    }
    assert!(refused > 5 && partly > 10, "{refused} {partly}");
}

/// All copies of what there are several of.
#[test]
fn labels_and_superblocks_without_a_good_copy_are_told() {
    for drives in 1..=2 {
        let scene = scene(drives, false);
        let areas = area_blocks(crate::common::DRIVE_BYTES / 65536);
        let all = |block_in_area: u64| -> Vec<(usize, u64, u8)> {
            let each = |drive| areas.map(|area| (drive, (area + block_in_area) * BLOCK as u64 + 40, 1));
            (0..drives).flat_map(each).collect()
        };
        assert!(matches!(scene.import(&all(0)), Err(PoolError::NoPool { .. })));
        // The newest, and the one before.
        let newest = [1, 2].map(|slot| scene.import(&all(slot)));
        let lost = newest.iter().position(Result::is_err).unwrap();
        assert!(
            matches!(newest[lost], Err(PoolError::SuperblockLost { .. })),
            "{:?}",
            newest[lost]
        );
        assert_eq!(newest[1 - lost].as_ref().unwrap(), &scene.values);
        let both = [all(1), all(2)].concat();
        assert!(matches!(scene.import(&both), Err(PoolError::NoSuperblock(_))));
        if drives == 2 {
            // Of one device only: the other has it, and so this one is taken for an older copy.
            let of_one: Vec<_> = all(lost as u64 + 1)
                .into_iter()
                .filter(|flip| flip.0 == 1)
                .collect();
            assert!(matches!(
                scene.import(&of_one),
                Err(PoolError::Stale { device: 1, .. })
            ));
        }
    }
}

/// Where a value is on a drive.
fn find_value(image: &DriveImage, value: u64) -> Vec<u64> {
    let is_it = |block: &u64| {
        let mut words = [0; 16];
        image.read(block * BLOCK as u64, &mut words);
        words == [value.to_le_bytes(), value.to_le_bytes()].concat()[..]
    };
    (0..crate::common::DRIVE_BYTES / BLOCK as u64)
        .filter(is_it)
        .collect()
}

#[test]
fn a_flipped_bit_of_data_is_an_error_for_its_block_only() {
    let bench = Bench::new(9, 1);
    let drive = bench.drives.0[0].clone();
    bench.run(|drives| async move {
        let pool = drives.pool(&CreateOptions::default()).await;
        let volume = new_volume(&pool, "a", 64).await;
        for block in 0..40 {
            volume.write(block, data(1000 + block, 1), false).await.unwrap();
        }
        volume.flush().await.unwrap();
        let mut mismatches = 0;
        for value in 1000..1040 {
            let image = drive.image();
            let [place] = find_value(&image, value)[..] else {
                panic!("value {value}")
            };
            let bit = (value * 7919) % (BLOCK as u64 * 8);
            drive.flip_bit(place * BLOCK as u64 + bit / 8, (bit % 8) as u8);
            let block = value - 1000;
            let read = volume.read(block, Buffer::from_heap(BLOCK)).await;
            assert_eq!(read.unwrap_err(), IoError::ChecksumMismatch);
            // Also as a part of more.
            let read = volume.read(0, Buffer::from_heap(64 * BLOCK)).await;
            assert_eq!(read.unwrap_err(), IoError::ChecksumMismatch);
            mismatches += 2;
            assert_eq!(pool.counters().checksum_mismatches, mismatches);
            for other in (0..64).filter(|other| *other != block) {
                let read = volume.read(other, Buffer::from_heap(BLOCK)).await.unwrap();
                let expected = if other < 40 { 1000 + other } else { 0 };
                assert_eq!(value_of(&read).unwrap(), expected);
            }
            // A new write heals it, here in place.
            volume.write(block, data(value, 1), false).await.unwrap();
            let read = volume.read(block, Buffer::from_heap(BLOCK)).await.unwrap();
            assert_eq!(value_of(&read).unwrap(), value);
        }
    });
}

/// After an export no write was under way, so nothing that does not match is newer than its checksum.
#[test]
fn damage_after_an_export_is_not_taken_for_newer_data() {
    let bench = Bench::new(10, 1);
    let drive = bench.drives.0[0].clone();
    bench.run(|drives| async move {
        let pool = drives.pool(&CreateOptions::default()).await;
        let volume = new_volume(&pool, "a", 64).await;
        for value in 1..4 {
            // In place, so that there is an intent.
            volume.write(5, data(value, 1), false).await.unwrap();
        }
        drop(volume);
        pool.export().await.unwrap();
        drive.flip_bit(find_value(&drive.image(), 3)[0] * BLOCK as u64 + 99, 1);
        let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
        assert!(report.was_exported);
        assert_eq!((report.records, report.newer_blocks), (0, 0));
        let read = pool
            .open_volume("a")
            .unwrap()
            .read(5, Buffer::from_heap(BLOCK))
            .await;
        assert_eq!(read.unwrap_err(), IoError::ChecksumMismatch);
    });
}

/// A drive that loses writes, puts them elsewhere or flips bits in them: a read returns what was written,
/// or an error; so does one after an export and an import.
#[test]
fn lost_misdirected_and_flipped_writes_are_found() {
    let mut found = BTreeMap::new();
    for (seed, fault) in (0..60).zip(
        [Fault::Lie, Fault::Misdirected, Fault::BitFlip]
            .into_iter()
            .cycle(),
    ) {
        let bench = Bench::new(seed, 1 + seed as usize % 2);
        let mut random = bench.world.random("faults", 0);
        let errors = bench.run(move |drives| async move {
            let pool = drives.pool(&CreateOptions::default()).await;
            let volume = new_volume(&pool, "a", 256).await;
            let mut written = BTreeMap::new();
            for value in 1..40 {
                let block = random.below(200);
                if random.chance(0.2) {
                    let drive = random.pick(&drives.0).unwrap();
                    drive.fail_nth(Operation::Write, 1, fault);
                }
                volume.write(block, data(value, 3), false).await.unwrap();
                written.extend((block..block + 3).map(|block| (block, value)));
                if random.chance(0.1) {
                    pool.checkpoint().await.unwrap();
                }
            }
            let mut errors = 0;
            let mut look = async |volume: &pollux_pool::Volume| {
                for block in 0..256 {
                    match volume.read(block, Buffer::from_heap(BLOCK)).await {
                        Ok(bytes) => {
                            let expected = written.get(&block).copied().unwrap_or(0);
                            assert_eq!(
                                value_of(&bytes),
                                Ok(expected),
                                "seed {seed}, {fault:?}, block {block}"
                            );
                        }
                        Err(IoError::ChecksumMismatch | IoError::MediaRead) => errors += 1,
                        Err(error) => panic!("seed {seed}, {fault:?}, block {block}: {error}"),
                    }
                }
            };
            look(&volume).await;
            drop(volume);
            pool.export().await.unwrap();
            match Pool::import(drives.attach().await, options()).await {
                Ok((pool, _)) => look(&pool.open_volume("a").unwrap()).await,
                Err(PoolError::Page(_) | PoolError::Stale { .. } | PoolError::Scan(_)) => errors += 1,
                Err(error) => panic!("seed {seed}, {fault:?}: {error}"),
            }
            errors
        });
        *found.entry(format!("{fault:?}")).or_insert(0) += errors;
    }
    assert!(
        found.len() == 3 && found.values().all(|errors| *errors > 20),
        "{found:?}"
    );
}

#[test]
fn blocks_that_cannot_be_read_are_errors_for_what_they_hold() {
    let scene = scene(1, false);
    let mut random = scene.bench.world.random("unreadable", 0);
    for place in &scene.places {
        if place.kind != Kind::Label && random.chance(0.5) {
            continue;
        }
        let drive = scene.images[0].clone().into_drive("unreadable", 1);
        drive.make_unreadable(place.block, 1);
        let drives = Drives(vec![drive]);
        let found = scene.bench.world.block_on(scene.bench.reactor, async move {
            let (pool, _) = Pool::import(drives.attach().await, options()).await?;
            Ok::<_, PoolError>(values(&contents(&pool).await.unwrap()))
        });
        match found {
            Ok(found) if found == scene.values => {}
            Ok(found) if place.kind == Kind::Journal => assert!(found == scene.without_last, "{place:?}"),
            Err(PoolError::Scan(_)) if place.kind == Kind::Journal => {}
            Err(error) => panic!("{place:?}: {error}"),
            Ok(_) => panic!("{place:?}: something else was found"),
        }
    }
    // Data: the block is an error, and the others are well.
    let value = scene.values.iter().find(|(name, _)| name == "c").unwrap().1[3];
    for place in find_value(&scene.images[0], value) {
        let drive = scene.images[0].clone().into_drive("unreadable", 1);
        drive.make_unreadable(place, 1);
        let drives = Drives(vec![drive]);
        let all = scene.bench.world.block_on(scene.bench.reactor, async move {
            let (pool, _) = Pool::import(drives.attach().await, options()).await.unwrap();
            readable(&pool).await
        });
        let mut errors = 0;
        for ((_, blocks), (_, expected)) in all.iter().zip(&scene.values) {
            for (found, expected) in blocks.iter().zip(expected) {
                match found {
                    Ok(found) => assert_eq!(found, expected),
                    Err(error) => {
                        assert_eq!(*error, IoError::MediaRead);
                        errors += 1;
                    }
                }
            }
        }
        assert_eq!(errors, 1);
    }
}
