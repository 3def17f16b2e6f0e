//! Reading sysfs and proc: what is not there is no error, the machine just does not have it.

use std::path::{Path, PathBuf};

/// The text of a file.
pub(crate) fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The text of a file of one line, without white space around it; nothing for an empty one.
pub(crate) fn line(path: &Path) -> Option<String> {
    let text = text(path)?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The number in a file.
pub(crate) fn number(path: &Path) -> Option<u64> {
    line(path)?.parse().ok()
}

/// What is in a directory, sorted by name.
pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    entries
}

/// The last part of a path.
pub(crate) fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The last part of where a symbolic link leads.
pub(crate) fn link_name(path: &Path) -> Option<String> {
    std::fs::read_link(path).ok().map(|target| name(&target))
}
