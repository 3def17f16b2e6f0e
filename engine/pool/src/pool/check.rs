//! Looking whether a pool is sound: everything that is reachable is marked as used, everything that is
//! marked as used is reachable, and once only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use super::{Pool, PoolError};
use crate::cache::load;
use crate::layout::label::KNOWN_READ_ONLY_COMPATIBLE;
use crate::layout::page::{FAN_OUT, Page, PageIdentity};
use crate::layout::slot::Slot;
use crate::layout::volume::{VolumeEntry, VolumeState};
use crate::layout::{ExtentId, PagePointer};
use crate::tree::{PageStore, Tree};

/// Pages after which others run, and it is told how far the check is.
const PAGES_IN_A_STEP: u64 = 64;

/// An extent that is not used as it is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misplaced {
    /// The extent.
    pub extent: ExtentId,
    /// Its blocks that something reaches, a bit each.
    pub reached: u16,
    /// Its blocks that are marked as used.
    pub marked: u16,
}

/// What is wrong with a pool; nothing is, if all of it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Extents that are not used as they are marked.
    pub misplaced: Vec<Misplaced>,
    /// Extents that two different things claim.
    pub claimed_twice: Vec<ExtentId>,
    /// Volumes whose count of own extents, or of covered slots, is not right: id, what is counted, what is
    /// kept.
    pub miscounted: Vec<(u64, u64, u64)>,
    /// Pages that were looked at.
    pub pages: u64,
    /// Extents of data that were found.
    pub extents: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.misplaced.is_empty() && self.claimed_twice.is_empty() && self.miscounted.is_empty()
    }
}

/// How far a check is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Volumes and snapshots that were walked, those that are being deleted among them.
    pub volumes_done: usize,
    /// How many there are.
    pub volumes: usize,
    /// Pages that were looked at.
    pub pages: u64,
}

#[derive(Default)]
struct Marks {
    pages: BTreeMap<ExtentId, u16>,
    data: BTreeSet<ExtentId>,
    seen: HashSet<u64>,
    report: CheckReport,
}

impl Marks {
    /// Marks both copies of a page; whether it was not marked before.
    fn page(&mut self, pointer: &PagePointer) -> bool {
        if !self.seen.insert(pointer.first.raw()) {
            return false;
        }
        self.report.pages += 1;
        for copy in [pointer.first, pointer.second] {
            let mask = self.pages.entry(copy.extent()).or_insert(0);
            if *mask >> copy.index() & 1 == 1 {
                self.report.claimed_twice.push(copy.extent());
            }
            *mask |= 1 << copy.index();
        }
        true
    }
}

impl Pool {
    /// Walks everything, and compares it with the allocation state. Nothing else may be going on; with
    /// volumes in use, what they change meanwhile is told as wrong.
    ///
    /// # Errors
    ///
    /// [`PoolError::Page`] for pages that are lost; [`PoolError::Features`] for a pool of which this
    /// program does not know all.
    pub async fn check(self: &Rc<Self>) -> Result<CheckReport, PoolError> {
        self.check_and_tell(&mut |_| {}).await
    }

    /// The same; `tell` is told how it gets on.
    ///
    /// # Errors
    ///
    /// As [`Pool::check`].
    pub async fn check_and_tell(
        self: &Rc<Self>,
        tell: &mut dyn FnMut(CheckProgress),
    ) -> Result<CheckReport, PoolError> {
        let unknown = self.features().read_only_compatible & !KNOWN_READ_ONLY_COMPATIBLE;
        if unknown != 0 {
            // What else may be used is not known.
            return Err(PoolError::Features { unknown });
        }
        let mut marks = Marks::default();
        let (maps, other) = {
            let state = self.state.borrow();
            let entries = state.table.entries();
            let maps: Vec<_> = entries
                .map(|entry| (entry.clone(), state.table.tree(entry)))
                .collect();
            let devices = state.space.numbers().map(|number| state.allocation_tree(number));
            let other: Vec<Tree> = devices.chain([state.volumes_tree()]).collect();
            (maps, other)
        };
        for tree in other {
            self.walk(&tree, &mut marks, false, |_, _| {}, &mut |_| {})
                .await?;
        }
        let mut progress = CheckProgress {
            volumes: maps.len(),
            ..CheckProgress::default()
        };
        tell(progress);
        for (entry, tree) in maps {
            let (mut own, mut covered) = (0, 0);
            let mut extents = Vec::new();
            // What a deletion has passed is no part of the tree any more.
            let from = if entry.state == VolumeState::Deleting {
                entry.delete_cursor
            } else {
                0
            };
            let count = |index, slot: &Slot| {
                if index >= from {
                    let before = own;
                    for fragment in &slot.fragments {
                        own += u64::from(fragment.birth > tree.parent_generation_of(index));
                        extents.push(fragment.extent);
                    }
                    covered += u64::from(own > before);
                }
            };
            let mut walked = |pages| tell(CheckProgress { pages, ..progress });
            self.walk(&tree, &mut marks, from > 0, count, &mut walked).await?;
            marks.data.extend(extents);
            progress.volumes_done += 1;
            progress.pages = marks.report.pages;
            tell(progress);
            let is_counted = entry.state != VolumeState::Deleting && tree.passed.before == 0;
            if is_counted && own != entry.own_extents {
                marks.report.miscounted.push((entry.id, own, entry.own_extents));
            }
            // It may be less while a deletion goes by, and until they were counted after it.
            let may_be_less = entry.count_covered || self.is_parent_deleting(&entry);
            let is_right = entry.covered_slots == covered || may_be_less && entry.covered_slots < covered;
            if entry.thick && entry.state == VolumeState::InUse && !is_right {
                marks
                    .report
                    .miscounted
                    .push((entry.id, covered, entry.covered_slots));
            }
        }
        Ok(self.compare(marks))
    }

    /// Goes over the pages of a tree, and the slots of a map. With `again`, pages that were seen are gone
    /// over too.
    async fn walk(
        &self,
        tree: &Tree,
        marks: &mut Marks,
        again: bool,
        mut slot: impl FnMut(u64, &Slot),
        walked: &mut dyn FnMut(u64),
    ) -> Result<(), PoolError> {
        let is_map = tree.shape.kind == crate::layout::page::PageKind::Map;
        let identity = |pointer: &PagePointer, level, index| PageIdentity {
            kind: tree.shape.kind,
            level,
            tree: tree.id,
            index,
            birth: pointer.birth,
        };
        let root = tree.root.map(|root| (root, tree.shape.height, 0));
        let mut open: Vec<(PagePointer, u8, u64)> = root.into_iter().collect();
        while let Some((pointer, level, index)) = open.pop() {
            if again && (index + 1).saturating_mul(tree.shape.span(level)) <= self.cursor_of(tree.id) {
                continue;
            }
            if marks.page(&pointer) && marks.report.pages.is_multiple_of(PAGES_IN_A_STEP) {
                walked(marks.report.pages);
                pollux_reactor::yield_now().await;
            }
            let page = self.any_page(&pointer, &identity(&pointer, level, index)).await?;
            if level > 0 {
                let below = (0..FAN_OUT).filter_map(|at| Some((page.pointer(at)?, at)));
                open.extend(below.map(|(below, at)| (below, level - 1, index * FAN_OUT + at)));
            } else if is_map {
                for at in 0..tree.shape.leaf_entries {
                    let found = Slot::decode(page.entry(at)).unwrap_or_default();
                    slot(index * tree.shape.leaf_entries + at, &found);
                }
            }
        }
        Ok(())
    }

    fn is_parent_deleting(&self, entry: &VolumeEntry) -> bool {
        let state = self.state.borrow();
        let parent = state.table.get(entry.parent);
        parent.is_some_and(|parent| parent.state == VolumeState::Deleting)
    }

    fn cursor_of(&self, id: u64) -> u64 {
        let state = self.state.borrow();
        state.table.get(id).map_or(0, |entry| entry.delete_cursor)
    }

    /// A page from memory or from the devices, without a change of either.
    pub(super) async fn any_page(
        &self,
        pointer: &PagePointer,
        identity: &PageIdentity,
    ) -> Result<Page, PoolError> {
        let known = {
            let mut state = self.state.borrow_mut();
            state.metadata().page(pointer, identity).ok().cloned()
        };
        if let Some(page) = known {
            return Ok(page);
        }
        let pointer = self.state.borrow().cache.sealed(*pointer);
        let devices = self.devices.borrow().clone();
        Ok(load(self.uuid, &devices, &pointer, identity).await?)
    }

    fn compare(&self, marks: Marks) -> CheckReport {
        let Marks {
            pages,
            data,
            mut report,
            ..
        } = marks;
        report.extents = data.len() as u64;
        report
            .claimed_twice
            .extend(data.iter().filter(|extent| pages.contains_key(extent)));
        let state = self.state.borrow();
        for number in state.space.numbers() {
            let Some(space) = state.space.device(number) else {
                continue;
            };
            if self.is_absent(number) {
                // Its label would say where its journal is.
                continue;
            }
            let fixed = self.fixed_extents(number);
            for at in 0..space.extents() {
                let extent = ExtentId::new(number, at);
                let reached = if fixed.contains(&at) || data.contains(&extent) {
                    u16::MAX
                } else {
                    pages.get(&extent).copied().unwrap_or(0)
                };
                let marked = space.image(at);
                if reached != marked {
                    report.misplaced.push(Misplaced {
                        extent,
                        reached,
                        marked,
                    });
                }
            }
        }
        report
    }

    /// Extents of a device that hold labels and the journal.
    pub(super) fn fixed_extents(&self, number: u8) -> BTreeSet<u64> {
        let labels = self.labels.borrow();
        let Some(label) = labels.get(usize::from(number)).and_then(Option::as_ref) else {
            return BTreeSet::new();
        };
        let members = self.state.borrow();
        let extents = members
            .members
            .get(usize::from(number))
            .map_or(0, |entry| entry.extents);
        let areas = [0, 1, extents.saturating_sub(2), extents.saturating_sub(1)];
        let journal = label.journal_first..label.journal_first + label.journal_extents;
        areas.into_iter().chain(journal).collect()
    }
}
