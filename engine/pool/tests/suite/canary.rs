//! Deliberate bugs below the pool, which the crash tests must find each time: tests that find nothing are
//! broken.

use std::cell::Cell;
use std::rc::Rc;

use crate::common::Bench;
use crate::history::{judge_state, record_through};
use pollux_device::{BlockDevice, Completion, Geometry, Reply, Request};
use pollux_pool::CreateOptions;
use pollux_sim::{CutPoints, PowerLoss};

/// Runs that each bug is looked for in.
const SEEDS: u64 = 4;

/// What a device does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// Flushes are acknowledged and not done.
    Flushes,
    /// Writes with FUA are not forced to the medium.
    ForceUnitAccess,
    /// One write in 25 is acknowledged and not done.
    Writes,
}

struct Buggy {
    device: Rc<dyn BlockDevice>,
    bug: Bug,
    writes: Cell<u64>,
}

impl BlockDevice for Buggy {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        match (self.bug, request) {
            (Bug::Flushes, Request::Flush) => Completion::from_future(async { Ok(Reply::Done) }),
            (Bug::ForceUnitAccess, Request::Write { block, from, .. }) => {
                self.device.submit(Request::Write {
                    block,
                    from,
                    force_unit_access: false,
                })
            }
            (Bug::Writes, Request::Write { .. }) if self.is_lost() => {
                Completion::from_future(async { Ok(Reply::Done) })
            }
            (_, request) => self.device.submit(request),
        }
    }
}

impl Buggy {
    fn is_lost(&self) -> bool {
        self.writes.set(self.writes.get() + 1);
        self.writes.get().is_multiple_of(25)
    }
}

fn wrapped(device: Rc<dyn BlockDevice>, bug: Bug) -> Rc<dyn BlockDevice> {
    let writes = Cell::new(0);
    Rc::new(Buggy { device, bug, writes })
}

/// In how many of the runs a bug is found.
fn found(wrap: fn(Rc<dyn BlockDevice>) -> Rc<dyn BlockDevice>) -> usize {
    let is_found = |seed: &u64| {
        let bench = Bench::new(*seed, 1 + *seed as usize % 2);
        let recorded = record_through(&bench, 40, &CreateOptions::default(), None, wrap);
        let losses = [PowerLoss::LoseAll, PowerLoss::Reordered];
        let mut states = recorded.recorder.crash_states(*seed, CutPoints::Writes, &losses);
        states.any(|state| judge_state(&bench, &recorded, state).is_err())
    };
    (0..SEEDS).filter(is_found).count()
}

#[test]
fn a_drive_without_a_bug_passes() {
    assert_eq!(found(|device| wrapped(device, Bug::None)), 0);
}

#[test]
fn flushes_that_do_nothing_are_found() {
    assert_eq!(found(|device| wrapped(device, Bug::Flushes)), SEEDS as usize);
}

#[test]
fn writes_that_are_not_forced_to_the_medium_are_found() {
    assert_eq!(
        found(|device| wrapped(device, Bug::ForceUnitAccess)),
        SEEDS as usize
    );
}

#[test]
fn writes_that_are_lost_are_found() {
    assert!(found(|device| wrapped(device, Bug::Writes)) >= 2);
}
