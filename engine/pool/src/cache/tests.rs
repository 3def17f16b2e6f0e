//! Trees over the cache and a simulated drive, against a map: with checkpoints, and pages dropped and
//! loaded again and again.

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_device::{Device, Gather};
use pollux_reactor::random_u64;
use pollux_sim::{SimDrive, SimDriveOptions, World};

use super::*;
use crate::allocator::DeviceSpace;
use crate::device::PoolDevice;
use crate::layout::page::{MAP_LEAF_SLOTS, PageKind};
use crate::layout::slot::{Fragment, Slot};
use crate::layout::{EXTENT_BLOCKS, EXTENT_BYTES, ExtentId};
use crate::tree::{Generations, Passed, Shape, Tree};

const SHAPE: Shape = Shape {
    kind: PageKind::Map,
    height: 2,
    leaf_entries: MAP_LEAF_SLOTS,
};
const EXTENTS: u64 = 512;
const POOL: Uuid = Uuid::from_u128(0x7001);

fn slot(number: u64) -> Slot {
    let mut slot = Slot::default();
    slot.fragments.push(Fragment {
        extent: ExtentId::new(0, 100 + number % 1000),
        mask: 1,
        birth: number + 1,
        lost: 0,
    });
    slot
}

struct Bench {
    cache: PageCache,
    space: PoolSpace,
    devices: Vec<Option<PoolDevice>>,
    tree: Tree,
    generations: Generations,
}

impl Bench {
    async fn new(drive: &Arc<SimDrive>) -> Self {
        let device = PoolDevice::new(drive.clone().attach().await.unwrap()).unwrap();
        let mut space = PoolSpace::new();
        space.insert(0, DeviceSpace::new(0, EXTENTS, 4), false);
        // A label is there; and extent 0 of device 0 is no extent that anything can point to.
        space.mark_extent(ExtentId::new(0, 0), false).unwrap();
        Self {
            cache: PageCache::new(POOL, 0, 0),
            space,
            devices: vec![Some(device)],
            tree: Tree {
                shape: SHAPE,
                id: 9,
                root: None,
                parent_generation: 0,
                passed: Passed::default(),
            },
            generations: Generations { open: 1, closed: 0 },
        }
    }

    /// Does something until the pages that it needs are there.
    async fn retry<T>(
        &mut self,
        mut act: impl FnMut(&mut Tree, &mut Metadata<'_>, Generations) -> Result<T, TreeError>,
    ) -> Result<T, LoadError> {
        loop {
            let mut metadata = Metadata {
                cache: &mut self.cache,
                space: &mut self.space,
            };
            match act(&mut self.tree, &mut metadata, self.generations) {
                Ok(value) => return Ok(value),
                Err(TreeError::Absent { pointer, identity }) => {
                    let pointer = self.cache.sealed(pointer);
                    let page = load(POOL, &self.devices, &pointer, &identity).await?;
                    let mut metadata = Metadata {
                        cache: &mut self.cache,
                        space: &mut self.space,
                    };
                    metadata.insert(&pointer, page).unwrap();
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    async fn put(&mut self, entry: u64, slot: &Slot) {
        let bytes = slot.encode();
        self.retry(|tree, metadata, generations| tree.put(metadata, generations, entry, &bytes))
            .await
            .unwrap();
    }

    async fn get(&mut self, entry: u64) -> Result<Slot, LoadError> {
        let found = self
            .retry(|tree, metadata, _| tree.get(metadata, entry, |bytes| Slot::decode(bytes).unwrap()))
            .await?;
        Ok(found.unwrap_or_default())
    }

    /// Closes, seals and writes; what `meanwhile` does happens in the next generation before all is sealed.
    async fn checkpoint(&mut self, meanwhile: u64) {
        self.cache.close(self.generations.open);
        self.generations = Generations {
            open: self.generations.open + 1,
            closed: self.generations.open,
        };
        let leaves: Vec<u64> = self
            .space
            .unprepared_leaves()
            .iter()
            .map(|(_, leaf)| *leaf)
            .collect();
        leaves.iter().for_each(|leaf| self.space.set_prepared(0, *leaf));
        self.space.close_checkpoint();
        let before = random_u64() % 8;
        let mut number = 0;
        let mut put = meanwhile == u64::MAX;
        loop {
            let sealed = self.cache.seal_next(|_| ()).unwrap();
            if !put && (number >= before || sealed.is_none()) {
                self.put(meanwhile, &slot(meanwhile)).await;
                put = true;
            }
            number += 1;
            let Some(sealed) = sealed else { break };
            for copy in [sealed.pointer.first, sealed.pointer.second] {
                let device = self.devices[0].as_ref().unwrap();
                let from = Gather::from(sealed.bytes.clone());
                let block = copy.extent().number() * EXTENT_BLOCKS as u64 + u64::from(copy.index());
                device.write(block, from, false).await.unwrap();
            }
        }
        self.tree.root = self.tree.root.map(|root| self.cache.sealed(root));
        self.cache.checkpoint_durable();
        while self.space.free_closed(1) {}
        while self.cache.shrink(1) {}
    }

    fn drop_clean(&mut self) {
        while self.cache.clean_pages > 0 {
            self.cache.drop_one();
        }
    }
}

fn run<F: Future<Output = ()> + 'static>(seed: u64, test: impl FnOnce(Arc<SimDrive>) -> F) {
    let world = World::new(seed);
    let machine = world.add_machine("engine");
    let reactor = world.add_reactor(machine);
    let options = SimDriveOptions::new(EXTENTS * EXTENT_BYTES, 4096)
        .unwrap()
        .instant();
    let drive = SimDrive::new("drive", options, seed);
    world.block_on(reactor, test(drive));
}

#[test]
fn what_was_put_is_found_whatever_is_dropped() {
    for seed in 0..10 {
        run(seed, |drive| async move {
            let mut bench = Bench::new(&drive).await;
            let mut model = BTreeMap::new();
            for _ in 0..400 {
                let entry = random_u64() % 20 * 397 + random_u64() % 3;
                match random_u64() % 10 {
                    0 => {
                        bench.checkpoint(entry).await;
                        model.insert(entry, slot(entry));
                    }
                    1 => bench.drop_clean(),
                    2 => {
                        bench.put(entry, &Slot::default()).await;
                        model.remove(&entry);
                    }
                    3..6 => {
                        let expected = model.get(&entry).cloned().unwrap_or_default();
                        assert_eq!(bench.get(entry).await.unwrap(), expected);
                    }
                    _ => {
                        let new = slot(random_u64() % 1_000_000);
                        bench.put(entry, &new).await;
                        model.insert(entry, new);
                    }
                }
            }
            bench.checkpoint(u64::MAX).await;
            bench.drop_clean();
            assert_eq!(bench.cache.dirty_pages(), 0);
            for (entry, expected) in &model {
                assert_eq!(bench.get(*entry).await.as_ref(), Ok(expected));
            }
            // Nothing is left behind: without entries, and two checkpoints later, all is free.
            let entries: Vec<u64> = model.into_keys().collect();
            for entry in entries {
                bench.put(entry, &Slot::default()).await;
            }
            bench.checkpoint(u64::MAX).await;
            bench.checkpoint(u64::MAX).await;
            assert_eq!((bench.tree.root, bench.space.counts().free), (None, EXTENTS - 1));
        });
    }
}

#[test]
fn a_bad_copy_is_made_up_for_by_the_other_and_two_are_told() {
    run(1, |drive| async move {
        let mut bench = Bench::new(&drive).await;
        bench.put(5, &slot(5)).await;
        bench.checkpoint(u64::MAX).await;
        bench.drop_clean();
        let root = bench.tree.root.unwrap();
        drive.flip_bit(root.first.offset_bytes() + 700, 3);
        assert_eq!(bench.get(5).await, Ok(slot(5)));
        bench.drop_clean();
        // The other copy: what a lost write leaves, the page of another time.
        drive.poke(root.second.offset_bytes(), &[0; 4096]);
        let lost = bench.get(5).await.unwrap_err();
        assert_eq!((lost.identity.level, lost.identity.tree), (2, 9));
        assert!(
            lost.to_string().contains("both copies of page 0 of level 2"),
            "{lost}"
        );
    });
}

#[test]
fn the_limit_is_kept_and_dirty_pages_do_not_count() {
    run(2, |drive| async move {
        let mut bench = Bench::new(&drive).await;
        for number in 0..300 {
            bench.put(number * MAP_LEAF_SLOTS, &slot(number)).await;
        }
        assert!(bench.cache.dirty_pages() > 300);
        bench.checkpoint(u64::MAX).await;
        assert!(bench.cache.pages.len() <= CLEAN_PAGES_MIN);
        for number in (0..300).rev() {
            assert_eq!(bench.get(number * MAP_LEAF_SLOTS).await, Ok(slot(number)));
            assert!(bench.cache.pages.len() <= CLEAN_PAGES_MIN);
        }
    });
}
