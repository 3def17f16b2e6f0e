//! A run: one boot, some scenarios, a verdict on each.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::{Control, Event, Outcome};
use crate::error::{Context, Error};
use crate::image;
use crate::kernel_log::unexpected;
use crate::machine::{self, Machine};
use crate::packages::Packages;
use crate::scenario::Scenario;

/// How long a guest may take until its first scenario, or from one to the next.
const BETWEEN: Duration = Duration::from_secs(240);

/// How long past its own limit a scenario may take before the guest is ended.
const GRACE: Duration = Duration::from_secs(60);

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(5);

/// What a run needs to know.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// The engine.
    pub(crate) engine: &'a Path,
    /// Where packages, images and what scenarios leave behind are.
    pub(crate) directory: &'a Path,
    /// The suite of Debian that the guest's kernel is of, if not this machine's.
    pub(crate) suite: Option<&'a str>,
    /// Whether the guest's console is shown while it runs.
    pub(crate) show_console: bool,
}

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Until the first scenario began.
    pub(crate) boot: Option<Duration>,
    /// A verdict on each scenario, in the order in which they ran.
    pub(crate) verdicts: Vec<Verdict>,
    /// The guest's console.
    pub(crate) console: PathBuf,
}

/// What came of a scenario.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Its name.
    pub(crate) name: String,
    /// How long it took.
    pub(crate) time: Duration,
    /// Why it failed; nothing if it passed.
    pub(crate) failures: Vec<String>,
}

/// Boots a guest and runs scenarios in it.
pub(crate) fn run(scenarios: &[&Scenario], options: &Options<'_>) -> Result<Report, Error> {
    machine::check()?;
    std::fs::create_dir_all(options.directory).context("make", options.directory)?;
    let packages = Packages::obtain(options.directory, options.suite)?;
    let runs = options.directory.join("runs");
    std::fs::create_dir_all(&runs).context("make", &runs)?;
    let mut control = Control::listen(options.engine, &runs)?;
    let file = options.directory.join("image");
    let beside_engine = options.engine.parent().unwrap_or(Path::new("."));
    image::build(&packages, beside_engine, scenarios, control.port()?, &file)?;
    let console = options.directory.join("console.log");
    let mut machine = Machine::boot(&packages.kernel(), &file, &console, options.show_console)?;
    let mut report = Report {
        console,
        ..Report::default()
    };
    let problem = follow(scenarios, &mut control, &mut machine, &mut report);
    control.end_engine();
    machine.end();
    for scenario in scenarios.iter().skip(report.verdicts.len()) {
        report.verdicts.push(Verdict {
            name: scenario.name.clone(),
            time: Duration::ZERO,
            failures: vec![problem.unwrap_or("the guest did not run it").to_owned()],
        });
    }
    Ok(report)
}

/// Serves the guest until it has run everything; says what is wrong if it ends before that.
fn follow(
    scenarios: &[&Scenario],
    control: &mut Control,
    machine: &mut Machine,
    report: &mut Report,
) -> Option<&'static str> {
    let started = Instant::now();
    let mut begun = started;
    let mut deadline = started + BETWEEN;
    loop {
        match control.poll() {
            Some(Event::Begun(name)) => {
                report.boot.get_or_insert(started.elapsed());
                let scenario = scenarios.iter().find(|scenario| scenario.name == name);
                begun = Instant::now();
                deadline = begun + scenario.map_or(BETWEEN, |scenario| scenario.time_limit + GRACE);
            }
            Some(Event::Ended(outcome)) => {
                let scenario = scenarios.get(report.verdicts.len());
                let Some(scenario) = scenario.filter(|scenario| scenario.name == outcome.name) else {
                    return Some("the guest ran another scenario than it was told to");
                };
                report.verdicts.push(judge(scenario, &outcome, begun.elapsed()));
                deadline = Instant::now() + BETWEEN;
            }
            Some(Event::Bye) => return None,
            None if machine.has_ended() => return Some("the guest ended before it"),
            None if Instant::now() > deadline => return Some("the guest hung"),
            None => std::thread::sleep(PAUSE),
        }
    }
}

fn judge(scenario: &Scenario, outcome: &Outcome, time: Duration) -> Verdict {
    let mut failures = Vec::new();
    if outcome.status != "0" {
        failures.push(format!("exit status {}", outcome.status));
    }
    failures.extend(outcome.engine.iter().cloned());
    let messages = unexpected(&outcome.kernel_log, &scenario.kernel_may_say);
    failures.extend(messages.iter().map(|message| format!("kernel: {message}")));
    Verdict {
        name: scenario.name.clone(),
        time,
        failures,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(status: &str, kernel_log: &str, engine: &[&str]) -> Vec<String> {
        let scenario = Scenario {
            name: "one".to_owned(),
            about: "One.".to_owned(),
            time_limit: Duration::from_secs(1),
            kernel_may_say: vec!["expected".to_owned()],
            programs: Vec::new(),
            modules: Vec::new(),
            only_by_name: None,
            script: String::new(),
        };
        let outcome = Outcome {
            name: "one".to_owned(),
            status: status.to_owned(),
            kernel_log: kernel_log.to_owned(),
            engine: engine.iter().map(ToString::to_string).collect(),
        };
        judge(&scenario, &outcome, Duration::ZERO).failures
    }

    #[test]
    fn a_scenario_passes_only_if_all_is_well() {
        assert!(failures("0", "<3>[ 1.0] expected\n", &[]).is_empty());
        assert_eq!(failures("1", "", &[]), ["exit status 1"]);
        assert_eq!(failures("0", "<3>[ 1.0] other\n", &[]), ["kernel: [ 1.0] other"]);
        assert_eq!(failures("0", "", &["engine: x"]), ["engine: x"]);
    }
}
