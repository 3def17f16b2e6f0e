//! Scenarios: of the simulator's own parts, and of replicated volumes.

mod drive;
mod echo;
pub mod mirror;

pub use drive::exercise_drive;

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
        name: "network-echo",
        about: "clients get back the bytes that they sent, through partitions, resets and crashes",
        run: echo::run,
    },
];
