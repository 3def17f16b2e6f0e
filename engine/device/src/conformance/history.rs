//! Random histories against a vector of bytes, made shorter by proptest when they fail.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::Suite;
use super::support::{first_difference, join_all, pattern, read, slice_of};
use crate::{BlockDevice, BlockDeviceExt, Gather, Geometry, IoError, ZeroOptions};

/// Histories that are replayed one after the other.
const HISTORIES: usize = 24;

/// Histories that are replayed side by side, each in a part of its own.
const SIDE_BY_SIDE: u64 = 16;

/// Blocks of a part in which one history takes place.
const PART_BLOCKS: u64 = 96;

/// Attempts to make a failing history shorter.
const SHRINKS_MAX: usize = 2_000;

/// One thing done. Positions are taken modulo the part, lengths are cut at its end.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Write {
        block: u64,
        blocks: u64,
        writer: u8,
        /// Where the data is cut into two pieces, in bytes.
        cut: usize,
        force_unit_access: bool,
    },
    Read {
        block: u64,
        blocks: u64,
    },
    Compare {
        block: u64,
        blocks: u64,
        /// The byte that is made different, if it is inside.
        differs_at: Option<usize>,
    },
    Deallocate {
        block: u64,
        blocks: u64,
    },
    WriteZeroes {
        block: u64,
        blocks: u64,
        force_unit_access: bool,
        may_deallocate: bool,
    },
    Flush,
}

fn act() -> impl Strategy<Value = Act> {
    let range = || (0..PART_BLOCKS, prop_oneof![3 => 1..9_u64, 1 => 1..PART_BLOCKS]);
    prop_oneof![
        5 => (range(), any::<u8>(), 0..PART_BLOCKS as usize * 4096, prop::bool::weighted(0.2)).prop_map(
            |((block, blocks), writer, cut, force_unit_access)| Act::Write {
                block, blocks, writer, cut, force_unit_access,
            }
        ),
        5 => range().prop_map(|(block, blocks)| Act::Read { block, blocks }),
        1 => (range(), proptest::option::of(0..4096_usize))
            .prop_map(|((block, blocks), differs_at)| Act::Compare { block, blocks, differs_at }),
        1 => range().prop_map(|(block, blocks)| Act::Deallocate { block, blocks }),
        1 => (range(), any::<bool>(), any::<bool>()).prop_map(
            |((block, blocks), force_unit_access, may_deallocate)| Act::WriteZeroes {
                block, blocks, force_unit_access, may_deallocate,
            }
        ),
        1 => Just(Act::Flush),
    ]
}

/// A part of a device, and what should be in it.
struct Part<'a> {
    queue: &'a dyn BlockDevice,
    geometry: Geometry,
    start: u64,
    blocks: u64,
    model: Vec<u8>,
}

impl<'a> Part<'a> {
    async fn new(suite: &'a Suite, start: u64, blocks: u64) -> Result<Self, String> {
        let queue = &*suite.queue;
        let model = read(queue, &suite.geometry, start, blocks)
            .await
            .map_err(|error| format!("the first read: {error}"))?;
        Ok(Self {
            queue,
            geometry: suite.geometry,
            start,
            blocks,
            model: model.to_vec(),
        })
    }

    /// A range of this part: the block of the device, how many, and the bytes of the model.
    fn range(&self, block: u64, blocks: u64) -> (u64, u64, std::ops::Range<usize>) {
        let block = block % self.blocks;
        let blocks = blocks.min(self.blocks - block);
        let bytes = |blocks: u64| blocks as usize * self.geometry.block_bytes as usize;
        (self.start + block, blocks, bytes(block)..bytes(block + blocks))
    }

    async fn apply(&mut self, act: &Act) -> Result<(), String> {
        let failed = |error: IoError| format!("{act:?}: {error}");
        match *act {
            Act::Write {
                block,
                blocks,
                writer,
                cut,
                force_unit_access,
            } => {
                let (block, blocks, bytes) = self.range(block, blocks);
                let data = pattern(&self.geometry, block, blocks, u64::from(writer));
                let align = self.geometry.memory_align_bytes as usize;
                let (head, tail) = data.split_at((cut % data.len()) / align * align);
                let mut from = Gather::from(slice_of(head));
                from.push(slice_of(tail));
                self.queue
                    .write(block, from, force_unit_access)
                    .await
                    .map_err(failed)?;
                self.model[bytes].copy_from_slice(&data);
            }
            Act::Read { block, blocks } => {
                let (block, blocks, bytes) = self.range(block, blocks);
                let found = read(self.queue, &self.geometry, block, blocks)
                    .await
                    .map_err(failed)?;
                if let Some(difference) = first_difference(&found, &self.model[bytes]) {
                    return Err(format!("{act:?}: {difference}"));
                }
            }
            Act::Compare {
                block,
                blocks,
                differs_at,
            } => {
                let (block, _, bytes) = self.range(block, blocks);
                let mut with = self.model[bytes].to_vec();
                let changed = differs_at
                    .and_then(|at| with.get_mut(at))
                    .map(|byte| *byte ^= 0x10);
                let expected = changed.map_or(Ok(()), |()| Err(IoError::CompareFailed));
                let result = self.queue.compare(block, slice_of(&with)).await;
                if result != expected {
                    return Err(format!("{act:?}: {result:?}"));
                }
            }
            Act::Deallocate { block, blocks } => {
                let (block, blocks, bytes) = self.range(block, blocks);
                self.queue.deallocate(block, blocks).await.map_err(failed)?;
                self.model[bytes].fill(0);
            }
            Act::WriteZeroes {
                block,
                blocks,
                force_unit_access,
                may_deallocate,
            } => {
                let (block, blocks, bytes) = self.range(block, blocks);
                let options = ZeroOptions {
                    force_unit_access,
                    may_deallocate,
                };
                self.queue
                    .write_zeroes(block, blocks, options)
                    .await
                    .map_err(failed)?;
                self.model[bytes].fill(0);
            }
            Act::Flush => self.queue.flush().await.map_err(failed)?,
        }
        Ok(())
    }

    async fn replay(&mut self, history: &[Act]) -> Result<(), String> {
        for (number, act) in history.iter().enumerate() {
            self.apply(act)
                .await
                .map_err(|error| format!("act {number}: {error}"))?;
        }
        let all = Act::Read {
            block: 0,
            blocks: self.blocks,
        };
        self.apply(&all)
            .await
            .map_err(|error| format!("at the end: {error}"))
    }
}

impl Suite {
    async fn replay(&self, start: u64, history: &[Act]) -> Result<(), String> {
        let blocks = PART_BLOCKS.min(self.window_blocks() - start);
        Part::new(self, start, blocks).await?.replay(history).await
    }

    pub(super) async fn random_histories(&self) {
        let mut seed = [0_u8; 32];
        seed[..8].copy_from_slice(&self.random.next().to_le_bytes());
        let generator = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(Config::default(), generator);
        let histories = prop::collection::vec(act(), 1..40);
        for _ in 0..HISTORIES {
            let mut tree = histories.new_tree(&mut runner).expect("nothing is filtered");
            if let Err(mut error) = self.replay(0, &tree.current()).await {
                let mut shortest = tree.current();
                let mut shrinks = 0;
                let mut can_shrink = tree.simplify();
                while can_shrink && shrinks < SHRINKS_MAX {
                    shrinks += 1;
                    match self.replay(0, &tree.current()).await {
                        Err(next) => {
                            (shortest, error) = (tree.current(), next);
                            can_shrink = tree.simplify();
                        }
                        Ok(()) => can_shrink = tree.complicate(),
                    }
                }
                let result: Result<(), String> = Err(error);
                assert_eq!(result, Ok(()), "{}: a random history: {shortest:#?}", self.name);
            }
        }

        let parts = SIDE_BY_SIDE.min(self.window_blocks() / PART_BLOCKS);
        let side_by_side: Vec<Vec<Act>> = (0..parts)
            .map(|_| {
                histories
                    .new_tree(&mut runner)
                    .expect("nothing is filtered")
                    .current()
            })
            .collect();
        let replays = side_by_side.iter().enumerate();
        let replays = replays.map(|(part, history)| self.replay(part as u64 * PART_BLOCKS, history));
        for (part, result) in join_all(replays).await.into_iter().enumerate() {
            let history = &side_by_side[part];
            assert_eq!(
                result,
                Ok(()),
                "{}: histories side by side: {part}: {history:#?}",
                self.name
            );
        }
    }
}
