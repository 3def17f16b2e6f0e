//! Scenarios: of the simulator's own parts, of pools, and of replicated volumes.

mod drive;
mod echo;
pub mod mirror;
mod pools;

pub use drive::exercise_drive;
pub use pools::exercise_pool;

use crate::Scenario;

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "drive-flush",
        about: "clients write, flush and read one drive whose machine loses power: what was flushed stays",
        run: drive::run,
    },
    Scenario {
        name: "mirror",
        about: "clients of a replicated volume, through crashes, partitions, takeovers and bad drives",
        run: mirror::run,
    },
    Scenario {
        name: "mirror-snapshots",
        about: "the same with replicas in pools: snapshots are cut, given, deleted, and the same everywhere",
        run: mirror::run_on_pools,
    },
    Scenario {
        name: "mirror-swarm",
        about: "the same as mirror, with a few kinds of faults in each run, and those often",
        run: mirror::run_swarm,
    },
    Scenario {
        name: "network-echo",
        about: "clients get back the bytes that they sent, through partitions, resets and crashes",
        run: echo::run,
    },
    Scenario {
        name: "pools",
        about: "clients, snapshots and deletions in a pool whose machine crashes: all is as was promised",
        run: pools::run,
    },
];
