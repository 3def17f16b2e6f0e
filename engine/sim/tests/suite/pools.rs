//! The scenario of pools, and that it finds what drives do wrong.

use std::rc::Rc;

use pollux_device::{BlockDevice, Completion, Geometry, Reply, Request};
use pollux_sim::Run;
use pollux_sim::scenarios::{SCENARIOS, exercise_pool};
use pollux_sim::{CampaignOptions, run_campaign};

#[test]
fn a_hundred_seeds_find_nothing() {
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == "pools")
        .unwrap();
    let options = CampaignOptions {
        seeds: 0..100,
        jobs: 2,
        repeat_every: 10,
        failures_max: 1,
    };
    let summary = run_campaign(scenario, &options, |seed| format!("seed {seed}"), |_, _| {});
    assert_eq!(summary.failures, []);
    assert_eq!((summary.runs, summary.repeated), (100, 10));
}

/// A drive that says that it has flushed, and has not; and that forgets to force writes to the medium.
struct Forgetful(Rc<dyn BlockDevice>);

impl BlockDevice for Forgetful {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        match request {
            Request::Flush => Completion::from_future(async { Ok(Reply::Done) }),
            Request::Write { block, from, .. } => self.0.submit(Request::Write {
                block,
                from,
                force_unit_access: false,
            }),
            other => self.0.submit(other),
        }
    }
}

/// The canary: a simulator that does not find it is broken.
#[test]
fn drives_that_do_not_flush_are_found() {
    let found = |seed: &u64| {
        let run = Run::of_seed(*seed);
        let wrap = Rc::new(|device| Rc::new(Forgetful(device)) as Rc<dyn BlockDevice>);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| exercise_pool(&run, wrap)));
        !matches!(outcome, Ok(Ok(_)))
    };
    let count = (0..20).filter(found).count();
    assert!(count >= 10, "{count} of 20");
}
