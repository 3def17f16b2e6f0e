//! The clock of this machine.

use rustix::time::{ClockId, clock_gettime};

use crate::timer::Instant;

/// Reads the monotonic clock, which all reactors share. No system call where the kernel's clock source is the
/// processor's own counter; about 20 ns then.
pub(super) fn now() -> Instant {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}
