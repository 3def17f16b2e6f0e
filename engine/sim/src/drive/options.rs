//! How a simulated drive is.

use std::time::Duration;

use pollux_device::{Geometry, GeometryError};

use super::pages::Fill;
use crate::random::Random;

/// How long requests of one kind take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// At least.
    pub min: Duration,
    /// At most, but for spikes.
    pub max: Duration,
    /// Probability of a spike.
    pub spike_probability: f64,
    /// How much a spike adds, at most.
    pub spike: Duration,
}

impl Latency {
    /// Done at once, before the submission returns.
    pub const ZERO: Self = Self {
        min: Duration::ZERO,
        max: Duration::ZERO,
        spike_probability: 0.0,
        spike: Duration::ZERO,
    };

    /// Evenly spread between two spans.
    pub const fn between(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            ..Self::ZERO
        }
    }

    pub(super) fn draw(&self, random: &mut Random) -> Duration {
        if *self == Self::ZERO {
            return Duration::ZERO;
        }
        let mut latency = random.duration(self.min..=self.max);
        if random.chance(self.spike_probability) {
            latency += random.duration(Duration::ZERO..=self.spike);
        }
        latency
    }
}

/// How a simulated drive is.
#[derive(Debug, Clone)]
pub struct SimDriveOptions {
    /// What the drive says about itself. Without a volatile write cache every completed write is durable.
    pub geometry: Geometry,
    /// Writes tear at 512 bytes whatever `atomic_write_blocks` of the geometry promises, as those of a file
    /// on a drive with small sectors do.
    pub tears_within_blocks: bool,
    /// What it holds where nobody has written: a used drive holds noise.
    pub fill: Fill,
    /// It tells which pages of 4 KiB nothing is stored of; otherwise everything is allocated.
    pub tells_holes: bool,
    /// Bytes that its cache holds; the oldest write goes to the medium when there are more.
    pub cache_bytes: u64,
    /// Of reads and compares.
    pub read_latency: Latency,
    /// Of writes, write zeroes and deallocates.
    pub write_latency: Latency,
    /// Of flushes, and added to writes with FUA.
    pub flush_latency: Latency,
}

impl SimDriveOptions {
    /// A new drive with a volatile cache of 64 MiB and the latencies of a usual NVMe drive.
    ///
    /// # Errors
    ///
    /// Those of [`Geometry::new`].
    pub fn new(bytes: u64, block_bytes: u32) -> Result<Self, GeometryError> {
        let geometry = Geometry {
            volatile_write_cache: true,
            ..Geometry::new(bytes, block_bytes)?
        };
        let micros = |min, max| Latency {
            spike_probability: 0.001,
            spike: Duration::from_millis(10),
            ..Latency::between(Duration::from_micros(min), Duration::from_micros(max))
        };
        Ok(Self {
            geometry,
            tears_within_blocks: false,
            fill: Fill::Zeros,
            tells_holes: false,
            cache_bytes: 64 << 20,
            read_latency: micros(60, 120),
            write_latency: micros(10, 40),
            flush_latency: micros(50, 1000),
        })
    }

    /// The same drive with every request done at once: for recording crash states, where only the order
    /// counts.
    pub fn instant(self) -> Self {
        Self {
            read_latency: Latency::ZERO,
            write_latency: Latency::ZERO,
            flush_latency: Latency::ZERO,
            ..self
        }
    }
}
