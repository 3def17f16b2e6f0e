//! The scenarios of this crate, and that they repeat.

use pollux_sim::scenarios::SCENARIOS;
use pollux_sim::{CampaignOptions, run_campaign};

#[test]
fn every_scenario_passes_and_repeats() {
    for scenario in SCENARIOS {
        let options = CampaignOptions {
            seeds: 1000..1030,
            jobs: 2,
            repeat_every: 3,
            failures_max: 1,
        };
        let summary = run_campaign(scenario, &options, |seed| format!("seed {seed}"), |_, _| {});
        assert_eq!(summary.failures, [], "{}", scenario.name);
        assert_eq!((summary.runs, summary.repeated), (30, 10));
    }
}
