//! Random families of volumes, snapshots and clones against plain maps: what is read, and exactly what is
//! freed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::layout::ExtentId;
use crate::layout::page::MAP_LEAF_SLOTS;
use crate::layout::slot::{Fragment, Slot};

const SHAPE: Shape = Shape {
    kind: PageKind::Map,
    height: 2,
    leaf_entries: MAP_LEAF_SLOTS,
};

/// At the borders of leaves and of the pages above them.
const ENTRIES: [u64; 9] = [0, 1, 30, 31, 3905, 3906, 3907, 7812, 492_155];

/// Pages in memory; each is absent again and again, to be asked for twice.
#[derive(Default)]
struct Memory {
    pages: BTreeMap<u64, Page>,
    next: u64,
    evicted: RefCell<BTreeSet<u64>>,
    /// Made since the last checkpoint.
    new: BTreeSet<u64>,
}

impl Memory {
    fn evict_all(&self) {
        self.evicted.borrow_mut().extend(self.pages.keys());
    }

    /// Does something until all the pages it needs are there.
    fn retry<T>(&mut self, mut act: impl FnMut(&mut Self) -> Result<T, TreeError>) -> T {
        loop {
            match act(self) {
                Ok(value) => return value,
                Err(TreeError::Absent { pointer, .. }) => {
                    assert!(self.evicted.borrow_mut().remove(&pointer.first.raw()));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

impl PageStore for Memory {
    fn page(&self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&Page, TreeError> {
        let key = pointer.first.raw();
        if self.evicted.borrow().contains(&key) {
            return Err(TreeError::Absent {
                pointer: *pointer,
                identity: *identity,
            });
        }
        let page = self.pages.get(&key).expect("the page was freed");
        let found = page.identity();
        assert_eq!(
            (found.kind, found.level, found.index, found.birth),
            (identity.kind, identity.level, identity.index, identity.birth)
        );
        Ok(page)
    }

    fn page_mut(&mut self, pointer: &PagePointer, identity: &PageIdentity) -> Result<&mut Page, TreeError> {
        self.page(pointer, identity)?;
        assert!(
            self.new.contains(&pointer.first.raw()),
            "a checkpoint has the page"
        );
        Ok(self.pages.get_mut(&pointer.first.raw()).unwrap())
    }

    fn create(&mut self, page: Page) -> Result<PagePointer, TreeError> {
        self.next += 1;
        let (first, second) = (ExtentId::new(0, self.next), ExtentId::new(1, self.next));
        let pointer = PagePointer {
            first: first.block(0),
            second: second.block(0),
            birth: page.identity().birth,
            crc: 0,
        };
        self.pages.insert(pointer.first.raw(), page);
        self.new.insert(pointer.first.raw());
        Ok(pointer)
    }

    fn reserve(&mut self, _: usize) -> Result<(), TreeError> {
        Ok(())
    }

    fn release(&mut self, pointer: &PagePointer) {
        assert!(self.pages.remove(&pointer.first.raw()).is_some(), "freed twice");
        self.evicted.borrow_mut().remove(&pointer.first.raw());
    }

    fn is_new(&self, pointer: &PagePointer) -> bool {
        self.new.contains(&pointer.first.raw())
    }

    fn empty(&self, identity: PageIdentity) -> Page {
        Page::empty(Uuid::nil(), identity)
    }
}

/// Moves some extents of an entry, and some pages.
#[derive(Default)]
struct Mapped {
    entry: u64,
    extents: BTreeMap<u64, u64>,
    pages: BTreeSet<u64>,
}

impl Relocation for Mapped {
    fn moves(&self, pointer: &PagePointer) -> bool {
        self.pages.contains(&pointer.first.raw())
    }

    fn entry(&self, entry: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut slot = Slot::decode(bytes).unwrap();
        let fragment = slot.fragments.first_mut().filter(|_| entry == self.entry)?;
        fragment.extent = ExtentId::from_raw(*self.extents.get(&fragment.extent.raw())?).unwrap();
        Some(slot.encode().to_vec())
    }
}

struct Node {
    id: u64,
    parent: Option<u64>,
    tree: Tree,
    /// The generation that it closed; `None` for a head.
    closed: Option<u64>,
    /// Deleted, and kept for its children.
    kept: bool,
    /// What it should hold: extents by entry.
    model: BTreeMap<u64, u64>,
}

/// Frees extents as a pool would.
struct Extents<'a> {
    used: &'a mut BTreeSet<u64>,
    parent_generation: u64,
    lets_go: bool,
}

impl Freed for Extents<'_> {
    fn entry(&mut self, _: u64, own: &[u8], children: &[&[u8]]) -> arrayvec::ArrayVec<u8, 256> {
        let slot = Slot::decode(own).unwrap();
        let fragment = slot.fragments[0];
        let shared = children.iter().any(|child| {
            Slot::decode(child)
                .unwrap()
                .fragment_with(fragment.extent)
                .is_some()
        });
        let is_own = fragment.birth > self.parent_generation;
        if shared || !(is_own || self.lets_go) {
            return own.iter().copied().collect();
        }
        if is_own {
            assert!(self.used.remove(&fragment.extent.raw()), "freed twice");
        }
        std::iter::repeat_n(0, own.len()).collect()
    }
}

struct Family {
    memory: Memory,
    nodes: Vec<Node>,
    used: BTreeSet<u64>,
    generations: Generations,
    next_id: u64,
    next_extent: u64,
}

impl Family {
    fn new() -> Self {
        let tree = Tree {
            shape: SHAPE,
            id: 1,
            root: None,
            parent_generation: 0,
            passed: Passed::default(),
        };
        let head = Node {
            id: 1,
            parent: None,
            tree,
            closed: None,
            kept: false,
            model: BTreeMap::new(),
        };
        Self {
            memory: Memory::default(),
            nodes: vec![head],
            used: BTreeSet::new(),
            generations: Generations { open: 1, closed: 0 },
            next_id: 2,
            next_extent: 1,
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn children(&self, id: u64) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|at| self.nodes[*at].parent == Some(id))
            .collect()
    }

    fn pick(&self, number: usize, wanted: impl Fn(&Node) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.nodes.len())
            .filter(|at| wanted(&self.nodes[*at]))
            .collect();
        (!fitting.is_empty()).then(|| fitting[number % fitting.len()])
    }

    fn write(&mut self, head: usize, entry: u64, clear: bool) {
        let mut slot = Slot::default();
        let node = &mut self.nodes[head];
        if clear {
            node.model.remove(&entry);
        } else {
            let extent = ExtentId::from_raw(self.next_extent).unwrap();
            self.next_extent += 1;
            slot.fragments.push(Fragment {
                extent,
                mask: 1,
                birth: self.generations.open,
                lost: 0,
            });
            self.used.insert(extent.raw());
            node.model.insert(entry, extent.raw());
        }
        let (generations, mut tree) = (self.generations, node.tree);
        let read = |bytes: &[u8]| Slot::decode(bytes).unwrap();
        let old = self
            .memory
            .retry(|memory| tree.get(memory, entry, read))
            .unwrap_or_default();
        self.memory
            .retry(|memory| tree.put(memory, generations, entry, &slot.encode()));
        for fragment in &old.fragments {
            if fragment.birth > tree.parent_generation {
                assert!(self.used.remove(&fragment.extent.raw()), "freed twice");
            }
        }
        node.tree = tree;
    }

    fn snapshot(&mut self, head: usize) {
        let id = self.new_id();
        let closed = self.generations.open;
        self.generations.open += 1;
        let node = &mut self.nodes[head];
        let (parent, tree, model) = (node.parent, node.tree, node.model.clone());
        node.parent = Some(id);
        node.tree.parent_generation = closed;
        self.nodes.push(Node {
            id,
            parent,
            tree,
            closed: Some(closed),
            kept: false,
            model,
        });
    }

    fn clone_of(&mut self, snapshot: usize) {
        let id = self.new_id();
        let node = &self.nodes[snapshot];
        let tree = Tree {
            id,
            parent_generation: node.closed.unwrap(),
            ..node.tree
        };
        let (parent, model) = (Some(node.id), node.model.clone());
        self.nodes.push(Node {
            id,
            parent,
            tree,
            closed: None,
            kept: false,
            model,
        });
    }

    fn delete(&mut self, at: usize) {
        let children = self.children(self.nodes[at].id);
        let trees: Vec<Tree> = children.iter().map(|child| self.nodes[*child].tree).collect();
        let (tree, generations) = (self.nodes[at].tree, self.generations);
        let is_kept = children.len() > 1;
        let of_kept = |node: &Node| node.kept && Some(node.id) == self.nodes[at].parent;
        let mut extents = Extents {
            lets_go: is_kept && self.nodes.iter().any(of_kept),
            used: &mut self.used,
            parent_generation: tree.parent_generation,
        };
        if is_kept {
            self.nodes[at].kept = true;
            let trimming = Trimming {
                generation: self.nodes[at].closed.unwrap(),
                lets_go: extents.lets_go,
            };
            for entry in ENTRIES {
                let deletion = Deletion {
                    tree: self.nodes[at].tree,
                    children: &trees,
                };
                self.nodes[at].tree = self
                    .memory
                    .retry(|memory| trim_leaf(memory, &deletion, trimming, generations, entry, &mut extents));
            }
            return;
        }
        let deletion = Deletion {
            tree,
            children: &trees,
        };
        for (from, end) in [(0, 31), (31, 3906), (3906, u64::MAX)] {
            self.memory
                .retry(|memory| delete_range(memory, &deletion, from, end, &mut extents));
        }
        let gone = self.nodes[at].parent;
        if let [child] = children[..] {
            self.nodes[child].parent = gone;
            self.nodes[child].tree.parent_generation = tree.parent_generation;
        }
        self.nodes.remove(at);
        if let Some(parent) = self
            .nodes
            .iter()
            .position(|node| Some(node.id) == gone && node.kept)
        {
            self.delete(parent);
        }
    }

    fn relocate(&mut self, place: PagePlaceInTree, relocation: &Mapped) {
        let trees = self.nodes.iter().map(|node| Relative {
            tree: node.tree,
            gone_before: 0,
        });
        let mut family: Vec<Relative> = trees.collect();
        self.memory
            .retry(|memory| relocate(memory, &mut family, place, relocation, |_, _| Ok(())));
        for (node, relative) in self.nodes.iter_mut().zip(family) {
            node.tree = relative.tree;
        }
    }

    /// Puts all extents at an entry elsewhere, in all trees.
    fn move_extents(&mut self, entry: u64) {
        let mut relocation = Mapped {
            entry,
            ..Mapped::default()
        };
        for node in 0..self.nodes.len() {
            let tree = self.nodes[node].tree;
            let read = |bytes: &[u8]| Slot::decode(bytes).unwrap();
            let slot = self.memory.retry(|memory| tree.get(memory, entry, read));
            for fragment in slot.unwrap_or_default().fragments {
                let next = &mut self.next_extent;
                relocation
                    .extents
                    .entry(fragment.extent.raw())
                    .or_insert_with(|| {
                        *next += 1;
                        *next - 1
                    });
            }
        }
        let (level, index) = (0, entry / MAP_LEAF_SLOTS);
        self.relocate(PagePlaceInTree { level, index }, &relocation);
        for (from, to) in &relocation.extents {
            assert!(self.used.remove(from) && self.used.insert(*to));
            for node in &mut self.nodes {
                if let Some(held) = node.model.get_mut(&entry).filter(|held| *held == from) {
                    *held = *to;
                }
            }
        }
        for node in 0..self.nodes.len() {
            let (tree, from) = (self.nodes[node].tree, entry);
            let next = self
                .memory
                .retry(|memory| next_place(memory, &tree, None, from, &relocation));
            assert_ne!(next, NextPlace::Entry(entry));
        }
    }

    /// Puts the pages at a place elsewhere, in all trees.
    fn move_page(&mut self, entry: u64, level: u8) {
        let index = entry / SHAPE.span(level);
        let mut relocation = Mapped::default();
        for node in 0..self.nodes.len() {
            let tree = self.nodes[node].tree;
            let pages = self.memory.retry(|memory| pages_to(memory, &tree, entry));
            let there = pages.iter().filter(|(_, identity)| identity.level == level);
            relocation
                .pages
                .extend(there.map(|(pointer, _)| pointer.first.raw()));
        }
        self.relocate(PagePlaceInTree { level, index }, &relocation);
        assert!(
            relocation
                .pages
                .iter()
                .all(|page| !self.memory.pages.contains_key(page))
        );
    }

    fn reach(&self, tree: &Tree) -> (BTreeSet<u64>, BTreeMap<u64, u64>) {
        let (mut pages, mut entries) = (BTreeSet::new(), BTreeMap::new());
        let mut todo: Vec<_> = tree
            .root
            .map(|root| (root, SHAPE.height, 0))
            .into_iter()
            .collect();
        while let Some((pointer, level, index)) = todo.pop() {
            let page = self
                .memory
                .page(&pointer, &tree.identity(&pointer, level, index))
                .unwrap();
            assert!(!page.is_empty());
            pages.insert(pointer.first.raw());
            if level == 0 {
                for at in 0..MAP_LEAF_SLOTS {
                    if let Some(fragment) = Slot::decode(page.entry(at)).unwrap().fragments.first() {
                        entries.insert(index * MAP_LEAF_SLOTS + at, fragment.extent.raw());
                    }
                }
            } else {
                let below =
                    (0..FAN_OUT).filter_map(|at| Some((page.pointer(at)?, level - 1, index * FAN_OUT + at)));
                todo.extend(below);
            }
        }
        (pages, entries)
    }

    /// Every tree reads as its model, nothing that is reached is freed, and everything else is.
    fn check(&mut self) {
        self.memory.evicted.borrow_mut().clear();
        let (mut pages, mut held) = (BTreeSet::new(), BTreeSet::new());
        for node in &self.nodes {
            let (own_pages, entries) = self.reach(&node.tree);
            if !node.kept {
                assert_eq!(entries, node.model, "node {}", node.id);
            }
            pages.extend(own_pages);
            held.extend(entries.into_values());
        }
        assert_eq!(self.memory.pages.keys().copied().collect::<BTreeSet<_>>(), pages);
        assert_eq!(self.used, held);
    }

    /// After going over all kept nodes again, only what can be seen is held.
    fn check_exact(&mut self) {
        while let Some(at) = self
            .nodes
            .iter()
            .position(|node| node.kept && self.children(node.id).len() < 2)
        {
            self.delete(at);
        }
        // A kept node's parent may hold what the node has just let go of.
        for _ in 0..self.nodes.len() {
            for at in 0..self.nodes.len() {
                if self.nodes[at].kept {
                    self.delete(at);
                }
            }
        }
        self.check();
        let visible = self.nodes.iter().filter(|node| !node.kept);
        let visible: BTreeSet<u64> = visible.flat_map(|node| node.model.values().copied()).collect();
        assert_eq!(self.used, visible);
    }

    fn check_differences(&mut self, one: usize, other: usize) {
        let (one, other) = (&self.nodes[one], &self.nodes[other]);
        let (mut from, mut found) = (0, BTreeSet::new());
        loop {
            let step = self
                .memory
                .retry(|memory| differences(memory, &one.tree, &other.tree, from, 2));
            found.extend(step.leaves.iter().map(|leaf| leaf.0));
            match step.next {
                Some(next) => from = next,
                None => break,
            }
        }
        if one.kept || other.kept {
            return;
        }
        for entry in ENTRIES {
            if one.model.get(&entry) != other.model.get(&entry) {
                assert!(found.contains(&(entry / MAP_LEAF_SLOTS * MAP_LEAF_SLOTS)));
            }
        }
        assert!(one.tree.root != other.tree.root || found.is_empty());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize),
    Clear(usize, usize),
    Snapshot(usize),
    Clone(usize),
    Delete(usize),
    Checkpoint,
    Differ(usize, usize),
    /// All extents at an entry move.
    MoveExtents(usize),
    /// The page of a level above an entry moves, in all trees.
    MovePage(usize, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0usize..1000;
    prop_oneof![
        6 => (number.clone(), 0..ENTRIES.len()).prop_map(|(head, entry)| Step::Write(head, entry)),
        1 => (number.clone(), 0..ENTRIES.len()).prop_map(|(head, entry)| Step::Clear(head, entry)),
        2 => number.clone().prop_map(Step::Snapshot),
        1 => number.clone().prop_map(Step::Clone),
        2 => number.clone().prop_map(Step::Delete),
        1 => Just(Step::Checkpoint),
        1 => (number.clone(), number).prop_map(|(one, other)| Step::Differ(one, other)),
        1 => (0..ENTRIES.len()).prop_map(Step::MoveExtents),
        1 => (0..ENTRIES.len(), 0..=SHAPE.height).prop_map(|(entry, level)| Step::MovePage(entry, level)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn families_hold_what_they_should_and_nothing_else(steps in prop::collection::vec(step(), 1..60)) {
        let mut family = Family::new();
        for step in steps {
            family.memory.evict_all();
            let is_head = |node: &Node| node.closed.is_none();
            match step.clone() {
                Step::MoveExtents(_) | Step::MovePage(..) => {}
                Step::Write(head, entry) => if let Some(at) = family.pick(head, is_head) {
                    family.write(at, ENTRIES[entry], false);
                },
                Step::Clear(head, entry) => if let Some(at) = family.pick(head, is_head) {
                    family.write(at, ENTRIES[entry], true);
                },
                Step::Snapshot(head) => if let Some(at) = family.pick(head, is_head) {
                    family.snapshot(at);
                },
                Step::Clone(snapshot) => {
                    let usable = |node: &Node| node.closed.is_some() && !node.kept;
                    if let Some(at) = family.pick(snapshot, usable) {
                        family.clone_of(at);
                    }
                }
                Step::Delete(node) => if let Some(at) = family.pick(node, |node| !node.kept) {
                    family.delete(at);
                },
                Step::Checkpoint => {
                    family.generations.closed = family.generations.open;
                    family.generations.open += 1;
                    family.memory.new.clear();
                }
                Step::Differ(one, other) => {
                    let any = |_: &Node| true;
                    if let (Some(one), Some(other)) = (family.pick(one, any), family.pick(other, any)) {
                        family.check_differences(one, other);
                    }
                }
            }
            if let Step::MoveExtents(entry) = &step {
                family.move_extents(ENTRIES[*entry]);
            }
            if let Step::MovePage(entry, level) = &step {
                family.move_page(ENTRIES[*entry], *level);
            }
            family.check();
        }
        family.check_exact();
        while let Some(at) = family.pick(0, |node| !node.kept) {
            family.delete(at);
        }
        family.check_exact();
        prop_assert!(family.used.is_empty() && family.memory.pages.is_empty());
    }
}

/// A volume with two snapshots, the older of which the newer one has all of. Each has a clone, everybody has
/// written anew, and both snapshots are deleted: each is kept for its two children, and nothing of it is.
#[test]
fn a_kept_tree_lets_go_of_what_it_has_from_another_one() {
    let mut family = Family::new();
    family.write(0, 0, false);
    family.snapshot(0);
    family.clone_of(1);
    family.snapshot(0);
    family.clone_of(3);
    let (head, older, clone, newer, other) = (0, 1, 2, 3, 4);
    for at in [head, clone, other] {
        family.write(at, 0, false);
    }
    family.delete(older);
    family.delete(newer);
    family.check_exact();
    assert_eq!(family.used, BTreeSet::from([2, 3, 4]));
    family.delete(clone);
    family.check_exact();
    assert_eq!(family.used, BTreeSet::from([2, 4]));
}

#[test]
fn entries_past_the_end_are_refused() {
    let mut family = Family::new();
    let tree = &mut family.nodes[0].tree;
    let end = SHAPE.entries();
    assert_eq!(end, 31 * 126 * 126);
    assert_eq!(tree.get(&family.memory, end, |_| ()), Err(TreeError::OutOfRange));
    let put = tree.put(&mut family.memory, family.generations, end, &[1; 128]);
    assert_eq!(put, Err(TreeError::OutOfRange));
}
