//! `pollux-bench report`: the five charts that storage reviews print, for one or several runs side by side.
//!
//! A run is a device under the loads of [`suite`]. Runs are measured now, all devices in turns so that they
//! see the same machine, or read from files that an earlier report saved. The result is one page that needs
//! nothing else: charts as SVG, which follow the reader's light or dark colours, and as PNG to take away.

mod chart;
mod charts;
mod page;
mod picture;
mod run;
mod scale;
mod suite;
mod svg;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use pollux_device::ByteSize;

use crate::load::{Generator, Line, LoadError, Reactors};
use run::Run;
use suite::Suite;

/// Runs of one report: more could not be told apart.
const RUNS_MAX: usize = svg::SERIES_MAX;

/// What to report on.
#[derive(Debug, Args)]
pub struct Options {
    /// Measure a device now: LABEL=URI; may be given several times, and then they take turns
    #[arg(long, value_name = "LABEL=URI")]
    measure: Vec<Target>,
    /// A run that an earlier report saved; may be given several times
    #[arg(long, value_name = "FILE")]
    read: Vec<PathBuf>,
    /// The page
    #[arg(long, default_value = "report.html")]
    output: PathBuf,
    /// Save the measured runs to this folder, as LABEL.json
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Write the charts to this folder too, each as SVG and as PNG
    #[arg(long, value_name = "FOLDER")]
    charts: Option<PathBuf>,
    /// Title of the page
    #[arg(long, default_value = "Pollux storage report")]
    title: String,
    /// Measure writes as well, which destroys what is on the devices. Without it, only reads are measured,
    /// of whatever is there; malloc and null devices are written in any case
    #[arg(long)]
    destroy_data: bool,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0, value_parser = crate::load::seconds)]
    time: f64,
    /// Seconds before each measurement
    #[arg(long, default_value_t = 1.0, value_parser = crate::load::seconds)]
    warm_up: f64,
    /// Use so much of each device, from its start. More than the caches of the drive is honest
    #[arg(long, default_value = "1GiB")]
    size: ByteSize,
    /// By whom.
    #[command(flatten)]
    reactors: Reactors,
    /// No progress line
    #[arg(long)]
    quiet: bool,
}

/// A device to measure, and what it is called.
#[derive(Debug, Clone)]
struct Target {
    label: String,
    uri: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((label, uri)) if !label.is_empty() && uri.contains("://") => Ok(Self {
                label: label.to_owned(),
                uri: uri.to_owned(),
            }),
            _ => Err("write it as LABEL=URI, as in drive=uring:///dev/nvme0n1".to_owned()),
        }
    }
}

impl Target {
    /// Nothing that is worth keeping is on it.
    fn is_scratch(&self) -> bool {
        self.uri.starts_with("malloc:") || self.uri.starts_with("null:")
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A load could not be run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing to report on.
    #[error("nothing to report on: give --measure LABEL=URI or --read FILE")]
    Nothing,
    /// Too much to report on.
    #[error("{0} runs cannot be told apart in a chart: give at most {RUNS_MAX}")]
    TooMany(usize),
    /// A saved run that is none.
    #[error("{path} is not a run that a report saved: {error}")]
    NotARun {
        /// The file.
        path: String,
        /// Why not.
        error: serde_json::Error,
    },
    /// A file.
    #[error("could not {action} {path}: {error}")]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// A chart could not be made into a picture.
    #[error("the chart {chart} could not be drawn as PNG: {reason}")]
    Picture {
        /// Which.
        chart: &'static str,
        /// Why.
        reason: String,
    },
}

/// Measures, reads and draws.
pub fn run(options: &Options) -> Result<(), Error> {
    let count = options.measure.len() + options.read.len();
    if count == 0 {
        return Err(Error::Nothing);
    }
    if count > RUNS_MAX {
        return Err(Error::TooMany(count));
    }
    let mut runs: Vec<Run> = options
        .read
        .iter()
        .map(|path| Run::read(path))
        .collect::<Result<_, _>>()?;
    if !options.measure.is_empty() {
        let measured = measure(options)?;
        if let Some(folder) = &options.save {
            for run in &measured {
                run.save(folder)?;
            }
        }
        runs.extend(measured);
    }
    let charts = charts::all(&runs);
    let mut drawn = Vec::new();
    for chart in charts {
        let png = picture::render(&chart)?;
        if let Some(folder) = &options.charts {
            let svg = svg::draw(&chart, svg::Theme::Reader);
            write(&folder.join(format!("{}.svg", chart.name)), svg.as_bytes())?;
            write(&folder.join(format!("{}.png", chart.name)), &png)?;
        }
        drawn.push((chart, png));
    }
    let page = page::render(&options.title, &runs, &drawn);
    write(&options.output, page.as_bytes())?;
    println!(
        "{} runs, {} charts: {}",
        runs.len(),
        drawn.len(),
        options.output.display()
    );
    Ok(())
}

/// Runs the suite on all devices, load by load in turns.
fn measure(options: &Options) -> Result<Vec<Run>, Error> {
    let uris: Vec<String> = options.measure.iter().map(|target| target.uri.clone()).collect();
    let suite = Suite::new(options.time, options.warm_up, options.size);
    let generator = Generator::start(&uris, &options.reactors, suite.memory_bytes())?;
    let mut runs: Vec<Run> = options
        .measure
        .iter()
        .map(|target| Run::begin(&target.label, &target.uri, options.reactors.jobs))
        .collect();
    let line = |title: String| Line {
        title,
        hidden: options.quiet,
    };
    let writable = |target: &Target| options.destroy_data || target.is_scratch();
    let targets = || options.measure.iter().enumerate();
    for (number, target) in targets().filter(|(_, target)| writable(target)) {
        let size_bytes = generator.size_bytes(number);
        let fill = suite.fill(size_bytes, options.reactors.jobs);
        generator
            .measure(&fill, Some(number), &line(format!("{}: filling ", target.label)))?
            .without_failures()?;
    }
    let total = suite.loads().len();
    for (done, load) in suite.loads().iter().enumerate() {
        for (number, target) in targets().filter(|(_, target)| writable(target) || !load.writes()) {
            let title = format!("{}/{total} {}: {} ", done + 1, target.label, load.describe());
            let results = generator.measure(load, Some(number), &line(title))?;
            let results = results.without_failures()?;
            if let Some(run) = runs.get_mut(number) {
                run.results.push(results);
            }
        }
    }
    generator.stop()?;
    Ok(runs)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |action| {
        move |error| Error::File {
            action,
            path: path.display().to_string(),
            error,
        }
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
    }
    std::fs::write(path, bytes).map_err(failed("write"))
}
