//! Who has to ring the bell: the protocol between a reactor that falls asleep and threads that leave it work.
//!
//! The flag is in one of three states, and changes by read-modify-write only, so that all threads agree on
//! the order of the changes:
//!
//! - `AWAKE`: the reactor runs, and nobody has asked for it since it last consumed a notice.
//! - `NOTIFIED`: somebody has left work since.
//! - `ASLEEP`: the reactor waits for the bell, or is about to.
//!
//! A thread leaves work and then calls [`SleepFlag::notify`]; the reactor calls [`SleepFlag::prepare`] and,
//! if that says so, waits for the bell, then [`SleepFlag::finish`], and only then looks for work. No work is
//! overlooked:
//!
//! - A notifier that swaps `NOTIFIED` in comes either before `prepare`, which then finds `NOTIFIED` and
//!   refuses to sleep, or after it, finds `ASLEEP` and rings. Either way the reactor's next read-modify-write
//!   of the flag comes after the notifier's and acquires what that released: the work is visible.
//! - A notifier that finds `NOTIFIED` and leaves it at that has fenced between leaving its work and looking.
//!   The reactor fences between consuming the notice and looking for work. So either the notifier sees that
//!   the notice is consumed, and does not leave it at that, or the reactor sees the work.
//!
//! A notice may be consumed after its work was done already; that costs the reactor one turn.

use super::atomics::{AtomicU8, Ordering, fence};

const AWAKE: u8 = 0;
const NOTIFIED: u8 = 1;
const ASLEEP: u8 = 2;

/// See the module.
pub(super) struct SleepFlag(AtomicU8);

impl SleepFlag {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// Called by any thread after it has left work. Whether it has to ring the bell.
    #[must_use]
    pub(super) fn notify(&self) -> bool {
        fence(Ordering::SeqCst);
        // Many threads that wake a busy reactor only read here, and do not pass the cache line around.
        if self.0.load(Ordering::Relaxed) == NOTIFIED {
            return false;
        }
        self.0.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
    }

    /// Called by the reactor. Whether it may wait for the bell; if not, it is to look for work.
    #[must_use]
    pub(super) fn prepare(&self) -> bool {
        let before = self
            .0
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
        if before.is_err() {
            self.finish();
        }
        before.is_ok()
    }

    /// Called by the reactor when it has stopped waiting, whatever the reason; it is to look for work then.
    pub(super) fn finish(&self) {
        self.0.swap(AWAKE, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }
}
