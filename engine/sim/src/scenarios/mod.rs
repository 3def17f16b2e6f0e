//! Scenarios of the simulator's own parts.
//!
//! Those of the layers above are defined by their crates, next to what they exercise.

mod drive;
mod echo;

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
        name: "network-echo",
        about: "clients get back the bytes that they sent, through partitions, resets and crashes",
        run: echo::run,
    },
];
