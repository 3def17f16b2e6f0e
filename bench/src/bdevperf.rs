//! SPDK's `bdevperf`: started, and what it prints read.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program;
use crate::samples::Figures;

/// Finds `bdevperf` in a build tree or an installation.
pub fn find(root: &Path) -> Result<PathBuf, program::Error> {
    let places = [
        "build/examples/bdevperf",
        "examples/bdevperf",
        "bin/bdevperf",
        "bdevperf",
    ];
    let mut found = places.iter().map(|place| root.join(place));
    found
        .find(|path| path.is_file())
        .ok_or_else(|| program::Error::not_found("bdevperf", root))
}

/// Runs it to its end.
pub fn run(command: Command, program: &Path) -> Result<Figures, program::Error> {
    program::read_output(command, program, parse)
}

/// Finds the line `Total : IOPS MiB/s Fail/s TO/s average min max`.
fn parse(text: &str) -> Option<Figures> {
    let total = text
        .split(['\n', '\r'])
        .rev()
        .find(|line| line.trim_start().starts_with("Total"))?;
    let numbers: Vec<f64> = total
        .split(':')
        .nth(1)?
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    Some(Figures {
        iops: *numbers.first()?,
        mean_us: *numbers.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_totals() {
        let text = "\r Remote0n1 : 2.00 81234.50 317.32 0.00 0.00 12.20 9.10 310.00\n\
                    \r ==========\n\r Total       : 81234.50 317.32 0.00 0.00 12.20 9.10 310.00\n";
        let figures = parse(text).unwrap();
        assert_eq!((figures.iops, figures.mean_us), (81_234.5, 12.2));
        assert!(parse("no totals").is_none());
    }

    #[test]
    fn says_where_it_looked() {
        let error = find(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("bdevperf under /nowhere"), "{error}");
    }
}
