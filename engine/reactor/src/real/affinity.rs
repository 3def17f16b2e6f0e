//! Pins a thread to a core.

use std::fmt::Write as _;
use std::io;

use rustix::process::getpid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the calling thread.
///
/// # Errors
///
/// When the core does not exist or is not for this process, with those that are.
pub(super) fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    if core < CpuSet::MAX_CPU {
        set.set(core);
        if sched_setaffinity(None, &set).is_ok() {
            return Ok(());
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "core {core} is not there for this process: choose from {}",
            available()
        ),
    ))
}

/// The cores that the process may use, as `0-3,8`.
fn available() -> String {
    // Those of the first thread: the calling one may be pinned already.
    match sched_getaffinity(Some(getpid())).or_else(|_| sched_getaffinity(None)) {
        Ok(set) => ranges((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core))),
        Err(_) => "those that `nproc --all` counts".to_owned(),
    }
}

fn ranges(cores: impl Iterator<Item = usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for core in cores {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let mut text = String::new();
    for (first, last) in ranges {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = match first == last {
            true => write!(text, "{comma}{first}"),
            false => write!(text, "{comma}{first}-{last}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cores_in_ranges() {
        assert_eq!(ranges([0, 1, 2, 5, 7, 8].into_iter()), "0-2,5,7-8");
        assert_eq!(ranges(std::iter::empty()), "");
    }

    #[test]
    fn a_core_that_is_not_there_is_named_with_those_that_are() {
        for core in [CpuSet::MAX_CPU - 1, usize::MAX] {
            let error = pin(core).expect_err("no machine has that many").to_string();
            assert!(error.contains(&core.to_string()), "{error}");
            assert!(error.contains("choose from "), "{error}");
        }
    }
}
