//! Metrics as Prometheus reads them: the text format, version 0.0.4.

mod parse;
mod write;

pub use parse::{ParseError, Sample, Scrape, parse};
pub use write::{Exposition, Histogram, Samples};

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A number that only grows, and begins at 0 with the process.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

impl Kind {
    /// Its name in the text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric with all its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name, in base units.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it tells, one sentence.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}
