//! Medians, ratios and the table.

use std::fmt::Write as _;

use super::perf::Load;
use crate::samples::Samples;

/// One load and everybody's measurements.
#[derive(Debug)]
pub struct Row {
    /// The load.
    pub load: Load,
    /// `pollux-engine`.
    pub pollux: Samples,
    /// `nvmf_tgt`.
    pub spdk: Samples,
    /// Plain sockets.
    pub limit: Samples,
}

impl Row {
    /// One line while the comparison runs.
    pub fn progress(&self) -> String {
        format!(
            "{}: pollux {} k, nvmf_tgt {} k, ratio {}",
            self.load.name(),
            self.pollux.iops_text(),
            self.spdk.iops_text(),
            self.pollux.iops_by(&self.spdk)
        )
    }
}

/// The table in Markdown.
pub fn render(rows: &[Row], rounds: usize, seconds: u32) -> String {
    let mut text = format!(
        "{rounds} rounds of {seconds} s each, in turns. Thousands of IOPS: median (lowest-highest); \
         mean latency in us; ratios: median of those of the rounds.\n\n\
         | load | pollux kIOPS | us | nvmf_tgt kIOPS | us | sockets kIOPS \
         | IOPS / nvmf_tgt | IOPS / sockets | latency / nvmf_tgt |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.load.name(),
            row.pollux.iops_text(),
            row.pollux.latency_text(),
            row.spdk.iops_text(),
            row.spdk.latency_text(),
            row.limit.iops_text(),
            row.pollux.iops_by(&row.spdk),
            row.pollux.iops_by(&row.limit),
            row.pollux.latency_by(&row.spdk),
        );
    }
    text
}
