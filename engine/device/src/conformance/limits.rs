//! Geometry, and requests that must be refused.

use super::support::{buffer, gather_of, is_zero, pattern, read};
use super::{DEVICE_BYTES_MIN, Suite};
use crate::{BlockDeviceExt, Gather, IoError, Request, ZeroOptions};

impl Suite {
    pub(super) fn check_geometry(&self) {
        let Self { name, geometry, .. } = self;
        let check = |holds: bool, what: &str| assert!(holds, "{name}: geometry: {what}: {geometry:?}");
        check(
            geometry.block_bytes >= 512 && geometry.block_bytes.is_power_of_two(),
            "the block size is a power of two from 512 on",
        );
        check(geometry.blocks > 0, "there are blocks");
        check(
            geometry
                .blocks
                .checked_mul(u64::from(geometry.block_bytes))
                .is_some(),
            "the size in bytes is a number of 64 bits",
        );
        check(
            geometry.bytes() >= DEVICE_BYTES_MIN,
            "the device is large enough for this suite",
        );
        check(
            geometry.optimal_blocks >= 1,
            "the optimal size is a block at least",
        );
        check(
            u64::from(geometry.transfer_blocks_max) * u64::from(geometry.block_bytes) >= 1 << 20,
            "transfers of 1 MiB are possible",
        );
        check(
            geometry.memory_align_bytes.is_power_of_two() && geometry.memory_align_bytes <= 4096,
            "the memory alignment is a power of two that buffers have",
        );
        check(geometry.atomic_write_blocks >= 1, "a block is written whole");
        check(
            self.queue.geometry() == *geometry,
            "the queue says the same as the device",
        );
        check(
            self.device.geometry() == *geometry,
            "it does not change by itself",
        );
        assert!(!self.device.name().is_empty(), "{name}: the device has a name");
    }

    pub(super) async fn errors_at_the_limits(&self) {
        let (name, blocks) = (&self.name, self.geometry.blocks);
        let block_bytes = self.bytes(1);
        let ranges = [
            (blocks, 1),
            (blocks - 1, 2),
            (blocks + 1, 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 2),
            (u64::MAX / block_bytes as u64 + 1, 1),
            (1 << 63, 1),
        ];
        for (block, count) in ranges {
            let bytes = self.bytes(count);
            let options = ZeroOptions::default();
            for request in [
                Request::Read {
                    block,
                    into: buffer(bytes),
                },
                Request::Write {
                    block,
                    from: buffer(bytes).into(),
                    force_unit_access: false,
                },
                Request::Compare {
                    block,
                    with: buffer(bytes).into(),
                },
                Request::Deallocate { block, blocks: count },
                Request::WriteZeroes {
                    block,
                    blocks: count,
                    options,
                },
            ] {
                let what = format!("{request:?}");
                let result = self.queue.submit(request).await.map(drop);
                assert_eq!(result, Err(IoError::OutOfRange), "{name}: out of range: {what}");
            }
        }
        for (block, count) in [
            (0, u64::MAX),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
            (blocks / 2, blocks),
        ] {
            let result = self.queue.deallocate(block, count).await;
            assert_eq!(
                result,
                Err(IoError::OutOfRange),
                "{name}: deallocate {block} {count}"
            );
            let result = self
                .queue
                .write_zeroes(block, count, ZeroOptions::default())
                .await;
            assert_eq!(result, Err(IoError::OutOfRange), "{name}: zeroes {block} {count}");
        }
        for bytes in [1, block_bytes - 1, block_bytes + 1, block_bytes + block_bytes / 2] {
            let result = self.queue.read(0, buffer(bytes)).await.map(drop);
            assert_eq!(
                result,
                Err(IoError::InvalidField),
                "{name}: a read of {bytes} bytes"
            );
            let result = self.queue.write(0, buffer(bytes), false).await;
            assert_eq!(
                result,
                Err(IoError::InvalidField),
                "{name}: a write of {bytes} bytes"
            );
            let result = self.queue.compare(0, buffer(bytes)).await;
            assert_eq!(
                result,
                Err(IoError::InvalidField),
                "{name}: a compare of {bytes} bytes"
            );
        }
    }

    pub(super) async fn requests_of_no_blocks(&self) {
        let (name, end) = (&self.name, self.geometry.blocks);
        for block in [0, end] {
            let read = self.queue.read(block, buffer(0)).await;
            assert!(
                read.is_ok_and(|buffer| buffer.is_empty()),
                "{name}: an empty read at {block}"
            );
            assert_eq!(
                self.queue.compare(block, Gather::new()).await,
                Ok(()),
                "{name}: an empty compare"
            );
            if self.geometry.read_only {
                continue;
            }
            assert_eq!(
                self.queue.write(block, Gather::new(), true).await,
                Ok(()),
                "{name}: an empty write"
            );
            assert_eq!(
                self.queue.deallocate(block, 0).await,
                Ok(()),
                "{name}: an empty deallocate"
            );
            let zeroes = self.queue.write_zeroes(block, 0, ZeroOptions::default()).await;
            assert_eq!(zeroes, Ok(()), "{name}: empty zeroes");
        }
        let result = self.queue.deallocate(end + 1, 0).await;
        assert_eq!(result, Err(IoError::OutOfRange), "{name}: nothing, past the end");
    }

    pub(super) async fn flush_on_its_own(&self) {
        assert_eq!(self.queue.flush().await, Ok(()), "{}: a flush", self.name);
    }

    pub(super) async fn nothing_can_be_written(&self) {
        let (name, queue, read_only) = (&self.name, &*self.queue, Err(IoError::ReadOnly));
        let before = read(queue, &self.geometry, 0, 8)
            .await
            .expect("a read-only device can be read");
        let data = pattern(&self.geometry, 0, 1, 1);
        assert_eq!(
            queue.write(0, gather_of(&data), false).await,
            read_only,
            "{name}: a write"
        );
        assert_eq!(queue.deallocate(0, 1).await, read_only, "{name}: a deallocate");
        let zeroes = queue.write_zeroes(0, 1, ZeroOptions::default()).await;
        assert_eq!(zeroes, read_only, "{name}: zeroes");
        let after = read(queue, &self.geometry, 0, 8)
            .await
            .expect("a read-only device can be read");
        assert_eq!(before[..], after[..], "{name}: the content after refused writes");
        assert_eq!(queue.compare(0, before).await, Ok(()), "{name}: a compare");
    }

    pub(super) async fn keeps_nothing(&self) {
        let (name, queue) = (&self.name, &*self.queue);
        for blocks in [1, 2, self.transfer_blocks()] {
            let data = pattern(&self.geometry, 0, blocks, 1);
            assert_eq!(
                queue.write(0, gather_of(&data), true).await,
                Ok(()),
                "{name}: a write"
            );
            let zeros = read(queue, &self.geometry, 0, blocks).await.expect("in range");
            assert!(is_zero(&zeros), "{name}: reads are zeros");
            assert_eq!(
                queue.compare(0, zeros).await,
                Ok(()),
                "{name}: a compare with zeros"
            );
            let differs = queue.compare(0, gather_of(&data)).await;
            assert_eq!(
                differs,
                Err(IoError::CompareFailed),
                "{name}: a compare with data"
            );
        }
        assert_eq!(
            queue.deallocate(0, self.geometry.blocks).await,
            Ok(()),
            "{name}: a deallocate"
        );
        let zeroes = queue.write_zeroes(0, 1, ZeroOptions::default()).await;
        assert_eq!(zeroes, Ok(()), "{name}: zeroes");
    }
}
