//! Random histories of volumes, snapshots and clones to any depth, next to a model that is nothing but
//! arrays: what is read, what has changed between any two, what is allocated; and when everything is
//! deleted, in any order, the pool is as empty as it was.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::common::{Bench, Drives, options};
use pollux_device::{BlockDevice, BlockDeviceExt};
use pollux_hugepages::Buffer;
use pollux_pool::{BlockRange, CreateOptions, Pool, PoolError, PoolOptions, VolumeOptions};
use proptest::prelude::*;
use proptest::test_runner::Config;

const BLOCK: usize = 4096;

/// What is done; volumes and snapshots are told by any number, modulo how many there are.
#[derive(Debug, Clone)]
enum Step {
    Create { blocks: u64, checksums: bool },
    Write { of: usize, at: u64, blocks: u64 },
    Deallocate { of: usize, at: u64, blocks: u64 },
    Snapshot { of: usize },
    Clone { of: usize },
    RollBack { of: usize, to: usize },
    Delete { of: usize },
    Resize { of: usize, blocks: u64 },
    Rename { of: usize },
    Checkpoint,
    Reclaim,
    Import { export: bool },
    Compare { one: usize, other: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..1000_usize;
    let made = (1..1200_u64, any::<bool>());
    let at = prop_oneof![3 => 0..40_u64, 1 => 0..1200_u64];
    let written = (which.clone(), at.clone(), 1..30_u64);
    prop_oneof![
        1 => made.prop_map(|(blocks, checksums)| Step::Create { blocks, checksums }),
        12 => written.prop_map(|(of, at, blocks)| Step::Write { of, at, blocks }),
        3 => (which.clone(), at, 1..200_u64).prop_map(|(of, at, blocks)| {
            Step::Deallocate { of, at, blocks }
        }),
        4 => which.clone().prop_map(|of| Step::Snapshot { of }),
        2 => which.clone().prop_map(|of| Step::Clone { of }),
        1 => (which.clone(), which.clone()).prop_map(|(of, to)| Step::RollBack { of, to }),
        3 => which.clone().prop_map(|of| Step::Delete { of }),
        1 => (which.clone(), 1..1200_u64).prop_map(|(of, blocks)| Step::Resize { of, blocks }),
        1 => which.clone().prop_map(|of| Step::Rename { of }),
        2 => Just(Step::Checkpoint),
        2 => Just(Step::Reclaim),
        1 => any::<bool>().prop_map(|export| Step::Import { export }),
        3 => (which.clone(), which).prop_map(|(one, other)| Step::Compare { one, other }),
    ]
}

#[derive(Debug, Clone)]
struct Model {
    is_snapshot: bool,
    values: Vec<u64>,
}

struct Run {
    pool: Rc<Pool>,
    drives: Drives,
    options: PoolOptions,
    model: BTreeMap<String, Model>,
    next: u64,
}

fn data(value: u64, blocks: u64) -> Buffer {
    let mut buffer = Buffer::from_heap(blocks as usize * BLOCK);
    for bytes in buffer.chunks_mut(8) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    buffer
}

fn name_of(model: &BTreeMap<String, Model>, snapshot: Option<bool>, number: usize) -> Option<String> {
    let matches = |model: &Model| snapshot.is_none_or(|snapshot| snapshot == model.is_snapshot);
    let names: Vec<&String> = model
        .iter()
        .filter(|(_, model)| matches(model))
        .map(|(name, _)| name)
        .collect();
    names
        .get(number.checked_rem(names.len())?)
        .map(|name| (*name).clone())
}

impl Run {
    fn fresh_name(&mut self) -> String {
        self.next += 1;
        format!("v{}", self.next)
    }

    async fn step(&mut self, step: &Step) {
        let pool = self.pool.clone();
        match step {
            Step::Create { blocks, checksums } => {
                let name = self.fresh_name();
                let options = VolumeOptions {
                    checksums: *checksums,
                    ..VolumeOptions::new(*blocks)
                };
                pool.create_volume(&name, &options).await.unwrap();
                let values = vec![0; *blocks as usize];
                let model = Model {
                    is_snapshot: false,
                    values,
                };
                self.model.insert(name, model);
            }
            Step::Write { of, at, blocks } => {
                self.next += 1;
                self.change(*of, *at, *blocks, self.next).await;
            }
            Step::Deallocate { of, at, blocks } => self.change(*of, *at, *blocks, 0).await,
            Step::Snapshot { of } => {
                let Some(of) = name_of(&self.model, Some(false), *of) else {
                    return;
                };
                let name = self.fresh_name();
                pool.snapshot(&of, &name, 0).await.unwrap();
                let values = self.model[&of].values.clone();
                let model = Model {
                    is_snapshot: true,
                    values,
                };
                self.model.insert(name, model);
            }
            Step::Clone { of } => {
                let Some(of) = name_of(&self.model, Some(true), *of) else {
                    return;
                };
                let name = self.fresh_name();
                pool.clone_snapshot(&of, &name, 0).await.unwrap();
                let values = self.model[&of].values.clone();
                let model = Model {
                    is_snapshot: false,
                    values,
                };
                self.model.insert(name, model);
            }
            Step::RollBack { of, to } => {
                let Some(of) = name_of(&self.model, Some(false), *of) else {
                    return;
                };
                let Some(to) = name_of(&self.model, Some(true), *to) else {
                    return;
                };
                pool.roll_back(&of, &to).await.unwrap();
                self.model.get_mut(&of).unwrap().values = self.model[&to].values.clone();
            }
            Step::Delete { of } => {
                let Some(of) = name_of(&self.model, None, *of) else {
                    return;
                };
                pool.delete(&of).await.unwrap();
                self.model.remove(&of);
            }
            Step::Resize { of, blocks } => {
                let Some(of) = name_of(&self.model, Some(false), *of) else {
                    return;
                };
                let values = &mut self.model.get_mut(&of).unwrap().values;
                if *blocks < values.len() as u64 {
                    let refused = pool.resize(&of, *blocks, false).await;
                    assert!(matches!(refused, Err(PoolError::Shrink { .. })));
                }
                pool.resize(&of, *blocks, true).await.unwrap();
                values.resize(*blocks as usize, 0);
            }
            Step::Rename { of } => {
                let Some(of) = name_of(&self.model, None, *of) else {
                    return;
                };
                let name = self.fresh_name();
                pool.rename(&of, &name).await.unwrap();
                let model = self.model.remove(&of).unwrap();
                self.model.insert(name, model);
            }
            Step::Checkpoint => pool.checkpoint().await.unwrap(),
            Step::Reclaim => pool.reclaim().await.unwrap(),
            Step::Import { export } => {
                if *export {
                    pool.export().await.unwrap();
                } else if let Some(name) = name_of(&self.model, None, 0) {
                    pool.open_volume(&name).unwrap().flush().await.unwrap();
                } else {
                    pool.checkpoint().await.unwrap();
                }
                let (imported, report) = Pool::import(self.drives.attach().await, self.options.clone())
                    .await
                    .unwrap();
                assert_eq!(report.was_exported, *export);
                assert_eq!((report.newer_blocks, report.unreadable.len()), (0, 0));
                self.pool = imported;
                self.check().await;
            }
            Step::Compare { one, other } => {
                let Some(one) = name_of(&self.model, None, *one) else {
                    return;
                };
                let Some(other) = name_of(&self.model, None, *other) else {
                    return;
                };
                self.compare(&one, &other).await;
            }
        }
    }

    async fn change(&mut self, of: usize, at: u64, blocks: u64, value: u64) {
        let Some(of) = name_of(&self.model, Some(false), of) else {
            return;
        };
        let values = &mut self.model.get_mut(&of).unwrap().values;
        let at = at % values.len() as u64;
        let blocks = blocks.min(values.len() as u64 - at);
        let volume = self.pool.open_volume(&of).unwrap();
        if value == 0 {
            volume.deallocate(at, blocks).await.unwrap();
        } else {
            volume.write(at, data(value, blocks), false).await.unwrap();
        }
        values[at as usize..(at + blocks) as usize].fill(value);
    }

    /// No block that differs is missing in the changes, and no block with data in what is allocated.
    async fn compare(&self, one: &str, other: &str) {
        let (values_one, values_other) = (&self.model[one].values, &self.model[other].values);
        let end = values_one.len().max(values_other.len());
        let mut changed = Vec::new();
        let mut from = Some(0);
        while let Some(block) = from {
            let page = self.pool.changed_blocks(one, other, block).await.unwrap();
            assert!(page.next.is_none_or(|next| next > block), "it goes on");
            changed.extend(page.ranges);
            from = page.next;
        }
        let is_changed = marks(&changed, end);
        for (block, is_changed) in is_changed.into_iter().enumerate() {
            let value = |values: &[u64]| values.get(block).copied().unwrap_or(0);
            let differs = value(values_one) != value(values_other);
            assert!(
                !differs || is_changed,
                "block {block} of {one} and {other} differs"
            );
        }
        if one == other {
            assert_eq!(changed, []);
        }
        let volume = self.pool.open_volume(one).unwrap();
        let mut allocated = Vec::new();
        let mut from = Some(0);
        while let Some(block) = from {
            let page = volume.allocated(block, values_one.len() as u64).await.unwrap();
            assert!(page.next.is_none_or(|next| next > block), "it goes on");
            allocated.extend(page.ranges);
            from = page.next;
        }
        let is_allocated = marks(&allocated, values_one.len());
        for (block, value) in values_one.iter().enumerate() {
            assert!(
                *value == 0 || is_allocated[block],
                "block {block} of {one} holds {value}"
            );
        }
    }

    /// Everything is read.
    async fn check(&self) {
        let mut found: Vec<String> = self.pool.volumes().into_iter().map(|entry| entry.name).collect();
        found.sort_unstable();
        assert_eq!(found, self.model.keys().cloned().collect::<Vec<_>>());
        for (name, model) in &self.model {
            let volume = self.pool.open_volume(name).unwrap();
            assert_eq!(volume.geometry().blocks, model.values.len() as u64);
            for (at, values) in model.values.chunks(16).enumerate() {
                let into = Buffer::from_heap(values.len() * BLOCK);
                let bytes = volume.read(at as u64 * 16, into).await.unwrap();
                for (bytes, value) in bytes.chunks(BLOCK).zip(values) {
                    assert!(
                        bytes[8..] == bytes[..BLOCK - 8] && bytes[..8] == value.to_le_bytes(),
                        "{name} slot {at}"
                    );
                }
            }
        }
        let check = self.pool.check().await.unwrap();
        assert!(check.is_sound(), "{check:?}");
    }

    async fn settle(&self) -> u64 {
        self.pool.reclaim().await.unwrap();
        for _ in 0..3 {
            self.pool.checkpoint().await.unwrap();
        }
        assert_eq!(self.pool.deleting(), 0);
        let space = self.pool.space();
        assert_eq!((space.freeing_bytes, space.provisioned_bytes), (0, 0));
        space.free_bytes + space.metadata_bytes
    }
}

/// A mark for each block of ranges, which are in order and within the volume.
fn marks(ranges: &[BlockRange], end: usize) -> Vec<bool> {
    let mut marks = vec![false; end];
    let mut last = 0;
    for range in ranges {
        assert!(range.block >= last && range.blocks > 0);
        last = range.block + range.blocks;
        marks[range.block as usize..last as usize].fill(true);
    }
    marks
}

async fn play(drives: Drives, steps: Vec<Step>, order: u64, cache_bytes: usize) {
    let options = PoolOptions {
        cache_bytes,
        ..options()
    };
    let create = CreateOptions {
        journal_bytes: if order.is_multiple_of(2) { 1 } else { 0 },
        ..CreateOptions::default()
    };
    let pool = Pool::create("tank", drives.attach().await, &create, options.clone())
        .await
        .unwrap();
    let mut run = Run {
        pool,
        drives,
        options,
        model: BTreeMap::new(),
        next: 0,
    };
    let (empty, metadata) = (run.settle().await, run.pool.check().await.unwrap());
    for step in &steps {
        run.step(step).await;
    }
    run.check().await;
    // All of it goes, in any order.
    let mut order = order;
    while !run.model.is_empty() {
        run.step(&Step::Delete { of: order as usize }).await;
        order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) >> 7;
        if order.is_multiple_of(3) {
            run.pool.reclaim().await.unwrap();
            run.check().await;
        }
    }
    assert_eq!(run.settle().await, empty);
    let check = run.pool.check().await.unwrap();
    assert!(check.is_sound(), "{check:?}");
    assert_eq!(check.extents, 0);
    assert!(
        check.pages <= metadata.pages,
        "{} pages, and {} when it was new",
        check.pages,
        metadata.pages
    );
}

proptest! {
    #![proptest_config(Config { cases: 400, ..Config::default() })]

    #[test]
    fn random_histories_are_those_of_a_plain_model(
        steps in proptest::collection::vec(step(), 20..120),
        drives in 1..4_usize,
        order in any::<u64>(),
        cache_bytes in prop_oneof![Just(0_usize), Just(64 << 10), Just(64 << 20)],
    ) {
        let bench = Bench::of_sizes(order, &[64 << 20, 48 << 20, 100 << 20][..drives]);
        bench.run(move |drives| play(drives, steps, order, cache_bytes));
    }
}
