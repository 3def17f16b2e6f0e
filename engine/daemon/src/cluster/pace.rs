//! Which replicas a target has given up as too slow, as the control plane is told.

use pollux_volume::mirror::Pace;

/// Tests that a replica which is out for being slow fails one after the other, before it counts as given up.
/// Each comes later than the one before, so that this takes one or two minutes. It is tested on, and may come
/// back until it is replaced.
const FAILED_TESTS_MAX: u32 = 4;

/// Whether nobody is to wait for a replica any more. A mirror gives up who comes back and is slow again, and
/// not who is never fast enough to come back.
pub(super) fn is_given_up(pace: Pace) -> bool {
    match pace {
        Pace::GivenUp => true,
        Pace::Out { failed_tests, .. } => failed_tests >= FAILED_TESTS_MAX,
        Pace::Well | Pace::Slow(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use pollux_reactor::Instant;

    use super::*;

    #[test]
    fn who_fails_test_after_test_is_given_up() {
        let out = |failed_tests| Pace::Out {
            test_at: Instant::default(),
            failed_tests,
        };
        for pace in [Pace::Well, Pace::Slow(9), out(0), out(FAILED_TESTS_MAX - 1)] {
            assert!(!is_given_up(pace), "{pace:?}");
        }
        for pace in [Pace::GivenUp, out(FAILED_TESTS_MAX), out(u32::MAX)] {
            assert!(is_given_up(pace), "{pace:?}");
        }
    }
}
