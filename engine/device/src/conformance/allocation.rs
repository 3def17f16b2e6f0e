//! Which blocks are allocated: never a hole where there is data.

use super::Suite;
use super::support::{gather_of, is_zero, pattern, read};
use crate::{AllocationRun, BlockDeviceExt, IoError, ZeroOptions};

/// Runs asked for at a time: few, so that answers end before their range does.
const RUNS_MAX: usize = 3;

/// Changes in a random history.
const CHANGES: usize = 48;

impl Suite {
    /// Asks once, and checks what holds of any answer.
    async fn ask(&self, block: u64, blocks: u64, runs_max: usize) -> Vec<AllocationRun> {
        let name = &self.name;
        let asked = self.queue.allocation(block, blocks, runs_max).await;
        let runs = asked.map_err(|error| format!("{name}: allocation of {blocks} at {block}: {error}"));
        let runs = runs.expect("in range");
        assert!(runs.len() <= runs_max.max(1), "{name}: {} runs", runs.len());
        assert_eq!(runs.is_empty(), blocks == 0, "{name}: runs of {blocks} blocks");
        assert!(runs.iter().all(|run| run.blocks > 0), "{name}: an empty run");
        let alike = runs.windows(2).any(|pair| pair[0].allocated == pair[1].allocated);
        assert!(!alike, "{name}: neighbouring runs are alike: {runs:?}");
        let told: u64 = runs.iter().map(|run| run.blocks).sum();
        assert!(told <= blocks, "{name}: {told} blocks told of {blocks}");
        runs
    }

    /// Whether each block of a range is allocated, by as many questions as it takes.
    async fn allocated(&self, block: u64, blocks: u64) -> Vec<bool> {
        let mut states = Vec::new();
        while (states.len() as u64) < blocks {
            let done = states.len() as u64;
            for run in self.ask(block + done, blocks - done, RUNS_MAX).await {
                states.extend(std::iter::repeat_n(run.allocated, run.blocks as usize));
            }
        }
        states
    }

    pub(super) async fn allocation_at_the_limits(&self) {
        let (name, end) = (&self.name, self.geometry.blocks);
        for (block, blocks) in [(end, 1), (end - 1, 2), (0, end + 1), (u64::MAX, 2)] {
            let asked = self.queue.allocation(block, blocks, 1).await;
            assert_eq!(asked, Err(IoError::OutOfRange), "{name}: {blocks} at {block}");
        }
        for runs_max in [0, 1, 2, 1000] {
            self.ask(0, end, runs_max).await;
            self.ask(end - 1, 1, runs_max).await;
            self.ask(end, 0, runs_max).await;
        }
    }

    /// What is told to be no more than zeros is, through any history; and what is data is told to be
    /// allocated.
    pub(super) async fn allocation_follows_a_history(&self) {
        let (name, queue) = (&self.name, &*self.queue);
        let window = self.window_blocks().min(600);
        assert_eq!(queue.deallocate(0, window).await, Ok(()), "{name}");
        let mut data = vec![false; window as usize];
        for change in 0..CHANGES {
            let block = self.random.below(window);
            let blocks = 1 + self
                .random
                .below((window - block).min(self.transfer_blocks()).min(70));
            let writes = self.random.below(2) == 0;
            let changed = if writes {
                let bytes = pattern(&self.geometry, block, blocks, 800 + change as u64);
                queue.write(block, gather_of(&bytes), false).await
            } else if self.random.below(2) == 0 {
                queue.deallocate(block, blocks).await
            } else {
                let options = ZeroOptions {
                    force_unit_access: false,
                    may_deallocate: self.random.below(2) == 0,
                };
                queue.write_zeroes(block, blocks, options).await
            };
            assert_eq!(changed, Ok(()), "{name}: change {change}: {blocks} at {block}");
            data[block as usize..(block + blocks) as usize].fill(writes);
            let allocated = self.allocated(0, window).await;
            for (block, (&allocated, &data)) in allocated.iter().zip(&data).enumerate() {
                assert!(
                    allocated || !data,
                    "{name}: change {change}: data in a hole at {block}"
                );
            }
            let part = self.random.below(window);
            assert_eq!(
                self.allocated(part, window - part).await,
                allocated[part as usize..],
                "{name}: the same from block {part} on"
            );
        }
        let allocated = self.allocated(0, window).await;
        for (block, _) in (0..).zip(allocated).filter(|(_, allocated)| !allocated) {
            let found = read(queue, &self.geometry, block, 1).await.expect("in range");
            assert!(is_zero(&found), "{name}: a hole at {block} that is not zeros");
        }
    }
}
