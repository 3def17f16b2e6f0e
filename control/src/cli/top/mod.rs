//! `pollux top`: what is going on, live: how much is asked of volumes, how long it takes, how full pools are,
//! and what is being healed.
//!
//! All numbers are differences of two looks, divided by the time between them: nothing has to be kept
//! anywhere for it. In a terminal it is drawn again and again; elsewhere, or with `--once`, it is told once.

mod rates;
mod sample;
mod screen;
mod view;

#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::connection::{Channel, CommandError};
use super::output::{Output, serialized};

use sample::Sample;
use view::View;

/// Shortest and longest interval, in seconds.
const INTERVAL_S_MIN: f64 = 0.2;
const INTERVAL_S_MAX: f64 = 3600.0;

/// `top`.
#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,

    /// Tell it once and end: a table, or with `-o json` and `-o yaml` for machines.
    #[arg(long)]
    once: bool,

    /// Rows of each table.
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (INTERVAL_S_MIN..=INTERVAL_S_MAX).contains(seconds));
    seconds.ok_or_else(|| format!("give {INTERVAL_S_MIN} to {INTERVAL_S_MAX} seconds"))
}

/// Does it.
pub(super) async fn run(
    channel: &Channel,
    arguments: &TopArguments,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let pause = Duration::from_secs_f64(arguments.interval);
    let is_live =
        !arguments.once && matches!(output, Output::Table | Output::Wide) && std::io::stdout().is_terminal();
    let before = Sample::take(channel).await?;
    if is_live {
        return screen::run(channel, before, pause).await;
    }
    tokio::time::sleep(pause).await;
    let now = Sample::take(channel).await?;
    let view = View::new(&before, &now);
    match output {
        Output::Json | Output::Yaml => serialized(&view, output, into),
        Output::Table | Output::Wide => view.write(arguments.rows, into),
    }
}
