//! Writes the text.

use std::fmt::Write;

use super::{Family, Kind};

/// The text of all metrics.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// How often something took how long.
#[derive(Debug, Clone, Copy)]
pub struct Histogram<'a> {
    /// Upper bounds, ascending, without the last, which is without bound.
    pub bounds: &'a [f64],
    /// How often it was within each bound and above the one before; the last is what was above all.
    pub counts: &'a [u64],
    /// The sum of all.
    pub sum: f64,
}

impl Exposition {
    /// The series of a metric.
    pub fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let Family { name, kind, help, .. } = family;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        push(
            &mut self.text,
            format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.name()),
        );
        Samples {
            family,
            text: &mut self.text,
        }
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// The series of one metric.
#[derive(Debug)]
pub struct Samples<'a> {
    family: &'static Family,
    text: &'a mut String,
}

impl Samples<'_> {
    /// One series: the values of its labels, in their order.
    pub fn add(&mut self, labels: &[&str], value: f64) -> &mut Self {
        debug_assert_ne!(self.family.kind, Kind::Histogram, "{}", self.family.name);
        self.sample("", labels, None, value);
        self
    }

    /// One histogram.
    pub fn add_histogram(&mut self, labels: &[&str], histogram: Histogram<'_>) -> &mut Self {
        debug_assert_eq!(self.family.kind, Kind::Histogram, "{}", self.family.name);
        let mut sum_of_counts = 0;
        let last = [f64::INFINITY];
        for (bound, count) in histogram.bounds.iter().chain(&last).zip(histogram.counts) {
            sum_of_counts += count;
            self.sample("_bucket", labels, Some(*bound), sum_of_counts as f64);
        }
        self.sample("_sum", labels, None, histogram.sum);
        self.sample("_count", labels, None, sum_of_counts as f64);
        self
    }

    fn sample(&mut self, suffix: &str, labels: &[&str], bound: Option<f64>, value: f64) {
        debug_assert_eq!(self.family.labels.len(), labels.len(), "{}", self.family.name);
        push(self.text, format_args!("{}{suffix}", self.family.name));
        let mut separator = '{';
        for (name, value) in self.family.labels.iter().zip(labels) {
            push(
                self.text,
                format_args!("{separator}{name}=\"{}\"", escaped(value)),
            );
            separator = ',';
        }
        if let Some(bound) = bound {
            push(self.text, format_args!("{separator}le=\"{}\"", number(bound)));
            separator = ',';
        }
        let end = if separator == ',' { "}" } else { "" };
        push(self.text, format_args!("{end} {}\n", number(value)));
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a text never fails.
    let _ = text.write_fmt(arguments);
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

/// The value of a label: whatever people call their volumes, the text stays one line.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse;
    use super::*;

    static COUNTED: Family = Family {
        name: "pollux_test_total",
        kind: Kind::Counter,
        help: "A test,\nwith a \\.",
        labels: &["name", "other"],
    };

    static TIMED: Family = Family {
        name: "pollux_test_seconds",
        kind: Kind::Histogram,
        help: "A test.",
        labels: &["name"],
    };

    #[test]
    fn a_histogram_adds_up() {
        let mut text = Exposition::default();
        let histogram = Histogram {
            bounds: &[0.001, 0.01],
            counts: &[3, 0, 2],
            sum: 0.5,
        };
        text.family(&TIMED).add_histogram(&["a"], histogram);
        let text = text.finish();
        assert_eq!(
            text,
            "# HELP pollux_test_seconds A test.\n# TYPE pollux_test_seconds histogram\n\
             pollux_test_seconds_bucket{name=\"a\",le=\"0.001\"} 3\n\
             pollux_test_seconds_bucket{name=\"a\",le=\"0.01\"} 3\n\
             pollux_test_seconds_bucket{name=\"a\",le=\"+Inf\"} 5\n\
             pollux_test_seconds_sum{name=\"a\"} 0.5\npollux_test_seconds_count{name=\"a\"} 5\n"
        );
        parse(&text).expect("it can be read");
    }

    proptest! {
        #[test]
        fn whatever_labels_hold_is_read_again(value in any::<String>(), other in any::<String>()) {
            let mut text = Exposition::default();
            text.family(&COUNTED).add(&[&value, &other], 7.0);
            let scrape = parse(&text.finish()).expect("it can be read");
            let sample = scrape.samples.first().expect("one");
            prop_assert_eq!(&sample.labels["name"], &value);
            prop_assert_eq!(&sample.labels["other"], &other);
            prop_assert_eq!(sample.value, 7.0);
        }
    }
}
