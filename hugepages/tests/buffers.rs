//! Buffers and slices against plain vectors, on a pool and on the heap.

use pollux_hugepages::{Buffer, BufferPool, PoolOptions, Slice};
use proptest::prelude::*;
use proptest::sample::Index;

const SLOT_BYTES: usize = 4096;

fn heap_pool(total_bytes: usize) -> BufferPool {
    let options = PoolOptions {
        total_bytes,
        classes_bytes: vec![4 << 10, 16 << 10],
        ..PoolOptions::default()
    };
    BufferPool::on_heap(&options).expect("the options are usable")
}

/// A buffer or a slice, the bytes it should have, the slot they are of, and where in the slot they begin.
struct Tracked {
    view: View,
    bytes: Vec<u8>,
    slot: usize,
    start: usize,
}

enum View {
    Buffer(Buffer),
    Slice(Slice),
}

impl Tracked {
    fn check(&self) {
        let found: &[u8] = match &self.view {
            View::Buffer(buffer) => buffer,
            View::Slice(slice) => slice,
        };
        assert!(
            found == self.bytes,
            "{} bytes of slot {} at {} changed",
            found.len(),
            self.slot,
            self.start
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { from_pool: bool, len: usize },
    Write { who: Index, position: Index, value: u8 },
    SplitTo { who: Index, at: Index },
    SplitOff { who: Index, at: Index },
    Unsplit { who: Index, other: Index },
    Truncate { who: Index, len: Index },
    Advance { who: Index, count: Index },
    Freeze { who: Index },
    Clone { who: Index },
    SubSlice { who: Index, from: Index, to: Index },
    IntoBuffer { who: Index },
    Reclaim { who: Index },
    Drop { who: Index },
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        3 => (any::<bool>(), 0..if cfg!(miri) { 64 } else { 3 * SLOT_BYTES })
            .prop_map(|(from_pool, len)| Step::Allocate { from_pool, len }),
        3 => (index(), index(), any::<u8>())
            .prop_map(|(who, position, value)| Step::Write { who, position, value }),
        2 => (index(), index()).prop_map(|(who, at)| Step::SplitTo { who, at }),
        2 => (index(), index()).prop_map(|(who, at)| Step::SplitOff { who, at }),
        3 => (index(), index()).prop_map(|(who, other)| Step::Unsplit { who, other }),
        1 => (index(), index()).prop_map(|(who, len)| Step::Truncate { who, len }),
        1 => (index(), index()).prop_map(|(who, count)| Step::Advance { who, count }),
        2 => index().prop_map(|who| Step::Freeze { who }),
        1 => index().prop_map(|who| Step::Clone { who }),
        1 => (index(), index(), index()).prop_map(|(who, from, to)| Step::SubSlice { who, from, to }),
        2 => index().prop_map(|who| Step::IntoBuffer { who }),
        2 => index().prop_map(|who| Step::Reclaim { who }),
        4 => index().prop_map(|who| Step::Drop { who }),
    ]
}

/// All views, and the pool that some are of.
struct World {
    pool: BufferPool,
    views: Vec<Tracked>,
    slots: usize,
}

impl World {
    fn others(&self, slot: usize) -> usize {
        self.views.iter().filter(|view| view.slot == slot).count()
    }

    fn apply(&mut self, step: &Step) {
        if let Step::Allocate { from_pool, len } = step {
            return self.allocate(*from_pool, *len);
        }
        let (Step::Write { who, .. }
        | Step::SplitTo { who, .. }
        | Step::SplitOff { who, .. }
        | Step::Unsplit { who, .. }
        | Step::Truncate { who, .. }
        | Step::Advance { who, .. }
        | Step::Freeze { who }
        | Step::Clone { who }
        | Step::SubSlice { who, .. }
        | Step::IntoBuffer { who }
        | Step::Reclaim { who }
        | Step::Drop { who }) = step
        else {
            return;
        };
        if self.views.is_empty() {
            return;
        }
        let tracked = self.views.swap_remove(who.index(self.views.len()));
        let Tracked {
            view,
            bytes,
            slot,
            start,
        } = tracked;
        match view {
            View::Buffer(buffer) => self.apply_to_buffer(step, buffer, bytes, slot, start),
            View::Slice(slice) => self.apply_to_slice(step, slice, bytes, slot, start),
        }
    }

    fn allocate(&mut self, from_pool: bool, len: usize) {
        let mut buffer = if from_pool {
            let Some(buffer) = self.pool.allocate(len) else {
                return;
            };
            buffer
        } else {
            let buffer = Buffer::from_heap(len);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer
        };
        assert!(buffer.is_empty() || buffer.is_aligned(4096));
        self.slots += 1;
        for (position, byte) in buffer.iter_mut().enumerate() {
            *byte = (position + self.slots * 7) as u8;
        }
        let bytes = buffer.to_vec();
        self.views.push(Tracked {
            view: View::Buffer(buffer),
            bytes,
            slot: self.slots,
            start: 0,
        });
    }

    fn keep_buffer(&mut self, buffer: Buffer, bytes: Vec<u8>, slot: usize, start: usize) {
        self.views.push(Tracked {
            view: View::Buffer(buffer),
            bytes,
            slot,
            start,
        });
    }

    fn keep_slice(&mut self, slice: Slice, bytes: Vec<u8>, slot: usize, start: usize) {
        self.views.push(Tracked {
            view: View::Slice(slice),
            bytes,
            slot,
            start,
        });
    }

    fn apply_to_buffer(
        &mut self,
        step: &Step,
        mut buffer: Buffer,
        mut bytes: Vec<u8>,
        slot: usize,
        start: usize,
    ) {
        let len = bytes.len();
        match step {
            Step::Write { position, value, .. } if len > 0 => {
                buffer[position.index(len)] = *value;
                bytes[position.index(len)] = *value;
            }
            Step::SplitTo { at, .. } => {
                let at = at.index(len + 1);
                let head = buffer.split_to(at);
                let tail_bytes = bytes.split_off(at);
                self.keep_buffer(head, bytes, slot, start);
                return self.keep_buffer(buffer, tail_bytes, slot, start + at);
            }
            Step::SplitOff { at, .. } => {
                let at = at.index(len + 1);
                let tail = buffer.split_off(at);
                let tail_bytes = bytes.split_off(at);
                self.keep_buffer(tail, tail_bytes, slot, start + at);
            }
            Step::Unsplit { other, .. } if !self.views.is_empty() => {
                let other = self.views.swap_remove(other.index(self.views.len()));
                let fits = other.slot == slot && other.start == start + len;
                match other.view {
                    View::Slice(slice) => {
                        self.keep_slice(slice, other.bytes, other.slot, other.start);
                    }
                    View::Buffer(next) => match buffer.try_unsplit(next) {
                        Ok(()) => {
                            assert!(fits, "views that are not neighbours were joined");
                            bytes.extend(other.bytes);
                        }
                        Err(next) => {
                            // Empty views of no slot are never joined.
                            assert!(!fits || (len == 0 && other.bytes.is_empty()));
                            self.keep_buffer(next, other.bytes, other.slot, other.start);
                        }
                    },
                }
            }
            Step::Truncate { len: to, .. } => {
                let to = to.index(len + 10);
                buffer.truncate(to);
                bytes.truncate(to);
            }
            Step::Advance { count, .. } => {
                let count = count.index(len + 1);
                buffer.advance(count);
                bytes.drain(..count);
                return self.keep_buffer(buffer, bytes, slot, start + count);
            }
            Step::Freeze { .. } => {
                return self.keep_slice(buffer.freeze(), bytes, slot, start);
            }
            Step::Reclaim { .. } => {
                let alone = self.others(slot) == 0;
                match buffer.reclaim() {
                    Ok(whole) => {
                        assert!(alone, "a slot with other views was reclaimed");
                        assert!(whole.len() >= SLOT_BYTES && whole.is_aligned(SLOT_BYTES));
                        assert!(whole[start..start + len] == bytes);
                        let bytes = whole.to_vec();
                        return self.keep_buffer(whole, bytes, slot, 0);
                    }
                    Err(same) => {
                        assert!(!alone || len == 0);
                        return self.keep_buffer(same, bytes, slot, start);
                    }
                }
            }
            Step::Drop { .. } => return,
            _ => {}
        }
        self.keep_buffer(buffer, bytes, slot, start);
    }

    fn apply_to_slice(
        &mut self,
        step: &Step,
        mut slice: Slice,
        mut bytes: Vec<u8>,
        slot: usize,
        start: usize,
    ) {
        let len = bytes.len();
        match step {
            Step::SplitTo { at, .. } => {
                let at = at.index(len + 1);
                let head = slice.split_to(at);
                let tail_bytes = bytes.split_off(at);
                self.keep_slice(head, bytes, slot, start);
                return self.keep_slice(slice, tail_bytes, slot, start + at);
            }
            Step::SplitOff { at, .. } => {
                let at = at.index(len + 1);
                let tail = slice.split_off(at);
                let tail_bytes = bytes.split_off(at);
                self.keep_slice(tail, tail_bytes, slot, start + at);
            }
            Step::Truncate { len: to, .. } => {
                let to = to.index(len + 10);
                slice.truncate(to);
                bytes.truncate(to);
            }
            Step::Advance { count, .. } => {
                let count = count.index(len + 1);
                slice.advance(count);
                bytes.drain(..count);
                return self.keep_slice(slice, bytes, slot, start + count);
            }
            Step::Clone { .. } => self.keep_slice(slice.clone(), bytes.clone(), slot, start),
            Step::SubSlice { from, to, .. } => {
                let (from, to) = (from.index(len + 1), to.index(len + 1));
                let range = from.min(to)..from.max(to);
                let part = slice.slice(range.clone());
                self.keep_slice(part, bytes[range.clone()].to_vec(), slot, start + range.start);
            }
            Step::IntoBuffer { .. } => {
                let alone = self.others(slot) == 0;
                match slice.try_into_buffer() {
                    Ok(buffer) => {
                        assert!(alone, "a slice with other views became a buffer");
                        return self.keep_buffer(buffer, bytes, slot, start);
                    }
                    Err(same) => {
                        assert!(!alone || len == 0);
                        return self.keep_slice(same, bytes, slot, start);
                    }
                }
            }
            Step::Drop { .. } => return,
            _ => {}
        }
        self.keep_slice(slice, bytes, slot, start);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 6 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn views_hold_what_plain_vectors_would(
        steps in prop::collection::vec(step(), 0..if cfg!(miri) { 40 } else { 200 }),
    ) {
        let mut world = World { pool: heap_pool(16 * SLOT_BYTES), views: Vec::new(), slots: 0 };
        for step in &steps {
            world.apply(step);
            if !cfg!(miri) {
                world.views.iter().for_each(Tracked::check);
            }
        }
        world.views.iter().for_each(Tracked::check);
        world.views.clear();
        prop_assert_eq!(world.pool.statistics().in_use_bytes(), 0);
    }
}

#[test]
fn a_split_buffer_is_whole_again() {
    let mut buffer = Buffer::from_heap(100);
    buffer
        .iter_mut()
        .enumerate()
        .for_each(|(position, byte)| *byte = position as u8);
    let mut head = buffer.split_to(40);
    let tail = buffer.split_off(50);
    assert_eq!(
        (head.len(), buffer.len(), tail.len(), buffer[0], tail[0]),
        (40, 50, 10, 40, 90)
    );
    let tail = head.try_unsplit(tail).unwrap_err();
    head.try_unsplit(buffer).unwrap();
    head.try_unsplit(tail).unwrap();
    assert_eq!(head.len(), 100);
    head.advance(99);
    let whole = head.reclaim().unwrap();
    assert_eq!((whole.len(), whole[57]), (4096, 57));
}

#[test]
fn neighbouring_slots_are_not_joined() {
    let pool = heap_pool(4 * SLOT_BYTES);
    let mut buffers: Vec<Buffer> = (0..4).map(|_| pool.allocate(SLOT_BYTES).unwrap()).collect();
    buffers.sort_by_key(|buffer| buffer.as_ptr().addr());
    let second = buffers.remove(1);
    assert_eq!(buffers[0].as_ptr().addr() + SLOT_BYTES, second.as_ptr().addr());
    assert!(buffers[0].try_unsplit(second).is_err());
}

#[test]
fn static_bytes_stay_shared() {
    let bytes = Slice::from_static(b"static");
    let bytes = bytes.try_into_buffer().unwrap_err();
    assert_eq!(&bytes.slice(1..=3)[..], b"tat");
    assert_eq!(&bytes.slice(..)[..], b"static");
    assert_eq!(bytes.slice(6..).len(), 0);
    assert!(Slice::empty().is_empty() && Slice::default().is_empty());
    assert!(Buffer::empty().reclaim().is_err());
    assert_eq!(&Slice::copy_from(b"copied")[..], b"copied");
}

#[test]
fn zeroes_are_zeroes() {
    for len in [0, 1, 4096, 2 << 20, (2 << 20) + 1] {
        let zeroes = Slice::zeroes(len);
        assert_eq!(zeroes.len(), len);
        assert!(len == 0 || zeroes.is_aligned(4096));
        assert!(len > 4096 && cfg!(miri) || zeroes.iter().all(|&byte| byte == 0));
    }
}

#[test]
#[should_panic(expected = "outside a slice")]
fn a_range_outside_a_slice_is_refused() {
    let _outside = Slice::from_static(b"abc").slice(1..5);
}

#[test]
#[should_panic(expected = "cannot split")]
fn a_split_outside_a_buffer_is_refused() {
    let _outside = Buffer::from_heap(10).split_to(11);
}

#[test]
#[should_panic(expected = "cannot advance")]
fn advancing_beyond_a_buffer_is_refused() {
    Buffer::from_heap(10).advance(11);
}

#[test]
fn views_go_to_other_threads() {
    fn check<T: Send + Sync>() {}
    check::<Buffer>();
    check::<Slice>();
    check::<pollux_hugepages::Arena>();
}

#[test]
fn bytes_do_not_get_into_logs() {
    let mut buffer = Buffer::from_heap(8);
    buffer.copy_from_slice(b"secret!!");
    let shown = format!("{buffer:?}");
    assert!(shown.contains("8 bytes") && !shown.contains("secret"), "{shown}");
    let shown = format!("{:?}", buffer.freeze());
    assert!(shown.contains("8 bytes") && !shown.contains("secret"), "{shown}");
}
