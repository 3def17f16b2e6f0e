//! Random requests to a checked device.

use std::ops::Range;
use std::time::Duration;

use pollux_device::{IoError, ZeroOptions};

use super::{CheckError, CheckedDevice};
use crate::random::Random;

/// What one client does. Several clients of one device, each with its own stream of the seed, overlap.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The blocks it uses. Few of them make clients meet.
    pub blocks: Range<u64>,
    /// Blocks of one request, at most.
    pub blocks_max: u64,
    /// Requests.
    pub requests: u64,
    /// The pause between two requests, at most.
    pub pause: Duration,
    /// How often a request is a read, out of all six weights.
    pub reads: u64,
    /// How often a write without FUA.
    pub writes: u64,
    /// How often a write with FUA.
    pub forced_writes: u64,
    /// How often a flush.
    pub flushes: u64,
    /// How often write zeroes.
    pub zeroes: u64,
    /// How often a deallocate.
    pub deallocates: u64,
}

impl Workload {
    /// A mixture of all requests on a few blocks.
    pub fn mixed(blocks: Range<u64>, requests: u64) -> Self {
        Self {
            blocks,
            blocks_max: 8,
            requests,
            pause: Duration::from_micros(100),
            reads: 10,
            writes: 10,
            forced_writes: 2,
            flushes: 2,
            zeroes: 1,
            deallocates: 1,
        }
    }

    /// Runs it; returns how many requests failed with an error that `tolerate` accepts.
    ///
    /// # Errors
    ///
    /// The first error that it does not accept, and the first proof that the device is wrong.
    pub async fn run(
        &self,
        device: &CheckedDevice,
        random: &mut Random,
        tolerate: impl Fn(IoError) -> bool,
    ) -> Result<u64, CheckError> {
        let mut failed = 0;
        for _ in 0..self.requests {
            if let Err(error) = self.one(device, random).await {
                let io = error.io()?;
                if !tolerate(io) {
                    return Err(io.into());
                }
                failed += 1;
            }
            pollux_reactor::sleep(random.duration(Duration::ZERO..=self.pause)).await;
        }
        Ok(failed)
    }

    async fn one(&self, device: &CheckedDevice, random: &mut Random) -> Result<(), CheckError> {
        let all = self.blocks.end.saturating_sub(self.blocks.start);
        let count = random.within(1..=self.blocks_max.clamp(1, all.max(1)));
        let block = self.blocks.start + random.below(all.saturating_sub(count) + 1);
        let weights = [
            self.reads,
            self.writes,
            self.forced_writes,
            self.flushes,
            self.zeroes,
            self.deallocates,
        ];
        let mut drawn = random.below(weights.iter().sum());
        let kind = weights.iter().position(|&weight| {
            let hit = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            hit
        });
        let zero_options = ZeroOptions {
            force_unit_access: random.chance(0.5),
            may_deallocate: random.chance(0.5),
        };
        match kind {
            None | Some(0) => device.read(block, count).await,
            Some(1) => device.write(block, count, false).await,
            Some(2) => device.write(block, count, true).await,
            Some(3) => device.flush().await,
            Some(4) => device.write_zeroes(block, count, zero_options).await,
            Some(_) => device.deallocate(block, count).await,
        }
    }
}
