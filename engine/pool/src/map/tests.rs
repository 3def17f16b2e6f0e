//! Slots of a head and of its snapshots, on simulated extents, against plain arrays of blocks.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

type Blocks = [u32; EXTENT_BLOCKS];

/// In place of the value of a block that is lost.
const GONE: u32 = u32::MAX;

/// What lies where nothing was written.
const GARBAGE: u32 = u32::MAX - 1;

struct Model {
    /// What is in each block of each extent.
    media: BTreeMap<ExtentId, Blocks>,
    slot: Slot,
    now: Blocks,
    /// Slot and content of each snapshot.
    snapshots: Vec<(Slot, Blocks)>,
    parent_generation: u64,
    open: u64,
    next_extent: u64,
    next_value: u32,
    used: BTreeSet<ExtentId>,
}

fn blocks_of(mask: u16) -> impl Iterator<Item = usize> {
    (0..EXTENT_BLOCKS).filter(move |block| mask >> block & 1 == 1)
}

impl Model {
    fn new() -> Self {
        Self {
            media: BTreeMap::new(),
            slot: Slot::default(),
            now: [0; EXTENT_BLOCKS],
            snapshots: Vec::new(),
            parent_generation: 0,
            open: 1,
            next_extent: 0,
            next_value: 0,
            used: BTreeSet::new(),
        }
    }

    fn write(&mut self, mask: u16) {
        let plan = plan_write(&self.slot, mask, self.parent_generation);
        assert_eq!(plan.mask(), mask);
        let fresh = plan.needs_extent().then(|| {
            self.next_extent += 1;
            let extent = ExtentId::new(0, self.next_extent);
            self.media.insert(extent, [GARBAGE; EXTENT_BLOCKS]);
            self.used.insert(extent);
            FreshExtent {
                extent,
                birth: self.open,
            }
        });
        self.next_value += 1;
        let mut put = |target: &Target, blocks: &dyn Fn(usize) -> u32| {
            assert!(self.used.contains(&target.extent));
            let place = self.media.get_mut(&target.extent).unwrap();
            blocks_of(target.mask).for_each(|block| place[block] = blocks(block));
        };
        let value = self.next_value;
        plan.in_place
            .iter()
            .chain(&plan.fill)
            .for_each(|target| put(target, &|_| value));
        if let Some(fresh) = fresh {
            put(
                &Target {
                    extent: fresh.extent,
                    mask: plan.fresh,
                },
                &|_| value,
            );
        }
        for target in &plan.copy {
            let from = self.media[&target.extent];
            let into = self.media.get_mut(&fresh.unwrap().extent).unwrap();
            blocks_of(target.mask).for_each(|block| into[block] = from[block]);
        }
        let change = plan
            .apply(&self.slot, self.parent_generation, fresh, &[value; EXTENT_BLOCKS])
            .unwrap();
        blocks_of(mask).for_each(|block| self.now[block] = value);
        self.take(change);
    }

    /// An extent moves, and some of its blocks cannot be read.
    fn lose(&mut self, which: usize, mask: u16) {
        let Some(&from) = self.used.iter().cycle().nth(which) else {
            return;
        };
        self.next_extent += 1;
        let to = ExtentId::new(0, self.next_extent);
        let mut media = self.media[&from];
        blocks_of(mask).for_each(|block| media[block] = GARBAGE);
        self.media.insert(to, media);
        self.used.remove(&from);
        self.used.insert(to);
        let snapshots = self.snapshots.iter_mut().map(|(slot, blocks)| (slot, blocks));
        for (slot, blocks) in snapshots.chain([(&mut self.slot, &mut self.now)]) {
            let mut fragments = slot.fragments.iter_mut();
            if let Some(fragment) = fragments.find(|fragment| fragment.extent == from) {
                fragment.extent = to;
                fragment.lost |= mask & fragment.mask;
                blocks_of(fragment.lost).for_each(|block| blocks[block] = GONE);
            }
        }
    }

    fn take(&mut self, change: Change) {
        let replayed: Vec<_> = freed_between(&self.slot, &change.slot, self.parent_generation).collect();
        assert_eq!(replayed, change.freed.to_vec());
        for extent in &change.freed {
            assert!(self.used.remove(extent), "freed twice");
        }
        assert_eq!(Slot::decode(&change.slot.encode()), Ok(change.slot.clone()));
        self.slot = change.slot;
    }

    fn check(&self) {
        let mut held = BTreeSet::new();
        let all = self.snapshots.iter().map(|(slot, blocks)| (slot, blocks));
        for (slot, blocks) in all.chain([(&self.slot, &self.now)]) {
            for (block, expected) in blocks.iter().enumerate() {
                let found = slot.fragment_of(block as u8).map_or(0, |fragment| {
                    if fragment.lost >> block & 1 == 1 {
                        return GONE;
                    }
                    assert_eq!(self.media[&fragment.extent][block], slot.checksums[block]);
                    slot.checksums[block]
                });
                assert_eq!(found, *expected, "block {block}");
            }
            held.extend(slot.fragments.iter().map(|fragment| fragment.extent));
        }
        assert_eq!(self.used, held);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u16),
    Deallocate(u16),
    Lose(usize, u16),
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    let few = (0u32..16, 0u32..16).prop_map(|(one, other)| 1u16 << one | 1 << other);
    prop_oneof![
        4 => few.clone().prop_map(Step::Write),
        1 => any::<u16>().prop_filter("blocks", |mask| *mask != 0).prop_map(Step::Write),
        1 => few.prop_map(Step::Deallocate),
        1 => any::<u16>().prop_map(Step::Deallocate),
        1 => (0usize..100, any::<u16>()).prop_map(|(which, mask)| Step::Lose(which, mask)),
        3 => Just(Step::Snapshot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn slots_and_their_snapshots_keep_their_blocks(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Write(mask) => model.write(mask),
                Step::Deallocate(mask) => {
                    let change = deallocate(&model.slot, mask, model.parent_generation);
                    blocks_of(mask).for_each(|block| model.now[block] = 0);
                    model.take(change);
                }
                Step::Lose(which, mask) => model.lose(which, mask),
                Step::Snapshot => {
                    model.snapshots.push((model.slot.clone(), model.now));
                    model.parent_generation = model.open;
                    model.open += 1;
                }
            }
            model.check();
        }
    }
}

#[test]
fn a_fifth_fragment_copies_the_other_four() {
    let mut model = Model::new();
    for block in 0..4 {
        model.write(1 << block);
        model.parent_generation = model.open;
        model.open += 1;
        model.snapshots.push((model.slot.clone(), model.now));
    }
    assert_eq!(model.slot.fragments.len(), 4);
    let plan = plan_write(&model.slot, 1 << 9, model.parent_generation);
    assert_eq!((plan.fresh, plan.copy.len()), (1 << 9, 4));
    model.write(1 << 9);
    assert_eq!(model.slot.fragments.len(), 1);
    assert_eq!(model.slot.mask(), 0x20f);
    model.check();
    let replaced = plan_write(&model.snapshots[3].0, 1, model.parent_generation);
    assert!(
        replaced.copy.is_empty(),
        "the new fragment takes the place of the one that it covers"
    );
}

#[test]
fn lost_blocks_stay_lost_when_fragments_are_put_together() {
    let mut model = Model::new();
    for block in 0..4 {
        model.write(1 << block);
        model.parent_generation = model.open;
        model.open += 1;
        model.snapshots.push((model.slot.clone(), model.now));
    }
    model.lose(0, u16::MAX);
    model.lose(2, u16::MAX);
    let plan = plan_write(&model.slot, 1 << 9, model.parent_generation);
    assert_eq!((plan.copy.len(), plan.lost.count_ones()), (2, 2));
    model.write(1 << 9);
    assert_eq!(model.slot.fragments.len(), 1);
    assert_eq!(model.slot.lost().count_ones(), 2);
    model.check();
    // Written anew they are in the same extent.
    let lost = model.slot.lost();
    model.write(lost);
    assert_eq!((model.slot.lost(), model.slot.fragments.len()), (0, 1));
    model.check();
}

#[test]
fn an_own_extent_of_which_all_is_lost_takes_what_is_written() {
    let mut model = Model::new();
    model.write(3);
    model.lose(0, 3);
    let plan = plan_write(&model.slot, 7, 0);
    assert!(plan.in_place.is_empty() && !plan.needs_extent(), "{plan:?}");
    model.write(7);
    model.check();
    model.lose(0, 7);
    let change = deallocate(&model.slot, 1, 0);
    model.now[0] = 0;
    model.take(change);
    model.check();
}

#[test]
fn a_plan_for_another_slot_is_refused() {
    let mut model = Model::new();
    model.write(1);
    let plan = plan_write(&model.slot, 3, 0);
    assert_eq!(plan.in_place.len(), 1);
    assert_eq!(plan.fill.map(|target| target.mask), Some(2));
    assert_eq!(
        plan.apply(&Slot::default(), 0, None, &[0; EXTENT_BLOCKS]),
        Err(PlanMismatch)
    );
    let fresh = plan_write(&Slot::default(), 3, 0);
    assert_eq!(
        fresh.apply(&Slot::default(), 0, None, &[0; EXTENT_BLOCKS]),
        Err(PlanMismatch)
    );
}
