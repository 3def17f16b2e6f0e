//! Small tools of the suite: patterns, buffers, futures side by side.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::Reactor;

use crate::{BlockDevice, BlockDeviceExt, Gather, Geometry, IoError};

/// Turns that are waited for something that has to happen soon, before it is said not to happen.
const PATIENCE_TURNS: usize = 1_000_000;

/// Numbers that only depend on a seed (SplitMix64).
#[derive(Debug)]
pub(super) struct Randomness(Cell<u64>);

impl Randomness {
    pub(super) fn new(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    pub(super) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, or 0.
    pub(super) fn below(&self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// Bytes of which every block, and every part of a block, tells where it belongs and who wrote it.
pub(super) fn pattern(geometry: &Geometry, block: u64, blocks: u64, writer: u64) -> Vec<u8> {
    let block_bytes = geometry.block_bytes as usize;
    let mut data = vec![0; blocks as usize * block_bytes];
    for (index, into) in data.chunks_exact_mut(block_bytes).enumerate() {
        let mixed = ((block + index as u64) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut state = mixed ^ writer.wrapping_mul(0xd6e8_feb8_6659_fd93);
        for word in into.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
        }
    }
    data
}

/// A buffer of the reactor, or of the heap where it has none; full of something that is no pattern and no
/// zero.
pub(super) fn buffer(bytes: usize) -> Buffer {
    let pooled = Reactor::try_current().and_then(|reactor| reactor.buffers().allocate(bytes));
    let mut buffer = pooled.unwrap_or_else(|| Buffer::from_heap(bytes));
    buffer.fill(0xa5);
    buffer
}

/// The bytes in memory that a device may be given.
pub(super) fn slice_of(bytes: &[u8]) -> Slice {
    let mut into = buffer(bytes.len());
    into.copy_from_slice(bytes);
    into.freeze()
}

/// The bytes in one piece.
pub(super) fn gather_of(bytes: &[u8]) -> Gather {
    slice_of(bytes).into()
}

pub(super) async fn read(
    queue: &dyn BlockDevice,
    geometry: &Geometry,
    block: u64,
    blocks: u64,
) -> Result<Buffer, IoError> {
    queue
        .read(block, buffer((blocks * u64::from(geometry.block_bytes)) as usize))
        .await
}

/// Where two byte strings differ first, for messages.
pub(super) fn first_difference(found: &[u8], expected: &[u8]) -> Option<String> {
    if found.len() != expected.len() {
        return Some(format!("{} bytes instead of {}", found.len(), expected.len()));
    }
    // All at once first, which is much faster in a debug build.
    if found == expected {
        return None;
    }
    let at = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected)?;
    let until = found.len().min(at + 16);
    Some(format!(
        "byte {at} of {}: found {:02x?} instead of {:02x?}",
        found.len(),
        &found[at..until],
        &expected[at..until]
    ))
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let zeros = [0; 4096];
    bytes
        .chunks(zeros.len())
        .all(|chunk| *chunk == zeros[..chunk.len()])
}

/// All outputs, in order, of futures that run side by side in this task.
pub(super) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    enum Slot<F: Future> {
        Running(Pin<Box<F>>),
        Done(Option<F::Output>),
    }
    // Outputs are moved, never pinned.
    impl<F: Future> Unpin for Slot<F> {}

    let mut slots: Vec<Slot<F>> = futures
        .into_iter()
        .map(|future| Slot::Running(Box::pin(future)))
        .collect();
    std::future::poll_fn(|context| {
        let mut running = 0;
        for slot in &mut slots {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *slot = Slot::Done(Some(output)),
                    Poll::Pending => running += 1,
                }
            }
        }
        if running > 0 {
            return Poll::Pending;
        }
        let outputs = slots.iter_mut().filter_map(|slot| match slot {
            Slot::Done(output) => output.take(),
            Slot::Running(_) => None,
        });
        Poll::Ready(outputs.collect())
    })
    .await
}

/// Lets the reactor turn until `done` says so; false if it never does.
pub(super) async fn eventually(mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..PATIENCE_TURNS {
        if done() {
            return true;
        }
        pollux_reactor::yield_now().await;
    }
    false
}
