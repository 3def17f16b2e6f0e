//! What the tests of reactor threads share.

use std::time::{Duration, Instant};

use pollux_hugepages::PoolOptions;
use pollux_reactor::ReactorId;
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};

/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Adaptive, with a spin so short that tests see both spinning and sleeping.
pub const SLEEPY: IdlePolicy = IdlePolicy::Adaptive {
    spin: Duration::from_micros(20),
};

/// A small reactor on a thread.
pub fn reactor(id: u32, idle: IdlePolicy) -> ReactorThread {
    ReactorThread::spawn(settings(id, idle)).expect("a reactor starts")
}

/// Settings of a small reactor.
pub fn settings(id: u32, idle: IdlePolicy) -> Settings {
    Settings {
        id: ReactorId(id),
        idle,
        buffers: PoolOptions {
            total_bytes: 8 << 20,
            ..PoolOptions::default()
        },
        ..Settings::default()
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
