//! A pool of format 1, kept as a file since the format was made: every later program has to open it.
//!
//! The file was made by `cargo run -p pollux-pool --example golden_image`. Once the format is released it is
//! never made again; a new format gets a file of its own.

mod image;

use pollux_device::{BlockDevice, BlockDeviceExt};
use pollux_hugepages::Buffer;
use pollux_pool::Pool;
use pollux_pool::layout::FORMAT_VERSION;
use pollux_pool::layout::label::Label;
use pollux_pool::layout::volume::VolumeKind;
use pollux_sim::World;

use self::image::{BLOCK, BLOCKS, attach, expected, options, read};

const FORMAT_1: &[u8] = include_bytes!("format-1.image");

async fn check(pool: &std::rc::Rc<Pool>) {
    let mut found = pool.volumes();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    let expected = expected();
    assert_eq!(
        found.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(),
        expected.iter().map(|(name, ..)| *name).collect::<Vec<_>>()
    );
    for (entry, (name, is_snapshot, values)) in found.iter().zip(expected) {
        assert_eq!(entry.kind == VolumeKind::Snapshot, is_snapshot, "{name}");
        assert_eq!(entry.checksums, name != "unchecked");
        let volume = pool.open_volume(name).unwrap();
        assert_eq!(volume.geometry().blocks, BLOCKS);
        for block in 0..BLOCKS {
            let bytes = volume.read(block, Buffer::from_heap(BLOCK)).await.unwrap();
            let value = values
                .iter()
                .find(|(at, _)| *at == block)
                .map_or(0, |(_, value)| *value);
            let (words, _) = bytes.as_chunks::<8>();
            assert!(
                words.iter().all(|word| *word == value.to_le_bytes()),
                "{name} block {block}"
            );
        }
    }
    let check = pool.check().await.unwrap();
    assert!(check.is_sound(), "{check:?}");
}

#[test]
fn a_pool_of_format_1_opens() {
    assert!(
        FORMAT_1.len() < 100 << 10,
        "{} bytes are too many",
        FORMAT_1.len()
    );
    let world = World::new(2);
    let machine = world.add_machine("any");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, async {
        let drives = read(FORMAT_1);
        let mut label = [0; BLOCK];
        drives[0].peek(0, &mut label);
        assert_eq!(label[8..12], FORMAT_VERSION.to_le_bytes());
        assert_eq!(Label::decode(&label).unwrap().name, "golden");
        let (pool, report) = Pool::import(attach(&drives).await, options()).await.unwrap();
        assert!(!report.was_exported);
        assert!(report.records >= 8, "{report:?}");
        check(&pool).await;
        pool.reclaim().await.unwrap();
        check(&pool).await;
        pool.export().await.unwrap();
        let (pool, report) = Pool::import(attach(&drives).await, options()).await.unwrap();
        assert!(report.was_exported);
        check(&pool).await;
    });
}

/// What the file is made from is still what it holds.
#[test]
fn a_pool_made_anew_holds_the_same() {
    let world = World::new(3);
    let machine = world.add_machine("any");
    let reactor = world.add_reactor(machine);
    world.block_on(reactor, async {
        let file = image::make();
        assert_eq!(file, image::make(), "it is made the same each time");
        let drives = read(&file);
        let (pool, _) = Pool::import(attach(&drives).await, options()).await.unwrap();
        check(&pool).await;
    });
}
