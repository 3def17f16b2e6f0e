//! Simulated clock, drives and network for whole clusters on one thread.
//!
//! A [`World`] runs many machines in virtual time from one seed. What is built on a reactor and on devices
//! runs in it unchanged, and every failure replays from its seed. See `docs/decisions/0003-simulation.md`.

#![forbid(unsafe_code)]

mod campaign;
mod clock;
mod drive;
mod driver;
mod network;
pub mod oracle;
mod random;
pub mod scenarios;
mod timeline;
mod trace;
mod world;

pub use campaign::{CampaignOptions, Failure, Finished, Run, Scenario, Summary, run_campaign};
pub use clock::CLOCK_DRIFT_PPB_MAX;
pub use drive::{
    CrashCursor, CrashState, CutPoints, DriveCounters, DriveImage, Fault, Faults, Fill, Latency, Operation,
    PowerLoss, Recorder, SECTOR_BYTES, SimDrive, SimDriveOptions,
};
pub use network::{BACKLOG_MAX, Chop, LinkRule, NetworkOptions};
pub use random::{Random, Seed};
pub use trace::TraceEntry;
pub use world::{
    Control, Crash, MachineId, MachineOptions, SimReactor, SimTask, TaskLost, TimeLimit, World, WorldOptions,
};
