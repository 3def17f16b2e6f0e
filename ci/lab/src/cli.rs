//! The command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};

use clap::{Parser, Subcommand};

use crate::drive;
use crate::error::{Context, Error, output_of};
use crate::image::{FOREIGN, installed};
use crate::records;
use crate::run::{self, Options, Report, Verdict};
use crate::scenario::Scenario;

/// The exit code when scenarios could not be run here at all.
const SKIPPED: u8 = 77;

/// How much of the console is shown of a scenario that failed.
const CONSOLE_LINES: usize = 60;

/// Runs scenarios with a real kernel, in a virtual machine, as the host of an engine.
#[derive(Debug, Parser)]
#[command(name = "lab", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest and run scenarios in it, one after the other. The exit code is 0 if all passed, 1 if one
    /// failed, 77 if this machine cannot run them.
    Run {
        /// Their names.
        #[arg(value_name = "SCENARIO", required_unless_present = "all")]
        names: Vec<String>,
        /// Run every scenario but those that are only run by name.
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// The engine; the other programs are to be beside it [default: those of this checkout, which are
        /// built first].
        #[arg(long, value_name = "FILE")]
        engine: Option<PathBuf>,
        /// The suite of Debian whose kernel the guest has, such as bookworm-backports [default: that of this
        /// machine].
        #[arg(long)]
        suite: Option<String>,
        /// Show the guest's console while it runs.
        #[arg(long)]
        console: bool,
    },
    /// Boot a guest with an emulated NVMe drive that the engine in the guest drives by SPDK. The exit codes
    /// are those of `run`.
    Drive {
        /// An engine with the feature `spdk`, whose SPDK was built for a processor that QEMU emulates.
        #[arg(long, value_name = "FILE")]
        engine: PathBuf,
        /// The suite that every device passes, to be run on the drives: the example `check` of the device
        /// layer, built as the engine.
        #[arg(long, value_name = "FILE")]
        suite: Option<PathBuf>,
        /// Measure instead: with this `pollux-bench`, built as the engine, on the emulated drive next to
        /// `spdk_nvme_perf` and `bdevperf`.
        #[arg(long, value_name = "FILE", requires = "spdk")]
        bench: Option<PathBuf>,
        /// The build tree of SPDK that they are taken from.
        #[arg(long, value_name = "DIRECTORY", requires = "bench")]
        spdk: Option<PathBuf>,
        /// Show the guest's console while it runs.
        #[arg(long)]
        console: bool,
    },
    /// Tell which scenarios there are.
    List,
    /// Write and verify numbered records: what guests call.
    #[command(subcommand)]
    Records(records::Command),
}

/// The program.
pub fn run() -> ExitCode {
    let mut output = std::io::stdout();
    match execute(&Cli::parse().command, &mut output) {
        Ok(code) => code,
        Err(Error::Missing(why)) => {
            // Nobody is left to be told if this fails.
            let _ = writeln!(output, "SKIPPED: the guest lab: {why}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: &Command, output: &mut impl Write) -> Result<ExitCode, Error> {
    match command {
        Command::Run {
            names,
            engine,
            suite,
            console,
            ..
        } => {
            let all = scenarios()?;
            let chosen = runnable(choose(&all, names)?, output)?;
            let itself = std::env::current_exe().context("find", Path::new("this program"))?;
            let engine = match engine {
                Some(path) => path.canonicalize().context("find", path)?,
                None => build_programs(&itself)?,
            };
            let options = Options {
                engine: &engine,
                directory: &directory(&itself),
                suite: suite.as_deref(),
                show_console: *console,
            };
            let report = run::run(&chosen, &options)?;
            print(&report, output).context("write to", Path::new("standard output"))?;
            let has_failed = report.verdicts.iter().any(|verdict| !verdict.failures.is_empty());
            Ok(ExitCode::from(u8::from(has_failed)))
        }
        Command::Drive {
            engine,
            suite,
            bench,
            spdk,
            console,
        } => {
            let itself = std::env::current_exe().context("find", Path::new("this program"))?;
            let engine = engine.canonicalize().context("find", engine)?;
            let comparison = bench.as_deref().zip(spdk.as_deref());
            let comparison = comparison.map(|(bench, spdk)| drive::Comparison { bench, spdk });
            let failure = drive::run(
                &engine,
                suite.as_deref(),
                comparison.as_ref(),
                &directory(&itself),
                *console,
            )?;
            let verdict = failure.as_deref().map_or("passed drive".to_owned(), |why| {
                format!("FAILED drive\n       {why}")
            });
            writeln!(output, "{verdict}").context("write to", Path::new("standard output"))?;
            Ok(ExitCode::from(u8::from(failure.is_some())))
        }
        Command::List => {
            for scenario in scenarios()? {
                let why = scenario.only_by_name.iter();
                let why: String = why.map(|why| format!(" (only by name: {why})")).collect();
                writeln!(output, "{:14} {}{why}", scenario.name, scenario.about)
                    .context("write to", Path::new("standard output"))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Records(command) => {
            let outcome = records::run(command)?;
            writeln!(output, "{outcome}").context("write to", Path::new("standard output"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn scenarios() -> Result<Vec<Scenario>, Error> {
    Scenario::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios"))
}

/// Those whose programs are there; of the others it is told why not.
fn runnable<'a>(chosen: Vec<&'a Scenario>, output: &mut impl Write) -> Result<Vec<&'a Scenario>, Error> {
    let mut runnable = Vec::new();
    for scenario in chosen {
        let mut foreign = scenario
            .programs
            .iter()
            .filter(|name| FOREIGN.contains(&name.as_str()));
        match foreign.find(|name| installed(name).is_none()) {
            None => runnable.push(scenario),
            Some(program) => writeln!(output, "SKIPPED {}: {program} is not installed", scenario.name)
                .context("write to", Path::new("standard output"))?,
        }
    }
    Ok(runnable)
}

/// The scenarios of these names, each once; if there are no names, all that are not only run by name.
fn choose<'a>(all: &'a [Scenario], names: &[String]) -> Result<Vec<&'a Scenario>, Error> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !all.iter().any(|scenario| scenario.name == **name))
    {
        return Err(Error::Request(format!(
            "there is no scenario `{unknown}`; `lab list` tells which there are"
        )));
    }
    Ok(all
        .iter()
        .filter(|scenario| match names {
            [] => scenario.only_by_name.is_none(),
            names => names.contains(&scenario.name),
        })
        .collect())
}

/// Where the lab keeps its files: `lab` in the target directory that this program was built in.
fn directory(itself: &Path) -> PathBuf {
    let target = itself.parent().and_then(Path::parent);
    target.unwrap_or(Path::new("target")).join("lab")
}

/// Builds the engine, the load generator, the control plane and the CSI driver with the profile that this
/// program was built with; the path of the engine.
fn build_programs(itself: &Path) -> Result<PathBuf, Error> {
    let directory = itself.parent().unwrap_or(Path::new("."));
    let mut command = Process::new("cargo");
    command.args([
        "build",
        "--quiet",
        "--package",
        "pollux-engine",
        "--package",
        "pollux-bench",
        "--package",
        "pollux-control",
        "--package",
        "pollux-csi",
    ]);
    if directory.ends_with("release") {
        command.arg("--release");
    }
    output_of(command.current_dir(env!("CARGO_MANIFEST_DIR")))?;
    Ok(directory.join("pollux-engine"))
}

fn print(report: &Report, output: &mut impl Write) -> std::io::Result<()> {
    if let Some(boot) = report.boot {
        writeln!(output, "the guest was up after {:.1} s", boot.as_secs_f64())?;
    }
    for Verdict { name, time, failures } in &report.verdicts {
        let seconds = time.as_secs_f64();
        let console = std::fs::read(&report.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        if failures.is_empty() {
            writeln!(output, "passed {name:14} {seconds:6.1} s")?;
            for told in console_of(&console, name).filter_map(|line| line.strip_prefix("TOLD ")) {
                writeln!(output, "       {told}")?;
            }
            continue;
        }
        writeln!(output, "FAILED {name:14} {seconds:6.1} s")?;
        for failure in failures {
            writeln!(output, "       {failure}")?;
        }
        let lines: Vec<&str> = console_of(&console, name).collect();
        for line in lines.iter().skip(lines.len().saturating_sub(CONSOLE_LINES)) {
            writeln!(output, "    | {line}")?;
        }
    }
    writeln!(output, "the console is in {}", report.console.display())
}

/// What a scenario left on the console, or all there is.
fn console_of<'a>(console: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let mark = format!("== {name}\n");
    let own = console.split_once(&mark).map_or(console, |(_, own)| own);
    let own = own.split("\n== ").next().unwrap_or(own);
    own.lines()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_console_of_a_scenario_is_found() {
        let console = "boot\n== one\na\nb\n== two\nc\n";
        let of = |console, name| console_of(console, name).collect::<Vec<_>>();
        assert_eq!(of(console, "one"), ["a", "b"]);
        assert_eq!(of(console, "two"), ["c"]);
        assert_eq!(of("boot\npanic\n", "one"), ["boot", "panic"]);
    }

    #[test]
    fn unknown_scenarios_are_an_error() {
        let all = scenarios().expect("they can be read");
        let by_name = all
            .iter()
            .filter(|scenario| scenario.only_by_name.is_some())
            .count();
        assert_eq!(choose(&all, &[]).expect("all").len(), all.len() - by_name);
        let one = vec![all[0].name.clone()];
        assert_eq!(choose(&all, &one).expect("one").len(), 1);
        assert!(choose(&all, &["no-such".to_owned()]).is_err());
    }
}
