//! The content of a drive: sparse, and cheap to copy.
//!
//! A tree of 64-way branches over 4 KiB pages, shared between copies until one of them is written
//! (`Arc::make_mut`). A copy costs one reference; a write to a copy costs one page and the branches above it.
//! Whole subtrees that were never written, or that are zeros, take no memory, so that a drive can be of any
//! size.

use std::sync::Arc;

use crate::random::mix;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// Children of a branch.
const FANOUT: u64 = 64;

/// What a drive holds where nobody has written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Zeros, as a new drive does.
    Zeros,
    /// Noise that depends on this number and the position, as a used drive does.
    Noise(u64),
}

impl Fill {
    fn read(self, offset: u64, into: &mut [u8]) {
        match self {
            Self::Zeros => into.fill(0),
            Self::Noise(number) => {
                let mut word = mix(number, offset / 8).to_le_bytes();
                for (at, byte) in (offset..).zip(into) {
                    if at % 8 == 0 {
                        word = mix(number, at / 8).to_le_bytes();
                    }
                    *byte = word[(at % 8) as usize];
                }
            }
        }
    }
}

#[derive(Clone)]
enum Node {
    /// Never written: the fill.
    Untouched,
    Zeros,
    Page(Arc<[u8; PAGE_BYTES as usize]>),
    Branch(Arc<[Node; FANOUT as usize]>),
}

/// The bytes of a drive.
#[derive(Clone)]
pub(crate) struct PageMap {
    root: Node,
    /// Bytes under the root.
    root_bytes: u64,
    fill: Fill,
}

impl PageMap {
    /// Room for at least `bytes`, all of them as `fill` says.
    pub(crate) fn new(bytes: u64, fill: Fill) -> Self {
        let mut root_bytes = PAGE_BYTES;
        while root_bytes < bytes {
            root_bytes = root_bytes.saturating_mul(FANOUT);
        }
        Self {
            root: Node::Untouched,
            root_bytes,
            fill,
        }
    }

    /// Makes room for at least `bytes`.
    pub(crate) fn grow(&mut self, bytes: u64) {
        while self.root_bytes < bytes {
            let below = std::mem::replace(&mut self.root, Node::Untouched);
            if !matches!(below, Node::Untouched) {
                let mut children = std::array::from_fn(|_| Node::Untouched);
                children[0] = below;
                self.root = Node::Branch(Arc::new(children));
            }
            self.root_bytes = self.root_bytes.saturating_mul(FANOUT);
        }
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        read(&self.root, self.root_bytes, self.fill, (offset, offset), into);
    }

    /// Whether nothing is stored at a byte, which is zero then: in the whole page around it.
    pub(crate) fn is_empty_at(&self, offset: u64) -> bool {
        let (mut node, mut node_bytes, mut within) = (&self.root, self.root_bytes, offset);
        loop {
            match node {
                Node::Untouched => return self.fill == Fill::Zeros,
                Node::Zeros => return true,
                Node::Page(_) => return false,
                Node::Branch(children) => {
                    node_bytes /= FANOUT;
                    let child = children.get((within / node_bytes) as usize);
                    node = child.expect("inside of the drive");
                    within %= node_bytes;
                }
            }
        }
    }

    /// Puts bytes in.
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        let change = Change {
            fill: self.fill,
            bytes: from.len() as u64,
            from: Some(from),
        };
        change.apply(&mut self.root, self.root_bytes, 0, offset);
    }

    /// Makes bytes zeros.
    pub(crate) fn zero(&mut self, offset: u64, bytes: u64) {
        let change = Change {
            fill: self.fill,
            bytes,
            from: None,
        };
        change.apply(&mut self.root, self.root_bytes, 0, offset);
    }

    /// Pages that take memory, counting shared ones.
    pub(crate) fn pages(&self) -> usize {
        fn count(node: &Node) -> usize {
            match node {
                Node::Untouched | Node::Zeros => 0,
                Node::Page(_) => 1,
                Node::Branch(children) => children.iter().map(count).sum(),
            }
        }
        count(&self.root)
    }
}

/// Reads at `offset` of a node that begins at byte 0 of its own; `absolute` is the same place on the drive.
fn read(node: &Node, node_bytes: u64, fill: Fill, (offset, absolute): (u64, u64), into: &mut [u8]) {
    match node {
        Node::Untouched => fill.read(absolute, into),
        Node::Zeros => into.fill(0),
        Node::Page(page) => {
            let from = page
                .get(offset as usize..)
                .and_then(|rest| rest.get(..into.len()));
            into.copy_from_slice(from.expect("the range is inside of the drive"));
        }
        Node::Branch(children) => {
            let child_bytes = node_bytes / FANOUT;
            let (mut offset, mut absolute, mut rest) = (offset, absolute, into);
            while !rest.is_empty() {
                let child = children
                    .get((offset / child_bytes) as usize)
                    .expect("inside of the drive");
                let within = offset % child_bytes;
                let len = (rest.len() as u64).min(child_bytes - within);
                let (head, tail) = rest.split_at_mut(len as usize);
                read(child, child_bytes, fill, (within, absolute), head);
                (offset, absolute, rest) = (offset + len, absolute + len, tail);
            }
        }
    }
}

/// A write, or zeros where there is nothing to write.
struct Change<'a> {
    fill: Fill,
    bytes: u64,
    from: Option<&'a [u8]>,
}

impl Change<'_> {
    /// Applies the part of the change, which begins at `offset` of the drive, that concerns a node at
    /// `start`.
    fn apply(&self, node: &mut Node, node_bytes: u64, start: u64, offset: u64) {
        let (from, to) = (offset.max(start), (offset + self.bytes).min(start + node_bytes));
        if from >= to {
            return;
        }
        if self.from.is_none() && to - from == node_bytes {
            *node = Node::Zeros;
            return;
        }
        if node_bytes == PAGE_BYTES {
            let page = Arc::make_mut(self.page(node, start));
            let target = &mut page[(from - start) as usize..(to - start) as usize];
            match self.from {
                Some(data) => target.copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]),
                None => target.fill(0),
            }
            return;
        }
        if !matches!(node, Node::Branch(_)) {
            *node = Node::Branch(Arc::new(std::array::from_fn(|_| node.clone())));
        }
        if let Node::Branch(children) = node {
            let child_bytes = node_bytes / FANOUT;
            let (first, last) = ((from - start) / child_bytes, (to - 1 - start) / child_bytes);
            let children = Arc::make_mut(children);
            for (index, child) in (0..)
                .zip(children.iter_mut())
                .skip(first as usize)
                .take((last - first) as usize + 1)
            {
                self.apply(child, child_bytes, start + index * child_bytes, offset);
            }
        }
    }

    /// The page of a node, made if it is not there.
    fn page<'a>(&self, node: &'a mut Node, start: u64) -> &'a mut Arc<[u8; PAGE_BYTES as usize]> {
        if !matches!(node, Node::Page(_)) {
            let mut page = [0; PAGE_BYTES as usize];
            if matches!(node, Node::Untouched) {
                self.fill.read(start, &mut page);
            }
            *node = Node::Page(Arc::new(page));
        }
        match node {
            Node::Page(page) => page,
            Node::Untouched | Node::Zeros | Node::Branch(_) => unreachable!("it was made a page above"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u64 = 5 << 20;

    fn content(map: &PageMap, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        map.read(offset, &mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn behaves_as_an_array_and_copies_are_apart(
            noise in any::<bool>(),
            steps in proptest::collection::vec((0u64..BYTES, 1u64..20_000, 0u8..4), 1..40),
        ) {
            let fill = if noise { Fill::Noise(9) } else { Fill::Zeros };
            let mut map = PageMap::new(BYTES, fill);
            let mut model = content(&map, 0, BYTES as usize);
            prop_assert_eq!(model.iter().all(|&byte| byte == 0), !noise);
            let mut copies = Vec::new();
            for (number, (offset, len, kind)) in steps.into_iter().enumerate() {
                let len = len.min(BYTES - offset) * if kind == 3 { 50 } else { 1 };
                let len = len.min(BYTES - offset);
                let range = offset as usize..(offset + len) as usize;
                if kind == 0 {
                    copies.push((map.clone(), model.clone()));
                } else if kind == 1 {
                    let data: Vec<u8> = (0..len).map(|index| (index as u8) ^ number as u8).collect();
                    map.write(offset, &data);
                    model[range].copy_from_slice(&data);
                } else {
                    map.zero(offset, len);
                    model[range].fill(0);
                }
            }
            copies.push((map, model));
            for (map, model) in copies {
                prop_assert!(content(&map, 0, BYTES as usize) == model);
                prop_assert!(content(&map, 12_345, 70_000) == model[12_345..82_345]);
            }
        }
    }

    #[test]
    fn huge_drives_take_no_memory() {
        let mut map = PageMap::new(64 << 40, Fill::Noise(1));
        map.zero(10, 60 << 40);
        map.write(63 << 40, &[7; 10]);
        assert_eq!(content(&map, (63 << 40) + 5, 5), [7; 5]);
        assert_eq!(content(&map, 32 << 40, 3), [0; 3]);
        assert!(map.pages() <= 3, "{}", map.pages());
        let before = content(&map, 0, 20);
        map.grow(1 << 52);
        assert_eq!(content(&map, 0, 20), before);
        assert_eq!(content(&map, (63 << 40) + 5, 5), [7; 5]);
    }
}
