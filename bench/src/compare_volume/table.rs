//! Rows of the table, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The figure that is wanted, as a number of `unit`.
    pub figure: f64,
    /// What it is a number of.
    pub unit: &'static str,
    /// What it has to be at most, or at least.
    pub wanted: Wanted,
    /// What it was made of.
    pub detail: String,
}

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Wanted {
    /// Whether a figure is as wanted.
    pub fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Missing {
    what: String,
    why: String,
}

/// The table.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Row>,
    missing: Vec<Missing>,
}

impl Report {
    /// Adds rows.
    pub fn extend(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// Adds something that could not be measured.
    pub fn missing(&mut self, what: &str, why: &str) {
        self.missing.push(Missing {
            what: what.to_owned(),
            why: why.to_owned(),
        });
    }

    /// In Markdown.
    pub fn render(&self) -> String {
        let mut text =
            "| what | measured | wanted | reached | of |\n| --- | --- | --- | --- | --- |\n".to_owned();
        for row in &self.rows {
            let wanted = match row.wanted {
                Wanted::AtMost(limit) => format!("at most {limit}{}", row.unit),
                Wanted::AtLeast(limit) => format!("at least {limit}{}", row.unit),
            };
            let reached = match row.wanted.is_met(row.figure) {
                true => "yes",
                false => "no",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {:.2}{} | {wanted} | {reached} | {} |",
                row.what, row.figure, row.unit, row.detail
            );
        }
        for missing in &self.missing {
            let _ = writeln!(text, "| {} | not measured: {} | | | |", missing.what, missing.why);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_whether_they_are_as_wanted() {
        let mut report = Report::default();
        let row = |figure, wanted| Row {
            what: "a".to_owned(),
            figure,
            unit: " s",
            wanted,
            detail: "b".to_owned(),
        };
        report.extend(vec![
            row(1.0, Wanted::AtMost(1.0)),
            row(1.1, Wanted::AtMost(1.0)),
            row(0.9, Wanted::AtLeast(1.0)),
        ]);
        report.missing("c", "it rained");
        let text = report.render();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| a | 1.00 s | at most 1 s | yes | b |",
                "| a | 1.10 s | at most 1 s | no | b |",
                "| a | 0.90 s | at least 1 s | no | b |",
                "| c | not measured: it rained | | | |",
            ]
        );
    }
}
