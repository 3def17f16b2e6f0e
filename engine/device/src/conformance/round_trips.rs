//! What was written is read.

use pollux_hugepages::Slice;

use super::Suite;
use super::support::{first_difference, gather_of, pattern, read, slice_of};
use crate::{BlockDeviceExt, Gather, IoError};

impl Suite {
    /// Writes one way, reads back whole and in parts.
    async fn round_trip(&self, block: u64, blocks: u64, from: Gather, data: &[u8], what: &str) {
        let (name, queue, geometry) = (&self.name, &*self.queue, &self.geometry);
        let written = queue.write(block, from, false).await;
        assert_eq!(written, Ok(()), "{name}: {what}: write of {blocks} at {block}");
        self.expect(block, data, what).await;
        // In two parts, cut anywhere.
        let cut = self.random.below(blocks + 1);
        let cut_bytes = self.bytes(cut);
        for (start, part) in [(block, &data[..cut_bytes]), (block + cut, &data[cut_bytes..])] {
            let count = (part.len() / self.bytes(1)) as u64;
            let found = read(queue, geometry, start, count).await.expect("in range");
            let difference = first_difference(&found, part);
            assert_eq!(difference, None, "{name}: {what}: read of {count} at {start}");
        }
    }

    /// Reads and compares with what should be there.
    pub(super) async fn expect(&self, block: u64, data: &[u8], what: &str) {
        let blocks = (data.len() / self.bytes(1)) as u64;
        let found = read(&*self.queue, &self.geometry, block, blocks).await;
        let what = format!("{}: {what}: read of {blocks} at {block}", self.name);
        assert!(found.is_ok(), "{what}: {:?}", found.err());
        let difference = first_difference(&found.unwrap_or_default(), data);
        assert_eq!(difference, None, "{what}");
    }

    pub(super) async fn sizes_and_positions(&self) {
        let largest = self.transfer_blocks();
        let mebibyte = ((1_u64 << 20) / u64::from(self.geometry.block_bytes)).min(largest);
        let mut sizes = vec![
            1,
            2,
            3,
            7,
            8,
            9,
            31,
            64,
            127,
            256,
            mebibyte - 1,
            mebibyte,
            mebibyte + 1,
            largest,
        ];
        sizes.retain(|&blocks| blocks <= largest);
        for (writer, &blocks) in sizes.iter().enumerate() {
            for offset in [0, 1, 3, 8] {
                let data = pattern(&self.geometry, offset, blocks, writer as u64);
                let what = "sizes and positions";
                self.round_trip(offset, blocks, gather_of(&data), &data, what)
                    .await;
            }
        }
    }

    pub(super) async fn gathers_of_odd_pieces(&self) {
        let align = self.geometry.memory_align_bytes as usize;
        for writer in 0..24 {
            let blocks = 1 + self.random.below(self.transfer_blocks().min(300));
            let block = self.random.below(self.window_blocks() - blocks + 1);
            let data = pattern(&self.geometry, block, blocks, 100 + writer);
            let mut from = Gather::new();
            let mut rest = &data[..];
            // Few large pieces at first, then hundreds of small ones; and memory at odd addresses.
            let piece_bytes_max = data.len().div_ceil(2 + 40 * writer as usize).max(1);
            while !rest.is_empty() {
                let wanted = 1 + self.random.below(piece_bytes_max as u64) as usize;
                let take = wanted.next_multiple_of(align).min(rest.len());
                let (piece, left) = rest.split_at(take);
                let shift = align * self.random.below(5) as usize;
                let mut shifted = vec![0xee; shift];
                shifted.extend_from_slice(piece);
                from.push(slice_of(&shifted).slice(shift..));
                from.push(Slice::empty());
                rest = left;
            }
            assert_eq!(from.len_bytes(), data.len());
            self.round_trip(block, blocks, from, &data, "gathers of odd pieces")
                .await;
        }
    }

    pub(super) async fn end_of_the_device(&self) {
        for blocks in [1, 8, self.transfer_blocks()] {
            let block = self.geometry.blocks - blocks;
            let data = pattern(&self.geometry, block, blocks, 200);
            self.round_trip(block, blocks, gather_of(&data), &data, "end of the device")
                .await;
        }
    }

    pub(super) async fn force_unit_access(&self) {
        for blocks in [1, 9, self.transfer_blocks()] {
            let data = pattern(&self.geometry, 5, blocks, 300 + blocks);
            let written = self.queue.write(5, gather_of(&data), true).await;
            assert_eq!(written, Ok(()), "{}: a write with force unit access", self.name);
            self.expect(5, &data, "force unit access").await;
            assert_eq!(self.queue.flush().await, Ok(()), "{}: a flush", self.name);
            self.expect(5, &data, "after a flush").await;
        }
    }

    pub(super) async fn compares(&self) {
        let (name, queue) = (&self.name, &*self.queue);
        for blocks in [1, 2, 17, self.transfer_blocks()] {
            let data = pattern(&self.geometry, 2, blocks, 400 + blocks);
            let written = queue.write(2, gather_of(&data), false).await;
            assert_eq!(written, Ok(()), "{name}: compares: write");
            assert_eq!(
                queue.compare(2, gather_of(&data)).await,
                Ok(()),
                "{name}: the same"
            );
            let places = [0, data.len() - 1, self.random.below(data.len() as u64) as usize];
            for at in places {
                let mut different = data.clone();
                different[at] ^= 1 << self.random.below(8);
                let compared = queue.compare(2, gather_of(&different)).await;
                assert_eq!(
                    compared,
                    Err(IoError::CompareFailed),
                    "{name}: byte {at} of {}",
                    data.len()
                );
            }
            self.expect(2, &data, "compares change nothing").await;
        }
    }
}
