//! The loads of a run.

use pollux_device::ByteSize;

use crate::load::{Load, Pattern};

/// The small block of all charts of requests per second.
pub const SMALL_BYTES: u64 = 4 << 10;

/// Depths of the curve of latency over load.
pub const CURVE_DEPTHS: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Depths of the bars of random requests.
pub const BAR_DEPTHS: [u16; 3] = [1, 32, 128];

/// Shares of reads of the mixed loads, in percent.
pub const MIXES: [u8; 5] = [100, 70, 50, 30, 0];

/// Depth of mixed loads.
pub const MIX_DEPTH: u16 = 32;

/// Blocks of random bandwidth, in bytes, and their depth.
pub const RANDOM_BLOCKS: [u64; 3] = [16 << 10, 64 << 10, 256 << 10];
/// See [`RANDOM_BLOCKS`].
pub const RANDOM_DEPTH: u16 = 32;

/// Blocks of sequential bandwidth, in bytes, and their depth.
pub const SEQUENTIAL_BLOCKS: [u64; 2] = [128 << 10, 1 << 20];
/// See [`SEQUENTIAL_BLOCKS`].
pub const SEQUENTIAL_DEPTH: u16 = 16;

/// Blocks by which a device is filled before.
const FILL_BLOCK_BYTES: u64 = 1 << 20;

/// All loads, each once.
pub struct Suite {
    basis: Load,
    loads: Vec<Load>,
}

impl Suite {
    /// With so much time for each, on so much of each device.
    pub fn new(time: f64, warm_up: f64, size: ByteSize) -> Self {
        let basis = Load {
            warm_up,
            size: Some(size),
            ..Load::new(Pattern::Randread, ByteSize(SMALL_BYTES), 1, time)
        };
        let mut suite = Self {
            basis,
            loads: Vec::new(),
        };
        for depth in CURVE_DEPTHS {
            suite.add(Pattern::Randread, SMALL_BYTES, depth, 100);
        }
        for depth in BAR_DEPTHS {
            suite.add(Pattern::Randwrite, SMALL_BYTES, depth, 0);
        }
        for reads in MIXES {
            suite.add(mixed(reads), SMALL_BYTES, MIX_DEPTH, reads);
        }
        for block in RANDOM_BLOCKS {
            suite.add(Pattern::Randread, block, RANDOM_DEPTH, 100);
            suite.add(Pattern::Randwrite, block, RANDOM_DEPTH, 0);
        }
        for block in SEQUENTIAL_BLOCKS {
            suite.add(Pattern::Read, block, SEQUENTIAL_DEPTH, 100);
            suite.add(Pattern::Write, block, SEQUENTIAL_DEPTH, 0);
        }
        suite
    }

    fn add(&mut self, pattern: Pattern, block: u64, depth: u16, reads: u8) {
        let load = Load {
            pattern,
            read_percent: reads,
            block: ByteSize(block),
            depth,
            ..self.basis.clone()
        };
        if !self.loads.contains(&load) {
            self.loads.push(load);
        }
    }

    /// The loads, in order.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Writes a device of so many bytes once, as far as the suite uses it, so that reads find something.
    pub fn fill(&self, device_bytes: u64, jobs: u16) -> Load {
        let bytes = self
            .basis
            .size
            .map_or(device_bytes, |size| size.0.min(device_bytes));
        Load {
            pattern: Pattern::Write,
            read_percent: 0,
            block: ByteSize(FILL_BLOCK_BYTES),
            depth: SEQUENTIAL_DEPTH,
            warm_up: 0.0,
            count: Some((bytes / FILL_BLOCK_BYTES).div_ceil(u64::from(jobs)).max(1)),
            ..self.basis.clone()
        }
    }

    /// Buffers of a reactor for the largest of the loads, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.loads.iter().map(Load::memory_bytes).max().unwrap_or(0)
    }
}

/// The random pattern with this share of reads.
pub fn mixed(reads: u8) -> Pattern {
    match reads {
        100 => Pattern::Randread,
        0 => Pattern::Randwrite,
        _ => Pattern::Randrw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_is_there_once() {
        let suite = Suite::new(1.0, 0.0, ByteSize(1 << 30));
        for (index, load) in suite.loads().iter().enumerate() {
            assert!(!suite.loads()[..index].contains(load), "{}", load.describe());
        }
        assert_eq!(suite.loads().len(), 24);
        assert_eq!(suite.fill(1 << 40, 2).count, Some(512));
    }
}
