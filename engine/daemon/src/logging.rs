//! What the engine tells while it runs: `tracing`, on the standard error stream, and traces if they are set.
//!
//! For people: one line an event, with colours on a terminal only. For machines: one JSON object a line.

use std::io::{self, IsTerminal};

use pollux_trace::{Process, TraceError, TraceSettings, Tracing};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::settings::{LogFormat, LogSettings};

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error(
        "{level:?} is no log level ({reason}): give error, warn, info, debug or trace, or TARGET=LEVEL,..."
    )]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Traces cannot be sent, or the log was set up before.
    #[error(transparent)]
    Traces(#[from] TraceError),
}

/// Sends what is told to the standard error stream, and traces where that is set, as long as the answer is
/// kept; once in a process. The instance is the name of the node, or nothing.
///
/// # Errors
///
/// [`LogError`].
pub fn start(log: &LogSettings, traces: &TraceSettings, instance: &str) -> Result<Tracing, LogError> {
    let filter = filter(&log.level)?;
    let process = Process {
        name: "pollux-engine",
        instance,
    };
    Ok(match log.format {
        LogFormat::Json => {
            let lines = layer().with_writer(io::stderr).json().flatten_event(true);
            pollux_trace::start(lines, filter, traces, process)?
        }
        LogFormat::Text => {
            let lines = layer()
                .with_writer(io::stderr)
                .with_target(false)
                .with_ansi(io::stderr().is_terminal())
                .with_timer(Clock)
                .compact();
            pollux_trace::start(lines, filter, traces, process)?
        }
    })
}

/// What is told, as a text says it. A word that is no level would be a part of the engine, the only one that
/// is told of: so a misspelt level would silence everything, and is refused.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wrong = |reason: String| LogError::Level {
        level: level.to_owned(),
        reason,
    };
    let is_directive = |part: &str| part.contains('=') || part.parse::<LevelFilter>().is_ok();
    if let Some(word) = level.split(',').map(str::trim).find(|part| !is_directive(part)) {
        return Err(wrong(format!("{word:?} is none")));
    }
    EnvFilter::builder()
        .parse(level)
        .map_err(|error| wrong(error.to_string()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_silences_nothing() {
        for level in [
            "info",
            "WARN",
            "off",
            "pollux_nvme=debug",
            "warn,pollux_nvme=trace",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["infos", "warn,pollux_nvme", "a=b"] {
            let refused = filter(level).map(drop).expect_err(level).to_string();
            assert!(refused.contains("give error, warn, info"), "{refused}");
        }
    }
}
