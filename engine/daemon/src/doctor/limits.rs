//! Limits of this process, from `/proc/self/limits`.

use std::path::Path;

use serde::Serialize;

use super::files;

/// A soft and a hard limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What counts now.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
}

/// The limits that matter to an engine; `None` where they cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Memory that may be locked, in bytes (`ulimit -l`).
    pub locked_memory_bytes: Option<Limit>,
    /// Descriptors that may be open (`ulimit -n`).
    pub open_files: Option<Limit>,
}

pub(super) fn read(proc: &Path) -> Limits {
    let text = files::text(&proc.join("self/limits")).unwrap_or_default();
    Limits {
        locked_memory_bytes: limit(&text, "Max locked memory"),
        open_files: limit(&text, "Max open files"),
    }
}

/// `Max open files   1024   4096   files`.
fn limit(text: &str, name: &str) -> Option<Limit> {
    let mut words = text
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Limit {
        soft: next()?,
        hard: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_and_unlimited() {
        let text = "Limit      Soft Limit  Hard Limit  Units\nMax open files   1024   unlimited  files\n";
        let read = limit(text, "Max open files");
        assert_eq!(
            read,
            Some(Limit {
                soft: Some(1024),
                hard: None
            })
        );
        assert_eq!(limit(text, "Max locked memory"), None);
    }
}
