//! Blocks that are zeros: never written, deallocated, or written so.

use super::Suite;
use super::support::{first_difference, gather_of, is_zero, pattern, read};
use crate::{BlockDeviceExt, ZeroOptions};

/// Ways to make blocks zero: `None` is a deallocate.
const WAYS: [Option<ZeroOptions>; 5] = [
    None,
    Some(ZeroOptions {
        force_unit_access: false,
        may_deallocate: false,
    }),
    Some(ZeroOptions {
        force_unit_access: true,
        may_deallocate: false,
    }),
    Some(ZeroOptions {
        force_unit_access: false,
        may_deallocate: true,
    }),
    Some(ZeroOptions {
        force_unit_access: true,
        may_deallocate: true,
    }),
];

impl Suite {
    async fn make_zero(&self, block: u64, blocks: u64, way: Option<ZeroOptions>) {
        let result = match way {
            None => self.queue.deallocate(block, blocks).await,
            Some(options) => self.queue.write_zeroes(block, blocks, options).await,
        };
        assert_eq!(
            result,
            Ok(()),
            "{}: zeros {way:?} of {blocks} at {block}",
            self.name
        );
    }

    pub(super) async fn never_written_blocks_are_zeros(&self) {
        let blocks = self.transfer_blocks().min(256);
        let last = self.geometry.blocks - blocks;
        let mut starts = vec![0, last, last / 2];
        starts.extend((0..32).map(|_| self.random.below(last + 1)));
        for start in starts {
            let found = read(&*self.queue, &self.geometry, start, blocks)
                .await
                .expect("in range");
            let name = &self.name;
            assert!(is_zero(&found), "{name}: never written: {blocks} at {start}");
        }
    }

    /// Zeros are exactly where they were asked for.
    pub(super) async fn zeros_and_neighbours(&self) {
        let total = self.transfer_blocks().min(160);
        for (writer, way) in WAYS.into_iter().enumerate() {
            let mut ranges = vec![
                (0, 1),
                (1, 1),
                (0, total),
                (total - 1, 1),
                (3, 8),
                (7, 17),
                (8, 64),
            ];
            ranges.extend((0..6).map(|_| {
                let block = self.random.below(total);
                (block, 1 + self.random.below(total - block))
            }));
            ranges.retain(|(block, blocks)| block + blocks <= total);
            for (block, blocks) in ranges {
                let mut data = pattern(&self.geometry, 0, total, 500 + writer as u64);
                let written = self.queue.write(0, gather_of(&data), false).await;
                assert_eq!(written, Ok(()), "{}: zeros and neighbours: write", self.name);
                self.make_zero(block, blocks, way).await;
                data[self.bytes(block)..self.bytes(block + blocks)].fill(0);
                self.expect(0, &data, &format!("zeros {way:?} of {blocks} at {block}"))
                    .await;

                // Zeros can be written over.
                let again = pattern(&self.geometry, block, 1, 600);
                let written = self.queue.write(block, gather_of(&again), false).await;
                assert_eq!(written, Ok(()), "{}: a write over zeros", self.name);
                data[self.bytes(block)..self.bytes(block + 1)].copy_from_slice(&again);
                self.expect(0, &data, "a write over zeros").await;
            }
        }
    }

    /// Longer than any transfer.
    pub(super) async fn large_zeros(&self) {
        let (name, queue) = (&self.name, &*self.queue);
        let (window, step) = (self.window_blocks(), self.transfer_blocks());
        for way in WAYS {
            let (mut block, mut marks) = (0, Vec::new());
            while block < window {
                let data = pattern(&self.geometry, block, 1, 700);
                let written = queue.write(block, gather_of(&data), false).await;
                assert_eq!(written, Ok(()), "{name}: large zeros: write at {block}");
                marks.push(block);
                block += step / 2 + 1;
            }
            self.make_zero(1, window - 2, way).await;
            for &mark in &marks {
                let found = read(queue, &self.geometry, mark, 1).await.expect("in range");
                let inside = mark >= 1 && mark < window - 1;
                let expected = if inside {
                    vec![0; self.bytes(1)]
                } else {
                    pattern(&self.geometry, mark, 1, 700)
                };
                let difference = first_difference(&found, &expected);
                assert_eq!(difference, None, "{name}: large zeros {way:?}: block {mark}");
            }
            let rest = read(queue, &self.geometry, 1, step).await.expect("in range");
            assert!(is_zero(&rest), "{name}: large zeros {way:?}");
        }
    }
}
