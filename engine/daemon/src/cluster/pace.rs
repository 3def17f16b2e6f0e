//! What the control plane is told of mirrors beside their records: which replicas a target has given up as
//! too slow, and what none of them can read.

use pollux_api::control::v1::{UnreadableBlocks, UnreadableReport};
use pollux_volume::mirror::{Mirror, Pace, Unreadable};
use uuid::Uuid;

use super::record::BLOCK_BYTES;

/// What a mirror tells beside its record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    /// The replicas that it has given up.
    pub(super) given_up: Vec<Uuid>,
    /// What nobody of the set can read; `None` if that is not known.
    unreadable: Option<Unreadable>,
}

impl Beside {
    /// On the reactor of the mirror.
    pub(super) fn of(mirror: &Mirror) -> Self {
        let all = mirror.replicas().into_iter();
        let slow = all.filter(|replica| is_given_up(replica.pace));
        Self {
            given_up: slow.map(|replica| replica.id).collect(),
            unreadable: mirror.resync_progress().unreadable,
        }
    }

    /// What cannot be read, as the control plane is told.
    pub(super) fn unreadable(&self, volume: Uuid) -> Option<UnreadableReport> {
        let unreadable = self.unreadable?;
        Some(UnreadableReport {
            volume_uid: volume.to_string(),
            blocks: Some(UnreadableBlocks {
                blocks: unreadable.blocks,
                first_offset_bytes: unreadable.first_block * u64::from(BLOCK_BYTES),
            }),
        })
    }
}

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
    fn what_cannot_be_read_is_told_in_bytes_and_what_is_not_known_is_not() {
        let told = |unreadable| {
            let beside = Beside {
                unreadable,
                ..Beside::default()
            };
            let report = beside.unreadable(Uuid::nil())?;
            let blocks = report.blocks.expect("it is told");
            Some((blocks.blocks, blocks.first_offset_bytes))
        };
        let found = Unreadable {
            first_block: 3,
            blocks: 2,
        };
        assert_eq!(told(None), None);
        assert_eq!(told(Some(Unreadable::default())), Some((0, 0)));
        assert_eq!(told(Some(found)), Some((2, 12_288)));
    }

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
