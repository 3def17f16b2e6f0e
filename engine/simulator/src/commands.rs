//! The command line.

use std::io::{self, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use pollux_sim::{CampaignOptions, Failure, Scenario, Summary, run_campaign};

/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Simulates Pollux in virtual time, from seeds that replay exactly.
#[derive(Debug, Parser)]
#[command(name = "pollux-sim", version)]
#[command(long_version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("POLLUX_COMMIT"), ")"))]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the scenarios.
    List,
    /// Runs scenarios with a range of seeds; ends with 1 if one failed.
    Run(RunArguments),
}

#[derive(Debug, Parser)]
struct RunArguments {
    /// Only these scenarios, by name; all of them otherwise.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// How many seeds of each.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// Worlds side by side; as many as there are cores otherwise.
    #[arg(long)]
    jobs: Option<usize>,
    /// Every so many seeds one is run twice and has to do the same; 0 for never.
    #[arg(long, value_name = "SEEDS", default_value_t = 20)]
    repeat_every: u64,
    /// Failures of one scenario after which it is given up.
    #[arg(long, default_value_t = 10)]
    failures_max: u64,
    /// Shows what the machines log: error, warn, info, debug or trace. For one seed, with one job.
    #[arg(long, value_name = "LEVEL")]
    log: Option<tracing::Level>,
}

/// An argument that makes no sense, or output that cannot be written.
#[derive(Debug)]
pub enum CommandError {
    /// There is no such scenario.
    UnknownScenario(String),
    /// The terminal or the pipe is gone.
    Output(io::Error),
}

impl std::fmt::Display for CommandError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownScenario(name) => {
                write!(
                    formatter,
                    "there is no scenario `{name}`: `pollux-sim list` shows them"
                )
            }
            Self::Output(error) => write!(formatter, "the output cannot be written: {error}"),
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Every scenario there is.
fn scenarios() -> Vec<Scenario> {
    pollux_sim::scenarios::SCENARIOS.to_vec()
}

/// Does what the arguments say; whether everything that was run was right.
///
/// # Errors
///
/// [`CommandError`].
pub fn run(arguments: &Arguments, output: &mut dyn Write) -> Result<bool, CommandError> {
    match &arguments.command {
        Command::List => {
            for scenario in scenarios() {
                writeln!(output, "{:<20} {}", scenario.name, scenario.about)?;
            }
            Ok(true)
        }
        Command::Run(arguments) => run_scenarios(arguments, output),
    }
}

fn run_scenarios(arguments: &RunArguments, output: &mut dyn Write) -> Result<bool, CommandError> {
    let mut chosen = scenarios();
    if let Some(name) = arguments
        .scenario
        .iter()
        .find(|name| chosen.iter().all(|known| known.name != **name))
    {
        return Err(CommandError::UnknownScenario(name.clone()));
    }
    chosen.retain(|known| {
        arguments.scenario.is_empty() || arguments.scenario.iter().any(|name| name == known.name)
    });
    if let Some(level) = arguments.log {
        crate::logs::show(level);
    }
    let mut right = true;
    for scenario in &chosen {
        right &= run_scenario(scenario, arguments, output)?.failures.is_empty();
    }
    Ok(right)
}

fn run_scenario(
    scenario: &Scenario,
    arguments: &RunArguments,
    output: &mut dyn Write,
) -> Result<Summary, CommandError> {
    let seeds: Range<u64> = arguments.from..arguments.from.saturating_add(arguments.seeds);
    let jobs = arguments
        .jobs
        .or_else(|| Some(std::thread::available_parallelism().ok()?.get()));
    let options = CampaignOptions {
        seeds: seeds.clone(),
        jobs: jobs.unwrap_or(1),
        repeat_every: arguments.repeat_every,
        failures_max: arguments.failures_max,
    };
    let replay = |seed| {
        format!(
            "pollux-sim run --scenario {} --from {seed} --seeds 1",
            scenario.name
        )
    };
    let mut written = Ok(());
    let started = Instant::now();
    let mut shown = started;
    let summary = run_campaign(scenario, &options, replay, |summary, failure| {
        let due = shown.elapsed() >= PROGRESS_INTERVAL;
        if due {
            shown = Instant::now();
        }
        let result = failure.map_or(Ok(()), |failure| show_failure(scenario, failure, output));
        let progress = if due {
            show_summary(scenario, (summary, started.elapsed()), &seeds, output)
        } else {
            Ok(())
        };
        if written.is_ok() {
            written = result.and(progress);
        }
    });
    written?;
    show_summary(scenario, (&summary, started.elapsed()), &seeds, output)?;
    show_reached(&summary, output)?;
    Ok(summary)
}

fn show_failure(scenario: &Scenario, failure: &Failure, output: &mut dyn Write) -> io::Result<()> {
    writeln!(
        output,
        "{}: seed {} FAILED: {}",
        scenario.name, failure.seed, failure.message
    )?;
    writeln!(
        output,
        "  commit {}, replay: {}",
        env!("POLLUX_COMMIT"),
        failure.replay
    )
}

/// What the runs exercised, and what none of them did.
fn show_reached(summary: &Summary, output: &mut dyn Write) -> io::Result<()> {
    for (what, (runs, times)) in &summary.reached {
        writeln!(output, "  {what}: {times} times, in {runs} seeds")?;
    }
    Ok(())
}

fn show_summary(
    scenario: &Scenario,
    (summary, elapsed): (&Summary, Duration),
    seeds: &Range<u64>,
    output: &mut dyn Write,
) -> io::Result<()> {
    writeln!(
        output,
        "{}: {} of {} seeds, {} failed, {} run twice; {} seeds an hour, {:.0?} of virtual time in {:.1?}",
        scenario.name,
        summary.runs,
        seeds.end - seeds.start,
        summary.failures.len(),
        summary.repeated,
        summary.seeds_per_hour(elapsed),
        summary.virtual_time,
        elapsed,
    )?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(arguments: &[&str]) -> (Result<bool, CommandError>, String) {
        let arguments = Arguments::try_parse_from([&["pollux-sim"], arguments].concat()).unwrap();
        let mut output = Vec::new();
        let result = run(&arguments, &mut output);
        (result, String::from_utf8(output).unwrap())
    }

    #[test]
    fn lists_scenarios_and_runs_each() {
        let (result, listed) = run_with(&["list"]);
        assert!(matches!(result, Ok(true)));
        let (result, output) = run_with(&["run", "--seeds", "4", "--jobs", "2", "--repeat-every", "2"]);
        assert!(matches!(result, Ok(true)), "{output}");
        for scenario in scenarios() {
            assert!(listed.contains(scenario.name));
            let line = format!("{}: 4 of 4 seeds, 0 failed, 2 run twice", scenario.name);
            assert!(output.contains(&line), "{output}");
        }
    }

    #[test]
    fn an_unknown_scenario_is_an_error() {
        let (result, _) = run_with(&["run", "--scenario", "nothing"]);
        assert!(result.unwrap_err().to_string().contains("`nothing`"));
    }

    #[test]
    fn a_failure_tells_commit_and_replay() {
        let scenario = Scenario {
            name: "broken",
            about: "",
            run: |run| {
                if run.seed == 7 {
                    Err("odd".to_owned())
                } else {
                    Err("even".to_owned())
                }
            },
        };
        let arguments =
            Arguments::try_parse_from(["pollux-sim", "run", "--from", "7", "--seeds", "1"]).unwrap();
        let Command::Run(arguments) = arguments.command else {
            panic!("not a run")
        };
        let mut output = Vec::new();
        let summary = run_scenario(&scenario, &arguments, &mut output).unwrap();
        assert_eq!(summary.failures.len(), 1);
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("broken: seed 7 FAILED: odd"), "{output}");
        assert!(
            output.contains("replay: pollux-sim run --scenario broken --from 7 --seeds 1"),
            "{output}"
        );
        assert!(output.contains(env!("POLLUX_COMMIT")), "{output}");
    }
}
