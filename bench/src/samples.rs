//! Figures of several rounds: medians, spreads and ratios.

/// What was measured in one round.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Requests per second.
    pub iops: f64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
}

/// What one contestant did under one load, round by round.
#[derive(Debug, Default)]
pub struct Samples(Vec<Figures>);

impl Samples {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

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

    /// The median of requests per second.
    pub fn iops(&self) -> Option<f64> {
        self.median(|figures| figures.iops)
    }

    /// The median of mean latencies in microseconds.
    pub fn latency_us(&self) -> Option<f64> {
        self.median(|figures| figures.mean_us)
    }

    /// `median (lowest-highest)` in thousands of requests per second.
    pub fn iops_text(&self) -> String {
        let values = self.sorted(|figures| figures.iops / 1e3);
        match (self.iops(), values.first(), values.last()) {
            (Some(median), Some(low), Some(high)) => format!("{:.1} ({low:.1}-{high:.1})", median / 1e3),
            _ => "-".to_owned(),
        }
    }

    /// The median latency for a table.
    pub fn latency_text(&self) -> String {
        self.latency_us()
            .map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1}"))
    }
}

/// One figure by another, for a table.
pub fn ratio(one: Option<f64>, other: Option<f64>) -> String {
    match (one, other) {
        (Some(one), Some(other)) if other > 0.0 => format!("{:.2}", one / other),
        _ => "-".to_owned(),
    }
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
