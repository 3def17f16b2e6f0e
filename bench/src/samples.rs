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
        median(&self.sorted(of))
    }

    /// The median of what this one did by what the other did in the same round: a machine that others use is
    /// fast in one round and slow in the next, for both.
    fn median_ratio(&self, other: &Self, of: impl Fn(&Figures) -> f64) -> Option<f64> {
        let rounds = self.0.iter().zip(&other.0);
        let mut ratios: Vec<f64> = rounds
            .map(|(one, other)| of(one) / of(other))
            .filter(|ratio| ratio.is_finite())
            .collect();
        ratios.sort_by(f64::total_cmp);
        median(&ratios)
    }

    /// Requests per second by another's, round by round, for a table.
    pub fn iops_by(&self, other: &Self) -> String {
        text(self.median_ratio(other, |figures| figures.iops))
    }

    /// Mean latency by another's, round by round, for a table.
    pub fn latency_by(&self, other: &Self) -> String {
        text(self.median_ratio(other, |figures| figures.mean_us))
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

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => sorted.get(middle).copied(),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// One figure by another that was not measured in the same rounds, for a table.
pub fn ratio(one: Option<f64>, other: Option<f64>) -> String {
    let quotient = one.zip(other).map(|(one, other)| one / other);
    text(quotient.filter(|quotient| quotient.is_finite()))
}

fn text(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
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

    #[test]
    fn ratios_are_those_of_rounds() {
        let of = |rounds: &[f64]| {
            let mut samples = Samples::default();
            for &iops in rounds {
                samples.push(Figures {
                    iops,
                    mean_us: 1e6 / iops,
                });
            }
            samples
        };
        // Always a tenth slower, on a machine whose speed changes from round to round.
        let (one, other) = (of(&[90.0, 45.0, 45.0, 81.0]), of(&[100.0, 50.0, 50.0, 90.0, 0.0]));
        assert_eq!(
            (one.iops_by(&other), one.latency_by(&other)),
            ("0.90".into(), "1.11".into())
        );
        assert_eq!(one.iops_by(&Samples::new()), "-");
        assert_eq!(one.iops_by(&of(&[0.0])), "-", "nothing to compare with");
    }
}
