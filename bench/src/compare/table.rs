//! Medians, ratios and the table.

use std::fmt::Write as _;

use super::perf::{Figures, Load};

/// The measurements of one contestant under one load.
#[derive(Debug, Default)]
pub struct Samples(Vec<Figures>);

impl Samples {
    /// One more round.
    pub fn push(&mut self, figures: Figures) {
        self.0.push(figures);
    }

    fn sorted(&self, of: impl Fn(&Figures) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.0.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, of: impl Fn(&Figures) -> f64) -> Option<f64> {
        let values = self.sorted(of);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            count if count % 2 == 1 => values.get(middle).copied(),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    fn iops(&self) -> Option<f64> {
        self.median(|figures| figures.iops)
    }

    fn latency_us(&self) -> Option<f64> {
        self.median(|figures| figures.mean_us)
    }

    /// `median (lowest-highest)` in thousands of requests per second.
    fn iops_text(&self) -> String {
        let values = self.sorted(|figures| figures.iops / 1e3);
        match (self.iops(), values.first(), values.last()) {
            (Some(median), Some(low), Some(high)) => format!("{:.1} ({low:.1}-{high:.1})", median / 1e3),
            _ => "-".to_owned(),
        }
    }

    fn latency_text(&self) -> String {
        self.latency_us()
            .map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1}"))
    }
}

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

fn ratio(one: Option<f64>, other: Option<f64>) -> String {
    match (one, other) {
        (Some(one), Some(other)) if other > 0.0 => format!("{:.2}", one / other),
        _ => "-".to_owned(),
    }
}

impl Row {
    /// One line while the comparison runs.
    pub fn progress(&self) -> String {
        format!(
            "{}: pollux {} k, nvmf_tgt {} k, ratio {}",
            self.load.name(),
            self.pollux.iops_text(),
            self.spdk.iops_text(),
            ratio(self.pollux.iops(), self.spdk.iops())
        )
    }
}

/// The table in Markdown.
pub fn render(rows: &[Row], rounds: usize, seconds: u32) -> String {
    let mut text = format!(
        "{rounds} rounds of {seconds} s each, in turns. Thousands of IOPS: median (lowest-highest); \
         mean latency in us.\n\n\
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
            ratio(row.pollux.iops(), row.spdk.iops()),
            ratio(row.pollux.iops(), row.limit.iops()),
            ratio(row.pollux.latency_us(), row.spdk.latency_us()),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let mut samples = Samples::default();
        assert_eq!(samples.iops(), None);
        for iops in [3.0, 1.0, 2.0] {
            samples.push(Figures {
                iops,
                mean_us: 10.0 * iops,
            });
        }
        assert_eq!((samples.iops(), samples.latency_us()), (Some(2.0), Some(20.0)));
        samples.push(Figures {
            iops: 4.0,
            mean_us: 40.0,
        });
        assert_eq!(samples.iops(), Some(2.5));
    }
}
