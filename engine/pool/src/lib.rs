//! Pools on drives: thin volumes, snapshots and clones of them, checksums, one journal.
//!
//! - [`layout`] is every byte on a drive, encoded and decoded.
//! - [`tree`] is the copy-on-write structure that maps, the allocation state and the table of volumes are
//!   kept in.
//! - [`allocator`] knows which extents and pages are free, and when freed ones may be used again.
//! - [`cache`] has the pages of trees in memory, and seals them for a checkpoint.
//! - [`journal`] makes changes durable before they are in a checkpoint.
//! - [`map`] decides, without any I/O, what a write or a deallocation does to 64 KiB of a volume.
//! - [`shared`] is a pool and its volumes as other threads and reactors reach them.
//!
//! The mechanism, and why it keeps the promises, is in `docs/decisions/pool.md`.

#![forbid(unsafe_code)]

pub mod allocator;
pub mod cache;
pub mod device;
pub mod journal;
pub mod layout;
pub mod map;
mod pool;
pub mod shared;
pub mod space;
pub mod tree;
mod volume;

pub use pool::{
    CheckProgress, CheckReport, CreateOptions, DeviceStatus, DrainProgress, Drained, Grown, ImportReport,
    LostBlock, Misplaced, Pool, PoolCounters, PoolError, PoolOptions, ReplaceProgress, Replaced,
    ScrubOptions, ScrubProgress, ScrubReport, Space, Unreadable, Usage, VolumeOptions,
};
pub use volume::{BlockRange, RangePage, Volume};
