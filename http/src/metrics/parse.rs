//! Reads the text, strictly: what Prometheus would refuse or take for something else is an error here.

use std::collections::{BTreeMap, BTreeSet};

use super::Kind;

/// All that a daemon told at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    /// The metrics, by name.
    pub kinds: BTreeMap<String, Kind>,
    /// All series.
    pub samples: Vec<Sample>,
}

/// One series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name: that of its metric, and for histograms what part of it.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Scrape {
    /// The value of a series of this name that has these labels, among others.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut samples = self.samples.iter().filter(|sample| {
            let has = |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|has| has == value);
            sample.name == name && labels.iter().all(has)
        });
        samples.next().map(|sample| sample.value)
    }

    /// The metric that a series is of.
    fn family_of(&self, name: &str) -> Option<&str> {
        if let Some((family, _)) = self.kinds.get_key_value(name) {
            return Some(family);
        }
        ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let (family, kind) = self.kinds.get_key_value(name.strip_suffix(suffix)?)?;
            (*kind == Kind::Histogram).then_some(family.as_str())
        })
    }
}

/// Reads a text.
///
/// # Errors
///
/// [`ParseError`] of the first line that is wrong.
pub fn parse(text: &str) -> Result<Scrape, ParseError> {
    let mut scrape = Scrape::default();
    let mut seen = BTreeSet::new();
    let mut current = String::new();
    let mut lines = 0;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(wrong(text.lines().count(), "the last line has no end"));
    }
    for (line, content) in (1..).zip(text.split_terminator('\n')) {
        lines = line;
        let failed = |reason: &str| wrong(line, reason);
        if let Some(rest) = content.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| failed("has no type"))?;
            let kind = [Kind::Counter, Kind::Gauge, Kind::Histogram]
                .into_iter()
                .find(|known| known.name() == kind)
                .ok_or_else(|| failed("has a type that is not known"))?;
            if scrape.kinds.insert(name.to_owned(), kind).is_some() {
                return Err(failed("is a metric that was told before"));
            }
            name.clone_into(&mut current);
            continue;
        }
        if content.starts_with('#') {
            continue;
        }
        let sample = sample(content).map_err(|reason| failed(&reason))?;
        let family = scrape
            .family_of(&sample.name)
            .ok_or_else(|| failed("is of no metric"))?;
        if family != current {
            return Err(failed("is not below its metric"));
        }
        let is_part = sample.name != family;
        let is_histogram = scrape.kinds.get(family) == Some(&Kind::Histogram);
        if is_part != is_histogram {
            return Err(failed("is no part of its metric"));
        }
        if !seen.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(failed("is a series that was told before"));
        }
        scrape.samples.push(sample);
    }
    check_histograms(&scrape).map_err(|reason| wrong(lines, &reason))?;
    Ok(scrape)
}

fn wrong(line: usize, reason: &str) -> ParseError {
    ParseError {
        line,
        reason: reason.to_owned(),
    }
}

fn is_name(text: &str) -> bool {
    let is_inner = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    !text.starts_with(|letter: char| letter.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(is_inner)
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("has no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err(format!("{name:?} is no name"));
    }
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("has a label without a value")?;
            if !is_name(label) {
                return Err(format!("{label:?} is no name of a label"));
            }
            let (value, after) = quoted(after)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("has the label {label} twice"));
            }
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = after.strip_prefix('}').ok_or("has labels without an end")?;
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or("has no value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number
            .parse::<f64>()
            .ok()
            .filter(|_| !number.starts_with(|letter: char| letter.is_ascii_alphabetic()))
            .ok_or_else(|| format!("{number:?} is no number"))?,
    };
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// What is in quotation marks, after the first of them, and what follows.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((index, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, text.get(index + 1..).unwrap_or_default())),
            '\\' => value.push(match letters.next() {
                Some((_, 'n')) => '\n',
                Some((_, letter @ ('\\' | '"'))) => letter,
                _ => return Err("has a backslash before nothing".to_owned()),
            }),
            letter => value.push(letter),
        }
    }
    Err("has a value without an end".to_owned())
}

/// A histogram, and the labels of one of its series.
type Series = (String, BTreeMap<String, String>);

/// Buckets ascend in bound and count, the last is without bound and is the count.
fn check_histograms(scrape: &Scrape) -> Result<(), String> {
    let mut buckets: BTreeMap<Series, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in &scrape.samples {
        let Some(family) = sample.name.strip_suffix("_bucket") else {
            continue;
        };
        if scrape.kinds.get(family) != Some(&Kind::Histogram) {
            continue;
        }
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").ok_or("a bucket has no bound")?;
        let bound = match bound.as_str() {
            "+Inf" => f64::INFINITY,
            bound => bound
                .parse()
                .map_err(|_| format!("a bucket has the bound {bound:?}"))?,
        };
        buckets
            .entry((family.to_owned(), labels))
            .or_default()
            .push((bound, sample.value));
    }
    for ((family, labels), buckets) in buckets {
        let ascend = buckets
            .windows(2)
            .all(|pair| matches!(pair, [(low, few), (high, many)] if low < high && few <= many));
        let labels: Vec<(&str, &str)> = labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let count = scrape.value(&format!("{family}_count"), &labels);
        let sum = scrape.value(&format!("{family}_sum"), &labels);
        let last = buckets.last().copied();
        if !ascend || last.map(|(bound, _)| bound) != Some(f64::INFINITY) {
            return Err(format!("the buckets of {family} do not ascend to +Inf"));
        }
        if sum.is_none() || count.is_none() || last.map(|(_, count)| count) != count {
            return Err(format!(
                "{family} has another count than its last bucket, or no sum"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prometheus_would_refuse_is_refused() {
        for (text, reason) in [
            ("a 1\n", "of no metric"),
            ("# TYPE a gauge\na 1", "no end"),
            ("# TYPE a gauge\na x\n", "no number"),
            ("# TYPE a gauge\na inf\n", "no number"),
            ("# TYPE a gauge\na\n", "no value"),
            ("# TYPE a gauge\na 1\na 2\n", "told before"),
            ("# TYPE a gauge\n# TYPE a gauge\n", "told before"),
            ("# TYPE a gauge\n# TYPE b gauge\na 1\n", "not below its metric"),
            ("# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n", "twice"),
            ("# TYPE a gauge\na{x=\"1} 1\n", "without an end"),
            ("# TYPE a gauge\na{x=\"\\t\"} 1\n", "backslash"),
            ("# TYPE a gauge\na{1x=\"\"} 1\n", "no name of a label"),
            ("# TYPE a histogram\na 1\n", "no part"),
            (
                "# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n",
                "+Inf",
            ),
            (
                "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
                "ascend",
            ),
            (
                "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 2\n",
                "another count",
            ),
            ("# TYPE a summary\n", "not known"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn values_are_found_by_their_labels() {
        let text = "# HELP a b\n# TYPE a gauge\na{x=\"1\",y=\"q\"} 5\na{x=\"2\",y=\"q\"} +Inf\n";
        let scrape = parse(text).expect("it can be read");
        assert_eq!(scrape.value("a", &[("x", "1")]), Some(5.0));
        assert_eq!(scrape.value("a", &[("x", "2"), ("y", "q")]), Some(f64::INFINITY));
        assert_eq!(scrape.value("a", &[("x", "3")]), None);
    }
}
