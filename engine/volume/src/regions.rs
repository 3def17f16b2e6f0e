//! The region map in memory: where replicas may differ, and what of that is durable.
//!
//! Invariants:
//! - A region is *established* while its intent is durable on every replica of the set. Data is written only
//!   to regions that are.
//! - The missed bits of a replica that takes no writes include every intent: set together, or when it fails.
//! - An intent is cleared only by [`RegionMap::retire`], a missed bit only by [`RegionMap::commit_copied`].
//! - `missed` counts the regions of which [`RegionMap::takes_writes`] says no, for each replica.
//! - A block of the map that a write waits for is in `urgent`, until it is durable as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::membership::{REPLICAS_MAX, SlotNumber, SlotSet};
use crate::metadata::codec::MAP_BLOCK_REGIONS;
use crate::metadata::{INTENT, missed_bit};

/// The intent of a region is durable.
const ESTABLISHED: u8 = 1;

/// A moment in the life of the map: raised with each change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Stamp(u64);

#[derive(Debug, Clone, Copy, Default)]
struct BlockState {
    changed: Stamp,
    durable: Stamp,
}

/// What goes on in a region with an intent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    in_flight: u32,
    /// Writes so far.
    writes: u64,
    /// Writes had ended, and none had come since, when idle regions were last looked for.
    is_idle: bool,
}

/// The bits of the replicas that lack something of a region, and do not take its writes either.
fn lacking(byte: u8, mark: u8) -> u8 {
    byte & !mark & !INTENT
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RegionMap {
    bytes: Vec<u8>,
    /// Bit 0: established. The bits of [`missed_bit`]: copied, or being copied, and not flushed.
    marks: Vec<u8>,
    missed: [u64; REPLICAS_MAX],
    blocks: Vec<BlockState>,
    /// Blocks with intents that are not established.
    urgent: BTreeSet<usize>,
    stamp: Stamp,
    /// The regions with an intent.
    active: BTreeMap<u64, Activity>,
}

impl RegionMap {
    /// A map of which nothing is known to be durable, but blocks without an intent of which that is said.
    pub(crate) fn new(bytes: Vec<u8>, is_durable: impl Fn(Range<usize>, &[u8]) -> bool) -> Self {
        let blocks = bytes.len().div_ceil(MAP_BLOCK_REGIONS);
        let has_intent = |(region, byte): (usize, &u8)| (byte & INTENT != 0).then_some(region as u64);
        let active = bytes.iter().enumerate().filter_map(has_intent);
        let mut map = Self {
            active: active.map(|region| (region, Activity::default())).collect(),
            marks: vec![0; bytes.len()],
            blocks: vec![BlockState::default(); blocks],
            missed: [0; REPLICAS_MAX],
            urgent: BTreeSet::new(),
            stamp: Stamp::default(),
            bytes,
        };
        map.count_missed();
        let stamp = map.touch_all();
        let mut first = 0;
        for (block, regions) in map.blocks.iter_mut().zip(map.bytes.chunks(MAP_BLOCK_REGIONS)) {
            let range = first..first + regions.len();
            first = range.end;
            if regions.iter().all(|byte| byte & INTENT == 0) && is_durable(range, regions) {
                block.durable = stamp;
            }
        }
        map
    }

    /// More regions, of which some replicas miss all. The moment at which they are there.
    pub(crate) fn extend(&mut self, regions: usize, absent: SlotSet) -> Stamp {
        if regions > self.bytes.len() {
            let missed = absent.iter().map(missed_bit).fold(0, |bits, bit| bits | bit);
            let first = self.bytes.len();
            self.bytes.resize(regions, missed);
            self.marks.resize(regions, 0);
            self.blocks
                .resize(regions.div_ceil(MAP_BLOCK_REGIONS), BlockState::default());
            // Also those of which nothing is set: what is there must be known.
            self.stamp.0 += 1;
            for block in self.blocks.iter_mut().skip(first / MAP_BLOCK_REGIONS) {
                block.changed = self.stamp;
            }
            self.count_missed();
        }
        self.stamp
    }

    /// Ends all intents: no write is under way, and all replicas that take writes were flushed since the
    /// last. The moment at which that is so.
    pub(crate) fn retire_all(&mut self) -> Stamp {
        let is_idle = |(region, activity): (&u64, &Activity)| (activity.in_flight == 0).then_some(*region);
        let regions: Vec<u64> = self.active.iter().filter_map(is_idle).collect();
        self.settle(&regions)
    }

    fn touch(&mut self, region: u64) {
        self.stamp.0 += 1;
        if let Some(block) = self.blocks.get_mut(region as usize / MAP_BLOCK_REGIONS) {
            block.changed = self.stamp;
        }
    }

    /// Has every block written again.
    pub(crate) fn touch_all(&mut self) -> Stamp {
        self.stamp.0 += 1;
        let stamp = self.stamp;
        self.blocks.iter_mut().for_each(|block| block.changed = stamp);
        stamp
    }

    fn byte(&self, region: u64) -> u8 {
        self.bytes.get(region as usize).copied().unwrap_or(0)
    }

    fn mark(&self, region: u64) -> u8 {
        self.marks.get(region as usize).copied().unwrap_or(0)
    }

    fn change(&mut self, region: u64, change: impl FnOnce(u8) -> u8) {
        let (before, mark) = (self.byte(region), self.mark(region));
        let byte = change(before);
        if byte != before {
            self.put(region, byte, mark);
            self.touch(region);
        }
    }

    fn change_mark(&mut self, region: u64, change: impl FnOnce(u8) -> u8) {
        self.put(region, self.byte(region), change(self.mark(region)));
    }

    fn put(&mut self, region: u64, byte: u8, mark: u8) {
        let index = region as usize;
        let (Some(to_byte), Some(to_mark)) = (self.bytes.get_mut(index), self.marks.get_mut(index)) else {
            return;
        };
        let (before, after) = (lacking(*to_byte, *to_mark), lacking(byte, mark));
        (*to_byte, *to_mark) = (byte, mark);
        if before == after {
            return;
        }
        for (slot, missed) in SlotNumber::all().zip(&mut self.missed) {
            let bit = missed_bit(slot);
            *missed += u64::from(after & bit != 0);
            *missed -= u64::from(before & bit != 0);
        }
    }

    fn count_missed(&mut self) {
        self.missed = [0; REPLICAS_MAX];
        for (byte, mark) in self.bytes.iter().zip(&self.marks) {
            let lacking = lacking(*byte, *mark);
            if lacking != 0 {
                for (slot, missed) in SlotNumber::all().zip(&mut self.missed) {
                    *missed += u64::from(lacking & missed_bit(slot) != 0);
                }
            }
        }
    }

    /// A write begins in a region, which the absent ones will miss. Data may follow once it is established.
    pub(crate) fn begin_write(&mut self, region: u64, absent: SlotSet) {
        let missed = absent.iter().map(missed_bit).fold(0, |bits, bit| bits | bit);
        self.change(region, |byte| byte | INTENT | missed);
        if !self.is_established(region) {
            self.urgent.insert(region as usize / MAP_BLOCK_REGIONS);
        }
        let activity = self.active.entry(region).or_default();
        activity.in_flight += 1;
        activity.writes += 1;
        activity.is_idle = false;
    }

    /// A write has ended.
    pub(crate) fn end_write(&mut self, region: u64) {
        if let Some(activity) = self.active.get_mut(&region) {
            activity.in_flight = activity.in_flight.saturating_sub(1);
        }
    }

    /// Holds all intents that there are, each as by a write; they are told. [`RegionMap::end_write`] lets go
    /// of one.
    pub(crate) fn hold_intents(&mut self) -> Vec<u64> {
        for activity in self.active.values_mut() {
            activity.in_flight += 1;
        }
        self.intents()
    }

    /// The moment that it is.
    pub(crate) fn now(&self) -> Stamp {
        self.stamp
    }

    pub(crate) fn is_established(&self, region: u64) -> bool {
        self.mark(region) & ESTABLISHED != 0
    }

    /// The regions with an intent.
    pub(crate) fn intents(&self) -> Vec<u64> {
        self.active.keys().copied().collect()
    }

    /// A replica takes no more writes: it may lack what has an intent, and what was copied and not flushed.
    pub(crate) fn fail(&mut self, slot: SlotNumber) {
        let bit = missed_bit(slot);
        for region in self.intents() {
            self.change(region, |byte| byte | bit);
        }
        self.marks.iter_mut().for_each(|mark| *mark &= !bit);
        self.count_missed();
    }

    /// Nothing of a replica counts.
    pub(crate) fn miss_all(&mut self, slot: SlotNumber) -> Stamp {
        let bit = missed_bit(slot);
        self.bytes.iter_mut().for_each(|byte| *byte |= bit);
        self.marks.iter_mut().for_each(|mark| *mark &= !bit);
        self.count_missed();
        self.touch_all()
    }

    /// Whether a replica under resync has to take the writes of a region.
    pub(crate) fn takes_writes(&self, region: u64, slot: SlotNumber) -> bool {
        lacking(self.byte(region), self.mark(region)) & missed_bit(slot) == 0
    }

    /// The next region, from one on, that a replica misses and that nobody copies.
    pub(crate) fn next_missed(&self, from: u64, slot: SlotNumber) -> Option<u64> {
        (from..self.bytes.len() as u64).find(|&region| !self.takes_writes(region, slot))
    }

    /// How many regions from one on a replica misses, none of which is copied; so many at most.
    pub(crate) fn missed_run(&self, from: u64, slot: SlotNumber, at_most: u64) -> u64 {
        let end = from.saturating_add(at_most).min(self.bytes.len() as u64);
        let taken = (from..end).find(|&region| self.takes_writes(region, slot));
        taken.unwrap_or(end).saturating_sub(from)
    }

    /// How many regions a replica misses.
    pub(crate) fn missed(&self, slot: SlotNumber) -> u64 {
        self.missed.get(slot.index()).copied().unwrap_or(0)
    }

    /// A region is copied to a replica, which takes its writes from now on.
    pub(crate) fn begin_copy(&mut self, region: u64, slot: SlotNumber) {
        self.change_mark(region, |mark| mark | missed_bit(slot));
    }

    /// Regions were copied to a replica and flushed there: it misses them no more.
    pub(crate) fn commit_copied(&mut self, regions: &[u64], slot: SlotNumber) {
        let bit = missed_bit(slot);
        for &region in regions {
            if self.mark(region) & bit != 0 {
                self.change(region, |byte| byte & !bit);
                self.change_mark(region, |mark| mark & !bit);
            }
        }
    }

    /// Regions with an intent and no write since this was asked before.
    pub(crate) fn idle(&mut self) -> Vec<(u64, Activity)> {
        let mut idle = Vec::new();
        for (region, activity) in &mut self.active {
            if activity.in_flight == 0 && activity.is_idle {
                idle.push((*region, *activity));
            }
            activity.is_idle = activity.in_flight == 0;
        }
        idle
    }

    /// Ends the intents of regions that had no write since they were found idle. All replicas that take
    /// writes were flushed in between.
    pub(crate) fn retire(&mut self, idle: &[(u64, Activity)]) {
        for (region, before) in idle {
            if self.active.get(region) == Some(before) {
                self.active.remove(region);
                self.change(*region, |byte| byte & !INTENT);
                self.change_mark(*region, |mark| mark & !ESTABLISHED);
            }
        }
    }

    /// Ends the intents of regions that were made the same on all replicas, before anything is written. The
    /// moment at which that is so.
    pub(crate) fn settle(&mut self, regions: &[u64]) -> Stamp {
        for &region in regions {
            self.active.remove(&region);
            self.change(region, |byte| byte & !INTENT);
            self.change_mark(region, |mark| mark & !ESTABLISHED);
        }
        self.stamp
    }

    /// The next block that is not durable as it is now, from one on.
    pub(crate) fn next_dirty(&self, from: usize) -> Option<usize> {
        let mut later = self.blocks.iter().enumerate().skip(from);
        let dirty = later.find(|(_, block)| block.changed > block.durable);
        dirty.map(|(index, _)| index)
    }

    /// The next block that a write waits for, from one on and then from the start.
    pub(crate) fn next_urgent(&self, from: usize) -> Option<usize> {
        let next = self.urgent.range(from..).next();
        next.or_else(|| self.urgent.first()).copied()
    }

    /// What a block is to hold, as of now.
    pub(crate) fn snapshot(&self, block: usize) -> (Stamp, Vec<u8>) {
        let regions = self.bytes.chunks(MAP_BLOCK_REGIONS).nth(block);
        (self.stamp, regions.unwrap_or_default().to_vec())
    }

    /// A snapshot of a block is durable on all of the set.
    pub(crate) fn written(&mut self, block: usize, stamp: Stamp, snapshot: &[u8]) {
        if let Some(state) = self.blocks.get_mut(block) {
            state.durable = state.durable.max(stamp);
            if state.durable >= state.changed {
                self.urgent.remove(&block);
            }
        }
        let first = block * MAP_BLOCK_REGIONS;
        for (region, durable) in (first as u64..).zip(snapshot) {
            if durable & self.byte(region) & INTENT != 0 {
                self.change_mark(region, |mark| mark | ESTABLISHED);
            }
        }
    }

    /// Whether all is durable that had changed by a moment.
    pub(crate) fn is_durable(&self, stamp: Stamp) -> bool {
        let durable = |block: &BlockState| block.durable >= stamp || block.durable >= block.changed;
        self.blocks.iter().all(durable)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REGIONS: usize = MAP_BLOCK_REGIONS + 5;

    fn empty() -> RegionMap {
        RegionMap::new(vec![0; REGIONS], |_, _| false)
    }

    fn slot(index: usize) -> SlotNumber {
        SlotNumber::new(index).unwrap()
    }

    fn write_all(map: &mut RegionMap) {
        while let Some(block) = map.next_dirty(0) {
            let (stamp, snapshot) = map.snapshot(block);
            map.written(block, stamp, &snapshot);
        }
    }

    #[test]
    fn an_intent_set_again_while_it_is_written_is_established_by_what_was_written() {
        let mut map = empty();
        map.begin_write(3, SlotSet::EMPTY);
        let (stamp, snapshot) = map.snapshot(0);
        map.end_write(3);
        map.idle();
        let idle = map.idle();
        map.retire(&idle);
        assert!(!map.is_established(3));
        map.written(0, stamp, &snapshot);
        assert!(!map.is_established(3), "it is not wanted any more");
        map.begin_write(3, SlotSet::EMPTY);
        assert!(
            !map.is_established(3),
            "the next write of the block may clear it before"
        );
        write_all(&mut map);
        assert!(map.is_established(3));
    }

    #[test]
    fn a_write_after_the_flush_keeps_the_intent() {
        let mut map = empty();
        map.begin_write(3, SlotSet::EMPTY);
        map.end_write(3);
        map.idle();
        let idle = map.idle();
        assert_eq!(idle.len(), 1);
        map.begin_write(3, SlotSet::EMPTY);
        map.end_write(3);
        map.retire(&idle);
        assert_eq!(map.intents(), [3]);
    }

    #[test]
    fn what_was_copied_and_not_flushed_is_missed_when_the_replica_fails() {
        let mut map = empty();
        map.miss_all(slot(1));
        map.begin_copy(0, slot(1));
        map.begin_copy(1, slot(1));
        map.commit_copied(&[0], slot(1));
        assert_eq!(map.missed(slot(1)), REGIONS as u64 - 2);
        map.fail(slot(1));
        assert_eq!(map.missed(slot(1)), REGIONS as u64 - 1);
        assert_eq!(map.next_missed(0, slot(1)), Some(1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(u64),
        End,
        Fail,
        Sync,
        Copy,
        Commit,
        Idle,
        Retire,
        Snapshot,
        Written,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6_u64).prop_map(Step::Begin),
            Just(Step::End),
            Just(Step::Fail),
            Just(Step::Sync),
            Just(Step::Copy),
            Just(Step::Commit),
            Just(Step::Idle),
            Just(Step::Retire),
            Just(Step::Snapshot),
            Just(Step::Written),
        ]
    }

    proptest! {
        /// One replica comes and goes beside those that stay. After a loss of the target at any moment, what
        /// is durable tells at least every region in which that replica may differ.
        #[test]
        fn what_is_durable_tells_all_that_may_differ(steps in proptest::collection::vec(step(), 1..120)) {
            let other = slot(1);
            let mut map = empty();
            write_all(&mut map);
            let mut durable = vec![0_u8; REGIONS];
            let mut under_way: Vec<u64> = Vec::new();
            let mut present = true;
            // Where the other replica differs from those that stay, on its medium: written and not flushed
            // counts as different.
            let mut differs = [false; 6];
            let mut snapshot = None;
            let mut idle = Vec::new();
            let mut copied = Vec::new();
            for step in steps {
                match step {
                    Step::Begin(region) => {
                        let absent = if present { SlotSet::EMPTY } else { [other].into_iter().collect() };
                        map.begin_write(region, absent);
                        under_way.push(region);
                    }
                    Step::End => if let Some(region) = under_way.pop() {
                        if map.is_established(region) {
                            differs[region as usize] = true;
                        }
                        map.end_write(region);
                    },
                    Step::Fail => if present {
                        present = false;
                        map.fail(other);
                        copied.clear();
                    },
                    // It takes writes again where it misses nothing.
                    Step::Sync => present = true,
                    Step::Copy => if present && let Some(region) = map.next_missed(0, other) {
                        map.begin_copy(region, other);
                        copied.push(region);
                    },
                    Step::Commit => if present {
                        map.commit_copied(&copied, other);
                        for region in copied.drain(..).filter(|region| *region < 6) {
                            differs[region as usize] = false;
                        }
                    },
                    Step::Idle => idle = map.idle(),
                    Step::Retire => {
                        let taken = std::mem::take(&mut idle);
                        for (region, activity) in &taken {
                            // A flush reaches it only while it takes the writes of the region.
                            let still = map.active.get(region) == Some(activity);
                            if still && present && map.takes_writes(*region, other) {
                                differs[*region as usize] = false;
                            }
                        }
                        map.retire(&taken);
                    }
                    Step::Snapshot => if snapshot.is_none() {
                        snapshot = Some(map.snapshot(0));
                    },
                    Step::Written => if let Some((stamp, bytes)) = snapshot.take() {
                        durable[..bytes.len()].copy_from_slice(&bytes);
                        map.written(0, stamp, &bytes);
                    },
                }
                let missed = (0..REGIONS as u64).filter(|&region| !map.takes_writes(region, other));
                prop_assert_eq!(map.missed(other), missed.count() as u64);
                for (region, _) in differs.iter().enumerate().filter(|(_, differs)| **differs) {
                    prop_assert!(durable[region] != 0, "region {region} is not told");
                }
            }
        }
    }
}
