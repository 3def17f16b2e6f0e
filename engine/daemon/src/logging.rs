//! What the engine tells while it runs: `tracing`, on the standard error stream.
//!
//! For people: one line an event, with colours on a terminal only. For machines: one JSON object a line.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogSettings};

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("{level:?} is no log level ({reason}): give error, warn, info, debug or trace, or TARGET=LEVEL,...")]
pub struct LogError {
    level: String,
    reason: String,
}

/// Sends what is told to the standard error stream; once in a process.
///
/// # Errors
///
/// [`LogError`] when the level cannot be understood, or the log was set up before.
pub fn start(settings: &LogSettings) -> Result<(), LogError> {
    let failed = |reason: String| LogError {
        level: settings.level.clone(),
        reason,
    };
    let filter = EnvFilter::builder()
        .parse(&settings.level)
        .map_err(|error| failed(error.to_string()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match settings.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .with_timer(Clock)
            .compact()
            .finish()
            .try_init(),
    };
    started.map_err(|error| failed(error.to_string()))
}

/// The time of day in UTC, to the second: what a person looks for. JSON lines carry the whole time.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let seconds = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(writer, "{hour:02}:{minute:02}:{second:02}")
    }
}
